//! What opens this process's memory to the card.
//!
//! A seam: the client asks an [`Exporter`], and a device is one ([`DeviceExporter`]). Tests have another, so that the
//! client can be tested against a card that lives in the same process and speaks no DOCA.

use std::fmt;
use std::sync::Arc;

use doca::{Access, Device, Export, Mapping};
use mailbox::{PAGE_BYTES, Page};

use crate::error::Error;

/// What the card is told of exported memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exported {
    /// Address of the first byte in this process.
    pub base: u64,
    pub bytes: u64,
    /// Sensitive: whoever has it can reach the memory.
    pub blob: Vec<u8>,
}

/// Exports stay open until the exporter is dropped.
pub trait Exporter: fmt::Debug + Send {
    /// Opens a page for reading and writing.
    ///
    /// # Errors
    /// What the device answered.
    fn page(&mut self, page: &Page) -> Result<Exported, Error>;

    /// Opens a region.
    ///
    /// # Errors
    /// What the device answered.
    fn region(&mut self, mapping: &Arc<Mapping>, access: Access) -> Result<Exported, Error>;
}

/// Exports by a DOCA device of this machine.
#[derive(Debug)]
pub struct DeviceExporter {
    device: Device,
    exports: Vec<Export>,
}

impl DeviceExporter {
    pub fn new(device: Device) -> DeviceExporter {
        DeviceExporter { device, exports: Vec::new() }
    }
}

impl Exporter for DeviceExporter {
    /// The page is a file, so a second mapping of it serves: no pointer into the first is needed.
    fn page(&mut self, page: &Page) -> Result<Exported, Error> {
        let mapping = Mapping::of_file(page.file(), PAGE_BYTES, Access::ReadWrite)?;
        self.region(&Arc::new(mapping), Access::ReadWrite)
    }

    fn region(&mut self, mapping: &Arc<Mapping>, access: Access) -> Result<Exported, Error> {
        let export = Export::new(&self.device, Arc::clone(mapping), access)?;
        let exported =
            Exported { base: mapping.address(), bytes: mapping.bytes() as u64, blob: export.blob().to_vec() };
        self.exports.push(export);
        Ok(exported)
    }
}
