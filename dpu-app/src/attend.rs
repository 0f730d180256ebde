//! Sockets: who comes, who rings, who leaves.
//!
//! A **visitor** is a host that has connected and not yet finished its attach. It has `attach_timeout` for that; a silent
//! or babbling one is dropped. An attach is Init for its session: it may allocate and register memory.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::time::Instant;

use block::{Part, Plan, wire_bytes_max};
use doca::Remote;
use mailbox::attach::{AttachError, Attachment, Farewell, Intake, Message, Reason, Refuse, Welcome};
use mailbox::channel::{Channel, ChannelError};
use mailbox::layout::Layout;
use mailbox::{CHUNKS_PER_REQUEST_MAX, COMMANDS, CardRing, PeerError};
use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};

use crate::counters::add;
use crate::engines::RUNS_MAX;
use crate::events::Event;
use crate::hub::{Hub, HubError, HubState, tag};
use crate::job::Failure;
use crate::session::{Memory, Session, SessionState, Staged, Wake};

/// Sockets that one look handles.
const EVENTS_MAX: usize = 16;
/// Messages taken from one socket at a time, so that a babbler cannot hold the others up.
const MESSAGES_MAX: usize = 64;

/// A host in the middle of its attach.
#[derive(Debug)]
pub(crate) struct Visitor {
    channel: Box<dyn Channel>,
    intake: Intake,
    pub(crate) until: Instant,
    /// Names it to epoll.
    number: u64,
}

impl Hub<'_, '_> {
    /// Waits up to `timeout` for sockets, engines or workers, and handles the sockets; `true` if there was anything.
    pub(crate) fn attend(&mut self, timeout: EpollTimeout) -> Result<bool, HubError> {
        let mut events = [EpollEvent::empty(); EVENTS_MAX];
        let count = match self.epoll.wait(&mut events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(errno) => return Err(HubError::System { call: "epoll_wait", errno }),
        };
        self.now = Instant::now();
        self.last_attend = self.now;
        for event in &events[..count] {
            let place = event.data() & tag::PLACE;
            match event.data() & !tag::PLACE {
                tag::LISTENER => self.welcome_visitors(),
                tag::VISITOR => self.hear_visitor(place),
                tag::SESSION => self.hear_session(place as usize),
                tag::STOP => {
                    let _ = self.shared.stop.read();
                    self.drain(true);
                }
                tag::ENGINE => {
                    self.engine.disarm()?;
                    self.armed = false;
                }
                // The bell: the turn looks after the workers.
                _ => {}
            }
        }
        Ok(count > 0)
    }

    fn watch(&self, fd: BorrowedFd<'_>, tag: u64) {
        if let Err(errno) = self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, tag)) {
            log::error!("epoll_ctl: {}: a visitor will not be heard", errno.desc());
        }
    }

    fn welcome_visitors(&mut self) {
        loop {
            let mut channel = match self.listener.accept() {
                Ok(Some(channel)) => channel,
                Ok(None) => return,
                Err(error) => return log::warn!("{error}"),
            };
            let config = self.shared.config;
            let taken = self.sessions.iter().flatten().count() + self.visitors.len();
            let refusal =
                if self.state != HubState::Steady && !matches!(self.state, HubState::Draining { leave: false }) {
                    Some(Refuse::new(Reason::Draining, 0, 0))
                } else if taken >= config.sessions {
                    Some(Refuse::new(Reason::Sessions, config.sessions as u64, taken as u64))
                } else {
                    None
                };
            if let Some(refusal) = refusal {
                self.events.add(Event::Refused, u64::from(refusal.reason));
                say(channel.as_mut(), &Message::Refuse(refusal), &mut self.attach_buffer);
                continue;
            }
            self.sessions_seen = self.sessions_seen.wrapping_add(1);
            let number = u64::from(self.sessions_seen);
            self.watch(channel.as_fd(), tag::VISITOR | number);
            let until = self.now + config.attach_timeout;
            self.visitors.push(Visitor { channel, intake: Intake::new(), until, number });
        }
    }

    fn hear_visitor(&mut self, number: u64) {
        let Some(place) = self.visitors.iter().position(|visitor| visitor.number == number) else { return };
        for _ in 0..MESSAGES_MAX {
            let visitor = &mut self.visitors[place];
            let refusal = match visitor.channel.receive(&mut self.attach_buffer) {
                Ok(None) => return,
                Err(ChannelError::Closed) => {
                    self.visitors.swap_remove(place);
                    return;
                }
                Err(error) => {
                    log::warn!("visitor: {error}");
                    Refuse::new(Reason::Malformed, 0, 0)
                }
                Ok(Some(bytes)) => match Message::decode(&self.attach_buffer[..bytes]) {
                    Err(AttachError::Version { theirs, .. }) => Refuse::version(theirs),
                    Err(error) => {
                        log::warn!("visitor: {error}");
                        Refuse::new(Reason::Malformed, 0, 0)
                    }
                    Ok(message) => match visitor.intake.take(&message) {
                        Ok(None) => continue,
                        Ok(Some(attachment)) => {
                            let visitor = self.visitors.swap_remove(place);
                            return self.admit(attachment, visitor);
                        }
                        Err(refusal) => refusal,
                    },
                },
            };
            let mut visitor = self.visitors.swap_remove(place);
            log::warn!("visitor refused: {refusal}");
            self.events.add(Event::Refused, u64::from(refusal.reason));
            say(visitor.channel.as_mut(), &Message::Refuse(refusal), &mut self.attach_buffer);
            return;
        }
    }

    pub(crate) fn expire_visitors(&mut self) {
        let now = self.now;
        self.visitors.retain(|visitor| {
            let late = visitor.until <= now;
            if late {
                log::warn!("a visitor did not finish its attach in time: dropped");
            }
            !late
        });
    }

    fn admit(&mut self, mut attachment: Attachment, mut visitor: Visitor) {
        match self.import(&mut attachment) {
            Ok((page, memory)) => self.seat_session(attachment, visitor, page, memory),
            Err(refusal) => {
                log::warn!("{} refused: {refusal}", attachment.client);
                self.events.add(Event::Refused, u64::from(refusal.reason));
                say(visitor.channel.as_mut(), &Message::Refuse(refusal), &mut self.attach_buffer);
            }
        }
    }

    /// Imports what a host has exported and checks it against what it said.
    fn import(&self, attachment: &mut Attachment) -> Result<(Remote, Option<Memory>), Refuse> {
        let client = &attachment.client;
        let import = |export: &mailbox::attach::Export, region: u64| {
            Remote::import(&self.device, &export.blob)
                .inspect_err(|error| log::warn!("{client}: {error}"))
                .ok()
                .filter(|remote| remote.bytes() == export.bytes)
                .ok_or(Refuse::new(Reason::Region, 0, region))
        };
        let page = import(&attachment.page, u64::from(mailbox::attach::PAGE_REGION))?;
        let exports = attachment.regions.iter().enumerate();
        let regions = exports.map(|(number, export)| import(export, number as u64)).collect::<Result<Vec<_>, _>>()?;
        let writable = attachment.regions.iter().all(|region| region.writable);
        let layout = attachment.layout.take();
        let memory = layout.map(|layout| self.lay_out(layout, regions, writable)).transpose()?;
        Ok((page, memory))
    }

    fn seat_session(&mut self, attachment: Attachment, visitor: Visitor, page: Remote, memory: Option<Memory>) {
        let Visitor { channel, number, .. } = visitor;
        let index = self.sessions.iter().position(Option::is_none).expect("visitors and sessions were counted");
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN, tag::SESSION | index as u64);
        if let Err(errno) = self.epoll.modify(channel.as_fd(), &mut event) {
            log::error!("epoll_ctl: {}: a session will not be heard", errno.desc());
        }
        self.sessions[index] = Some(Session {
            state: SessionState::Live,
            id: number as u32,
            client: attachment.client,
            pid: attachment.pid,
            generation: attachment.generation,
            recipe: attachment.recipe.unwrap_or(self.shared.config.recipe),
            channel,
            ring: CardRing::new(attachment.generation),
            page,
            memory,
            desk: self.desks.pop().expect("a desk per session"),
            wake: Wake::Awake,
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
            looking: None,
            touching: false,
            flows: 0,
            blames: 0,
        });
    }

    /// Chooses how chunks of this session are cut, so that every block fits a slot and every transfer its list.
    fn lay_out(&self, layout: Layout, regions: Vec<Remote>, writable: bool) -> Result<Memory, Refuse> {
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
        Ok(Memory { geometry, layout, order, plan, regions, writable })
    }

    /// The page is the host's: the session begins.
    pub(crate) fn welcome(&mut self, index: usize) {
        let session = self.sessions[index].as_mut().expect("the caller looked");
        session.welcomed = true;
        session.stir(self.now);
        let elements = session
            .memory
            .as_ref()
            .map_or(0, |memory| memory.plan.largest(&memory.geometry).elements(&memory.geometry));
        let recipe = heapless::format!(64; "{}", session.recipe).expect("recipes have short names");
        let card = heapless::format!(64; "dpu-app {} ({})", env!("CARGO_PKG_VERSION"), doca::version::flavour())
            .expect("short");
        let welcome = Welcome {
            session: session.id,
            generation: session.generation,
            block_elements: elements as u32,
            chunks_max: CHUNKS_PER_REQUEST_MAX as u32,
            requests_max: COMMANDS as u32,
            recipe: &recipe,
            card: &card,
        };
        add(&self.shared.counters.sessions_opened, 1);
        self.events.add(Event::Attached, session.id.into());
        let blocks = session.memory.as_ref().map_or(0, |memory| memory.plan.block_count(&memory.geometry));
        let (id, client, pid) = (session.id, &session.client, session.pid);
        log::info!("session {id} of {client} (pid {pid}) attached: {recipe}, {blocks} blocks a chunk");
        self.tell(index, &Message::Welcome(welcome));
    }

    /// Sends a message to a session's host; one that cannot be sent ends the session.
    pub(crate) fn tell(&mut self, index: usize, message: &Message<'_>) {
        let Some(session) = self.sessions[index].as_mut() else { return };
        if !say(session.channel.as_mut(), message, &mut self.attach_buffer) {
            self.lose(index, Farewell::PeerError);
        }
    }

    fn hear_session(&mut self, index: usize) {
        for _ in 0..MESSAGES_MAX {
            let Some(session) = self.sessions[index].as_mut().filter(|session| session.is_live()) else { return };
            match session.channel.receive(&mut self.attach_buffer) {
                Ok(None) => return,
                Ok(Some(bytes)) => match Message::decode(&self.attach_buffer[..bytes]) {
                    Ok(Message::Doorbell) => session.stir(self.now),
                    Ok(Message::Bye(_)) => {
                        log::info!("session {} of {} left", session.id, session.client);
                        self.events.add(Event::Left, session.id.into());
                        return self.end(index, None);
                    }
                    Ok(message) => {
                        log::warn!("session {index}: message of kind {} after the attach", message.kind());
                        return self.lose(index, Farewell::PeerError);
                    }
                    Err(error) => {
                        log::warn!("session {index}: {error}");
                        return self.lose(index, Farewell::PeerError);
                    }
                },
                Err(error) => {
                    log::warn!("session {} of {} (pid {}): {error}", session.id, session.client, session.pid);
                    return self.lose(index, Farewell::PeerError);
                }
            }
        }
        // More may wait: level-triggered, the next look finds it.
    }

    /// Ends a session whose page is not what its host said: it was never welcome.
    pub(crate) fn turn_away(&mut self, index: usize, error: PeerError) {
        let Some(session) = self.sessions[index].as_mut() else { return };
        let refusal = match error {
            PeerError::Identity { ours, theirs, .. } => Refuse::new(Reason::Page, ours, theirs),
            PeerError::Generation { expected, found, .. } => Refuse::new(Reason::Page, expected, found),
            _ => Refuse::new(Reason::Page, 0, 0),
        };
        log::warn!("{} refused: {error}", session.client);
        self.events.add(Event::Refused, u64::from(refusal.reason));
        say(session.channel.as_mut(), &Message::Refuse(refusal), &mut self.attach_buffer);
        self.end(index, None);
    }

    /// Ends a session because of what its host did or because its memory cannot be reached. Nobody else is disturbed.
    pub(crate) fn lose(&mut self, index: usize, farewell: Farewell) {
        let Some(session) = self.sessions[index].as_ref().filter(|session| session.is_live()) else { return };
        add(&self.shared.counters.sessions_lost, 1);
        self.events.add(Event::Lost, session.id.into());
        self.end(index, Some(farewell));
    }

    fn end(&mut self, index: usize, farewell: Option<Farewell>) {
        let Some(session) = self.sessions[index].as_mut() else { return };
        session.close();
        if let Some(farewell) = farewell {
            say(session.channel.as_mut(), &Message::Bye(farewell), &mut self.attach_buffer);
        }
        // Stop hearing a socket that may stay readable until the session is buried.
        let _ = self.epoll.delete(session.channel.as_fd());
        session.requests.fill(None);
        session.queue.clear();
        session.records_due = None;
        session.staged.clear();
        session.answers.clear();
        session.texts.clear();
        for place in 0..self.flows.len() {
            let Some(flow) = self.flows[place].as_mut() else { continue };
            if flow.session == index && !flow.concluded {
                flow.failure.get_or_insert(Failure::Gone);
                self.nudge(crate::job::Seat(place as u16));
            }
        }
    }

    /// Frees sessions of which nothing is in flight any more.
    pub(crate) fn bury(&mut self) {
        for place in &mut self.sessions {
            let over = |session: &mut Session| !session.is_live() && session.is_idle();
            if let Some(session) = place.take_if(over) {
                self.desks.push(session.desk);
            }
        }
    }

    /// The last words to everybody.
    pub(crate) fn say_goodbye(&mut self) {
        for session in self.sessions.iter_mut().flatten() {
            say(session.channel.as_mut(), &Message::Bye(Farewell::Stopping), &mut self.attach_buffer);
        }
        log::info!("left after {:.1} s", self.started.elapsed().as_secs_f64());
    }
}

/// `false`: the host cannot be told.
fn say(channel: &mut dyn Channel, message: &Message<'_>, buffer: &mut [u8]) -> bool {
    let sent = message.encode(buffer).map(|bytes| channel.send(bytes));
    match sent {
        Ok(Ok(())) => true,
        Ok(Err(error)) => {
            log::debug!("{error}");
            false
        }
        Err(error) => {
            log::error!("{error}");
            false
        }
    }
}
