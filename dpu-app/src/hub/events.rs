//! The last things that happened, in a fixed ring: what an operator asks for first.

use std::time::Instant;

use heapless::HistoryBuf;

use crate::count::trace::Asker;
use crate::pipeline::job::{CrewKind, Failure};

/// Events kept.
pub(crate) const EVENTS: usize = 64;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum HubEvent {
    State(&'static str),
    Attached,
    Left,
    /// A session ended because of what its host did.
    Lost,
    Refused,
    EngineRestarted(doca::OperationKind),
    ChunkFailed(Failure),
    Deadline,
    WorkersStuck(CrewKind),
}

impl HubEvent {
    #[must_use]
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::State(name) => name,
            Self::Attached => "attached",
            Self::Left => "left",
            Self::Lost => "lost",
            Self::Refused => "refused",
            Self::EngineRestarted(doca::OperationKind::Decompress) => "inflate engine restarted",
            Self::EngineRestarted(doca::OperationKind::Dma) => "dma engine restarted",
            Self::ChunkFailed(Failure::Corrupt(_)) => "corrupt chunk",
            Self::ChunkFailed(_) => "chunk failed",
            Self::Deadline => "deadline passed",
            Self::WorkersStuck(CrewKind::Ask) => "look-up worker stuck",
            Self::WorkersStuck(CrewKind::Fetch) => "fetch worker stuck",
            Self::WorkersStuck(CrewKind::Dequantize) => "dequantize worker stuck",
            Self::WorkersStuck(CrewKind::Encode) => "encode worker stuck",
        }
    }
}

/// One entry: what, when, for whom, and a number that goes with it (a chunk, a reason, a count).
#[derive(Clone, Copy, Debug)]
pub(crate) struct Entry {
    pub at_ms: u64,
    pub event: HubEvent,
    /// Id of the session; 0: it concerns none.
    pub session: u32,
    /// The host's number of the request; 0: it concerns none.
    pub request: u64,
    pub value: u64,
}

#[derive(Debug)]
pub(crate) struct Events {
    started: Instant,
    ring: HistoryBuf<Entry, EVENTS>,
    refused: u64,
}

impl Events {
    #[must_use]
    pub(crate) fn new(started: Instant) -> Self {
        Self { started, ring: HistoryBuf::new(), refused: 0 }
    }

    pub(crate) fn add(&mut self, event: HubEvent, value: u64) {
        self.add_of(Asker { session: 0, request: 0 }, event, value);
    }

    /// Adds what happened to a session.
    pub(crate) fn add_session(&mut self, event: HubEvent, session: u32) {
        self.add_of(Asker { session, request: 0 }, event, session.into());
    }

    /// Adds what happened to a request.
    pub(crate) fn add_of(&mut self, of: Asker, event: HubEvent, value: u64) {
        let at_ms = self.started.elapsed().as_millis() as u64;
        self.ring.write(Entry { at_ms, event, session: of.session, request: of.request, value });
        self.refused += u64::from(event == HubEvent::Refused);
    }

    /// Counts the attaches that were refused since the start.
    #[must_use]
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// Iterates, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.ring.oldest_ordered()
    }
}
