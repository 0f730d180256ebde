//! Real servers for tests: each on a free port of the loopback, with a directory of its own, killed at the end.
#![allow(dead_code)] // each test binary uses its own part

pub(crate) mod cluster;
pub(crate) mod proxy;

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The servers that this machine has, or the one that `KVLANE_TEST_SERVER` names. Without any, tests of them are
/// passed over, and say so.
pub(crate) fn programs() -> Vec<&'static str> {
    let named = std::env::var("KVLANE_TEST_SERVER").ok();
    let wanted = |program: &&str| named.as_ref().is_none_or(|named| named == program);
    let there = |program: &&str| {
        Command::new(program)
            .arg("--version")
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .is_ok_and(|s| s.success())
    };
    let found: Vec<_> = ["redis-server", "valkey-server"].into_iter().filter(wanted).filter(there).collect();
    if found.is_empty() {
        eprintln!("skipped: no redis-server and no valkey-server here: scripts/setup.sh --test installs one");
    }
    found
}

/// One that every test can use; `None`: skip.
pub(crate) fn program() -> Option<&'static str> {
    programs().first().copied()
}

pub(crate) fn free_port() -> u16 {
    loop {
        let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its number").port();
        // A cluster's bus is at 10000 more.
        if port < 55_000 {
            return port;
        }
    }
}

/// A server process.
#[derive(Debug)]
pub(crate) struct Server {
    program: &'static str,
    arguments: Vec<String>,
    pub(crate) port: u16,
    child: Option<Child>,
    dir: tempfile::TempDir,
}

impl Server {
    /// Starts one and waits until it answers.
    pub(crate) fn start(program: &'static str, arguments: &[&str]) -> Self {
        let mut server = Self {
            program,
            arguments: arguments.iter().map(|&argument| argument.to_owned()).collect(),
            port: free_port(),
            child: None,
            dir: tempfile::tempdir().expect("a temporary directory"),
        };
        // Somebody else may have taken the port meanwhile.
        while !server.came_up() {
            server.port = free_port();
        }
        server
    }

    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(crate) fn dir(&self) -> &std::path::Path {
        self.dir.path()
    }

    /// Starts it again with the same port and directory.
    pub(crate) fn up(&mut self) {
        assert!(self.came_up(), "{} ended at once: is port {} in use?", self.program, self.port);
    }

    /// Whether it answers; not if it ended, as it does where its port is in use.
    fn came_up(&mut self) -> bool {
        assert!(self.child.is_none());
        let mut command = Command::new(self.program);
        command.args(["--port", &self.port.to_string(), "--bind", "127.0.0.1", "--dir"]).arg(self.dir.path());
        command.args(["--save", "", "--appendonly", "no", "--logfile", "server.log", "--daemonize", "no"]);
        // Where an argument has to say the port.
        command.args(self.arguments.iter().map(|argument| argument.replace("PORT", &self.port.to_string())));
        command.stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null());
        let mut child = command.spawn().expect("the program was found");
        let end = Instant::now() + Duration::from_secs(20);
        let mut runs = || child.try_wait().expect("it was started here").is_none();
        while runs() && !self.answers() {
            assert!(Instant::now() < end, "{} on {} does not answer", self.program, self.port);
            std::thread::sleep(Duration::from_millis(10));
        }
        let came_up = runs();
        self.child = came_up.then_some(child);
        came_up
    }

    pub(crate) fn runs(&self) -> bool {
        self.child.is_some()
    }

    fn answers(&self) -> bool {
        // With a password it answers NOAUTH, with TLS alone nothing: then its port tells.
        std::net::TcpStream::connect(("127.0.0.1", self.port)).is_ok()
    }

    fn signal(&self, signal: Signal) {
        let pid = self.child.as_ref().expect("it runs").id();
        kill(Pid::from_raw(pid as i32), signal).expect("it is ours");
    }

    /// Ends it at once, as a crash would.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("it runs");
        child.kill().expect("it is ours");
        child.wait().expect("it was started here");
    }

    pub(crate) fn freeze(&self) {
        self.signal(Signal::SIGSTOP);
    }

    pub(crate) fn thaw(&self) {
        self.signal(Signal::SIGCONT);
    }

    /// What redis-cli would print, line by line.
    pub(crate) fn cli(&self, words: &[&str]) -> String {
        let mut command = Command::new("redis-cli");
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]).args(words);
        let output = command.output().expect("redis-cli comes with redis-tools");
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    pub(crate) fn flush(&self) {
        assert_eq!(self.cli(&["FLUSHALL"]), "OK");
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
