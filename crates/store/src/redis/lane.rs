//! One connection of a reader to one node.
//!
//! ```text
//!   Closed -> Connecting -> Greeting -> Ready        any of them -> Closed, when the connection fails or is given up
//! ```
//!
//! Commands are queued in a fixed buffer and leave together at the end of a turn; replies come through [`Inflow`].

use std::io::{self, ErrorKind, Write};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use std::sync::atomic::Ordering::Relaxed;

use super::Connector;
use super::greeting::{GREETING_BYTES, Greeting, LoginRefusal};
use super::inflow::{Due, Got, Inflow, Recipient, Wants};
use super::nodes::Nodes;
use super::resp;
use super::socket::Socket;
use crate::BlockMemory;

/// Bytes of commands that wait for the socket.
pub(super) const OUT_BYTES: usize = 16 << 10;
/// A server that owes something makes progress with this much, or with a whole reply.
const PROGRESS_BYTES: usize = 64 << 10;
/// Pause before a connection is tried again: the first one, and the longest. Doubled and jittered.
const RETRY_LEAST: Duration = Duration::from_millis(10);
const RETRY_MOST: Duration = Duration::from_secs(2);

#[derive(Debug)]
enum State {
    Closed { retry_at: Instant },
    Connecting { until: Instant },
    Greeting { greeting: Greeting, until: Instant },
    Ready,
}

impl State {
    fn may_become(&self, next: &Self) -> bool {
        matches!(
            (self, next),
            (Self::Closed { .. }, Self::Connecting { .. })
                | (Self::Connecting { .. }, Self::Greeting { .. })
                | (Self::Greeting { .. }, Self::Greeting { .. } | Self::Ready)
                | (Self::Connecting { .. } | Self::Greeting { .. } | Self::Ready, Self::Closed { .. })
        )
    }
}

/// Reason why a lane closed.
#[derive(Debug)]
pub(super) enum Loss {
    Io(io::Error),
    /// The server does not take us: to be told to whoever asks.
    Refused(LoginRefusal),
}

impl From<io::Error> for Loss {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Lane<M> {
    pub(super) node: u16,
    state: State,
    socket: Option<Socket>,
    out: Box<[u8]>,
    out_start: usize,
    out_end: usize,
    inflow: Inflow<M>,
    /// Time of the server's last progress with what it owes, and bytes that came since.
    progress_at: Instant,
    progress_bytes: usize,
    /// Failures in a row.
    failures: u32,
    /// Epoll watches for room to write, too.
    watching_writes: bool,
    was_ready: bool,
}

impl<M> Lane<M> {
    /// Takes this connection out of the node's gauges.
    pub(super) fn leave(&self, nodes: &Nodes) {
        if self.socket.is_some() {
            let node = nodes.at(self.node);
            node.connections.fetch_sub(matches!(self.state, State::Ready).into(), Relaxed);
            node.in_flight.fetch_sub(self.inflow.len() as u64, Relaxed);
        }
    }
}

impl<M: BlockMemory> Lane<M> {
    pub(super) fn new(node: u16, due_max: usize) -> Self {
        let now = Instant::now();
        Self {
            node,
            state: State::Closed { retry_at: now },
            socket: None,
            out: vec![0; OUT_BYTES].into(),
            out_start: 0,
            out_end: 0,
            inflow: Inflow::new(due_max),
            progress_at: now,
            progress_bytes: 0,
            failures: 0,
            watching_writes: false,
            was_ready: false,
        }
    }

    fn become_state(&mut self, next: State) {
        assert!(self.state.may_become(&next), "lane {:?} -> {next:?}", self.state);
        self.state = next;
    }

    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state, State::Ready)
    }

    pub(super) fn is_closed(&self) -> bool {
        matches!(self.state, State::Closed { .. })
    }

    /// Returns when a closed lane may be opened again.
    pub(super) fn retry_at(&self) -> Option<Instant> {
        match self.state {
            State::Closed { retry_at } => Some(retry_at),
            _ => None,
        }
    }

    /// Returns the payload bytes that are due.
    pub(super) fn owed(&self) -> usize {
        self.inflow.owed()
    }

    /// Starts to connect. `tag` comes with its events.
    pub(super) fn open(&mut self, connector: &Connector, nodes: &Nodes, epoll: &Epoll, tag: u64) -> Result<(), Loss> {
        let now = Instant::now();
        self.become_state(State::Connecting { until: now + connector.options.connect });
        (self.out_start, self.out_end) = (0, 0);
        let socket = self.socket.insert(connector.connect(nodes.at(self.node).address)?);
        epoll
            .add(socket.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT, tag))
            .map_err(io::Error::from)?;
        self.watching_writes = true;
        if self.was_ready {
            nodes.at(self.node).reconnects.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    /// Ends the connection; `lost` gets what was due. `jitter` from 0 to 1.
    pub(super) fn close(&mut self, nodes: &Nodes, jitter: f64, lost: &mut dyn FnMut(Due<M>)) {
        self.leave(nodes);
        // The descriptor leaves epoll by being closed: it has no copies.
        self.socket = None;
        let wait = RETRY_LEAST.saturating_mul(1 << self.failures.min(10)).min(RETRY_MOST);
        self.failures += 1;
        self.become_state(State::Closed { retry_at: Instant::now() + wait.mul_f64(0.5 + jitter / 2.0) });
        self.inflow.abandon(lost);
    }

    /// Whether a command of up to `bytes` bytes and its reply find room.
    pub(super) fn has_room(&self, bytes: usize, replies: usize) -> bool {
        self.inflow.room() >= replies && self.out.len() - self.out_end >= bytes
    }

    /// Queues a command. The caller asked for room.
    pub(super) fn send(&mut self, nodes: &Nodes, words: &[&[u8]], due: Due<M>) {
        if self.inflow.len() == 0 {
            (self.progress_at, self.progress_bytes) = (due.since, 0);
        }
        let bytes = resp::write_command(&mut self.out[self.out_end..], words).expect("the caller asked for room");
        self.out_end += bytes;
        let node = nodes.at(self.node);
        node.in_flight.fetch_add(1, Relaxed);
        if !matches!(due.owner, Recipient::Nobody | Recipient::Greeting) {
            node.requests.fetch_add(1, Relaxed);
        }
        self.inflow.expect(due);
    }

    /// Sends what is queued, as far as the socket takes it.
    pub(super) fn flush(&mut self, epoll: &Epoll, tag: u64) -> Result<(), Loss> {
        if matches!(self.state, State::Closed { .. } | State::Connecting { .. }) {
            return Ok(());
        }
        let socket = self.socket.as_mut().expect("only a closed lane has none");
        while self.out_start < self.out_end {
            match socket.write(&self.out[self.out_start..self.out_end]) {
                Ok(bytes) => self.out_start += bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            }
        }
        socket.push()?;
        if self.out_start == self.out_end {
            (self.out_start, self.out_end) = (0, 0);
        } else if self.out_start > self.out.len() / 2 {
            self.out.copy_within(self.out_start..self.out_end, 0);
            (self.out_start, self.out_end) = (0, self.out_end - self.out_start);
        }
        let wanted = self.out_end > 0 && !socket.is_handshaking() || socket.wants_write();
        if wanted != self.watching_writes {
            let flags = if wanted { EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
            epoll.modify(socket.as_fd(), &mut EpollEvent::new(flags, tag)).map_err(io::Error::from)?;
            self.watching_writes = wanted;
        }
        Ok(())
    }

    /// Connects, greets or receives, as the socket allows. `done` gets the replies that are whole.
    pub(super) fn event(
        &mut self,
        connector: &Connector,
        nodes: &Nodes,
        spill: &mut [u8],
        done: &mut dyn FnMut(Due<M>, Got<'_>),
    ) -> Result<(), Loss> {
        if self.is_closed() {
            // An event of the connection that was closed in this same turn.
            return Ok(());
        }
        if let State::Connecting { until } = self.state {
            self.socket.as_ref().expect("connecting").connected()?;
            let greeting = Greeting::new(connector, connector.reads_replicas(nodes));
            self.become_state(State::Greeting { greeting, until });
            self.greet(connector, nodes)?;
            return Ok(());
        }
        let mut refused = None;
        let mut greeted = false;
        loop {
            let Self { state, inflow, socket, .. } = self;
            let before = inflow.len();
            let socket = socket.as_mut().expect("only a closed lane has none");
            let received = inflow.receive(socket, spill, &mut |due, got| match (due.owner, &mut *state) {
                (Recipient::Greeting, State::Greeting { greeting, .. }) => {
                    greeted = true;
                    let Got::Reply(reply) = got else { return };
                    refused = greeting.answer(connector, &reply).err().or(refused.take());
                }
                _ => done(due, got),
            });
            let received = match received {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error.into()),
            };
            let replies = before - self.inflow.len();
            nodes.at(self.node).in_flight.fetch_sub(replies as u64, Relaxed);
            self.progress_bytes += received.bytes;
            if replies > 0 || self.progress_bytes >= PROGRESS_BYTES {
                (self.progress_at, self.progress_bytes) = (Instant::now(), 0);
            }
            if !received.more && !self.socket.as_ref().is_some_and(Socket::is_tls) {
                break;
            }
        }
        match refused {
            Some(refusal) => return Err(Loss::Refused(refusal)),
            None if greeted => self.greet(connector, nodes)?,
            None => {}
        }
        Ok(())
    }

    /// Asks the next question of the greeting.
    fn greet(&mut self, connector: &Connector, nodes: &Nodes) -> Result<(), Loss> {
        let State::Greeting { greeting, .. } = &mut self.state else { unreachable!("the caller looked") };
        let mut question = [0; GREETING_BYTES];
        match greeting.ask(connector, &mut question) {
            Some(bytes) => {
                self.out[self.out_end..self.out_end + bytes].copy_from_slice(&question[..bytes]);
                self.out_end += bytes;
                nodes.at(self.node).in_flight.fetch_add(1, Relaxed);
                self.inflow.expect(Due { owner: Recipient::Greeting, since: Instant::now(), wants: Wants::Reply });
            }
            None => {
                self.become_state(State::Ready);
                (self.failures, self.was_ready) = (0, true);
                nodes.at(self.node).connections.fetch_add(1, Relaxed);
                nodes.succeeded(self.node);
            }
        }
        Ok(())
    }

    /// Returns when the lane has to be looked at even if nothing comes.
    pub(super) fn patience(&self, connector: &Connector) -> Option<Instant> {
        match self.state {
            State::Closed { .. } => None,
            State::Connecting { until } | State::Greeting { until, .. } => Some(until),
            State::Ready => (self.inflow.len() > 0).then_some(self.progress_at + connector.options.stall),
        }
    }

    /// Forgets an errand that nobody waits for any more; returns its memory.
    pub(super) fn orphan(&mut self, errand: u16) -> Option<M> {
        self.inflow.orphan(errand)
    }

    pub(super) fn take_copied(&mut self) -> u64 {
        self.inflow.take_copied()
    }
}
