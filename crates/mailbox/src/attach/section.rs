//! One more section of the cache: its layers are of another shape than those before, and its layout follows.

use block::{GEOMETRY_BYTES, Geometry};

use super::message::{Body, at_most};
use super::{AttachError, SECTION_BYTES};
use crate::limits::SECTIONS_MAX;
use crate::words::Word;

/// Shape of a section after the first, which the hello describes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SectionShape {
    /// 1, 2, ... in order.
    pub index: u16,
    pub geometry: Geometry,
}

impl SectionShape {
    pub(super) fn check(&self) -> Result<&SectionShape, AttachError> {
        at_most("section", self.index.into(), SECTIONS_MAX - 1)?;
        if self.index == 0 {
            return Err(AttachError::Field { what: "section", value: 0, limit: SECTIONS_MAX as u64 - 1 });
        }
        self.geometry.check().map_err(AttachError::Geometry)?;
        Ok(self)
    }

    pub(super) fn encode(&self, body: &mut [u8]) {
        self.index.put(body, 0);
        self.geometry.encode().put(body, 4);
    }

    pub(super) fn decode(body: Body<'_>) -> Result<SectionShape, AttachError> {
        let body = body.exactly(SECTION_BYTES)?.zero(2, 2)?.bytes;
        let geometry: [u8; GEOMETRY_BYTES] = Word::get(body, 4);
        let geometry = Geometry::decode(&geometry).map_err(AttachError::Geometry)?;
        SectionShape { index: Word::get(body, 0), geometry }.check().copied()
    }
}

const _: () = assert!(4 + GEOMETRY_BYTES == SECTION_BYTES);
