//! Representors: the host's functions, as the card sees them. Their one use here is to say whom a Comch server serves.

use std::ffi::{c_char, c_int};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::config::{Config, Role};
use crate::core::dev::{Dev, DevInfo, List, is_same_address, list, put_text};
use crate::ffi::abi::{
    DOCA_DEVINFO_REP_PCI_ADDR_SIZE, doca_dev, doca_dev_rep, doca_devinfo, doca_devinfo_rep, doca_devinfo_rep_filter,
    doca_pci_func_type,
};
use crate::ffi::{Fault, Handle, Object, Out, Room, Stamp, Text, exports};

/// One function of the host.
#[repr(C)]
pub(crate) struct RepInfo {
    stamp: Stamp,
    dev: Handle<Dev>,
    /// Index of its device.
    device: u32,
    /// Index among the representors of that device: 0 is the host's physical function, the others are virtual ones.
    index: u32,
    config: Arc<Config>,
}

// SAFETY: repr(C), and the stamp comes first.
unsafe impl Object for RepInfo {
    type Opaque = doca_devinfo_rep;
    const MAGIC: u64 = u64::from_le_bytes(*b"kvl-repi");
}

impl RepInfo {
    fn new(dev: Handle<Dev>, index: u32) -> RepInfo {
        let (device, config) = (dev.info.index(), Arc::clone(&dev.info.config));
        RepInfo { stamp: Stamp::new(RepInfo::MAGIC), dev, device, index, config }
    }

    /// Address of the function as the host sees it.
    pub(crate) fn pci_address(&self) -> String {
        self.config.host_address(self.device, self.index).unwrap_or(self.config.pci).to_string()
    }
}

/// An open representor; holds its device open.
#[repr(C)]
pub(crate) struct DevRep {
    stamp: Stamp,
    pub(crate) info: RepInfo,
    users: AtomicUsize,
}

// SAFETY: repr(C), and the stamp comes first.
unsafe impl Object for DevRep {
    type Opaque = doca_dev_rep;
    const MAGIC: u64 = u64::from_le_bytes(*b"kvl-rep\0");
}

impl DevRep {
    pub(crate) fn is_of(&self, dev: Handle<Dev>) -> bool {
        self.info.dev == dev
    }

    pub(crate) fn hold(&self) {
        self.users.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn release(&self) {
        self.users.fetch_sub(1, Ordering::Release);
    }
}

exports! {
    fn doca_devinfo_rep_create_list(
        dev: *mut doca_dev => Handle<Dev>,
        filter: c_int,
        dev_list_rep: *mut *mut *mut doca_devinfo_rep => Out<*mut *mut doca_devinfo_rep>,
        nb_devs_rep: *mut u32 => Out<u32>,
    ) {
        let filter = doca_devinfo_rep_filter(filter as u32);
        if dev.config().role == Role::Host {
            return Err(Fault::DOCA_ERROR_NOT_SUPPORTED);
        }
        let count = match filter {
            doca_devinfo_rep_filter::DOCA_DEVINFO_REP_FILTER_ALL
            | doca_devinfo_rep_filter::DOCA_DEVINFO_REP_FILTER_NET => dev.config().rep.count(),
            doca_devinfo_rep_filter::DOCA_DEVINFO_REP_FILTER_EMULATED => return Err(Fault::DOCA_ERROR_NOT_SUPPORTED),
            _ => return Err(Fault::DOCA_ERROR_INVALID_VALUE),
        };
        dev_list_rep.put(list((0..count).map(|index| RepInfo::new(dev, index))));
        nb_devs_rep.put(count);
        Ok(())
    }

    fn doca_devinfo_rep_destroy_list(dev_list_rep: *mut *mut doca_devinfo_rep => List<RepInfo>) {
        dev_list_rep.destroy();
        Ok(())
    }

    fn doca_dev_rep_open(
        devinfo: *mut doca_devinfo_rep => Handle<RepInfo>,
        dev_rep: *mut *mut doca_dev_rep => Out<*mut doca_dev_rep>,
    ) {
        devinfo.dev.hold();
        let info = RepInfo::new(devinfo.dev, devinfo.index);
        dev_rep.put(Handle::new(DevRep { stamp: Stamp::new(DevRep::MAGIC), info, users: 0.into() }).to_c());
        Ok(())
    }

    fn doca_dev_rep_close(dev: *mut doca_dev_rep => Handle<DevRep>) {
        if dev.users.load(Ordering::Acquire) > 0 {
            return Err(Fault::DOCA_ERROR_IN_USE);
        }
        dev.info.dev.release();
        // SAFETY: no server holds it, and the caller gives the handle up.
        unsafe { dev.destroy() };
        Ok(())
    }

    fn doca_dev_rep_as_devinfo(dev_rep: *mut doca_dev_rep => Handle<DevRep>)
        -> *mut doca_devinfo_rep = (ptr::null_mut())
    {
        ptr::from_ref(&dev_rep.info).cast_mut().cast()
    }

    fn doca_devinfo_rep_get_vuid(
        devinfo_rep: *const doca_devinfo_rep => Handle<RepInfo>,
        rep_vuid: *mut c_char => Room,
        size: u32,
    ) {
        put_text(rep_vuid, &format!("EMULATOR0000S{}F{}", devinfo_rep.device, devinfo_rep.index), size)
    }

    fn doca_devinfo_rep_get_pci_addr_str(
        devinfo_rep: *const doca_devinfo_rep => Handle<RepInfo>,
        pci_addr_str: *mut c_char => Room,
    ) {
        put_text(pci_addr_str, &devinfo_rep.pci_address(), DOCA_DEVINFO_REP_PCI_ADDR_SIZE)
    }

    fn doca_devinfo_rep_get_pci_func_type(
        devinfo_rep: *const doca_devinfo_rep => Handle<RepInfo>,
        pci_func_type: *mut doca_pci_func_type => Out<doca_pci_func_type>,
    ) {
        pci_func_type.put(match devinfo_rep.index {
            0 => doca_pci_func_type::DOCA_PCI_FUNC_TYPE_PF,
            _ => doca_pci_func_type::DOCA_PCI_FUNC_TYPE_VF,
        });
        Ok(())
    }

    fn doca_devinfo_rep_get_is_hotplug(
        devinfo_rep: *const doca_devinfo_rep => Handle<RepInfo>,
        is_hotplug: *mut u8 => Out<u8>,
    ) {
        let _ = devinfo_rep;
        is_hotplug.put(0);
        Ok(())
    }

    fn doca_devinfo_rep_get_iface_name(
        devinfo_rep: *const doca_devinfo_rep => Handle<RepInfo>,
        iface_name: *mut c_char => Room,
        size: u32,
    ) {
        let device = devinfo_rep.device;
        let name = match devinfo_rep.index.checked_sub(1) {
            None => format!("pf{device}hpf"),
            Some(virtual_function) => format!("pf{device}vf{virtual_function}"),
        };
        put_text(iface_name, &name, size)
    }

    fn doca_devinfo_rep_is_equal_pci_addr(
        devinfo_rep: *const doca_devinfo_rep => Handle<RepInfo>,
        pci_addr_str: *const c_char => Text,
        is_equal: *mut u8 => Out<u8>,
    ) {
        is_equal.put(u8::from(is_same_address(&devinfo_rep.pci_address(), &pci_addr_str.0)?));
        Ok(())
    }

    fn doca_devinfo_rep_cap_is_filter_all_supported(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        filter_all_supported: *mut u8 => Out<u8>,
    ) {
        filter_all_supported.put(u8::from(devinfo.config.role != Role::Host));
        Ok(())
    }

    fn doca_devinfo_rep_cap_is_filter_net_supported(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        filter_net_supported: *mut u8 => Out<u8>,
    ) {
        filter_net_supported.put(u8::from(devinfo.config.role != Role::Host));
        Ok(())
    }

    fn doca_devinfo_rep_cap_is_filter_emulated_supported(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        filter_emulated_supported: *mut u8 => Out<u8>,
    ) {
        let _ = devinfo;
        filter_emulated_supported.put(0);
        Ok(())
    }
}
