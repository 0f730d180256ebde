//! The layout, in as many messages as its bases need.

use std::fmt;

use super::message::{Body, at_most};
use super::{AttachError, BASE_BYTES, BASES_PER_MESSAGE, LAYOUT_BYTES};
use crate::layout::{BASES_MAX, Base, Form, Order};
use crate::words::Word;

/// Some of the layout's bases, from `first` on. The form is the same in each message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayoutPart<'a> {
    pub form: Form,
    /// Index of the first base here; K then V of each layer.
    pub first: u16,
    pub bases: Bases<'a>,
}

/// Bases to send, or as received.
#[derive(Clone, Copy)]
pub enum Bases<'a> {
    Typed(&'a [Base]),
    /// Checked by decode.
    Raw(RawBases<'a>),
}

/// Bases in their encoded form.
#[derive(Clone, Copy, Debug)]
pub struct RawBases<'a>(&'a [u8]);

impl<'a> Bases<'a> {
    pub fn count(&self) -> usize {
        match self {
            Bases::Typed(bases) => bases.len(),
            Bases::Raw(RawBases(bytes)) => bytes.len() / BASE_BYTES,
        }
    }

    pub fn iter(&self) -> impl Iterator<Item = Base> + use<'a> {
        let (typed, raw) = match *self {
            Bases::Typed(bases) => (bases, [].as_slice()),
            Bases::Raw(RawBases(bytes)) => ([].as_slice(), bytes),
        };
        let raw = raw.chunks_exact(BASE_BYTES);
        typed.iter().copied().chain(raw.map(|base| Base { region: Word::get(base, 0), offset: Word::get(base, 8) }))
    }
}

impl PartialEq for Bases<'_> {
    fn eq(&self, other: &Bases<'_>) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Bases<'_> {}

impl fmt::Debug for Bases<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// Cuts a layout into messages.
pub fn layout_parts<'a>(form: &Form, bases: &'a [Base]) -> impl Iterator<Item = LayoutPart<'a>> + use<'a> {
    let form = *form;
    bases.chunks(BASES_PER_MESSAGE).enumerate().map(move |(index, bases)| LayoutPart {
        form,
        first: (index * BASES_PER_MESSAGE) as u16,
        bases: Bases::Typed(bases),
    })
}

impl<'a> LayoutPart<'a> {
    pub(super) fn check(&self) -> Result<&LayoutPart<'a>, AttachError> {
        at_most("bases of one message", self.bases.count(), BASES_PER_MESSAGE)?;
        at_most("bases", usize::from(self.first) + self.bases.count(), BASES_MAX)?;
        Ok(self)
    }

    pub(super) fn encode(&self, body: &mut [u8]) {
        body[0] = self.form.order as u8;
        self.form.page_tokens.put(body, 2);
        self.form.page_count.put(body, 4);
        self.form.page_stride.put(body, 8);
        self.form.token_stride.put(body, 16);
        self.form.head_stride.put(body, 24);
        self.first.put(body, 32);
        (self.bases.count() as u16).put(body, 34);
        for (slot, base) in body[LAYOUT_BYTES..].chunks_exact_mut(BASE_BYTES).zip(self.bases.iter()) {
            base.region.put(slot, 0);
            base.offset.put(slot, 8);
        }
    }

    pub(super) fn decode(body: Body<'a>) -> Result<LayoutPart<'a>, AttachError> {
        let count = u16::get(body.at_least(LAYOUT_BYTES)?.bytes, 34);
        let body = body.exactly(LAYOUT_BYTES + usize::from(count) * BASE_BYTES)?.zero(1, 1)?.zero(36, 4)?.bytes;
        let order = AttachError::Field { what: "layout order", value: body[0].into(), limit: 1 };
        let raw = &body[LAYOUT_BYTES..];
        if raw.chunks_exact(BASE_BYTES).any(|base| base[2..8] != [0; 6]) {
            return Err(AttachError::Reserved);
        }
        let part = LayoutPart {
            form: Form {
                order: Order::from_code(body[0]).ok_or(order)?,
                page_tokens: Word::get(body, 2),
                page_count: Word::get(body, 4),
                page_stride: Word::get(body, 8),
                token_stride: Word::get(body, 16),
                head_stride: Word::get(body, 24),
            },
            first: Word::get(body, 32),
            bases: Bases::Raw(RawBases(raw)),
        };
        part.check().copied()
    }
}
