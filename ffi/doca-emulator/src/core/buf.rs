//! `doca_buf`: a window into a region, possibly the head of a list.
//!
//! Bufs belong to one thread at a time; only their slab (see [`crate::core::inventory`]) is theirs. The reference count
//! of a list is its head's; the others keep 1. A task in flight holds its two heads, so that giving them back fails
//! with `IN_USE` instead of pulling the memory away from under an engine.

use std::cell::{Cell, RefCell};
use std::ffi::c_void;
use std::iter;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::core::inventory::Inventory;
use crate::ffi::abi::doca_buf;
use crate::ffi::{Answer, Fault, Handle, Object, Out, Stamp, exports};
use crate::memory::region::MmapRegion;
use crate::tools::debug;

/// Address and length.
type Span = (*mut c_void, usize);

#[repr(C)]
pub(crate) struct Buf {
    stamp: Stamp,
    pub(crate) inventory: Cell<Option<Handle<Inventory>>>,
    /// Its region, while the buf is out of its inventory.
    pub(crate) region: RefCell<Option<Arc<MmapRegion>>>,
    head: Cell<*mut c_void>,
    len: Cell<usize>,
    data: Cell<*mut c_void>,
    data_len: Cell<usize>,
    /// 0: in the inventory.
    refcount: Cell<u16>,
    /// Tasks in flight that this buf is the source or destination head of.
    flights: Cell<u32>,
    is_follower: Cell<bool>,
    /// The next in the list; in the inventory, the next free one.
    pub(crate) next: Cell<Option<Handle<Buf>>>,
}

// SAFETY: repr(C), and the stamp comes first.
unsafe impl Object for Buf {
    type Opaque = doca_buf;
    const MAGIC: u64 = u64::from_le_bytes(*b"kvl-buf\0");
}

impl Buf {
    pub(crate) fn vacant() -> Buf {
        Buf {
            stamp: Stamp::new(Buf::MAGIC),
            inventory: Cell::new(None),
            region: RefCell::new(None),
            head: Cell::new(ptr::null_mut()),
            len: Cell::new(0),
            data: Cell::new(ptr::null_mut()),
            data_len: Cell::new(0),
            refcount: Cell::new(0),
            flights: Cell::new(0),
            is_follower: Cell::new(false),
            next: Cell::new(None),
        }
    }

    /// Brings a vacant buf to life.
    pub(crate) fn point(&self, region: Arc<MmapRegion>, head: Span, data: Span) {
        region.bufs.fetch_add(1, Ordering::Relaxed);
        debug::count_bufs(1);
        *self.region.borrow_mut() = Some(region);
        self.head.set(head.0);
        self.len.set(head.1);
        self.data.set(data.0);
        self.data_len.set(data.1);
        self.refcount.set(1);
        self.is_follower.set(false);
        self.next.set(None);
    }

    /// The same window into the same region, for a duplicate.
    pub(crate) fn shape(&self) -> Option<(Arc<MmapRegion>, Span, Span)> {
        let region = self.region.borrow().clone()?;
        Some((region, (self.head.get(), self.len.get()), (self.data.get(), self.data_len.get())))
    }

    pub(crate) fn follow_with(&self, next: Handle<Buf>) {
        self.next.set(Some(next));
        next.is_follower.set(true);
    }

    pub(crate) fn is_follower(&self) -> bool {
        self.is_follower.get()
    }

    pub(crate) fn hold(&self) {
        self.flights.set(self.flights.get() + 1);
    }

    pub(crate) fn release(&self) {
        self.flights.set(self.flights.get().saturating_sub(1));
    }

    /// The bytes that a source shows: address and length.
    pub(crate) fn filled(&self) -> (u64, usize) {
        (self.data.get().expose_provenance() as u64, self.data_len.get())
    }

    /// The bytes that a destination offers: from the end of its data to its own end.
    pub(crate) fn vacant_tail(&self) -> (u64, usize) {
        let before = self.data.get().addr() - self.head.get().addr() + self.data_len.get();
        (self.data.get().wrapping_byte_add(self.data_len.get()).expose_provenance() as u64, self.len.get() - before)
    }

    fn is_alive(&self) -> bool {
        self.refcount.get() > 0
    }

    fn set_data(&self, data: *mut c_void, data_len: usize) -> Answer {
        let offset = data.addr().checked_sub(self.head.get().addr()).ok_or(Fault::DOCA_ERROR_INVALID_VALUE)?;
        if offset > self.len.get() || data_len > self.len.get() - offset {
            return Err(Fault::DOCA_ERROR_INVALID_VALUE);
        }
        // from the head, so that the pointer may reach all of the buf whatever the caller's may
        self.data.set(self.head.get().wrapping_byte_add(offset));
        self.data_len.set(data_len);
        Ok(())
    }
}

/// The elements of a list from `head` on.
pub(crate) fn list(head: Handle<Buf>) -> impl Iterator<Item = Handle<Buf>> {
    iter::successors(Some(head), |buf| buf.next.get())
}

/// Lengthens the data of a destination list by what an engine wrote, front to back.
pub(crate) fn append(head: Handle<Buf>, mut bytes: usize) {
    for buf in list(head) {
        let taken = bytes.min(buf.vacant_tail().1);
        buf.data_len.set(buf.data_len.get() + taken);
        bytes -= taken;
    }
}

fn last(head: Handle<Buf>) -> Handle<Buf> {
    list(head).last().unwrap_or(head)
}

/// Heads that no task uses may be linked and cut.
fn movable(head: Handle<Buf>) -> Answer {
    if !head.is_alive() {
        Err(Fault::DOCA_ERROR_BAD_STATE)
    } else if head.is_follower() || head.flights.get() > 0 {
        Err(Fault::DOCA_ERROR_NOT_PERMITTED)
    } else {
        Ok(())
    }
}

fn chain(list1: Handle<Buf>, tail: Handle<Buf>, list2: Handle<Buf>) -> Answer {
    movable(list1)?;
    movable(list2)?;
    if list1 == list2 || tail.next.get().is_some() {
        return Err(Fault::DOCA_ERROR_INVALID_VALUE);
    }
    if list2.refcount.get() != 1 {
        return Err(Fault::DOCA_ERROR_NOT_PERMITTED);
    }
    tail.follow_with(list2);
    Ok(())
}

fn drop_reference(buf: Handle<Buf>, before: Option<Out<u16>>) -> Answer {
    let count = buf.refcount.get();
    match count {
        0 => return Err(Fault::DOCA_ERROR_BAD_STATE),
        _ if buf.is_follower() => return Err(Fault::DOCA_ERROR_NOT_PERMITTED),
        1 if buf.flights.get() > 0 => return Err(Fault::DOCA_ERROR_IN_USE),
        1 => {
            let mut rest = Some(buf);
            while let Some(element) = rest {
                rest = element.next.get();
                element.refcount.set(0);
                element.is_follower.set(false);
                if let Some(region) = element.region.borrow_mut().take() {
                    region.bufs.fetch_sub(1, Ordering::Release);
                    debug::count_bufs(-1);
                }
                if let Some(inventory) = element.inventory.get() {
                    inventory.take_back(element);
                }
            }
        }
        _ => buf.refcount.set(count - 1),
    }
    if let Some(before) = before {
        before.put(count);
    }
    Ok(())
}

exports! {
    fn doca_buf_inc_refcount(buf: *mut doca_buf => Handle<Buf>, refcount: *mut u16 => Option<Out<u16>>) {
        let count = buf.refcount.get();
        if count == 0 {
            return Err(Fault::DOCA_ERROR_BAD_STATE);
        }
        if buf.is_follower() {
            return Err(Fault::DOCA_ERROR_NOT_PERMITTED);
        }
        buf.refcount.set(count.checked_add(1).ok_or(Fault::DOCA_ERROR_TOO_BIG)?);
        if let Some(before) = refcount {
            before.put(count);
        }
        Ok(())
    }

    fn doca_buf_dec_refcount(buf: *mut doca_buf => Handle<Buf>, refcount: *mut u16 => Option<Out<u16>>) {
        drop_reference(buf, refcount)
    }

    fn doca_buf_get_refcount(buf: *const doca_buf => Handle<Buf>, refcount: *mut u16 => Out<u16>) {
        refcount.put(buf.refcount.get());
        Ok(())
    }

    fn doca_buf_get_head(buf: *const doca_buf => Handle<Buf>, head: *mut *mut c_void => Out<*mut c_void>) {
        head.put(buf.head.get());
        Ok(())
    }

    fn doca_buf_get_len(buf: *const doca_buf => Handle<Buf>, len: *mut usize => Out<usize>) {
        len.put(buf.len.get());
        Ok(())
    }

    fn doca_buf_get_data(buf: *const doca_buf => Handle<Buf>, data: *mut *mut c_void => Out<*mut c_void>) {
        data.put(buf.data.get());
        Ok(())
    }

    fn doca_buf_get_data_len(buf: *const doca_buf => Handle<Buf>, data_len: *mut usize => Out<usize>) {
        data_len.put(buf.data_len.get());
        Ok(())
    }

    fn doca_buf_set_data(buf: *mut doca_buf => Handle<Buf>, data: *mut c_void, data_len: usize) {
        buf.set_data(data, data_len)
    }

    fn doca_buf_set_data_len(buf: *mut doca_buf => Handle<Buf>, data_len: usize) {
        buf.set_data(buf.data.get(), data_len)
    }

    fn doca_buf_reset_data_len(buf: *mut doca_buf => Handle<Buf>) {
        buf.data_len.set(0);
        Ok(())
    }

    fn doca_buf_get_next_in_list(
        buf: *mut doca_buf => Handle<Buf>,
        next_buf: *mut *mut doca_buf => Out<*mut doca_buf>,
    ) {
        next_buf.put(buf.next.get().map_or(ptr::null_mut(), Handle::to_c));
        Ok(())
    }

    fn doca_buf_get_last_in_list(
        buf: *mut doca_buf => Handle<Buf>,
        last_buf: *mut *mut doca_buf => Out<*mut doca_buf>,
    ) {
        last_buf.put(last(buf).to_c());
        Ok(())
    }

    fn doca_buf_is_last_in_list(buf: *const doca_buf => Handle<Buf>, is_last: *mut u8 => Out<u8>) {
        is_last.put(u8::from(buf.next.get().is_none()));
        Ok(())
    }

    fn doca_buf_is_first_in_list(buf: *const doca_buf => Handle<Buf>, is_first: *mut u8 => Out<u8>) {
        is_first.put(u8::from(!buf.is_follower()));
        Ok(())
    }

    fn doca_buf_is_in_list(buf: *const doca_buf => Handle<Buf>, is_in_list: *mut u8 => Out<u8>) {
        is_in_list.put(u8::from(buf.is_follower() || buf.next.get().is_some()));
        Ok(())
    }

    fn doca_buf_get_list_len(buf: *const doca_buf => Handle<Buf>, num_elements: *mut u32 => Out<u32>) {
        if buf.is_follower() {
            return Err(Fault::DOCA_ERROR_NOT_PERMITTED);
        }
        num_elements.put(list(buf).count() as u32);
        Ok(())
    }

    fn doca_buf_chain_list(list1: *mut doca_buf => Handle<Buf>, list2: *mut doca_buf => Handle<Buf>) {
        chain(list1, last(list1), list2)
    }

    fn doca_buf_chain_list_tail(
        list1_head: *mut doca_buf => Handle<Buf>,
        list1_tail: *mut doca_buf => Handle<Buf>,
        list2: *mut doca_buf => Handle<Buf>,
    ) {
        chain(list1_head, list1_tail, list2)
    }

    fn doca_buf_unchain_list(list1: *mut doca_buf => Handle<Buf>, list2: *mut doca_buf => Handle<Buf>) {
        movable(list1)?;
        let before = list(list1).find(|buf| buf.next.get() == Some(list2)).ok_or(Fault::DOCA_ERROR_INVALID_VALUE)?;
        before.next.set(None);
        list2.is_follower.set(false);
        Ok(())
    }
}
