//! The other way to an exporter's memory, for where the kernel refuses the direct one (see [`crate::export`]): a
//! container's seccomp filter, Yama's scope 2, another pid namespace. The exporter itself carries the bytes.
//!
//! With its first export a process starts one thread, which listens on an abstract Unix socket that the blob names. An
//! import that needs it has one connection:
//! ```text
//!   HELLO  cookie                     ->  status, and descriptors: the board to read; the file behind the range, if any
//!   READ   cookie, address, length    ->  status, the bytes
//!   WRITE  cookie, address, length, the bytes  ->  status
//! ```
//! The rule of the direct way holds here too: same user, or root. Every request shows the cookie of a live export, stays
//! inside its range and access, and is done inside its gate. The thread never touches the memory: the kernel moves it
//! to and from the socket, so a hole in it is an error answer and no signal in the exporter. Whoever breaks the protocol
//! is cut off. Both processes must live in one network namespace.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;
use std::time::Duration;

use crate::error::Fault;
use crate::export;
use crate::region::{PCI_READ_WRITE, Region};

/// Most that one request moves; less than any socket's default buffer.
const CHUNK_BYTES: usize = 64 << 10;
/// Imports that one exporter serves at once.
const CALLERS_MAX: usize = 512;
/// How long an importer waits for an exporter that does not answer.
const PATIENCE: Duration = Duration::from_secs(10);
const REQUEST_BYTES: usize = 32;
const STATUS_BYTES: usize = 4;
const OK: [u8; STATUS_BYTES] = [0; STATUS_BYTES];
const REFUSED: [u8; STATUS_BYTES] = [1, 0, 0, 0];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Hello = 1,
    Read = 2,
    Write = 3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Request {
    what: What,
    cookie: u64,
    addr: u64,
    len: usize,
}

impl Request {
    fn encode(&self) -> [u8; REQUEST_BYTES] {
        let mut bytes = [0; REQUEST_BYTES];
        for (at, word) in [(0, self.what as u64), (8, self.cookie), (16, self.addr), (24, self.len as u64)] {
            bytes[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; REQUEST_BYTES]) -> Option<Request> {
        let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        let what = [What::Hello, What::Read, What::Write].into_iter().find(|what| *what as u64 == word(0))?;
        let len = usize::try_from(word(24)).ok().filter(|len| *len <= CHUNK_BYTES)?;
        Some(Request { what, cookie: word(8), addr: word(16), len })
    }
}

/// The name of this process's socket, from the first call on; None where there can be none.
pub(crate) fn own() -> Option<u64> {
    static OWN: OnceLock<Option<u64>> = OnceLock::new();
    *OWN.get_or_init(|| if cfg!(miri) { None } else { open_shop() })
}

fn open_shop() -> Option<u64> {
    let name = export::fresh_cookie();
    let socket = seqpacket().ok()?;
    let (address, length) = abstract_address(name);
    // SAFETY: an address with its length, and a socket of our own.
    let listens = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) == 0
            && libc::listen(socket.as_raw_fd(), 128) == 0
    };
    let thread = thread::Builder::new().name("courier".to_owned());
    (listens && thread.spawn(move || serve(&socket)).is_ok()).then_some(name)
}

/// The exporter's thread, for the life of the process.
fn serve(listener: &OwnedFd) {
    let _guard = crate::engine::AbortOnPanic;
    let mut callers: Vec<OwnedFd> = Vec::new();
    let mut polls: Vec<libc::pollfd> = Vec::new();
    loop {
        polls.clear();
        let all = [listener.as_raw_fd()].into_iter().chain(callers.iter().map(AsRawFd::as_raw_fd));
        polls.extend(all.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 }));
        // SAFETY: entries of our own with their number.
        unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, -1) };
        // From the end, so that what takes a removed one's place was seen already.
        for index in (0..callers.len()).rev() {
            if polls[index + 1].revents != 0 && answer(&callers[index]).is_err() {
                callers.swap_remove(index);
            }
        }
        if polls[0].revents != 0 {
            let caller = accept(listener).filter(|_| callers.len() < CALLERS_MAX);
            callers.extend(caller.filter(is_welcome));
        }
    }
}

fn accept(listener: &OwnedFd) -> Option<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the peer's address is not asked for.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), ptr::null_mut(), ptr::null_mut(), flags) };
    // SAFETY: a new descriptor that nothing else owns.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the kernel says that the caller is of our user, or root.
fn is_welcome(caller: &OwnedFd) -> bool {
    let mut peer = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    let place = (&raw mut peer).cast();
    // SAFETY: a place of the length given.
    let known = unsafe {
        libc::getsockopt(caller.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, place, &raw mut length) == 0
    };
    // SAFETY: takes nothing and cannot fail.
    known && [0, unsafe { libc::geteuid() }].contains(&peer.uid)
}

/// Takes one request and answers it; an error ends the connection.
fn answer(caller: &OwnedFd) -> io::Result<()> {
    let mut bytes = [0; REQUEST_BYTES];
    // The packet stays: where the bytes of a write go is only known once its head is read.
    if receive(caller, &[iovec(&mut bytes)], libc::MSG_PEEK)? != REQUEST_BYTES {
        return Err(broken());
    }
    let request = Request::decode(&bytes).ok_or_else(broken)?;
    let head = iovec(&mut bytes);
    let passage = Passage::open(&request);
    let memory =
        libc::iovec { iov_base: ptr::with_exposed_provenance_mut(request.addr as usize), iov_len: request.len };
    let sent = match (&passage, request.what) {
        (Some(_), What::Write) => match receive(caller, &[head, memory], 0) {
            Ok(came) if came == REQUEST_BYTES + request.len => send(caller, &[status(&OK)], &[]),
            Ok(_) => Err(broken()),
            Err(err) => Err(err),
        },
        (passage, what) => {
            receive(caller, &[head], 0)?;
            match (passage, what) {
                (Some(_), What::Read) => send(caller, &[status(&OK), memory], &[]),
                (Some(Passage(region)), What::Hello) => {
                    let files = export::descriptors(region).ok_or_else(broken)?;
                    let fds: Vec<libc::c_int> = files.iter().map(AsRawFd::as_raw_fd).collect();
                    send(caller, &[status(&OK)], &fds)
                }
                _ => send(caller, &[status(&REFUSED)], &[]),
            }
        }
    };
    match sent {
        // The memory is not there: the exporter's mistake, and the importer's task fails.
        Err(err) if err.raw_os_error() == Some(libc::EFAULT) => send(caller, &[status(&REFUSED)], &[]),
        other => other,
    }
}

fn broken() -> io::Error {
    io::ErrorKind::InvalidData.into()
}

/// Leave to carry a request out: its export stands, and cannot stop before this is dropped.
struct Passage(Arc<Region>);

impl Passage {
    fn open(request: &Request) -> Option<Passage> {
        let region = export::find(request.cookie)?;
        let allowed = request.what != What::Write || region.access & PCI_READ_WRITE != 0;
        let inside = request.what == What::Hello || region.contains(request.addr, request.len);
        // Not `then_some`: a passage that was made is left again when dropped.
        if allowed && inside && region.gate.enter().is_ok() { Some(Passage(region)) } else { None }
    }
}

impl Drop for Passage {
    fn drop(&mut self) {
        self.0.gate.leave();
    }
}

/// An importer's connection to its exporter.
pub(crate) struct Courier {
    socket: OwnedFd,
    cookie: u64,
    /// One request at a time.
    turn: Mutex<()>,
}

impl Courier {
    /// Calls the exporter; with the connection come its board and the file behind the range.
    pub(crate) fn call(name: u64, cookie: u64) -> Option<(Courier, File, Option<File>)> {
        let socket = seqpacket().ok()?;
        set_patience(&socket)?;
        let (address, length) = abstract_address(name);
        // SAFETY: an address with its length.
        if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
            return None;
        }
        let courier = Courier { socket, cookie, turn: Mutex::new(()) };
        let request = Request { what: What::Hello, cookie, addr: 0, len: 0 }.encode();
        send(&courier.socket, &[status(&request)], &[]).ok()?;
        let (board, file) = receive_files(&courier.socket)?;
        Some((courier, board, file))
    }

    /// Whether the exporter still runs.
    pub(crate) fn is_there(&self) -> bool {
        // Nothing comes unasked, so that only the end of the connection counts.
        let mut ended = libc::pollfd { fd: self.socket.as_raw_fd(), events: 0, revents: 0 };
        // SAFETY: one entry of our own, and no waiting.
        unsafe { libc::poll(&mut ended, 1, 0) == 0 }
    }

    /// Copies from the exporter's ranges to ours, which are as long.
    ///
    /// # Safety
    /// The local ranges are writable.
    pub(crate) unsafe fn read(&self, local: &[libc::iovec], remote: &[libc::iovec]) -> Result<(), Fault> {
        chunks(local, remote, |local, addr, len| {
            let mut answer = REFUSED;
            let request = Request { what: What::Read, cookie: self.cookie, addr, len }.encode();
            let room = libc::iovec { iov_base: local.cast(), iov_len: len };
            let came = self.exchange(&[status(&request)], &[iovec(&mut answer), room])?;
            if answer == OK && came == STATUS_BYTES + len { Ok(()) } else { Err(Fault::DOCA_ERROR_IO_FAILED) }
        })
    }

    /// Copies from our ranges to the exporter's, which are as long.
    ///
    /// # Safety
    /// The local ranges are readable.
    pub(crate) unsafe fn write(&self, local: &[libc::iovec], remote: &[libc::iovec]) -> Result<(), Fault> {
        chunks(local, remote, |local, addr, len| {
            let mut answer = REFUSED;
            let request = Request { what: What::Write, cookie: self.cookie, addr, len }.encode();
            let bytes = libc::iovec { iov_base: local.cast(), iov_len: len };
            self.exchange(&[status(&request), bytes], &[iovec(&mut answer)])?;
            if answer == OK { Ok(()) } else { Err(Fault::DOCA_ERROR_IO_FAILED) }
        })
    }

    fn exchange(&self, question: &[libc::iovec], answer: &[libc::iovec]) -> Result<usize, Fault> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let came = send(&self.socket, question, &[]).and_then(|()| receive(&self.socket, answer, 0));
        came.ok().filter(|came| *came >= STATUS_BYTES).ok_or_else(|| {
            // A late answer must not be taken for the next one's.
            // SAFETY: a descriptor of our own.
            unsafe { libc::shutdown(self.socket.as_raw_fd(), libc::SHUT_RDWR) };
            Fault::DOCA_ERROR_IO_FAILED
        })
    }
}

/// Walks two lists of the same length in bytes, by stretches that lie in one range of each.
fn chunks(
    local: &[libc::iovec],
    remote: &[libc::iovec],
    mut step: impl FnMut(*mut u8, u64, usize) -> Result<(), Fault>,
) -> Result<(), Fault> {
    let mut ours = local.iter().copied();
    let mut here = libc::iovec { iov_base: ptr::null_mut(), iov_len: 0 };
    for range in remote {
        let mut done = 0;
        while done < range.iov_len {
            if here.iov_len == 0 {
                here = ours.next().ok_or(Fault::DOCA_ERROR_UNEXPECTED)?;
                continue;
            }
            let len = here.iov_len.min(range.iov_len - done).min(CHUNK_BYTES);
            step(here.iov_base.cast(), (range.iov_base.addr() + done) as u64, len)?;
            here.iov_base = here.iov_base.wrapping_byte_add(len);
            here.iov_len -= len;
            done += len;
        }
    }
    Ok(())
}

fn iovec(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

/// Of what is only sent.
fn status(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

/// Room for two descriptors and their heading, aligned as one.
type Enclosure = [u64; 8];
const FILES_MAX: usize = 2;

fn message(parts: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: integers and pointers, for which zeroes are values.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_ptr().cast_mut();
    message.msg_iovlen = parts.len() as _;
    message
}

/// Sends one packet.
fn send(socket: &OwnedFd, parts: &[libc::iovec], fds: &[libc::c_int]) -> io::Result<()> {
    assert!(fds.len() <= FILES_MAX, "the enclosure's room");
    let mut enclosure: Enclosure = [0; 8];
    let mut message = message(parts);
    if !fds.is_empty() {
        let bytes = size_of_val(fds) as libc::c_uint;
        message.msg_control = enclosure.as_mut_ptr().cast();
        // SAFETY: computes lengths; then the heading and its descriptors are written inside the enclosure, whose room
        // was checked above.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(bytes) as _;
            let heading = libc::CMSG_FIRSTHDR(&raw const message);
            (*heading).cmsg_level = libc::SOL_SOCKET;
            (*heading).cmsg_type = libc::SCM_RIGHTS;
            (*heading).cmsg_len = libc::CMSG_LEN(bytes) as _;
            libc::CMSG_DATA(heading).copy_from_nonoverlapping(fds.as_ptr().cast::<u8>(), size_of_val(fds));
        }
    }
    // SAFETY: the message points to lists of our own; the kernel checks where their ranges are.
    let sent = uninterrupted(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) });
    sent.map(drop)
}

/// Makes a system call again that one of the application's signals ended.
fn uninterrupted(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(bytes) => return Ok(bytes),
            Err(_) => match io::Error::last_os_error() {
                err if err.kind() == io::ErrorKind::Interrupted => {}
                err => return Err(err),
            },
        }
    }
}

/// Takes one packet; its length, at most that of the parts.
fn receive(socket: &OwnedFd, parts: &[libc::iovec], flags: libc::c_int) -> io::Result<usize> {
    let mut message = message(parts);
    // SAFETY: as in `send`; nobody else looks at the parts meanwhile, or is the exporter's application, as with any DMA.
    uninterrupted(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) })
}

/// Takes the answer to a hello.
fn receive_files(socket: &OwnedFd) -> Option<(File, Option<File>)> {
    let mut answer = REFUSED;
    let mut enclosure: Enclosure = [0; 8];
    let parts = [iovec(&mut answer)];
    let mut message = message(&parts);
    message.msg_control = enclosure.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Enclosure>() as _;
    let mut files = Vec::new();
    // SAFETY: room of our own with its lengths; what is enclosed is read within the length that the kernel gives it, and
    // each descriptor is new and owned by nobody else.
    unsafe {
        uninterrupted(|| libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC)).ok()?;
        let heading = libc::CMSG_FIRSTHDR(&raw const message);
        if !heading.is_null() && ((*heading).cmsg_level, (*heading).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            let bytes = (*heading).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
            let first = libc::CMSG_DATA(heading).cast::<[u8; 4]>();
            files.extend((0..bytes / 4).map(|at| File::from_raw_fd(libc::c_int::from_ne_bytes(first.add(at).read()))));
        }
    }
    let mut files = files.into_iter();
    let board = files.next()?;
    (answer == OK).then(|| (board, files.next()))
}

fn seqpacket() -> io::Result<OwnedFd> {
    // SAFETY: makes a descriptor; no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_patience(socket: &OwnedFd) -> Option<()> {
    let patience = libc::timeval { tv_sec: PATIENCE.as_secs() as libc::time_t, tv_usec: 0 };
    for which in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        let (value, bytes) = ((&raw const patience).cast(), size_of::<libc::timeval>() as libc::socklen_t);
        // SAFETY: a value with its length.
        if unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, which, value, bytes) } != 0 {
            return None;
        }
    }
    Some(())
}

/// A name without a file: it goes with its process.
fn abstract_address(name: u64) -> (libc::sockaddr_un, libc::socklen_t) {
    // SAFETY: integers, for which zeroes are values.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let text = format!("\0doca-emulator-{name:016x}");
    for (to, from) in address.sun_path.iter_mut().zip(text.bytes()) {
        *to = from as libc::c_char;
    }
    (address, (std::mem::offset_of!(libc::sockaddr_un, sun_path) + text.len()) as libc::socklen_t)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_round_trip_and_nonsense_is_refused() {
        for what in [What::Hello, What::Read, What::Write] {
            let request = Request { what, cookie: u64::MAX - 5, addr: 0x7fff_1234, len: CHUNK_BYTES };
            assert_eq!(Request::decode(&request.encode()), Some(request));
            assert_eq!(Request::decode(&Request { len: CHUNK_BYTES + 1, ..request }.encode()), None);
        }
        assert_eq!(Request::decode(&[0; REQUEST_BYTES]), None);
    }

    #[test]
    fn chunks_lie_in_one_range_of_each_list() {
        let range = |addr: usize, iov_len| libc::iovec { iov_base: ptr::without_provenance_mut(addr), iov_len };
        let local = [range(100, 10), range(0, 0), range(200, CHUNK_BYTES + 5)];
        let remote = [range(1000, 4), range(2000, CHUNK_BYTES + 11)];
        let mut steps = Vec::new();
        let walked = chunks(&local, &remote, |local, addr, len| {
            steps.push((local.addr(), addr, len));
            Ok(())
        });
        assert_eq!(walked, Ok(()));
        assert_eq!(steps, [(100, 1000, 4), (104, 2000, 6), (200, 2006, CHUNK_BYTES), (200 + CHUNK_BYTES, 67542, 5)]);
    }
}
