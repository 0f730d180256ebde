//! Fetches of one chunk start together: whoever is about to start the chunk that another starts, or has in progress,
//! follows it (pipeline/follow.rs).
//!
//! Joining by luck would not hold for a whole prefix: of two sessions at different places of one prefix each would read
//! all of it. So a chunk is started for all sessions whose next one it is in one moment, and their places in the prefix
//! move on together. At the end of a window of records each reads its next one from its host; who has started the same
//! chunk before waits for the others' to come.

use block::ChunkKey;
use mailbox::{Operation, Tokens};

use crate::config::TEAM_MAX;
use crate::hub::Hub;
use crate::hub::request::RequestInFlight;
use crate::hub::session::Session;
use crate::pipeline::chunk::Direction;
use crate::pipeline::follow::SharedChunk;
use crate::pipeline::job::Seat;

/// A chunk that a session's oldest request starts next.
#[derive(Clone, Copy, Debug)]
struct NextChunk {
    shared: SharedChunk,
    /// Tokens of it that are wanted.
    wanted: u32,
    request: usize,
}

impl Session {
    /// Borrows the oldest request with chunks to start, if it fetches.
    fn oldest_fetch(&self) -> Option<(usize, &RequestInFlight)> {
        let place = *self.queue.front().filter(|_| self.is_live())?;
        let request = self.requests[place].as_ref().expect("queued requests are live");
        (request.command.operation == Operation::Fetch && request.wants_more()).then_some((place, request))
    }

    /// Tells what it starts next, if it fetches and could start it now but for seats.
    fn next_fetch(&self) -> Option<NextChunk> {
        let (place, request) = self.oldest_fetch()?;
        let memory = self.memory.as_ref().expect("a fetch needs memory: checked when it was taken");
        let key = *self.staged.keys().first().filter(|_| self.records_due.is_none() && !self.touching)?;
        let section = memory.section(request.command.section);
        let Tokens { start, end } = request.tokens_of(request.next, section.geometry.chunk_tokens.into());
        let shared = SharedChunk { key, geometry: section.geometry, order: section.order };
        Some(NextChunk { shared, wanted: end - start, request: place })
    }

    /// Tells whether it has started this chunk last, and reads what comes after it from its host.
    fn reads_on_after(&self, last: &ChunkKey) -> bool {
        let reads = self.staged.is_empty() && !self.touching;
        reads && self.oldest_fetch().is_some_and(|(_, request)| request.last.as_ref() == Some(last))
    }
}

impl Hub<'_, '_> {
    /// Starts the next chunk of a session's oldest request, a fetch whose records are there, and with it that of every
    /// session which is about to start the same; `true` if it did.
    pub(super) fn start_fetch(&mut self, index: usize) -> bool {
        let Some(next) = self.session(index).next_fetch() else { return false };
        if !self.shared.config.join {
            let Some(seat) = self.pipeline.free_seat(index, Direction::Fetch) else { return false };
            self.start_chunk(index, next.request, seat, None);
            return true;
        }
        if self.waits_for_records(index) {
            return false;
        }
        let mut team = self.about_to_start(index, &next.shared);
        if let Some((leader, room)) = self.pipeline.leader_of(&next.shared) {
            team.truncate(room);
            if !self.pipeline.has_follower_seats(index, team.len()) {
                return false;
            }
            self.follow(&team, leader);
            return true;
        }
        // Its deadline is the one that the store hears of, and what it does not want does not come.
        let best = (0..team.len()).max_by_key(|&place| {
            let (session, next) = team[place];
            let until = self.sessions[session].as_ref().and_then(|session| session.requests[next.request].as_ref());
            (next.wanted, until.map(|request| request.until))
        });
        let (lead, led) = team.swap_remove(best.expect("the session itself is one of them"));
        if !self.pipeline.has_follower_seats(lead, team.len()) {
            return false;
        }
        let Some(seat) = self.pipeline.free_seat(lead, Direction::Fetch) else { return false };
        self.start_chunk(lead, led.request, seat, None);
        self.follow(&team, seat);
        true
    }

    /// Starts the next chunks of sessions, all of them the one that is in a seat.
    fn follow(&mut self, team: &[(usize, NextChunk)], leader: Seat) {
        for &(session, next) in team {
            let seat = self.pipeline.follower_seat().expect("there are seats for all of them");
            self.start_chunk(session, next.request, seat, Some(leader));
        }
    }

    /// Tells whether another session that started the same chunk last is still to hear from its host what comes next.
    fn waits_for_records(&self, index: usize) -> bool {
        let session = self.sessions[index].as_ref().expect("it has a chunk to start");
        let Some(last) = session.oldest_fetch().and_then(|(_, request)| request.last) else { return false };
        self.sessions.iter().flatten().any(|session| session.reads_on_after(&last))
    }

    /// Lists sessions whose next chunk is this one, up to [`TEAM_MAX`], the one that asks first.
    fn about_to_start(&self, index: usize, shared: &SharedChunk) -> heapless::Vec<(usize, NextChunk), TEAM_MAX> {
        let others = (0..self.sessions.len()).filter(|&other| other != index);
        let ready = [index].into_iter().chain(others).filter_map(|place| {
            let next = self.sessions[place].as_ref()?.next_fetch()?;
            (next.shared == *shared).then_some((place, next))
        });
        ready.take(TEAM_MAX).collect()
    }
}
