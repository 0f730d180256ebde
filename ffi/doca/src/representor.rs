//! Representors: the host's functions, as the card sees them. Their one use here is to say whom a Comch server serves.

use std::ffi::c_char;
use std::fmt;
use std::ptr::{self, NonNull};

use doca_sys as sys;

use crate::device::{Device, same_pci_address, text};
use crate::error::{Code, Error};

/// One function of the host that a device of the card stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RepresentorInfo {
    /// PCI address as the host sees it.
    pub pci_address: String,
    /// Interface name of the representor on the card: `pf0hpf`, `pf0vf0`.
    pub interface: String,
    /// A physical function: the host's own, never a guest's.
    pub is_physical: bool,
}

impl RepresentorInfo {
    /// Whether an operator means this one: by PCI address or by interface.
    #[must_use]
    pub fn is_named(&self, name: &str) -> bool {
        self.interface == name || same_pci_address(name, &self.pci_address)
    }
}

impl fmt::Display for RepresentorInfo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.pci_address, self.interface)
    }
}

/// An open representor. Holds its device open.
pub struct Representor {
    raw: NonNull<sys::doca_dev_rep>,
    info: RepresentorInfo,
    device: Device,
}

impl fmt::Debug for Representor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Representor").field(&self.info).finish()
    }
}

impl Representor {
    /// Every function of the host that the device stands for, in DOCA's order. A device of the host's side has none.
    ///
    /// # Errors
    /// What `doca_devinfo_rep_create_list` answered: `NOT_SUPPORTED` where there are no representors at all.
    pub fn list(device: &Device) -> Result<Vec<RepresentorInfo>, Error> {
        let list = List::create(device)?;
        Ok(list.iter().map(describe).collect())
    }

    /// Opens the one that `info` describes.
    ///
    /// # Errors
    /// `NOT_FOUND` if it is gone meanwhile, else what the DOCA call answered.
    pub fn open(device: &Device, info: &RepresentorInfo) -> Result<Self, Error> {
        let list = List::create(device)?;
        let found = list.iter().find(|devinfo| describe(*devinfo) == *info);
        let found = found.ok_or(Error::new("doca_devinfo_rep_create_list", Code::NOT_FOUND))?;
        let mut raw = ptr::null_mut();
        // SAFETY: `found` is an element of the live list; `raw` is a valid place for the handle.
        unsafe { call!(doca_dev_rep_open(found, &raw mut raw)) }?;
        let raw = NonNull::new(raw).ok_or(Error::new("doca_dev_rep_open", Code::UNEXPECTED))?;
        Ok(Self { raw, info: info.clone(), device: device.clone() })
    }

    #[must_use]
    pub fn info(&self) -> &RepresentorInfo {
        &self.info
    }

    /// The card's device that it belongs to.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub(crate) fn raw(&self) -> *mut sys::doca_dev_rep {
        self.raw.as_ptr()
    }
}

impl Drop for Representor {
    fn drop(&mut self) {
        // SAFETY: `raw` came from `doca_dev_rep_open`; a server owns its representor and is destroyed before it, and
        // this runs once.
        if let Err(error) = unsafe { call!(doca_dev_rep_close(self.raw.as_ptr())) } {
            log::warn!("representor {} leaked: {error}", self.info);
        }
    }
}

/// The list, destroyed with its owner.
struct List {
    first: *mut *mut sys::doca_devinfo_rep,
    count: u32,
}

impl List {
    fn create(device: &Device) -> Result<Self, Error> {
        let mut list = Self { first: ptr::null_mut(), count: 0 };
        let filter = sys::doca_devinfo_rep_filter::DOCA_DEVINFO_REP_FILTER_NET.0 as i32;
        // SAFETY: the device is open; both out parameters are valid places.
        unsafe {
            call!(doca_devinfo_rep_create_list(device.raw(), filter, &raw mut list.first, &raw mut list.count))?;
        }
        Ok(list)
    }

    fn iter(&self) -> impl Iterator<Item = *mut sys::doca_devinfo_rep> + '_ {
        // SAFETY: DOCA filled `count` entries at `first`; they live until the list is destroyed, which `self` outlives.
        (0..self.count as usize).map(|index| unsafe { *self.first.add(index) })
    }
}

impl Drop for List {
    fn drop(&mut self) {
        if self.first.is_null() {
            return;
        }
        // SAFETY: `first` came from `doca_devinfo_rep_create_list` and is destroyed once.
        if let Err(error) = unsafe { call!(doca_devinfo_rep_destroy_list(self.first)) } {
            log::warn!("representor list leaked: {error}");
        }
    }
}

fn describe(devinfo: *mut sys::doca_devinfo_rep) -> RepresentorInfo {
    let mut pci = [0 as c_char; 64];
    let mut interface = [0 as c_char; 256];
    let mut kind = sys::doca_pci_func_type::DOCA_PCI_FUNC_TYPE_VF;
    // SAFETY: `devinfo` is live (the caller holds its list); the buffers are longer than DOCA's name sizes.
    let (pci_ok, interface_ok, kind_ok) = unsafe {
        (
            call!(doca_devinfo_rep_get_pci_addr_str(devinfo, pci.as_mut_ptr())).is_ok(),
            call!(doca_devinfo_rep_get_iface_name(devinfo, interface.as_mut_ptr(), interface.len() as u32)).is_ok(),
            call!(doca_devinfo_rep_get_pci_func_type(devinfo, &raw mut kind)).is_ok(),
        )
    };
    RepresentorInfo {
        pci_address: text(pci_ok, &pci),
        interface: text(interface_ok, &interface),
        is_physical: kind_ok && kind == sys::doca_pci_func_type::DOCA_PCI_FUNC_TYPE_PF,
    }
}
