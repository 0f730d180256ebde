//! `doca_buf_inventory`: a fixed stock of bufs. All memory is taken at create and expand; getting and giving back a buf
//! is a push or pop on a list threaded through all of them.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::ptr::NonNull;

use crate::core::buf::{Buf, list};
use crate::core::mmap::Mmap;
use crate::ffi::abi::{doca_buf, doca_buf_inventory, doca_data, doca_mmap};
use crate::ffi::{Answer, Fault, Handle, Object, Out, Stamp, exports};

#[repr(C)]
pub(crate) struct Inventory {
    stamp: Stamp,
    stock: RefCell<Vec<Bufs>>,
    total: Cell<u32>,
    free: Cell<u32>,
    first_free: Cell<Option<Handle<Buf>>>,
    is_started: Cell<bool>,
    user_data: Cell<doca_data>,
}

// SAFETY: repr(C), and the stamp comes first.
unsafe impl Object for Inventory {
    type Opaque = doca_buf_inventory;
    const MAGIC: u64 = u64::from_le_bytes(*b"kvl-inv\0");
}

/// Bufs that never move: handles point into it.
struct Bufs(NonNull<[Buf]>);

impl Bufs {
    fn new(count: usize) -> Bufs {
        let bufs: Box<[Buf]> = (0..count).map(|_| Buf::vacant()).collect();
        Bufs(NonNull::from(Box::leak(bufs)))
    }

    fn handles(&self) -> impl Iterator<Item = Handle<Buf>> {
        let first = self.0.cast::<Buf>();
        // SAFETY: every index is inside the slab.
        (0..self.0.len()).map(move |index| Handle::of(unsafe { first.add(index) }))
    }
}

impl Drop for Bufs {
    fn drop(&mut self) {
        // SAFETY: the box of `new`. An inventory is only destroyed with all its bufs home, so no handle is in use.
        drop(unsafe { Box::from_raw(self.0.as_ptr()) });
    }
}

impl Inventory {
    fn new() -> Inventory {
        Inventory {
            stamp: Stamp::new(Inventory::MAGIC),
            stock: RefCell::new(Vec::new()),
            total: Cell::new(0),
            free: Cell::new(0),
            first_free: Cell::new(None),
            is_started: Cell::new(false),
            user_data: Cell::new(doca_data { u64_: 0 }),
        }
    }

    fn take(&self) -> Result<Handle<Buf>, Fault> {
        let buf = self.first_free.get().ok_or(Fault::DOCA_ERROR_NO_MEMORY)?;
        self.first_free.set(buf.next.take());
        self.free.set(self.free.get() - 1);
        Ok(buf)
    }

    pub(crate) fn take_back(&self, buf: Handle<Buf>) {
        buf.next.set(self.first_free.replace(Some(buf)));
        self.free.set(self.free.get() + 1);
    }

    fn check_started(&self) -> Answer {
        if self.is_started.get() { Ok(()) } else { Err(Fault::DOCA_ERROR_BAD_STATE) }
    }
}

/// Adds `count` bufs.
fn stock(inventory: Handle<Inventory>, count: usize) -> Answer {
    let added = u32::try_from(count).ok().filter(|count| *count > 0).ok_or(Fault::DOCA_ERROR_INVALID_VALUE)?;
    let total = inventory.total.get().checked_add(added).ok_or(Fault::DOCA_ERROR_INVALID_VALUE)?;
    let slab = Bufs::new(count);
    for buf in slab.handles() {
        buf.inventory.set(Some(inventory));
        inventory.take_back(buf);
    }
    inventory.stock.borrow_mut().push(slab);
    inventory.total.set(total);
    Ok(())
}

/// Copies a whole list into bufs of `inventory`; gives back what it took if those run out.
fn duplicate(inventory: Handle<Inventory>, source: Handle<Buf>) -> Result<Handle<Buf>, Fault> {
    if (inventory.free.get() as usize) < list(source).count() {
        return Err(Fault::DOCA_ERROR_NO_MEMORY);
    }
    let mut first: Option<Handle<Buf>> = None;
    let mut previous: Option<Handle<Buf>> = None;
    for element in list(source) {
        let (region, head, data) = element.shape().ok_or(Fault::DOCA_ERROR_BAD_STATE)?;
        let copy = inventory.take()?;
        copy.point(region, head, data);
        if let Some(previous) = previous {
            previous.follow_with(copy);
        }
        first = first.or(Some(copy));
        previous = Some(copy);
    }
    first.ok_or(Fault::DOCA_ERROR_UNEXPECTED)
}

exports! {
    fn doca_buf_inventory_create(
        num_elements: usize,
        inventory: *mut *mut doca_buf_inventory => Out<*mut doca_buf_inventory>,
    ) {
        let created = Handle::new(Inventory::new());
        if let Err(fault) = stock(created, num_elements) {
            // SAFETY: made two lines ago, and nobody was told.
            unsafe { created.destroy() };
            return Err(fault);
        }
        inventory.put(created.to_c());
        Ok(())
    }

    fn doca_buf_inventory_destroy(inventory: *mut doca_buf_inventory => Handle<Inventory>) {
        if inventory.free.get() != inventory.total.get() {
            return Err(Fault::DOCA_ERROR_IN_USE);
        }
        // SAFETY: all bufs are home, and the caller gives the handle up.
        unsafe { inventory.destroy() };
        Ok(())
    }

    fn doca_buf_inventory_start(inventory: *mut doca_buf_inventory => Handle<Inventory>) {
        inventory.is_started.set(true);
        Ok(())
    }

    fn doca_buf_inventory_stop(inventory: *mut doca_buf_inventory => Handle<Inventory>) {
        inventory.is_started.set(false);
        Ok(())
    }

    fn doca_buf_inventory_expand(inventory: *mut doca_buf_inventory => Handle<Inventory>, num_elements: u32) {
        inventory.check_started()?;
        stock(inventory, num_elements as usize)
    }

    fn doca_buf_inventory_buf_get_by_args(
        inventory: *mut doca_buf_inventory => Handle<Inventory>,
        mmap: *mut doca_mmap => Handle<Mmap>,
        addr: *mut c_void,
        len: usize,
        data: *mut c_void,
        data_len: usize,
        buf: *mut *mut doca_buf => Out<*mut doca_buf>,
    ) {
        inventory.check_started()?;
        let region = mmap.region()?;
        let head = addr.expose_provenance() as u64;
        let offset = data.addr().checked_sub(addr.addr()).ok_or(Fault::DOCA_ERROR_INVALID_VALUE)?;
        if !region.contains(head, len) || offset > len || data_len > len - offset {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        let taken = inventory.take()?;
        taken.point(region, (addr, len), (data, data_len));
        buf.put(taken.to_c());
        Ok(())
    }

    fn doca_buf_inventory_buf_dup(
        inventory: *mut doca_buf_inventory => Handle<Inventory>,
        src_buf: *const doca_buf => Handle<Buf>,
        dst_buf: *mut *mut doca_buf => Out<*mut doca_buf>,
    ) {
        inventory.check_started()?;
        if src_buf.is_follower() {
            return Err(Fault::DOCA_ERROR_NOT_PERMITTED);
        }
        dst_buf.put(duplicate(inventory, src_buf)?.to_c());
        Ok(())
    }

    fn doca_buf_inventory_get_num_elements(
        inventory: *const doca_buf_inventory => Handle<Inventory>,
        num_of_elements: *mut u32 => Out<u32>,
    ) {
        num_of_elements.put(inventory.total.get());
        Ok(())
    }

    fn doca_buf_inventory_get_num_free_elements(
        inventory: *const doca_buf_inventory => Handle<Inventory>,
        num_of_free_elements: *mut u32 => Out<u32>,
    ) {
        num_of_free_elements.put(inventory.free.get());
        Ok(())
    }

    fn doca_buf_inventory_set_user_data(
        inventory: *mut doca_buf_inventory => Handle<Inventory>,
        user_data: doca_data,
    ) {
        inventory.user_data.set(user_data);
        Ok(())
    }

    fn doca_buf_inventory_get_user_data(
        inventory: *const doca_buf_inventory => Handle<Inventory>,
        user_data: *mut doca_data => Out<doca_data>,
    ) {
        user_data.put(inventory.user_data.get());
        Ok(())
    }
}
