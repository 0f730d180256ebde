//! Claims about an exporter that is none of ours: it listens like a courier, and answers as it likes or not at all. It
//! is a thread of this test, with another user's rights where the test runs as root.

#![cfg(not(miri))]

use std::ffi::CStr;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::rig::*;

const BYTES: usize = 64 << 10;
const BOARD_BYTES: usize = 512 * 16;
const COOKIE: [u64; 2] = [0x1234, 0x5678];
/// Longer than any wait for an exporter, with room for a loaded machine.
const LONG: Duration = Duration::from_secs(20);

/// How a forger answers.
#[derive(Clone, Copy, Debug)]
enum Manner {
    /// Takes no connection.
    Deaf,
    /// Takes connections and says nothing.
    Mute,
    /// Hands this over for a board.
    Board(fn() -> OwnedFd),
    /// Hands a right board over, and this for the file behind the range.
    File(fn() -> OwnedFd),
    /// Greets rightly, and says nothing to a read.
    Forgetful,
    /// Greets rightly, and answers reads with sevens, whatever lies there.
    Sevens,
}

fn memfd(bytes: usize) -> OwnedFd {
    unsafe {
        let fd = libc::memfd_create(c"forged".as_ptr(), libc::MFD_ALLOW_SEALING | libc::MFD_CLOEXEC);
        assert!(fd >= 0 && libc::ftruncate(fd, bytes as i64) == 0);
        assert_eq!(libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK), 0);
        OwnedFd::from_raw_fd(fd)
    }
}

fn board() -> OwnedFd {
    let board = memfd(BOARD_BYTES);
    let cookie: Vec<u8> = COOKIE.iter().flat_map(|half| half.to_ne_bytes()).collect();
    assert_eq!(unsafe { libc::pwrite(board.as_raw_fd(), cookie.as_ptr().cast(), 16, 0) }, 16);
    board
}

fn open(path: &CStr) -> OwnedFd {
    unsafe {
        let fd = libc::open(path.as_ptr(), libc::O_RDWR | libc::O_CLOEXEC | libc::O_NONBLOCK);
        assert!(fd >= 0, "{path:?}");
        OwnedFd::from_raw_fd(fd)
    }
}

fn pipe() -> OwnedFd {
    let mut ends = [0; 2];
    unsafe {
        assert_eq!(libc::pipe(ends.as_mut_ptr()), 0);
        libc::close(ends[1]);
        OwnedFd::from_raw_fd(ends[0])
    }
}

fn device() -> OwnedFd {
    open(c"/dev/zero")
}

fn empty_board() -> OwnedFd {
    memfd(BOARD_BYTES)
}

fn short_board() -> OwnedFd {
    memfd(16)
}

fn send(socket: i32, bytes: &[u8], fds: &[i32]) {
    unsafe {
        let mut part = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut room = [0u64; 8];
        let mut message: libc::msghdr = std::mem::zeroed();
        (message.msg_iov, message.msg_iovlen) = (&raw mut part, 1);
        if !fds.is_empty() {
            message.msg_control = room.as_mut_ptr().cast();
            message.msg_controllen = libc::CMSG_SPACE(size_of_val(fds) as u32) as _;
            let heading = libc::CMSG_FIRSTHDR(&raw const message);
            ((*heading).cmsg_level, (*heading).cmsg_type) = (libc::SOL_SOCKET, libc::SCM_RIGHTS);
            (*heading).cmsg_len = libc::CMSG_LEN(size_of_val(fds) as u32) as _;
            libc::CMSG_DATA(heading).copy_from_nonoverlapping(fds.as_ptr().cast(), size_of_val(fds));
        }
        libc::sendmsg(socket, &raw const message, libc::MSG_NOSIGNAL);
    }
}

/// Serves one connection until its end.
fn serve(socket: &OwnedFd, manner: Manner) {
    let mut room = vec![0u8; 1 << 17];
    loop {
        let came = unsafe { libc::recv(socket.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), 0) };
        if came < 48 {
            return;
        }
        let len = u64::from_le_bytes(room[32..40].try_into().expect("eight bytes")) as usize;
        let greeting = [0u8; 12];
        match (room[0], manner) {
            (_, Manner::Mute | Manner::Deaf) => {}
            (1, Manner::Board(forged)) => send(socket.as_raw_fd(), &greeting, &[forged().as_raw_fd()]),
            (1, Manner::File(forged)) => {
                send(socket.as_raw_fd(), &greeting, &[board().as_raw_fd(), forged().as_raw_fd()]);
            }
            (1, _) => send(socket.as_raw_fd(), &greeting, &[board().as_raw_fd()]),
            (2, Manner::Sevens | Manner::File(_)) => {
                send(socket.as_raw_fd(), &[vec![0; 4], vec![7; len]].concat(), &[])
            }
            _ => {}
        }
    }
}

/// Listens under a name of its own, as this user or as nobody; the blob that leads there.
fn forge(manner: Manner, user: u32) -> Vec<u8> {
    static NAMES: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
    let number = NAMES.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let name = u64::from(std::process::id()) << 32 | number;
    let (ready, is_ready) = mpsc::channel();
    std::thread::spawn(move || unsafe {
        if user != libc::geteuid() {
            // This thread alone: the library's function would change them all.
            assert_eq!(libc::syscall(libc::SYS_setresuid, user, user, user), 0);
        }
        let listener = libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0);
        let mut address: libc::sockaddr_un = std::mem::zeroed();
        address.sun_family = libc::AF_UNIX as libc::sa_family_t;
        let path = format!("\0doca-emulator-{name:016x}");
        address.sun_path.iter_mut().zip(path.bytes()).for_each(|(to, from)| *to = from as libc::c_char);
        let length = (std::mem::offset_of!(libc::sockaddr_un, sun_path) + path.len()) as u32;
        assert_eq!(libc::bind(listener, (&raw const address).cast(), length), 0);
        assert_eq!(libc::listen(listener, 8), 0);
        ready.send(()).expect("it waits");
        if matches!(manner, Manner::Deaf) {
            std::thread::sleep(2 * LONG);
        }
        loop {
            let socket = libc::accept(listener, std::ptr::null_mut(), std::ptr::null_mut());
            assert!(socket >= 0);
            let socket = OwnedFd::from_raw_fd(socket);
            std::thread::spawn(move || serve(&socket, manner));
        }
    });
    is_ready.recv().expect("a listener");
    let memory = Box::leak(vec![9u8; BYTES].into_boxed_slice()).as_ptr() as u64;
    let mut blob = b"kvl-pci\0".to_vec();
    [2, std::process::id()].iter().for_each(|half| blob.extend(half.to_le_bytes()));
    COOKIE.iter().for_each(|half| blob.extend(half.to_le_bytes()));
    [0, PCI_RW].iter().for_each(|half| blob.extend(half.to_le_bytes()));
    [memory, BYTES as u64, name].iter().for_each(|word| blob.extend(word.to_le_bytes()));
    blob.resize(124, 0);
    blob.extend(crc32fast::hash(&blob).to_le_bytes());
    blob
}

fn import(device: &Device, blob: &[u8]) -> (Result<Memory, E>, Duration) {
    let begun = Instant::now();
    (Memory::import(device, blob), begun.elapsed())
}

/// Whose rights a forger has: this user's, and where that is root's, nobody's.
fn users() -> Vec<u32> {
    let own = unsafe { libc::geteuid() };
    if is_root_of_others() { vec![own, NOBODY] } else { vec![own] }
}

#[test]
fn an_exporter_that_does_not_answer_is_none() {
    let device = Device::open("");
    for (manner, user) in
        [Manner::Deaf, Manner::Mute].into_iter().flat_map(|m| users().into_iter().map(move |u| (m, u)))
    {
        let (imported, took) = import(&device, &forge(manner, user));
        assert_eq!(imported.err(), Some(E::DOCA_ERROR_DRIVER), "{manner:?} {user}");
        assert!(took < LONG, "{manner:?} {user}: {took:?}");
    }
}

#[test]
fn a_pipe_a_device_or_an_empty_file_is_no_board() {
    let device_ = Device::open("");
    for forged in [pipe, device, empty_board, short_board] {
        for user in users() {
            let (imported, took) = import(&device_, &forge(Manner::Board(forged), user));
            assert_eq!(imported.err(), Some(E::DOCA_ERROR_DRIVER));
            assert!(took < LONG, "{took:?}");
        }
    }
}

struct Bench {
    context: Context,
    inventory: Inventory,
    memory: Memory,
}

fn bench(device: &Device, engine: &Engine) -> Bench {
    let context = Context::dma(device, engine);
    Bench { context, inventory: Inventory::new(4), memory: Memory::zeroed(device, BYTES) }
}

/// What a read of the import gives.
fn read(device: &Device, import: &Memory) -> Result<Vec<u8>, E> {
    let engine = Engine::new();
    let Bench { context, inventory, memory } = bench(device, &engine);
    let (source, into) = (inventory.source(import, 0, BYTES), inventory.destination(&memory, 0, BYTES));
    let status = context.run(&engine, context.memcpy(0, source, into).expect("a task"));
    give_back(source);
    give_back(into);
    if status == E::DOCA_SUCCESS {
        return Ok(memory.bytes());
    }
    context.stop(&engine);
    Err(status)
}

#[test]
fn a_pipe_or_a_device_behind_the_range_is_not_mapped_and_not_waited_for() {
    let device_ = Device::open("");
    for (forged, user) in
        [pipe, device].into_iter().flat_map(|f| users().into_iter().map(move |u| (f as fn() -> OwnedFd, u)))
    {
        let (imported, took) = import(&device_, &forge(Manner::File(forged), user));
        assert!(took < LONG, "{took:?}");
        let bytes = read(&device_, &imported.expect("an import without a window")).expect("a read");
        assert!(bytes.iter().all(|byte| [7, 9].contains(byte)));
    }
}

/// A process may be another program, with more rights, by the time of the copy: root's right to read any process is not
/// lent to whoever sends a blob.
#[test]
fn root_reads_a_strangers_memory_by_the_strangers_hand_only() {
    if !is_root_of_others() {
        eprintln!("skipped: needs root");
        return;
    }
    let device = Device::open("");
    let (imported, _) = import(&device, &forge(Manner::Sevens, NOBODY));
    assert!(read(&device, &imported.expect("an import")).expect("a read").iter().all(|byte| *byte == 7));
}

#[test]
fn a_silent_exporter_holds_up_nobody_elses_tasks() {
    if !is_root_of_others() {
        eprintln!("skipped: needs root, for an exporter that the kernel's road does not reach");
        return;
    }
    let device = Device::open("dma_threads=1");
    let engine = Engine::new();
    let (slow, fast) = (bench(&device, &engine), bench(&device, &engine));
    // A fast one, while the slow one waits out its second. Where all wait in one queue none ever is, however often it
    // is tried.
    let is_passed = |bytes: usize| {
        // A new one each time: an exporter that was given up once is not asked again.
        let (imported, _) = import(&device, &forge(Manner::Forgetful, NOBODY));
        let imported = imported.expect("an import");
        let (source, into) =
            (slow.inventory.source(&imported, 0, bytes), slow.inventory.destination(&slow.memory, 0, bytes));
        let task = slow.context.memcpy(1, source, into).expect("a task");
        ok(unsafe { c::doca_task_submit(task) });
        let half = bytes / 2;
        let (own, to) =
            (fast.inventory.source(&fast.memory, 0, half), fast.inventory.destination(&fast.memory, half, half));
        assert_eq!(fast.context.run(&engine, fast.context.memcpy(0, own, to).expect("a task")), E::DOCA_SUCCESS);
        let is_passed = slow.context.completed() == 0;
        engine.progress_until(|| slow.context.completed() > 0);
        let done = slow.context.completions();
        assert_eq!(done[0].status, E::DOCA_ERROR_IO_FAILED, "it is given up");
        unsafe { c::doca_task_free(task) };
        slow.context.stop(&engine);
        ok(unsafe { c::doca_ctx_start(slow.context.ctx) });
        [source, into, own, to].into_iter().for_each(give_back);
        is_passed
    };
    // Short ones, too, which submit itself makes where it can.
    for bytes in [64, BYTES] {
        assert!((0..10).any(|_| is_passed(bytes)), "{bytes} bytes: the fast one waited for the slow one each time");
    }
}
