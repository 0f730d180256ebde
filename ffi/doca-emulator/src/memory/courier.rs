//! An exporter's end of its imports. With its first export a process starts one thread, which listens on an abstract
//! Unix socket that the blob names. Each import calls it once, and where the kernel refuses the direct way to the
//! memory (a container's seccomp filter, Yama's scope 2, another pid namespace, another user), the exporter itself
//! carries the bytes:
//! ```text
//!   HELLO  cookie, address, length, access     ->  status and offset, and descriptors: the board to read; the file behind
//!                                                  the range, which begins at the offset, if any
//!   READ   cookie, address, length             ->  status, the bytes
//!   WRITE  cookie, address, length, the bytes  ->  status
//! ```
//! Callers are processes of the same user, or root's: the kernel says who they are. Every request shows the cookie of a
//! live export, stays inside its range and access, and is done inside its gate. The thread never touches the memory:
//! the kernel moves it to and from the socket, so a hole in it is an error answer and no signal in the exporter.
//! Whoever breaks the protocol is cut off. Both processes must live in one network namespace. The importer's end:
//! [`crate::memory::caller`].

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::thread;

use crate::memory::export::{self, Blob, Cookie, PerProcess};
use crate::memory::region::{MmapRegion, PCI_READ_WRITE};
use crate::tools::packet::{self, accept, iovec, receive, send, seqpacket, status};

/// Most bytes that one request moves; less than any socket's default buffer.
pub(crate) const CHUNK_BYTES: usize = 64 << 10;
/// Imports that one exporter serves at once.
const CALLERS_MAX: usize = 512;
pub(crate) const REQUEST_BYTES: usize = 48;
pub(crate) const STATUS_BYTES: usize = 4;
pub(crate) const OK: [u8; STATUS_BYTES] = [0; STATUS_BYTES];
pub(crate) const REFUSED: [u8; STATUS_BYTES] = [1, 0, 0, 0];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Hello = 1,
    Read = 2,
    Write = 3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CourierRequest {
    pub(crate) verb: Verb,
    pub(crate) cookie: Cookie,
    pub(crate) addr: u64,
    pub(crate) len: usize,
    /// Access flags that the blob claims; only in a hello.
    pub(crate) access: u32,
}

impl CourierRequest {
    pub(crate) fn hello(blob: &Blob) -> CourierRequest {
        let Blob { cookie, base, len, access, .. } = *blob;
        CourierRequest { verb: Verb::Hello, cookie, addr: base, len: len as usize, access }
    }

    pub(crate) fn encode(&self) -> [u8; REQUEST_BYTES] {
        let [low, high] = self.cookie.0;
        let words = [self.verb as u64, low, high, self.addr, self.len as u64, self.access.into()];
        let mut bytes = [0; REQUEST_BYTES];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    fn decode(bytes: &[u8; REQUEST_BYTES]) -> Option<CourierRequest> {
        let word = |at: usize| bytes[at..at + 8].iter().rev().fold(0u64, |word, byte| word << 8 | u64::from(*byte));
        let verb = [Verb::Hello, Verb::Read, Verb::Write].into_iter().find(|verb| *verb as u64 == word(0))?;
        let len = usize::try_from(word(32)).ok().filter(|len| verb == Verb::Hello || *len <= CHUNK_BYTES)?;
        let access = u32::try_from(word(40)).ok()?;
        Some(CourierRequest { verb, cookie: Cookie([word(8), word(16)]), addr: word(24), len, access })
    }
}

/// The name of this process's socket, from the first call on; None where there can be none.
pub(crate) fn own() -> Option<u64> {
    static OWN: PerProcess<Option<u64>> = PerProcess::new();
    OWN.get_or(|| if cfg!(miri) { None } else { open_shop() })
}

fn open_shop() -> Option<u64> {
    let name = export::random().ok()?;
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
    let _guard = crate::tools::abort::AbortOnPanic;
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

/// Whether the kernel says that the caller is of our user, or root.
fn is_welcome(caller: &OwnedFd) -> bool {
    packet::peer(caller).is_ok_and(|peer| [0, packet::user()].contains(&peer.uid))
}

/// Takes one request and answers it; an error ends the connection.
fn answer(caller: &OwnedFd) -> io::Result<()> {
    let mut bytes = [0; REQUEST_BYTES];
    // The packet stays: where the bytes of a write go is only known once its head is read.
    if receive(caller, &[iovec(&mut bytes)], libc::MSG_PEEK)? != REQUEST_BYTES {
        return Err(broken());
    }
    let request = CourierRequest::decode(&bytes).ok_or_else(broken)?;
    let head = iovec(&mut bytes);
    let permit = Permit::open(&request);
    let memory =
        libc::iovec { iov_base: ptr::with_exposed_provenance_mut(request.addr as usize), iov_len: request.len };
    let sent = match (&permit, request.verb) {
        (Some(_), Verb::Write) => match receive(caller, &[head, memory], 0) {
            Ok(came) if came == REQUEST_BYTES + request.len => send(caller, &[status(&OK)], &[]),
            Ok(_) => Err(broken()),
            Err(err) => Err(err),
        },
        (permit, verb) => {
            receive(caller, &[head], 0)?;
            match (permit, verb) {
                (Some(_), Verb::Read) => send(caller, &[status(&OK), memory], &[]),
                (Some(Permit(region)), Verb::Hello) => {
                    let (board, file) = export::descriptors(region).ok_or_else(broken)?;
                    let offset = file.as_ref().map_or(0, |(_, offset)| *offset).to_le_bytes();
                    let files = file.iter().map(|(file, _)| file);
                    let fds: Vec<libc::c_int> = [&board].into_iter().chain(files).map(AsRawFd::as_raw_fd).collect();
                    send(caller, &[status(&OK), status(&offset)], &fds)
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
struct Permit(Arc<MmapRegion>);

impl Permit {
    fn open(request: &CourierRequest) -> Option<Permit> {
        let region = export::find(request.cookie)?;
        let is_inside = || region.contains(request.addr, request.len);
        let allowed = match request.verb {
            Verb::Hello => (request.addr, request.len, request.access) == (region.base, region.len, region.access),
            Verb::Read => is_inside(),
            Verb::Write => is_inside() && region.access & PCI_READ_WRITE != 0,
        };
        // Not `then_some`: a permit that was made is left again when dropped.
        if allowed && region.gate.enter().is_ok() { Some(Permit(region)) } else { None }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.gate.leave();
    }
}

/// A name without a file: it goes with its process.
pub(crate) fn abstract_address(name: u64) -> (libc::sockaddr_un, libc::socklen_t) {
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
        for verb in [Verb::Hello, Verb::Read, Verb::Write] {
            let cookie = Cookie([u64::MAX - 5, 7]);
            let request = CourierRequest { verb, cookie, addr: 0x7fff_1234, len: CHUNK_BYTES, access: 3 };
            assert_eq!(CourierRequest::decode(&request.encode()), Some(request));
            let long = CourierRequest { len: CHUNK_BYTES + 1, ..request };
            assert_eq!(CourierRequest::decode(&long.encode()).is_some(), verb == Verb::Hello);
        }
        assert_eq!(CourierRequest::decode(&[0; REQUEST_BYTES]), None);
    }
}
