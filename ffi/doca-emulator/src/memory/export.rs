//! Export blobs: how a memory map of one process becomes reachable from another.
//!
//! The blob says where the exporter's **courier** listens ([`crate::memory::courier`]), the range, what is allowed, and
//! a **cookie**: 128 random bits that stand in a slot of the exporter's **board**, a page of shared memory that the
//! importer maps to read, for as long as the export does. An import begins with a question to the courier, which knows
//! the cookie or does not, and compares the range and what is allowed with what was exported. Before each task the
//! importer looks at the slot, and whether the exporter is still there: one that exited or who stopped its mmap fails
//! the task with `IO_FAILED`.
//!
//! How bytes move: [`crate::memory::import`]. If the range lies in one shared file mapping **and the file is sealed
//! against shrinking** (a memfd with `F_SEAL_SHRINK`), the importer maps the same pages and copies directly: no system
//! call per byte and no `SIGBUS` either, since the kernel promises that no page goes away. Any other memory is reached
//! through the kernel (`remote`), where a hole is an error and not a signal. A check of the file's size before each
//! direct copy would leave a gap between check and copy, so it is not used.
//!
//! The kernel lets one process reach another's memory if it may trace it: same user, in one pid namespace. The exporter
//! declares itself traceable (`PR_SET_PTRACER_ANY`) for kernels with Yama.
//!
//! Blob, little endian, 128 bytes:
//! ```text
//!   0 magic       12 pid, for people     32 slot      40 base    56 courier
//!   8 version     16 cookie, 16 bytes    36 access    48 len     64 reserved, zero    124 CRC-32
//! ```

use std::fs::{self, File, OpenOptions};
use std::mem::ManuallyDrop;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::ffi::Fault;
use crate::memory::courier;
use crate::memory::region::{MmapRegion, PCI_READ_WRITE};
use crate::memory::window::Window;

pub(crate) const BLOB_BYTES: usize = 128;
const MAGIC: [u8; 8] = *b"kvl-pci\0";
const VERSION: u32 = 2;
const CRC_AT: usize = BLOB_BYTES - 4;
/// Exports that may be alive at once.
pub(crate) const SLOTS: usize = 512;
pub(crate) const BOARD_BYTES: usize = SLOTS * size_of::<BoardSlot>();

/// A cookie's halves, or zeroes: the first is there from the taking of a slot to its giving back.
pub(crate) type BoardSlot = [AtomicU64; 2];

/// The right to one export: a number that nobody guesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cookie(pub(crate) [u64; 2]);

impl Cookie {
    fn fresh() -> Result<Cookie, Fault> {
        loop {
            let cookie = Cookie([random()?, random()?]);
            if cookie.is_one() {
                return Ok(cookie);
            }
        }
    }

    /// Zero is a vacant slot's.
    fn is_one(self) -> bool {
        !self.0.contains(&0)
    }

    /// Whether a slot with these halves holds it.
    pub(crate) fn stands_in(self, halves: [u64; 2]) -> bool {
        self.is_one() && self.0 == halves
    }
}

/// Draws a number from the kernel's generator.
pub(crate) fn random() -> Result<u64, Fault> {
    let mut bytes = [0u8; 8];
    // SAFETY: room of our own with its length.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if got == bytes.len() as isize { Ok(u64::from_ne_bytes(bytes)) } else { Err(Fault::DOCA_ERROR_OPERATING_SYSTEM) }
}

/// Something that each process has once; a forked child makes its own.
pub(crate) struct PerProcess<T>(Mutex<Option<(u32, T)>>);

impl<T: Copy> PerProcess<T> {
    pub(crate) const fn new() -> PerProcess<T> {
        PerProcess(Mutex::new(None))
    }

    pub(crate) fn get_or(&self, make: impl FnOnce() -> T) -> T {
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match *place {
            Some((pid, made)) if pid == process::id() => made,
            _ => place.insert((process::id(), make())).1,
        }
    }
}

/// Exports of this process, for importers in it and for the courier.
static ALIVE: Mutex<Vec<(Cookie, Arc<MmapRegion>)>> = Mutex::new(Vec::new());

/// What importers look at: a slot holds its export's cookie while that is alive, else zeroes.
struct Board {
    /// Descriptor of its pages; -1 in a process that nobody else can import from.
    fd: libc::c_int,
    slots: &'static [BoardSlot; SLOTS],
}

impl Board {
    /// This process's, made at its first export and there for its life.
    fn own() -> Result<&'static Board, Fault> {
        static OWN: PerProcess<Option<&'static Board>> = PerProcess::new();
        let make = || Board::make().map(|board| &*Box::leak(Box::new(board)));
        OWN.get_or(make).ok_or(Fault::DOCA_ERROR_OPERATING_SYSTEM)
    }

    fn make() -> Option<Board> {
        if cfg!(miri) {
            let slots = Box::leak(Box::new([const { [AtomicU64::new(0), AtomicU64::new(0)] }; SLOTS]));
            return Some(Board { fd: -1, slots });
        }
        // SAFETY: a new descriptor under a name that ends; nothing is pointed to afterwards.
        let fd =
            unsafe { libc::memfd_create(c"doca-emulator-board".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
        if fd < 0 {
            return None;
        }
        // SAFETY: the descriptor is new, so nobody else owns it.
        let file = unsafe { File::from_raw_fd(fd) };
        file.set_len(BOARD_BYTES as u64).ok()?;
        // SAFETY: asks for seals on a descriptor that `file` keeps open.
        if unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW) } != 0 {
            return None;
        }
        let window = Window::map(&file, 0, BOARD_BYTES, true)?;
        // SAFETY: pages of our own mapping, zeroed, aligned, of just this size; they are never unmapped.
        let slots = unsafe { &*ManuallyDrop::new(window).map.cast::<[BoardSlot; SLOTS]>() };
        // Nobody whom the board is handed to writes it. A kernel before 5.1 does not know the seal.
        // SAFETY: asks for a seal on a descriptor that `file` keeps open; our mapping stays writable.
        unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, libc::F_SEAL_FUTURE_WRITE) };
        Some(Board { fd: file.into_raw_fd(), slots })
    }
}

/// One live export; dropping it shuts importers out, here and in other processes.
pub(crate) struct LiveExport {
    pub(crate) blob: Box<[u8; BLOB_BYTES]>,
    cookie: Cookie,
    slot: &'static BoardSlot,
    region: Arc<MmapRegion>,
}

impl LiveExport {
    pub(crate) fn new(region: &Arc<MmapRegion>) -> Result<LiveExport, Fault> {
        let cookie = Cookie::fresh()?;
        let board = Board::own()?;
        let courier = courier::own();
        let vacant =
            |slot: &BoardSlot| slot[0].compare_exchange(0, cookie.0[0], Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let slot = board.slots.iter().position(vacant).ok_or(Fault::DOCA_ERROR_NO_MEMORY)?;
        board.slots[slot][1].store(cookie.0[1], Ordering::Release);
        allow_tracing();
        let blob = Blob {
            pid: process::id(),
            cookie,
            slot: slot as u32,
            base: region.base,
            len: region.len as u64,
            access: region.access,
            // Zero where nobody else can import.
            courier: courier.unwrap_or(0),
        };
        ALIVE.lock().unwrap_or_else(PoisonError::into_inner).push((cookie, Arc::clone(region)));
        Ok(LiveExport { blob: Box::new(blob.encode()), cookie, slot: &board.slots[slot], region: Arc::clone(region) })
    }
}

impl Drop for LiveExport {
    fn drop(&mut self) {
        // The first half last: with it the slot is somebody else's.
        self.slot[1].store(0, Ordering::Release);
        self.slot[0].store(0, Ordering::Release);
        ALIVE.lock().unwrap_or_else(PoisonError::into_inner).retain(|(other, _)| *other != self.cookie);
        self.region.gate.shut();
    }
}

/// The region of a live export of this process.
pub(crate) fn find(cookie: Cookie) -> Option<Arc<MmapRegion>> {
    let alive = ALIVE.lock().unwrap_or_else(PoisonError::into_inner);
    alive.iter().find(|(other, _)| *other == cookie).map(|(_, region)| Arc::clone(region))
}

/// What an importer maps: this process's board, and the file behind the region, if there is one, with where in it the
/// region begins; no further opened than the export allows.
pub(crate) fn descriptors(region: &MmapRegion) -> Option<(File, Option<(File, u64)>)> {
    let board = File::open(format!("/proc/self/fd/{}", Board::own().ok()?.fd)).ok()?;
    let range = FileRange::behind(region.base, region.len);
    let file = range.and_then(|range| Some((range.open(region.access & PCI_READ_WRITE != 0)?, range.offset)));
    Some((board, file))
}

fn allow_tracing() {
    if cfg!(miri) {
        return;
    }
    // SAFETY: passes two integers; sets a flag of this process. A kernel without Yama answers EINVAL, which is fine.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) };
}

/// What a blob says. Whoever brought it may have written it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Blob {
    pub(crate) pid: u32,
    pub(crate) cookie: Cookie,
    pub(crate) slot: u32,
    pub(crate) base: u64,
    pub(crate) len: u64,
    pub(crate) access: u32,
    pub(crate) courier: u64,
}

impl Blob {
    fn encode(&self) -> [u8; BLOB_BYTES] {
        let mut blob = [0; BLOB_BYTES];
        let mut put = |at: usize, bytes: &[u8]| blob[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        for (at, half) in [(8, VERSION), (12, self.pid), (32, self.slot), (36, self.access)] {
            put(at, &half.to_le_bytes());
        }
        let [low, high] = self.cookie.0;
        for (at, word) in [(16, low), (24, high), (40, self.base), (48, self.len), (56, self.courier)] {
            put(at, &word.to_le_bytes());
        }
        let crc = crc32fast::hash(&blob[..CRC_AT]);
        blob[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        blob
    }

    /// None for anything but an intact blob of our version.
    pub(crate) fn decode(blob: &[u8]) -> Option<Blob> {
        let blob: &[u8; BLOB_BYTES] = blob.try_into().ok()?;
        let half = |at: usize| u32::from_le_bytes([blob[at], blob[at + 1], blob[at + 2], blob[at + 3]]);
        let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 4)) << 32;
        let intact = blob[..8] == MAGIC && half(8) == VERSION && half(CRC_AT) == crc32fast::hash(&blob[..CRC_AT]);
        let blob = Blob {
            pid: half(12),
            cookie: Cookie([word(16), word(24)]),
            slot: half(32),
            access: half(36),
            base: word(40),
            len: word(48),
            courier: word(56),
        };
        let range_fits = blob.base.checked_add(blob.len).is_some() && isize::try_from(blob.len).is_ok();
        (intact && range_fits && blob.len != 0 && blob.cookie.is_one()).then_some(blob)
    }

    /// Whether it says of an export of this process what is so.
    pub(crate) fn tells_truth_of(&self, region: &MmapRegion) -> bool {
        (self.base, self.len, self.access) == (region.base, region.len as u64, region.access)
    }
}

/// A range of a file that a range of memory shows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct FileRange {
    /// `st_dev`
    device: u64,
    inode: u64,
    /// Offset of the first byte of the memory range, bytes.
    offset: u64,
    /// The mapping, whose ends name it in `/proc/self/map_files`.
    mapping: (u64, u64),
}

/// One line of `/proc/self/maps`.
struct MapsLine {
    start: u64,
    end: u64,
    is_shared: bool,
    offset: u64,
    device: u64,
    inode: u64,
}

impl MapsLine {
    fn parse(line: &str) -> Option<MapsLine> {
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let is_shared = fields.next()?.ends_with('s');
        let offset = hex(fields.next()?)?;
        let (major, minor) = fields.next()?.split_once(':')?;
        let device = libc::makedev(hex(major)? as u32, hex(minor)? as u32);
        let inode = fields.next()?.parse().ok()?;
        Some(MapsLine { start: hex(start)?, end: hex(end)?, is_shared, offset, device, inode })
    }
}

impl FileRange {
    /// Finds the one shared file mapping that covers the range; None if it is anonymous, private or a patchwork.
    fn behind(base: u64, len: usize) -> Option<FileRange> {
        if cfg!(miri) {
            return None;
        }
        let maps = fs::read_to_string("/proc/self/maps").ok()?;
        let mapping = maps.lines().filter_map(MapsLine::parse).find(|m| m.start <= base && base < m.end)?;
        let covers = base.checked_add(len as u64)? <= mapping.end;
        (covers && mapping.is_shared && mapping.inode != 0).then(|| FileRange {
            device: mapping.device,
            inode: mapping.inode,
            offset: mapping.offset + (base - mapping.start),
            mapping: (mapping.start, mapping.end),
        })
    }

    /// Opens the file again: by its mapping, which needs privilege, or by any descriptor of it that this process holds.
    fn open(&self, writable: bool) -> Option<File> {
        let is_it = |file: &File| file.metadata().is_ok_and(|m| m.dev() == self.device && m.ino() == self.inode);
        let open = |path: PathBuf| {
            let mut options = OpenOptions::new();
            options.read(true).write(writable).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY);
            options.open(path).ok().filter(is_it)
        };
        let by_mapping = format!("/proc/self/map_files/{:x}-{:x}", self.mapping.0, self.mapping.1);
        if let Some(file) = open(by_mapping.into()) {
            return Some(file);
        }
        let is_candidate =
            |path: &PathBuf| fs::metadata(path).is_ok_and(|m| m.dev() == self.device && m.ino() == self.inode);
        let descriptors = fs::read_dir("/proc/self/fd").ok()?;
        descriptors.filter_map(|entry| Some(entry.ok()?.path())).filter(is_candidate).find_map(open)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blob() -> Blob {
        Blob { pid: 7, cookie: Cookie([8, 9]), slot: 10, base: 0x1000, len: 4096, access: PCI_READ_WRITE, courier: 11 }
    }

    #[test]
    fn blob_round_trips() {
        assert_eq!(Blob::decode(&blob().encode()), Some(blob()));
    }

    #[test]
    fn a_cookie_of_zero_is_no_blob_and_stands_in_no_slot() {
        for halves in [[0, 0], [0, 9], [8, 0]] {
            assert_eq!(Blob::decode(&Blob { cookie: Cookie(halves), ..blob() }.encode()), None);
            assert!(!Cookie(halves).stands_in(halves));
        }
        let [one, other] = [Cookie::fresh(), Cookie::fresh()];
        assert!(one.is_ok_and(Cookie::is_one) && one != other);
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        for bit in (0..BLOB_BYTES * 8).step_by(if cfg!(miri) { 37 } else { 1 }) {
            let mut blob = blob().encode();
            blob[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Blob::decode(&blob), None, "bit {bit}");
        }
        assert_eq!(Blob::decode(&blob().encode()[..127]), None);
    }

    #[test]
    fn a_range_that_wraps_is_refused() {
        assert_eq!(Blob::decode(&Blob { base: u64::MAX, len: 2, ..blob() }.encode()), None);
        assert_eq!(Blob::decode(&Blob { len: 0, ..blob() }.encode()), None);
    }

    #[test]
    fn maps_lines_parse() {
        let line = "7f12a000-7f12b000 rw-s 00003000 00:01 1234                       /memfd:x (deleted)";
        let mapping = MapsLine::parse(line).expect("a shared mapping");
        assert!(mapping.is_shared && mapping.start == 0x7f12_a000 && mapping.offset == 0x3000 && mapping.inode == 1234);
        assert_eq!(mapping.device, libc::makedev(0, 1));
        assert!(!MapsLine::parse("0-1 r-xp 0 00:00 0").expect("a line").is_shared);
        assert!(MapsLine::parse("nonsense").is_none());
    }
}
