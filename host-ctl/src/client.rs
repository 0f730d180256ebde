//! A session: posts requests, takes completions, sleeps when there is nothing to do, and notices when the card dies.
//!
//! ```text
//! post.rs     requests are checked, and wait as jobs (job.rs)
//! page.rs     jobs <-> the mailbox page, cut into parts that fit
//! channel.rs  doorbells, good-byes, and the end
//! here        waiting: poll, wait, sleep
//! ```
//! One thread at a time. `post_*` never blocks: a request waits here until the page has room, is cut into parts that
//! fit, and ends as one [`Completion`]. Everything is bounded: [`JOBS_MAX`] requests, the page's slots below that. When
//! the card is lost ([`Error::CardGone`]), what is in flight never completes and every call says so; attach again.

mod channel;
mod page;
mod post;
mod request;

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use mailbox::channel::HostChannel;
use mailbox::layout::Layout;
use mailbox::{CardState, HostRing, Sleep, Status};

use crate::attach::{CardFacts, Options};
use crate::error::{Error, Gone};
use crate::export::Exporter;
use crate::job::ClientJob;
use crate::memory::Memory;

pub use request::{Completion, RequestId, Transfer};

/// Requests that may wait or run in one client.
pub const JOBS_MAX: usize = 256;
/// Longest sleep: even without a doorbell the page is looked at this often.
const SLEEP_MAX: Duration = Duration::from_secs(1);

/// See the module.
#[derive(Debug)]
pub struct Client {
    // Dropped in this order, the memory last: `drop` has made sure that the card is done with it, or leaks it.
    ring: HostRing,
    line: Box<dyn HostChannel>,
    exporter: Option<Box<dyn Exporter>>,
    memory: Option<Memory>,
    /// Layouts by section; none: no memory.
    layouts: Vec<Layout>,
    card_facts: CardFacts,
    spin: Duration,
    timeout: Duration,
    part_chunks: usize,
    next_id: u64,
    jobs: VecDeque<ClientJob>,
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
        line: Box<dyn HostChannel>,
        ring: HostRing,
        exporter: Box<dyn Exporter>,
        card_facts: CardFacts,
        layouts: Vec<Layout>,
        memory: Option<Memory>,
        options: &Options,
    ) -> Client {
        Client {
            ring,
            line,
            exporter: Some(exporter),
            memory,
            layouts,
            card_facts,
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
    pub fn card_facts(&self) -> &CardFacts {
        &self.card_facts
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
        let until = self.jobs.iter().filter_map(ClientJob::expires).fold(until, Instant::min);
        let left = until.saturating_duration_since(Instant::now()).min(SLEEP_MAX);
        let slept = if left.is_zero() { Ok(false) } else { self.line.wait(left) };
        self.ring.wake();
        if slept? {
            self.hear();
        }
        Ok(())
    }
}
