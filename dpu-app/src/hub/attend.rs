//! Hosts that come, ring and leave.
//!
//! A **visitor** is a host that has connected and not yet finished its attach. It has `attach_timeout` for that; a
//! silent or babbling one is dropped. An attach is Init for its session: it may allocate and register memory. A refused
//! visitor stays for a moment: cut off in the middle of its attach, it might never read why.
//!
//! Unix channels have descriptors, which epoll watches (`Hub::attend`). Comch channels have none: what they bring comes
//! in the engines' progress, and their listener says that there is something (`Hub::attend_progressed`).

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use block::{Part, Plan, wire_bytes_max};
use doca::Remote;
use mailbox::attach::{AttachError, Attachment, Farewell, Intake, Message, PAGE_REGION, Reason, Refuse, Welcome};
use mailbox::channel::{Channel, ChannelError};
use mailbox::layout::Layout;
use mailbox::{CHUNKS_PER_REQUEST_MAX, COMMANDS, CardRing, PeerError};
use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};

use crate::count::counters::add;
use crate::hub::engines::RUNS_MAX;
use crate::hub::events::HubEvent;
use crate::hub::importer::{Imported, Importing};
use crate::hub::session::{SectionMemory, Session, SessionDesk, SessionMemory, SessionState, SessionWake, Staged};
use crate::hub::{Hub, HubError, tag};
use crate::pipeline::scheduler::Scheduler;
use crate::workers::board::HubState;

/// Most sockets that one look handles.
const EVENTS_MAX: usize = 16;
/// Messages taken from one socket at a time, so that a babbler cannot hold the others up.
const MESSAGES_MAX: usize = 64;

/// Rest of a listener after `accept` failed.
const ACCEPT_REST: Duration = Duration::from_secs(1);
/// Time for a refused visitor to read why.
const REFUSED_LINGER: Duration = Duration::from_secs(1);
/// Refused visitors that linger; a further one takes the place of the oldest.
pub(crate) const REFUSED_MAX: usize = 8;
/// Messages that a refused visitor may have sent before it reads why: more than the longest attach.
const REFUSED_MESSAGES_MAX: usize = 512;

/// Local visitors beyond those that there are places for: one of them may be the operator.
pub(crate) const OPERATORS_MAX: usize = 4;
/// Time that the operator's session may last once another one wants its place.
const OPERATOR_TURN: Duration = Duration::from_secs(1);

/// A host in the middle of its attach.
#[derive(Debug)]
pub(crate) struct Visitor {
    channel: Box<dyn Channel>,
    intake: Intake,
    pub(crate) until: Instant,
    /// Its name in epoll's user data.
    number: u64,
    /// Import of its exports, once it has said everything; what it says meanwhile waits.
    importing: Option<Importing>,
    /// Count of the messages that it sent, and that were dropped, since it was told why it is not let in.
    refused: Option<usize>,
    /// Its imported memory, while it waits for the operator's place.
    ready: Option<Box<Imported>>,
}

impl Visitor {
    /// Tells whether it came by the card's own socket, so that the kernel knows its process.
    fn is_local(&self) -> bool {
        self.channel.peer().is_some()
    }
}

/// Tells whether an attach is the operator's, who looks at the card or steers it: no memory, and no recipe that would
/// name chunks.
fn is_operators(attachment: &Attachment) -> bool {
    attachment.layouts.is_empty() && attachment.regions.is_empty() && attachment.recipe.is_none()
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
                tag::LISTENER => self.welcome_visitors(place as usize),
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

    /// Handles hosts without descriptors, if the engines' progress brought anything from them; `true` if it did.
    pub(crate) fn attend_progressed(&mut self) -> bool {
        let mut came = false;
        for listener in 0..self.listeners.len() {
            if self.listeners[listener].take_news() {
                came = true;
                self.welcome_visitors(listener);
            }
        }
        if !came {
            return false;
        }
        let mut place = 0;
        while let Some(visitor) = self.visitors.get(place) {
            let (number, has_fd) = (visitor.number, visitor.channel.fd().is_some());
            if !has_fd {
                self.hear_visitor(number);
            }
            // Who is let in or goes makes room for the last one.
            place += usize::from(self.visitors.get(place).is_some_and(|visitor| visitor.number == number));
        }
        for index in 0..self.sessions.len() {
            if self.sessions[index].as_ref().is_some_and(|session| session.channel.fd().is_none()) {
                self.hear_session(index);
            }
        }
        true
    }

    fn watch(&self, fd: Option<BorrowedFd<'_>>, tag: u64) {
        let Some(fd) = fd else { return };
        if let Err(errno) = self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, tag)) {
            log::error!("epoll_ctl: {}: a visitor will not be heard", errno.desc());
        }
    }

    fn welcome_visitors(&mut self, listener: usize) {
        loop {
            let channel = match self.listeners[listener].accept() {
                Ok(Some(channel)) => channel,
                Ok(None) => return,
                Err(error) => return self.rest(listener, &error),
            };
            let config = self.shared.config;
            let visitors = self.visitors.iter().filter(|visitor| visitor.refused.is_none()).count();
            let taken = self.sessions.iter().flatten().count() + visitors;
            let refusal = if self.state != HubState::Steady
                && !matches!(self.state, HubState::Draining { leave: false })
            {
                Some(Refuse::new(Reason::Draining, 0, 0))
            } else if taken >= if channel.peer().is_some() { config.places() + OPERATORS_MAX } else { config.sessions }
            {
                Some(Refuse::new(Reason::Sessions, config.sessions as u64, taken as u64))
            } else {
                None
            };
            self.sessions_seen = self.sessions_seen.wrapping_add(1);
            let number = u64::from(self.sessions_seen);
            self.watch(channel.fd(), tag::VISITOR | number);
            let until = self.now + config.attach_timeout.get();
            let (intake, importing) = (Intake::new(), None);
            let visitor = Visitor { channel, intake, until, number, importing, refused: None, ready: None };
            match refusal {
                Some(refusal) => self.refuse(visitor, refusal),
                None => self.visitors.push(visitor),
            }
        }
    }

    /// Leaves a listener alone for a while: a host that waits there would be found again at once, and again get no
    /// descriptor.
    fn rest(&mut self, listener: usize, error: &ChannelError) {
        log::warn!(
            "{error}: no visitor is let in for {} s: raise the unit's LimitNOFILE (ulimit -n) if it is out of descriptors",
            ACCEPT_REST.as_secs()
        );
        if let Some(fd) = self.listeners[listener].fd() {
            // Not watched any more, or it was not watched before.
            let _ = self.epoll.delete(fd);
            self.rests[listener] = Some(self.now + ACCEPT_REST);
        }
    }

    /// Hears listeners again whose rest is over.
    pub(crate) fn end_rests(&mut self) {
        for listener in 0..self.listeners.len() {
            if self.rests[listener].take_if(|until| *until <= self.now).is_some() {
                self.watch(self.listeners[listener].fd(), tag::LISTENER | listener as u64);
            }
        }
    }

    /// Tells a visitor why it is not let in, and lets it linger.
    fn refuse(&mut self, mut visitor: Visitor, refusal: Refuse) {
        self.events.add(HubEvent::Refused, u64::from(refusal.reason));
        if !say(visitor.channel.as_mut(), &Message::Refuse(refusal), &mut self.attach_buffer) {
            return;
        }
        let is_refused = |visitor: &Visitor| visitor.refused.is_some();
        if self.visitors.iter().filter(|visitor| is_refused(visitor)).count() >= REFUSED_MAX {
            let lingering = self.visitors.iter().enumerate().filter(|(_, visitor)| is_refused(visitor));
            let oldest = lingering.min_by_key(|(_, visitor)| visitor.until).map(|(place, _)| place);
            self.visitors.swap_remove(oldest.expect("just counted"));
        }
        visitor.refused = Some(0);
        visitor.until = self.now + REFUSED_LINGER;
        self.visitors.push(visitor);
    }

    fn hear_visitor(&mut self, number: u64) {
        let Some(place) = self.visitors.iter().position(|visitor| visitor.number == number) else { return };
        if let Some(importing) = &self.visitors[place].importing {
            let Some(imported) = importing.take() else { return };
            let visitor = self.visitors.swap_remove(place);
            return self.end_import(imported, visitor);
        }
        for _ in 0..MESSAGES_MAX {
            let visitor = &mut self.visitors[place];
            let refusal = match (visitor.channel.receive(&mut self.attach_buffer), visitor.refused.as_mut()) {
                (Ok(None), _) => return,
                (Ok(Some(_)), Some(dropped)) if *dropped < REFUSED_MESSAGES_MAX => {
                    *dropped += 1;
                    continue;
                }
                (Err(ChannelError::Closed), _) | (_, Some(_)) => {
                    self.visitors.swap_remove(place);
                    return;
                }
                (Err(error), None) => {
                    log::warn!("visitor: {error}");
                    Refuse::new(Reason::Malformed, 0, 0)
                }
                (Ok(Some(bytes)), None) => match Message::decode(&self.attach_buffer[..bytes]) {
                    Err(AttachError::Version { theirs, .. }) => Refuse::version(theirs),
                    Err(error) => {
                        log::warn!("visitor: {error}");
                        Refuse::new(Reason::Malformed, 0, 0)
                    }
                    Ok(message) => match visitor.intake.take(&message) {
                        Ok(None) => continue,
                        Ok(Some(attachment)) => return self.begin_import(place, attachment),
                        Err(refusal) => refusal,
                    },
                },
            };
            let visitor = self.visitors.swap_remove(place);
            log::warn!("visitor refused: {refusal}");
            return self.refuse(visitor, refusal);
        }
    }

    pub(crate) fn expire_visitors(&mut self) {
        let now = self.now;
        self.visitors.retain(|visitor| {
            let late = visitor.until <= now;
            if late && visitor.refused.is_none() {
                log::warn!("a visitor did not finish its attach in time: dropped");
            }
            !late
        });
    }

    /// Starts to import what a visitor has exported, which has said everything, on a thread that waits for that alone.
    fn begin_import(&mut self, place: usize, attachment: Attachment) {
        let visitor = &mut self.visitors[place];
        match Importing::begin(&self.device, attachment, visitor.until) {
            Ok(importing) => {
                // A socket that has more to say, or hangs up, would be readable all the time.
                let _ = visitor.channel.fd().map(|fd| self.epoll.delete(fd));
                let (number, importing) = (visitor.number, visitor.importing.insert(importing));
                let event = EpollEvent::new(EpollFlags::EPOLLIN, tag::VISITOR | number);
                if let Err(errno) = self.epoll.add(importing.as_fd(), event) {
                    log::error!("epoll_ctl: {}: a visitor will not be heard", errno.desc());
                }
            }
            Err(error) => {
                log::error!("visitor: its memory cannot be imported: {error}");
                let visitor = self.visitors.swap_remove(place);
                self.refuse(visitor, Refuse::new(Reason::Region, 0, PAGE_REGION.into()));
            }
        }
    }

    /// Takes the import from its thread; the visitor's own channel is heard again.
    fn end_import(&mut self, imported: Imported, mut visitor: Visitor) {
        if let Some(importing) = visitor.importing.take() {
            let _ = self.epoll.delete(importing.as_fd());
        }
        self.watch(visitor.channel.fd(), tag::VISITOR | visitor.number);
        self.admit(imported, visitor);
    }

    /// Gives a visitor a place, has it wait for the operator's, or refuses it.
    fn admit(&mut self, imported: Imported, mut visitor: Visitor) {
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
    fn change_operators(&mut self) -> bool {
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

    /// Begins a session, whose page is the host's.
    pub(crate) fn welcome(&mut self, index: usize) {
        let session = self.sessions[index].as_mut().expect("a session lives as long as its copies");
        session.welcomed = true;
        session.stir(self.now);
        let sections = session.memory.as_ref().map_or(&[][..], |memory| &memory.sections);
        let elements =
            sections.iter().map(|section| section.plan.largest(&section.geometry).elements(&section.geometry));
        let elements = elements.max().unwrap_or(0);
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
        self.events.add_session(HubEvent::Attached, session.id);
        let blocks: usize = sections.iter().map(|section| section.plan.block_count(&section.geometry)).sum();
        let of_all = if sections.len() > 1 { format!(" of {} sections", sections.len()) } else { String::new() };
        let (id, client, pid) = (session.id, &session.client, session.pid);
        log::info!("session {id} of {client} (pid {pid}) attached: {recipe}, {blocks} blocks a chunk{of_all}");
        if index >= self.shared.config.sessions {
            let sessions = self.shared.config.sessions;
            log::info!(
                "session {id} has the operator's place, for status and steering only: all {sessions} others are taken (--sessions)"
            );
        }
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
            let Some(session) = self.sessions[index].as_mut() else { return };
            match session.channel.receive(&mut self.attach_buffer) {
                Ok(None) => return,
                // It is over and not buried yet: what it says has no meaning any more.
                Ok(Some(_)) if !session.is_live() => {}
                Err(_) if !session.is_live() => return,
                Ok(Some(bytes)) => match Message::decode(&self.attach_buffer[..bytes]) {
                    Ok(Message::Doorbell) => {
                        session.stir(self.now);
                        add(&self.shared.counters.doorbells_heard, 1);
                    }
                    Ok(Message::Bye(_)) => {
                        log::info!("session {} of {} left", session.id, session.client);
                        self.events.add_session(HubEvent::Left, session.id);
                        return self.end(index, None);
                    }
                    Ok(message) => {
                        log::warn!("session {}: message of kind {} after the attach", session.id, message.kind());
                        return self.lose(index, Farewell::PeerError);
                    }
                    Err(error) => {
                        log::warn!("session {}: {error}", session.id);
                        return self.lose(index, Farewell::PeerError);
                    }
                },
                Err(error) => {
                    log::warn!("session {} of {} (pid {}): {error}", session.id, session.client, session.pid);
                    return self.lose(index, Farewell::PeerError);
                }
            }
        }
        // More may wait: descriptors are level-triggered, and so are a listener's news.
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
        self.events.add(HubEvent::Refused, u64::from(refusal.reason));
        say(session.channel.as_mut(), &Message::Refuse(refusal), &mut self.attach_buffer);
        self.end(index, None);
    }

    /// Ends a session because of what its host did or because its memory cannot be reached. No other session is
    /// disturbed.
    pub(crate) fn lose(&mut self, index: usize, farewell: Farewell) {
        let Some(session) = self.sessions[index].as_ref().filter(|session| session.is_live()) else { return };
        add(&self.shared.counters.sessions_lost, 1);
        self.events.add_session(HubEvent::Lost, session.id);
        self.end(index, Some(farewell));
    }

    fn end(&mut self, index: usize, farewell: Option<Farewell>) {
        let Some(session) = self.sessions[index].as_mut() else { return };
        session.close();
        if let Some(farewell) = farewell {
            say(session.channel.as_mut(), &Message::Bye(farewell), &mut self.attach_buffer);
        }
        // Stop hearing a socket that may stay readable until the session is buried.
        let _ = session.channel.fd().map(|fd| self.epoll.delete(fd));
        session.requests.fill(None);
        session.queue.clear();
        session.questions.clear();
        session.records_due = None;
        session.staged.clear();
        session.answers.clear();
        session.texts.clear();
        self.abort_session(index);
    }

    /// Frees closed sessions of which nothing is in flight; `true` if somebody waited for a place.
    pub(crate) fn bury(&mut self) -> bool {
        for place in &mut self.sessions {
            let over = |session: &mut Session| !session.is_live() && session.is_idle();
            if let Some(session) = place.take_if(over) {
                self.desks.push(session.desk);
            }
        }
        self.change_operators()
    }

    /// Says goodbye to every host.
    pub(crate) fn say_goodbye(&mut self) {
        for session in self.sessions.iter_mut().flatten() {
            say(session.channel.as_mut(), &Message::Bye(Farewell::Stopping), &mut self.attach_buffer);
        }
        log::info!("left after {:.1} s", self.started.elapsed().as_secs_f64());
    }
}

/// Sends a message; `false`: the host cannot be told.
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
