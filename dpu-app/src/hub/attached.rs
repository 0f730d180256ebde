//! Hosts that are attached, from their welcome to their end.

use mailbox::attach::{Farewell, Message, Reason, Refuse, Welcome};
use mailbox::{CHUNKS_PER_REQUEST_MAX, COMMANDS, PeerError};

use crate::count::counters::add;
use crate::hub::Hub;
use crate::hub::attend::{MESSAGES_MAX, say};
use crate::hub::events::HubEvent;
use crate::hub::session::Session;
use crate::pipeline::endings::Endings;

impl Hub<'_, '_> {
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

    pub(super) fn hear_session(&mut self, index: usize) {
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

    pub(super) fn end(&mut self, index: usize, farewell: Option<Farewell>) {
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
