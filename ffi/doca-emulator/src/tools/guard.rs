//! Debug mode: the addresses of an import are made to answer a touch by the CPU with a line of text.
//!
//! An import has the exporter's addresses, which mean nothing to the importer's CPU: on a card the program reads
//! whatever else of its own lies there, or dies without a word. Where nothing else lies there, the range is reserved
//! without access, and a handler of `SIGSEGV` says which import was touched. Then it puts back what was there before
//! it, and the signal takes its course: an older handler gets it, else the process ends. So only the first one is
//! explained.
//!
//! Ranges that are taken already (the two programs have the same layout, as without address randomisation) stay
//! unguarded, and so do imports of the process's own exports, which are its own memory after all.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Mutex, Once, OnceLock, PoisonError};

/// Imports that are guarded at once; more are imported without.
const GUARDS_MAX: usize = 64;

/// What the handler reads. A base of zero is a vacant slot; it is written last and cleared first.
struct Slot {
    base: AtomicU64,
    len: AtomicU64,
    pid: AtomicU32,
}

static SLOTS: [Slot; GUARDS_MAX] =
    [const { Slot { base: AtomicU64::new(0), len: AtomicU64::new(0), pid: AtomicU32::new(0) } }; GUARDS_MAX];
/// Lock of those who take slots; the handler does not wait for it.
static TAKING: Mutex<()> = Mutex::new(());
/// What `SIGSEGV` did before.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// A reserved range, free again when dropped.
pub(crate) struct Guard {
    pages: *mut c_void,
    bytes: usize,
    slot: &'static Slot,
}

// SAFETY: a reservation that nobody looks into; dropping it on another thread is as good.
unsafe impl Send for Guard {}
// SAFETY: a shared guard does nothing.
unsafe impl Sync for Guard {}

impl Guard {
    /// Reserves the pages of `[base, base + len]`, an import of process `pid`, if they are free here.
    pub(crate) fn over(base: u64, len: usize, pid: u32) -> Option<Guard> {
        install();
        let _taking = TAKING.lock().unwrap_or_else(PoisonError::into_inner);
        let slot = SLOTS.iter().find(|slot| slot.base.load(Ordering::Relaxed) == 0)?;
        // SAFETY: asks for a number.
        let page = u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?;
        let first = base & !(page - 1);
        let end = base.checked_add(len as u64)?.checked_next_multiple_of(page)?;
        let (wanted, bytes) = (ptr::without_provenance_mut(first as usize), (end - first) as usize);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED_NOREPLACE;
        // SAFETY: replaces nothing: that is what NOREPLACE says.
        let pages = unsafe { libc::mmap(wanted, bytes, libc::PROT_NONE, flags, -1, 0) };
        if pages == libc::MAP_FAILED {
            return None;
        }
        if pages != wanted {
            // A kernel before 4.17 takes the address for a hint.
            // SAFETY: the mapping just made.
            unsafe { libc::munmap(pages, bytes) };
            return None;
        }
        slot.len.store(len as u64, Ordering::Relaxed);
        slot.pid.store(pid, Ordering::Relaxed);
        // Pairs with the Acquire in `touched`.
        slot.base.store(base, Ordering::Release);
        Some(Guard { pages, bytes, slot })
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.slot.base.store(0, Ordering::Release);
        // SAFETY: the mapping made in `over`, which nobody could use.
        unsafe { libc::munmap(self.pages, self.bytes) };
    }
}

fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: integers and pointers, for which zeroes are values; then both actions are ours for the call.
        unsafe {
            let mut before: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGSEGV, ptr::null(), &mut before);
            // There before the handler, which reads it.
            let _ = BEFORE.set(before);
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = touched as *const () as usize;
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
            libc::sigaction(libc::SIGSEGV, &action, ptr::null_mut());
        }
    });
}

/// Handles `SIGSEGV`. Takes no lock and allocates nothing.
unsafe extern "C" fn touched(signal: c_int, info: *mut libc::siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel's, for the length of this call.
    let addr = unsafe { (*info).si_addr() }.addr() as u64;
    for slot in &SLOTS {
        let base = slot.base.load(Ordering::Acquire);
        let len = slot.len.load(Ordering::Relaxed);
        if base != 0 && addr >= base && addr - base < len {
            let mut line = LineBuffer { text: [0; 256], len: 0 };
            line.push(b"doca-emulator: debug: the CPU touched ");
            line.push_number(addr, 16);
            line.push(b", byte ");
            line.push_number(addr - base, 10);
            line.push(b" of an import of process ");
            line.push_number(slot.pid.load(Ordering::Relaxed).into(), 10);
            line.push(b" (");
            line.push_number(base, 16);
            line.push(b", ");
            line.push_number(len, 10);
            line.push(b" bytes): only tasks reach an import\n");
            // SAFETY: bytes of our own with their length.
            unsafe { libc::write(libc::STDERR_FILENO, line.text.as_ptr().cast(), line.len) };
        }
    }
    // The instruction runs again, or who sent the signal sends it again, and it does what it did before we came.
    // SAFETY: the action that the kernel gave us, and our own argument.
    unsafe {
        if let Some(before) = BEFORE.get() {
            libc::sigaction(signal, before, ptr::null_mut());
        }
        if (*info).si_code <= 0 {
            libc::raise(signal);
        }
    }
}

/// A line in the making, without the allocator.
struct LineBuffer {
    text: [u8; 256],
    len: usize,
}

impl LineBuffer {
    fn push(&mut self, bytes: &[u8]) {
        for (to, from) in self.text[self.len..].iter_mut().zip(bytes) {
            *to = *from;
        }
        self.len = (self.len + bytes.len()).min(self.text.len());
    }

    /// Appends a number, with `0x` before it if the base is 16.
    fn push_number(&mut self, mut number: u64, base: u64) {
        let mut digits = [0u8; 20];
        let mut at = digits.len();
        loop {
            at -= 1;
            digits[at] = b"0123456789abcdef"[(number % base) as usize];
            number /= base;
            if number == 0 {
                break;
            }
        }
        if base == 16 {
            self.push(b"0x");
        }
        self.push(&digits[at..]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_put_together_and_cut_off_at_the_end_of_the_room() {
        let mut line = LineBuffer { text: [0; 256], len: 0 };
        line.push_number(u64::MAX, 16);
        line.push(b" ");
        line.push_number(u64::MAX, 10);
        line.push_number(0, 10);
        assert_eq!(&line.text[..line.len], b"0xffffffffffffffff 184467440737095516150");
        for _ in 0..100 {
            line.push(b"12345");
        }
        assert_eq!(line.len, 256);
    }

    #[test]
    #[cfg(not(miri))]
    fn a_taken_range_is_left_alone_and_a_free_one_is_given_back() {
        let mine = [7u8; 10000];
        assert!(Guard::over(mine.as_ptr().addr() as u64, mine.len(), 1).is_none());
        // SAFETY: a mapping of our own, whose place is free after this.
        let free = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let place = libc::mmap(ptr::null_mut(), 1 << 20, libc::PROT_NONE, flags, -1, 0);
            libc::munmap(place, 1 << 20);
            place.addr() as u64
        };
        let guard = Guard::over(free + 100, 1000, 1).expect("a free range");
        assert!(Guard::over(free, 4096, 2).is_none(), "guarded already");
        drop(guard);
        assert!(Guard::over(free, 4096, 2).is_some());
    }
}
