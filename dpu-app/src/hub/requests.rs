//! Requests become chunks in seats, and chunks that ended become answers. What lies between is scheduler.rs.

use std::time::Duration;

use mailbox::{Answer, Operation, Status};
use store::Position;

use crate::count::counters::add;
use crate::count::trace::{Asker, Late, TraceStage};
use crate::hub::Hub;
use crate::hub::events::HubEvent;
use crate::hub::health::STUCK;
use crate::hub::marks::SeatMark;
use crate::hub::request::RequestInFlight;
use crate::hub::session::{RecordsReading, Session, SessionMemory, Whose};
use crate::pipeline::World;
use crate::pipeline::chunk::{ChunkInFlight, Direction, OTHERWISE, Pages};
use crate::pipeline::endings::Endings;
use crate::pipeline::follow::Follow;
use crate::pipeline::job::{CrewKind, Done, Failure, Job, Seat};
use crate::pipeline::scheduler::Scheduler;
use crate::workers::crew::Crew;
use crate::workers::line::{QUEUE, Worked};

impl Hub<'_, '_> {
    /// Takes the answers of all workers; `true` if there were any.
    pub(crate) fn collect(&mut self) -> bool {
        let mut busy = false;
        while let Some((done, worked)) = self.answer_of_any() {
            self.job_ended(&done, worked);
            self.take(done);
            busy = true;
        }
        busy
    }

    fn answer_of_any(&mut self) -> Option<Worked> {
        let crews = [&mut self.askers, &mut self.fetchers, &mut self.dequantizers, &mut self.encoders];
        crews.into_iter().find_map(Crew::collect)
    }

    /// Looks after the workers: what waits behind a call that hangs goes to others, and a long hang is logged.
    pub(crate) fn watch_workers(&mut self) {
        let crews = [
            (CrewKind::Ask, &mut self.askers),
            (CrewKind::Fetch, &mut self.fetchers),
            (CrewKind::Dequantize, &mut self.dequantizers),
            (CrewKind::Encode, &mut self.encoders),
        ];
        for (kind, crew) in crews {
            let sight = crew.watch(self.now, STUCK);
            if self.stuck.saw(kind, &sight) {
                self.events.add(HubEvent::WorkersStuck(kind), sight.stuck as u64);
            }
        }
        self.fetch_off_disk();
        self.give_up_waiting();
    }

    /// Has the look-up worker fetch what is in memory or on a server where all fetch workers hang: its reader keeps off
    /// disks.
    pub(crate) fn fetch_off_disk(&mut self) {
        let (shared, askers) = (self.shared, &mut self.askers);
        let is_off_disk = |job: &Job| match *job {
            Job::Open { seat, anew: false } => shared.store.has_off_disk(&shared.chunks.at(seat).key),
            Job::Read { seat, .. } | Job::Close { seat, bad: None } => shared.store.is_off_disk(seat.0.into()),
            // Doubt in what was read is settled where its owner is, and may delete.
            _ => false,
        };
        self.fetchers.take_waiting(is_off_disk, |job| askers.give(job));
    }

    /// Frees slots and seats of chunks that nobody waits for, where all fetch workers hang: for stores.
    fn give_up_waiting(&mut self) {
        let mut unwanted = heapless::Vec::<Done, QUEUE>::new();
        let chunks = &self.pipeline.chunks;
        let over = |seat: Seat| chunks[usize::from(seat.0)].as_ref().is_some_and(|chunk| chunk.given_up);
        let is_over = |job: &Job| matches!(*job, Job::Open { seat, .. } | Job::Read { seat, .. } if over(seat));
        self.fetchers.take_waiting(is_over, |job| {
            let done = match job {
                Job::Open { seat, .. } => Done::Opened { seat, blocks: Err(Failure::Deadline) },
                Job::Read { slot, .. } => Done::Read { slot, facts: Err(Failure::Deadline) },
                job => unreachable!("{job:?} was not asked for"),
            };
            unwanted.push(done).expect("no more than waited");
        });
        unwanted.into_iter().for_each(|done| self.answered(done));
    }

    fn take(&mut self, done: Done) {
        self.store_watch.saw(&done, self.now);
        match done {
            Done::Looked { session, found } => self.looked(usize::from(session), found),
            // Of all of them.
            Done::Rated { session } => self.looked(usize::from(session), Ok(usize::MAX)),
            Done::Touched { session } => {
                let index = usize::from(session);
                self.shared.prefixes[index].lock().expect("panic is abort").clear();
                self.session(index).touching = false;
            }
            done => {
                if let (Done::Inflated { result: Err(Failure::Corrupt(_)), .. }, Some(engine)) =
                    (done, &mut self.inflate)
                {
                    // The engine was right to refuse it: however many bad blocks come in a row, it is not the one that
                    // fails.
                    engine.restarts = 0;
                }
                self.answered(done);
            }
        }
    }

    /// Tells the request how its chunk ended.
    pub(crate) fn tell_request(&mut self, seat: Seat, result: Result<(), Failure>) {
        let chunk = self.pipeline.chunk(seat);
        let (index, session_index, request_index) = (chunk.index, chunk.session, chunk.request);
        let (direction, wire_bytes, tokens) = (chunk.direction, chunk.wire_bytes, chunk.tokens);
        let token_bytes = chunk.geometry.token_bytes();
        let counters = &self.shared.counters;
        match (result, direction) {
            (Ok(()), Direction::Fetch) => add(&counters.chunks_fetched, 1),
            (Ok(()), Direction::Store) => {}
            (Err(Failure::Miss), _) => add(&counters.chunks_missed, 1),
            (Err(Failure::Gone | Failure::Cancelled | Failure::Deadline), _) => {}
            (Err(Failure::Foreign(what)), Direction::Fetch) => {
                add(&counters.chunks_foreign, 1);
                let key = self.shared.chunks.at(seat).key;
                self.shared.unreadable.add(&key, self.now);
                self.notices.foreign(what, &key, self.now);
            }
            (Err(failure), _) => {
                let key = self.shared.chunks.at(seat).key;
                match failure {
                    Failure::Corrupt(_) if direction == Direction::Fetch => {
                        self.shared.unreadable.add(&key, self.now);
                    }
                    OTHERWISE => self.notices.otherwise(&key, self.now),
                    _ => {}
                }
                add(&counters.chunks_failed, 1);
                self.events.add_of(self.marks.asker(seat), HubEvent::ChunkFailed(failure), index.into());
            }
        }
        let session = self.sessions[session_index].as_mut().expect("a session lives as long as its chunks");
        session.chunks -= 1;
        let Some(request) = session.requests[request_index].as_mut() else { return };
        request.active -= 1;
        match result {
            Ok(()) => {
                let tokens = (tokens.end - tokens.start) as usize;
                // Of a chunk that the store had already nothing moved.
                let known = direction == Direction::Store && wire_bytes == 0;
                let moved = if known { 0 } else { tokens * token_bytes };
                request.done.insert(index);
                request.wire_bytes += wire_bytes;
                request.restored_bytes += moved as u64;
                add(&counters.wire_bytes[direction as usize], wire_bytes);
                add(&counters.restored_bytes[direction as usize], moved as u64);
            }
            Err(failure) => {
                request.cut(index, failure);
                let limit = request.limit;
                self.abort_from(session_index, request_index, limit, failure);
            }
        }
        self.settle(session_index, request_index);
    }

    /// Advances a session's oldest question, and its oldest request with chunks to start.
    pub(crate) fn start_oldest(&mut self, index: usize) -> bool {
        let busy = self.ask_oldest(index);
        self.start_chunks_of_oldest(index) || busy
    }

    /// Reads the keys of the oldest look-up or rating, and asks the store when they are all there: a few round trips to
    /// its servers, whatever the length.
    fn ask_oldest(&mut self, index: usize) -> bool {
        let Some(session) = self.sessions[index].as_mut().filter(|session| session.is_live()) else { return false };
        let Some(&place) = session.questions.front() else { return false };
        if session.looking.is_some() || session.records_due.is_some() {
            return false;
        }
        let request = session.requests[place].as_mut().expect("queued requests are live");
        let whose = Whose { place, serial: request.serial };
        if request.wants_more() {
            let span = session.ring.record_window(&request.command, request.next).expect("next is below the count");
            session.records_due = Some(RecordsReading { whose, span });
            return true;
        }
        request.asked = true;
        let rates = request.command.operation == Operation::Rate;
        session.questions.pop_front();
        session.looking = Some(whose);
        // From here on it waits for the store.
        request.moved = self.now;
        let session = index as u16;
        self.give(if rates { Job::Rate { session } } else { Job::Lookup { session } });
        true
    }

    /// Reads records of the oldest request with chunks to start, and starts them.
    fn start_chunks_of_oldest(&mut self, index: usize) -> bool {
        let mut busy = false;
        loop {
            let Some(session) = self.sessions[index].as_mut().filter(|session| session.is_live()) else { return busy };
            let Some(&front) = session.queue.front() else { return busy };
            let request = session.requests[front].as_ref().expect("queued requests are live");
            if !request.wants_more() {
                self.leave_queue(index, front);
                self.settle(index, front);
                busy = true;
                continue;
            }
            if session.records_due.is_some() || session.touching {
                return busy;
            }
            if session.staged.is_empty() {
                let span = session.ring.record_window(&request.command, request.next).expect("next is below the count");
                let whose = Whose { place: front, serial: request.serial };
                session.records_due = Some(RecordsReading { whose, span });
                return true;
            }
            let started = match request.command.operation {
                Operation::Fetch => self.start_fetch(index),
                _ => self.start_store(index, front),
            };
            if !started {
                return busy;
            }
            busy = true;
        }
    }

    /// Takes a request that has no more chunks to start, or wants none, out of its queue.
    fn leave_queue(&mut self, index: usize, place: usize) {
        let Some(session) = self.sessions[index].as_mut() else { return };
        session.questions.retain(|&other| other != place);
        let first = session.queue.front() == Some(&place);
        session.queue.retain(|&other| other != place);
        if first {
            session.staged.clear();
            self.touch(index);
        }
    }

    /// Tells the store that the chunks of a request, which were all started, belong together.
    fn touch(&mut self, index: usize) {
        let started = !self.shared.prefixes[index].lock().expect("panic is abort").keys.is_empty();
        if let Some(session) = self.sessions[index].as_mut().filter(|session| started && !session.touching) {
            session.touching = true;
            self.give(Job::Touch { session: index as u16 });
        }
    }

    fn looked(&mut self, index: usize, found: Result<usize, Failure>) {
        let session = self.session(index);
        let whose = session.looking.take().expect("one look-up or rating at a time");
        // It may have been answered meanwhile, at its deadline.
        let Some(request) = session.request_of(whose).filter(|request| request.asked) else { return };
        request.asked = false;
        match found {
            Ok(found) => {
                let found = u32::try_from(found).unwrap_or(u32::MAX).min(request.next);
                (0..found).for_each(|chunk| request.done.insert(chunk));
                if found < request.next {
                    request.cut(found, Failure::Miss);
                }
            }
            Err(failure) => request.cut(0, failure),
        }
        self.settle(index, whose.place);
    }

    /// Starts the next chunk of a store whose records were read, if there is a seat.
    fn start_store(&mut self, index: usize, place: usize) -> bool {
        let seat = self.pipeline.free_seat(index, Direction::Store);
        if let Some(seat) = seat {
            self.start_chunk(index, place, seat, None);
        }
        seat.is_some()
    }

    /// Seats the next chunk of a request whose records were read, by itself or behind what is in the seat `leader`.
    pub(super) fn start_chunk(&mut self, index: usize, place: usize, seat: Seat, leader: Option<Seat>) {
        let session = self.sessions[index].as_mut().expect("it has a request with chunks to start");
        let Session { requests, staged, memory, recipe, namespace, .. } = session;
        let request = requests[place].as_mut().expect("queued requests are live");
        let memory = memory.as_ref().expect("fetch and store need memory: checked when they were taken");
        let section = memory.section(request.command.section);
        let pages_per_chunk = request.command.pages_per_chunk as usize;
        let (key, importance, pages) = staged.take(pages_per_chunk).expect("its record was read");
        let tokens = request.tokens_of(request.next, section.geometry.chunk_tokens.into());
        let direction = match request.command.operation {
            Operation::Fetch => Direction::Fetch,
            _ => Direction::Store,
        };
        let pages = Pages::from_slice(pages).expect("a record's pages fit");
        let opening = ChunkInFlight::opening(index, pages, (section.geometry, section.order, section.plan));
        let opened = ChunkInFlight {
            request: place,
            index: request.next,
            section: request.command.section,
            direction,
            key: Some(key),
            tokens,
            ..opening
        };
        let parent = {
            let mut prefix = self.shared.prefixes[index].lock().expect("panic is abort");
            if request.next == 0 {
                prefix.begin(request.command.request, *namespace, opened.section, direction == Direction::Fetch);
            }
            debug_assert!(prefix.keys.len() < prefix.keys.capacity(), "room per chunk of a request since the attach");
            let parent = prefix.push(request.command.request, key);
            if request.command.has_importances() {
                prefix.importances.push(importance);
            }
            parent
        };
        {
            let mut chunk = self.shared.chunks.at(seat);
            chunk.key = key;
            chunk.position = Position { namespace: *namespace, parent };
            chunk.again = request.command.stores_again();
            chunk.geometry = section.geometry;
            chunk.recipe = *recipe;
            chunk.importance = importance;
            chunk.order = section.order;
            chunk.plan = section.plan;
            chunk.blocks = usize::from(opened.blocks);
            chunk.until = request.until;
        }
        let piece = request.next;
        request.next += 1;
        request.last = Some(key);
        request.active += 1;
        let (whose, waited) =
            (Whose { place, serial: request.serial }, self.now.saturating_duration_since(request.moved));
        request.moved = self.now;
        let asker = Asker { session: session.id, request: request.command.request };
        session.chunks += 1;
        self.marks.sat(seat, SeatMark { asker, index, whose, chunk: piece, since: self.now });
        self.note(seat, None, TraceStage::Seat, (waited, Duration::ZERO));
        if let Some(leader) = leader {
            return self.join(seat, leader, opened);
        }
        self.pipeline.sit(seat, opened);
        self.give(match direction {
            Direction::Fetch => Job::Open { seat, anew: false },
            Direction::Store => Job::Begin { seat },
        });
    }

    /// Answers requests whose time is over with what is in place; `true` if there were any.
    pub(crate) fn expire(&mut self) -> bool {
        let mut busy = false;
        for index in 0..self.sessions.len() {
            for place in 0..mailbox::COMMANDS {
                let Some(session) = self.sessions[index].as_mut().filter(|session| session.is_live()) else { break };
                // Also one that has failed further on already: what it still waits for is before that.
                let waits = |request: &RequestInFlight| request.done.leading() < request.limit;
                let late = |request: &RequestInFlight| request.until <= self.now && waits(request);
                if session.requests[place].as_ref().is_some_and(late) {
                    busy = true;
                    self.note_unfinished(index, place);
                    self.cut(index, place, Failure::Deadline);
                }
            }
        }
        self.expire_visitors();
        self.end_rests();
        busy
    }

    /// Ends a request with what is in place.
    pub(crate) fn cut(&mut self, index: usize, place: usize, failure: Failure) {
        let Some(session) = self.sessions[index].as_mut() else { return };
        let Some(request) = session.requests[place].as_mut() else { return };
        request.cut_now(failure);
        let limit = request.limit;
        self.leave_queue(index, place);
        self.abort_from(index, place, limit, failure);
        self.give_up(index, place);
        self.settle(index, place);
    }

    /// Answers a request of which nothing is left to wait for.
    pub(crate) fn settle(&mut self, index: usize, place: usize) {
        let Some(session) = self.sessions[index].as_mut() else { return };
        let Some(request) = session.requests[place].as_ref() else { return };
        if !request.ended() || session.queue.contains(&place) || session.questions.contains(&place) {
            return;
        }
        let answer = Answer {
            chunks_done: request.done.leading(),
            wire_bytes: request.wire_bytes,
            restored_bytes: request.restored_bytes,
            elapsed_us: request.arrived.elapsed().as_micros().min(u32::MAX.into()) as u32,
            ..Answer::new(request.command.request, request.failure.map_or(Status::Ok, Failure::status))
        };
        let section = |memory: &SessionMemory| memory.section(request.command.section).geometry.chunk_tokens;
        let chunk_tokens = session.memory.as_ref().map_or(0, section);
        self.shared.counters.answers.count_request(&request.command, &answer, chunk_tokens);
        let late = Late {
            at_ms: 0,
            asker: Asker { session: session.id, request: request.command.request },
            operation: request.command.operation,
            took: Duration::from_micros(answer.elapsed_us.into()),
            cut: answer.status == Status::DeadlineExceeded,
            chunks_done: answer.chunks_done,
            chunk_count: request.command.chunk_count,
            slowest: request.slowest,
        };
        if late.cut {
            self.events.add_of(late.asker, HubEvent::Deadline, late.took.as_millis() as u64);
        }
        self.trace.judge(self.now, late);
        session.requests[place] = None;
        session.answers.push_back(answer).expect("a place per command");
    }
}
