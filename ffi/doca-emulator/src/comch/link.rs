//! One connection of DOCA Comch: a Unix seqpacket socket, what is written to it and what is read from it, by frames
//! (see [`crate::comch::frame`]).
//!
//! Nobody sends what the reader has no room for: a message needs room in the window, data a posted buffer. A peer that
//! does so anyway, or sends what is no frame, is cut off. So a link never stops reading, and control messages that
//! nobody takes do not hold data up.
//!
//! Writes happen on whichever thread submits; what the socket does not take at once, and all reads, are the business
//! of the reactor's thread (see [`crate::comch::reactor`]).

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::comch::frame::{FRAGMENT_BYTES, FrameKind, frame, frame_in, parse};
use crate::comch::inbox::Event;
use crate::config::{DATA_BYTES_MAX, IMM_BYTES_MAX};
use crate::core::ctx::Ctx;
use crate::core::library::MessageRoute;
use crate::core::passage::scatter;
use crate::core::pe::{Addressee, Port};
use crate::core::task::Task;
use crate::ffi::{FLUSHED, Fault, Handle};
use crate::memory::copy::Copier;

/// Buffers that a link keeps for its next messages, so that a steady exchange allocates nothing.
const SPARE_MAX: usize = 64;
/// What they hold from the beginning: a doorbell and its head.
const SPARE_BYTES: usize = 64;
/// Consumers of the other side that a link keeps count of.
const REMOTE_MAX: usize = 1024;
/// Frames of the link's own that a peer may leave unread. One that sends and does not read is cut off there.
const UNREAD_FRAMES_MAX: usize = 16 << 10;

/// A task in flight on its way through a queue.
struct Flight(Handle<Task>);

// SAFETY: a task in flight belongs to whoever holds its queue, and these are under the link's lock.
unsafe impl Send for Flight {}

/// Gives a task back to its application. `job` belongs to the caller until then.
fn finish(task: &Flight, outcome: Result<usize, Fault>) {
    // SAFETY: the task is in flight and came off a queue, so its job is ours until `post`.
    let job = unsafe { task.0.job() };
    job.unload();
    job.outcome = outcome;
    let port = Arc::clone(&task.0.run.port);
    port.post(task.0);
}

struct Packet {
    bytes: Vec<u8>,
    /// Completes when the packet is out, with this many bytes.
    task: Option<(Flight, usize)>,
    /// One of `Inner::own`.
    is_own: bool,
}

/// A consumer of this side.
struct Consumer {
    id: u32,
    addressee: Addressee,
    port: Arc<Port>,
    posted: VecDeque<Flight>,
}

/// Data that has come in part.
struct Partial {
    task: Option<Flight>,
    bytes: Vec<u8>,
    total: usize,
}

struct Inner {
    /// Packets to send, in order; the first may be one that the socket did not take.
    out: VecDeque<Packet>,
    /// Messages that wait for the window.
    waiting: VecDeque<Packet>,
    window: u32,
    consumers: Vec<Consumer>,
    /// Frames in `out` that the link itself has put there.
    own: usize,
    /// Consumers of the other side and the buffers that they have posted.
    remote: Vec<(u32, u32)>,
    partial: Option<Partial>,
    copier: Copier,
    /// Empty buffers.
    spare: Vec<Vec<u8>>,
}

impl Inner {
    fn keep(&mut self, mut buffer: Vec<u8>) {
        if self.spare.len() < SPARE_MAX {
            buffer.clear();
            self.spare.push(buffer);
        }
    }

    fn frame(&mut self, what: FrameKind, words: [u32; 3], bytes: &[u8]) -> Vec<u8> {
        frame_in(self.spare.pop().unwrap_or_default(), what, words, bytes)
    }
}

#[derive(Clone, Copy)]
pub(crate) enum Counter {
    SentMessages,
    SentBytes,
    ReceivedMessages,
    ReceivedBytes,
}

pub(crate) struct Link {
    socket: OwnedFd,
    /// Wakes the reactor's thread.
    wake: Arc<crate::comch::reactor::Wake>,
    is_open: AtomicBool,
    pub(crate) message_max: AtomicU32,
    counters: [AtomicU64; 4],
    /// Messages that came and were not taken yet.
    unread: AtomicU32,
    inner: Mutex<Inner>,
}

/// The peer did what it must not do, or is gone.
pub(crate) struct Over;

impl Link {
    pub(crate) fn new(socket: OwnedFd, wake: Arc<crate::comch::reactor::Wake>) -> Link {
        let inner = Inner {
            out: VecDeque::new(),
            waiting: VecDeque::new(),
            window: 0,
            consumers: Vec::new(),
            own: 0,
            remote: Vec::new(),
            partial: None,
            copier: Copier::new(),
            spare: Vec::new(),
        };
        Link {
            socket,
            wake,
            is_open: AtomicBool::new(true),
            message_max: AtomicU32::new(0),
            counters: Default::default(),
            unread: AtomicU32::new(0),
            inner: Mutex::new(inner),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    pub(crate) fn has_to_write(&self) -> bool {
        !self.lock().out.is_empty()
    }

    pub(crate) fn counter(&self, which: Counter) -> u64 {
        self.counters[which as usize].load(Ordering::Relaxed)
    }

    fn count(&self, which: Counter, more: usize) {
        self.counters[which as usize].fetch_add(more as u64, Ordering::Relaxed);
    }

    /// Sets what both sides agreed on in the handshake.
    pub(crate) fn agree(&self, message_max: u32, window: u32) {
        self.message_max.store(message_max, Ordering::Relaxed);
        let mut inner = self.lock();
        inner.window = window;
        // All that are ever kept, so that it does not depend on chance when the last of them is first needed.
        inner.spare.resize_with(SPARE_MAX, || Vec::with_capacity(SPARE_BYTES));
        inner.out.reserve(SPARE_MAX);
        inner.waiting.reserve(SPARE_MAX);
    }

    /// Queues a frame of the link's own.
    pub(crate) fn tell(&self, what: FrameKind, words: [u32; 3], bytes: &[u8]) {
        let mut inner = self.lock();
        let bytes = inner.frame(what, words, bytes);
        inner.out.push_back(Packet { bytes, task: None, is_own: true });
        inner.own += 1;
        self.write(&mut inner);
        if inner.own > UNREAD_FRAMES_MAX {
            // SAFETY: a socket of our own; the reactor's thread finds it at its end.
            unsafe { libc::shutdown(self.fd(), libc::SHUT_RDWR) };
        }
    }

    /// Data for a consumer of the other side: `AGAIN` if that has no buffer, `NOT_FOUND` if there is no such consumer.
    pub(crate) fn reserve(&self, consumer: u32) -> Result<(), Fault> {
        let mut inner = self.lock();
        let credit = inner.remote.iter_mut().find(|(id, _)| *id == consumer);
        let (_, credit) = credit.ok_or(Fault::DOCA_ERROR_NOT_FOUND)?;
        *credit = credit.checked_sub(1).ok_or(Fault::DOCA_ERROR_AGAIN)?;
        Ok(())
    }

    /// Nothing came of a reservation.
    pub(crate) fn refund(&self, consumer: u32) {
        if let Some((_, credit)) = self.lock().remote.iter_mut().find(|(id, _)| *id == consumer) {
            *credit += 1;
        }
    }

    /// Sends what was reserved for. `task` is in flight from here on.
    pub(crate) fn send_data(&self, consumer: u32, producer: u32, imm: &[u8], data: &[u8], task: Handle<Task>) {
        let mut inner = self.lock();
        if !self.is_open() {
            return finish(&Flight(task), Err(Fault::DOCA_ERROR_CONNECTION_RESET));
        }
        let (first, rest) = data.split_at(data.len().min(FRAGMENT_BYTES));
        let body = [&[imm.len() as u8], imm, first].concat();
        inner.out.push_back(Packet {
            bytes: frame(FrameKind::Data, [consumer, producer, data.len() as u32], &body),
            task: None,
            is_own: false,
        });
        for more in rest.chunks(FRAGMENT_BYTES) {
            inner.out.push_back(Packet { bytes: frame(FrameKind::More, [0; 3], more), task: None, is_own: false });
        }
        if let Some(last) = inner.out.back_mut() {
            last.task = Some((Flight(task), data.len()));
        }
        self.write(&mut inner);
    }

    /// Sends more when the socket takes more. Called by the reactor's thread.
    pub(crate) fn write_more(&self) {
        self.write(&mut self.lock());
    }

    fn write(&self, inner: &mut Inner) {
        while let Some(packet) = inner.out.front() {
            let (first, length) = (packet.bytes.as_ptr().cast(), packet.bytes.len());
            // SAFETY: bytes of our own with their length, to a socket of our own.
            let sent = unsafe { libc::send(self.fd(), first, length, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
            if sent < 0 {
                match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR) => continue,
                    // The reactor's thread waits for the socket to take more, or to say that it is over.
                    _ => return self.wake.ring(),
                }
            }
            let Some(Packet { bytes, task, is_own }) = inner.out.pop_front() else { return };
            inner.own -= usize::from(is_own);
            inner.keep(bytes);
            if let Some((task, length)) = task {
                finish(&task, Ok(length));
            }
        }
    }

    /// One packet into `room`: its length, None if there is none now.
    pub(crate) fn receive(&self, room: &mut [u8]) -> Result<Option<usize>, Over> {
        let mut resets = 0;
        loop {
            // SAFETY: room of the caller's with its length.
            let got = unsafe {
                libc::recv(self.fd(), room.as_mut_ptr().cast(), room.len(), libc::MSG_DONTWAIT | libc::MSG_TRUNC)
            };
            match usize::try_from(got) {
                Ok(length) if length == 0 || length > room.len() => return Err(Over),
                Ok(length) => return Ok(Some(length)),
                Err(_) => match io::Error::last_os_error().raw_os_error() {
                    Some(libc::EINTR) => {}
                    Some(libc::EAGAIN) => return Ok(None),
                    // Said once if the peer left without reading everything; what it sent before is still there.
                    Some(libc::ECONNRESET) if resets == 0 => resets += 1,
                    _ => return Err(Over),
                },
            }
        }
    }

    /// Takes a frame of an open link in. The answer is for the reactor's context.
    pub(crate) fn take_in(self: &Arc<Self>, packet: &[u8], window: u32) -> Result<Option<Event>, Over> {
        let (what, [first, second, third], bytes) = parse(packet).ok_or(Over)?;
        match what {
            FrameKind::Message => {
                let length_max = self.message_max.load(Ordering::Relaxed) as usize;
                if bytes.len() > length_max || self.unread.fetch_add(1, Ordering::Relaxed) >= window {
                    return Err(Over);
                }
                self.count(Counter::ReceivedMessages, 1);
                self.count(Counter::ReceivedBytes, bytes.len());
                let mut message = self.lock().spare.pop().unwrap_or_default();
                message.extend_from_slice(bytes);
                return Ok(Some(Event::Message(Arc::clone(self), message)));
            }
            FrameKind::Window => {
                let mut inner = self.lock();
                inner.window = inner.window.checked_add(first).ok_or(Over)?;
                admit(&mut inner);
                self.write(&mut inner);
            }
            FrameKind::Consumer => {
                let mut inner = self.lock();
                if inner.remote.len() >= REMOTE_MAX || inner.remote.iter().any(|(id, _)| *id == first) {
                    return Err(Over);
                }
                inner.remote.push((first, 0));
                drop(inner);
                self.tell(FrameKind::Known, [first, 0, 0], &[]);
                return Ok(Some(Event::Consumer(Arc::clone(self), first)));
            }
            FrameKind::Gone => {
                self.lock().remote.retain(|(id, _)| *id != first);
                return Ok(Some(Event::Expired(Arc::clone(self), first)));
            }
            FrameKind::Known => {
                let inner = self.lock();
                if let Some(consumer) = inner.consumers.iter().find(|consumer| consumer.id == first) {
                    consumer.port.tell(consumer.addressee);
                }
            }
            FrameKind::Posted => {
                let mut inner = self.lock();
                if let Some((_, credit)) = inner.remote.iter_mut().find(|(id, _)| *id == first) {
                    *credit = credit.checked_add(second).ok_or(Over)?;
                }
            }
            FrameKind::Data => {
                let (&imm_len, rest) = bytes.split_first().ok_or(Over)?;
                let (imm, data) = rest.split_at_checked(imm_len.into()).ok_or(Over)?;
                let mut inner = self.lock();
                let inner = &mut *inner;
                if imm.len() > IMM_BYTES_MAX || third > DATA_BYTES_MAX || inner.partial.is_some() {
                    return Err(Over);
                }
                let consumer = inner.consumers.iter_mut().find(|consumer| consumer.id == first);
                // Without a consumer it is data that crossed with its end.
                let task = match consumer {
                    Some(consumer) => Some(consumer.posted.pop_front().ok_or(Over)?),
                    None => None,
                };
                if let Some(task) = &task {
                    // SAFETY: in flight, and off its queue: the job is ours.
                    let job = unsafe { task.0.job() };
                    job.producer = second;
                    job.imm[..imm.len()].copy_from_slice(imm);
                    job.imm_len = imm.len();
                }
                inner.partial = Some(Partial { task, bytes: Vec::new(), total: third as usize });
                add_data(inner, data)?;
            }
            FrameKind::More => add_data(&mut self.lock(), bytes)?,
            FrameKind::Hello | FrameKind::Welcome | FrameKind::Refused => return Err(Over),
        }
        Ok(None)
    }

    /// The context took a message: the other side may send another.
    pub(crate) fn taken(&self, message: Vec<u8>) {
        self.lock().keep(message);
        self.unread.fetch_sub(1, Ordering::Relaxed);
        if self.is_open() {
            self.tell(FrameKind::Window, [1, 0, 0], &[]);
        }
    }

    pub(crate) fn add_consumer(&self, id: u32, addressee: Addressee, port: Arc<Port>) {
        self.lock().consumers.push(Consumer { id, addressee, port, posted: VecDeque::new() });
        self.tell(FrameKind::Consumer, [id, 0, 0], &[]);
    }

    /// Flushes what the consumer has posted.
    pub(crate) fn drop_consumer(&self, id: u32) {
        let gone = {
            let mut inner = self.lock();
            let index = inner.consumers.iter().position(|consumer| consumer.id == id);
            index.map(|index| inner.consumers.swap_remove(index))
        };
        if let Some(consumer) = gone {
            consumer.posted.iter().for_each(|task| finish(task, Err(FLUSHED)));
            if self.is_open() {
                self.tell(FrameKind::Gone, [id, 0, 0], &[]);
            }
        }
    }

    /// A buffer for data to come. `task` is in flight from here on.
    pub(crate) fn post(&self, id: u32, task: Handle<Task>) {
        let mut inner = self.lock();
        match inner.consumers.iter_mut().find(|consumer| consumer.id == id) {
            Some(consumer) if self.is_open() => consumer.posted.push_back(Flight(task)),
            _ => return finish(&Flight(task), Err(Fault::DOCA_ERROR_CONNECTION_RESET)),
        }
        inner.out.push_back(Packet { bytes: frame(FrameKind::Posted, [id, 1, 0], &[]), task: None, is_own: false });
        self.write(&mut inner);
    }

    /// The context stops: its sends that are not out yet complete as flushed. What has begun to go out still does.
    pub(crate) fn flush(&self, ctx: Handle<Ctx>) {
        let mut inner = self.lock();
        let is_its = |packet: &Packet| packet.task.as_ref().is_some_and(|(task, _)| task.0.ctx == ctx);
        for packet in inner.out.iter_mut().filter(|packet| is_its(packet)) {
            if let Some((task, _)) = packet.task.take() {
                finish(&task, Err(FLUSHED));
            }
        }
        let waiting = std::mem::take(&mut inner.waiting);
        let (its, others): (VecDeque<Packet>, VecDeque<Packet>) = waiting.into_iter().partition(is_its);
        inner.waiting = others;
        its.into_iter().filter_map(|packet| packet.task).for_each(|(task, _)| finish(&task, Err(FLUSHED)));
    }

    /// Ends the connection; everything in flight on it fails. True the first time.
    pub(crate) fn close(&self) -> bool {
        if !self.is_open.swap(false, Ordering::AcqRel) {
            return false;
        }
        // SAFETY: a socket of our own. The descriptor stays until the last holder of the link is gone.
        unsafe { libc::shutdown(self.fd(), libc::SHUT_RDWR) };
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.own = 0;
        let packets = inner.out.drain(..).chain(inner.waiting.drain(..));
        let sends = packets.filter_map(|packet| packet.task).map(|(task, _)| task);
        let posted = inner.consumers.iter_mut().flat_map(|consumer| consumer.posted.drain(..));
        let partial = inner.partial.take().and_then(|partial| partial.task);
        sends.chain(posted).chain(partial).for_each(|task| finish(&task, Err(Fault::DOCA_ERROR_CONNECTION_RESET)));
        true
    }
}

impl MessageRoute for Link {
    fn send_message(&self, message: &[u8], task: Handle<Task>) {
        let mut inner = self.lock();
        if !self.is_open() {
            return finish(&Flight(task), Err(Fault::DOCA_ERROR_CONNECTION_RESET));
        }
        let bytes = inner.frame(FrameKind::Message, [0; 3], message);
        let packet = Packet { bytes, task: Some((Flight(task), message.len())), is_own: false };
        self.count(Counter::SentMessages, 1);
        self.count(Counter::SentBytes, message.len());
        inner.waiting.push_back(packet);
        admit(&mut inner);
        self.write(&mut inner);
    }
}

/// Moves messages that the window has room for to the socket's queue.
fn admit(inner: &mut Inner) {
    while inner.window > 0 {
        let Some(packet) = inner.waiting.pop_front() else { break };
        inner.out.push_back(packet);
        inner.window -= 1;
    }
}

/// Adds to the data that comes in; the last piece completes the buffer's task.
fn add_data(inner: &mut Inner, data: &[u8]) -> Result<(), Over> {
    let partial = inner.partial.as_mut().ok_or(Over)?;
    if data.len() > partial.total - partial.bytes.len() {
        return Err(Over);
    }
    partial.bytes.extend(data);
    if partial.bytes.len() == partial.total
        && let Some(Partial { task: Some(task), bytes, .. }) = inner.partial.take()
    {
        // SAFETY: in flight, and off its queue: the job is ours.
        let job = unsafe { task.0.job() };
        finish(&task, scatter(&mut inner.copier, job, &bytes));
    }
    Ok(())
}
