//! What an operation is asked for and what it comes to.

use std::ops::Deref;

use crate::area::{Area, Registered, RegisteredMemory};
use crate::error::Error;
use crate::slab::Loan;

/// What the engine inflates.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CompressedFormat {
    /// Raw Deflate (RFC 1951).
    Deflate,
    /// One bare LZ4 block.
    Lz4Block,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OperationKind {
    Decompress,
    Dma,
}

/// What a successful operation produced.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OperationOutput {
    /// Bytes written to the destination.
    pub bytes: usize,
    /// The engine's CRC-32 of its output (decompress only).
    pub crc: Option<u32>,
}

/// What an engine reads: memory of the caller's own, or a run of a slab that others may read meanwhile.
#[derive(Debug)]
pub enum Source {
    Own(Area),
    Lent(Loan),
}

impl Source {
    /// The area, if it is one.
    #[must_use]
    pub fn own(self) -> Option<Area> {
        match self {
            Self::Own(area) => Some(area),
            Self::Lent(_) => None,
        }
    }

    fn registered(&self) -> &dyn Registered {
        match self {
            Self::Own(area) => area,
            Self::Lent(loan) => loan,
        }
    }
}

impl From<Area> for Source {
    fn from(area: Area) -> Self {
        Self::Own(area)
    }
}

impl From<Loan> for Source {
    fn from(loan: Loan) -> Self {
        Self::Lent(loan)
    }
}

impl Deref for Source {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Self::Own(area) => area,
            Self::Lent(loan) => loan,
        }
    }
}

impl Registered for Source {
    fn memory(&self) -> &RegisteredMemory {
        self.registered().memory()
    }

    fn address(&self) -> *mut u8 {
        self.registered().address()
    }

    fn bytes(&self) -> usize {
        self.registered().bytes()
    }
}

/// An operation that has ended, with the memory that it held.
#[derive(Debug)]
pub struct Completion {
    pub ticket: u64,
    pub outcome: Result<OperationOutput, Error>,
    pub source: Option<Source>,
    pub destination: Option<Area>,
}

impl Completion {
    /// The one area of a transfer.
    #[must_use]
    pub fn area(self) -> Option<Area> {
        self.source.and_then(Source::own).or(self.destination)
    }
}

/// An operation that was not accepted, with the memory that it would have held.
#[derive(Debug)]
pub struct Refused {
    pub error: Error,
    pub source: Option<Source>,
    pub destination: Option<Area>,
}

impl Refused {
    /// The one area of a transfer.
    #[must_use]
    pub fn area(self) -> Option<Area> {
        self.source.and_then(Source::own).or(self.destination)
    }
}

/// Sizes of a context, fixed at its creation.
#[derive(Clone, Copy, Debug)]
pub struct Depth {
    /// Operations in flight.
    pub operations: usize,
    /// DOCA tasks in flight; at least `operations`.
    pub tasks: usize,
}
