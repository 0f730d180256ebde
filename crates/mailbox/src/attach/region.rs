//! Host memory, one message a region.

use super::message::{Body, at_most, flag};
use super::{AttachError, EXPORT_BYTES_MAX, PAGE_REGION, REGION_BYTES, REGIONS_MAX};
use crate::words::Word;

/// Host memory that the card may reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region<'a> {
    /// 0, 1, ... in order; [`PAGE_REGION`] for the page.
    pub index: u16,
    /// Whether the card may write it. A read-only one can be stored from and not fetched to.
    pub writable: bool,
    /// Host address of the first byte, as the export blob has it. A number, never a pointer here.
    pub base: u64,
    pub bytes: u64,
    /// The exporting device's blob. Sensitive: whoever has it can reach the memory.
    pub export: &'a [u8],
}

impl<'a> Region<'a> {
    pub(super) fn check(&self) -> Result<&Region<'a>, AttachError> {
        if self.index != PAGE_REGION {
            at_most("region index", self.index.into(), REGIONS_MAX - 1)?;
        }
        at_most("export bytes", self.export.len(), EXPORT_BYTES_MAX)?;
        // Both ends are addresses: base + bytes must not wrap.
        let (value, limit) = (self.bytes, u64::MAX - self.base);
        if value == 0 || value > limit {
            return Err(AttachError::Field { what: "region bytes", value, limit });
        }
        Ok(self)
    }

    pub(super) fn encode(&self, body: &mut [u8]) {
        self.index.put(body, 0);
        (self.export.len() as u16).put(body, 2);
        body[4] = self.writable.into();
        self.base.put(body, 8);
        self.bytes.put(body, 16);
        body[REGION_BYTES..].copy_from_slice(self.export);
    }

    pub(super) fn decode(body: Body<'a>) -> Result<Region<'a>, AttachError> {
        let export_bytes = u16::get(body.at_least(REGION_BYTES)?.bytes, 2);
        let body = body.exactly(REGION_BYTES + usize::from(export_bytes))?.zero(5, 3)?.bytes;
        let region = Region {
            index: Word::get(body, 0),
            writable: flag("writable flag", body[4])?,
            base: Word::get(body, 8),
            bytes: Word::get(body, 16),
            export: &body[REGION_BYTES..],
        };
        region.check().copied()
    }
}
