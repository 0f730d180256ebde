//! `doca_mmap`: memory ranges on their way to being a [`MmapRegion`], exports and imports.
//!
//! May be used from several threads; the real one only after `doca_mmap_enable_thread_safety`.

use std::ffi::{c_int, c_void};
use std::ptr;
use std::slice;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::core::dev::{Dev, DevInfo};
use crate::ffi::abi::{doca_data, doca_dev, doca_devinfo, doca_mmap, doca_mmap_memrange_free_cb_t};
use crate::ffi::{Answer, Fault, Handle, Maybe, Object, Out, Stamp, exports};
use crate::memory::export::{self, Blob, LiveExport};
use crate::memory::import::Foreign;
use crate::memory::region::{Gate, LOCAL_READ_WRITE, MmapRegion, PCI_READ_ONLY, PCI_READ_WRITE, Reach, is_access_mask};

/// Devices per mmap unless `doca_mmap_set_max_num_devices` says otherwise.
const DEVICES_MAX: u32 = 8;

#[repr(C)]
pub(crate) struct Mmap {
    stamp: Stamp,
    inner: Mutex<Inner>,
}

// SAFETY: repr(C), and the stamp comes first.
unsafe impl Object for Mmap {
    type Opaque = doca_mmap;
    const MAGIC: u64 = u64::from_le_bytes(*b"kvl-mmap");
}

struct Inner {
    devices: Vec<Handle<Dev>>,
    devices_max: u32,
    range: Option<(*mut c_void, usize)>,
    access: u32,
    user_data: doca_data,
    free_cb: doca_mmap_memrange_free_cb_t,
    free_cookie: *mut c_void,
    /// What bufs point into; there while started.
    region: Option<Arc<MmapRegion>>,
    was_started: bool,
    is_import: bool,
    /// One serves all devices: the software card has one address space.
    export: Option<LiveExport>,
}

impl Mmap {
    fn new(inner: Inner) -> Mmap {
        Mmap { stamp: Stamp::new(Mmap::MAGIC), inner: Mutex::new(inner) }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What bufs point into; `BAD_STATE` unless started.
    pub(crate) fn region(&self) -> Result<Arc<MmapRegion>, Fault> {
        self.lock().region.clone().ok_or(Fault::DOCA_ERROR_BAD_STATE)
    }
}

impl Inner {
    fn empty() -> Inner {
        Inner {
            devices: Vec::new(),
            devices_max: DEVICES_MAX,
            range: None,
            access: LOCAL_READ_WRITE,
            user_data: doca_data { u64_: 0 },
            free_cb: None,
            free_cookie: ptr::null_mut(),
            region: None,
            was_started: false,
            is_import: false,
            export: None,
        }
    }

    /// Whether `set_*` may change anything: an import is finished, a started mmap is fixed.
    fn settable(&self) -> Answer {
        match (self.is_import, &self.region) {
            (true, _) => Err(Fault::DOCA_ERROR_NOT_PERMITTED),
            (false, Some(_)) => Err(Fault::DOCA_ERROR_BAD_STATE),
            (false, None) => Ok(()),
        }
    }

    fn set_range(&mut self, addr: *mut c_void, len: usize) -> Answer {
        self.settable()?;
        if self.range.is_some() {
            return Err(Fault::DOCA_ERROR_NOT_PERMITTED);
        }
        if addr.is_null() || len == 0 || addr.addr().checked_add(len).is_none() {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        self.range = Some((addr, len));
        Ok(())
    }

    fn start(&mut self) -> Answer {
        if self.is_import || self.region.is_some() {
            return Err(Fault::DOCA_ERROR_NOT_PERMITTED);
        }
        let (addr, len) = self.range.ok_or(Fault::DOCA_ERROR_INVALID_VALUE)?;
        self.was_started = true;
        self.region = Some(Arc::new(MmapRegion {
            base: addr.expose_provenance() as u64,
            len,
            access: self.access,
            devices: self.devices.iter().map(|dev| dev.id).collect(),
            reach: Reach::Own,
            bufs: AtomicU32::new(0),
            gate: Gate::default(),
            is_gone: AtomicBool::new(false),
        }));
        Ok(())
    }

    /// Takes exports back first, so that nobody is in the memory when this returns.
    fn stop(&mut self) -> Answer {
        if self.region.as_ref().is_some_and(|region| region.bufs.load(Ordering::Acquire) > 0) {
            return Err(Fault::DOCA_ERROR_NOT_PERMITTED);
        }
        self.export = None;
        self.region = None;
        Ok(())
    }

    fn find_device(&self, dev: Handle<Dev>) -> Result<usize, Fault> {
        self.devices.iter().position(|other| *other == dev).ok_or(Fault::DOCA_ERROR_NOT_FOUND)
    }
}

fn import(user_data: Option<doca_data>, blob: &Blob, dev: Handle<Dev>) -> Result<Mmap, Fault> {
    let reach = match export::find(blob.cookie) {
        Some(region) if blob.tells_truth_of(&region) => Reach::Neighbour(region),
        Some(_) => return Err(Fault::DOCA_ERROR_DRIVER),
        None if blob.courier == 0 => return Err(Fault::DOCA_ERROR_DRIVER),
        None => {
            let lane = || dev.engines.lane(blob.courier, dev.config());
            Reach::Foreign(Foreign::new(blob, dev.config(), lane)?)
        }
    };
    let mut inner = Inner::empty();
    inner.is_import = true;
    inner.access = blob.access;
    inner.range = Some((ptr::without_provenance_mut(blob.base as usize), blob.len as usize));
    inner.user_data = user_data.unwrap_or(inner.user_data);
    inner.region = Some(Arc::new(MmapRegion {
        base: blob.base,
        len: blob.len as usize,
        access: blob.access,
        devices: vec![dev.id],
        reach,
        bufs: AtomicU32::new(0),
        gate: Gate::default(),
        is_gone: AtomicBool::new(false),
    }));
    dev.hold();
    inner.devices.push(dev);
    Ok(Mmap::new(inner))
}

exports! {
    fn doca_mmap_create(mmap: *mut *mut doca_mmap => Out<*mut doca_mmap>) {
        mmap.put(Handle::new(Mmap::new(Inner::empty())).to_c());
        Ok(())
    }

    fn doca_mmap_destroy(mmap: *mut doca_mmap => Handle<Mmap>) {
        let (range, was_started, free_cb, free_cookie) = {
            let mut inner = mmap.lock();
            inner.stop()?;
            inner.devices.drain(..).for_each(|dev| dev.release());
            (inner.range, inner.was_started, inner.free_cb, inner.free_cookie)
        };
        // SAFETY: no buf and no importer is left, and the caller gives the handle up.
        unsafe { mmap.destroy() };
        if let (Some((addr, len)), true, Some(free)) = (range, was_started, free_cb) {
            // SAFETY: the caller registered this function for just this call, with this cookie.
            unsafe { free(addr, len, free_cookie) };
        }
        Ok(())
    }

    fn doca_mmap_start(mmap: *mut doca_mmap => Handle<Mmap>) {
        mmap.lock().start()
    }

    fn doca_mmap_stop(mmap: *mut doca_mmap => Handle<Mmap>) {
        let mut inner = mmap.lock();
        if inner.is_import { Err(Fault::DOCA_ERROR_NOT_PERMITTED) } else { inner.stop() }
    }

    fn doca_mmap_set_max_num_devices(mmap: *mut doca_mmap => Handle<Mmap>, max_num_devices: u32) {
        let mut inner = mmap.lock();
        if inner.is_import || inner.was_started {
            return Err(Fault::DOCA_ERROR_NOT_PERMITTED);
        }
        if max_num_devices == 0 || (max_num_devices as usize) < inner.devices.len() {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        inner.devices_max = max_num_devices;
        Ok(())
    }

    fn doca_mmap_add_dev(mmap: *mut doca_mmap => Handle<Mmap>, dev: *mut doca_dev => Handle<Dev>) {
        let mut inner = mmap.lock();
        if inner.is_import || inner.region.is_some() {
            return Err(Fault::DOCA_ERROR_NOT_PERMITTED);
        }
        if inner.find_device(dev).is_ok() {
            return Err(Fault::DOCA_ERROR_ALREADY_EXIST);
        }
        if inner.devices.len() >= inner.devices_max as usize {
            return Err(Fault::DOCA_ERROR_NO_MEMORY);
        }
        dev.hold();
        inner.devices.push(dev);
        Ok(())
    }

    fn doca_mmap_rm_dev(mmap: *mut doca_mmap => Handle<Mmap>, dev: *mut doca_dev => Handle<Dev>) {
        let mut inner = mmap.lock();
        if inner.is_import || inner.region.is_some() {
            return Err(Fault::DOCA_ERROR_NOT_PERMITTED);
        }
        let index = inner.find_device(dev)?;
        inner.devices.swap_remove(index).release();
        Ok(())
    }

    fn doca_mmap_set_permissions(mmap: *mut doca_mmap => Handle<Mmap>, access_mask: u32) {
        let mut inner = mmap.lock();
        inner.settable()?;
        if !is_access_mask(access_mask) {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        inner.access = access_mask;
        Ok(())
    }

    fn doca_mmap_set_memrange(mmap: *mut doca_mmap => Handle<Mmap>, addr: *mut c_void, len: usize) {
        mmap.lock().set_range(addr, len)
    }

    fn doca_mmap_set_dmabuf_memrange(
        mmap: *mut doca_mmap => Handle<Mmap>,
        dmabuf_fd: c_int,
        addr: *mut c_void,
        dmabuf_offset: usize,
        len: usize,
    ) {
        let _ = (mmap, dmabuf_fd, addr, dmabuf_offset, len);
        Err(Fault::DOCA_ERROR_NOT_SUPPORTED)
    }

    fn doca_mmap_set_free_cb(
        mmap: *mut doca_mmap => Handle<Mmap>,
        free_cb: doca_mmap_memrange_free_cb_t,
        opaque: *mut c_void,
    ) {
        let mut inner = mmap.lock();
        inner.settable()?;
        inner.free_cb = free_cb;
        inner.free_cookie = opaque;
        Ok(())
    }

    fn doca_mmap_set_user_data(mmap: *mut doca_mmap => Handle<Mmap>, user_data: doca_data) {
        let mut inner = mmap.lock();
        inner.settable()?;
        inner.user_data = user_data;
        Ok(())
    }

    fn doca_mmap_enable_thread_safety(mmap: *mut doca_mmap => Handle<Mmap>) {
        let inner = mmap.lock();
        if inner.region.is_some() { Err(Fault::DOCA_ERROR_NOT_PERMITTED) } else { Ok(()) }
    }

    fn doca_mmap_export_pci(
        mmap: *mut doca_mmap => Handle<Mmap>,
        dev: *const doca_dev => Handle<Dev>,
        export_desc: *mut *const c_void => Out<*const c_void>,
        export_desc_len: *mut usize => Out<usize>,
    ) {
        let mut inner = mmap.lock();
        let region = inner.region.clone().ok_or(Fault::DOCA_ERROR_NOT_PERMITTED)?;
        if inner.is_import || inner.access & (PCI_READ_ONLY | PCI_READ_WRITE) == 0 {
            return Err(Fault::DOCA_ERROR_NOT_PERMITTED);
        }
        inner.find_device(dev)?;
        if inner.export.is_none() {
            inner.export = Some(LiveExport::new(&region)?);
        }
        let blob = inner.export.as_ref().map(|export| export.blob.as_slice()).unwrap_or_default();
        export_desc.put(blob.as_ptr().cast());
        export_desc_len.put(blob.len());
        Ok(())
    }

    fn doca_mmap_create_from_export(
        user_data: *const doca_data => Maybe<doca_data>,
        export_desc: *const c_void,
        export_desc_len: usize,
        dev: *mut doca_dev => Handle<Dev>,
        mmap: *mut *mut doca_mmap => Out<*mut doca_mmap>,
    ) {
        if export_desc.is_null() || isize::try_from(export_desc_len).is_err() {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        // SAFETY: not null, and the caller's bytes for the length of the call.
        let blob = unsafe { slice::from_raw_parts(export_desc.cast::<u8>(), export_desc_len) };
        let blob = Blob::decode(blob).ok_or(Fault::DOCA_ERROR_INVALID_VALUE)?;
        mmap.put(Handle::new(import(user_data.0, &blob, dev)?).to_c());
        Ok(())
    }

    fn doca_mmap_get_memrange(
        mmap: *const doca_mmap => Handle<Mmap>,
        addr: *mut *mut c_void => Out<*mut c_void>,
        len: *mut usize => Out<usize>,
    ) {
        let (first, bytes) = mmap.lock().range.ok_or(Fault::DOCA_ERROR_BAD_STATE)?;
        addr.put(first);
        len.put(bytes);
        Ok(())
    }

    fn doca_mmap_get_user_data(mmap: *const doca_mmap => Handle<Mmap>, user_data: *mut doca_data => Out<doca_data>) {
        user_data.put(mmap.lock().user_data);
        Ok(())
    }

    fn doca_mmap_get_max_num_devices(mmap: *const doca_mmap => Handle<Mmap>, max_num_devices: *mut u32 => Out<u32>) {
        max_num_devices.put(mmap.lock().devices_max);
        Ok(())
    }

    fn doca_mmap_get_num_bufs(mmap: *const doca_mmap => Handle<Mmap>, num_bufs: *mut u32 => Out<u32>) {
        let count = mmap.lock().region.as_ref().map_or(0, |region| region.bufs.load(Ordering::Relaxed));
        num_bufs.put(count);
        Ok(())
    }

    fn doca_mmap_get_exported(mmap: *const doca_mmap => Handle<Mmap>, exported: *mut u8 => Out<u8>) {
        exported.put(u8::from(mmap.lock().export.is_some()));
        Ok(())
    }

    fn doca_mmap_get_from_export(mmap: *const doca_mmap => Handle<Mmap>, from_export: *mut u8 => Out<u8>) {
        from_export.put(u8::from(mmap.lock().is_import));
        Ok(())
    }

    fn doca_mmap_cap_is_export_pci_supported(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        mmap_export: *mut u8 => Out<u8>,
    ) {
        let _ = devinfo;
        mmap_export.put(1);
        Ok(())
    }

    fn doca_mmap_cap_is_create_from_export_pci_supported(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        from_export: *mut u8 => Out<u8>,
    ) {
        let _ = devinfo;
        from_export.put(1);
        Ok(())
    }
}
