//! The real binary in a process of its own.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use host_ctl::{Client, Options, Route};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{WAIT, comch_name};

/// A `dpu-app run` that ends with its test.
pub struct Dpu {
    pub child: Child,
    /// Its name there.
    pub comch: String,
    log: Option<thread::JoinHandle<String>>,
}

pub fn command(store: &str, socket: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dpu-app"));
    command.args(["run", "--store", store, "--socket"]).arg(socket).args(more);
    let comch = comch_name();
    let small = [["--slots", "6"], ["--block-bytes", "16384"], ["--comch-name", &comch]];
    command.args(small.iter().filter(|[flag, _]| !more.contains(flag)).flatten());
    command.env_remove("DOCA_EMULATOR").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
    command
}

impl Dpu {
    pub fn start(store: &str, socket: &Path, emulator: &str) -> Self {
        Self::start_with(store, socket, emulator, &[])
    }

    pub fn start_with(store: &str, socket: &Path, emulator: &str, more: &[&str]) -> Self {
        let comch = comch_name();
        let more = [&["--comch-name", &comch], more].concat();
        Self::spawn(command(store, socket, &more).env("DOCA_EMULATOR", emulator), comch)
    }

    /// One that may have so many descriptors.
    pub fn start_limited(store: &str, socket: &Path, more: &[&str], descriptors: usize) -> Self {
        let plain = command(store, socket, more);
        let mut limited = Command::new("sh");
        limited.arg("-c").arg(format!("ulimit -n {descriptors} && exec \"$0\" \"$@\""));
        limited.arg(plain.get_program()).args(plain.get_args()).env_remove("DOCA_EMULATOR");
        Self::spawn(limited.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()), String::new())
    }

    fn spawn(command: &mut Command, comch: String) -> Self {
        let mut child = command.spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap());
        let mut log = String::new();
        while !log.contains("ready") {
            assert!(lines.read_line(&mut log).unwrap() > 0, "it ended: {log}");
        }
        let log = thread::spawn(move || {
            let _ = lines.read_to_string(&mut log);
            log
        });
        Self { child, comch, log: Some(log) }
    }

    pub fn options(&self) -> Options {
        let recipe = Some("lossless".parse().unwrap());
        let route = Route::Comch { name: self.comch.clone() };
        Options { route, client: "test".into(), recipe, ..Options::default() }
    }

    pub fn attach(&self, memory: &host_ctl::Memory) -> Client {
        Client::attach(&self.options(), Some(memory.clone())).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).unwrap();
    }

    pub fn wait(&mut self) -> (ExitStatus, String) {
        let status = wait(&mut self.child);
        (status, self.log.take().unwrap().join().unwrap())
    }
}

impl Drop for Dpu {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn wait(child: &mut Child) -> ExitStatus {
    let until = Instant::now() + WAIT;
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if Instant::now() >= until {
            child.kill().unwrap();
            panic!("it does not end");
        }
        thread::sleep(Duration::from_millis(2));
    }
}

/// A start that must fail: its exit code and what it said.
pub fn refused(store: &str, socket: &Path, more: &[&str]) -> (Option<i32>, String) {
    refused_as("", store, socket, more)
}

pub fn refused_as(emulator: &str, store: &str, socket: &Path, more: &[&str]) -> (Option<i32>, String) {
    let mut child = command(store, socket, more).env("DOCA_EMULATOR", emulator).spawn().unwrap();
    let mut stderr = child.stderr.take().unwrap();
    let reader = thread::spawn(move || {
        let mut text = String::new();
        stderr.read_to_string(&mut text).unwrap();
        text
    });
    let code = wait(&mut child).code();
    (code, reader.join().unwrap())
}

pub struct Home {
    pub dir: tempfile::TempDir,
}

impl Home {
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    pub fn store(&self) -> String {
        format!("dir:{}", self.dir.path().join("store").display())
    }

    pub fn socket(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}
