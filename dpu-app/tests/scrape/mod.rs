//! A monitoring system, as far as tests need one: asks over HTTP and reads Prometheus text.
#![allow(dead_code, unreachable_pub)]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing that answers at all takes this long.
const WAIT: Duration = Duration::from_secs(20);

/// A loopback address that nobody has, outside of the range from which the kernel takes ports by itself.
pub fn free_address() -> SocketAddr {
    let first = 20_000 + (std::process::id() % 1_000) as u16 * 10;
    let free = |port: &u16| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok();
    static NEXT: std::sync::atomic::AtomicU16 = std::sync::atomic::AtomicU16::new(0);
    let mut ports = std::iter::repeat_with(|| first + NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
    (Ipv4Addr::LOCALHOST, ports.find(free).unwrap()).into()
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Page {
    pub code: u16,
    pub head: String,
    pub body: String,
}

impl Page {
    fn parse(bytes: Vec<u8>) -> Self {
        let text = String::from_utf8(bytes).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text:?}"));
        let code = head.split(' ').nth(1).unwrap().parse().unwrap();
        Self { code, head: head.to_owned(), body: body.to_owned() }
    }
}

pub fn connect(address: SocketAddr) -> TcpStream {
    let socket = TcpStream::connect_timeout(&address, WAIT).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    socket
}

/// Sends bytes and reads until the server hangs up.
pub fn say(address: SocketAddr, bytes: &[u8]) -> Page {
    let mut socket = connect(address);
    socket.write_all(bytes).unwrap();
    let mut answer = Vec::new();
    socket.read_to_end(&mut answer).unwrap();
    Page::parse(answer)
}

pub fn get(address: SocketAddr, path: &str) -> Page {
    say(address, format!("GET {path} HTTP/1.1\r\nHost: test\r\nAccept: */*\r\n\r\n").as_bytes())
}

/// All series of `/metrics`, by name and labels as they are written.
pub fn scrape(address: SocketAddr) -> Samples {
    let page = get(address, "/metrics");
    assert_eq!(page.code, 200, "{page:?}");
    let line = |line: &str| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        (name.to_owned(), value.parse().unwrap_or_else(|_| panic!("{line}")))
    };
    Samples(page.body.lines().filter(|line| !line.starts_with('#')).map(line).collect())
}

#[derive(Clone, Debug)]
pub struct Samples(pub BTreeMap<String, f64>);

impl Samples {
    pub fn at(&self, series: &str) -> f64 {
        *self.0.get(series).unwrap_or_else(|| panic!("no {series} in {:#?}", self.0.keys()))
    }
}

/// Asks again until `wanted` holds.
pub fn until<T: std::fmt::Debug>(mut ask: impl FnMut() -> T, wanted: impl Fn(&T) -> bool) -> T {
    let since = Instant::now();
    loop {
        let seen = ask();
        if wanted(&seen) {
            return seen;
        }
        assert!(since.elapsed() < WAIT, "{seen:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// `dpu-app run` on a store and a socket in `home`, with small limits.
pub fn dpu_app(home: &Path) -> Command {
    dpu_app_on(&format!("dir:{}", home.join("store").display()), home)
}

pub fn dpu_app_on(store: &str, home: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dpu-app"));
    command.args(["run", "--attach", "socket", "--slots", "6", "--block-bytes", "16384", "--store"]);
    command.arg(store).arg("--socket").arg(home.join("card.sock"));
    command.env_remove("DOCA_EMULATOR").env_remove("KVLANE_METRICS").stdin(Stdio::null()).stderr(Stdio::piped());
    command
}

/// A process that ends with its test.
#[derive(Debug)]
pub struct Process(pub Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a `dpu-app run` and waits until hosts may attach: the process, what it said, and the port of its metrics.
pub fn start(mut command: Command) -> (Process, String, Option<u16>) {
    let mut dpu = Process(command.spawn().unwrap());
    let mut lines = BufReader::new(dpu.0.stderr.take().unwrap());
    let mut log = String::new();
    while !log.contains("ready") {
        assert!(lines.read_line(&mut log).unwrap() > 0, "it ended: {log}");
    }
    std::thread::spawn(move || lines.read_to_string(&mut String::new()));
    let url = log.lines().find_map(|line| line.split_once("metrics on http://"));
    let port = url.map(|(_, rest)| rest.trim_end_matches("/metrics").rsplit_once(':').unwrap().1.parse().unwrap());
    (dpu, log, port)
}
