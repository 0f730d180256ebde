//! Memory that tasks may reach: what a started `doca_mmap` stands for.
//!
//! ```text
//!   own mmap  ------------------------------>  this process's memory
//!   import of this process's export -------->  this process's memory, until the exporter stops  (gate)
//!   import of another process's export ----->  a window: the same file mapped here, or
//!                                              copies by the kernel, see remote                (see import)   
//! ```
//! A region is shared by its mmap, the bufs in it and the tasks in flight; the last of them frees it.

use std::hint;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::thread;

use crate::ffi::Fault;
use crate::ffi::abi::doca_access_flag;
use crate::memory::import::Foreign;

pub(crate) const LOCAL_READ_WRITE: u32 = doca_access_flag::DOCA_ACCESS_FLAG_LOCAL_READ_WRITE.0;
pub(crate) const PCI_READ_ONLY: u32 = doca_access_flag::DOCA_ACCESS_FLAG_PCI_READ_ONLY.0;
pub(crate) const PCI_READ_WRITE: u32 = doca_access_flag::DOCA_ACCESS_FLAG_PCI_READ_WRITE.0;
const ALL_FLAGS: u32 = (doca_access_flag::DOCA_ACCESS_FLAG_PCI_RELAXED_ORDERING.0 << 1) - 1;

/// Unknown flags, and PCI read-only together with read-write, are refused.
pub(crate) fn is_access_mask(mask: u32) -> bool {
    mask & !ALL_FLAGS == 0 && mask & (PCI_READ_ONLY | PCI_READ_WRITE) != PCI_READ_ONLY | PCI_READ_WRITE
}

pub(crate) enum Reach {
    Own,
    Neighbour(Arc<MmapRegion>),
    Foreign(Foreign),
}

pub(crate) struct MmapRegion {
    /// First address; for an import, in the exporter's addresses.
    pub(crate) base: u64,
    pub(crate) len: usize,
    /// Access flags; for an import, what the exporter allows.
    pub(crate) access: u32,
    /// Ids of the devices that it is registered with.
    pub(crate) devices: Vec<u64>,
    pub(crate) reach: Reach,
    /// Live bufs.
    pub(crate) bufs: AtomicU32,
    pub(crate) gate: Gate,
    /// An import whose exporter is to be taken for gone.
    pub(crate) is_gone: AtomicBool,
}

impl MmapRegion {
    pub(crate) fn contains(&self, addr: u64, len: usize) -> bool {
        let Some(offset) = addr.checked_sub(self.base) else { return false };
        offset <= self.len as u64 && len as u64 <= self.len as u64 - offset
    }

    /// Whether tasks of a device may read from here, or write to here.
    pub(crate) fn admits(&self, device: u64, write: bool) -> bool {
        let writable = match self.reach {
            Reach::Own => LOCAL_READ_WRITE,
            Reach::Neighbour(_) | Reach::Foreign(_) => PCI_READ_WRITE,
        };
        self.devices.contains(&device) && (!write || self.access & writable != 0)
    }

    pub(crate) fn is_own(&self) -> bool {
        matches!(self.reach, Reach::Own)
    }

    /// Whether data of a Comch producer may be put here.
    pub(crate) fn admits_delivery(&self, device: u64) -> bool {
        self.devices.contains(&device) && self.access & PCI_READ_WRITE != 0
    }

    /// Whether the engines may look at the bytes in place. Not so in another process's memory, which may change or
    /// vanish under the reader: that is only ever copied.
    pub(crate) fn is_in_place(&self) -> bool {
        !matches!(self.reach, Reach::Foreign(_))
    }
}

/// Keeps an exporter's memory in place while an engine copies, and shuts imports out once the exporter stops.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    /// Copies under way, plus `SHUT`.
    state: AtomicUsize,
}

const SHUT: usize = 1 << (usize::BITS - 1);

impl Gate {
    pub(crate) fn enter(&self) -> Result<(), Fault> {
        if self.state.fetch_add(1, Ordering::Acquire) & SHUT != 0 {
            self.leave();
            return Err(Fault::DOCA_ERROR_IO_FAILED);
        }
        Ok(())
    }

    pub(crate) fn leave(&self) {
        // Pairs with the Acquire in `shut`: who freed memory after `shut` sees our copy finished.
        self.state.fetch_sub(1, Ordering::Release);
    }

    /// Lets nobody in any more and waits for those inside, which are at most one task per engine thread.
    pub(crate) fn shut(&self) {
        let mut inside = self.state.fetch_or(SHUT, Ordering::Acquire) & !SHUT;
        let mut spins = 0u32;
        while inside != 0 {
            if spins < 100 {
                hint::spin_loop()
            } else {
                thread::yield_now()
            }
            spins += 1;
            inside = self.state.load(Ordering::Acquire) & !SHUT;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(base: u64, len: usize) -> MmapRegion {
        MmapRegion {
            base,
            len,
            access: LOCAL_READ_WRITE,
            devices: vec![1],
            reach: Reach::Own,
            bufs: AtomicU32::new(0),
            gate: Gate::default(),
            is_gone: AtomicBool::new(false),
        }
    }

    #[test]
    fn containment_does_not_overflow() {
        let region = region(u64::MAX - 10, 10);
        assert!(region.contains(u64::MAX - 10, 10) && region.contains(u64::MAX, 0));
        assert!(!region.contains(u64::MAX - 10, 11) && !region.contains(u64::MAX - 11, 1));
        assert!(!region.contains(u64::MAX, usize::MAX) && !region.contains(0, usize::MAX));
    }

    #[test]
    fn another_device_is_not_admitted() {
        assert!(region(0, 1).admits(1, true) && !region(0, 1).admits(2, false));
    }

    #[test]
    fn a_shut_gate_stays_shut() {
        let gate = Gate::default();
        assert_eq!(gate.enter(), Ok(()));
        gate.leave();
        gate.shut();
        assert_eq!(gate.enter(), Err(Fault::DOCA_ERROR_IO_FAILED));
        gate.shut();
    }

    #[test]
    fn both_pci_accesses_at_once_are_refused() {
        assert!(
            is_access_mask(0) && is_access_mask(LOCAL_READ_WRITE | PCI_READ_WRITE) && is_access_mask(PCI_READ_ONLY)
        );
        assert!(!is_access_mask(PCI_READ_ONLY | PCI_READ_WRITE) && !is_access_mask(1 << 7));
    }
}
