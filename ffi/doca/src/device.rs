//! Devices: find one by PCI address or name, open it, ask what its engines can do.

use std::ffi::c_char;
use std::fmt;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use doca_sys as sys;

use crate::comch;
use crate::context::OperationKind;
use crate::error::{Code, Error};

/// The operator's name for a device (`--device`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Selector {
    /// The first device that can inflate and do DMA, else one that can do DMA, else one that can export memory, which
    /// is all that a host needs: the usual card has one that fits.
    #[default]
    First,
    /// PCI address (`03:00.0`, `0000:03:00.0`) or IB device name (`mlx5_0`).
    Named(String),
}

/// What one engine of a device takes per task; asked, never assumed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EngineCaps {
    /// Largest source or destination, bytes.
    pub bytes_max: u64,
    /// Longest chain of buffers on one side of a task.
    pub list_max: u32,
}

/// One line of the device list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    pub pci_address: String,
    pub ibdev: String,
    pub dma: Option<EngineCaps>,
    pub inflate: Option<EngineCaps>,
    pub lz4_block: Option<EngineCaps>,
    pub comch: comch::Caps,
    /// Its memory can be opened to the other side: the host's part.
    pub exports_memory: bool,
    /// Memory of the other side can be reached: the card's part.
    pub imports_memory: bool,
}

impl DeviceInfo {
    /// Address and name, as messages name a device.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{} ({})", self.pci_address, self.ibdev)
    }

    /// The task types that the data plane asks for, by the words that it uses for them.
    #[must_use]
    pub fn engines(&self) -> [(&'static str, OperationKind, Option<EngineCaps>); 3] {
        [
            ("dma", OperationKind::Dma, self.dma),
            ("inflate_deflate", OperationKind::Decompress, self.inflate),
            ("inflate_lz4_block", OperationKind::Decompress, self.lz4_block),
        ]
    }
}

impl fmt::Display for DeviceInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name())?;
        for (name, _, caps) in self.engines() {
            match caps {
                Some(caps) => write!(f, ", {name} {} bytes x{}", caps.bytes_max, caps.list_max)?,
                None => write!(f, ", no {name}")?,
            }
        }
        Ok(())
    }
}

struct Inner {
    raw: NonNull<sys::doca_dev>,
    info: DeviceInfo,
}

// SAFETY: a `doca_dev` has no thread affinity; after open it is only passed to create calls, which this crate makes
// from the thread that owns the child, and closed once, in `Drop`, when no child is left.
unsafe impl Send for Inner {}
// SAFETY: as above; nothing behind a shared reference is written after `open`.
unsafe impl Sync for Inner {}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: `raw` came from `doca_dev_open`, every child holds a clone of the Arc, so none is left, and this runs
        // once.
        if let Err(error) = unsafe { call!(doca_dev_close(self.raw.as_ptr())) } {
            log::warn!("device {} leaked: {error}", self.info.pci_address);
        }
    }
}

/// An open device. Cheap to clone; closed when the last child is gone.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Device").field(&self.0.info).finish()
    }
}

impl Device {
    /// Every device that DOCA sees.
    ///
    /// # Errors
    /// What `doca_devinfo_create_list` answered.
    pub fn list() -> Result<Vec<DeviceInfo>, Error> {
        let list = List::create()?;
        Ok(list.iter().map(describe).collect())
    }

    /// Opens the device that `selector` names.
    ///
    /// # Errors
    /// `NOT_FOUND` if no device fits, else what the DOCA call answered.
    pub fn open(selector: &Selector) -> Result<Self, Error> {
        let list = List::create()?;
        let seen: Vec<_> = list.iter().map(|devinfo| (devinfo, describe(devinfo))).collect();
        let first = |fits: &dyn Fn(&DeviceInfo) -> bool| seen.iter().find(|(_, info)| fits(info));
        let chosen = match selector {
            Selector::First => first(&|info| info.dma.is_some() && info.inflate.is_some())
                .or_else(|| first(&|info| info.dma.is_some()))
                .or_else(|| first(&|info| info.exports_memory)),
            Selector::Named(name) => first(&|info| *name == info.ibdev || same_pci_address(name, &info.pci_address)),
        };
        let (devinfo, info) = chosen.ok_or(Error::new("doca_devinfo_create_list", Code::NOT_FOUND))?;
        let mut raw = ptr::null_mut();
        // SAFETY: `devinfo` is an element of the live list; `raw` is a valid place for the handle.
        unsafe { call!(doca_dev_open(*devinfo, &raw mut raw)) }?;
        let raw = NonNull::new(raw).ok_or(Error::new("doca_dev_open", Code::UNEXPECTED))?;
        Ok(Self(Arc::new(Inner { raw, info: info.clone() })))
    }

    /// Tasks of all types together that one context of this kind takes. DOCA tells it to a context only.
    ///
    /// # Errors
    /// What the DOCA call answered: `NOT_SUPPORTED` where the device has no such engine.
    pub fn tasks_max(&self, kind: OperationKind) -> Result<u32, Error> {
        let mut tasks = 0;
        // SAFETY: the device is open; each context is made, asked and destroyed here, idle all the time; the places are
        // valid.
        unsafe {
            match kind {
                OperationKind::Decompress => {
                    let mut raw = ptr::null_mut();
                    call!(doca_compress_create(self.raw(), &raw mut raw))?;
                    let asked = call!(doca_compress_cap_get_max_num_tasks(raw, &raw mut tasks));
                    call!(doca_compress_destroy(raw)).and(asked)?;
                }
                OperationKind::Dma => {
                    let mut raw = ptr::null_mut();
                    call!(doca_dma_create(self.raw(), &raw mut raw))?;
                    let asked = call!(doca_dma_cap_get_max_num_tasks(raw, &raw mut tasks));
                    call!(doca_dma_destroy(raw)).and(asked)?;
                }
            }
        }
        Ok(tasks)
    }

    #[must_use]
    pub fn info(&self) -> &DeviceInfo {
        &self.0.info
    }

    pub(crate) fn raw(&self) -> *mut sys::doca_dev {
        self.0.raw.as_ptr()
    }
}

/// `0000:03:00.0` and `03:00.0` name the same function.
pub(crate) fn same_pci_address(a: &str, b: &str) -> bool {
    let bare = |s: &str| s.strip_prefix("0000:").unwrap_or(s).to_ascii_lowercase();
    bare(a) == bare(b)
}

/// The device list, destroyed with its owner.
struct List {
    first: *mut *mut sys::doca_devinfo,
    count: u32,
}

impl List {
    fn create() -> Result<Self, Error> {
        let mut list = Self { first: ptr::null_mut(), count: 0 };
        // SAFETY: both out parameters are valid places.
        unsafe { call!(doca_devinfo_create_list(&raw mut list.first, &raw mut list.count)) }?;
        Ok(list)
    }

    fn iter(&self) -> impl Iterator<Item = *mut sys::doca_devinfo> + '_ {
        // SAFETY: DOCA filled `count` entries at `first`; they live until the list is destroyed, which `self` outlives.
        (0..self.count as usize).map(|index| unsafe { *self.first.add(index) })
    }
}

impl Drop for List {
    fn drop(&mut self) {
        if self.first.is_null() {
            return;
        }
        // SAFETY: `first` came from `doca_devinfo_create_list` and is destroyed once.
        if let Err(error) = unsafe { call!(doca_devinfo_destroy_list(self.first)) } {
            log::warn!("device list leaked: {error}");
        }
    }
}

fn describe(devinfo: *mut sys::doca_devinfo) -> DeviceInfo {
    let mut pci = [0 as c_char; 64];
    let mut ibdev = [0 as c_char; 64];
    // SAFETY: `devinfo` is live (the caller holds its list); the buffers are longer than DOCA's name sizes.
    let (pci_ok, ibdev_ok) = unsafe {
        (
            call!(doca_devinfo_get_pci_addr_str(devinfo, pci.as_mut_ptr())).is_ok(),
            call!(doca_devinfo_get_ibdev_name(devinfo, ibdev.as_mut_ptr(), ibdev.len() as u32)).is_ok(),
        )
    };
    let pci_address = text(pci_ok, &pci);
    let (mut exports, mut imports) = (0, 0);
    // SAFETY: as below; where the question fails the answer stays 0.
    unsafe {
        let _ = call!(doca_mmap_cap_is_export_pci_supported(devinfo, &raw mut exports));
        let _ = call!(doca_mmap_cap_is_create_from_export_pci_supported(devinfo, &raw mut imports));
    }
    // SAFETY: cap queries read a live devinfo and write the places they are given.
    let (dma, inflate, lz4_block, comch) = unsafe {
        (
            caps(
                &pci_address,
                call!(doca_dma_cap_task_memcpy_is_supported(devinfo)),
                |bytes| call!(doca_dma_cap_task_memcpy_get_max_buf_size(devinfo, bytes)),
                |list| call!(doca_dma_cap_task_memcpy_get_max_buf_list_len(devinfo, list)),
            ),
            caps(
                &pci_address,
                call!(doca_compress_cap_task_decompress_deflate_is_supported(devinfo)),
                |bytes| call!(doca_compress_cap_task_decompress_deflate_get_max_buf_size(devinfo, bytes)),
                |list| call!(doca_compress_cap_task_decompress_deflate_get_max_buf_list_len(devinfo, list)),
            ),
            caps(
                &pci_address,
                call!(doca_compress_cap_task_decompress_lz4_block_is_supported(devinfo)),
                |bytes| call!(doca_compress_cap_task_decompress_lz4_block_get_max_buf_size(devinfo, bytes)),
                |list| call!(doca_compress_cap_task_decompress_lz4_block_get_max_buf_list_len(devinfo, list)),
            ),
            comch::Caps::ask(devinfo),
        )
    };
    let (exports_memory, imports_memory) = (exports != 0, imports != 0);
    let ibdev = text(ibdev_ok, &ibdev);
    DeviceInfo { pci_address, ibdev, dma, inflate, lz4_block, comch, exports_memory, imports_memory }
}

/// What DOCA wrote, or a question mark where it knows no name.
pub(crate) fn text(known: bool, chars: &[c_char]) -> String {
    match known {
        true => chars.iter().take_while(|c| **c != 0).map(|c| *c as u8 as char).collect(),
        false => String::from("?"),
    }
}

/// What a device says of one task type. Only `NOT_SUPPORTED` means that it has none: any other answer is told.
fn caps(
    device: &str,
    supported: Result<(), Error>,
    bytes: impl FnOnce(*mut u64) -> Result<(), Error>,
    list: impl FnOnce(*mut u32) -> Result<(), Error>,
) -> Option<EngineCaps> {
    let (mut bytes_max, mut list_max) = (0, 0);
    match supported.and_then(|()| bytes(&raw mut bytes_max)).and_then(|()| list(&raw mut list_max)) {
        // A card without lists takes single buffers.
        Ok(()) => Some(EngineCaps { bytes_max, list_max: list_max.max(1) }),
        Err(error) if error.code == Code::NOT_SUPPORTED => None,
        Err(error) => {
            log::warn!("{device}: {error}: counted as not supported");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pci_addresses_with_and_without_domain_are_the_same() {
        assert!(same_pci_address("0000:03:00.0", "03:00.0"));
        assert!(same_pci_address("03:00.0", "0000:03:00.0"));
        assert!(!same_pci_address("03:00.1", "03:00.0"));
    }
}
