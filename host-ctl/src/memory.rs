//! Memory that a session gives the card: mappings, what the card may do with them, and where the KV cache lies in them.

use std::sync::Arc;

use block::Geometry;
use doca::{Access, Mapping};
use mailbox::SECTIONS_MAX;
use mailbox::attach::REGIONS_MAX;
use mailbox::layout::{AddressRange, BASES_MAX, Base, Form, Layout};

use crate::error::Error;

/// A mapping and what the card may do with it. A read-only one can be stored from and not fetched to.
#[derive(Clone, Debug)]
pub struct RegisteredMapping {
    pub mapping: Arc<Mapping>,
    pub access: Access,
}

/// Layers of equal shape, and where they lie. They have chunks and page numbers of their own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Section {
    pub geometry: Geometry,
    pub form: Form,
    /// Planes in order: K then V of layer 0, then of layer 1, ...
    pub bases: Vec<Base>,
}

/// A KV cache in memory.
#[derive(Clone, Debug)]
pub struct Memory {
    pub geometry: Geometry,
    pub form: Form,
    /// Planes in order: K then V of layer 0, then of layer 1, ...
    pub bases: Vec<Base>,
    pub regions: Vec<RegisteredMapping>,
    /// Sections after the first, which the fields above describe. They lie in the same regions, and sections may lie
    /// over each other: that no page is used by two at a time is the host's business.
    pub further: Vec<Section>,
}

impl Memory {
    /// The checks that the card will make, made here first: the message is better, and no card is troubled.
    ///
    /// # Errors
    /// What is wrong with the layout, or too many regions.
    pub fn check(&self) -> Result<Vec<Layout>, Error> {
        if self.regions.len() > REGIONS_MAX {
            let what = format!("{} regions, a session has at most {REGIONS_MAX}", self.regions.len());
            return Err(Error::input("memory", what, "register larger regions"));
        }
        let range = |region: &RegisteredMapping| AddressRange {
            address: region.mapping.address(),
            bytes: region.mapping.bytes() as u64,
        };
        let ranges: Vec<AddressRange> = self.regions.iter().map(range).collect();
        let bases = self.base_count();
        if self.sections() > SECTIONS_MAX || bases > BASES_MAX {
            let what = format!("{} sections with {bases} bases", self.sections());
            let fix = format!("register at most {SECTIONS_MAX} sections with {BASES_MAX} bases in all");
            return Err(Error::input("memory", what, fix));
        }
        let first = (&self.geometry, &self.form, &self.bases);
        let further = self.further.iter().map(|section| (&section.geometry, &section.form, &section.bases));
        let layout = |(index, (geometry, form, bases)): (usize, (&Geometry, &Form, &Vec<Base>))| {
            let layout = Layout::new(*geometry, *form, bases.clone().into(), &ranges);
            layout.map_err(|error| Error::Layout { error, section: (self.sections() > 1).then_some(index) })
        };
        std::iter::once(first).chain(further).enumerate().map(layout).collect()
    }

    /// Counts the sections.
    pub fn sections(&self) -> usize {
        1 + self.further.len()
    }

    /// Counts the bases of all sections.
    pub fn base_count(&self) -> usize {
        self.bases.len() + self.further.iter().map(|section| section.bases.len()).sum::<usize>()
    }

    /// Page numbers that each chunk of a fetch or store names, of the first section.
    pub fn pages_per_chunk(&self) -> usize {
        usize::from(self.geometry.chunk_tokens / self.form.page_tokens)
    }
}
