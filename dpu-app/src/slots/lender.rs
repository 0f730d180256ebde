//! The memory of the tier T0 on a card: registered, so that engines read a block from where it lies.
//!
//! The store fills it and says where a block lies (`store::Outcome::Lies`); the fetch worker then borrows that run for
//! the slot (`doca::Loan`), until the slot is settled. Twice held: the chunk's open seat keeps the tier from giving its
//! pages to another chunk, and the loan's count on the pages themselves would stop the process if it did.

use std::cell::RefCell;
use std::io;

use doca::{Area, Device, Slab};
use store::{OpenError, Readable};

use crate::config::{Config, store_limits};

/// A [`Slab`], as a store sees it.
#[derive(Debug)]
struct Lender(Slab);

impl store::TierSlab for Lender {
    fn write(&self, at: usize, bytes: &[u8]) {
        self.0.write(at, bytes);
    }

    fn read(&self, at: usize, into: &mut [u8]) {
        into.copy_from_slice(&self.0.lend(at, into.len()));
    }
}

/// A store, and the memory that it lends from, if it has any.
pub(crate) type Opened = (Box<dyn Readable<Area>>, Option<Slab>);

/// Opens the store that the config names. With a tier in memory there is a slab, from which the store lends.
///
/// # Errors
/// The operator can mend each; the message says how.
pub fn open_store(config: &Config, device: &Device) -> Result<Opened, OpenError> {
    let slab = RefCell::new(None);
    let allocate = |pages: usize, page_bytes: usize| -> io::Result<Box<dyn store::TierSlab>> {
        let taken = Slab::allocate(device, pages, page_bytes).map_err(|error| io::Error::other(error.to_string()))?;
        slab.replace(Some(taken.clone()));
        Ok(Box::new(Lender(taken)))
    };
    let open = if config.require_store { store::open_with } else { store::open_or_wait };
    let store = open(config.store.reveal(), &store_limits(config), &config.namespaces, Some(&allocate))?;
    Ok((store, slab.into_inner()))
}
