//! Claims about memory of another process. The other process is this test binary again, as an exporter that obeys lines
//! on its standard input. It is nobody's child: Yama would let a parent trace its children anyway. The same tests run
//! under Yama in `scripts/emulator-yama.sh`.
//!
//! Every claim holds three times: as it is; where the kernel has no system calls to copy between processes, as in a
//! container with Docker's old seccomp filter and in qemu's user mode; and where it does not even name other processes,
//! as between pid namespaces.

#![cfg(not(miri))]
#![allow(clippy::undocumented_unsafe_blocks, reason = "calls of C functions with what their headers ask for")]

mod rig;

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};
use std::ptr;
use std::sync::{Mutex, PoisonError};

use rig::c::*;
use rig::*;

const BYTES: usize = 1 << 20;
const ROLE: &str = "KVLANE_TEST_EXPORTER";
const IMPORT: &str = "KVLANE_TEST_IMPORT";

/// The memory of the exporter.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    /// Reached through the kernel.
    Private,
    /// A memfd sealed against shrinking: mapped by the importer.
    Sealed,
    /// A memfd that may shrink: through the kernel.
    Unsealed,
}

unsafe fn memfd(seal: bool) -> (i32, *mut u8) {
    unsafe {
        let fd = libc::memfd_create(c"kvlane-test".as_ptr(), libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC);
        assert!(fd >= 0);
        // The range starts off the beginning of the file and of its mapping.
        assert_eq!(libc::ftruncate(fd, (BYTES + 3 * 4096) as i64), 0);
        if seal {
            assert_eq!(libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK), 0);
        }
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let map = libc::mmap(ptr::null_mut(), BYTES + 2 * 4096, protection, libc::MAP_SHARED, fd, 4096);
        assert_ne!(map, libc::MAP_FAILED);
        (fd, map.cast::<u8>().add(4096 + 64))
    }
}

/// The other process. Not a test of its own: without the variable it has nothing to do.
#[test]
fn exporter() {
    let Ok(kind) = std::env::var(ROLE) else { return };
    let device = Device::open("");
    let mut fd = -1;
    let first = match kind.as_str() {
        "private" => Box::leak(vec![0u8; BYTES].into_boxed_slice()).as_mut_ptr(),
        _ => unsafe {
            let (memfd, first) = memfd(kind == "sealed");
            fd = memfd;
            first
        },
    };
    let access = if std::env::var_os("KVLANE_TEST_READ_ONLY").is_some() { PCI_RO } else { PCI_RW };
    let memory = Memory::over(&device, first, BYTES, access);
    memory.fill(0, &sample(BYTES, 99));
    let blob: String = memory.blob(&device).expect("a blob").iter().map(|byte| format!("{byte:02x}")).collect();
    println!("\n@blob {blob}");
    for line in std::io::stdin().lines() {
        let line = line.expect("a line");
        let answer = match line.as_str() {
            "sum" => format!("{:08x}", crc32fast::hash(&memory.bytes())),
            "stop" => format!("{:?}", unsafe { doca_mmap_stop(memory.mmap) }),
            "shrink" => format!("{}", unsafe { libc::ftruncate(fd, 0) }),
            _ => break,
        };
        println!("\n@{line} {answer}");
    }
    std::process::exit(0);
}

struct Exporter {
    /// None if that is no pid here.
    pid: Option<i32>,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
    blob: Vec<u8>,
}

impl Exporter {
    fn start(kind: Kind, read_only: bool) -> Exporter {
        Exporter::start_under("", kind, read_only)
    }

    /// `runner`: a command that runs another one.
    fn start_under(runner: &str, kind: Kind, read_only: bool) -> Exporter {
        let name = match kind {
            Kind::Private => "private",
            Kind::Sealed => "sealed",
            Kind::Unsealed => "unsealed",
        };
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg(format!(r#"exec 3<&0; {runner} "$0" --exact exporter --nocapture <&3 &"#))
            .arg(std::env::current_exe().expect("this test"))
            .env(ROLE, name);
        if read_only {
            command.env("KVLANE_TEST_READ_ONLY", "1");
        }
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a child");
        let input = child.stdin.take().expect("its input");
        let mut output = BufReader::new(child.stdout.take().expect("its output"));
        assert!(child.wait().expect("a shell").success());
        let hex = answer(&mut output, "blob");
        let blob: Vec<u8> =
            (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("two digits")).collect();
        let pid = i32::from_le_bytes(blob[12..16].try_into().expect("four bytes"));
        Exporter { pid: runner.is_empty().then_some(pid), input, output, blob }
    }

    fn ask(&mut self, what: &str) -> String {
        writeln!(self.input, "{what}").expect("it listens");
        answer(&mut self.output, what)
    }

    /// Returns once it is gone.
    fn kill(&mut self) {
        assert_eq!(unsafe { libc::kill(self.pid.expect("a pid"), libc::SIGKILL) }, 0);
        while self.is_running() {
            std::thread::yield_now();
        }
    }

    /// A zombie that nobody has buried does not run, once all its threads are gone.
    fn is_running(&self) -> bool {
        let Some(pid) = self.pid else { return false };
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        threads > 1 || stat.rsplit(')').next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with(" Z"))
    }
}

/// The exporter's answer to a line; what else its test harness prints is skipped.
fn answer(output: &mut BufReader<ChildStdout>, to: &str) -> String {
    let prefix = format!("@{to} ");
    loop {
        let mut line = String::new();
        assert_ne!(output.read_line(&mut line).expect("a line"), 0, "the exporter died");
        if let Some(answer) = line.strip_prefix(&prefix) {
            return answer.trim().to_owned();
        }
    }
}

impl Drop for Exporter {
    fn drop(&mut self) {
        if self.is_running() {
            self.kill();
        }
    }
}

/// Makes system calls fail for this thread and those that it starts, for good. False in qemu's user mode, which knows
/// no filters.
fn forbid(calls: &[libc::c_long]) -> bool {
    const EPERM: u32 = libc::SECCOMP_RET_ERRNO | libc::EPERM as u32;
    let step = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = vec![step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, 0)];
    for call in calls {
        filter.push(step(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, 0, 1, *call as u32));
        filter.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, EPERM));
    }
    filter.push(step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW));
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    unsafe {
        assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
        if libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) != 0 {
            let error = std::io::Error::last_os_error();
            assert_eq!((std::env::consts::ARCH, error.raw_os_error()), ("aarch64", Some(libc::EINVAL)), "no filter");
            return false;
        }
        let mut byte = 0u8;
        let range = libc::iovec { iov_base: (&raw mut byte).cast(), iov_len: 1 };
        assert_eq!(libc::process_vm_readv(libc::getpid(), &range, 1, &range, 1, 0), -1, "the filter works");
    }
    true
}

/// Shows a claim under every kernel that the head of this file names.
fn wherever(claim: fn()) {
    const COPIES: [libc::c_long; 2] = [libc::SYS_process_vm_readv, libc::SYS_process_vm_writev];
    const PROCESSES: [libc::c_long; 4] = [COPIES[0], COPIES[1], libc::SYS_pidfd_open, libc::SYS_pidfd_getfd];
    // One test at a time: under qemu-user a child that is forked beside a busy thread now and then never gets to its
    // exec.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    claim();
    for calls in [&COPIES[..], &PROCESSES] {
        let thread = std::thread::spawn(move || {
            if forbid(calls) {
                claim();
            }
        });
        assert!(thread.join().is_ok(), "without system calls {calls:?}");
    }
}

struct Card {
    context: Context,
    engine: Engine,
    inventory: Inventory,
    memory: Memory,
    device: Device,
}

fn card(config: &str) -> Card {
    let device = Device::open(config);
    let engine = Engine::new();
    let context = Context::dma(&device, &engine);
    let memory = Memory::zeroed(&device, BYTES);
    Card { context, engine, inventory: Inventory::new(512), memory, device }
}

impl Card {
    fn copy(&self, source: &Memory, into: &Memory, pieces: usize) -> doca_error {
        let len = BYTES / pieces;
        let src = self.inventory.source(source, 0, BYTES);
        // The pages of the destination in reverse: nothing can be merged.
        let parts: Vec<_> = (0..pieces).rev().map(|i| self.inventory.destination(into, i * len, len)).collect();
        let dst = self.inventory.chain(&parts);
        let status = self.context.run(&self.engine, self.context.memcpy(0, src, dst).expect("a task"));
        give_back(src);
        give_back(dst);
        if status != E::DOCA_SUCCESS {
            self.context.stop(&self.engine);
            ok(unsafe { doca_ctx_start(self.context.ctx) });
        }
        self.context.completions();
        status
    }
}

fn reversed(bytes: &[u8], pieces: usize) -> Vec<u8> {
    bytes.chunks(bytes.len() / pieces).rev().flatten().copied().collect()
}

#[test]
fn both_directions_work_for_every_kind_of_memory() {
    wherever(|| {
        for kind in [Kind::Private, Kind::Sealed, Kind::Unsealed] {
            for config in ["", "window=0"] {
                let mut exporter = Exporter::start(kind, false);
                let card = card(config);
                let import = Memory::import(&card.device, &exporter.blob).expect("an import");
                assert_eq!(import.len, BYTES);
                assert_eq!(card.copy(&import, &card.memory, 1), E::DOCA_SUCCESS);
                assert!(card.memory.bytes() == sample(BYTES, 99));

                let news = sample(BYTES, 100);
                card.memory.fill(0, &news);
                assert_eq!(card.copy(&card.memory, &import, 128), E::DOCA_SUCCESS);
                let sum = crc32fast::hash(&reversed(&news, 128));
                assert_eq!(exporter.ask("sum"), format!("{sum:08x}"));
            }
        }
    });
}

#[test]
fn bytes_go_from_one_foreign_process_to_another() {
    wherever(|| {
        let (from, mut to) = (Exporter::start(Kind::Private, true), Exporter::start(Kind::Unsealed, false));
        let card = card("");
        let source = Memory::import(&card.device, &from.blob).expect("an import");
        let into = Memory::import(&card.device, &to.blob).expect("an import");
        assert_eq!(card.copy(&source, &into, 64), E::DOCA_SUCCESS);
        let sum = crc32fast::hash(&reversed(&sample(BYTES, 99), 64));
        assert_eq!(to.ask("sum"), format!("{sum:08x}"));
    });
}

#[test]
fn read_only_memory_is_not_written() {
    wherever(|| {
        for kind in [Kind::Private, Kind::Sealed] {
            let mut exporter = Exporter::start(kind, true);
            let card = card("");
            let import = Memory::import(&card.device, &exporter.blob).expect("an import");
            assert_ne!(card.copy(&card.memory, &import, 1), E::DOCA_SUCCESS);
            assert_eq!(card.copy(&import, &card.memory, 1), E::DOCA_SUCCESS);
            assert_eq!(exporter.ask("sum"), format!("{:08x}", crc32fast::hash(&sample(BYTES, 99))));
        }
    });
}

#[test]
fn a_dead_exporter_fails_tasks_and_crashes_nobody() {
    wherever(|| {
        for kind in [Kind::Private, Kind::Sealed, Kind::Unsealed] {
            let mut exporter = Exporter::start(kind, false);
            let card = card("");
            let import = Memory::import(&card.device, &exporter.blob).expect("an import");
            assert_eq!(card.copy(&import, &card.memory, 1), E::DOCA_SUCCESS);
            exporter.kill();
            assert_eq!(card.copy(&import, &card.memory, 1), E::DOCA_ERROR_IO_FAILED);
            assert_eq!(card.copy(&card.memory, &import, 16), E::DOCA_ERROR_IO_FAILED);
            let late = Memory::import(&card.device, &exporter.blob);
            assert_eq!(late.err(), Some(E::DOCA_ERROR_DRIVER));
        }
    });
}

#[test]
fn an_export_that_stopped_elsewhere_fails_tasks() {
    wherever(|| {
        for kind in [Kind::Private, Kind::Sealed] {
            let mut exporter = Exporter::start(kind, false);
            let card = card("");
            let import = Memory::import(&card.device, &exporter.blob).expect("an import");
            assert_eq!(exporter.ask("stop"), "doca_error(0)");
            assert_eq!(card.copy(&import, &card.memory, 1), E::DOCA_ERROR_IO_FAILED);
        }
    });
}

#[test]
fn a_file_that_shrinks_under_its_mapping_fails_tasks_and_crashes_nobody() {
    wherever(|| {
        let mut exporter = Exporter::start(Kind::Unsealed, false);
        let card = card("");
        let import = Memory::import(&card.device, &exporter.blob).expect("an import");
        assert_eq!(exporter.ask("shrink"), "0");
        assert_eq!(card.copy(&import, &card.memory, 1), E::DOCA_ERROR_IO_FAILED);
        assert_eq!(card.copy(&card.memory, &import, 8), E::DOCA_ERROR_IO_FAILED);
        let mut sealed = Exporter::start(Kind::Sealed, false);
        assert_eq!(sealed.ask("shrink"), "-1", "the seal holds");
    });
}

#[test]
fn an_exporter_that_dies_in_the_middle_fails_tasks_and_crashes_nobody() {
    wherever(|| {
        let mut exporter = Exporter::start(Kind::Sealed, false);
        let card = card("");
        let import = Memory::import(&card.device, &exporter.blob).expect("an import");
        let killer = std::thread::spawn(move || {
            std::thread::sleep(std::time::Duration::from_millis(30));
            exporter.kill();
        });
        while card.copy(&import, &card.memory, 8) == E::DOCA_SUCCESS {}
        killer.join().expect("a killer");
    });
}

#[test]
fn inflate_goes_into_another_process() {
    wherever(|| {
        for kind in [Kind::Private, Kind::Sealed] {
            let mut exporter = Exporter::start(kind, false);
            let device = Device::open("");
            let engine = Engine::new();
            let context = Context::compress(&device, &engine);
            let inventory = Inventory::new(8);
            let plain = sample(BYTES, 5);
            let source = Memory::new(&device, &deflated(&plain));
            let import = Memory::import(&device, &exporter.blob).expect("an import");
            let src = inventory.source(&source, 0, source.len);
            let parts: Vec<_> = (0..4).map(|i| inventory.destination(&import, i * BYTES / 4, BYTES / 4)).collect();
            let dst = inventory.chain(&parts);
            assert_eq!(context.run(&engine, context.inflate(0, src, dst).expect("a task")), E::DOCA_SUCCESS);
            assert_eq!(exporter.ask("sum"), format!("{:08x}", crc32fast::hash(&plain)));
            give_back(src);
            give_back(dst);
        }
    });
}

/// Copies out of an exporter's memory and into it.
fn is_reached_both_ways(exporter: &mut Exporter) {
    let card = card("");
    let import = Memory::import(&card.device, &exporter.blob).expect("an import");
    assert_eq!(card.copy(&import, &card.memory, 8), E::DOCA_SUCCESS);
    assert!(card.memory.bytes() == reversed(&sample(BYTES, 99), 8));
    let news = sample(BYTES, 100);
    card.memory.fill(0, &news);
    assert_eq!(card.copy(&card.memory, &import, 1), E::DOCA_SUCCESS);
    assert_eq!(exporter.ask("sum"), format!("{:08x}", crc32fast::hash(&news)));
}

#[test]
fn another_pid_namespace_is_no_wall() {
    const UNSHARE: &str = "unshare --user --map-root-user --pid --fork";
    if !Command::new("sh").args(["-c", &format!("{UNSHARE} true")]).status().is_ok_and(|status| status.success()) {
        eprintln!("skipped: this machine does not let us make namespaces");
        return;
    }
    for kind in [Kind::Private, Kind::Sealed] {
        is_reached_both_ways(&mut Exporter::start_under(UNSHARE, kind, false));
    }
}

/// A connection to an exporter's courier, without the manners of an importer.
struct Stranger(OwnedFd);

impl Stranger {
    fn call(exporter: &Exporter) -> Stranger {
        let name = u64::from_le_bytes(exporter.blob[56..64].try_into().expect("eight bytes"));
        let path = format!("\0doca-emulator-{name:016x}");
        unsafe {
            let socket = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0);
            let mut address: libc::sockaddr_un = std::mem::zeroed();
            address.sun_family = libc::AF_UNIX as libc::sa_family_t;
            address.sun_path.iter_mut().zip(path.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
            let length = (std::mem::offset_of!(libc::sockaddr_un, sun_path) + path.len()) as u32;
            assert_eq!(libc::connect(socket, (&raw const address).cast(), length), 0);
            Stranger(OwnedFd::from_raw_fd(socket))
        }
    }

    /// The answer to a packet: nothing if the exporter hangs up.
    fn ask(&self, packet: &[u8]) -> Vec<u8> {
        let mut answer = vec![0; 1 << 17];
        unsafe {
            libc::send(self.0.as_raw_fd(), packet.as_ptr().cast(), packet.len(), libc::MSG_NOSIGNAL);
            let came = libc::recv(self.0.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0);
            answer.truncate(came.max(0) as usize);
        }
        answer
    }
}

/// A request in the courier's words: 1 greets, 2 reads, 3 writes.
fn request(what: u64, cookie: [u64; 2], addr: u64, len: u64, access: u64) -> Vec<u8> {
    [what, cookie[0], cookie[1], addr, len, access].iter().flat_map(|word| word.to_le_bytes()).collect()
}

const REFUSED: [u8; 4] = [1, 0, 0, 0];

#[test]
fn a_courier_gives_nothing_away() {
    let mut exporter = Exporter::start(Kind::Private, true);
    let word = |at: usize| u64::from_le_bytes(exporter.blob[at..at + 8].try_into().expect("eight bytes"));
    let (cookie, base, end) = ([word(16), word(24)], word(40), word(40) + word(48));
    let read = |cookie, addr, len| request(2, cookie, addr, len, 0);
    let stranger = Stranger::call(&exporter);
    let bytes = stranger.ask(&read(cookie, base + 5, 100));
    assert_eq!((&bytes[..4], &bytes[4..]), (&[0; 4][..], &sample(BYTES, 99)[5..105]), "with the blob one may read");
    for other in [[cookie[0] + 1, cookie[1]], [cookie[0], cookie[1] + 1], [cookie[1], cookie[0]], [0, 0]] {
        assert_eq!(stranger.ask(&read(other, base, 100)), REFUSED, "not with another cookie");
    }
    for (addr, len) in [(base - 1, 1), (end - 10, 11), (end, 1), (u64::MAX, 1), (0, 8)] {
        assert_eq!(stranger.ask(&read(cookie, addr, len)), REFUSED, "outside: {addr:#x} {len}");
    }
    let write = [request(3, cookie, base, 4, 0), vec![9; 4]].concat();
    assert_eq!(stranger.ask(&write), REFUSED, "the export is for reading");
    for (addr, len, access) in [(0, 1 << 40, PCI_RO), (base, end - base, PCI_RW), (base, 4096, PCI_RO)] {
        assert_eq!(stranger.ask(&request(1, cookie, addr, len, access.into())), REFUSED, "no such export");
    }
    let nonsense = [vec![0; 48], vec![7; 47], vec![7; 56], read(cookie, base, 1 << 20)];
    for packet in &nonsense {
        assert_eq!(Stranger::call(&exporter).ask(packet), [], "{} bytes of nonsense end the connection", packet.len());
    }
    assert_eq!(stranger.ask(&read(cookie, base, 1)).len(), 5, "others are not disturbed");
    assert_eq!(exporter.ask("stop"), "doca_error(0)");
    assert_eq!(stranger.ask(&read(cookie, base, 1)), REFUSED, "a stopped export is no export");
}

/// Whoever holds a blob may use it; with another range, right, slot or cookie it is nobody's.
#[test]
fn an_altered_blob_is_refused() {
    let exporter = Exporter::start(Kind::Private, true);
    let card = card("");
    let altered = |at: usize, bytes: &[u8]| {
        let mut blob = exporter.blob.clone();
        blob[at..at + bytes.len()].copy_from_slice(bytes);
        let crc = crc32fast::hash(&blob[..124]);
        blob[124..].copy_from_slice(&crc.to_le_bytes());
        Memory::import(&card.device, &blob).map(drop).err()
    };
    assert_eq!(altered(12, &7u32.to_le_bytes()), None, "the pid is for people");
    let zero = altered(16, &[0; 16]);
    assert_eq!(zero, Some(E::DOCA_ERROR_INVALID_VALUE), "a cookie of zero: a vacant slot's");
    let words = |at: usize| u64::from_le_bytes(exporter.blob[at..at + 8].try_into().expect("eight bytes"));
    let one_off = (words(24) ^ 1).to_le_bytes();
    for (at, bytes, what) in [
        (24, &one_off[..], "cookie"),
        (32, &9u32.to_le_bytes()[..], "slot"),
        (36, &PCI_RW.to_le_bytes()[..], "right"),
        (40, &4096u64.to_le_bytes()[..], "base"),
        (48, &(1u64 << 40).to_le_bytes()[..], "length"),
        (56, &77u64.to_le_bytes()[..], "courier"),
    ] {
        assert_eq!(altered(at, bytes), Some(E::DOCA_ERROR_DRIVER), "another {what}");
    }
}

/// Root imports what another user exports, by what that one hands over.
#[test]
fn root_takes_another_users_export_and_nobody_else_does() {
    const NOBODY: &str = "setpriv --reuid 65534 --regid 65534 --clear-groups --";
    if unsafe { libc::geteuid() } != 0
        || !Command::new("sh")
            .args(["-c", &format!("{NOBODY} test -x \"$0\"")])
            .arg(std::env::current_exe().expect("this test"))
            .status()
            .is_ok_and(|status| status.success())
    {
        eprintln!("skipped: needs root, and a test that nobody may run");
        return;
    }
    for kind in [Kind::Private, Kind::Sealed, Kind::Unsealed] {
        is_reached_both_ways(&mut Exporter::start_under(NOBODY, kind, false));
    }
    // The other way round: root's memory is not for nobody.
    let exporter = Exporter::start(Kind::Sealed, true);
    let blob: String = exporter.blob.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut command = Command::new("sh");
    command.args(["-c", &format!(r#"{NOBODY} "$0" --exact importer --nocapture"#)]);
    let output = command.arg(std::env::current_exe().expect("this test")).env(IMPORT, blob).output().expect("it ran");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(said.contains(&format!("@import Some({:?})", E::DOCA_ERROR_NOT_PERMITTED)), "{said}");
}

/// Another process that imports. Not a test of its own: without the variable it has nothing to do.
#[test]
fn importer() {
    let Ok(hex) = std::env::var(IMPORT) else { return };
    let blob: Vec<u8> =
        (0..hex.len() / 2).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).expect("two digits")).collect();
    let device = Device::open("");
    println!("\n@import {:?}", Memory::import(&device, &blob).map(drop).err());
}
