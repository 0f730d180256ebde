//! The end of an attach: a visitor gets a place, with its memory laid out, and becomes a session.
//!
//! An attach is Init for its session: it may allocate and register memory. The operator's place, one more than there
//! are sessions, is taken in turns.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use block::{Part, Plan, wire_bytes_max};
use doca::Remote;
use mailbox::attach::{Attachment, Farewell, Message, Reason, Refuse};
use mailbox::layout::Layout;
use mailbox::{COMMANDS, CardRing};
use nix::sys::epoll::{EpollEvent, EpollFlags};

use crate::hub::attend::say;
use crate::hub::engines::RUNS_MAX;
use crate::hub::events::HubEvent;
use crate::hub::importer::Imported;
use crate::hub::session::{SectionMemory, Session, SessionDesk, SessionMemory, SessionState, SessionWake, Staged};
use crate::hub::visitors::Visitor;
use crate::hub::{Hub, tag};

/// Time that the operator's session may last once another one wants its place.
const OPERATOR_TURN: Duration = Duration::from_secs(1);

/// Tells whether an attach is the operator's, who looks at the card or steers it: no memory, and no recipe that would
/// name chunks.
fn is_operators(attachment: &Attachment) -> bool {
    attachment.layouts.is_empty() && attachment.regions.is_empty() && attachment.recipe.is_none()
}

impl Hub<'_, '_> {
    /// Gives a visitor a place, has it wait for the operator's, or refuses it.
    pub(super) fn admit(&mut self, imported: Imported, mut visitor: Visitor) {
        let attachment = &imported.attachment;
        let sessions = self.shared.config.sessions;
        let free = self.sessions[..sessions].iter().position(Option::is_none);
        match free.or((visitor.is_local() && is_operators(attachment)).then_some(sessions)) {
            Some(index) if self.sessions[index].is_none() => self.admit_to(index, imported, visitor),
            Some(_) => {
                visitor.ready = Some(Box::new(imported));
                self.visitors.push(visitor);
            }
            None => {
                let refusal = Refuse::new(Reason::Sessions, sessions as u64, sessions as u64);
                log::warn!("{} refused: {refusal}", attachment.client);
                self.refuse(visitor, refusal);
            }
        }
    }

    /// Gives the operator's place, if it is free or its session has had its turn, to the visitor that has waited
    /// longest. `true` if anything changed, and so there is more to do.
    pub(super) fn change_operators(&mut self) -> bool {
        let Some(place) = self.visitors.iter().position(|visitor| visitor.ready.is_some()) else { return false };
        let index = self.shared.config.sessions;
        match &self.sessions[index] {
            None => {
                let mut visitor = self.visitors.remove(place);
                let imported = visitor.ready.take().expect("just looked");
                self.admit_to(index, *imported, visitor);
                true
            }
            Some(session) if session.is_live() && self.now >= session.seated + OPERATOR_TURN => {
                self.events.add(HubEvent::Left, session.id.into());
                self.end(index, Some(Farewell::Replaced));
                true
            }
            Some(_) => false,
        }
    }

    /// Returns when the turn in the operator's place ends, if somebody waits for it.
    pub(crate) fn next_operator(&self) -> Option<Instant> {
        self.visitors.iter().find(|visitor| visitor.ready.is_some())?;
        Some(self.sessions[self.shared.config.sessions].as_ref()?.seated + OPERATOR_TURN)
    }

    fn admit_to(&mut self, index: usize, imported: Imported, mut visitor: Visitor) {
        let Imported { mut attachment, exports } = imported;
        let writable = attachment.regions.iter().all(|region| region.writable);
        let layouts = std::mem::take(&mut attachment.layouts);
        let admitted = exports.and_then(|(page, regions)| {
            let sections = layouts.len();
            let section =
                |(index, layout)| self.lay_out(layout).map_err(|refusal: Refuse| refusal.in_section(index, sections));
            let sections = layouts.into_iter().enumerate().map(section).collect::<Result<Vec<_>, _>>()?;
            let memory = (!sections.is_empty()).then_some(SessionMemory { sections, regions, writable });
            Ok((page, memory, self.desk()?))
        });
        match admitted {
            Ok((page, memory, desk)) => self.seat_session(index, attachment, visitor, page, memory, desk),
            Err(refusal) => {
                log::warn!("{} refused: {refusal}", attachment.client);
                self.events.add(HubEvent::Refused, u64::from(refusal.reason));
                say(visitor.channel.as_mut(), &Message::Refuse(refusal), &mut self.attach_buffer);
            }
        }
    }

    /// Takes staging memory for one more session; where all is in use, more is made: an attach is Init for its session.
    fn desk(&mut self) -> Result<SessionDesk, Refuse> {
        if self.desks.is_empty() {
            let left = self.shared.config.places() - self.desks_made;
            self.desks_made += SessionDesk::lay_out(&self.device, left, &mut self.desks).map_err(|error| {
                log::error!("no memory for one more session: {error}: lower --sessions, or see `dpu-app limits`");
                Refuse::new(Reason::Sessions, self.desks_made as u64, self.desks_made as u64)
            })?;
        }
        Ok(self.desks.pop().expect("a desk for each place"))
    }

    fn seat_session(
        &mut self,
        index: usize,
        attachment: Attachment,
        visitor: Visitor,
        page: Remote,
        memory: Option<SessionMemory>,
        desk: SessionDesk,
    ) {
        let is_local = visitor.is_local();
        let Visitor { channel, number, .. } = visitor;
        if let (Some(asked), Some(prefix)) = (self.shared.lookups.get(index), self.shared.prefixes.get(index)) {
            asked.lock().expect("panic is abort").make_room();
            prefix.lock().expect("panic is abort").make_room();
        }
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN, tag::SESSION | index as u64);
        if let Some(Err(errno)) = channel.fd().map(|fd| self.epoll.modify(fd, &mut event)) {
            log::error!("epoll_ctl: {}: a session will not be heard", errno.desc());
        }
        self.sessions[index] = Some(Session {
            state: SessionState::Live,
            id: number as u32,
            client: attachment.client,
            namespace: self.shared.config.namespaces.number(attachment.namespace.as_deref()),
            pid: attachment.pid,
            is_local,
            generation: attachment.generation,
            recipe: attachment.recipe.unwrap_or(self.shared.config.recipe),
            channel,
            ring: CardRing::new(attachment.generation)
                .with_sections(memory.as_ref().map_or(0, |memory| memory.sections.len())),
            page,
            memory,
            desk,
            seated: self.now,
            wake: SessionWake::Awake,
            welcomed: false,
            last_command: self.now,
            commands_due: true,
            host_line_due: false,
            records_due: None,
            staged: Staged::default(),
            out: None,
            answers: heapless::Deque::new(),
            texts: heapless::Deque::new(),
            requests: [const { None }; COMMANDS],
            queue: VecDeque::with_capacity(COMMANDS),
            questions: VecDeque::with_capacity(COMMANDS),
            looking: None,
            touching: false,
            chunks: 0,
            blames: 0,
        });
    }

    /// Chooses how chunks of a section are cut, so that every block fits a slot and every transfer its list.
    fn lay_out(&self, layout: Layout) -> Result<SectionMemory, Refuse> {
        let geometry = *layout.geometry();
        let slot = self.shared.ring.slot_bytes();
        let fits = |part: &Part| {
            wire_bytes_max(&geometry, part) <= slot.wire
                && part.tile_bytes(&geometry) <= slot.tile
                && layout.runs_max(part) <= RUNS_MAX
                && self.bulk.context.tasks_for(layout.runs_max(part), part.tile_bytes(&geometry))
                    <= self.bulk.context.tasks_max()
        };
        let mut elements = self.shared.config.block_bytes / geometry.element.bytes();
        let refusal = Refuse::new(Reason::Block, elements as u64, geometry.row_elements() as u64);
        let plan = loop {
            let plan = Plan::choose(&geometry, elements).map_err(|_| refusal)?;
            if fits(&plan.largest(&geometry)) {
                break plan;
            }
            elements /= 2;
        };
        let order = layout.tile_order();
        Ok(SectionMemory { geometry, layout, order, plan })
    }
}
