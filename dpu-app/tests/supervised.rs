//! The real binary under a supervisor of our own: what systemd would hear from it, and when it would hear nothing.

use std::io::{Read, Write};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use host_ctl::{Client, Options, Route};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// What systemd would give as WatchdogSec. A ping is due every third of it.
const WATCHDOG: Duration = Duration::from_millis(900);
const WAIT: Duration = Duration::from_secs(20);

struct Supervisor {
    socket: UnixDatagram,
}

impl Supervisor {
    fn bind(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).unwrap();
        Self { socket }
    }

    /// The next message within `patience`.
    fn hear(&self, patience: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(patience)).unwrap();
        let mut text = [0; 256];
        let bytes = self.socket.recv(&mut text).ok()?;
        Some(String::from_utf8(text[..bytes].to_vec()).unwrap())
    }
}

struct Dpu(Child);

impl Drop for Dpu {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn command(home: &Path, notify: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dpu-app"));
    command.args(["run", "--attach", "socket", "--slots", "4", "--block-bytes", "16384", "--store"]);
    command.arg(format!("dir:{}", home.join("store").display())).arg("--socket").arg(home.join("card.sock"));
    command.env("NOTIFY_SOCKET", notify).env("WATCHDOG_USEC", WATCHDOG.as_micros().to_string());
    command.env_remove("WATCHDOG_PID").env_remove("DOCA_EMULATOR").stdin(Stdio::null());
    command
}

fn wait(child: &mut Child) -> Option<i32> {
    let until = Instant::now() + WAIT;
    while Instant::now() < until {
        if let Some(status) = child.try_wait().unwrap() {
            return status.code();
        }
        thread::sleep(Duration::from_millis(5));
    }
    panic!("it does not end");
}

#[test]
fn an_idle_engine_thread_says_ready_once_then_pings_and_says_when_it_stops() {
    let home = tempfile::tempdir().unwrap();
    let notify = home.path().join("notify");
    let supervisor = Supervisor::bind(&notify);
    let mut dpu = Dpu(command(home.path(), &notify).stderr(Stdio::null()).spawn().unwrap());
    let first = supervisor.hear(WAIT).expect("a word");
    assert!(first.starts_with("READY=1\n"), "{first}");
    for _ in 0..4 {
        assert_eq!(supervisor.hear(WATCHDOG).as_deref(), Some("WATCHDOG=1"));
    }
    kill(Pid::from_raw(dpu.0.id() as i32), Signal::SIGTERM).unwrap();
    let mut last = String::from("nothing");
    while let Some(word) = supervisor.hear(WATCHDOG).filter(|_| !last.starts_with("STOPPING=1")) {
        assert!(word == "WATCHDOG=1" || word.starts_with("STOPPING=1\n"), "{word}");
        last = word;
    }
    assert!(last.starts_with("STOPPING=1"), "{last}");
    assert_eq!(wait(&mut dpu.0), Some(0));
}

/// Nobody reads its log: the engine thread stands in `write` as soon as the pipe is full and it has something to say.
#[test]
fn a_stuck_engine_thread_is_silent_and_pings_again_when_it_goes_on() {
    let home = tempfile::tempdir().unwrap();
    let notify = home.path().join("notify");
    let supervisor = Supervisor::bind(&notify);
    let (mut log, to_log) = std::io::pipe().unwrap();
    let mut filler = to_log.try_clone().unwrap();
    let dpu = Dpu(command(home.path(), &notify).stderr(to_log).spawn().unwrap());
    assert!(supervisor.hear(WAIT).expect("a word").starts_with("READY=1\n"));
    assert_eq!(supervisor.hear(WATCHDOG).as_deref(), Some("WATCHDOG=1"));

    // More than any pipe holds: this thread, too, stands until the log is read.
    let filling = thread::spawn(move || filler.write_all(&vec![b'\n'; 4 << 20]));
    let options =
        Options { route: Route::Socket(home.path().join("card.sock")), client: "test".into(), ..Options::default() };
    let attaching = thread::spawn(move || while Client::attach(&options, None).is_ok() {});
    let until = Instant::now() + WAIT;
    while supervisor.hear(WATCHDOG * 2).is_some() {
        assert!(Instant::now() < until, "it pings although systemd should kill it");
    }

    let reading = thread::spawn(move || {
        let mut sink = [0; 65536];
        while log.read(&mut sink).is_ok_and(|bytes| bytes > 0) {}
    });
    assert_eq!(supervisor.hear(WAIT).as_deref(), Some("WATCHDOG=1"));
    filling.join().unwrap().unwrap();
    drop(dpu);
    attaching.join().unwrap();
    reading.join().unwrap();
}

#[test]
fn a_supervisor_that_makes_no_sense_is_exit_code_2_and_named() {
    let home = tempfile::tempdir().unwrap();
    for (name, value) in [("NOTIFY_SOCKET", "vsock:2:1"), ("WATCHDOG_USEC", "soon"), ("WATCHDOG_USEC", "0")] {
        let mut command = command(home.path(), &home.path().join("notify"));
        let output = command.env(name, value).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(name), "{said}");
    }
}

#[test]
fn a_watchdog_for_another_process_or_a_deaf_supervisor_changes_nothing() {
    let home = tempfile::tempdir().unwrap();
    let notify = home.path().join("notify");
    let supervisor = Supervisor::bind(&notify);
    let mut dpu = Dpu(command(home.path(), &notify).env("WATCHDOG_PID", "1").stderr(Stdio::null()).spawn().unwrap());
    assert!(supervisor.hear(WAIT).expect("a word").starts_with("READY=1\n"));
    assert_eq!(supervisor.hear(WATCHDOG), None, "the watchdog is not ours");
    drop(supervisor);
    std::fs::remove_file(&notify).unwrap();
    kill(Pid::from_raw(dpu.0.id() as i32), Signal::SIGTERM).unwrap();
    assert_eq!(wait(&mut dpu.0), Some(0));
}
