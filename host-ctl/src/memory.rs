//! Memory that a session gives the card: mappings, what the card may do with them, and where the KV cache lies in them.

use std::sync::Arc;

use block::Geometry;
use doca::{Access, Mapping};
use mailbox::attach::REGIONS_MAX;
use mailbox::layout::{AddressRange, Base, Form, Layout};

use crate::error::Error;

/// A mapping and what the card may do with it. A read-only one can be stored from and not fetched to.
#[derive(Clone, Debug)]
pub struct RegisteredMapping {
    pub mapping: Arc<Mapping>,
    pub access: Access,
}

/// A KV cache in memory.
#[derive(Clone, Debug)]
pub struct Memory {
    pub geometry: Geometry,
    pub form: Form,
    /// K then V of layer 0, then of layer 1, ...
    pub bases: Vec<Base>,
    pub regions: Vec<RegisteredMapping>,
}

impl Memory {
    /// The checks that the card will make, made here first: the message is better, and no card is troubled.
    ///
    /// # Errors
    /// What is wrong with the layout, or too many regions.
    pub fn check(&self) -> Result<Layout, Error> {
        if self.regions.len() > REGIONS_MAX {
            let what = format!("{} regions, a session has at most {REGIONS_MAX}", self.regions.len());
            return Err(Error::input("memory", what, "register larger regions"));
        }
        let range = |region: &RegisteredMapping| AddressRange {
            address: region.mapping.address(),
            bytes: region.mapping.bytes() as u64,
        };
        let ranges: Vec<AddressRange> = self.regions.iter().map(range).collect();
        Ok(Layout::new(self.geometry, self.form, self.bases.clone().into(), &ranges)?)
    }

    /// Page numbers that each chunk of a fetch or store names.
    pub fn pages_per_chunk(&self) -> usize {
        usize::from(self.geometry.chunk_tokens / self.form.page_tokens)
    }
}
