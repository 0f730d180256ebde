//! The mailbox, by DMA: each session has at most one small copy of each lane in flight.
//!
//! ```text
//! Commands  read slots -> accept -> take           again while awake
//! Records   read chunk records -> staged           when a request needs more
//! Out       write text, completion, own line       oldest first
//! HostLine  read after a completion                ring if the host sleeps
//! ```
//! Sleep: a session without commands for `awake` says so in its line, looks at the commands once more after that write
//! has completed, and is left alone until a doorbell.

use std::sync::Mutex;

use doca::{Completion, RemoteRun};
use heapless::Vec;
use mailbox::attach::{Farewell, Message};
use mailbox::{Answer, COMMAND_WINDOW, CardRing, Command, LINE_BYTES, Operation, PeerError, Span, Status};

use crate::count::counters::add;
use crate::hub::Hub;
use crate::hub::request::RequestInFlight;
use crate::hub::session::{MailLane, Outgoing, RecordsReading, Session, SessionWake};
use crate::hub::status;
use crate::pipeline::job::Failure;
use crate::pipeline::probation::UNREACHABLE_MIN;
use crate::workers::board::HubState;
use crate::workers::shared::Question;

/// Encodes a lane as the DOCA user data of its copy.
fn word(session: usize, lane: MailLane) -> u64 {
    (session as u64) << 8 | lane as u64
}

fn place(word: u64) -> (usize, MailLane) {
    ((word >> 8) as usize, MailLane::ALL[(word & 3) as usize])
}

impl Hub<'_, '_> {
    /// Takes finished copies and starts new ones; `true` if there was anything.
    pub(crate) fn mail(&mut self) -> bool {
        let mut busy = false;
        let depth = self.shared.config.places() * MailLane::ALL.len();
        while let Some(completion) = self.mail.poll(depth) {
            self.mailed(completion, depth);
            busy = true;
        }
        // One that does not come back is given up by check_engines.
        let revived = self.mail.revive().inspect_err(|_| self.mail.restarts = u32::MAX);
        if revived != Ok(false) {
            self.restarted(doca::OperationKind::Dma);
            return true;
        }
        busy |= self.mail.prove();
        for index in 0..self.sessions.len() {
            if self.sessions[index].is_none() {
                continue;
            }
            for lane in MailLane::ALL {
                if !self.mail.admits() {
                    return busy;
                }
                if let Some(span) = self.due(index, lane) {
                    self.post(index, lane, span);
                    busy = true;
                }
            }
        }
        busy
    }

    /// Finds what a lane has to copy now, if it is free.
    fn due(&mut self, index: usize, lane: MailLane) -> Option<Span> {
        let session = self.sessions[index].as_mut().filter(|session| session.is_live())?;
        session.desk.area(lane).as_ref()?;
        if lane == MailLane::Out
            && session.out.is_none()
            && let Some(command) = session.texts.pop_front()
        {
            self.write_text(index, &command);
        }
        self.session(index).due(lane)
    }

    /// Writes the text that a command asked for into the out lane's area, which is free.
    fn write_text(&mut self, index: usize, command: &Command) {
        let mut area = self.session(index).desk.area(MailLane::Out).take().expect("the lane is free");
        let bytes = match command.operation {
            Operation::Trace => status::write_trace(self, &mut area),
            _ => status::write(self, &mut area),
        };
        let answer_crc = CardRing::answer_crc(&area[..bytes]);
        let answer = Answer { answer_bytes: bytes as u32, answer_crc, ..Answer::new(command.request, Status::Ok) };
        let session = self.session(index);
        *session.desk.area(MailLane::Out) = Some(area);
        session.out = Some((Outgoing::Text(answer), session.ring.answer_span(command, bytes)));
    }

    fn post(&mut self, index: usize, lane: MailLane, span: Span) {
        let session = self.sessions[index].as_mut().expect("a session is there while a copy of it is due");
        let area = session.desk.area(lane).take().expect("a lane whose copy is due is free");
        let runs = [RemoteRun { remote: &session.page, offset: span.offset as u64, local: 0, bytes: span.bytes }];
        let posted = match lane {
            MailLane::Out => self.mail.context.write(word(index, lane), area, &runs),
            _ => self.mail.context.read(word(index, lane), area, &runs),
        };
        match posted {
            Ok(()) => self.mail.submitted(),
            Err(refused) => {
                let error = refused.error;
                *session.desk.area(lane) = refused.area();
                session.again(lane);
                if !error.is_back_pressure() {
                    log::warn!("session {}: {error}: the session ends", session.id);
                    self.lose(index, Farewell::DeviceError);
                }
            }
        }
    }

    fn mailed(&mut self, completion: Completion, depth: usize) {
        let (index, lane) = place(completion.ticket);
        let outcome = completion.outcome;
        let to_blame = self.mail.ended(outcome.is_ok(), depth);
        let session = self.sessions[index].as_mut().expect("a session lives as long as its copies");
        *session.desk.area(lane) = completion.area();
        if !session.is_live() {
            return;
        }
        if let Err(error) = outcome {
            session.again(lane);
            session.blames += u8::from(to_blame);
            if session.blames >= UNREACHABLE_MIN {
                log::warn!("session {}: its page cannot be reached ({error}): the session ends", session.id);
                self.lose(index, Farewell::DeviceError);
            }
            return;
        }
        session.blames = 0;
        let handled = match lane {
            MailLane::Commands => self.commands(index),
            MailLane::Records => session.take_records(self.shared.lookups.get(index)),
            MailLane::HostLine => session.read_host_line().map(|ring| {
                if ring {
                    add(&self.shared.counters.doorbells_rung, 1);
                    self.tell(index, &Message::Doorbell);
                }
            }),
            MailLane::Out => {
                if let Some(text) = session.written() {
                    self.shared.counters.answers.count(Operation::Status, text.status);
                }
                Ok(())
            }
        };
        if let Err(error) = handled {
            let id = self.sessions[index].as_ref().map_or(0, |session| session.id);
            log::warn!("session {id}: {error}: the session ends");
            self.lose(index, Farewell::PeerError);
        }
    }

    fn commands(&mut self, index: usize) -> Result<(), PeerError> {
        let session = self.sessions[index].as_mut().expect("a session lives as long as its copies");
        let area = session.desk.area(MailLane::Commands).as_ref().expect("it just came back");
        if !session.welcomed {
            match session.ring.check_identity(&area[..LINE_BYTES]) {
                Ok(()) => self.welcome(index),
                Err(error) => self.turn_away(index, error),
            }
            return Ok(());
        }
        let mut commands = Vec::<Command, COMMAND_WINDOW>::new();
        let bytes = session.ring.command_window().bytes;
        let progress = session.ring.accept(&area[..bytes], &mut commands)?;
        if progress.commands > 0 {
            session.stir(self.now);
        } else if progress.again {
            session.commands_due = true;
        } else {
            // A card that leaves lets its sessions fall asleep even if it is to poll: it leaves when all of them have.
            let polls = self.shared.config.busy_poll && self.state != (HubState::Draining { leave: true });
            let quiet = self.now - session.last_command >= self.shared.config.awake && !polls;
            match session.wake {
                SessionWake::Awake if quiet => session.wake = SessionWake::Saying,
                SessionWake::Awake => session.commands_due = true,
                SessionWake::Checking => session.wake = SessionWake::Asleep,
                SessionWake::Saying | SessionWake::Asleep => {}
            }
        }
        for command in commands {
            self.take_command(index, command);
        }
        Ok(())
    }

    fn take_command(&mut self, index: usize, command: Command) {
        add(&self.shared.counters.requests, 1);
        let session = self.session(index);
        let verdict = match command.operation {
            _ if !command.is_known() => Some(Status::Unsupported),
            Operation::Ping => Some(Status::Ok),
            Operation::Status | Operation::Trace => {
                session.texts.push_back(command).expect("a place per command");
                None
            }
            Operation::Cancel => match session.find(command.target) {
                Some(place) => {
                    self.cut(index, place, Failure::Cancelled);
                    Some(Status::Ok)
                }
                None => Some(Status::NotFound),
            },
            Operation::Drain | Operation::Resume | Operation::Stop => Some(self.obey(index, command.operation)),
            Operation::Lookup | Operation::Fetch | Operation::Store | Operation::Rate => {
                self.admit_request(index, command)
            }
            Operation::Unknown(_) => Some(Status::Unsupported),
        };
        if let Some(status) = verdict {
            self.shared.counters.answers.count(command.operation, status);
            let answer = Answer::new(command.request, status);
            self.session(index).answers.push_back(answer).expect("a place per command");
        }
    }

    /// Obeys a command that concerns all hosts: from the operator, who can open the card's own socket, or a host where
    /// that was allowed.
    fn obey(&mut self, index: usize, operation: Operation) -> Status {
        let may_stop = self.shared.config.allow_host_stop;
        let session = self.session(index);
        if !session.is_local && !may_stop {
            log::warn!(
                "session {} of {} (pid {}) by Comch asked to {}: refused (--allow-host-stop)",
                session.id,
                session.client,
                session.pid,
                operation.name()
            );
            return Status::Forbidden;
        }
        match operation {
            Operation::Resume => self.resume(),
            operation => {
                self.drain(operation == Operation::Stop);
                Status::Ok
            }
        }
    }

    /// Admits a request that names chunks; `Some` is its answer already.
    fn admit_request(&mut self, index: usize, command: Command) -> Option<Status> {
        if index >= self.shared.config.sessions {
            // The operator's place: others would keep it from the operator.
            return Some(Status::Busy);
        }
        if self.state != HubState::Steady {
            return Some(Status::Draining);
        }
        let session = self.sessions[index].as_mut().expect("a session lives as long as its commands");
        if command.operation.takes_pages() {
            let Some(memory) = &session.memory else { return Some(Status::NoLayout) };
            let whole = command.tokens == mailbox::Tokens::ALL;
            let layout = &memory.section(command.section).layout;
            let fits = command.pages_per_chunk as usize == layout.pages_per_chunk()
                && (command.operation != Operation::Fetch || memory.writable)
                && (command.operation != Operation::Store || whole);
            if !fits {
                return Some(Status::Malformed);
            }
        }
        let Some(place) = session.requests.iter().position(Option::is_none) else { return Some(Status::Busy) };
        let patience = match command.deadline_us {
            0 => self.shared.config.deadline.get(),
            us => std::time::Duration::from_micros(us.into()),
        };
        self.requests_seen += 1;
        session.requests[place] =
            Some(RequestInFlight::new(command, self.requests_seen, self.now, self.now + patience));
        match command.operation.takes_pages() {
            true => session.queue.push_back(place),
            false => session.questions.push_back(place),
        }
        None
    }
}

impl Session {
    /// Finds what a free lane has to copy now: a read, or the write that was prepared in the out lane's area.
    fn due(&mut self, lane: MailLane) -> Option<Span> {
        match lane {
            MailLane::Commands if self.commands_due => {
                self.commands_due = false;
                Some(if self.welcomed { self.ring.command_window() } else { self.ring.identity_span() })
            }
            MailLane::Records => self.records_due.map(|reading| reading.span),
            MailLane::HostLine if self.host_line_due => {
                self.host_line_due = false;
                Some(self.ring.host_line_span())
            }
            MailLane::Out => {
                self.out = self.out.or_else(|| self.next_line());
                self.out.map(|(_, span)| span)
            }
            _ => None,
        }
    }

    /// Prepares the next completion, or the card's own line.
    fn next_line(&mut self) -> Option<(Outgoing, Span)> {
        let (outgoing, (span, line)) = if let Some(answer) = self.answers.pop_front() {
            (Outgoing::Completion, self.ring.complete(&answer))
        } else if self.wake == SessionWake::Saying {
            (Outgoing::Line, self.ring.line(true))
        } else {
            return None;
        };
        let area = self.desk.area(MailLane::Out).as_mut().expect("the lane is free");
        area[..LINE_BYTES].copy_from_slice(&line);
        Some((outgoing, span))
    }

    /// Checks a window of chunk records, and keeps chunks until they have seats, keys of a question until all are
    /// there.
    fn take_records(&mut self, question: Option<&Mutex<Question>>) -> Result<(), PeerError> {
        let RecordsReading { whose, span } = self.records_due.take().expect("they were being read");
        let Self { requests, ring, desk, staged, .. } = self;
        // It may have been answered meanwhile.
        let request = requests[whose.place].as_mut().filter(|request| request.serial == whose.serial);
        let Some(request) = request.filter(|request| request.wants_more()) else { return Ok(()) };
        let records = ring.records(&request.command, request.next, &desk.areas_records()[..span.bytes])?;
        if request.command.operation.takes_pages() {
            staged.clear();
            for record in records {
                staged.push(&record?);
            }
            return Ok(());
        }
        let mut question = question.expect("the operator's session names no chunks").lock().expect("panic is abort");
        if request.next == 0 {
            question.keys.clear();
            question.importances.clear();
            question.trailing = request.command.trailing();
        }
        for record in records {
            let record = record?;
            question.keys.push(record.key);
            question.importances.push(record.importance);
            request.next += 1;
        }
        question.until = request.until;
        Ok(())
    }

    /// Reads the host's line; `true` if the host sleeps, and is to be woken.
    fn read_host_line(&mut self) -> Result<bool, PeerError> {
        let area = self.desk.area(MailLane::HostLine).as_ref().expect("it just came back");
        let bytes = self.ring.host_line_span().bytes;
        let line = self.ring.read_host_line(&area[..bytes])?;
        self.host_line_due |= line.is_none();
        Ok(line.is_some_and(|line| line.ring))
    }

    /// Goes on after a write of the out lane; returns the answer to count, if it was a text.
    fn written(&mut self) -> Option<Answer> {
        match self.out.take().expect("something was being written").0 {
            Outgoing::Text(answer) => {
                self.answers.push_front(answer).expect("a place per command");
                return Some(answer);
            }
            Outgoing::Completion => self.host_line_due = true,
            Outgoing::Line if self.wake == SessionWake::Saying => {
                self.wake = SessionWake::Checking;
                self.commands_due = true;
            }
            Outgoing::Line => {}
        }
        None
    }

    /// Has the copy of a lane made again. Records and writes remember themselves.
    fn again(&mut self, lane: MailLane) {
        match lane {
            MailLane::Commands => self.commands_due = true,
            MailLane::HostLine => self.host_line_due = true,
            MailLane::Records | MailLane::Out => {}
        }
    }
}
