//! What the scheduler asks for, carried out: jobs go to the crews, operations to the engines, and requests hear of
//! chunks.

use mailbox::attach::Farewell;

use crate::count::counters::{Counters, get};
use crate::hub::Hub;
use crate::hub::engine::CardEngine;
use crate::pipeline::chunk::Direction;
use crate::pipeline::job::{CrewKind, Failure, Job, Seat};
use crate::pipeline::slots::Ticket;
use crate::pipeline::{Launch, Pipeline, World};

impl World for Hub<'_, '_> {
    fn pipeline(&mut self) -> &mut Pipeline {
        &mut self.pipeline
    }

    fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    fn give(&mut self, job: Job) {
        match job.crew() {
            CrewKind::Ask => self.askers.give(job),
            CrewKind::Fetch => {
                self.fetchers.give(job);
                self.fetch_off_disk();
            }
            CrewKind::Dequantize => self.dequantizers.give(job),
            CrewKind::Encode => self.encoders.give(job),
        }
    }

    fn slot_taken(&mut self, slot: Ticket) {
        self.waited_for_slot(slot);
    }

    fn inflate_has_room(&self) -> bool {
        self.inflate.as_ref().is_some_and(CardEngine::admits)
    }

    fn inflate(&mut self, slot: Ticket) -> Launch {
        self.launch_inflate(slot)
    }

    fn transfer_has_room(&self) -> bool {
        self.bulk.admits()
    }

    fn transfer(&mut self, slot: Ticket) -> Launch {
        self.launch_transfer(slot)
    }

    fn let_go(&mut self, slot: Ticket) {
        self.shared.ring.memory(slot).wire.settle();
    }

    fn start_chunks(&mut self, session: usize) -> bool {
        self.start_oldest(session)
    }

    fn reseated(&mut self, from: Seat, to: Seat) {
        self.marks.reseated(from, to);
        self.shared.chunks.reseated(from, to);
    }

    fn concluded(&mut self, seat: Seat, result: Result<(), Failure>) {
        self.tell_request(seat, result);
    }

    fn differed(&mut self, slot: Ticket, goes_again: bool) {
        let count = get(&self.shared.counters.blocks_differed);
        // The first, and then ever more rarely: a bad bus says it once for each block.
        if !count.is_power_of_two() {
            return;
        }
        let work = *self.pipeline.slots.at(slot);
        let chunk = self.pipeline.chunk(work.target);
        let (session, direction, block) = (chunk.session, chunk.direction, work.block);
        let Some(session) = self.sessions[session].as_ref() else { return };
        let way = match direction {
            Direction::Fetch => "was written to the pages of",
            Direction::Store => "was read from the pages of",
        };
        log::error!(
            "DMA: what {way} {} (session {}, pid {}), block {block} of a chunk, differs from what they hold when read again \
             ({count} so far): {}. Look for PCIe and memory errors (AER, EDAC), or for a host that changes pages of a \
             request; all blocks are compared from now on",
            session.client,
            session.id,
            session.pid,
            if goes_again { "moved again" } else { "its chunk fails" },
        );
    }

    fn unreachable(&mut self, session: usize, error: doca::Error) {
        let id = self.sessions[session].as_ref().map_or(0, |session| session.id);
        log::warn!("session {id}: host memory cannot be reached ({error}): the session ends");
        self.lose(session, Farewell::DeviceError);
    }
}
