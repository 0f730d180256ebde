//! One connection: a request head in a fixed buffer, an answer in a fixed buffer, and an end.
//!
//! ```text
//!   (free) -> Reading -> Writing -> Closing -> (free)        any of them -> (free): hung up, or its time is over
//! ```
//! Closing reads what the client still sends and throws it away: to close a socket with unread bytes would reset it,
//! and the client might lose the answer.

use std::fmt::{self, Write as _};
use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Instant;

use nix::poll::PollFlags;

use super::clerk::Clerk;
use super::{REPLY_BYTES, REQUEST_BYTES};
use crate::count::json::BoundedText;

/// Header lines of a request. A browser sends some 20.
const HEADERS_MAX: usize = 64;
/// Bytes of the longest answer head.
pub(super) const HEAD_BYTES: usize = 256;
/// Reads that one turn makes for one client, so that a babbler leaves room for the others.
const READS_MAX: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    Reading,
    Writing,
    Closing,
}

impl Phase {
    fn may_become(self, next: Self) -> bool {
        matches!((self, next), (Self::Reading, Self::Writing) | (Self::Writing, Self::Closing))
    }
}

/// One place of the table of connections.
#[derive(Debug)]
pub(super) struct HttpConnection {
    /// End of its time; `None`: the place is free.
    socket: Option<(TcpStream, Instant)>,
    phase: Phase,
    request: Box<[u8; REQUEST_BYTES]>,
    read: usize,
    reply: HttpReply,
}

impl HttpConnection {
    pub(super) fn new() -> Self {
        let request = Box::new([0; REQUEST_BYTES]);
        Self { socket: None, phase: Phase::Reading, request, read: 0, reply: HttpReply::new() }
    }

    /// Takes a client in, in place of the one that was here.
    pub(super) fn open(&mut self, socket: TcpStream, until: Instant) {
        self.socket = socket.set_nonblocking(true).is_ok().then_some((socket, until));
        (self.phase, self.read) = (Phase::Reading, 0);
    }

    pub(super) fn until(&self) -> Option<Instant> {
        self.socket.as_ref().map(|(_, until)| *until)
    }

    pub(super) fn waits_for(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let flags = if self.phase == Phase::Writing { PollFlags::POLLOUT } else { PollFlags::POLLIN };
        self.socket.as_ref().map(|(socket, _)| (socket.as_fd(), flags))
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.socket.take_if(|(_, until)| *until <= now);
    }

    fn become_phase(&mut self, next: Phase) {
        assert!(self.phase.may_become(next), "connection {:?} -> {next:?}", self.phase);
        self.phase = next;
    }

    /// Goes on as far as the socket allows.
    pub(super) fn advance(&mut self, clerk: &mut Clerk<'_, '_>) {
        let Some((socket, until)) = self.socket.take() else { return };
        let goes_on = match self.phase {
            Phase::Reading => self.hear(&socket, clerk),
            Phase::Writing => self.speak(&socket),
            Phase::Closing => self.ignore(&socket),
        };
        if goes_on {
            self.socket = Some((socket, until));
        }
    }

    /// Reads on until the head is whole, and answers. `false`: the connection is over.
    fn hear(&mut self, socket: &TcpStream, clerk: &mut Clerk<'_, '_>) -> bool {
        let reading = take(socket, &mut self.request[self.read..]);
        match reading {
            Taken::Nothing => return true,
            Taken::Bytes(bytes) => self.read += bytes,
            Taken::End => return false,
        }
        let reply = &mut self.reply;
        match Request::parse(&self.request[..self.read]) {
            Request::Partial if self.read < REQUEST_BYTES => return true,
            Request::Partial | Request::TooLarge => reply.refuse(HttpStatus::TOO_LARGE, "the request head is too long"),
            Request::Garbage => reply.refuse(HttpStatus::BAD_REQUEST, "this is no HTTP request"),
            Request::OtherMethod => reply.refuse(HttpStatus::METHOD_NOT_ALLOWED, "only GET and HEAD are served"),
            Request::Get { path, body } => {
                clerk.answer(path, reply);
                if !body {
                    reply.drop_body();
                }
            }
        }
        self.become_phase(Phase::Writing);
        self.speak(socket)
    }

    fn speak(&mut self, mut socket: &TcpStream) -> bool {
        while !self.reply.left().is_empty() {
            match socket.write(self.reply.left()) {
                Ok(bytes) => self.reply.sent(bytes),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        self.become_phase(Phase::Closing);
        socket.shutdown(Shutdown::Write).is_ok() && self.ignore(socket)
    }

    fn ignore(&mut self, socket: &TcpStream) -> bool {
        for _ in 0..READS_MAX {
            match take(socket, &mut self.request[..]) {
                Taken::Nothing => return true,
                Taken::Bytes(_) => {}
                Taken::End => return false,
            }
        }
        true
    }
}

enum Taken {
    Nothing,
    Bytes(usize),
    End,
}

fn take(mut socket: &TcpStream, into: &mut [u8]) -> Taken {
    match socket.read(into) {
        Ok(0) => Taken::End,
        Ok(bytes) => Taken::Bytes(bytes),
        Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Taken::Nothing,
        Err(_) => Taken::End,
    }
}

/// What the bytes of a client are so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Request<'a> {
    Get {
        path: &'a str,
        /// Whether a body is wanted: not for `HEAD`.
        body: bool,
    },
    OtherMethod,
    /// The head is not whole yet.
    Partial,
    TooLarge,
    Garbage,
}

impl<'a> Request<'a> {
    fn parse(bytes: &'a [u8]) -> Self {
        let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(bytes) {
            Ok(httparse::Status::Partial) => Self::Partial,
            Ok(httparse::Status::Complete(_)) => match (request.method, request.path) {
                (Some(method @ ("GET" | "HEAD")), Some(path)) => Self::Get { path, body: method == "GET" },
                _ => Self::OtherMethod,
            },
            Err(httparse::Error::TooManyHeaders) => Self::TooLarge,
            Err(_) => Self::Garbage,
        }
    }
}

/// Status line of an answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct HttpStatus(&'static str);

impl HttpStatus {
    pub(super) const OK: Self = Self("200 OK");
    const BAD_REQUEST: Self = Self("400 Bad Request");
    pub(super) const NOT_FOUND: Self = Self("404 Not Found");
    const METHOD_NOT_ALLOWED: Self = Self("405 Method Not Allowed\r\nAllow: GET, HEAD");
    const TOO_LARGE: Self = Self("431 Request Header Fields Too Large");
    const INTERNAL: Self = Self("500 Internal Server Error");
    pub(super) const UNAVAILABLE: Self = Self("503 Service Unavailable");
}

pub(super) const PROMETHEUS: &str = "text/plain; version=0.0.4; charset=utf-8";
pub(super) const PLAIN: &str = "text/plain; charset=utf-8";
pub(super) const JSON: &str = "application/json";

impl fmt::Display for HttpStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// An answer: its head ends where its body begins, at a fixed place of the buffer.
#[derive(Debug)]
pub(super) struct HttpReply {
    bytes: Box<[u8]>,
    next: usize,
    end: usize,
}

impl HttpReply {
    pub(super) fn new() -> Self {
        Self { bytes: vec![0; HEAD_BYTES + REPLY_BYTES].into(), next: 0, end: 0 }
    }

    pub(super) fn write(
        &mut self,
        status: HttpStatus,
        content: &str,
        body: impl FnOnce(&mut BoundedText<'_>) -> fmt::Result,
    ) {
        let mut text = BoundedText::new(&mut self.bytes[HEAD_BYTES..]);
        let written = body(&mut text);
        let bytes = text.written();
        match written {
            Ok(()) => self.put_head(status, content, bytes),
            Err(fmt::Error) => {
                let mut text = BoundedText::new(&mut self.bytes[HEAD_BYTES..]);
                text.write_str("the answer is longer than its buffer: please report this\n").expect("a line fits");
                let bytes = text.written();
                self.put_head(HttpStatus::INTERNAL, PLAIN, bytes);
            }
        }
    }

    fn put_head(&mut self, status: HttpStatus, content: &str, bytes: usize) {
        let head = heapless::format!(
            HEAD_BYTES;
            "HTTP/1.1 {status}\r\nContent-Type: {content}\r\nContent-Length: {bytes}\r\nCache-Control: no-store\r\n\
             HttpConnection: close\r\n\r\n"
        );
        let head = head.expect("heads are short");
        (self.next, self.end) = (HEAD_BYTES - head.len(), HEAD_BYTES + bytes);
        self.bytes[self.next..HEAD_BYTES].copy_from_slice(head.as_bytes());
    }

    fn refuse(&mut self, status: HttpStatus, why: &str) {
        self.write(status, PLAIN, |text| writeln!(text, "{why}"));
    }

    /// `HEAD`: the same answer without its body.
    fn drop_body(&mut self) {
        self.end = HEAD_BYTES;
    }

    fn left(&self) -> &[u8] {
        &self.bytes[self.next..self.end]
    }

    fn sent(&mut self, bytes: usize) {
        self.next += bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_get_and_head_of_a_whole_head_are_served() {
        let parse = Request::parse;
        let get = |path, body| Request::Get { path, body };
        assert_eq!(parse(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n"), get("/metrics", true));
        assert_eq!(parse(b"HEAD / HTTP/1.0\r\n\r\n"), get("/", false));
        assert_eq!(parse(b"POST / HTTP/1.1\r\n\r\n"), Request::OtherMethod);
        assert_eq!(parse(b""), Request::Partial);
        assert_eq!(parse(b"GET /metrics HTTP/1.1\r\nHost: x\r\n"), Request::Partial);
        let garbage =
            [&b"\x16\x03\x01\x02\x00"[..], b"GET\0/ HTTP/1.1\r\n\r\n", b"GET /\r\n\r\n", b"GET / HTTP/2.0\r\n\r\n"];
        for bytes in garbage {
            assert_eq!(parse(bytes), Request::Garbage, "{bytes:?}");
        }
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(HEADERS_MAX + 1));
        assert_eq!(parse(many.as_bytes()), Request::TooLarge);
    }

    #[test]
    fn an_answer_that_does_not_fit_says_so() {
        let mut reply = HttpReply::new();
        reply.write(HttpStatus::OK, PLAIN, |text| (0..=REPLY_BYTES).try_for_each(|_| text.write_char('x')));
        let text = std::str::from_utf8(reply.left()).unwrap();
        assert!(text.starts_with("HTTP/1.1 500 ") && text.ends_with("please report this\n"), "{text}");
        reply.write(HttpStatus::METHOD_NOT_ALLOWED, PLAIN, |text| text.write_str("body"));
        reply.drop_body();
        let text = std::str::from_utf8(reply.left()).unwrap();
        assert!(text.contains("\r\nAllow: GET, HEAD\r\n") && text.contains("\r\nContent-Length: 4\r\n"), "{text}");
        assert!(text.ends_with("\r\n\r\n"));
    }
}
