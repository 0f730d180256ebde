//! What each path answers, and when the engine thread is asked for it.

use std::fmt::Write as _;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use super::connection::{HttpReply, HttpStatus, JSON, PLAIN, PROMETHEUS};
use super::families;
use super::health::Unwell;
use super::process::{Process, Usage};
use crate::count::json::Quoted;
use crate::workers::board::Snapshot;
use crate::workers::shared::Shared;

/// Age from which on the engine thread is asked to show itself again.
const FACE_AGE: Duration = Duration::from_millis(100);
/// Longest wait of a request for the engine thread.
const FACE_PATIENCE: Duration = Duration::from_millis(250);
/// Interval of looks for the engine thread's answer, which so costs that thread no system call.
const FACE_LOOK: Duration = Duration::from_micros(500);

/// Everything that families are written from.
#[derive(Debug)]
pub(super) struct MetricsView<'a, 's> {
    pub(super) shared: &'a Shared<'s>,
    /// Last state that the engine thread has shown.
    pub(super) face: &'a Snapshot,
    pub(super) process: Usage,
    pub(super) uptime: Duration,
    /// Reasons to give this card no work, and whether each holds.
    pub(super) unwell: [(Unwell, bool); Unwell::ALL.len()],
}

/// Answers requests.
pub(super) struct Clerk<'a, 's> {
    shared: &'a Shared<'s>,
    config: String,
    /// Last state that the engine thread has shown.
    face: Snapshot,
    /// Time at which it was asked last.
    asked: Option<Instant>,
    process: Process,
    started: Instant,
}

impl<'a, 's> Clerk<'a, 's> {
    pub(super) fn new(shared: &'a Shared<'s>, config: String) -> Self {
        let process = Process::new();
        Self { shared, config, face: Snapshot::new(), asked: None, process, started: Instant::now() }
    }

    /// Gets what the engine thread knows, unless it was asked a moment ago.
    fn look_up(&mut self) {
        let board = &self.shared.board;
        let now = Instant::now();
        if !board.is_asked() {
            if self.asked.is_some_and(|asked| now - asked < FACE_AGE) {
                return;
            }
            self.asked = Some(now);
            board.ask(&self.shared.engine_bell);
        }
        // Who was asked long ago gets no more patience.
        while board.is_asked() && self.owed() < FACE_PATIENCE && !self.shared.leave.load(Ordering::Relaxed) {
            thread::sleep(FACE_LOOK);
        }
        if !board.is_asked() {
            self.face.copy_from(&board.face());
        }
    }

    /// Returns how long the engine thread has owed an answer.
    fn owed(&self) -> Duration {
        match self.asked {
            Some(asked) if self.shared.board.is_asked() => asked.elapsed(),
            _ => Duration::ZERO,
        }
    }

    fn unwell(&self) -> [(Unwell, bool); Unwell::ALL.len()] {
        let owed = self.owed();
        Unwell::ALL.map(|unwell| (unwell, unwell.is_so(&self.face.shown, owed)))
    }

    pub(super) fn answer(&mut self, path: &str, reply: &mut HttpReply) {
        match path.split('?').next().unwrap_or(path) {
            "/metrics" => self.metrics(reply),
            "/healthcheck" => self.healthcheck(reply),
            "/status" => self.status(reply),
            "/config" => reply.write(HttpStatus::OK, JSON, |text| text.write_str(&self.config)),
            _ => reply.write(HttpStatus::NOT_FOUND, PLAIN, |text| {
                text.write_str("here are: /metrics /healthcheck /status /config\n")
            }),
        }
    }

    fn metrics(&mut self, reply: &mut HttpReply) {
        self.look_up();
        let view = MetricsView {
            shared: self.shared,
            face: &self.face,
            process: self.process.usage(),
            uptime: self.started.elapsed(),
            unwell: self.unwell(),
        };
        reply.write(HttpStatus::OK, PROMETHEUS, |text| families::write(&view, text));
    }

    fn healthcheck(&mut self, reply: &mut HttpReply) {
        self.look_up();
        match self.unwell().iter().find(|(_, so)| *so) {
            None => reply.write(HttpStatus::OK, PLAIN, |text| text.write_str("ok\n")),
            Some((Unwell::Degraded, _)) => reply.write(HttpStatus::UNAVAILABLE, PLAIN, |text| {
                let mut written = Ok(());
                // It may be over since the engine thread looked.
                self.shared.store.trouble(&mut |trouble| written = writeln!(text, "degraded: store {trouble}"));
                written
            }),
            Some((unwell, _)) => {
                reply.write(HttpStatus::UNAVAILABLE, PLAIN, |text| writeln!(text, "{}", unwell.text()))
            }
        }
    }

    fn status(&mut self, reply: &mut HttpReply) {
        self.look_up();
        if self.face.status().is_empty() || self.shared.board.is_asked() {
            let silent = Unwell::Silent.text();
            return reply
                .write(HttpStatus::UNAVAILABLE, JSON, |text| writeln!(text, "{{\"error\":{}}}", Quoted(silent)));
        }
        let json = std::str::from_utf8(self.face.status()).expect("it was written as text");
        reply.write(HttpStatus::OK, JSON, |text| writeln!(text, "{json}"));
    }
}
