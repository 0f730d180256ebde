//! Export blobs: how a memory map of one process becomes reachable from another.
//!
//! The blob names the process, the range, what is allowed, and a **cookie**: a random word that stands in a slot of the
//! exporter's **board**, a page of shared memory that the importer maps to read, for as long as the export does. Before
//! each task the importer looks at the slot, and at a pidfd of the exporter: one that exited, whose pid was given to
//! somebody else, or who stopped its mmap fails the task with `IO_FAILED`. The cookie says more than the exporter's
//! start time would, which is therefore not in the blob.
//!
//! Bytes move one of two ways. If the range lies in one shared file mapping **and the file is sealed against
//! shrinking** (a memfd with `F_SEAL_SHRINK`), the importer maps the same pages and copies directly: no system call per
//! byte and no `SIGBUS` either, since the kernel promises that no page goes away. Any other memory is reached through
//! the kernel (`remote`), where a hole is an error and not a signal. A check of the file's size before each direct copy
//! would leave a gap between check and copy, so it is not used.
//!
//! The kernel lets one process reach another's memory and descriptors if it may trace it: same user, or
//! `CAP_SYS_PTRACE`, in one pid namespace. The exporter declares itself traceable (`PR_SET_PTRACER_ANY`) for kernels with
//! Yama. Where the kernel refuses all the same, the exporter hands the descriptors over and carries the bytes itself:
//! see [`crate::courier`].
//!
//! Blob, little endian, 128 bytes:
//! ```text
//!   0 magic        16 cookie        32 base   48 access       56 file device    72 file offset    96 courier, or 0
//!   8 version      24 board's fd    40 len    52 0 or 1: file 64 file inode     80, 88 its mapping
//!  12 pid          28 slot                                                      104 reserved, zero    124 CRC-32
//! ```

use std::collections::hash_map::RandomState;
use std::fs::{self, File, OpenOptions};
use std::hash::BuildHasher;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use crate::courier::{self, Courier};
use crate::debug;
use crate::error::Fault;
use crate::guard::Guard;
use crate::region::{PCI_READ_WRITE, Region};
use crate::remote;

pub(crate) const BLOB_BYTES: usize = 128;
const MAGIC: [u8; 8] = *b"kvl-pci\0";
const VERSION: u32 = 1;
const CRC_AT: usize = BLOB_BYTES - 4;
/// Exports that may be alive at once: a page of cookies.
const SLOTS: usize = 512;
const BOARD_BYTES: usize = SLOTS * size_of::<AtomicU64>();

/// Exports of this process, for importers in it.
static ALIVE: Mutex<Vec<(u64, Arc<Region>)>> = Mutex::new(Vec::new());

/// Where importers look: a slot holds its export's cookie while that is alive, else zero.
struct Board {
    /// Minus one in a process that nobody else can import from.
    fd: libc::c_int,
    slots: &'static [AtomicU64; SLOTS],
}

impl Board {
    /// This process's, made at its first export and there for its life.
    fn own() -> Result<&'static Board, Fault> {
        static OWN: OnceLock<Option<Board>> = OnceLock::new();
        OWN.get_or_init(Board::make).as_ref().ok_or(Fault::DOCA_ERROR_OPERATING_SYSTEM)
    }

    fn make() -> Option<Board> {
        if cfg!(miri) {
            let slots = Box::leak(Box::new([const { AtomicU64::new(0) }; SLOTS]));
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
        // SAFETY: a page of our own mapping, zeroed, aligned, of just this size; it is never unmapped.
        let slots = unsafe { &*ManuallyDrop::new(window).map.cast::<[AtomicU64; SLOTS]>() };
        Some(Board { fd: file.into_raw_fd(), slots })
    }
}

/// One live export; dropping it shuts importers out, here and in other processes.
pub(crate) struct Export {
    pub(crate) blob: Box<[u8; BLOB_BYTES]>,
    slot: &'static AtomicU64,
    region: Arc<Region>,
}

impl Export {
    pub(crate) fn new(region: &Arc<Region>) -> Result<Export, Fault> {
        let cookie = fresh_cookie();
        let board = Board::own()?;
        let vacant = |slot: &AtomicU64| slot.compare_exchange(0, cookie, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        let slot = board.slots.iter().position(vacant).ok_or(Fault::DOCA_ERROR_NO_MEMORY)?;
        allow_tracing();
        let ticket = Ticket {
            pid: process::id(),
            cookie,
            board_fd: board.fd as u32,
            slot: slot as u32,
            base: region.base,
            len: region.len as u64,
            access: region.access,
            file: FileRange::behind(region.base, region.len),
            courier: courier::own().unwrap_or(0),
        };
        ALIVE.lock().unwrap_or_else(PoisonError::into_inner).push((cookie, Arc::clone(region)));
        Ok(Export { blob: Box::new(ticket.encode()), slot: &board.slots[slot], region: Arc::clone(region) })
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        let cookie = self.slot.swap(0, Ordering::AcqRel);
        ALIVE.lock().unwrap_or_else(PoisonError::into_inner).retain(|(other, _)| *other != cookie);
        self.region.gate.shut();
    }
}

/// The region of a live export of this process.
pub(crate) fn find(cookie: u64) -> Option<Arc<Region>> {
    let alive = ALIVE.lock().unwrap_or_else(PoisonError::into_inner);
    alive.iter().find(|(other, _)| *other == cookie).map(|(_, region)| Arc::clone(region))
}

/// What an importer maps: this process's board, and the file behind the region if there is one, no further opened than
/// the export allows.
pub(crate) fn descriptors(region: &Region) -> Option<Vec<File>> {
    let board = File::open(format!("/proc/self/fd/{}", Board::own().ok()?.fd)).ok()?;
    let range = FileRange::behind(region.base, region.len);
    let file = range.and_then(|range| range.open(process::id(), region.access & PCI_READ_WRITE != 0));
    Some([board].into_iter().chain(file).collect())
}

pub(crate) fn fresh_cookie() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // Randomly keyed, so another process's leftovers do not match by accident.
    RandomState::new().hash_one((process::id(), COUNT.fetch_add(1, Ordering::Relaxed))).max(1)
}

fn allow_tracing() {
    if cfg!(miri) {
        return;
    }
    // SAFETY: passes two integers; sets a flag of this process. A kernel without Yama answers EINVAL, which is fine.
    unsafe { libc::prctl(libc::PR_SET_PTRACER, libc::PR_SET_PTRACER_ANY, 0, 0, 0) };
}

/// What a blob says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Ticket {
    pub(crate) pid: u32,
    pub(crate) cookie: u64,
    board_fd: u32,
    slot: u32,
    pub(crate) base: u64,
    pub(crate) len: u64,
    pub(crate) access: u32,
    file: Option<FileRange>,
    courier: u64,
}

impl Ticket {
    fn encode(&self) -> [u8; BLOB_BYTES] {
        let file = self.file.unwrap_or_default();
        let mut blob = [0; BLOB_BYTES];
        let mut put = |at: usize, bytes: &[u8]| blob[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &MAGIC);
        put(8, &VERSION.to_le_bytes());
        put(12, &self.pid.to_le_bytes());
        put(48, &self.access.to_le_bytes());
        put(52, &u32::from(self.file.is_some()).to_le_bytes());
        put(24, &self.board_fd.to_le_bytes());
        put(28, &self.slot.to_le_bytes());
        let words = [(16, self.cookie), (32, self.base), (40, self.len), (96, self.courier)];
        let of_file =
            [(56, file.device), (64, file.inode), (72, file.offset), (80, file.mapping.0), (88, file.mapping.1)];
        for (at, word) in words.into_iter().chain(of_file) {
            put(at, &word.to_le_bytes());
        }
        let crc = crc32fast::hash(&blob[..CRC_AT]);
        blob[CRC_AT..].copy_from_slice(&crc.to_le_bytes());
        blob
    }

    /// None for anything but an intact blob of our version.
    pub(crate) fn decode(blob: &[u8]) -> Option<Ticket> {
        let blob: &[u8; BLOB_BYTES] = blob.try_into().ok()?;
        let half = |at: usize| u32::from_le_bytes([blob[at], blob[at + 1], blob[at + 2], blob[at + 3]]);
        let word = |at: usize| u64::from(half(at)) | u64::from(half(at + 4)) << 32;
        let intact = blob[..8] == MAGIC && half(8) == VERSION && half(CRC_AT) == crc32fast::hash(&blob[..CRC_AT]);
        let range_fits = word(32).checked_add(word(40)).is_some() && isize::try_from(word(40)).is_ok();
        if !intact || !range_fits || word(40) == 0 {
            return None;
        }
        let file = FileRange { device: word(56), inode: word(64), offset: word(72), mapping: (word(80), word(88)) };
        Some(Ticket {
            pid: half(12),
            cookie: word(16),
            board_fd: half(24),
            slot: half(28),
            base: word(32),
            len: word(40),
            access: half(48),
            file: (half(52) == 1).then_some(file),
            courier: word(96),
        })
    }

    /// The region itself, if this process is the exporter and has not stopped it.
    pub(crate) fn region_here(&self) -> Option<Arc<Region>> {
        find(self.cookie)
    }
}

/// A range of a file that a range of memory shows.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct FileRange {
    /// `st_dev`
    device: u64,
    inode: u64,
    /// Of the first byte of the memory range.
    offset: u64,
    /// The exporter's mapping, whose ends name it in `/proc/PID/map_files`.
    mapping: (u64, u64),
}

/// One line of `/proc/self/maps`.
struct Mapping {
    start: u64,
    end: u64,
    is_shared: bool,
    offset: u64,
    device: u64,
    inode: u64,
}

impl Mapping {
    fn parse(line: &str) -> Option<Mapping> {
        let hex = |text: &str| u64::from_str_radix(text, 16).ok();
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let is_shared = fields.next()?.ends_with('s');
        let offset = hex(fields.next()?)?;
        let (major, minor) = fields.next()?.split_once(':')?;
        let device = libc::makedev(hex(major)? as u32, hex(minor)? as u32);
        let inode = fields.next()?.parse().ok()?;
        Some(Mapping { start: hex(start)?, end: hex(end)?, is_shared, offset, device, inode })
    }
}

impl FileRange {
    /// Finds the one shared file mapping that covers the range; None if it is anonymous, private or a patchwork.
    fn behind(base: u64, len: usize) -> Option<FileRange> {
        if cfg!(miri) {
            return None;
        }
        let maps = fs::read_to_string("/proc/self/maps").ok()?;
        let mapping = maps.lines().filter_map(Mapping::parse).find(|m| m.start <= base && base < m.end)?;
        let covers = base.checked_add(len as u64)? <= mapping.end;
        (covers && mapping.is_shared && mapping.inode != 0).then(|| FileRange {
            device: mapping.device,
            inode: mapping.inode,
            offset: mapping.offset + (base - mapping.start),
            mapping: (mapping.start, mapping.end),
        })
    }

    /// Opens the file through the exporter: by its mapping, which needs privilege, or by any descriptor that it holds.
    fn open(&self, pid: u32, writable: bool) -> Option<File> {
        let is_it = |file: &File| file.metadata().is_ok_and(|m| m.dev() == self.device && m.ino() == self.inode);
        let open = |path: PathBuf| OpenOptions::new().read(true).write(writable).open(path).ok().filter(is_it);
        let by_mapping = format!("/proc/{pid}/map_files/{:x}-{:x}", self.mapping.0, self.mapping.1);
        if let Some(file) = open(by_mapping.into()) {
            return Some(file);
        }
        let is_candidate =
            |path: &PathBuf| fs::metadata(path).is_ok_and(|m| m.dev() == self.device && m.ino() == self.inode);
        let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok()?;
        descriptors.filter_map(|entry| Some(entry.ok()?.path())).filter(is_candidate).find_map(open)
    }
}

/// Another process's export.
pub(crate) struct Foreign {
    pub(crate) road: Road,
    board: Window,
    slot: usize,
    cookie: u64,
    window: Option<Window>,
    /// Debug mode: over the exporter's addresses, if they are free here.
    guard: Option<Guard>,
}

/// How bytes move that no window shows, and how the exporter's end is noticed.
pub(crate) enum Road {
    Kernel {
        pid: libc::pid_t,
        /// Readable once the exporter has exited.
        pidfd: OwnedFd,
    },
    Exporter(Courier),
}

impl Road {
    fn is_open(&self) -> bool {
        match self {
            Road::Kernel { pidfd, .. } => {
                let mut exited = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one entry of our own, and no waiting.
                unsafe { libc::poll(&mut exited, 1, 0) == 0 }
            }
            Road::Exporter(courier) => courier.is_there(),
        }
    }
}

impl Foreign {
    /// Refuses an exporter that is gone (`DRIVER`) or that neither the kernel nor itself lets us reach
    /// (`NOT_PERMITTED`).
    pub(crate) fn new(ticket: &Ticket, may_map: bool) -> Result<Foreign, Fault> {
        if ticket.slot as usize >= SLOTS {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        let by_kernel = Foreign::by_kernel(ticket, may_map);
        let mut foreign = by_kernel.or_else(|fault| Foreign::by_courier(ticket, may_map).ok_or(fault))?;
        if debug::is_on() {
            foreign.guard = Guard::over(ticket.base, ticket.len as usize, ticket.pid);
        }
        Ok(foreign)
    }

    fn by_kernel(ticket: &Ticket, may_map: bool) -> Result<Foreign, Fault> {
        let pid = libc::pid_t::try_from(ticket.pid).map_err(|_| Fault::DOCA_ERROR_INVALID_VALUE)?;
        // First the pidfd: should the pid change hands before the cookie is seen, the pidfd's process has exited.
        let road = Road::Kernel { pid, pidfd: open_pidfd(pid)? };
        let board = File::open(format!("/proc/{pid}/fd/{}", ticket.board_fd)).map_err(|err| match err.kind() {
            // The descriptors of a process that exited and was not waited for are root's.
            io::ErrorKind::PermissionDenied if road.is_open() => Fault::DOCA_ERROR_NOT_PERMITTED,
            _ => Fault::DOCA_ERROR_DRIVER,
        })?;
        let mut foreign = Foreign::on(road, &board, ticket).ok_or(Fault::DOCA_ERROR_DRIVER)?;
        if may_map {
            foreign.window = Window::behind(ticket);
        }
        if foreign.window.is_none() {
            probe(pid, ticket.base)?;
        }
        Ok(foreign)
    }

    fn by_courier(ticket: &Ticket, may_map: bool) -> Option<Foreign> {
        let (courier, board, file) = Courier::call(ticket.courier, ticket.cookie)?;
        let mut foreign = Foreign::on(Road::Exporter(courier), &board, ticket)?;
        if let (true, Some(file), Some(range)) = (may_map, file, ticket.file) {
            foreign.window = Window::of_export(&file, &range, ticket);
        }
        Some(foreign)
    }

    /// None if the export does not stand.
    fn on(road: Road, board: &File, ticket: &Ticket) -> Option<Foreign> {
        let board = Window::of_sealed(board, 0, BOARD_BYTES, false)?;
        let slot = ticket.slot as usize;
        let foreign = Foreign { road, board, slot, cookie: ticket.cookie, window: None, guard: None };
        Some(foreign).filter(Foreign::is_alive)
    }

    /// Whether the export still stands.
    pub(crate) fn is_alive(&self) -> bool {
        let slots = self.board.map.cast::<AtomicU64>();
        // SAFETY: the slot was checked to lie on the board, whose mapping `self` keeps; the exporter writes it
        // atomically.
        let cookie = unsafe { &*slots.add(self.slot) }.load(Ordering::Acquire);
        cookie == self.cookie && self.road.is_open()
    }

    /// Our own view of `offset` bytes into the range, if there is a window.
    pub(crate) fn view(&self, offset: u64) -> Option<*mut u8> {
        self.window.as_ref().map(|window| window.first.wrapping_add(offset as usize))
    }
}

/// Tries to read one byte through the kernel, so that a missing permission shows at import.
fn probe(pid: libc::pid_t, addr: u64) -> Result<(), Fault> {
    let mut byte = 0u8;
    let here = libc::iovec { iov_base: ptr::from_mut(&mut byte).cast(), iov_len: 1 };
    let there = libc::iovec { iov_base: ptr::without_provenance_mut(addr as usize), iov_len: 1 };
    // SAFETY: one local range, a byte of our own; the remote one is checked by the kernel.
    unsafe { remote::read(pid, &[here], &[there], 1) }.map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Fault::DOCA_ERROR_NOT_PERMITTED,
        _ => Fault::DOCA_ERROR_DRIVER,
    })
}

fn open_pidfd(pid: libc::pid_t) -> Result<OwnedFd, Fault> {
    // SAFETY: two integers in, a descriptor out.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(Fault::DOCA_ERROR_DRIVER);
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// Pages of a file, mapped here. Another process's only if sealed: see the head of this module.
struct Window {
    map: *mut libc::c_void,
    map_bytes: usize,
    first: *mut u8,
}

// SAFETY: the mapping belongs to the window alone and stays put until drop; its bytes are only touched by raw copies.
unsafe impl Send for Window {}
// SAFETY: as above; a shared window hands out nothing but its address.
unsafe impl Sync for Window {}

impl Window {
    /// The memory of an export, if it is that of a file and the file is sealed.
    fn behind(ticket: &Ticket) -> Option<Window> {
        let range = ticket.file?;
        let file = range.open(ticket.pid, ticket.access & PCI_READ_WRITE != 0)?;
        Window::of_export(&file, &range, ticket)
    }

    fn of_export(file: &File, range: &FileRange, ticket: &Ticket) -> Option<Window> {
        let writable = ticket.access & PCI_READ_WRITE != 0;
        Window::of_sealed(file, range.offset, usize::try_from(ticket.len).ok()?, writable)
    }

    /// Maps a file that cannot lose the range.
    fn of_sealed(file: &File, offset: u64, bytes: usize, writable: bool) -> Option<Window> {
        // SAFETY: asks about a descriptor that `file` keeps open.
        let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
        let is_sealed = seals >= 0 && seals & libc::F_SEAL_SHRINK != 0;
        let covers = offset.checked_add(bytes as u64)? <= file.metadata().ok()?.len();
        if is_sealed && covers { Window::map(file, offset, bytes, writable) } else { None }
    }

    fn map(file: &File, offset: u64, bytes: usize, writable: bool) -> Option<Window> {
        // Huge pages want offsets that are multiples of theirs; 2 MiB suits all but the rarest.
        const ALIGN: u64 = 2 << 20;
        let start = offset & !(ALIGN - 1);
        let map_bytes = usize::try_from(offset - start).ok()?.checked_add(bytes)?;
        let protection = if writable { libc::PROT_READ | libc::PROT_WRITE } else { libc::PROT_READ };
        let start_off = libc::off_t::try_from(start).ok()?;
        // SAFETY: a new mapping where the kernel likes; it takes nothing away from anybody.
        let map = unsafe {
            libc::mmap(ptr::null_mut(), map_bytes, protection, libc::MAP_SHARED, file.as_raw_fd(), start_off)
        };
        if map == libc::MAP_FAILED {
            return None;
        }
        Some(Window { map, map_bytes, first: map.cast::<u8>().wrapping_add((offset - start) as usize) })
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`, with its length; regions outlive the tasks that use them, so nobody looks.
        unsafe { libc::munmap(self.map, self.map_bytes) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ticket() -> Ticket {
        let file = FileRange { device: 1, inode: 2, offset: 3, mapping: (4, 5) };
        Ticket {
            pid: 7,
            cookie: 8,
            board_fd: 9,
            slot: 10,
            base: 0x1000,
            len: 4096,
            access: PCI_READ_WRITE,
            file: Some(file),
            courier: 11,
        }
    }

    #[test]
    fn blob_round_trips() {
        for file in [None, ticket().file] {
            let ticket = Ticket { file, ..ticket() };
            assert_eq!(Ticket::decode(&ticket.encode()), Some(ticket));
        }
    }

    #[test]
    fn any_flipped_bit_is_refused() {
        for bit in (0..BLOB_BYTES * 8).step_by(if cfg!(miri) { 37 } else { 1 }) {
            let mut blob = ticket().encode();
            blob[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Ticket::decode(&blob), None, "bit {bit}");
        }
        assert_eq!(Ticket::decode(&ticket().encode()[..127]), None);
    }

    #[test]
    fn a_range_that_wraps_is_refused() {
        assert_eq!(Ticket::decode(&Ticket { base: u64::MAX, len: 2, ..ticket() }.encode()), None);
        assert_eq!(Ticket::decode(&Ticket { len: 0, ..ticket() }.encode()), None);
    }

    #[test]
    fn maps_lines_parse() {
        let line = "7f12a000-7f12b000 rw-s 00003000 00:01 1234                       /memfd:x (deleted)";
        let mapping = Mapping::parse(line).expect("a shared mapping");
        assert!(mapping.is_shared && mapping.start == 0x7f12_a000 && mapping.offset == 0x3000 && mapping.inode == 1234);
        assert_eq!(mapping.device, libc::makedev(0, 1));
        assert!(!Mapping::parse("0-1 r-xp 0 00:00 0").expect("a line").is_shared);
        assert!(Mapping::parse("nonsense").is_none());
    }
}
