//! The card's end of a page, sans-I/O: it names the bytes to copy and judges the private copy.
//!
//! ```text
//! accept:   copy command_window() -> accept()          complete: write complete()'s line -> copy host_line_span()
//! sleep:    write line(asleep) , wait for that write, copy command_window(), accept() finds nothing -> sleep
//! ```
//! The DMA engine keeps no order between tasks, so "then" always means: submit after the completion of the one before.
//! It holds no buffer but its table of live requests: staging is the caller's, fixed by [`COMMAND_WINDOW`] and
//! [`RECORD_WINDOW_BYTES`]. It refuses what an honest host cannot have written; what an honest but newer or mistaken
//! host may ask is for the caller to answer with a status.

use crate::cursor::{Cursor, Verdict};
use crate::host::area_at;
use crate::limits::*;
use crate::line::{FACES_BYTES, HostLine, LineReader, LineWriter};
use crate::page::{Mismatch, check_identity};
use crate::peer::PeerError;
use crate::record::{Owner, Records};
use crate::words::{
    AGAIN, CardState, CommandWords, CompletionWords, Line, Operation, Span, Status, TRAILING, Tokens, WITH_IMPORTANCE,
};

/// One command, checked: every count and length is in range, the area is its own, the request number is unique.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Command {
    pub request: u64,
    pub operation: Operation,
    /// Ones that this build does not know: from a newer host. Answer `Unsupported`.
    pub flags: u16,
    /// Chunk records in the argument area.
    pub chunk_count: u32,
    pub pages_per_chunk: u32,
    pub tokens: Tokens,
    /// 0: the card's configuration decides.
    pub deadline_us: u32,
    /// The request that a `Cancel` gives up; of a look-up see [`Command::trailing`].
    pub target: u64,
    /// Section that the chunks are of.
    pub section: u16,
    pub(crate) area: u16,
}

impl Command {
    /// A command without chunks, for tests.
    #[cfg(test)]
    pub(crate) fn new(request: u64, operation: Operation) -> Command {
        let (flags, chunk_count, pages_per_chunk, deadline_us, target, section, area) = Default::default();
        let tokens = Tokens::ALL;
        Command { request, operation, flags, chunk_count, pages_per_chunk, tokens, deadline_us, target, section, area }
    }

    /// Whether this build knows what is asked. If not, the answer is `Unsupported` and the session lives on.
    pub fn is_known(&self) -> bool {
        is_known(self.operation, self.flags)
    }

    /// Whether its records say what chunks are worth.
    pub fn has_importances(&self) -> bool {
        self.is_known() && self.flags & WITH_IMPORTANCE != 0
    }

    /// Whether its chunks are to be put even where the store has them.
    pub fn stores_again(&self) -> bool {
        self.is_known() && self.flags & AGAIN != 0
    }

    /// Chunks before its end that a hit of a look-up needs; 0: all.
    pub fn trailing(&self) -> u32 {
        if is_trailing(self.operation, self.flags) { self.target as u32 } else { 0 }
    }

    /// Bytes of one of its records.
    pub fn record_bytes(&self) -> usize {
        record_bytes(self.pages_per_chunk as usize)
    }
}

fn is_trailing(operation: Operation, flags: u16) -> bool {
    operation == Operation::Lookup && flags == TRAILING
}

fn is_known(operation: Operation, flags: u16) -> bool {
    operation.flags().contains(&flags) && !matches!(operation, Operation::Unknown(_))
}

/// Result of looking at a window of command slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Commands appended.
    pub commands: usize,
    /// Copy again before sleeping: the window was full, or its last slot was caught torn.
    pub again: bool,
}

/// The end of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub request: u64,
    pub status: Status,
    /// Leading whole chunks in place, stored or found.
    pub chunks_done: u32,
    pub wire_bytes: u64,
    pub restored_bytes: u64,
    pub elapsed_us: u32,
    /// Text that was written to [`CardRing::answer_span`], and its CRC-32 ([`CardRing::answer_crc`]).
    pub answer_bytes: u32,
    pub answer_crc: u32,
}

impl Answer {
    /// An answer with nothing done and no text.
    pub const fn new(request: u64, status: Status) -> Answer {
        Answer {
            request,
            status,
            chunks_done: 0,
            wire_bytes: 0,
            restored_bytes: 0,
            elapsed_us: 0,
            answer_bytes: 0,
            answer_crc: 0,
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Live {
    request: u64,
    chunk_count: u32,
}

/// One session's card end.
#[derive(Debug)]
pub struct CardRing {
    generation: u64,
    commands: Cursor,
    completions: Cursor,
    line: LineWriter,
    host: LineReader,
    state: CardState,
    /// The command of each argument area.
    live: [Option<Live>; COMMANDS],
    /// Sections that commands may name; at least 1.
    sections: u16,
    torn: u32,
}

impl CardRing {
    /// The ring of a page of this generation (from the host's hello), at its start.
    pub fn new(generation: u64) -> CardRing {
        CardRing {
            generation,
            commands: Cursor::new("command slot", COMMANDS_AT, COMMANDS),
            completions: Cursor::new("completion slot", COMPLETIONS_AT, COMPLETIONS),
            line: LineWriter::new(CARD_LINE_AT, generation),
            host: LineReader::new("host line", generation),
            state: CardState::Steady,
            live: [None; COMMANDS],
            sections: 1,
            torn: 0,
        }
    }

    /// The ring of a session with so many sections; none: control-only.
    #[must_use]
    pub fn with_sections(self, sections: usize) -> CardRing {
        assert!(sections <= SECTIONS_MAX, "{sections} sections");
        CardRing { sections: sections.max(1) as u16, ..self }
    }

    /// Begins as if `sequence - 1` commands and completions had passed.
    #[cfg(test)]
    pub(crate) fn starting_at(mut self, sequence: u32) -> CardRing {
        self.commands = self.commands.starting_at(sequence);
        self.completions = self.completions.starting_at(sequence);
        self
    }

    /// The span to copy first of all, for [`CardRing::check_identity`].
    pub fn identity_span(&self) -> Span {
        Span::new(IDENTITY_AT, LINE_BYTES)
    }

    /// Whether the memory that was exported to us is the page that the hello spoke of.
    pub fn check_identity(&self, bytes: &[u8]) -> Result<(), PeerError> {
        let found = check_identity(line(bytes)?).map_err(|Mismatch { what, ours, theirs }| PeerError::Identity {
            what,
            ours,
            theirs,
        })?;
        if found != self.generation {
            return Err(PeerError::Generation { what: "page identity", expected: self.generation, found });
        }
        Ok(())
    }

    /// Commands taken and not yet answered.
    pub fn outstanding(&self) -> usize {
        self.live.iter().flatten().count()
    }

    /// Requests that are live, in no order: for answering them all when a session ends in order.
    pub fn requests(&self) -> impl Iterator<Item = u64> + '_ {
        self.live.iter().flatten().map(|live| live.request)
    }

    /// The command slots to copy next: at most [`COMMAND_WINDOW`], never over the ring's end.
    pub fn command_window(&self) -> Span {
        let slots = self.commands.slots_to_end().min(COMMAND_WINDOW);
        Span::new(self.commands.offset(), slots * LINE_BYTES)
    }

    /// Takes the new commands of a copy of [`CardRing::command_window`]; stops at the first slot that is not new.
    /// An error ends the session; commands taken before it are in `out`.
    pub fn accept(
        &mut self,
        window: &[u8],
        out: &mut heapless::Vec<Command, COMMAND_WINDOW>,
    ) -> Result<Progress, PeerError> {
        let expected = self.command_window().bytes;
        if window.len() != expected {
            return Err(PeerError::Window { expected, found: window.len() });
        }
        let mut commands = 0;
        for slot in window.chunks_exact(LINE_BYTES) {
            let slot = line(slot)?;
            match self.commands.judge(slot, self.generation)? {
                Verdict::Empty => return Ok(Progress { commands, again: false }),
                Verdict::Torn => {
                    self.torn += 1;
                    if self.torn > TORN_MAX {
                        return Err(PeerError::Torn { what: "command slot", copies: self.torn });
                    }
                    return Ok(Progress { commands, again: true });
                }
                Verdict::Fresh if out.is_full() => return Ok(Progress { commands, again: true }),
                Verdict::Fresh => {
                    let command = self.believe(slot)?;
                    self.torn = 0;
                    self.commands.advance();
                    let live = Live { request: command.request, chunk_count: command.chunk_count };
                    self.live[usize::from(command.area)] = Some(live);
                    out.push(command).expect("not full");
                    commands += 1;
                }
            }
        }
        Ok(Progress { commands, again: true })
    }

    /// Every check that needs no layout.
    fn believe(&self, slot: &Line) -> Result<Command, PeerError> {
        let words = CommandWords::decode(slot);
        let range = |what, value: u32, limit: usize| {
            let (value, limit) = (u64::from(value), limit as u64);
            if value > limit { Err(PeerError::Range { what, value, limit }) } else { Ok(()) }
        };
        range("section", words.section.into(), usize::from(self.sections) - 1)?;
        range("argument area", words.area.into(), COMMANDS - 1)?;
        if self.live[usize::from(words.area)].is_some() {
            return Err(PeerError::AreaInUse { area: words.area });
        }
        if words.request == 0 || self.requests().any(|request| request == words.request) {
            return Err(PeerError::Request { request: words.request });
        }
        range("argument bytes", words.argument_bytes, ARGUMENT_BYTES)?;
        let operation = Operation::from_code(words.opcode);
        let is_trailing = is_trailing(operation, words.flags);
        // A newer host may mean something else by these words, so only its area and number are looked at.
        if is_known(operation, words.flags) {
            range("pages per chunk", words.pages_per_chunk, PAGES_PER_CHUNK_MAX)?;
            range("chunk count", words.chunk_count, chunks_max(words.pages_per_chunk as usize))?;
            // Cannot overflow: both factors were just checked.
            let bytes = words.chunk_count as usize * record_bytes(words.pages_per_chunk as usize);
            let exact = |what, value: u64, limit: u64| {
                if value == limit { Ok(()) } else { Err(PeerError::Range { what, value, limit }) }
            };
            exact("argument bytes", words.argument_bytes.into(), bytes as u64)?;
            exact("chunks named", u64::from(words.chunk_count != 0), operation.takes_chunks().into())?;
            let takes_target = operation == Operation::Cancel || is_trailing;
            exact("target named", u64::from(words.target != 0), takes_target.into())?;
            if is_trailing && words.target > CHUNKS_PER_REQUEST_MAX as u64 {
                let (value, limit) = (words.target, CHUNKS_PER_REQUEST_MAX as u64);
                return Err(PeerError::Range { what: "trailing chunks", value, limit });
            }
            if !operation.takes_chunks() {
                exact("section named", words.section.into(), 0)?;
            }
            if operation.takes_pages() || words.chunk_count == 0 {
                exact("pages named", u64::from(words.pages_per_chunk != 0), operation.takes_pages().into())?;
            }
            if words.token_start >= words.token_end {
                let (value, limit) = (words.token_start.into(), words.token_end.into());
                return Err(PeerError::Range { what: "first token", value, limit });
            }
        }
        Ok(Command {
            request: words.request,
            operation,
            flags: words.flags,
            chunk_count: words.chunk_count,
            pages_per_chunk: words.pages_per_chunk,
            tokens: Tokens { start: words.token_start, end: words.token_end },
            deadline_us: words.deadline_us,
            target: words.target,
            section: words.section,
            area: words.area,
        })
    }

    /// The records to copy next for a lookup, fetch or store: as many whole ones from `first` on as fit in
    /// [`RECORD_WINDOW_BYTES`]. `None` past the last.
    pub fn record_window(&self, command: &Command, first: u32) -> Option<Span> {
        let left = command.chunk_count.checked_sub(first)? as usize;
        let records = left.min(RECORD_WINDOW_BYTES / command.record_bytes());
        let offset = area_at(command.area) + first as usize * command.record_bytes();
        (records > 0).then(|| Span::new(offset, records * command.record_bytes()))
    }

    /// Reads a copy of [`CardRing::record_window`]. Any error of the iterator ends the session.
    pub fn records<'a>(&self, command: &Command, first: u32, window: &'a [u8]) -> Result<Records<'a>, PeerError> {
        let expected = self.record_window(command, first).map_or(0, |span| span.bytes);
        if window.len() != expected {
            return Err(PeerError::Window { expected, found: window.len() });
        }
        let owner = Owner { generation: self.generation, request: command.request };
        Ok(Records::new(owner, command, first, window))
    }

    /// The span of the answer's text, which is written before the completion: from the start of the command's area.
    /// `bytes` is ours, so 0 or more than [`ARGUMENT_BYTES`] panics. Read all records first.
    pub fn answer_span(&self, command: &Command, bytes: usize) -> Span {
        assert!(bytes <= ARGUMENT_BYTES, "answer of {bytes} bytes");
        Span::new(area_at(command.area), bytes)
    }

    /// The checksum that goes with the text.
    pub fn answer_crc(text: &[u8]) -> u32 {
        crc32fast::hash(text)
    }

    /// The completion of a live request, and where to write it, after every write that it vouches for has completed.
    /// Panics when the request is not live or more is claimed done than was asked: both are ours.
    pub fn complete(&mut self, answer: &Answer) -> (Span, Line) {
        let is_it = |live: &Option<Live>| live.is_some_and(|live| live.request == answer.request);
        let area = self.live.iter().position(is_it).expect("only a live request is completed");
        let live = self.live[area].take().expect("found there");
        assert!(answer.chunks_done <= live.chunk_count, "{answer:?} of {} chunks", live.chunk_count);
        assert!(answer.answer_bytes as usize <= ARGUMENT_BYTES, "{answer:?}");
        let words = CompletionWords {
            sequence: 0,
            crc: 0,
            generation: 0,
            request: answer.request,
            status: answer.status.code(),
            area: area as u16,
            chunks_done: answer.chunks_done,
            command_head: self.commands.passed(),
            answer_bytes: answer.answer_bytes,
            wire_bytes: answer.wire_bytes,
            restored_bytes: answer.restored_bytes,
            elapsed_us: answer.elapsed_us,
            answer_crc: answer.answer_crc,
        };
        let mut line = words.encode();
        self.completions.seal(&mut line, self.generation);
        let span = Span::new(self.completions.offset(), LINE_BYTES);
        self.completions.advance();
        (span, line)
    }

    /// This side's line: write it awake at attach and after waking, asleep before the last look at the commands.
    pub fn line(&mut self, asleep: bool) -> (Span, Line) {
        let (offset, line) = self.line.write(asleep, self.commands.passed(), self.state as u32);
        (Span::new(offset, LINE_BYTES), line)
    }

    /// Makes the line say `Draining`. Write it afterwards.
    pub fn drain(&mut self) {
        if self.state != CardState::Draining {
            assert!(self.state.may_become(CardState::Draining));
            self.state = CardState::Draining;
        }
    }

    /// Makes the line say `Steady` again. Write it afterwards.
    pub fn resume(&mut self) {
        if self.state != CardState::Steady {
            assert!(self.state.may_become(CardState::Steady));
            self.state = CardState::Steady;
        }
    }

    /// The state that the line says.
    pub fn state(&self) -> CardState {
        self.state
    }

    /// The span to copy after a completion was written.
    pub fn host_line_span(&self) -> Span {
        Span::new(HOST_LINE_AT, FACES_BYTES)
    }

    /// Reads a copy of [`CardRing::host_line_span`]. `None`: caught torn, copy again.
    pub fn read_host_line(&mut self, bytes: &[u8]) -> Result<Option<HostLine>, PeerError> {
        let window = PeerError::Window { expected: FACES_BYTES, found: bytes.len() };
        let Some(words) = self.host.read(bytes.try_into().map_err(|_| window)?)? else { return Ok(None) };
        if words.state != 0 {
            return Err(PeerError::Range { what: "host state", value: words.state.into(), limit: 0 });
        }
        let ring = self.host.ring(&words);
        Ok(Some(HostLine { asleep: words.asleep != 0, ring, completion_head: words.head }))
    }
}

fn line(bytes: &[u8]) -> Result<&Line, PeerError> {
    bytes.try_into().map_err(|_| PeerError::Window { expected: LINE_BYTES, found: bytes.len() })
}
