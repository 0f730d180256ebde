//! The operations of a context: each is checked, cut into tasks that the device takes, and launched.

use std::ops::Range;

use doca_sys as sys;

use super::{CompressedFormat, Context, Raw, Refused, Source};
use crate::area::Area;
use crate::device::EngineCaps;
use crate::error::{Code, Error};
use crate::inventory::{Chain, Side};
use crate::mapping::RemoteRun;
use crate::task::Task;

impl Context {
    /// Inflates `range` of `source` into `destination` from its start.
    ///
    /// # Errors
    /// Gives the memory back; back-pressure if the context is full.
    pub fn inflate(
        &mut self,
        ticket: u64,
        format: CompressedFormat,
        source: impl Into<Source>,
        range: Range<usize>,
        destination: Area,
    ) -> Result<(), Refused> {
        let source = source.into();
        let Raw::Compress(raw) = self.raw else { unreachable!("inflate on a DMA context") };
        let bytes = range.len();
        let fits = bytes as u64 <= self.caps.bytes_max && destination.len() as u64 <= self.caps.bytes_max;
        let room = if fits { self.room(1) } else { Err(Error::new("doca_task_submit", Code::TOO_BIG)) };
        let prepared = room.and_then(|()| self.sides(&source, range, &destination, destination.len()));
        let (from, to) = match prepared {
            Ok(chains) => chains,
            Err(error) => return Err(Refused { error, source: Some(source), destination: Some(destination) }),
        };
        let operation = self.open(ticket, Some(source), Some(destination));
        let launched =
            self.launch(operation, None, from, to, |user| Task::decompress(raw, format, from.raw(), to.raw(), user));
        self.settle(operation, launched)
    }

    /// Copies the head of `source` to that of `destination`: an operation of which no host is part.
    ///
    /// # Errors
    /// Gives the memory back; back-pressure if the context is full.
    pub fn copy(&mut self, ticket: u64, source: Area, destination: Area) -> Result<(), Refused> {
        let Raw::Dma(raw) = self.raw else { unreachable!("copy on a decompress context") };
        let source = Source::Own(source);
        let bytes = source.len().min(destination.len());
        let prepared = self.room(1).and_then(|()| self.sides(&source, 0..bytes, &destination, bytes));
        let (from, to) = match prepared {
            Ok(chains) => chains,
            Err(error) => return Err(Refused { error, source: Some(source), destination: Some(destination) }),
        };
        let operation = self.open(ticket, Some(source), Some(destination));
        let launched =
            self.launch(operation, Some(bytes), from, to, |user| Task::memcpy(raw, from.raw(), to.raw(), user));
        self.settle(operation, launched)
    }

    /// A buffer over `range` of a source, and one over `capacity` bytes from a destination's start.
    fn sides(
        &self,
        source: &Source,
        range: Range<usize>,
        destination: &Area,
        capacity: usize,
    ) -> Result<(Chain, Chain), Error> {
        let from = self.inventory.local(source, range.start, range.len(), Side::Source)?;
        let to = self
            .inventory
            .local(destination, 0, capacity, Side::Destination)
            .inspect_err(|_| self.inventory.put(from))?;
        Ok((from, to))
    }

    /// Writes pieces of `source` to host runs.
    ///
    /// # Errors
    /// Gives the memory back; back-pressure if the context is full.
    pub fn write(&mut self, ticket: u64, source: impl Into<Source>, runs: &[RemoteRun<'_>]) -> Result<(), Refused> {
        self.transfer(ticket, Some(source.into()), None, runs, Side::Source)
    }

    /// Reads host runs into pieces of `destination`.
    ///
    /// # Errors
    /// Gives the memory back; back-pressure if the context is full.
    pub fn read(&mut self, ticket: u64, destination: Area, runs: &[RemoteRun<'_>]) -> Result<(), Refused> {
        self.transfer(ticket, None, Some(destination), runs, Side::Destination)
    }

    /// `side` is the side of the task that the local memory is on; the other place is empty.
    fn transfer(
        &mut self,
        ticket: u64,
        source: Option<Source>,
        destination: Option<Area>,
        runs: &[RemoteRun<'_>],
        side: Side,
    ) -> Result<(), Refused> {
        let Raw::Dma(raw) = self.raw else { unreachable!("transfer on a decompress context") };
        let caps = self.caps;
        let tasks = Batches { runs, caps }.count();
        if runs.is_empty() || runs.iter().any(|run| run.bytes == 0 || run.bytes as u64 > caps.bytes_max) {
            let error = Error::new("doca_dma_task_memcpy_alloc_init", Code::INVALID_VALUE);
            return Err(Refused { error, source, destination });
        }
        if let Err(error) = self.room(tasks) {
            return Err(Refused { error, source, destination });
        }
        let operation = self.open(ticket, source, destination);
        let mut launched = Ok(());
        for batch in (Batches { runs, caps }) {
            launched = self.transfer_batch(operation, raw, batch, side);
            if launched.is_err() {
                break;
            }
        }
        self.settle(operation, launched)
    }

    fn transfer_batch(
        &mut self,
        operation: usize,
        raw: *mut sys::doca_dma,
        runs: &[RemoteRun<'_>],
        side: Side,
    ) -> Result<(), Error> {
        let opened = self.operations[operation].as_ref().expect("opened by the caller");
        let local = match (&opened.source, &opened.destination) {
            (Some(source), _) => self.inventory.scattered(source, runs, side),
            (None, Some(destination)) => self.inventory.scattered(destination, runs, side),
            (None, None) => unreachable!("a transfer holds its memory"),
        }?;
        let remote_side = if side == Side::Source { Side::Destination } else { Side::Source };
        let remote = self.inventory.remote(runs, remote_side).inspect_err(|_| self.inventory.put(local))?;
        let (from, to) = if side == Side::Source { (local, remote) } else { (remote, local) };
        let bytes = runs.iter().map(|run| run.bytes).sum();
        self.launch(operation, Some(bytes), from, to, |user| Task::memcpy(raw, from.raw(), to.raw(), user))
    }
}

/// Cuts a list of runs into lists that one task can take.
#[derive(Clone, Copy)]
struct Batches<'a, 'r> {
    runs: &'a [RemoteRun<'r>],
    caps: EngineCaps,
}

impl<'a, 'r> Iterator for Batches<'a, 'r> {
    type Item = &'a [RemoteRun<'r>];

    fn next(&mut self) -> Option<Self::Item> {
        let mut bytes = 0_u64;
        let fits = |run: &&RemoteRun<'_>| {
            bytes += run.bytes as u64;
            bytes <= self.caps.bytes_max
        };
        let count = self.runs.iter().take(self.caps.list_max as usize).take_while(fits).count();
        // A run that is too large by itself is refused by the caller; make progress all the same.
        let (batch, rest) = self.runs.split_at(count.max(1).min(self.runs.len()));
        self.runs = rest;
        (!batch.is_empty()).then_some(batch)
    }
}
