//! Imports: another process's export, reached from here.
//!
//! The blob is whoever's who brings it, and proves nothing by itself: the process behind the name of its courier is
//! asked first ([`crate::memory::caller`]), and who that is, user and pid, is the kernel's word (`SO_PEERCRED`). No
//! pid, descriptor or path out of a blob is ever opened. An importer takes exports of its own user's processes; root's
//! takes anybody's, and then uses what the exporter hands over and never root's right to trace: the exporter may be
//! another program by the next copy (`exec` of one with more rights keeps the pid).
//!
//! ```text
//!   file behind the range is sealed     a window: the same pages, mapped here
//!   else, exporter of our own user      the kernel copies (`remote`)
//!   else, or where the kernel refuses   the exporter carries the bytes
//! ```

use std::any::Any;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::config::Config;
use crate::ffi::Fault;
use crate::memory::caller::{Caller, Handed};
use crate::memory::export::{BOARD_BYTES, Blob, BoardSlot, Cookie, SLOTS};
use crate::memory::region::PCI_READ_WRITE;
use crate::memory::remote;
use crate::memory::window::Window;
use crate::tools::debug;
use crate::tools::guard::Guard;
use crate::tools::packet;

/// The queue of tasks that wait for an exporter which carries its bytes itself; only the engines know its type.
pub(crate) type LaneHandle = Arc<dyn Any + Send + Sync>;

/// Another process's export.
pub(crate) struct Foreign {
    pub(crate) road: Road,
    board: Window,
    slot: usize,
    cookie: Cookie,
    window: Option<Window>,
    /// Debug mode: over the exporter's addresses, if they are free here.
    _guard: Option<Guard>,
}

/// The way of bytes that no window shows, and the means to notice that the exporter has ended.
pub(crate) enum Road {
    Kernel {
        pid: libc::pid_t,
        /// Readable once the exporter has exited.
        pidfd: OwnedFd,
    },
    Exporter {
        caller: Caller,
        /// Queue of the thread that waits for the exporter; None where a window shows the bytes.
        lane: Option<LaneHandle>,
    },
}

impl Road {
    fn is_open(&self) -> bool {
        match self {
            Road::Kernel { pidfd, .. } => {
                let mut exited = libc::pollfd { fd: pidfd.as_raw_fd(), events: libc::POLLIN, revents: 0 };
                // SAFETY: one entry of our own, and no waiting.
                unsafe { libc::poll(&mut exited, 1, 0) == 0 }
            }
            Road::Exporter { caller, .. } => caller.is_there(),
        }
    }
}

impl Foreign {
    /// `lane` makes one, should it be needed. Refuses an exporter that is gone, does not answer or does not know this
    /// export (`DRIVER`), and one whose user is not ours (`NOT_PERMITTED`).
    pub(crate) fn new(
        blob: &Blob,
        config: &Config,
        lane: impl FnOnce() -> Option<LaneHandle>,
    ) -> Result<Foreign, Fault> {
        if blob.slot as usize >= SLOTS {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        let caller = Caller::connect(blob.courier, blob.cookie)?;
        let is_ours = caller.peer.uid == packet::user();
        // Before the exporter shows that it lives: what answers then is what the descriptor names.
        let pidfd = if is_ours { open_pidfd(caller.peer.pid) } else { None };
        let Handed { board, file } = caller.greet(blob)?;
        let board = Window::of_sealed(&board, 0, BOARD_BYTES, false, false).ok_or(Fault::DOCA_ERROR_DRIVER)?;
        let writable = blob.access & PCI_READ_WRITE != 0;
        let window = file.filter(|_| config.window).and_then(|(file, offset)| {
            Window::of_sealed(&file, offset, usize::try_from(blob.len).ok()?, writable, is_ours)
        });
        let pid = caller.peer.pid;
        let road = match pidfd.filter(|_| window.is_some() || can_read(pid, blob.base)) {
            Some(pidfd) => Road::Kernel { pid, pidfd },
            None => {
                let lane = match window {
                    Some(_) => None,
                    None => Some(lane().ok_or(Fault::DOCA_ERROR_OPERATING_SYSTEM)?),
                };
                Road::Exporter { caller, lane }
            }
        };
        let guard = if debug::is_on() { Guard::over(blob.base, blob.len as usize, blob.pid) } else { None };
        let foreign = Foreign { road, board, slot: blob.slot as usize, cookie: blob.cookie, window, _guard: guard };
        if foreign.is_alive() { Ok(foreign) } else { Err(Fault::DOCA_ERROR_DRIVER) }
    }

    /// Whether the export still stands.
    pub(crate) fn is_alive(&self) -> bool {
        let slots = self.board.map.cast::<BoardSlot>();
        // SAFETY: the slot was checked to lie on the board, whose mapping `self` keeps; the exporter writes it
        // atomically.
        let halves: [u64; 2] =
            unsafe { &*slots.add(self.slot) }.each_ref().map(|half: &AtomicU64| half.load(Ordering::Acquire));
        self.cookie.stands_in(halves) && self.road.is_open()
    }

    /// Our own view of `offset` bytes into the range, if there is a window.
    pub(crate) fn view(&self, offset: u64) -> Option<*mut u8> {
        self.window.as_ref().map(|window| window.first.wrapping_add(offset as usize))
    }

    /// The queue of tasks that wait for the exporter to carry their bytes.
    pub(crate) fn lane(&self) -> Option<LaneHandle> {
        match &self.road {
            Road::Exporter { lane, .. } => lane.clone(),
            Road::Kernel { .. } => None,
        }
    }
}

/// Tries to read one byte through the kernel: whether that is the road is known at import.
fn can_read(pid: libc::pid_t, addr: u64) -> bool {
    let mut byte = 0u8;
    let here = libc::iovec { iov_base: ptr::from_mut(&mut byte).cast(), iov_len: 1 };
    let there = libc::iovec { iov_base: ptr::without_provenance_mut(addr as usize), iov_len: 1 };
    // SAFETY: one local range, a byte of our own; the remote one is checked by the kernel.
    unsafe { remote::read(pid, &[here], &[there], 1) }.is_ok()
}

fn open_pidfd(pid: libc::pid_t) -> Option<OwnedFd> {
    // SAFETY: two integers in, a descriptor out.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    // SAFETY: a new descriptor that nothing else owns.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}
