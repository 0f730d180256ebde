//! A session: posts requests, takes completions, sleeps when there is nothing to do, and notices when the card dies.
//!
//! One thread at a time. `post_*` never blocks: a request waits here until the page has room, is cut into parts that
//! fit (job.rs), and ends as one [`Completion`]. Everything is bounded: [`JOBS_MAX`] requests, the page's slots below
//! that. When the card is lost ([`Error::CardGone`]), what is in flight never completes and every call says so; attach
//! again.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use block::{ChunkKey, Importance};
use mailbox::attach::{ATTACH_MESSAGE_MAX, Farewell, Message};
use mailbox::channel::{ChannelError, Line};
use mailbox::layout::Layout;
use mailbox::{
    COMMANDS, CardState, Chunk, Doorbell, HostRing, Operation, PeerError, PostError, Request, Sleep, Status, Tokens,
    chunks_max,
};

use crate::attach::{Options, Welcome};
use crate::error::{Error, Gone};
use crate::export::Exporter;
use crate::job::{Ask, Job, Outcome, Part};
use crate::memory::Memory;

/// Requests that may wait or run in one client.
pub const JOBS_MAX: usize = 256;
/// Slots of the page that transfers leave to cancels, pings and status.
const CONTROL_SLOTS: usize = 4;
/// How often the channel is looked at while requests are polled: each look is a system call.
const HEAR_EVERY: Duration = Duration::from_millis(1);
/// Longest sleep: even without a doorbell the page is looked at this often.
const SLEEP_MAX: Duration = Duration::from_secs(1);
/// How long a session that has nothing in flight waits for the card to let go of the page.
const LEAVE_IDLE: Duration = Duration::from_millis(200);

/// A request of this client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(u64);

impl RequestId {
    /// For callers that keep requests by number, in another language. Numbers are not used twice in a session.
    pub const fn number(self) -> u64 {
        self.0
    }

    /// A number that [`RequestId::number`] gave; any other is an unknown request.
    pub const fn from_number(number: u64) -> RequestId {
        RequestId(number)
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Chunks to move, between the store and pages of this session's layout.
#[derive(Clone, Copy, Debug)]
pub struct Transfer<'a> {
    pub keys: &'a [ChunkKey],
    /// Page numbers in token order: equally many for each chunk, one chunk after the other.
    pub pages: &'a [u32],
    /// Tokens to move, counted from the first chunk's first. Starts in the first chunk and ends in the last: name only
    /// chunks that move.
    pub tokens: Tokens,
    /// For the whole transfer. `None`: the card's own, for each part.
    pub deadline: Option<Duration>,
    /// Of a store: what each chunk is worth beside how often it is used, or nothing: neutral.
    pub importances: &'a [Importance],
    /// Of a store: also what the store has.
    pub again: bool,
}

impl<'a> Transfer<'a> {
    /// All tokens, the card's own deadline, nothing said of importance.
    pub const fn new(keys: &'a [ChunkKey], pages: &'a [u32]) -> Transfer<'a> {
        Transfer { keys, pages, tokens: Tokens::ALL, deadline: None, importances: &[], again: false }
    }
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Completion {
    pub id: RequestId,
    pub operation: Operation,
    pub status: Status,
    /// Leading whole chunks in place, stored or found. Whatever the status, these are right; nothing beyond them is.
    pub chunks_done: usize,
    pub chunks_asked: usize,
    pub wire_bytes: u64,
    pub restored_bytes: u64,
    /// The card's own time, added up over parts that may have run at once.
    pub card: Duration,
    /// From post to here.
    pub elapsed: Duration,
    /// Text of the answer; empty for most operations.
    pub answer: String,
}

impl Completion {
    /// The completion, if its status is `Ok`.
    ///
    /// # Errors
    /// [`Error::Failed`] with the status and what was done before it.
    pub fn ok(self) -> Result<Completion, Error> {
        match self.status {
            Status::Ok => Ok(self),
            status => Err(Error::Failed {
                operation: self.operation,
                status,
                done: self.chunks_done as u32,
                asked: self.chunks_asked as u32,
            }),
        }
    }
}

/// See the module.
#[derive(Debug)]
pub struct Client {
    // Dropped in this order, the memory last: `drop` has made sure that the card is done with it, or leaks it.
    ring: HostRing,
    line: Box<dyn Line>,
    exporter: Option<Box<dyn Exporter>>,
    memory: Option<Memory>,
    layout: Option<Layout>,
    welcome: Welcome,
    spin: Duration,
    timeout: Duration,
    part_chunks: usize,
    next_id: u64,
    jobs: VecDeque<Job>,
    ready: VecDeque<Completion>,
    /// Page requests to cancel, and cancels on the page.
    to_cancel: VecDeque<u64>,
    cancelling: Vec<u64>,
    heard: Instant,
    gone: Option<Gone>,
    /// Completions taken from the page, to notice that something happened.
    taken: u64,
    /// The good-bye is said and the card's answer to it is known.
    left: bool,
}

impl Client {
    pub(crate) fn new(
        line: Box<dyn Line>,
        ring: HostRing,
        exporter: Box<dyn Exporter>,
        welcome: Welcome,
        layout: Option<Layout>,
        memory: Option<Memory>,
        options: &Options,
    ) -> Client {
        Client {
            ring,
            line,
            exporter: Some(exporter),
            memory,
            layout,
            welcome,
            spin: options.spin,
            timeout: options.timeout,
            part_chunks: options.part_chunks.unwrap_or(usize::MAX),
            next_id: 1,
            jobs: VecDeque::new(),
            ready: VecDeque::new(),
            to_cancel: VecDeque::new(),
            cancelling: Vec::new(),
            heard: Instant::now(),
            gone: None,
            taken: 0,
            left: false,
        }
    }

    /// What the card said at attach.
    pub fn welcome(&self) -> &Welcome {
        &self.welcome
    }

    /// The memory of this session.
    pub fn memory(&self) -> Option<&Memory> {
        self.memory.as_ref()
    }

    /// The line's descriptor, where it has one: a forked child closes its copy of it.
    pub fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.line.fd()
    }

    /// Requests that have not completed.
    pub fn outstanding(&self) -> usize {
        self.jobs.len()
    }

    /// Whether the card takes nothing new, as far as this side knows.
    pub fn is_draining(&self) -> bool {
        self.ring.card_state() == CardState::Draining
    }

    /// Asks how many leading chunks are stored. Moves nothing; needs no memory.
    ///
    /// # Errors
    /// Full, gone, or no chunks.
    pub fn post_lookup(&mut self, keys: &[ChunkKey]) -> Result<RequestId, Error> {
        self.post_chunks(Operation::Lookup, &Transfer::new(keys, &[]))
    }

    /// Says what chunks are worth, one importance each, whether they are stored or not. Moves nothing; needs no memory.
    ///
    /// # Errors
    /// Full, gone, no chunks, or another number of importances.
    pub fn post_rate(&mut self, keys: &[ChunkKey], importances: &[Importance]) -> Result<RequestId, Error> {
        self.post_chunks(Operation::Rate, &Transfer { importances, ..Transfer::new(keys, &[]) })
    }

    /// Restores chunks into pages.
    ///
    /// # Errors
    /// Full, gone, or a transfer that does not fit the layout.
    pub fn post_fetch(&mut self, transfer: &Transfer<'_>) -> Result<RequestId, Error> {
        self.post_chunks(Operation::Fetch, transfer)
    }

    /// Stores chunks from pages.
    ///
    /// # Errors
    /// As for a fetch.
    pub fn post_store(&mut self, transfer: &Transfer<'_>) -> Result<RequestId, Error> {
        self.post_chunks(Operation::Store, transfer)
    }

    /// Asks for an answer and nothing else.
    ///
    /// # Errors
    /// Full or gone.
    pub fn post_ping(&mut self) -> Result<RequestId, Error> {
        self.post_control(Operation::Ping)
    }

    /// Asks for limits, counters and times as JSON text.
    ///
    /// # Errors
    /// Full or gone.
    pub fn post_status(&mut self) -> Result<RequestId, Error> {
        self.post_control(Operation::Status)
    }

    /// Asks what requests waited for lately, as JSON text. A card from before it answers `Unsupported`.
    ///
    /// # Errors
    /// Full or gone.
    pub fn post_trace(&mut self) -> Result<RequestId, Error> {
        self.post_control(Operation::Trace)
    }

    /// Asks the card to finish what runs and to take nothing new.
    ///
    /// # Errors
    /// Full or gone.
    pub fn post_drain(&mut self) -> Result<RequestId, Error> {
        self.post_control(Operation::Drain)
    }

    /// Asks the card to take requests again after a drain.
    ///
    /// # Errors
    /// Full or gone.
    pub fn post_resume(&mut self) -> Result<RequestId, Error> {
        self.post_control(Operation::Resume)
    }

    /// Asks the card to end after its answers.
    ///
    /// # Errors
    /// Full or gone.
    pub fn post_stop(&mut self) -> Result<RequestId, Error> {
        self.post_control(Operation::Stop)
    }

    /// Gives a request up. It still completes, as `Cancelled` or as what it had become, and its pages are not free
    /// before.
    ///
    /// # Errors
    /// Unknown or gone.
    pub fn cancel(&mut self, id: RequestId) -> Result<(), Error> {
        let job = self.jobs.iter_mut().find(|job| job.id == id.0).ok_or(Error::UnknownRequest { id: id.0 })?;
        job.stop(Status::Cancelled);
        self.pump()
    }

    /// Leading chunks of a running request that are known to be done.
    pub fn progress(&self, id: RequestId) -> Option<usize> {
        self.jobs.iter().find(|job| job.id == id.0).map(|job| job.done)
    }

    fn post_control(&mut self, operation: Operation) -> Result<RequestId, Error> {
        self.enqueue(Ask {
            operation,
            keys: Box::new([]),
            pages: Box::new([]),
            importances: Box::new([]),
            tokens: Tokens::ALL,
            target: 0,
            deadline: None,
            again: false,
            chunk_tokens: 1,
            part_chunks: 1,
        })
    }

    fn post_chunks(&mut self, operation: Operation, transfer: &Transfer<'_>) -> Result<RequestId, Error> {
        let Transfer { keys, pages, tokens, deadline, importances, again } = *transfer;
        let name = format!("{operation:?}").to_lowercase();
        let wrong = |what: String| Err(Error::input(&name, what, "correct the request"));
        if keys.is_empty() {
            return wrong("no chunks".to_owned());
        }
        let may_be_unsaid = operation != Operation::Rate && importances.is_empty();
        if importances.len() != keys.len() && !may_be_unsaid {
            return wrong(format!("{} importances for {} chunks", importances.len(), keys.len()));
        }
        let (mut chunk_tokens, mut pages_per_chunk) = (1, 0);
        if operation.takes_pages() {
            let Some(layout) = &self.layout else {
                return wrong("this session has no memory".to_owned());
            };
            chunk_tokens = u32::from(layout.geometry().chunk_tokens);
            pages_per_chunk = layout.pages_per_chunk();
            let (expected, limit) = (keys.len() * pages_per_chunk, layout.form().page_count);
            if pages.len() != expected {
                return wrong(format!("{} page numbers for {} chunks, expected {expected}", pages.len(), keys.len()));
            }
            if let Some(page) = pages.iter().find(|&&page| page >= limit) {
                return wrong(format!("page {page}, the layout has {limit}"));
            }
            let all = keys.len() as u64 * u64::from(chunk_tokens);
            let last = all - u64::from(chunk_tokens);
            let end = if tokens.end == u32::MAX { all } else { u64::from(tokens.end) };
            let fits = tokens.start < chunk_tokens && u64::from(tokens.start) < end && end > last && end <= all;
            if tokens != Tokens::ALL && !fits {
                let Tokens { start, end } = tokens;
                return wrong(format!(
                    "tokens {start}..{end} do not start in the first of {} chunks and end in the last",
                    keys.len()
                ));
            }
        }
        let part_chunks = self.part_chunks.min(chunks_max(pages_per_chunk)).min(self.welcome.chunks_max as usize);
        self.enqueue(Ask {
            operation,
            keys: keys.into(),
            pages: pages.into(),
            importances: importances.into(),
            tokens,
            target: 0,
            deadline,
            again,
            chunk_tokens,
            part_chunks: part_chunks.max(1),
        })
    }

    fn enqueue(&mut self, ask: Ask) -> Result<RequestId, Error> {
        if let Some(gone) = self.gone {
            return Err(gone.into());
        }
        if self.jobs.len() + self.ready.len() >= JOBS_MAX {
            return Err(Error::Full { limit: JOBS_MAX });
        }
        let id = self.fresh_id();
        self.jobs.push_back(Job::new(id, ask, Instant::now()));
        self.pump()?;
        Ok(RequestId(id))
    }

    fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// The next completion, in the order in which requests ended. Never blocks.
    ///
    /// # Errors
    /// The card is gone; completions that came before are given out first.
    pub fn poll(&mut self) -> Result<Option<Completion>, Error> {
        let turned = self.turn();
        match self.ready.pop_front() {
            Some(completion) => Ok(Some(completion)),
            None => turned.map(|()| None),
        }
    }

    /// Waits for one request; others that end meanwhile are kept for [`Client::poll`].
    ///
    /// # Errors
    /// Unknown, gone, or [`Error::Timeout`], after which the request goes on: wait again or cancel it.
    pub fn wait(&mut self, id: RequestId, timeout: Duration) -> Result<Completion, Error> {
        let until = Instant::now() + timeout;
        loop {
            let turned = self.turn();
            if let Some(at) = self.ready.iter().position(|completion| completion.id == id) {
                return Ok(self.ready.remove(at).expect("just found"));
            }
            turned?;
            let Some(job) = self.jobs.iter().find(|job| job.id == id.0) else {
                return Err(Error::UnknownRequest { id: id.0 });
            };
            if Instant::now() >= until {
                return Err(Error::Timeout { what: job.operation.name(), waited: timeout });
            }
            self.idle(until)?;
        }
    }

    /// Waits for any request. `None` when time ran out, or nothing is in flight.
    ///
    /// # Errors
    /// As [`Client::poll`].
    pub fn wait_any(&mut self, timeout: Duration) -> Result<Option<Completion>, Error> {
        let until = Instant::now() + timeout;
        loop {
            let found = self.poll()?;
            if found.is_some() || self.jobs.is_empty() || Instant::now() >= until {
                return Ok(found);
            }
            self.idle(until)?;
        }
    }

    /// Waits until the card ends the session, as after a stop. False when it did not in time.
    pub fn wait_end(&mut self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        while self.turn().is_ok() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.line.wait(left).is_err() {
                return false;
            }
            self.hear();
        }
        true
    }

    /// Ends the session in order: waits for what is in flight, says good-bye, and waits for the card to let go of the
    /// memory.
    ///
    /// # Errors
    /// Something was in flight and did not end in time; the memory is then leaked rather than freed under a DMA.
    pub fn close(mut self, timeout: Duration) -> Result<(), Error> {
        let until = Instant::now() + timeout;
        while !self.jobs.is_empty() && self.gone.is_none() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(Error::Timeout { what: "close", waited: timeout });
            }
            self.wait_any(left)?;
        }
        Ok(())
    }

    /// Ends the session whatever is in flight, and says whether the card has let go of the memory: only then may its
    /// pages be given to somebody else. Otherwise the export is leaked, as when a client is dropped.
    pub fn leave(mut self, timeout: Duration) -> bool {
        self.timeout = timeout;
        self.let_go()
    }

    /// Everything that can be done without waiting.
    fn turn(&mut self) -> Result<(), Error> {
        if self.gone.is_none() && self.heard.elapsed() >= HEAR_EVERY {
            self.hear();
        }
        // Also after the card is gone: what it completed before is true.
        self.take_completions();
        match self.gone {
            Some(gone) => Err(gone.into()),
            None => self.pump(),
        }
    }

    fn take_completions(&mut self) {
        loop {
            match self.ring.poll() {
                Ok(Some(completion)) => self.take(&completion),
                Ok(None) => return,
                Err(error) => return self.lied(error),
            }
        }
    }

    fn take(&mut self, completion: &mailbox::Completion) {
        self.taken += 1;
        if let Some(at) = self.cancelling.iter().position(|&request| request == completion.request) {
            self.cancelling.swap_remove(at);
            return;
        }
        let Some(at) = self.jobs.iter().position(|job| job.owns(completion.request)) else {
            debug_assert!(false, "the ring completes only what was posted: {completion:?}");
            return;
        };
        let job = &mut self.jobs[at];
        if completion.answer_bytes > 0 {
            let mut text = vec![0; completion.answer_bytes as usize];
            match self.ring.answer(completion, &mut text) {
                Ok(text) => job.answer = String::from_utf8_lossy(text).into_owned(),
                // The status is whole all the same; an empty answer is refused by whoever reads it.
                Err(error) => log::warn!("request {}: {error}", completion.request),
            }
        }
        job.ended(
            completion.request,
            Outcome {
                status: completion.status,
                done: completion.chunks_done,
                wire_bytes: completion.wire_bytes,
                restored_bytes: completion.restored_bytes,
                elapsed_us: completion.elapsed_us,
            },
        );
        self.retire(at);
    }

    /// Moves a job that is over to the completions.
    fn retire(&mut self, at: usize) {
        let Some(status) = self.jobs[at].finished() else { return };
        let job = self.jobs.remove(at).expect("indexed just now");
        self.ready.push_back(Completion {
            id: RequestId(job.id),
            operation: job.operation,
            status,
            chunks_done: job.done,
            chunks_asked: job.keys.len(),
            wire_bytes: job.wire_bytes,
            restored_bytes: job.restored_bytes,
            card: Duration::from_micros(job.card_us),
            elapsed: job.since.elapsed(),
            answer: job.answer,
        });
    }

    /// Posts what the page has room for: cancels first, then control, then transfers, the oldest first.
    fn pump(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let mut at = 0;
        while at < self.jobs.len() {
            self.jobs[at].expire(now);
            let to_cancel = &mut self.to_cancel;
            self.jobs[at].cancel_rest(|request| to_cancel.push_back(request));
            while self.has_room(self.jobs[at].operation) {
                let Some(part) = self.jobs[at].next(now) else { break };
                self.post_part(at, &part)?;
            }
            let before = self.jobs.len();
            self.retire(at);
            at += usize::from(self.jobs.len() == before);
        }
        while let Some(target) = self.to_cancel.pop_front() {
            if self.ring.outstanding() >= COMMANDS {
                self.to_cancel.push_front(target);
                break;
            }
            let id = self.fresh_id();
            self.post(&Request::cancel(id, target), &[])?;
            self.cancelling.push(id);
        }
        Ok(())
    }

    fn has_room(&self, operation: Operation) -> bool {
        let outstanding = self.ring.outstanding();
        if !operation.takes_chunks() {
            return outstanding < COMMANDS;
        }
        let transfers: usize = self.jobs.iter().filter(|job| job.operation.takes_chunks()).map(Job::in_flight).sum();
        outstanding < COMMANDS - CONTROL_SLOTS && transfers < self.welcome.requests_max as usize
    }

    fn post_part(&mut self, at: usize, part: &Part) -> Result<(), Error> {
        let request = self.fresh_id();
        let job = &self.jobs[at];
        let each = job.pages.len() / job.keys.len().max(1);
        let chunks: Vec<Chunk<'_>> = (part.first..part.first + part.chunks)
            .map(|index| Chunk {
                key: &job.keys[index],
                pages: &job.pages[index * each..(index + 1) * each],
                importance: job.importances.get(index).copied().unwrap_or_default(),
            })
            .collect();
        let words = Request {
            id: request,
            operation: job.operation,
            tokens: part.tokens,
            deadline_us: part.deadline_us,
            target: job.target,
            again: job.again,
        };
        let doorbell = match self.ring.post(&words, &chunks) {
            Ok(doorbell) => doorbell,
            Err(error) => return Err(self.post_failed(error)),
        };
        self.jobs[at].posted(part, request);
        self.ring_if(doorbell);
        Ok(())
    }

    fn post(&mut self, request: &Request, chunks: &[Chunk<'_>]) -> Result<(), Error> {
        match self.ring.post(request, chunks) {
            Ok(doorbell) => {
                self.ring_if(doorbell);
                Ok(())
            }
            Err(error) => Err(self.post_failed(error)),
        }
    }

    fn post_failed(&mut self, error: PostError) -> Error {
        match error {
            PostError::Peer(error) => {
                self.lied(error);
                Gone::Lied(error).into()
            }
            error => Error::Post(error),
        }
    }

    fn ring_if(&mut self, doorbell: Doorbell) {
        if doorbell == Doorbell::Quiet {
            return;
        }
        let mut bytes = [0; ATTACH_MESSAGE_MAX];
        let bytes = Message::Doorbell.encode(&mut bytes).expect("a doorbell always fits");
        match self.line.send(bytes) {
            // Full: the card has messages that it has not read, and will wake for them.
            Ok(()) | Err(ChannelError::Full) => {}
            Err(_) => self.hear(),
        }
    }

    /// Reads what came on the channel.
    fn hear(&mut self) {
        self.heard = Instant::now();
        let mut bytes = [0; ATTACH_MESSAGE_MAX];
        while self.gone.is_none() {
            self.gone = match self.line.receive(&mut bytes) {
                Ok(None) => return,
                Ok(Some(count)) => match Message::decode(&bytes[..count]) {
                    Ok(Message::Bye(farewell)) => Some(Gone::Left(farewell)),
                    // A doorbell says "look", and looking is what comes next; the rest has no meaning any more.
                    Ok(_) => None,
                    Err(error) => Some(Gone::Babbled(error)),
                },
                Err(_) => Some(Gone::Died),
            };
        }
    }

    fn lied(&mut self, error: PeerError) {
        if self.gone.is_none() {
            self.gone = Some(Gone::Lied(error));
            self.say_bye(Farewell::PeerError);
        }
    }

    fn say_bye(&mut self, farewell: Farewell) {
        let mut bytes = [0; ATTACH_MESSAGE_MAX];
        let bytes = Message::Bye(farewell).encode(&mut bytes).expect("a good-bye always fits");
        // A card that cannot be told will notice the closed channel.
        let _ = self.line.send(bytes);
    }

    /// Looks for a moment, then sleeps until a doorbell, the channel's end, or `until`.
    fn idle(&mut self, until: Instant) -> Result<(), Error> {
        let (taken, spin_until) = (self.taken, until.min(Instant::now() + self.spin));
        while Instant::now() < spin_until {
            self.take_completions();
            if self.taken != taken || self.gone.is_some() {
                return Ok(());
            }
            std::hint::spin_loop();
        }
        if self.ring.prepare_sleep() == Sleep::Work {
            return Ok(());
        }
        let until = self.jobs.iter().filter_map(Job::expires).fold(until, Instant::min);
        let left = until.saturating_duration_since(Instant::now()).min(SLEEP_MAX);
        let slept = if left.is_zero() { Ok(false) } else { self.line.wait(left) };
        self.ring.wake();
        if slept? {
            self.hear();
        }
        Ok(())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.let_go();
    }
}

impl Client {
    /// The card may be writing. It lets go when it has heard the good-bye and ended what was in flight: then its end of
    /// the channel closes, and not before. Once only: the second call, of `drop` after `leave`, has nothing to do.
    fn let_go(&mut self) -> bool {
        if std::mem::replace(&mut self.left, true) {
            return true;
        }
        let in_flight = self.ring.outstanding() > 0;
        if self.gone.is_none() {
            self.say_bye(Farewell::Done);
        }
        let patience = if in_flight { self.timeout } else { LEAVE_IDLE };
        let let_go = self.gone == Some(Gone::Died) || self.await_close(patience);
        if in_flight && !let_go {
            log::warn!("the card did not let go of {} requests: their memory is leaked", self.ring.outstanding());
            std::mem::forget((self.exporter.take(), self.memory.take()));
        }
        let_go || !in_flight
    }

    fn await_close(&mut self, timeout: Duration) -> bool {
        let until = Instant::now() + timeout;
        let mut bytes = [0; ATTACH_MESSAGE_MAX];
        loop {
            match self.line.receive(&mut bytes) {
                Ok(Some(_)) => {}
                Err(_) => return true,
                Ok(None) => {
                    let left = until.saturating_duration_since(Instant::now());
                    if left.is_zero() || self.line.wait(left).is_err() {
                        return false;
                    }
                }
            }
        }
    }
}
