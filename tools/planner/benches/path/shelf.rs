//! The stores that prefixes come from: a directory in the page cache, or a redis-server of this bench's own on
//! loopback.

use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::cpu::Cpu;

#[derive(Debug)]
pub(crate) enum Shelf {
    Directory(PathBuf),
    Redis { server: Child, port: u16 },
}

impl Shelf {
    pub(crate) fn directory(dir: &Path, name: &str) -> Self {
        Self::Directory(dir.join(name))
    }

    /// `None` where there is no redis-server.
    pub(crate) fn redis() -> Option<Self> {
        let port = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a port").port();
        let server = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .ok()?;
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            assert!(Instant::now() < deadline, "redis-server does not answer");
            std::thread::sleep(Duration::from_millis(20));
        }
        Some(Self::Redis { server, port })
    }

    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Directory(_) => "dir:",
            Self::Redis { .. } => "redis",
        }
    }

    pub(crate) fn url(&self) -> String {
        match self {
            Self::Directory(path) => format!("dir:{}?sync=never", path.display()),
            Self::Redis { port, .. } => format!("redis://127.0.0.1:{port}"),
        }
    }

    /// The same chunks for a second process. A directory has one owner: the other gets a copy, in the page cache as
    /// well.
    pub(crate) fn twin(&self) -> String {
        let Self::Directory(path) = self else { return self.url() };
        let twin = path.with_extension("twin");
        let _ = std::fs::remove_dir_all(&twin);
        let copied = Command::new("cp").arg("--recursive").args([path, &twin]).status();
        assert!(copied.is_ok_and(|status| status.success()), "cp {}", path.display());
        format!("dir:{}?sync=never", twin.display())
    }

    /// CPU seconds of the server so far; a directory has none.
    pub(crate) fn cpu(&self) -> f64 {
        match self {
            Self::Directory(_) => 0.0,
            Self::Redis { server, .. } => Cpu::of(server.id()).total(),
        }
    }
}

impl Drop for Shelf {
    fn drop(&mut self) {
        match self {
            Self::Directory(path) => {
                let _ = std::fs::remove_dir_all(path.with_extension("twin"));
                let _ = std::fs::remove_dir_all(path);
            }
            Self::Redis { server, .. } => {
                let _ = server.kill();
                let _ = server.wait();
            }
        }
    }
}
