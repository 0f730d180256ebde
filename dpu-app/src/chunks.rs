//! Requests become chunks in seats, chunks become blocks in slots, blocks become jobs; and back.

use mailbox::{Answer, Operation, Status, Tokens};

use crate::counters::add;
use crate::events::Event;
use crate::flow::{Direction, Flow, Pages, Phase};
use crate::hub::Hub;
use crate::job::{Done, Failure, Job, Restored, Seat};
use crate::probation::BLAMES_MAX;
use crate::request::Request;
use crate::session::Session;
use crate::slot::{SlotState, Ticket};

impl Hub<'_, '_> {
    /// The chunk in a seat that a slot or a job names.
    pub(crate) fn flow(&mut self, seat: Seat) -> &mut Flow {
        self.flows[usize::from(seat.0)].as_mut().expect("a seat stays taken while anything of it is in flight")
    }

    /// Takes the answers of all workers; `true` if there were any.
    pub(crate) fn collect(&mut self) -> bool {
        let mut busy = false;
        while let Some(done) =
            self.fetchers.collect().or_else(|| self.dequantizers.collect()).or_else(|| self.encoders.collect())
        {
            self.take(done);
            busy = true;
        }
        busy
    }

    fn take(&mut self, done: Done) {
        self.store_watch.saw(&done, self.now);
        match done {
            Done::Looked { session, found } => self.looked(usize::from(session), found),
            Done::Touched { session } => {
                let index = usize::from(session);
                self.shared.prefixes[index].lock().expect("panic is abort").clear();
                self.sessions[index].as_mut().expect("a session lives as long as its jobs").touching = false;
            }
            Done::Opened { seat, blocks: Ok((plan, blocks)) } => {
                let flow = self.flow(seat);
                (flow.plan, flow.blocks) = (plan, blocks);
                flow.become_phase(Phase::Flowing);
                self.nudge(seat);
            }
            Done::Began { seat, started: Ok(true) } => {
                self.flow(seat).become_phase(Phase::Flowing);
                self.nudge(seat);
            }
            Done::Began { seat, started: Ok(false) } => {
                add(&self.shared.counters.chunks_known, 1);
                self.conclude(seat, Ok(()));
                self.vacate(seat);
            }
            Done::Opened { seat, blocks: Err(failure) } | Done::Began { seat, started: Err(failure) } => {
                self.conclude(seat, Err(failure));
                self.vacate(seat);
            }
            Done::Read { slot, facts: Ok(facts) } => {
                self.slots.at(slot).facts = facts;
                if self.abandoned(slot) {
                    return;
                }
                if facts.codec == block::Codec::Raw {
                    self.dequantize(slot, true, true);
                } else {
                    self.slots.set(slot, SlotState::Inflating);
                    self.to_inflate.push_back(slot).expect("a place per slot");
                }
            }
            Done::Inflated { slot, result: Ok(()) } => {
                add(&self.shared.counters.blocks_in_software, 1);
                self.dequantize(slot, false, false);
            }
            Done::Inflated { slot, result: Err(Failure::Corrupt) } => {
                // The engine was right to refuse it: however many bad blocks come in a row, it is not the one that fails.
                if let Some(engine) = &mut self.inflate {
                    engine.restarts = 0;
                }
                self.block_failed(slot, Failure::Corrupt);
            }
            Done::Restored { slot, from: Err(Failure::Corrupt) } if self.engine_takes(slot) => {
                // Inflated by the engine, checked in software: wrong bytes of the store or of the engine? Software decides.
                if !self.abandoned(slot) {
                    self.slots.at(slot).blames = BLAMES_MAX;
                    self.slots.set(slot, SlotState::Inflating);
                    self.to_inflate.push_back(slot).expect("a place per slot");
                }
            }
            Done::Restored { slot, from: Ok(from) } => {
                self.slots.at(slot).from = from;
                if !self.abandoned(slot) {
                    self.slots.set(slot, SlotState::Writing);
                    self.to_transfer.push_back(slot).expect("a place per slot");
                }
            }
            Done::Encoded { slot, wire_bytes: Ok(bytes) } => {
                let seat = self.slots.at(slot).seat;
                self.flow(seat).wire_bytes += u64::from(bytes);
                self.block_done(slot);
            }
            Done::Read { slot, facts: Err(failure) }
            | Done::Inflated { slot, result: Err(failure) }
            | Done::Restored { slot, from: Err(failure) }
            | Done::Encoded { slot, wire_bytes: Err(failure) } => self.block_failed(slot, failure),
            Done::Committed { seat, result } => {
                if result.is_ok() {
                    add(&self.shared.counters.chunks_stored, 1);
                }
                self.conclude(seat, result);
                self.vacate(seat);
            }
            Done::Aborted { seat } => {
                let failure = self.flow(seat).failure.unwrap_or(Failure::Gone);
                self.conclude(seat, Err(failure));
                self.vacate(seat);
            }
            Done::Closed { seat } => {
                let failure = self.flow(seat).failure;
                self.conclude(seat, failure.map_or(Ok(()), Err));
                self.vacate(seat);
            }
        }
    }

    /// A block has gone all its way.
    pub(crate) fn block_done(&mut self, ticket: Ticket) {
        let (seat, wire) = {
            let work = self.slots.at(ticket);
            (work.seat, work.facts.payload_start + work.facts.payload_bytes)
        };
        let flow = self.flow(seat);
        flow.done += 1;
        if flow.direction == Direction::Fetch {
            flow.wire_bytes += wire as u64;
        }
        self.release(ticket);
    }

    /// A block cannot go on; its chunk ends when its neighbours have left their slots.
    pub(crate) fn block_failed(&mut self, ticket: Ticket, failure: Failure) {
        let seat = self.slots.at(ticket).seat;
        if failure == Failure::Corrupt {
            add(&self.shared.counters.blocks_corrupt, 1);
        }
        self.flow(seat).failure.get_or_insert(failure);
        self.release(ticket);
    }

    pub(crate) fn release(&mut self, ticket: Ticket) {
        let seat = self.slots.at(ticket).seat;
        self.slots.set(ticket, SlotState::Free);
        self.flow(seat).in_flight -= 1;
        self.nudge(seat);
    }

    /// Ends a chunk that has nothing left to do.
    pub(crate) fn nudge(&mut self, seat: Seat) {
        let flow = self.flow(seat);
        if !flow.drained() {
            return;
        }
        flow.become_phase(Phase::Closing);
        let (direction, failure) = (flow.direction, flow.failure);
        match (direction, failure) {
            (Direction::Fetch, failure) => {
                self.fetchers.give(Job::Close { seat, corrupt: failure == Some(Failure::Corrupt) });
                // The data is in place: no need to wait for the seat. A host that is told of a bad chunk may store it
                // again at once: by then it must have left the store.
                if failure != Some(Failure::Corrupt) {
                    self.conclude(seat, failure.map_or(Ok(()), Err));
                }
            }
            (Direction::Store, None) => self.encoders.give(Job::Commit { seat }),
            (Direction::Store, Some(_)) => self.encoders.give(Job::Abort { seat }),
        }
    }

    /// Tells the request how its chunk ended.
    fn conclude(&mut self, seat: Seat, result: Result<(), Failure>) {
        let flow = self.flow(seat);
        if std::mem::replace(&mut flow.concluded, true) {
            return;
        }
        let (index, session_index, request_index) = (flow.index, flow.session, flow.request);
        let (direction, wire_bytes, tokens) = (flow.direction, flow.wire_bytes, flow.tokens);
        let counters = &self.shared.counters;
        match (result, direction) {
            (Ok(()), Direction::Fetch) => add(&counters.chunks_fetched, 1),
            (Ok(()), Direction::Store) => {}
            (Err(Failure::Miss), _) => add(&counters.chunks_missed, 1),
            (Err(Failure::Gone | Failure::Cancelled | Failure::Deadline), _) => {}
            (Err(failure), _) => {
                add(&counters.chunks_failed, 1);
                self.events.add(Event::ChunkFailed(failure), index.into());
            }
        }
        let session = self.sessions[session_index].as_mut().expect("a session lives as long as its chunks");
        session.flows -= 1;
        let Some(request) = session.requests[request_index].as_mut() else { return };
        request.active -= 1;
        match result {
            Ok(()) => {
                let geometry = session.memory.as_ref().expect("only sessions with memory have chunks").geometry;
                let moved =
                    (tokens.end - tokens.start) as usize * 2 * usize::from(geometry.layers) * geometry.row_bytes();
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

    /// Chunks of a request from `limit` on are of no use any more.
    pub(crate) fn abort_from(&mut self, session: usize, request: usize, limit: u32, failure: Failure) {
        for place in 0..self.flows.len() {
            let Some(flow) = self.flows[place].as_mut() else { continue };
            let concerned = flow.session == session && flow.request == request && !flow.concluded;
            if concerned && flow.index >= limit && flow.failure.is_none() {
                // Not proven to be bad itself.
                flow.failure = Some(if failure == Failure::Corrupt { Failure::Miss } else { failure });
                self.nudge(Seat(place as u16));
            }
        }
    }

    /// Frees a seat whose chunk is over for the store too.
    fn vacate(&mut self, seat: Seat) {
        debug_assert!(self.flow(seat).concluded && self.flow(seat).in_flight == 0);
        self.flows[usize::from(seat.0)] = None;
        self.order.retain(|other| *other != seat);
    }

    /// Starts what can start; `true` if anything did.
    pub(crate) fn schedule(&mut self) -> bool {
        let mut busy = false;
        let sessions = self.sessions.len();
        for turn in 0..sessions {
            busy |= self.start_chunks((self.first_session + turn) % sessions);
        }
        self.first_session = (self.first_session + 1) % sessions;
        busy |= self.give_slots(Direction::Fetch);
        busy |= self.give_slots(Direction::Store);
        busy |= self.submit();
        busy
    }

    /// Moves the oldest unfinished request of a session on: reads records, starts look-ups and chunks.
    fn start_chunks(&mut self, index: usize) -> bool {
        let mut busy = false;
        loop {
            let Some(session) = self.sessions[index].as_mut().filter(|session| session.is_live()) else { return busy };
            let Some(&front) = session.queue.front() else { return busy };
            let request = session.requests[front].as_ref().expect("queued requests are live");
            if !request.wants_more() {
                if session.records_due.is_some() || session.looking.is_some() {
                    return busy;
                }
                session.staged.clear();
                session.queue.pop_front();
                self.touch(index);
                self.settle(index, front);
                busy = true;
                continue;
            }
            if session.looking.is_some() || session.records_due.is_some() || session.touching {
                return busy;
            }
            if session.staged.is_empty() {
                let span = session.ring.record_window(&request.command, request.next).expect("next is below the count");
                session.records_due = Some((front, span));
                return true;
            }
            let started = match request.command.operation {
                Operation::Lookup => {
                    self.gather_lookup(index, front);
                    true
                }
                Operation::Fetch => self.start_chunk(index, front, Direction::Fetch),
                _ => self.start_chunk(index, front, Direction::Store),
            };
            if !started {
                return busy;
            }
            busy = true;
        }
    }

    /// All chunks of a request were started: the store learns that they belong together.
    fn touch(&mut self, index: usize) {
        let started = !self.shared.prefixes[index].lock().expect("panic is abort").is_empty();
        if let Some(session) = self.sessions[index].as_mut().filter(|_| started) {
            session.touching = true;
            self.fetchers.give(Job::Touch { session: index as u16 });
        }
    }

    /// Adds a window of keys to a look-up, and asks the store when they are all there: a few round trips to its servers,
    /// whatever the length.
    fn gather_lookup(&mut self, index: usize, place: usize) {
        let session = self.sessions[index].as_mut().expect("the caller looked");
        let request = session.requests[place].as_mut().expect("the caller looked");
        {
            let mut asked = self.shared.lookups[index].lock().expect("panic is abort");
            if request.next == 0 {
                asked.keys.clear();
            }
            asked.keys.extend_from_slice(session.staged.keys());
            asked.until = request.until;
        }
        request.next += session.staged.keys().len() as u32;
        session.staged.clear();
        if !request.wants_more() {
            session.looking = Some(place);
            self.fetchers.give(Job::Lookup { session: index as u16 });
        }
    }

    fn looked(&mut self, index: usize, found: Result<usize, Failure>) {
        let session = self.sessions[index].as_mut().expect("a session lives as long as its look-up");
        let place = session.looking.take().expect("one look-up at a time");
        let Some(request) = session.requests[place].as_mut() else { return };
        match found {
            Ok(found) => {
                let found = (found as u32).min(request.next);
                (0..found).for_each(|chunk| request.done.insert(chunk));
                if found < request.next {
                    request.cut(found, Failure::Miss);
                }
            }
            Err(failure) => request.cut(0, failure),
        }
    }

    /// Seats that chunks of this direction may take: the store path leaves most of them to fetches.
    fn seats(&self, direction: Direction) -> usize {
        match direction {
            Direction::Fetch => self.flows.len(),
            Direction::Store => (self.flows.len() / 4).max(1),
        }
    }

    fn start_chunk(&mut self, index: usize, place: usize, direction: Direction) -> bool {
        let taken = self.flows.iter().flatten().filter(|flow| flow.direction == direction).count();
        let free = self.flows.iter().position(Option::is_none);
        let (Some(free), true) = (free, taken < self.seats(direction)) else { return false };
        let seat = Seat(free as u16);
        let session = self.sessions[index].as_mut().expect("the caller looked");
        let Session { requests, staged, memory, recipe, .. } = session;
        let request = requests[place].as_mut().expect("the caller looked");
        let memory = memory.as_ref().expect("fetch and store need memory: checked when they were taken");
        let pages_per_chunk = request.command.pages_per_chunk as usize;
        let (key, pages) = staged.take(pages_per_chunk).expect("the caller looked");
        let chunk_tokens = u32::from(memory.geometry.chunk_tokens);
        let first = request.next * chunk_tokens;
        let within = |token: u32| token.saturating_sub(first).min(chunk_tokens);
        let tokens = request.command.tokens;
        let tokens = Tokens { start: within(tokens.start), end: within(tokens.end) };
        let flow = Flow {
            session: index,
            request: place,
            index: request.next,
            direction,
            pages: Pages::from_slice(pages).expect("a record's pages fit"),
            tokens,
            order: memory.order,
            phase: Phase::Opening,
            plan: memory.plan,
            blocks: memory.plan.block_count(&memory.geometry) as u16,
            next: 0,
            in_flight: 0,
            done: 0,
            failure: None,
            wire_bytes: 0,
            concluded: false,
        };
        {
            let mut chunk = self.shared.chunks.at(seat);
            chunk.key = key;
            chunk.geometry = memory.geometry;
            chunk.recipe = *recipe;
            chunk.order = memory.order;
            chunk.plan = memory.plan;
            chunk.blocks = usize::from(flow.blocks);
            chunk.until = request.until;
        }
        {
            let mut prefix = self.shared.prefixes[index].lock().expect("panic is abort");
            if request.next == 0 {
                prefix.clear();
            }
            prefix.push(key).expect("a place per chunk of a request");
        }
        request.next += 1;
        request.active += 1;
        session.flows += 1;
        self.flows[free] = Some(flow);
        self.order.push(seat).expect("a place per seat");
        match direction {
            Direction::Fetch => self.fetchers.give(Job::Open { seat }),
            Direction::Store => self.encoders.give(Job::Begin { seat }),
        }
        true
    }

    /// Gives free slots to the oldest chunks of a direction.
    fn give_slots(&mut self, direction: Direction) -> bool {
        let mut busy = false;
        for place in 0..self.order.len() {
            let seat = self.order[place];
            while self.slots.free() > 0 {
                if direction == Direction::Store && self.slots.storing() >= self.shared.config.store_slots {
                    return busy;
                }
                let flow = self.flow(seat);
                if flow.direction != direction || !flow.wants_slot() {
                    break;
                }
                let block = flow.next;
                flow.next += 1;
                busy = true;
                match direction {
                    Direction::Fetch if self.is_clipped(seat, block) => {
                        self.flow(seat).done += 1;
                        self.nudge(seat);
                        // The seat may have gone to its end, and `order` with it only at its answer.
                        break;
                    }
                    Direction::Fetch => {
                        let slot = self.slots.take(seat, block, SlotState::Fetching).expect("one is free");
                        self.flow(seat).in_flight += 1;
                        self.fetchers.give(Job::Read { slot, seat, block });
                    }
                    Direction::Store => {
                        let slot = self.slots.take(seat, block, SlotState::Gathering).expect("one is free");
                        self.slots.at(slot).from = Restored::Tile;
                        self.flow(seat).in_flight += 1;
                        self.to_transfer.push_back(slot).expect("a place per slot");
                    }
                }
            }
        }
        busy
    }

    /// Whether no token of a block is wanted.
    fn is_clipped(&mut self, seat: Seat, block: u16) -> bool {
        let flow = self.flow(seat);
        let (plan, tokens, session) = (flow.plan, flow.tokens, flow.session);
        let memory = self.sessions[session].as_ref().and_then(|session| session.memory.as_ref());
        let geometry = &memory.expect("chunks belong to sessions with memory").geometry;
        let part = plan.part(geometry, usize::from(block)).expect("blocks are counted by the plan");
        let (first, end) = (u32::from(part.first_token), u32::from(part.first_token + part.tokens));
        tokens.end <= first || tokens.start >= end
    }

    /// Requests whose time is over get what is in place; `true` if there were any.
    pub(crate) fn expire(&mut self) -> bool {
        let mut busy = false;
        for index in 0..self.sessions.len() {
            for place in 0..mailbox::COMMANDS {
                let Some(session) = self.sessions[index].as_mut().filter(|session| session.is_live()) else { break };
                // Also one that has failed further on already: what it still waits for is before that.
                let waits = |request: &Request| request.done.leading() < request.limit;
                let late = |request: &Request| request.until <= self.now && waits(request);
                if session.requests[place].as_ref().is_some_and(late) {
                    busy = true;
                    self.events.add(Event::Deadline, index as u64);
                    self.cut(index, place, Failure::Deadline);
                }
            }
        }
        self.expire_visitors();
        busy
    }

    /// Ends a request at what is in place.
    pub(crate) fn cut(&mut self, index: usize, place: usize, failure: Failure) {
        let Some(session) = self.sessions[index].as_mut() else { return };
        let Some(request) = session.requests[place].as_mut() else { return };
        request.cut_now(failure);
        let limit = request.limit;
        self.abort_from(index, place, limit, failure);
        self.settle(index, place);
    }

    /// Answers a request of which nothing is left to wait for.
    pub(crate) fn settle(&mut self, index: usize, place: usize) {
        let Some(session) = self.sessions[index].as_mut() else { return };
        let Some(request) = session.requests[place].as_ref() else { return };
        let reading = session.records_due.is_some_and(|(reader, _)| reader == place) || session.looking == Some(place);
        if !request.ended() || reading || session.queue.contains(&place) {
            return;
        }
        let answer = Answer {
            chunks_done: request.done.leading(),
            wire_bytes: request.wire_bytes,
            restored_bytes: request.restored_bytes,
            elapsed_us: request.arrived.elapsed().as_micros().min(u32::MAX.into()) as u32,
            ..Answer::new(request.command.request, request.failure.map_or(Status::Ok, Failure::status))
        };
        let chunk_tokens = session.memory.as_ref().map_or(0, |memory| memory.geometry.chunk_tokens);
        self.shared.counters.answers.count_request(request, &answer, chunk_tokens);
        session.requests[place] = None;
        session.answers.push_back(answer).expect("a place per command");
    }
}
