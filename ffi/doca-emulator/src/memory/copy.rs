//! Moving bytes between two lists of pieces that are cut where each side likes, across processes.
//!
//! Pieces of this process (own memory, and windows into an exporter's) are copied with `memmove`. Pieces that only the
//! kernel reaches are collected into as long a run as possible and moved at once (see `remote`), so a tile scattered
//! over a hundred pages of the host is one system call. Where the kernel refuses that, the exporter's courier carries
//! them.

use std::ptr;
use std::slice;

use crate::ffi::Fault;
use crate::memory::caller::Caller;
use crate::memory::import::Road;
use crate::memory::region::{MmapRegion, Reach};
use crate::memory::remote;

/// Location of the bytes of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Location {
    Here,
    /// The memory of that process.
    There(libc::pid_t),
    /// The exporter's memory behind that connection, which the piece's region keeps.
    Behind(*const Caller),
}

impl Location {
    fn on(road: &Road) -> Location {
        match road {
            Road::Kernel { pid, .. } => Location::There(*pid),
            Road::Exporter { caller, .. } => Location::Behind(caller),
        }
    }
}

/// A stretch of memory. The pointer means something in `place` only.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Piece {
    first: *mut u8,
    pub(crate) len: usize,
    place: Location,
    /// Whether engines may work on the bytes themselves; see [`MmapRegion::is_in_place`].
    in_place: bool,
}

impl Piece {
    pub(crate) fn here(bytes: &mut [u8]) -> Piece {
        Piece { first: bytes.as_mut_ptr(), len: bytes.len(), place: Location::Here, in_place: true }
    }

    /// The piece `[addr, addr + len]` of a region.
    ///
    /// # Safety
    /// Whoever uses the piece keeps the region alive, and for an import the exporter's gate open, meanwhile.
    pub(crate) unsafe fn of(region: &MmapRegion, addr: u64, len: usize) -> Piece {
        debug_assert!(region.contains(addr, len));
        let (first, place) = match &region.reach {
            Reach::Own | Reach::Neighbour(_) => (ptr::with_exposed_provenance_mut(addr as usize), Location::Here),
            Reach::Foreign(foreign) => match foreign.view(addr - region.base) {
                Some(view) => (view, Location::Here),
                None => (ptr::without_provenance_mut(addr as usize), Location::on(&foreign.road)),
            },
        };
        Piece { first, len, place, in_place: region.is_in_place() }
    }

    /// The bytes themselves, where an engine may look at them.
    ///
    /// # Safety
    /// The region stays reachable for `'a`, and nobody writes to the bytes meanwhile: they are the source of a task.
    pub(crate) unsafe fn bytes<'a>(self) -> Option<&'a [u8]> {
        // SAFETY: memory of this process that the caller keeps; a started mmap's range is readable by its contract.
        self.in_place.then(|| unsafe { slice::from_raw_parts(self.first, self.len) })
    }

    /// The bytes themselves, to write, where an engine may look at them.
    ///
    /// # Safety
    /// The contract of [`Piece::bytes`], and nobody else reads either: they are the destination of a task.
    pub(crate) unsafe fn bytes_mut<'a>(self) -> Option<&'a mut [u8]> {
        // SAFETY: as in `bytes`; the task owns its destination alone until it completes.
        self.in_place.then(|| unsafe { slice::from_raw_parts_mut(self.first, self.len) })
    }

    pub(crate) fn overlaps(&self, other: &Piece) -> bool {
        let (a, b) = (self.first.addr(), other.first.addr());
        self.place == other.place && a < b.saturating_add(other.len) && b < a.saturating_add(self.len)
    }
}

pub(crate) fn total(pieces: &[Piece]) -> usize {
    pieces.iter().map(|piece| piece.len).sum()
}

/// One byte of a list.
pub(crate) fn byte_at(pieces: &[Piece], offset: usize) -> Option<Piece> {
    let mut cursor = Cursor::new(pieces);
    cursor.advance(offset);
    cursor.rest().map(|rest| Piece { len: 1, ..rest })
}

/// Walks a list by bytes.
struct Cursor<'a> {
    pieces: &'a [Piece],
    index: usize,
    offset: usize,
}

impl<'a> Cursor<'a> {
    fn new(pieces: &'a [Piece]) -> Cursor<'a> {
        let mut cursor = Cursor { pieces, index: 0, offset: 0 };
        cursor.advance(0);
        cursor
    }

    /// What is left of the current piece; nothing at the end of the list.
    fn rest(&self) -> Option<Piece> {
        let piece = self.pieces.get(self.index)?;
        Some(Piece { first: piece.first.wrapping_add(self.offset), len: piece.len - self.offset, ..*piece })
    }

    fn advance(&mut self, bytes: usize) {
        self.offset += bytes;
        while self.pieces.get(self.index).is_some_and(|piece| self.offset >= piece.len) {
            self.offset -= self.pieces[self.index].len;
            self.index += 1;
        }
    }
}

/// Scratch lists of one engine thread, allocated once.
pub(crate) struct Copier {
    source: Vec<libc::iovec>,
    destination: Vec<libc::iovec>,
}

/// A run has at most a cut per element of either list.
const CUTS_MAX: usize = 2 * crate::config::LIST_MAX as usize;

// SAFETY: the vectors are filled and emptied inside one call; between calls they hold nothing.
unsafe impl Send for Copier {}

impl Copier {
    pub(crate) fn new() -> Copier {
        Copier { source: Vec::with_capacity(CUTS_MAX), destination: Vec::with_capacity(CUTS_MAX) }
    }

    /// Copies the first `bytes` of `source` to `destination`, both at least that long. `bounce` carries what goes from
    /// one other process to another.
    ///
    /// # Safety
    /// The pieces stay reachable during the call.
    pub(crate) unsafe fn copy(
        &mut self,
        source: &[Piece],
        destination: &[Piece],
        bytes: usize,
        bounce: &mut [u8],
    ) -> Result<(), Fault> {
        let (mut from, mut to) = (Cursor::new(source), Cursor::new(destination));
        let mut left = bytes;
        while left > 0 {
            let (Some(s), Some(d)) = (from.rest(), to.rest()) else { return Err(Fault::DOCA_ERROR_INVALID_VALUE) };
            if (s.place, d.place) == (Location::Here, Location::Here) {
                let length = s.len.min(d.len).min(left);
                // SAFETY: both pieces are at least that long and in this process; the caller keeps them reachable.
                // They may overlap, and may be written by another process meanwhile: memmove makes no assumption.
                unsafe { ptr::copy(s.first, d.first, length) };
                from.advance(length);
                to.advance(length);
                left -= length;
            } else {
                let length = self.collect(&mut from, &mut to, (s.place, d.place), left);
                // SAFETY: the lists hold parts of pieces, which the caller keeps reachable; other processes' addresses
                // are the kernel's to check.
                unsafe { self.move_run(s.place, d.place, length, bounce) }?;
                left -= length;
            }
        }
        Ok(())
    }

    /// The longest run from here on that stays in the same two places.
    fn collect(
        &mut self,
        from: &mut Cursor<'_>,
        to: &mut Cursor<'_>,
        places: (Location, Location),
        left: usize,
    ) -> usize {
        self.source.clear();
        self.destination.clear();
        let mut length = 0;
        while length < left && self.source.len() < CUTS_MAX && self.destination.len() < CUTS_MAX {
            let (Some(s), Some(d)) = (from.rest(), to.rest()) else { break };
            if (s.place, d.place) != places {
                break;
            }
            let step = s.len.min(d.len).min(left - length);
            extend(&mut self.source, s.first, step);
            extend(&mut self.destination, d.first, step);
            from.advance(step);
            to.advance(step);
            length += step;
        }
        length
    }

    /// # Safety
    /// `self.source` and `self.destination` hold `length` bytes each; local ones are readable and writable.
    unsafe fn move_run(&self, from: Location, to: Location, length: usize, bounce: &mut [u8]) -> Result<(), Fault> {
        match (from, to) {
            (Location::Here, Location::Here) => Err(Fault::DOCA_ERROR_UNEXPECTED),
            // SAFETY: local ranges are the caller's to vouch for, remote ones the kernel's to check.
            (Location::Here, there) => unsafe { write(there, &self.source, &self.destination, length) },
            // SAFETY: as above.
            (there, Location::Here) => unsafe { read(there, &self.destination, &self.source, length) },
            (source, destination) => {
                let bounce = bounce.get_mut(..length).ok_or(Fault::DOCA_ERROR_TOO_BIG)?;
                let middle = [libc::iovec { iov_base: bounce.as_mut_ptr().cast(), iov_len: length }];
                // SAFETY: the bounce bytes are ours and `length` long.
                unsafe { read(source, &middle, &self.source, length) }?;
                // SAFETY: as above.
                unsafe { write(destination, &middle, &self.destination, length) }
            }
        }
    }
}

/// Appends a range to a list, or lengthens its last one.
fn extend(list: &mut Vec<libc::iovec>, first: *mut u8, bytes: usize) {
    match list.last_mut() {
        Some(last) if last.iov_base.addr() + last.iov_len == first.addr() => last.iov_len += bytes,
        _ => list.push(libc::iovec { iov_base: first.cast(), iov_len: bytes }),
    }
}

/// # Safety
/// The local ranges are writable; the region of the remote ones stays.
unsafe fn read(from: Location, local: &[libc::iovec], remote: &[libc::iovec], bytes: usize) -> Result<(), Fault> {
    match from {
        Location::Here => Err(Fault::DOCA_ERROR_UNEXPECTED),
        Location::There(pid) => {
            // SAFETY: the local ranges are as the caller says; other processes' addresses are the kernel's to check.
            let moved = unsafe { remote::read(pid, local, remote, bytes) };
            moved.map_err(|_| Fault::DOCA_ERROR_IO_FAILED)
        }
        // SAFETY: the region owns the caller; the local ranges are as the caller says.
        Location::Behind(caller) => unsafe { (*caller).read(local, remote) },
    }
}

/// # Safety
/// The local ranges are readable; the region of the remote ones stays.
unsafe fn write(to: Location, local: &[libc::iovec], remote: &[libc::iovec], bytes: usize) -> Result<(), Fault> {
    match to {
        Location::Here => Err(Fault::DOCA_ERROR_UNEXPECTED),
        Location::There(pid) => {
            // SAFETY: as in `read`.
            let moved = unsafe { remote::write(pid, local, remote, bytes) };
            moved.map_err(|_| Fault::DOCA_ERROR_IO_FAILED)
        }
        // SAFETY: as in `read`.
        Location::Behind(caller) => unsafe { (*caller).write(local, remote) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Cuts `bytes` into pieces of the given lengths.
    fn cut(mut bytes: &mut [u8], lengths: &[usize]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for length in lengths {
            let (piece, rest) = bytes.split_at_mut(*length);
            pieces.push(Piece::here(piece));
            bytes = rest;
        }
        pieces
    }

    #[test]
    fn cuts_need_not_match() {
        let mut source: Vec<u8> = (0..100).collect();
        let mut destination = vec![0u8; 110];
        let from = cut(&mut source, &[1, 0, 49, 50]);
        let to = cut(&mut destination, &[0, 30, 30, 50]);
        // SAFETY: both vectors live on.
        let copied = unsafe { Copier::new().copy(&from, &to, 100, &mut []) };
        assert_eq!(copied, Ok(()));
        assert_eq!(destination[..100], source[..]);
        assert!(destination[100..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn a_short_list_is_an_error_and_not_an_overrun() {
        let (mut source, mut destination) = (vec![1u8; 10], vec![0u8; 4]);
        let (from, to) = (cut(&mut source, &[10]), cut(&mut destination, &[4]));
        // SAFETY: both vectors live on.
        let copied = unsafe { Copier::new().copy(&from, &to, 10, &mut []) };
        assert_eq!(copied, Err(Fault::DOCA_ERROR_INVALID_VALUE));
    }
}
