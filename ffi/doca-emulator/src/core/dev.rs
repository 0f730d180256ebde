//! Devices: the list, its entries, and an open device with its engines.

use std::ffi::c_char;
use std::ptr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Once};

use crate::config::{self, Config, TaskKind, buf_bytes_max};
use crate::core::chance::{Chance, FaultPlan, Flips};
use crate::core::library::Engines;
use crate::ffi::abi::{doca_dev, doca_devinfo, doca_pci_func_type};
use crate::ffi::{Answer, Enter, Fault, Handle, Object, Out, Room, Stamp, Text, complain, exports};
use crate::tools::debug;

/// One function of the card, as the list shows it.
#[repr(C)]
pub(crate) struct DevInfo {
    stamp: Stamp,
    /// Index in the list.
    index: u32,
    pub(crate) config: Arc<Config>,
}

// SAFETY: repr(C), and the stamp comes first.
unsafe impl Object for DevInfo {
    type Opaque = doca_devinfo;
    const MAGIC: u64 = u64::from_le_bytes(*b"kvl-info");
}

impl DevInfo {
    fn new(index: u32, config: Arc<Config>) -> DevInfo {
        DevInfo { stamp: Stamp::new(DevInfo::MAGIC), index, config }
    }

    pub(crate) fn pci_address(&self) -> String {
        self.config.device_address(self.index).unwrap_or(self.config.pci).to_string()
    }

    pub(crate) fn index(&self) -> u32 {
        self.index
    }

    pub(crate) fn buf_bytes_max(&self, kind: TaskKind) -> Result<u64, Fault> {
        buf_bytes_max(&self.config, kind).ok_or(Fault::DOCA_ERROR_NOT_SUPPORTED)
    }
}

/// An open device.
#[repr(C)]
pub(crate) struct Dev {
    stamp: Stamp,
    /// Never used twice in a process: memory is registered with a device by this.
    pub(crate) id: u64,
    pub(crate) info: DevInfo,
    pub(crate) chance: Chance,
    pub(crate) flips: Flips,
    pub(crate) plan: FaultPlan,
    /// Tasks that it was given.
    tasks: AtomicU64,
    pub(crate) engines: Box<dyn Engines>,
    /// Contexts and memory maps that hold the device open.
    users: AtomicUsize,
}

// SAFETY: repr(C), and the stamp comes first.
unsafe impl Object for Dev {
    type Opaque = doca_dev;
    const MAGIC: u64 = u64::from_le_bytes(*b"kvl-dev\0");
}

impl Dev {
    pub(crate) fn new(info: &DevInfo, seed: u64, engines: impl Engines + 'static) -> Dev {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        Dev {
            stamp: Stamp::new(Dev::MAGIC),
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            info: DevInfo::new(info.index, Arc::clone(&info.config)),
            chance: Chance::new(seed),
            flips: Flips::default(),
            plan: FaultPlan::default(),
            tasks: AtomicU64::new(0),
            engines: Box::new(engines),
            users: AtomicUsize::new(0),
        }
    }

    pub(crate) fn config(&self) -> &Config {
        &self.info.config
    }

    /// Counts a task; true if the device is lost, and the task with it.
    pub(crate) fn loses_task(&self) -> bool {
        let limit = self.config().lose_after;
        limit > 0 && self.tasks.fetch_add(1, Ordering::Relaxed) >= limit
    }

    pub(crate) fn is_lost(&self) -> bool {
        let limit = self.config().lose_after;
        limit > 0 && self.tasks.load(Ordering::Relaxed) > limit
    }

    pub(crate) fn hold(&self) {
        self.users.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn release(&self) {
        self.users.fetch_sub(1, Ordering::Release);
    }
}

/// Compares a full address with text whose domain may be left out, as everywhere; not an address: `INVALID_VALUE`.
pub(crate) fn is_same_address(ours: &str, text: &str) -> Result<bool, Fault> {
    if !is_pci_address(text) {
        return Err(Fault::DOCA_ERROR_INVALID_VALUE);
    }
    let theirs = text.to_ascii_lowercase();
    Ok(ours == theirs || ours.strip_prefix("0000:") == Some(&theirs))
}

fn is_pci_address(text: &str) -> bool {
    let shape = |pattern: &str| {
        text.len() == pattern.len()
            && text.bytes().zip(pattern.bytes()).all(|(c, p)| if p == b'x' { c.is_ascii_hexdigit() } else { c == p })
    };
    shape("xxxx:xx:xx.x") || shape("xx:xx.x")
}

exports! {
    fn doca_devinfo_create_list(
        dev_list: *mut *mut *mut doca_devinfo => Out<*mut *mut doca_devinfo>,
        nb_devs: *mut u32 => Out<u32>,
    ) {
        let config = config::current().map_err(|err| {
            complain(&err.to_string());
            Fault::DOCA_ERROR_INITIALIZATION
        })?;
        if config.debug {
            debug::switch_on();
        }
        if cfg!(feature = "announce") && !config.quiet {
            announce(&config);
        }
        dev_list.put(list((0..config.devices).map(|index| DevInfo::new(index, Arc::clone(&config)))));
        nb_devs.put(config.devices);
        Ok(())
    }

    fn doca_devinfo_destroy_list(dev_list: *mut *mut doca_devinfo => List<DevInfo>) {
        dev_list.destroy();
        Ok(())
    }

    // Null is fine: the SDK's own programs close what they closed before.
    fn doca_dev_close(dev: *mut doca_dev => Option<Handle<Dev>>) {
        let Some(dev) = dev else { return Ok(()) };
        if dev.users.load(Ordering::Acquire) > 0 {
            return Err(Fault::DOCA_ERROR_IN_USE);
        }
        // SAFETY: nothing holds the device, and the caller gives its handle up. Dropping it joins the engine threads.
        unsafe { dev.destroy() };
        Ok(())
    }

    fn doca_dev_as_devinfo(dev: *const doca_dev => Handle<Dev>) -> *mut doca_devinfo = (ptr::null_mut()) {
        ptr::from_ref(&dev.info).cast_mut().cast()
    }

    fn doca_devinfo_get_pci_addr_str(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        pci_addr_str: *mut c_char => Room,
    ) {
        put_text(pci_addr_str, &devinfo.pci_address(), crate::ffi::abi::DOCA_DEVINFO_PCI_ADDR_SIZE)
    }

    fn doca_devinfo_is_equal_pci_addr(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        pci_addr_str: *const c_char => Text,
        is_equal: *mut u8 => Out<u8>,
    ) {
        is_equal.put(u8::from(is_same_address(&devinfo.pci_address(), &pci_addr_str.0)?));
        Ok(())
    }

    fn doca_devinfo_get_iface_name(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        iface_name: *mut c_char => Room,
        size: u32,
    ) {
        put_text(iface_name, &format!("p{}", devinfo.index), size)
    }

    fn doca_devinfo_get_ibdev_name(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        ibdev_name: *mut c_char => Room,
        size: u32,
    ) {
        put_text(ibdev_name, &format!("mlx5_{}", devinfo.index), size)
    }

    fn doca_devinfo_get_mac_addr(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        mac_addr: *mut u8 => Room,
        size: u32,
    ) {
        // locally administered, so nobody's
        mac_addr.put(&[0x02, 0, 0, 0x03, 0, devinfo.index as u8], size as usize)
    }

    fn doca_devinfo_get_ipv4_addr(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        ipv4_addr: *mut u8 => Room,
        size: u32,
    ) {
        let _ = (devinfo, ipv4_addr, size);
        Err(Fault::DOCA_ERROR_NOT_FOUND)
    }

    fn doca_devinfo_get_ipv6_addr(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        ipv6_addr: *mut u8 => Room,
        size: u32,
    ) {
        let _ = (devinfo, ipv6_addr, size);
        Err(Fault::DOCA_ERROR_NOT_FOUND)
    }

    fn doca_devinfo_get_pci_func_type(
        devinfo: *const doca_devinfo => Handle<DevInfo>,
        pci_func_type: *mut doca_pci_func_type => Out<doca_pci_func_type>,
    ) {
        let _ = devinfo;
        pci_func_type.put(doca_pci_func_type::DOCA_PCI_FUNC_TYPE_PF);
        Ok(())
    }

    fn doca_devinfo_get_sf_index(devinfo: *const doca_devinfo => Handle<DevInfo>, sf_index: *mut u32 => Out<u32>) {
        let _ = (devinfo, sf_index);
        Err(Fault::DOCA_ERROR_NOT_SUPPORTED)
    }
}

fn announce(config: &Config) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        complain(&format!("no card: everything is software, profile {:?}; quiet=1 silences this", config.profile));
    });
}

pub(crate) fn put_text(room: Room, text: &str, size: u32) -> Answer {
    let mut bytes = text.as_bytes().to_vec();
    bytes.push(0);
    room.put(&bytes, size as usize)
}

/// Moves entries out to C as a list that ends with a null, which is how destroy finds its length.
pub(crate) fn list<T: Object>(entries: impl Iterator<Item = T>) -> *mut *mut T::Opaque {
    let list: Box<[*mut T::Opaque]> = entries.map(|entry| Handle::new(entry).to_c()).chain([ptr::null_mut()]).collect();
    Box::leak(list).as_mut_ptr()
}

/// A device list on its way back.
pub(crate) struct List<T: Object>(Vec<Handle<T>>, Box<[*mut T::Opaque]>);

impl<T: Object<Opaque = O>, O> Enter<*mut *mut O> for List<T> {
    unsafe fn enter(raw: *mut *mut O) -> Result<Self, Fault> {
        if raw.is_null() {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        let mut entries = Vec::new();
        loop {
            // SAFETY: the caller passes a list of `list`, which ends with a null that stops us.
            let entry = unsafe { *raw.add(entries.len()) };
            if entry.is_null() {
                break;
            }
            // SAFETY: entries of such a list point to what `list` leaked.
            entries.push(unsafe { Handle::from_c(entry) }?);
        }
        // SAFETY: the box that `list` leaked: the entries and their null; the caller gives it up.
        let list = unsafe { Box::from_raw(ptr::slice_from_raw_parts_mut(raw, entries.len() + 1)) };
        Ok(List(entries, list))
    }
}

impl<T: Object> List<T> {
    pub(crate) fn destroy(self) {
        for entry in self.0 {
            // SAFETY: made by `Handle::new` in `list`, and the caller gives the list with its entries up.
            unsafe { entry.destroy() };
        }
        drop(self.1);
    }
}
