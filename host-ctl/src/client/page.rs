//! Moves jobs that wait onto the mailbox page, and says what the page's completions mean.

use std::time::{Duration, Instant};

use mailbox::attach::{ATTACH_MESSAGE_MAX, Message};
use mailbox::channel::ChannelError;
use mailbox::{COMMANDS, Chunk, Doorbell, Operation, PostError, Request};

use super::{Client, Completion, RequestId};
use crate::error::{Error, Gone};
use crate::job::{ClientJob, JobPart, PartOutcome};

/// Slots of the page that transfers leave to cancels, pings and status.
const CONTROL_SLOTS: usize = 4;
/// How often the channel is looked at while requests are polled: each look is a system call.
const HEAR_EVERY: Duration = Duration::from_millis(1);

impl Client {
    pub(super) fn fresh_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// Everything that can be done without waiting.
    pub(super) fn turn(&mut self) -> Result<(), Error> {
        if self.gone.is_none() && self.heard.elapsed() >= HEAR_EVERY {
            self.hear();
        }
        // Also after the card is gone: what it completed before is true.
        self.take_completions();
        match self.gone {
            Some(gone) => Err(gone.into()),
            None => self.pump(),
        }
    }

    pub(super) fn take_completions(&mut self) {
        loop {
            match self.ring.poll() {
                Ok(Some(completion)) => self.take(&completion),
                Ok(None) => return,
                Err(error) => return self.lied(error),
            }
        }
    }

    fn take(&mut self, completion: &mailbox::Completion) {
        self.taken += 1;
        if let Some(at) = self.cancelling.iter().position(|&request| request == completion.request) {
            self.cancelling.swap_remove(at);
            return;
        }
        let Some(at) = self.jobs.iter().position(|job| job.owns(completion.request)) else {
            debug_assert!(false, "the ring completes only what was posted: {completion:?}");
            return;
        };
        let job = &mut self.jobs[at];
        if completion.answer_bytes > 0 {
            let mut text = vec![0; completion.answer_bytes as usize];
            match self.ring.answer(completion, &mut text) {
                Ok(text) => job.answer = String::from_utf8_lossy(text).into_owned(),
                // The status is whole all the same; an empty answer is refused by whoever reads it.
                Err(error) => log::warn!("request {}: {error}", completion.request),
            }
        }
        job.ended(
            completion.request,
            PartOutcome {
                status: completion.status,
                done: completion.chunks_done,
                wire_bytes: completion.wire_bytes,
                restored_bytes: completion.restored_bytes,
                elapsed_us: completion.elapsed_us,
            },
        );
        self.retire(at);
    }

    /// Moves a job that is over to the completions.
    fn retire(&mut self, at: usize) {
        let Some(status) = self.jobs[at].finished() else { return };
        let job = self.jobs.remove(at).expect("indexed just now");
        self.ready.push_back(Completion {
            id: RequestId(job.id),
            operation: job.operation,
            status,
            chunks_done: job.done,
            chunks_asked: job.keys.len(),
            wire_bytes: job.wire_bytes,
            restored_bytes: job.restored_bytes,
            card: Duration::from_micros(job.card_us),
            elapsed: job.since.elapsed(),
            answer: job.answer,
        });
    }

    /// Posts what the page has room for: cancels first, then control, then transfers, the oldest first.
    pub(super) fn pump(&mut self) -> Result<(), Error> {
        let now = Instant::now();
        let mut at = 0;
        while at < self.jobs.len() {
            self.jobs[at].expire(now);
            let to_cancel = &mut self.to_cancel;
            self.jobs[at].cancel_rest(|request| to_cancel.push_back(request));
            while self.has_room(self.jobs[at].operation) {
                let Some(part) = self.jobs[at].next(now) else { break };
                self.post_part(at, &part)?;
            }
            let before = self.jobs.len();
            self.retire(at);
            at += usize::from(self.jobs.len() == before);
        }
        while let Some(target) = self.to_cancel.pop_front() {
            if self.ring.outstanding() >= COMMANDS {
                self.to_cancel.push_front(target);
                break;
            }
            let id = self.fresh_id();
            self.post(&Request::cancel(id, target), &[])?;
            self.cancelling.push(id);
        }
        Ok(())
    }

    fn has_room(&self, operation: Operation) -> bool {
        let outstanding = self.ring.outstanding();
        if !operation.takes_chunks() {
            return outstanding < COMMANDS;
        }
        let transfers: usize =
            self.jobs.iter().filter(|job| job.operation.takes_chunks()).map(ClientJob::in_flight).sum();
        outstanding < COMMANDS - CONTROL_SLOTS && transfers < self.card_facts.requests_max as usize
    }

    fn post_part(&mut self, at: usize, part: &JobPart) -> Result<(), Error> {
        let request = self.fresh_id();
        let job = &self.jobs[at];
        let each = job.pages.len() / job.keys.len().max(1);
        let chunks: Vec<Chunk<'_>> = (part.first..part.first + part.chunks)
            .map(|index| Chunk {
                key: &job.keys[index],
                pages: &job.pages[index * each..(index + 1) * each],
                importance: job.importances.get(index).copied().unwrap_or_default(),
            })
            .collect();
        let words = Request {
            id: request,
            operation: job.operation,
            tokens: part.tokens,
            deadline_us: part.deadline_us,
            target: job.target,
            again: job.again,
            section: job.section,
            trailing: job.trailing(),
        };
        let doorbell = match self.ring.post(&words, &chunks) {
            Ok(doorbell) => doorbell,
            Err(error) => return Err(self.post_failed(error)),
        };
        self.jobs[at].posted(part, request);
        self.ring_if(doorbell);
        Ok(())
    }

    fn post(&mut self, request: &Request, chunks: &[Chunk<'_>]) -> Result<(), Error> {
        match self.ring.post(request, chunks) {
            Ok(doorbell) => {
                self.ring_if(doorbell);
                Ok(())
            }
            Err(error) => Err(self.post_failed(error)),
        }
    }

    fn post_failed(&mut self, error: PostError) -> Error {
        match error {
            PostError::Peer(error) => {
                self.lied(error);
                Gone::Lied(error).into()
            }
            error => Error::Post(error),
        }
    }

    fn ring_if(&mut self, doorbell: Doorbell) {
        if doorbell == Doorbell::Quiet {
            return;
        }
        let mut bytes = [0; ATTACH_MESSAGE_MAX];
        let bytes = Message::Doorbell.encode(&mut bytes).expect("a doorbell always fits");
        match self.line.send(bytes) {
            // Full: the card has messages that it has not read, and will wake for them.
            Ok(()) | Err(ChannelError::Full) => {}
            Err(_) => self.hear(),
        }
    }
}
