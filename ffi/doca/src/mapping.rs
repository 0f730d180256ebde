//! Memory that two sides share: the host maps and exports it, the card imports it and reaches it by DMA only.

use std::any::Any;
use std::ffi::c_void;
use std::fmt;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use doca_sys as sys;
use nix::sys::mman::{MapFlags, MmapAdvise, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

use crate::area::{Range, register};
use crate::device::Device;
use crate::error::{Code, Error};

/// What the card may do with exported memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    ReadWrite,
}

/// The dma-buf of a GPU's memory: what a driver needs to reach memory that is not the host's.
#[derive(Debug)]
pub struct Dmabuf {
    pub fd: OwnedFd,
    /// Offset of the memory in it, bytes.
    pub offset: usize,
}

/// A shared mapping of a file, anonymous memory, or memory that somebody else allocated, made to be exported.
///
/// No Rust reference to its bytes is ever made but as atomics: another process and a device may write them at any time.
/// Copies go through [`Mapping::read`] and [`Mapping::write`], byte by byte: any number of threads may copy at once,
/// and what one reads while another writes is some of the old bytes and some of the new.
pub struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
    /// Owner of lent memory, kept alive; `None` where the memory is our own to unmap.
    lender: Option<Box<dyn Any + Send + Sync>>,
    /// The dma-buf of a GPU's memory, which no copy here can reach.
    dmabuf: Option<Dmabuf>,
}

// SAFETY: plain memory with no thread affinity; every access is through an atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above; `read` and `write` of two threads on the same bytes are atomic loads and stores of one size, and no
// race.
unsafe impl Sync for Mapping {}

/// Mappings from here on are worth huge pages.
const HUGE_BYTES: usize = 2 << 20;

impl fmt::Debug for Mapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Mapping").field("bytes", &self.bytes).finish()
    }
}

impl Mapping {
    /// Maps the first `bytes` of a file (or memfd), shared.
    ///
    /// # Errors
    /// `INVALID_VALUE` for zero bytes, `NO_MEMORY` if the system refuses.
    pub fn of_file(file: impl AsFd, bytes: usize, access: Access) -> Result<Self, Error> {
        let length = NonZeroUsize::new(bytes).ok_or(Error::new("mmap", Code::INVALID_VALUE))?;
        let protection = match access {
            Access::Read => ProtFlags::PROT_READ,
            Access::ReadWrite => ProtFlags::PROT_READ | ProtFlags::PROT_WRITE,
        };
        // SAFETY: a new mapping at an address of the kernel's choice aliases no Rust object.
        let base = unsafe { mmap(None, length, protection, MapFlags::MAP_SHARED, file, 0) };
        let base = base.map_err(|_| Error::new("mmap", Code::NO_MEMORY))?.cast();
        Ok(Self { base, bytes, lender: None, dmabuf: None })
    }

    /// Zeroed anonymous memory, as a serving engine's allocator would give it: in huge pages where it is large, since
    /// whoever writes it from outside, the emulator's kernel or a card, has to look up every page.
    ///
    /// # Errors
    /// `INVALID_VALUE` for zero bytes, `NO_MEMORY` if the system refuses.
    pub fn anonymous(bytes: usize) -> Result<Self, Error> {
        let length = NonZeroUsize::new(bytes).ok_or(Error::new("mmap", Code::INVALID_VALUE))?;
        let protection = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice aliases no Rust object.
        let base = unsafe { mmap_anonymous(None, length, protection, MapFlags::MAP_PRIVATE) };
        let base = base.map_err(|_| Error::new("mmap", Code::NO_MEMORY))?;
        if bytes >= HUGE_BYTES {
            // SAFETY: advice about the mapping that was just made; its contents stay.
            // A kernel without huge pages refuses, and all works as without.
            let _ = unsafe { madvise(base, bytes, MmapAdvise::MADV_HUGEPAGE) };
        }
        Ok(Self { base: base.cast(), bytes, lender: None, dmabuf: None })
    }

    /// Memory that somebody else allocated, a serving engine's KV cache: `lender` keeps it alive and is dropped, not
    /// unmapped, when no export needs it any more. Where an export has to be leaked, the lender is leaked with it.
    ///
    /// # Safety
    /// `bytes` bytes from `base` stay mapped, readable and (if it is exported so) writable until `lender` is dropped,
    /// and no Rust reference to them exists meanwhile: the card and this mapping's copies write them at any time.
    ///
    /// # Errors
    /// `INVALID_VALUE` for zero bytes, or a range that wraps.
    pub unsafe fn lent(base: NonNull<u8>, bytes: usize, lender: Box<dyn Any + Send + Sync>) -> Result<Self, Error> {
        let wraps = (base.as_ptr() as usize).checked_add(bytes).is_none();
        if bytes == 0 || wraps {
            return Err(Error::new("lend", Code::INVALID_VALUE));
        }
        Ok(Self { base, bytes, lender: Some(lender), dmabuf: None })
    }

    /// A GPU's memory, lent: registered by its dma-buf, or by its address where that is refused (which a card allows if
    /// the kernel module `nvidia_peermem` is there). Untried with a real GPU: none stood beside a card.
    ///
    /// # Safety
    /// The contract of [`Mapping::lent`], but for reading and writing: the bytes stay the GPU's until `lender` is
    /// dropped, and they are those of the dma-buf from its offset on.
    ///
    /// # Errors
    /// Those of [`Mapping::lent`].
    pub unsafe fn lent_dmabuf(
        base: NonNull<u8>,
        bytes: usize,
        dmabuf: Dmabuf,
        lender: Box<dyn Any + Send + Sync>,
    ) -> Result<Self, Error> {
        // SAFETY: what the caller promises is all that is needed while `read` and `write` refuse this mapping.
        let mut lent = unsafe { Self::lent(base, bytes, lender) }?;
        lent.dmabuf = Some(dmabuf);
        Ok(lent)
    }

    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address under which the card names this memory (exports keep the exporter's addresses).
    #[must_use]
    pub fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// Copies out of the mapping.
    ///
    /// # Panics
    /// If the range is not inside, or the memory is a GPU's.
    pub fn read(&self, offset: usize, into: &mut [u8]) {
        let from = self.bytes_at(offset, into.len());
        for (byte, from) in into.iter_mut().zip(from) {
            *byte = from.load(Ordering::Relaxed);
        }
    }

    /// Copies into the mapping, which must have been made with [`Access::ReadWrite`].
    ///
    /// # Panics
    /// If the range is not inside, or the memory is a GPU's.
    pub fn write(&self, offset: usize, from: &[u8]) {
        for (into, byte) in self.bytes_at(offset, from.len()).iter().zip(from) {
            into.store(*byte, Ordering::Relaxed);
        }
    }

    fn bytes_at(&self, offset: usize, bytes: usize) -> &[AtomicU8] {
        assert!(self.dmabuf.is_none(), "memory of a GPU: not for this processor");
        assert!(offset <= self.bytes && bytes <= self.bytes - offset, "{bytes} bytes at {offset} of {}", self.bytes);
        // SAFETY: range-checked above, mapped while `self` lives, and any byte is a valid AtomicU8. Rust code has these
        // bytes as AtomicU8 only: a lender promises that no reference to them exists.
        unsafe { slice::from_raw_parts(self.base.as_ptr().add(offset).cast::<AtomicU8>(), bytes) }
    }
}

impl Mapping {
    fn register(&self, device: &Device, permissions: u32) -> Result<NonNull<sys::doca_mmap>, Error> {
        if let Some(dmabuf) = &self.dmabuf {
            match register(device, Range::Dmabuf(dmabuf, self.base, self.bytes), permissions) {
                Ok(mmap) => return Ok(mmap),
                Err(error) => {
                    log::warn!("GPU memory by dma-buf: {error}; tried by address, which needs nvidia_peermem")
                }
            }
        }
        register(device, Range::Address(self.base, self.bytes), permissions)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        if self.lender.is_some() {
            return;
        }
        // SAFETY: not lent, so mapped in a constructor with this base and length; exports hold the Arc, so none is
        // left.
        if let Err(errno) = unsafe { munmap(self.base.cast(), self.bytes) } {
            log::warn!("munmap of {} bytes failed: {errno}", self.bytes);
        }
    }
}

/// A [`Mapping`] registered and opened to the card. The blob is sensitive: it is the right to the memory.
pub struct Export {
    mmap: NonNull<sys::doca_mmap>,
    blob: Vec<u8>,
    mapping: Arc<Mapping>,
    _device: Device,
}

// SAFETY: the handle is only read by accessors and destroyed once; DOCA mmaps have no thread affinity.
unsafe impl Send for Export {}
// SAFETY: nothing in it is written after construction.
unsafe impl Sync for Export {}

impl fmt::Debug for Export {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Export").field("mapping", &self.mapping).field("blob_bytes", &self.blob.len()).finish()
    }
}

impl Export {
    /// # Errors
    /// What the DOCA call answered.
    pub fn new(device: &Device, mapping: Arc<Mapping>, access: Access) -> Result<Self, Error> {
        let flag = match access {
            Access::Read => sys::doca_access_flag::DOCA_ACCESS_FLAG_PCI_READ_ONLY,
            Access::ReadWrite => sys::doca_access_flag::DOCA_ACCESS_FLAG_PCI_READ_WRITE,
        };
        let local = match access {
            Access::Read => sys::doca_access_flag::DOCA_ACCESS_FLAG_LOCAL_READ_ONLY,
            Access::ReadWrite => sys::doca_access_flag::DOCA_ACCESS_FLAG_LOCAL_READ_WRITE,
        };
        let mmap = mapping.register(device, flag.0 | local.0)?;
        let mut export = Self { mmap, blob: Vec::new(), mapping, _device: device.clone() };
        let (mut blob, mut bytes) = (ptr::null::<c_void>(), 0_usize);
        // SAFETY: the mmap is started and holds the device; both out parameters are valid places.
        unsafe { call!(doca_mmap_export_pci(mmap.as_ptr(), device.raw(), &raw mut blob, &raw mut bytes)) }?;
        if blob.is_null() {
            return Err(Error::new("doca_mmap_export_pci", Code::UNEXPECTED));
        }
        // SAFETY: DOCA owns `bytes` readable bytes at `blob` until the mmap stops; copied here, once.
        export.blob = unsafe { std::slice::from_raw_parts(blob.cast::<u8>(), bytes) }.to_vec();
        Ok(export)
    }

    /// What the card needs to import the memory.
    #[must_use]
    pub fn blob(&self) -> &[u8] {
        &self.blob
    }

    #[must_use]
    pub fn mapping(&self) -> &Arc<Mapping> {
        &self.mapping
    }
}

impl Drop for Export {
    fn drop(&mut self) {
        // SAFETY: registered in `new`, destroyed once; this side makes no buffers from it.
        if let Err(error) = unsafe { call!(doca_mmap_destroy(self.mmap.as_ptr())) } {
            log::warn!("export of {} bytes leaked: {error}", self.mapping.bytes);
            // The device may still reach the memory: keep it mapped.
            std::mem::forget(Arc::clone(&self.mapping));
        }
    }
}

/// Host memory as the card sees it: a name for DMA, never dereferenced.
pub struct Remote {
    mmap: NonNull<sys::doca_mmap>,
    address: u64,
    bytes: u64,
    _device: Device,
}

// SAFETY: the handle is used by its holder alone and destroyed once; DOCA mmaps have no thread affinity.
unsafe impl Send for Remote {}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote").field("bytes", &self.bytes).finish()
    }
}

/// A run of remote memory and the bytes of a local area that it stands for: one element of a scatter or gather list.
#[derive(Clone, Copy, Debug)]
pub struct RemoteRun<'a> {
    pub remote: &'a Remote,
    /// Offset from the start of the exported range, bytes.
    pub offset: u64,
    /// Offset from the start of the local area, bytes.
    pub local: usize,
    pub bytes: usize,
}

impl Remote {
    /// # Errors
    /// What `doca_mmap_create_from_export` answered: the blob comes from an untrusted peer.
    pub fn import(device: &Device, blob: &[u8]) -> Result<Self, Error> {
        let mut raw = ptr::null_mut();
        // SAFETY: the blob is a readable slice, which DOCA copies; null user data is allowed; `raw` is a valid place.
        unsafe {
            call!(doca_mmap_create_from_export(
                ptr::null(),
                blob.as_ptr().cast(),
                blob.len(),
                device.raw(),
                &raw mut raw
            ))
        }?;
        let mmap = NonNull::new(raw).ok_or(Error::new("doca_mmap_create_from_export", Code::UNEXPECTED))?;
        let mut remote = Self { mmap, address: 0, bytes: 0, _device: device.clone() };
        let (mut address, mut bytes) = (ptr::null_mut::<c_void>(), 0_usize);
        // SAFETY: the mmap is live; both out parameters are valid places.
        unsafe { call!(doca_mmap_get_memrange(raw, &raw mut address, &raw mut bytes)) }?;
        remote.address = address as u64;
        remote.bytes = bytes as u64;
        Ok(remote)
    }

    /// Length of the exported range.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Start of the exported range, in the exporter's addresses.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The exporter's address of `offset`, or `None` if `bytes` from there are not inside.
    pub(crate) fn locate(&self, offset: u64, bytes: usize) -> Option<*mut c_void> {
        let end = offset.checked_add(bytes as u64)?;
        (end <= self.bytes).then_some((self.address + offset) as *mut c_void)
    }

    pub(crate) fn mmap(&self) -> *mut sys::doca_mmap {
        self.mmap.as_ptr()
    }
}

impl Drop for Remote {
    fn drop(&mut self) {
        // SAFETY: created in `import`, destroyed once; with buffers still in flight DOCA refuses (NOT_PERMITTED) and we
        // leak it.
        if let Err(error) = unsafe { call!(doca_mmap_destroy(self.mmap.as_ptr())) } {
            log::warn!("imported range of {} bytes leaked: {error}", self.bytes);
        }
    }
}
