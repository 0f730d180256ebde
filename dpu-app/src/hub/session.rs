//! One attached host: its memory as the card sees it, its page's card end, its requests.
//!
//! ```text
//!   Live -> Closing -> (gone)        Closing: no new work; leaves when nothing of it is in flight
//! ```

use std::collections::VecDeque;
use std::time::Instant;

use block::{ChunkKey, Geometry, Importance, Plan, Recipe, TileOrder};
use doca::{Area, Arena, Device, Remote};
use heapless::Deque;
use mailbox::channel::Channel;
use mailbox::layout::Layout;
use mailbox::{
    Answer, COMMAND_WINDOW, COMMANDS, CardRing, Command, LINE_BYTES, PAGES_PER_CHUNK_MAX, RECORD_HEAD_BYTES,
    RECORD_WINDOW_BYTES, Span,
};

use crate::config::ANSWER_BYTES;
use crate::hub::request::RequestInFlight;

/// Records in one window at most.
pub(crate) const STAGED_RECORDS: usize = RECORD_WINDOW_BYTES / RECORD_HEAD_BYTES;

/// The four kinds of small DMA that a session has in flight, at most one of each.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum MailLane {
    /// Command slots (and, first of all, the page's identity).
    Commands,
    /// Chunk records of a request.
    Records,
    /// The host's own line.
    HostLine,
    /// Answers, completions and the card's own line.
    Out,
}

impl MailLane {
    pub(crate) const ALL: [Self; 4] = [Self::Commands, Self::Records, Self::HostLine, Self::Out];

    const fn bytes(self) -> usize {
        match self {
            Self::Commands => COMMAND_WINDOW * LINE_BYTES,
            Self::Records => RECORD_WINDOW_BYTES,
            Self::HostLine => 2 * LINE_BYTES,
            Self::Out => ANSWER_BYTES,
        }
    }
}

/// Registered staging memory of one session, by lane; an empty place means that the DMA engine holds it.
#[derive(Debug, Default)]
pub(crate) struct SessionDesk {
    areas: [Option<Area>; MailLane::ALL.len()],
}

impl SessionDesk {
    /// Counts the bytes of one desk.
    #[must_use]
    pub(crate) fn bytes() -> usize {
        MailLane::ALL.iter().map(|lane| lane.bytes().next_multiple_of(doca::AREA_ALIGNMENT)).sum()
    }

    /// Bytes of one allocation of desks: a page that an arena has whole anyway.
    const BATCH_BYTES: usize = doca::HUGE_PAGE_BYTES;

    /// Counts the bytes that so many desks take.
    #[must_use]
    pub(crate) fn bytes_of(count: usize) -> usize {
        count.div_ceil(Self::BATCH_BYTES / Self::bytes()) * Self::BATCH_BYTES
    }

    /// Makes more desks, a page full of them, up to `count` of all; `desks` has room for them.
    ///
    /// # Errors
    /// Fails if there is no memory that can be registered.
    pub(crate) fn lay_out(device: &Device, count: usize, desks: &mut Vec<Self>) -> Result<usize, doca::Error> {
        let batch = count.min(Self::BATCH_BYTES / Self::bytes());
        let mut arena = Arena::allocate(device, batch * Self::bytes())?;
        desks.extend((0..batch).map(|_| Self::carve(&mut arena)));
        Ok(batch)
    }

    fn carve(arena: &mut Arena) -> Self {
        let mut desk = Self::default();
        for lane in MailLane::ALL {
            desk.areas[lane as usize] = Some(arena.carve(lane.bytes()).expect("the arena was sized for all desks"));
        }
        desk
    }

    pub(crate) fn area(&mut self, lane: MailLane) -> &mut Option<Area> {
        &mut self.areas[lane as usize]
    }

    /// Returns the records that were just read.
    #[must_use]
    pub(crate) fn areas_records(&self) -> &[u8] {
        self.areas[MailLane::Records as usize].as_deref().expect("the records just came back")
    }

    #[must_use]
    pub(crate) fn is_idle(&self) -> bool {
        self.areas.iter().all(Option::is_some)
    }
}

/// What the out lane writes next or is writing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Outgoing {
    /// Text for the request whose completion follows.
    Text(Answer),
    Completion,
    /// The card's line, saying that it sleeps.
    Line,
}

/// Whether the card looks at this session's commands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SessionWake {
    Awake,
    /// The line that says "asleep" is to be written.
    Saying,
    /// It is written: one more look at the commands.
    Checking,
    /// It sleeps until a doorbell.
    Asleep,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SessionState {
    Live,
    Closing,
}

impl SessionState {
    #[must_use]
    pub(crate) fn may_become(self, next: Self) -> bool {
        matches!((self, next), (Self::Live, Self::Closing))
    }
}

/// Chunk records that were read and checked, waiting for seats.
#[derive(Debug, Default)]
pub(crate) struct Staged {
    keys: heapless::Vec<ChunkKey, STAGED_RECORDS>,
    importances: heapless::Vec<Importance, STAGED_RECORDS>,
    pages: heapless::Vec<u32, PAGES_PER_CHUNK_MAX>,
    taken: usize,
}

impl Staged {
    pub(crate) fn clear(&mut self) {
        self.keys.clear();
        self.importances.clear();
        self.pages.clear();
        self.taken = 0;
    }

    /// Adds a record. A window never holds more than fits: its bytes bound both.
    pub(crate) fn push(&mut self, record: &mailbox::Record<'_>) {
        self.keys.push(record.key).expect("records of one window");
        self.importances.push(record.importance).expect("records of one window");
        self.pages.extend(record.pages.iter());
    }

    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.taken == self.keys.len()
    }

    #[must_use]
    pub(crate) fn keys(&self) -> &[ChunkKey] {
        &self.keys[self.taken..]
    }

    /// Takes the next record: its key, its importance, and its pages.
    pub(crate) fn take(&mut self, pages_per_chunk: usize) -> Option<(ChunkKey, Importance, &[u32])> {
        let (key, importance) = (*self.keys.get(self.taken)?, self.importances[self.taken]);
        let first = self.taken * pages_per_chunk;
        self.taken += 1;
        Some((key, importance, &self.pages[first..first + pages_per_chunk]))
    }
}

/// A request by its place, which may be another's by the time that an answer comes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Whose {
    pub place: usize,
    pub serial: u64,
}

/// Records that are being read for a request, from the next that it wants on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct RecordsReading {
    pub whose: Whose,
    pub span: Span,
}

/// Layers of equal shape, which have chunks of their own, in a session's memory.
#[derive(Debug)]
pub struct SectionMemory {
    pub geometry: Geometry,
    pub layout: Layout,
    pub order: TileOrder,
    /// Plan by which this card cuts chunks that it stores for this session.
    pub plan: Plan,
}

/// Memory that a session has registered.
#[derive(Debug)]
pub struct SessionMemory {
    /// Sections, as many as its ring knows.
    pub sections: Vec<SectionMemory>,
    /// Regions, which all sections share.
    pub regions: Vec<Remote>,
    /// Whether every region may be written.
    pub writable: bool,
}

impl SessionMemory {
    /// Borrows the section that a command names.
    #[must_use]
    pub fn section(&self, index: u16) -> &SectionMemory {
        &self.sections[usize::from(index)]
    }
}

/// One attached host.
#[derive(Debug)]
pub(crate) struct Session {
    pub state: SessionState,
    pub id: u32,
    pub client: String,
    /// Namespace whose quota of the tiers it uses.
    pub namespace: u8,
    pub pid: u32,
    /// Whether it came by the card's own socket.
    pub is_local: bool,
    /// Generation of its page.
    pub generation: u64,
    pub recipe: Recipe,
    pub channel: Box<dyn Channel>,
    pub ring: CardRing,
    pub page: Remote,
    pub memory: Option<SessionMemory>,
    pub desk: SessionDesk,
    /// Time at which it got its place.
    pub seated: Instant,
    pub wake: SessionWake,
    /// Whether the page has shown its identity and the host was welcomed.
    pub welcomed: bool,
    pub last_command: Instant,
    pub commands_due: bool,
    pub host_line_due: bool,
    pub records_due: Option<RecordsReading>,
    pub staged: Staged,
    /// Written, or being written, by the out lane; kept until it succeeds.
    pub out: Option<(Outgoing, Span)>,
    pub answers: Deque<Answer, COMMANDS>,
    pub texts: Deque<Command, COMMANDS>,
    pub requests: [Option<RequestInFlight>; COMMANDS],
    /// Requests with chunks to start, oldest first. Capacity is taken at attach.
    pub queue: VecDeque<usize>,
    /// Look-ups and ratings whose keys are not all there, or that wait for the one before. They start no chunk, so they
    /// wait for none.
    pub questions: VecDeque<usize>,
    /// Look-up or rating that a worker is busy with, even if it was answered.
    pub looking: Option<Whose>,
    /// Whether a worker is telling the store about the prefix whose chunks were started last.
    pub touching: bool,
    /// Chunks in progress of this session.
    pub chunks: usize,
    /// Small DMAs that failed alone, in a row.
    pub blames: u8,
}

impl Session {
    pub(crate) fn close(&mut self) {
        if self.state == SessionState::Live {
            assert!(self.state.may_become(SessionState::Closing));
            self.state = SessionState::Closing;
        }
    }

    #[must_use]
    pub(crate) fn is_live(&self) -> bool {
        self.state == SessionState::Live
    }

    /// Tells whether nothing of it is in flight.
    #[must_use]
    pub(crate) fn is_idle(&self) -> bool {
        self.chunks == 0 && self.looking.is_none() && !self.touching && self.desk.is_idle()
    }

    /// Tells whether a host is there to whom a request is to be answered.
    #[must_use]
    pub(crate) fn awaits_answers(&self) -> bool {
        self.is_live() && (self.requests.iter().any(Option::is_some) || self.has_words())
    }

    /// Tells whether the host is still to be told something.
    #[must_use]
    pub(crate) fn has_words(&self) -> bool {
        self.out.is_some() || !self.answers.is_empty() || !self.texts.is_empty()
    }

    /// Has the commands looked at again, after a new command or a doorbell.
    pub(crate) fn stir(&mut self, now: Instant) {
        self.wake = SessionWake::Awake;
        self.commands_due = true;
        self.last_command = now;
    }

    /// Finds the request that an answer is for, if it still waits for it.
    pub(crate) fn request_of(&mut self, whose: Whose) -> Option<&mut RequestInFlight> {
        self.requests[whose.place].as_mut().filter(|request| request.serial == whose.serial)
    }

    /// Finds the place of a live request.
    #[must_use]
    pub(crate) fn find(&self, request: u64) -> Option<usize> {
        self.requests.iter().position(|r| r.as_ref().is_some_and(|r| r.command.request == request))
    }
}
