//! Buffers: a fixed pool per context, from which each task borrows the descriptors of its two sides.

use std::ffi::c_void;
use std::ptr::{self, NonNull};

use doca_sys as sys;

use crate::area::Registered;
use crate::error::{Code, Error};
use crate::mapping::RemoteRun;

pub(crate) struct Inventory(NonNull<sys::doca_buf_inventory>);

/// A chain of buffers, given back as a whole. Not `Drop`: an engine may own it.
#[derive(Clone, Copy)]
pub(crate) struct Chain(NonNull<sys::doca_buf>);

/// Side of a task that a chain is for: a source is full, a destination is empty.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    Source,
    Destination,
}

impl Inventory {
    pub(crate) fn new(buffers: usize) -> Result<Self, Error> {
        let mut raw = ptr::null_mut();
        // SAFETY: `raw` is a valid place for the handle.
        unsafe { call!(doca_buf_inventory_create(buffers, &raw mut raw)) }?;
        let raw = NonNull::new(raw).ok_or(Error::new("doca_buf_inventory_create", Code::UNEXPECTED))?;
        let inventory = Self(raw);
        // SAFETY: live and not started.
        unsafe { call!(doca_buf_inventory_start(raw.as_ptr())) }?;
        Ok(inventory)
    }

    /// One buffer over `bytes` bytes at `offset` of `area`.
    pub(crate) fn local(
        &self,
        area: &impl Registered,
        offset: usize,
        bytes: usize,
        side: Side,
    ) -> Result<Chain, Error> {
        if offset > area.bytes() || bytes > area.bytes() - offset {
            return Err(Error::new("doca_buf_inventory_buf_get_by_args", Code::INVALID_VALUE));
        }
        // SAFETY: range-checked; the result stays inside the area.
        let address = unsafe { area.address().add(offset) };
        self.get(area.memory().mmap(), address.cast(), bytes, side)
    }

    /// A chain over the remote side of runs, in their order.
    pub(crate) fn remote(&self, runs: &[RemoteRun<'_>], side: Side) -> Result<Chain, Error> {
        let invalid = Error::new("doca_buf_inventory_buf_get_by_args", Code::INVALID_VALUE);
        self.chain(runs.iter().rev().map(|run| {
            let address = run.remote.locate(run.offset, run.bytes).ok_or(invalid)?;
            self.get(run.remote.mmap(), address, run.bytes, side)
        }))
    }

    /// A chain over the local side of runs, neighbours joined: one buffer where the runs cover the area without a gap.
    pub(crate) fn scattered(&self, area: &impl Registered, runs: &[RemoteRun<'_>], side: Side) -> Result<Chain, Error> {
        let mut rest = runs;
        self.chain(std::iter::from_fn(|| {
            let last = rest.last()?;
            let (mut start, end) = (last.local, last.local + last.bytes);
            rest = &rest[..rest.len() - 1];
            while let Some(before) = rest.last().filter(|run| run.local + run.bytes == start) {
                start = before.local;
                rest = &rest[..rest.len() - 1];
            }
            Some(self.local(area, start, end - start, side))
        }))
    }

    /// Links buffers that come last first, so that each link is one step.
    fn chain(&self, reversed: impl Iterator<Item = Result<Chain, Error>>) -> Result<Chain, Error> {
        let mut chain: Option<Chain> = None;
        for buffer in reversed {
            let linked = buffer.and_then(|head| match chain {
                None => Ok(head),
                // SAFETY: both are heads of lists of ours with one reference each.
                Some(rest) => unsafe { call!(doca_buf_chain_list(head.raw(), rest.raw())) }
                    .map(|()| head)
                    .inspect_err(|_| self.put(head)),
            });
            match linked {
                Ok(head) => chain = Some(head),
                Err(error) => {
                    if let Some(chain) = chain {
                        self.put(chain);
                    }
                    return Err(error);
                }
            }
        }
        chain.ok_or(Error::new("doca_buf_inventory_buf_get_by_args", Code::INVALID_VALUE))
    }

    fn get(&self, mmap: *mut sys::doca_mmap, address: *mut c_void, bytes: usize, side: Side) -> Result<Chain, Error> {
        let filled = if side == Side::Source { bytes } else { 0 };
        let mut raw = ptr::null_mut();
        // SAFETY: inventory and mmap are live; DOCA checks that the range lies in the mmap; `raw` is a valid place.
        unsafe {
            call!(doca_buf_inventory_buf_get_by_args(
                self.0.as_ptr(),
                mmap,
                address,
                bytes,
                address,
                filled,
                &raw mut raw
            ))
        }?;
        NonNull::new(raw).map(Chain).ok_or(Error::new("doca_buf_inventory_buf_get_by_args", Code::UNEXPECTED))
    }

    /// Gives a chain back: dropping the head's last reference releases the whole list (DOCA Buf reference).
    pub(crate) fn put(&self, chain: Chain) {
        // SAFETY: the chain is a head with our one reference, and no task holds it (callers free the task first).
        if let Err(error) = unsafe { call!(doca_buf_dec_refcount(chain.raw(), ptr::null_mut())) } {
            log::warn!("buffer leaked: {error}");
        }
    }
}

impl Chain {
    pub(crate) fn raw(self) -> *mut sys::doca_buf {
        self.0.as_ptr()
    }

    /// Bytes that an engine wrote (first buffer of the chain).
    pub(crate) fn data_bytes(self) -> usize {
        let mut bytes = 0;
        // SAFETY: the chain is live; the getter reads it and writes a valid place.
        match unsafe { call!(doca_buf_get_data_len(self.raw(), &raw mut bytes)) } {
            Ok(()) => bytes,
            Err(_) => 0,
        }
    }
}

impl Drop for Inventory {
    fn drop(&mut self) {
        // SAFETY: live; contexts give all chains back before this (IN_USE otherwise, and then it leaks).
        let destroyed = unsafe {
            call!(doca_buf_inventory_stop(self.0.as_ptr()))
                .and_then(|()| call!(doca_buf_inventory_destroy(self.0.as_ptr())))
        };
        if let Err(error) = destroyed {
            log::warn!("buffer inventory leaked: {error}");
        }
    }
}
