//! An importer's connection to its exporter ([`crate::memory::courier`]). No wait is longer than its patience: an
//! exporter that does not answer is one that is not there.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::ptr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::ffi::Fault;
use crate::memory::courier::{CHUNK_BYTES, CourierRequest, OK, REFUSED, STATUS_BYTES, Verb, abstract_address};
use crate::memory::export::{Blob, Cookie};
use crate::tools::packet::{self, iovec, receive, receive_files, send, seqpacket, status};

/// Longest wait for an exporter: for its listener, for room, for an answer.
const PATIENCE: Duration = Duration::from_secs(1);

/// The importer's end of a connection; see the module.
pub(crate) struct Caller {
    socket: OwnedFd,
    /// Process that listened there, according to the kernel.
    pub(crate) peer: libc::ucred,
    cookie: Cookie,
    /// One request at a time.
    turn: Mutex<()>,
}

/// What an exporter hands over with its welcome.
pub(crate) struct Handed {
    pub(crate) board: File,
    /// What is behind the range, and where in it the range begins.
    pub(crate) file: Option<(File, u64)>,
}

impl Caller {
    /// Meets the process behind the name: `NOT_PERMITTED` if its user's exports are not for us, `DRIVER` if there is
    /// none.
    pub(crate) fn connect(name: u64, cookie: Cookie) -> Result<Caller, Fault> {
        let gone = |_| Fault::DOCA_ERROR_DRIVER;
        let socket = seqpacket().map_err(|_| Fault::DOCA_ERROR_OPERATING_SYSTEM)?;
        packet::set_patience(&socket, PATIENCE).map_err(gone)?;
        let (address, length) = abstract_address(name);
        // SAFETY: an address with its length.
        if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
            return Err(Fault::DOCA_ERROR_DRIVER);
        }
        let peer = packet::peer(&socket).map_err(gone)?;
        if ![0, peer.uid].contains(&packet::user()) {
            return Err(Fault::DOCA_ERROR_NOT_PERMITTED);
        }
        Ok(Caller { socket, peer, cookie, turn: Mutex::new(()) })
    }

    /// Asks whether the export is what the blob says: `DRIVER` if not, or without an answer.
    pub(crate) fn greet(&self, blob: &Blob) -> Result<Handed, Fault> {
        let gone = |_| Fault::DOCA_ERROR_DRIVER;
        send(&self.socket, &[status(&CourierRequest::hello(blob).encode())], &[]).map_err(gone)?;
        let (mut answer, mut offset) = (REFUSED, [0; 8]);
        let expected = STATUS_BYTES + offset.len();
        let (came, files) = receive_files(&self.socket, &[iovec(&mut answer), iovec(&mut offset)]).map_err(gone)?;
        let mut files = files.into_iter();
        let board = files.next().filter(|_| answer == OK && came == expected).ok_or(Fault::DOCA_ERROR_DRIVER)?;
        Ok(Handed { board, file: files.next().map(|file| (file, u64::from_le_bytes(offset))) })
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
            let request = CourierRequest { verb: Verb::Read, cookie: self.cookie, addr, len, access: 0 }.encode();
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
            let request = CourierRequest { verb: Verb::Write, cookie: self.cookie, addr, len, access: 0 }.encode();
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

#[cfg(test)]
mod tests {
    use super::*;

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
