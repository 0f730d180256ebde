//! The receiving side of one connection: replies in the order of their commands, payloads straight into slot memory.
//!
//! ```text
//!  stream   ...payload of A  \r\n$9000\r\n  payload of B  \r\n$8000\r\n  payload of C ...
//!  readv    [A.memory[got..]][   glue    ][  B.memory   ][   glue    ][  C.memory   ]
//! ```
//!
//! The manifest told how long each block is, so what lies between two payloads is known before it comes. One `readv`
//! scatters over the memory of all blocks that are due and over a small scratch for the glue between them. Where the
//! glue is what it should be, every payload byte already lies where it belongs: nothing was copied. Where it is not
//! (a nil, an error, a redirect, another length) the bytes behind it have landed in the wrong places: they are
//! gathered into the `spill` and go through [`Inflow::feed`], which takes the stream byte by byte and may copy.
//!
//! The memory of a block moves in with [`Due`] and out with its completion, or with [`Inflow::orphan`] when nobody
//! wants it any more; what still comes for an orphan is read into the spill and forgotten. Only `receive` writes to
//! it, in the thread that calls, so once it is out nothing can write to it.
//!
//! It refuses replies that nobody asked for, that do not parse, or that exceed the scratch: the connection is lost
//! then.

use std::collections::VecDeque;
use std::io::{self, IoSliceMut, Read};
use std::time::Instant;

use super::resp::{self, BULK_HEAD_MAX, Garbage, Reply};
use crate::BlockMemory;

/// Blocks that one `readv` scatters over at most.
const BLOCKS: usize = 8;
const GLUE: usize = BLOCKS * (2 + BULK_HEAD_MAX);
/// A reply that is no block fits this: a manifest, a greeting, an error.
pub(super) const SCRATCH_BYTES: usize = 8 << 10;
/// The longest answer to a small question that is passed over; a longer one costs the connection.
const OTHERS_MAX: usize = 4 << 20;

/// Recipient of a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Recipient {
    /// Nobody any more.
    Nobody,
    /// The greeting of the connection.
    Greeting,
    /// An errand of the reader, and which of its questions.
    Errand { place: u16, generation: u16, item: u16 },
}

/// A reply that is due.
#[derive(Debug)]
pub(super) struct Due<M> {
    pub(super) owner: Recipient,
    pub(super) since: Instant,
    pub(super) wants: Wants<M>,
}

/// Expected form of a reply.
#[derive(Debug)]
pub(super) enum Wants<M> {
    /// Something small.
    Reply,
    /// A bulk string of this many bytes, to the head of this memory; `None`: nobody wants it any more.
    Block { bytes: usize, memory: Option<M> },
}

/// Actual form of a reply.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Got<'a> {
    /// The block, whole and in its memory.
    Block,
    /// A bulk string of this length instead of the block, or one that no small reply is as long as.
    Odd(usize),
    /// Anything else.
    Reply(Reply<'a>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The head of a reply, of which `filled` bytes are in the scratch.
    Head,
    /// A payload and its line end, of which `got` bytes are done.
    Payload { got: usize },
    /// A payload that is in nobody's memory.
    Drain { left: usize, length: usize },
}

#[derive(Clone, Copy, Debug)]
enum Segment {
    Glue { bytes: usize },
    Payload { from: usize, bytes: usize },
}

impl Segment {
    fn bytes(self) -> usize {
        match self {
            Self::Glue { bytes } | Self::Payload { bytes, .. } => bytes,
        }
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Inflow<M> {
    due: VecDeque<Due<M>>,
    stage: Stage,
    scratch: Box<[u8]>,
    filled: usize,
    /// Payload bytes of blocks that are due.
    owed: usize,
    /// Payload bytes that went through `feed`.
    copied: u64,
}

/// How far one call of [`Inflow::receive`] came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    pub(super) bytes: usize,
    /// The source gave all that was asked for, so it may have more.
    pub(super) more: bool,
}

impl<M> Inflow<M> {
    /// Replies that are due.
    pub(super) fn len(&self) -> usize {
        self.due.len()
    }
}

type Done<'a, M> = &'a mut dyn FnMut(Due<M>, Got<'_>);

impl<M: BlockMemory> Inflow<M> {
    pub(super) fn new(due_max: usize) -> Self {
        Self {
            due: VecDeque::with_capacity(due_max),
            stage: Stage::Head,
            scratch: vec![0; SCRATCH_BYTES].into(),
            filled: 0,
            owed: 0,
            copied: 0,
        }
    }

    /// Returns how many more replies may become due.
    pub(super) fn room(&self) -> usize {
        self.due.capacity() - self.due.len()
    }

    pub(super) fn owed(&self) -> usize {
        self.owed
    }

    /// Takes the count of payload bytes that were copied.
    pub(super) fn take_copied(&mut self) -> u64 {
        std::mem::take(&mut self.copied)
    }

    /// Expects a reply to a command that was queued on this connection.
    pub(super) fn expect(&mut self, due: Due<M>) {
        assert!(self.room() > 0, "expect: the caller asked for room");
        if let Wants::Block { bytes, .. } = due.wants {
            self.owed += bytes;
        }
        self.due.push_back(due);
    }

    /// Gives back what was due, oldest first: the connection is gone.
    pub(super) fn abandon(&mut self, lost: &mut dyn FnMut(Due<M>)) {
        (self.stage, self.filled, self.owed) = (Stage::Head, 0, 0);
        while let Some(due) = self.due.pop_front() {
            lost(due);
        }
    }

    /// Forgets an errand that nobody waits for any more; gives its memory back, if it is here.
    pub(super) fn orphan(&mut self, errand: u16) -> Option<M> {
        let mut found = None;
        for (index, due) in self.due.iter_mut().enumerate() {
            if !matches!(due.owner, Recipient::Errand { place, .. } if place == errand) {
                continue;
            }
            due.owner = Recipient::Nobody;
            let Wants::Block { bytes, memory } = &mut due.wants else { continue };
            found = memory.take().or(found);
            if let (0, Stage::Payload { got }) = (index, self.stage) {
                self.stage = Stage::Drain { left: *bytes + 2 - got, length: *bytes };
            }
        }
        found
    }

    /// Reads the source once. `spill` must hold a reply of [`SCRATCH_BYTES`]; the larger, the more one call can take.
    pub(super) fn receive(
        &mut self,
        source: &mut impl Read,
        spill: &mut [u8],
        done: Done<'_, M>,
    ) -> io::Result<Received> {
        let received = if self.is_predictable() {
            self.scatter(source, spill, done)?
        } else {
            let asked = match self.stage {
                Stage::Drain { left, .. } => left.min(spill.len()),
                _ => spill.len().min(SCRATCH_BYTES),
            };
            let bytes = source.read(&mut spill[..asked])?;
            self.feed(&spill[..bytes], done)?;
            Received { bytes, more: bytes == asked }
        };
        if received.bytes == 0 { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(received) }
    }

    /// Whether the next bytes are the rest of a block that somebody waits for, or should be.
    fn is_predictable(&self) -> bool {
        let Some(Due { wants: Wants::Block { bytes, memory: Some(_) }, .. }) = self.due.front() else { return false };
        match self.stage {
            Stage::Head => {
                let mut head = [0; BULK_HEAD_MAX];
                let end = resp::write_bulk_head(&mut head, *bytes);
                self.filled < end && head[..self.filled] == self.scratch[..self.filled]
            }
            Stage::Payload { .. } => true,
            Stage::Drain { .. } => false,
        }
    }

    /// Lays out the next read: the segments, and in `glue` what their glue should be.
    fn plan(&self, landing_max: usize, glue: &mut [u8; GLUE]) -> heapless::Vec<Segment, { 2 * BLOCKS + 1 }> {
        let mut segments = heapless::Vec::new();
        let mut glue_bytes = 0;
        // What may land behind glue that is not what it should be.
        let mut landing = 0;
        // Of the line end before the next head, what has not come.
        let mut line_end = 0;
        for (index, due) in self.due.iter().take(BLOCKS).enumerate() {
            let Wants::Block { bytes, memory: Some(_) } = due.wants else { break };
            let got = match self.stage {
                Stage::Payload { got } if index == 0 => Some(got),
                _ => None,
            };
            if got.is_none() {
                let mut head = [0; BULK_HEAD_MAX];
                let end = resp::write_bulk_head(&mut head, bytes);
                let head = &head[if index == 0 { self.filled } else { 0 }..end];
                if landing + line_end + head.len() >= landing_max {
                    break;
                }
                glue[glue_bytes..glue_bytes + line_end].copy_from_slice(&b"\r\n"[2 - line_end..]);
                glue[glue_bytes + line_end..][..head.len()].copy_from_slice(head);
                let more = line_end + head.len();
                glue_bytes += more;
                landing += more;
                segments.push(Segment::Glue { bytes: more }).expect("two a block, and one");
            }
            let from = got.unwrap_or(0);
            let left = bytes.saturating_sub(from);
            // The rest of a payload whose head has been seen is certain.
            let take = if got.is_some() { left } else { left.min(landing_max - landing) };
            if take > 0 {
                segments.push(Segment::Payload { from, bytes: take }).expect("two a block, and one");
            }
            landing += if got.is_some() { 0 } else { take };
            if take < left {
                return segments;
            }
            line_end = bytes + 2 - from.max(bytes);
        }
        if line_end > 0 {
            glue[glue_bytes..glue_bytes + line_end].copy_from_slice(&b"\r\n"[2 - line_end..]);
            segments.push(Segment::Glue { bytes: line_end }).expect("two a block, and one");
        }
        segments
    }

    fn scatter(&mut self, source: &mut impl Read, spill: &mut [u8], done: Done<'_, M>) -> io::Result<Received> {
        let (mut glue, mut expected) = ([0; GLUE], [0; GLUE]);
        // The last line end is not counted in the landing.
        let segments = self.plan(spill.len() - 2, &mut expected);
        let asked: usize = segments.iter().map(|segment| segment.bytes()).sum();
        let mut slices = heapless::Vec::<IoSliceMut<'_>, { 2 * BLOCKS + 1 }>::new();
        let mut glue_rest = &mut glue[..];
        // A front whose payload is all there and whose line end is not has no segment of its own.
        let whole = usize::from(matches!(segments.first(), Some(Segment::Glue { .. })) && self.stage != Stage::Head);
        let mut memories = self.due.iter_mut().skip(whole).map(|due| match &mut due.wants {
            Wants::Block { memory: Some(memory), .. } => memory,
            _ => unreachable!("planned over blocks that somebody waits for"),
        });
        for segment in &segments {
            let slice = match *segment {
                Segment::Glue { bytes } => glue_rest.split_off_mut(..bytes).expect("planned to fit"),
                Segment::Payload { from, bytes } => &mut memories.next().expect("planned")[from..from + bytes],
            };
            slices.push(IoSliceMut::new(slice)).expect("one a segment");
        }
        let bytes = source.read_vectored(&mut slices)?;
        drop(slices);

        let (mut left, mut glue_at) = (bytes, 0);
        for (index, segment) in segments.iter().enumerate() {
            let take = segment.bytes().min(left);
            if take == 0 {
                break;
            }
            match *segment {
                Segment::Payload { .. } => {
                    let Stage::Payload { got } = &mut self.stage else { unreachable!("the glue before it was right") };
                    *got += take;
                }
                Segment::Glue { .. } => {
                    let span = glue_at..glue_at + take;
                    if glue[span.clone()] != expected[span.clone()] {
                        let spilled = self.gather(&segments[index..], left, &glue[glue_at..], spill);
                        self.feed(&spill[..spilled], done)?;
                        return Ok(Received { bytes, more: bytes == asked });
                    }
                    self.feed(&glue[span], done)?;
                    glue_at += take;
                }
            }
            left -= take;
        }
        Ok(Received { bytes, more: bytes == asked })
    }

    /// Puts the first `left` bytes of the stream that landed in `segments` in one piece. The first segment is the glue
    /// before a block that is due: of the front if its head has not been seen, else of the next.
    fn gather(&self, segments: &[Segment], mut left: usize, glue: &[u8], spill: &mut [u8]) -> usize {
        let first = usize::from(self.stage != Stage::Head);
        let mut memories = self.due.iter().skip(first).map(|due| match &due.wants {
            Wants::Block { memory: Some(memory), .. } => memory,
            _ => unreachable!("planned over blocks that somebody waits for"),
        });
        let (mut end, mut glue_at) = (0, 0);
        for segment in segments {
            let take = segment.bytes().min(left);
            let landed = match *segment {
                Segment::Glue { .. } => {
                    glue_at += take;
                    &glue[glue_at - take..glue_at]
                }
                Segment::Payload { from, .. } => &memories.next().expect("planned")[from..from + take],
            };
            spill[end..end + take].copy_from_slice(landed);
            end += take;
            left -= take;
        }
        end
    }

    /// Takes the next bytes of the stream, whatever they are.
    pub(super) fn feed(&mut self, mut bytes: &[u8], done: Done<'_, M>) -> io::Result<()> {
        while !bytes.is_empty() {
            let taken = match self.stage {
                Stage::Head => self.feed_head(bytes, done)?,
                Stage::Payload { got } => self.feed_payload(got, bytes, done)?,
                Stage::Drain { left, length } => {
                    let take = left.min(bytes.len());
                    self.stage = Stage::Drain { left: left - take, length };
                    if take == left {
                        self.finish(Got::Odd(length), done);
                    }
                    take
                }
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    fn feed_head(&mut self, bytes: &[u8], done: Done<'_, M>) -> io::Result<usize> {
        let garbage = |_: Garbage| io::Error::from(io::ErrorKind::InvalidData);
        let Some(due) = self.due.front() else { return Err(garbage(Garbage)) };
        let before = self.filled;
        let take = bytes.len().min(self.scratch.len() - before);
        if take == 0 {
            return Err(garbage(Garbage));
        }
        // Most replies come whole and are parsed where they are.
        if before > 0 {
            self.scratch[before..before + take].copy_from_slice(&bytes[..take]);
        }
        let head = if before > 0 { &self.scratch[..before + take] } else { &bytes[..take] };
        if let (Wants::Block { bytes: wanted, memory }, [b'$', b'0'..=b'9', ..]) = (&due.wants, head) {
            let Some((length, end)) = resp::bulk_head(head).map_err(garbage)? else {
                return Ok(self.keep(bytes, take));
            };
            self.stage = match memory {
                Some(_) if length == *wanted => Stage::Payload { got: 0 },
                _ => Stage::Drain { left: length.saturating_add(2), length },
            };
            self.filled = 0;
            return Ok(end - before);
        }
        let Some((reply, end)) = resp::parse(head).map_err(garbage)? else {
            // What another version stored may be longer than anything that is asked for here.
            if let [b'$', b'0'..=b'9', ..] = head
                && let Some((length, end)) = resp::bulk_head(head).map_err(garbage)?
                && end.saturating_add(length) + 2 > self.scratch.len()
                && length <= OTHERS_MAX
            {
                self.stage = Stage::Drain { left: length.saturating_add(2), length };
                self.filled = 0;
                return Ok(end - before);
            }
            return Ok(self.keep(bytes, take));
        };
        let due = self.due.pop_front().expect("it is the front");
        if let Wants::Block { bytes, .. } = due.wants {
            self.owed -= bytes;
        }
        done(due, Got::Reply(reply));
        self.filled = 0;
        Ok(end - before)
    }

    /// The head is not whole yet.
    fn keep(&mut self, bytes: &[u8], take: usize) -> usize {
        if self.filled == 0 {
            self.scratch[..take].copy_from_slice(&bytes[..take]);
        }
        self.filled += take;
        take
    }

    fn feed_payload(&mut self, got: usize, bytes: &[u8], done: Done<'_, M>) -> io::Result<usize> {
        let Some(Due { wants: Wants::Block { bytes: length, memory: Some(memory) }, .. }) = self.due.front_mut() else {
            unreachable!("only a block that somebody waits for has a payload");
        };
        let take = bytes.len().min(*length + 2 - got);
        let payload = take.min(length.saturating_sub(got));
        memory[got..got + payload].copy_from_slice(&bytes[..payload]);
        self.copied += payload as u64;
        let line_end_at = (got + payload).saturating_sub(*length);
        if bytes[payload..take] != b"\r\n"[line_end_at..line_end_at + take - payload] {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.stage = Stage::Payload { got: got + take };
        if got + take == *length + 2 {
            self.finish(Got::Block, done);
        }
        Ok(take)
    }

    fn finish(&mut self, got: Got<'_>, done: Done<'_, M>) {
        let due = self.due.pop_front().expect("a payload belongs to the front");
        if let Wants::Block { bytes, .. } = due.wants {
            self.owed -= bytes;
        }
        self.stage = Stage::Head;
        done(due, got);
    }
}

#[cfg(test)]
#[path = "inflow_tests.rs"]
mod tests;
