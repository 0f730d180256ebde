//! Registered memory of this side: one [`Arena`] is allocated and registered in Init and carved into [`Area`]s.
//!
//! An `Area` is the exclusive owner of its bytes. Whoever holds it may read and write them; an engine that works on
//! them holds it instead. That is the whole aliasing rule, and the type system keeps it.

use std::fmt;
use std::num::NonZeroUsize;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use doca_sys as sys;
use nix::sys::mman::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use crate::device::Device;
use crate::error::{Code, Error};
use crate::mapping::Dmabuf;

/// CPU-side alignment that performs best (DOCA Core guide: 64 bytes).
pub const AREA_ALIGNMENT: usize = 64;
/// An arena's memory is whole pages of this: huge ones, where the system has them reserved.
pub const HUGE_PAGE_BYTES: usize = 2 << 20;

pub(crate) struct RegisteredMemory {
    base: NonNull<u8>,
    bytes: usize,
    mmap: NonNull<sys::doca_mmap>,
    _device: Device,
}

// SAFETY: the mapping is plain memory; its bytes are reached through `Area`s, which are disjoint and exclusive, or
// through a `Slab`, which counts who reads and writes. The mmap handle is used read-only after start (buffers are made
// from it by the engine's thread) and destroyed once.
unsafe impl Send for RegisteredMemory {}
// SAFETY: as above; nothing in `RegisteredMemory` itself is written through a shared reference.
unsafe impl Sync for RegisteredMemory {}

impl RegisteredMemory {
    /// See [`Arena::allocate`].
    pub(crate) fn allocate(device: &Device, bytes: usize) -> Result<Self, Error> {
        let no_memory = Error::new("mmap", Code::NO_MEMORY);
        let bytes = bytes.checked_next_multiple_of(HUGE_PAGE_BYTES).ok_or(no_memory)?;
        let length = NonZeroUsize::new(bytes).ok_or(no_memory)?;
        let access = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
        let populated = MapFlags::MAP_PRIVATE | MapFlags::MAP_POPULATE;
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice aliases nothing.
        let map = |flags| unsafe { mmap_anonymous(None, length, access, flags) };
        let base = if cfg!(miri) {
            // which knows no other kind
            map(MapFlags::MAP_PRIVATE)
        } else {
            map(populated | MapFlags::MAP_HUGETLB).or_else(|_| map(populated))
        }
        .map_err(|_| no_memory)?
        .cast::<u8>();
        let mmap = match register(
            device,
            Range::Address(base, bytes),
            sys::doca_access_flag::DOCA_ACCESS_FLAG_LOCAL_READ_WRITE.0,
        ) {
            Ok(mmap) => mmap,
            Err(error) => {
                // SAFETY: mapped just above, nobody else has seen it.
                let _ = unsafe { munmap(base.cast(), bytes) };
                return Err(error);
            }
        };
        Ok(Self { base, bytes, mmap, _device: device.clone() })
    }

    /// Address of byte `offset`, which is inside.
    pub(crate) fn address(&self, offset: usize) -> *mut u8 {
        assert!(offset <= self.bytes, "byte {offset} of {}", self.bytes);
        // SAFETY: just checked against the mapping.
        unsafe { self.base.as_ptr().add(offset) }
    }

    pub(crate) fn mmap(&self) -> *mut sys::doca_mmap {
        self.mmap.as_ptr()
    }
}

impl Drop for RegisteredMemory {
    fn drop(&mut self) {
        // SAFETY: `mmap` is live; buffers made from it hold their areas in a context's table, and those hold this Arc.
        if let Err(error) = unsafe { call!(doca_mmap_destroy(self.mmap.as_ptr())) } {
            log::warn!("region of {} bytes leaked: {error}", self.bytes);
            return;
        }
        // SAFETY: mapped in `Arena::allocate` with this base and length; no Area or Loan is left (each holds the Arc).
        if let Err(errno) = unsafe { munmap(self.base.cast(), self.bytes) } {
            log::warn!("munmap of {} bytes failed: {errno}", self.bytes);
        }
    }
}

/// A registered allocation of fixed size, carved from its start.
pub struct Arena {
    memory: Arc<RegisteredMemory>,
    carved: usize,
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("bytes", &self.memory.bytes).field("carved", &self.carved).finish()
    }
}

impl Arena {
    /// Maps `bytes` of zeroed, populated memory (huge pages if the system has them reserved) and registers it with
    /// `device`.
    ///
    /// # Errors
    /// `NO_MEMORY` if the system refuses the mapping, else what the DOCA call answered.
    pub fn allocate(device: &Device, bytes: usize) -> Result<Self, Error> {
        Ok(Self { memory: Arc::new(RegisteredMemory::allocate(device, bytes)?), carved: 0 })
    }

    /// The next `bytes` of the arena, aligned to [`AREA_ALIGNMENT`]; `None` when it is used up.
    #[must_use]
    pub fn carve(&mut self, bytes: usize) -> Option<Area> {
        let end = self.carved.checked_add(bytes)?;
        if end > self.memory.bytes {
            return None;
        }
        let offset = self.carved;
        self.carved = end.next_multiple_of(AREA_ALIGNMENT);
        Some(Area { memory: Arc::clone(&self.memory), offset, bytes })
    }

    /// Size of the whole arena, bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.memory.bytes
    }
}

/// A piece of an [`Arena`] and the right to touch it.
pub struct Area {
    memory: Arc<RegisteredMemory>,
    offset: usize,
    bytes: usize,
}

impl fmt::Debug for Area {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Area").field("offset", &self.offset).field("bytes", &self.bytes).finish()
    }
}

/// Memory of this side that an engine can be given.
pub(crate) trait Registered {
    fn memory(&self) -> &RegisteredMemory;

    fn address(&self) -> *mut u8;

    /// Its length, without the slice that `len` would make: an engine may be writing to the bytes already.
    fn bytes(&self) -> usize;
}

impl Registered for Area {
    fn memory(&self) -> &RegisteredMemory {
        &self.memory
    }

    fn address(&self) -> *mut u8 {
        self.memory.address(self.offset)
    }

    fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Deref for Area {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: offset + bytes lie in the live mapping; areas are carved disjoint and this one is exclusive to its
        // holder.
        unsafe { std::slice::from_raw_parts(self.address(), self.bytes) }
    }
}

impl DerefMut for Area {
    fn deref_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `deref`, and `&mut self` is the only path to these bytes.
        unsafe { std::slice::from_raw_parts_mut(self.address(), self.bytes) }
    }
}

/// The name of memory to DOCA, with its address and length.
#[derive(Clone, Copy)]
pub(crate) enum Range<'a> {
    Address(NonNull<u8>, usize),
    Dmabuf(&'a Dmabuf, NonNull<u8>, usize),
}

impl Range<'_> {
    /// # Safety
    /// `mmap` is live and idle, and the memory stays where it is until it is destroyed.
    unsafe fn set(self, mmap: *mut sys::doca_mmap) -> Result<(), Error> {
        match self {
            // SAFETY: the caller's promise.
            Self::Address(base, bytes) => unsafe { call!(doca_mmap_set_memrange(mmap, base.as_ptr().cast(), bytes)) },
            Self::Dmabuf(dmabuf, base, bytes) => {
                let (fd, offset) = (dmabuf.fd.as_raw_fd(), dmabuf.offset);
                // SAFETY: as above, and the descriptor is open: it is owned by what is borrowed here.
                unsafe { call!(doca_mmap_set_dmabuf_memrange(mmap, fd, base.as_ptr().cast(), offset, bytes)) }
            }
        }
    }
}

/// Creates and starts a `doca_mmap` over memory that the caller keeps alive until it is destroyed.
pub(crate) fn register(device: &Device, range: Range, permissions: u32) -> Result<NonNull<sys::doca_mmap>, Error> {
    let mut raw = ptr::null_mut();
    // SAFETY: `raw` is a valid place for the handle.
    unsafe { call!(doca_mmap_create(&raw mut raw)) }?;
    let mmap = NonNull::new(raw).ok_or(Error::new("doca_mmap_create", Code::UNEXPECTED))?;
    // SAFETY: the mmap is live and idle, the device open, the range mapped; this is the order the DOCA guide asks for.
    let started = unsafe {
        call!(doca_mmap_add_dev(raw, device.raw()))
            .and_then(|()| call!(doca_mmap_set_permissions(raw, permissions)))
            .and_then(|()| range.set(raw))
            .and_then(|()| call!(doca_mmap_start(raw)))
    };
    if let Err(error) = started {
        // SAFETY: created above, never used.
        let _ = unsafe { call!(doca_mmap_destroy(raw)) };
        return Err(error);
    }
    Ok(mmap)
}
