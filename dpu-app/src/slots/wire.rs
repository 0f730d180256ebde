//! A slot's block in its stored form: at the head of the slot's wire area, or lent by the card's tier, where it lies.
//!
//! ```text
//!   fetch worker   read into the area, or lend(loan)          encode worker  area_mut
//!   engine         take -> operation -> give back             at the slot's end, however it comes: settle
//! ```
//!
//! A loan keeps its bytes from being changed, whatever the tier gives up meanwhile; it ends with [`Wire::settle`],
//! before the chunk's seat is given back to the store.

use doca::{Area, Loan, Source};

/// A slot's block in its stored form; empty while its memory is with a reader or an engine.
#[derive(Debug)]
pub struct Wire {
    area: Option<Area>,
    loan: Option<Loan>,
    is_lent: bool,
}

impl Wire {
    #[must_use]
    pub fn new(area: Area) -> Self {
        Self { area: Some(area), loan: None, is_lent: false }
    }

    /// Returns the block; in an area more may lie behind it.
    #[must_use]
    pub fn block(&self) -> Option<&[u8]> {
        match self.is_lent {
            true => self.loan.as_deref(),
            false => self.area.as_deref(),
        }
    }

    /// Returns the area, for a block that is made here.
    pub fn area_mut(&mut self) -> Option<&mut Area> {
        self.area.as_mut()
    }

    /// Takes the area, for a reader.
    pub fn take_area(&mut self) -> Option<Area> {
        self.area.take()
    }

    pub fn put_area(&mut self, area: Area) {
        self.area = Some(area);
    }

    /// Has the block lie in the tier's memory instead of the area.
    pub fn lend(&mut self, loan: Loan) {
        (self.loan, self.is_lent) = (Some(loan), true);
    }

    /// Takes the block, for an engine.
    pub fn take(&mut self) -> Option<Source> {
        match self.is_lent {
            true => self.loan.take().map(Source::Lent),
            false => self.area.take().map(Source::Own),
        }
    }

    /// Puts back what an engine gives back.
    pub fn put(&mut self, source: Source) {
        match source {
            Source::Own(area) => self.area = Some(area),
            Source::Lent(loan) => self.loan = Some(loan),
        }
    }

    /// Ends the block: nothing is borrowed for it any more.
    pub fn settle(&mut self) {
        (self.loan, self.is_lent) = (None, false);
    }
}
