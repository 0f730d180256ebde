//! The host's end of a page: posts commands, polls completions, says when it sleeps.
//!
//! The host owns the page's memory and reads it with loads, but trusts the card no more than the card trusts it: every
//! completion is copied, checked against what is in flight, and only then believed.
//!
//! ```text
//! post:  records, slot (Release) -> full fence -> card's line: asleep? ring, once per sleep
//! sleep: own line "asleep" -> full fence -> completion ring again: empty? sleep until a doorbell
//! ```
//! It does not wait, does not ring (the channel does) and does not retry a request (the caller may).

use std::fmt;
use std::time::{Duration, Instant};

use block::{ChunkKey, Importance};

use crate::cursor::{Cursor, Verdict};
use crate::limits::*;
use crate::line::{FACES_BYTES, LineReader, LineWriter};
use crate::page::Page;
use crate::peer::PeerError;
use crate::record::{Owner, encode};
use crate::words::{
    AGAIN, CardState, CommandWords, CompletionWords, Line, Operation, SideWords, Span, Status, TRAILING, Tokens,
    WITH_IMPORTANCE,
};

/// A request to the card, without its chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The caller's number: not 0, and not one that is in flight.
    pub id: u64,
    pub operation: Operation,
    pub tokens: Tokens,
    /// Counted by the card from when it takes the command. 0: the card's configuration decides.
    pub deadline_us: u32,
    /// The request that a `Cancel` gives up; else 0.
    pub target: u64,
    /// Whether a `Store` puts what the store has, too.
    pub again: bool,
    /// Section of the session that the chunks are of.
    pub section: u16,
    /// Chunks before its end that a hit of a `Lookup` needs; 0: all.
    pub trailing: u32,
}

impl Request {
    /// A request for all tokens, with the card's own deadline and no target.
    pub const fn new(id: u64, operation: Operation) -> Request {
        Request { id, operation, tokens: Tokens::ALL, deadline_us: 0, target: 0, again: false, section: 0, trailing: 0 }
    }

    /// Gives up request `target`.
    pub const fn cancel(id: u64, target: u64) -> Request {
        Request { target, ..Request::new(id, Operation::Cancel) }
    }
}

/// One chunk to name. All chunks of a request have equally many pages; a lookup's may have none.
#[derive(Clone, Copy, Debug)]
pub struct Chunk<'a> {
    pub key: &'a ChunkKey,
    /// Host pages in token order.
    pub pages: &'a [u32],
    /// Worth, said by a store or a rating; neutral with other operations.
    pub importance: Importance,
}

impl<'a> Chunk<'a> {
    /// A chunk of neutral importance.
    pub const fn new(key: &'a ChunkKey, pages: &'a [u32]) -> Chunk<'a> {
        Chunk { key, pages, importance: Importance::NEUTRAL }
    }
}

/// Whether the card is to be rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a card that is asleep stays so until it is rung"]
pub enum Doorbell {
    /// Send one doorbell message now.
    Ring,
    /// The card is awake, or was rung already.
    Quiet,
}

/// Whether the host may sleep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "sleeping on `Work` loses a completion until the next doorbell"]
pub enum Sleep {
    /// Nothing to do: wait for a doorbell, then call [`HostRing::wake`].
    Sleep,
    /// A completion came meanwhile: the line says awake again; poll.
    Work,
}

/// Why a request was not posted. But for `Peer`, nothing was written that the card could see.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostError {
    /// Back-pressure: all slots or areas are taken. Poll completions first.
    Full,
    /// The number is 0 or in flight.
    Id { id: u64 },
    /// The operation takes no chunks, or needs some.
    Chunks { operation: Operation, chunks: usize },
    /// More chunks than one argument area holds.
    TooMany { chunks: usize, limit: usize },
    /// Chunks of one request with different page counts, none where pages are needed, or too many.
    Pages { chunk: usize, pages: usize, limit: usize },
    /// An empty token range, or a cancel without a target.
    Field { what: &'static str },
    /// The card lied; the session is over.
    Peer(PeerError),
}

impl fmt::Display for PostError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            PostError::Full => write!(f, "post: {COMMANDS} requests are in flight: poll completions first"),
            PostError::Id { id } => write!(f, "post: request number {id} is zero or in flight"),
            PostError::Chunks { operation, chunks } => write!(f, "post: {operation:?} with {chunks} chunks"),
            PostError::TooMany { chunks, limit } => write!(f, "post: {chunks} chunks, one request holds {limit}"),
            PostError::Pages { chunk, pages, limit } => {
                write!(f, "post: chunk {chunk} has {pages} pages: all chunks need equally many, from 1 to {limit}")
            }
            PostError::Field { what } => write!(f, "post: {what}"),
            PostError::Peer(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for PostError {}

impl From<PeerError> for PostError {
    fn from(error: PeerError) -> PostError {
        PostError::Peer(error)
    }
}

/// The end of a request, checked against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    pub request: u64,
    pub operation: Operation,
    pub status: Status,
    /// Leading whole chunks in place, stored or found; never more than asked.
    pub chunks_done: u32,
    pub chunks_asked: u32,
    /// Bytes of text to fetch with [`HostRing::answer`] before the next post.
    pub answer_bytes: u32,
    pub wire_bytes: u64,
    pub restored_bytes: u64,
    pub elapsed_us: u32,
    area: u16,
    answer_crc: u32,
}

/// Why an answer's text is not there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AnswerError {
    /// A later post took the area: copy the answer before posting again.
    Gone,
    /// The buffer is too small.
    Room { bytes: usize, room: usize },
    /// The text is not the one that the completion vouches for.
    Checksum,
}

impl fmt::Display for AnswerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            AnswerError::Gone => write!(f, "answer: a later post took its area"),
            AnswerError::Room { bytes, room } => write!(f, "answer: {bytes} bytes do not fit in {room}"),
            AnswerError::Checksum => write!(f, "answer: text fails its checksum"),
        }
    }
}

impl std::error::Error for AnswerError {}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
struct Flight {
    request: u64,
    operation: Operation,
    chunks: u32,
}

#[derive(Clone, Copy, Debug)]
enum Area {
    Free { last: u64 },
    Busy(Flight),
}

/// One page's host end. One thread at a time.
#[derive(Debug)]
pub struct HostRing {
    page: Page,
    commands: Cursor,
    completions: Cursor,
    line: LineWriter,
    card: LineReader,
    card_state: CardState,
    /// Commands that the card has taken, as its last completion said.
    command_head: u32,
    areas: [Area; COMMANDS],
    /// Free areas, the longest free first, so that an answer stays readable as long as possible.
    free: heapless::Deque<u16, COMMANDS>,
    asleep: bool,
    torn: u32,
    torn_since: Option<Instant>,
    torn_grace: Duration,
}

impl HostRing {
    /// Takes a page that was just created; its card end starts at the same cursors.
    pub fn new(page: Page) -> HostRing {
        let generation = page.generation();
        let mut free = heapless::Deque::new();
        free.extend(0..COMMANDS as u16);
        let mut ring = HostRing {
            commands: Cursor::new("command slot", COMMANDS_AT, COMMANDS),
            completions: Cursor::new("completion slot", COMPLETIONS_AT, COMPLETIONS),
            line: LineWriter::new(HOST_LINE_AT, generation),
            card: LineReader::new("card line", generation),
            card_state: CardState::Steady,
            command_head: 0,
            areas: [Area::Free { last: 0 }; COMMANDS],
            free,
            asleep: false,
            torn: 0,
            torn_since: None,
            torn_grace: Duration::from_millis(TORN_GRACE_MS),
            page,
        };
        ring.write_line(false);
        ring
    }

    /// Begins as if `sequence - 1` commands and completions had passed.
    #[cfg(test)]
    pub(crate) fn starting_at(mut self, sequence: u32) -> HostRing {
        self.commands = self.commands.starting_at(sequence);
        self.completions = self.completions.starting_at(sequence);
        self.command_head = self.commands.passed();
        self.write_line(false);
        self
    }

    #[cfg(test)]
    pub(crate) fn without_grace(mut self) -> HostRing {
        self.torn_grace = Duration::ZERO;
        self
    }

    /// The page, for registering its memory.
    pub fn page(&self) -> &Page {
        &self.page
    }

    /// Requests in flight.
    pub fn outstanding(&self) -> usize {
        COMMANDS - self.free.len()
    }

    /// State of the card when its line was last read: at each post and [`HostRing::look`].
    pub fn card_state(&self) -> CardState {
        self.card_state
    }

    /// Posts one request. The chunks are copied to its argument area; nothing is borrowed afterwards.
    pub fn post(&mut self, request: &Request, chunks: &[Chunk<'_>]) -> Result<Doorbell, PostError> {
        let pages_per_chunk = self.check(request, chunks)?;
        let area = self.free.pop_front().ok_or(PostError::Full)?;
        // A free area means a free slot: `take_head` keeps what the card has not taken within what is in flight.
        assert!((self.commands.passed().wrapping_sub(self.command_head) as usize) < COMMANDS);
        let argument_bytes = self.write_records(area, request.id, chunks);
        let words = CommandWords {
            sequence: 0,
            crc: 0,
            generation: 0,
            request: request.id,
            opcode: request.operation.code(),
            flags: flags_of(request, chunks),
            area,
            section: request.section,
            argument_bytes,
            chunk_count: chunks.len() as u32,
            pages_per_chunk,
            token_start: request.tokens.start,
            token_end: request.tokens.end,
            deadline_us: request.deadline_us,
            target: if request.trailing > 0 { request.trailing.into() } else { request.target },
        };
        let mut line = words.encode();
        self.commands.seal(&mut line, self.page.generation());
        // Release: pairs with the card's copy of the slot. Whoever sees its first word sees the records too.
        self.page.write(self.commands.offset(), &line);
        self.commands.advance();
        let flight = Flight { request: request.id, operation: request.operation, chunks: chunks.len() as u32 };
        self.areas[usize::from(area)] = Area::Busy(flight);
        self.look().map_err(PostError::Peer)
    }

    /// Reads the card's line: after a post to learn whether to ring, and now and then to learn of a drain.
    pub fn look(&mut self) -> Result<Doorbell, PeerError> {
        // Without it the line could be read before the slot is visible, while the card does the same the other way.
        self.page.full_fence();
        let words = self.read_card_line()?;
        if words.sequence != 0 {
            let limit = u64::from(CardState::Draining as u32);
            let next = CardState::from_code(words.state);
            let next = next.ok_or(PeerError::Range { what: "card state", value: words.state.into(), limit })?;
            if next != self.card_state && !self.card_state.may_become(next) {
                return Err(PeerError::Range { what: "card state", value: words.state.into(), limit });
            }
            self.card_state = next;
        }
        Ok(if self.card.ring(&words) { Doorbell::Ring } else { Doorbell::Quiet })
    }

    /// The next completion, in the order the card finished. `None`: nothing yet.
    pub fn poll(&mut self) -> Result<Option<Completion>, PeerError> {
        let line = self.page.read_line(self.completions.offset());
        match self.completions.judge(&line, self.page.generation())? {
            Verdict::Empty => Ok(None),
            Verdict::Torn => self.be_patient().map(|()| None),
            Verdict::Fresh => {
                let completion = self.believe(&line)?;
                self.torn = 0;
                self.torn_since = None;
                self.completions.advance();
                Ok(Some(completion))
            }
        }
    }

    /// Copies the text that came with `completion` to the front of `out`. Possible until a later post takes the area.
    pub fn answer<'o>(&self, completion: &Completion, out: &'o mut [u8]) -> Result<&'o [u8], AnswerError> {
        let bytes = completion.answer_bytes as usize;
        match self.areas[usize::from(completion.area)] {
            Area::Free { last } if last == completion.request => {}
            _ => return Err(AnswerError::Gone),
        }
        if bytes == 0 {
            return Ok(&[]);
        }
        let room = out.len();
        let out = out.get_mut(..bytes).ok_or(AnswerError::Room { bytes, room })?;
        self.page.read(Span::new(area_at(completion.area), bytes), out);
        if crc32fast::hash(out) != completion.answer_crc {
            return Err(AnswerError::Checksum);
        }
        Ok(out)
    }

    /// Says that this side is about to sleep, and looks once more.
    pub fn prepare_sleep(&mut self) -> Sleep {
        self.write_line(true);
        self.page.full_fence();
        let line = self.page.read_line(self.completions.offset());
        match self.completions.judge(&line, self.page.generation()) {
            Ok(Verdict::Empty) => Sleep::Sleep,
            // Even a lie is work: poll will name it.
            _ => {
                self.wake();
                Sleep::Work
            }
        }
    }

    /// Says that this side is awake. Needs no fence: read late, it costs one doorbell too many.
    pub fn wake(&mut self) {
        if self.asleep {
            self.write_line(false);
        }
    }

    fn write_line(&mut self, asleep: bool) {
        let (offset, line) = self.line.write(asleep, self.completions.passed(), 0);
        self.page.write(offset, &line);
        self.asleep = asleep;
    }

    /// All that can be wrong with a request, before anything is written. Returns its pages per chunk.
    fn check(&self, request: &Request, chunks: &[Chunk<'_>]) -> Result<u32, PostError> {
        let operation = request.operation;
        if request.id == 0 || self.flights().any(|flight| flight.request == request.id) {
            return Err(PostError::Id { id: request.id });
        }
        if operation.takes_chunks() == chunks.is_empty() {
            return Err(PostError::Chunks { operation, chunks: chunks.len() });
        }
        if request.tokens.start >= request.tokens.end {
            return Err(PostError::Field { what: "empty token range" });
        }
        if (request.target != 0) != (operation == Operation::Cancel) {
            return Err(PostError::Field { what: "a cancel names a target, and nothing else does" });
        }
        if !operation.flags().contains(&flags_of(request, chunks)) {
            let what = "a store or a rating has importances, a store is done again, a look-up has trailing chunks, and \
                        nothing else";
            return Err(PostError::Field { what });
        }
        if request.trailing as usize > CHUNKS_PER_REQUEST_MAX {
            return Err(PostError::Field { what: "more trailing chunks than one request names" });
        }
        if usize::from(request.section) >= if operation.takes_chunks() { SECTIONS_MAX } else { 1 } {
            return Err(PostError::Field { what: "a section that no session has, or of a request without chunks" });
        }
        let pages = chunks.first().map_or(0, |chunk| chunk.pages.len());
        let odd = chunks.iter().position(|chunk| chunk.pages.len() != pages);
        let odd = odd.or((pages > PAGES_PER_CHUNK_MAX || (operation.takes_pages() && pages == 0)).then_some(0));
        if let Some(chunk) = odd {
            return Err(PostError::Pages { chunk, pages: chunks[chunk].pages.len(), limit: PAGES_PER_CHUNK_MAX });
        }
        if chunks.len() > chunks_max(pages) {
            return Err(PostError::TooMany { chunks: chunks.len(), limit: chunks_max(pages) });
        }
        Ok(pages as u32)
    }

    fn write_records(&self, area: u16, request: u64, chunks: &[Chunk<'_>]) -> u32 {
        let owner = Owner { generation: self.page.generation(), request };
        let mut record = [0; RECORD_WINDOW_BYTES];
        let mut written = 0;
        for (index, chunk) in chunks.iter().enumerate() {
            let bytes = encode(owner, index as u32, chunk, &mut record);
            self.page.write(area_at(area) + written, &record[..bytes]);
            written += bytes;
        }
        assert!(written <= ARGUMENT_BYTES, "checked by post");
        written as u32
    }

    fn flights(&self) -> impl Iterator<Item = &Flight> {
        self.areas.iter().filter_map(|area| match area {
            Area::Busy(flight) => Some(flight),
            Area::Free { .. } => None,
        })
    }

    fn read_card_line(&mut self) -> Result<SideWords, PeerError> {
        loop {
            let mut faces = [0; FACES_BYTES];
            let (first, second) = faces.split_at_mut(LINE_BYTES);
            self.page.read(Span::new(CARD_LINE_AT, LINE_BYTES), first);
            self.page.read(Span::new(CARD_LINE_AT + LINE_BYTES, LINE_BYTES), second);
            if let Some(words) = self.card.read(&faces)? {
                return Ok(words);
            }
            std::hint::spin_loop();
        }
    }

    fn be_patient(&mut self) -> Result<(), PeerError> {
        self.torn += 1;
        let since = *self.torn_since.get_or_insert_with(Instant::now);
        if self.torn > TORN_MAX && since.elapsed() >= self.torn_grace {
            return Err(PeerError::Torn { what: "completion slot", copies: self.torn });
        }
        Ok(())
    }

    fn believe(&mut self, line: &Line) -> Result<Completion, PeerError> {
        let words = CompletionWords::decode(line);
        let (request, area) = (words.request, words.area);
        let flight = match self.areas.get(usize::from(area)) {
            Some(&Area::Busy(flight)) if flight.request == request => flight,
            _ => return Err(PeerError::Unasked { request, area }),
        };
        let status = Status::from_code(words.status).ok_or(PeerError::Range {
            what: "status",
            value: words.status.into(),
            limit: Status::ALL.len() as u64,
        })?;
        for (what, value, limit) in [
            ("chunks done", words.chunks_done, flight.chunks),
            ("answer bytes", words.answer_bytes, ARGUMENT_BYTES as u32),
        ] {
            if value > limit {
                return Err(PeerError::Range { what, value: value.into(), limit: limit.into() });
            }
        }
        self.take_head(words.command_head)?;
        self.areas[usize::from(area)] = Area::Free { last: request };
        self.free.push_back(area).expect("as many places as areas");
        Ok(Completion {
            request,
            operation: flight.operation,
            status,
            chunks_done: words.chunks_done,
            chunks_asked: flight.chunks,
            answer_bytes: words.answer_bytes,
            wire_bytes: words.wire_bytes,
            restored_bytes: words.restored_bytes,
            elapsed_us: words.elapsed_us,
            area,
            answer_crc: words.answer_crc,
        })
    }

    /// Believes a head that leaves untaken at most what will still be in flight when this completion is taken: all that
    /// the card had not taken when it wrote the completion is still unanswered, since completions are polled in order.
    fn take_head(&mut self, head: u32) -> Result<(), PeerError> {
        let tail = self.commands.passed();
        let untaken = tail.wrapping_sub(head) as usize;
        if untaken >= self.outstanding() {
            let (value, limit) = (head.into(), tail.into());
            return Err(PeerError::Range { what: "command head", value, limit });
        }
        self.command_head = head;
        Ok(())
    }
}

/// A store that says nothing of importance is a store as cards have always known it.
fn flags_of(request: &Request, chunks: &[Chunk<'_>]) -> u16 {
    let said = chunks.iter().any(|chunk| chunk.importance != Importance::NEUTRAL);
    let importance = if said || request.operation == Operation::Rate { WITH_IMPORTANCE } else { 0 };
    importance | if request.again { AGAIN } else { 0 } | if request.trailing > 0 { TRAILING } else { 0 }
}

pub(crate) fn area_at(area: u16) -> usize {
    ARGUMENTS_AT + usize::from(area) * ARGUMENT_BYTES
}
