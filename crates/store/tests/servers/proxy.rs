//! A wire between a client and a real server that a test can make slow or dead, or have change what it carries.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

/// What a throttled wire lets through at once.
const PIECE: usize = 4096;

/// A read that is large: payload, not an answer to a small question.
const LARGE: usize = 2048;

/// What the wire does with what the server sends.
#[derive(Debug, Default)]
struct Mood {
    /// Bytes that still pass; then none.
    passes: AtomicUsize,
    /// Milliseconds for each byte; 0: as fast as it comes.
    byte_ms: AtomicU64,
    /// Milliseconds for each [`PIECE`]; 0: as fast as it comes.
    piece_ms: AtomicU64,
    /// Connections are accepted and go nowhere.
    deaf: AtomicBool,
    /// The state of who chooses a bit to flip in each large read; 0: none is.
    flips: AtomicU64,
    /// A bit of each large reply is flipped, always the same one.
    flips_same: AtomicBool,
    leave: AtomicBool,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Proxy {
    pub(crate) port: u16,
    mood: Arc<Mood>,
}

impl Proxy {
    pub(crate) fn to(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("its number").port();
        let mood = Arc::new(Mood { passes: usize::MAX.into(), ..Mood::default() });
        let of_listener = Arc::clone(&mood);
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if of_listener.leave.load(SeqCst) {
                    return;
                }
                let mood = Arc::clone(&of_listener);
                std::thread::spawn(move || connection(client, server, &mood));
            }
        });
        Self { port, mood }
    }

    /// After so many bytes more, on all connections together, the server is not heard any more.
    pub(crate) fn silence_after(&self, bytes: usize) {
        self.mood.passes.store(bytes, SeqCst);
    }

    pub(crate) fn trickle(&self, byte: Duration) {
        self.mood.byte_ms.store(byte.as_millis() as u64, SeqCst);
    }

    /// Each [`PIECE`] of a connection takes so long.
    pub(crate) fn throttle(&self, piece: Duration) {
        self.mood.piece_ms.store(piece.as_millis() as u64, SeqCst);
    }

    pub(crate) fn deafen(&self) {
        self.mood.deaf.store(true, SeqCst);
    }

    /// One bit of each read of [`LARGE`] bytes and more comes otherwise, by this seed.
    pub(crate) fn flip(&self, seed: u64) {
        self.mood.flips.store(seed | 1, SeqCst);
    }

    /// The same bit of each reply of [`LARGE`] bytes and more comes otherwise, each time that it comes.
    pub(crate) fn flip_same(&self) {
        self.mood.flips_same.store(true, SeqCst);
    }

    pub(crate) fn heal(&self) {
        self.mood.flips.store(0, SeqCst);
        self.mood.flips_same.store(false, SeqCst);
        self.mood.passes.store(usize::MAX, SeqCst);
        self.mood.byte_ms.store(0, SeqCst);
        self.mood.piece_ms.store(0, SeqCst);
        self.mood.deaf.store(false, SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.mood.leave.store(true, SeqCst);
        let _ = TcpStream::connect(("127.0.0.1", self.port));
    }
}

/// Follows replies, however they are cut, to find the middle of each large one.
#[derive(Debug, Default)]
struct Replies {
    line: Vec<u8>,
    /// Bytes of the bulk string that comes, and those of them that are still to come.
    bytes: usize,
    left: usize,
}

impl Replies {
    fn pass(&mut self, mut bytes: &mut [u8], flips: bool) {
        while let Some(&first) = bytes.first() {
            let passed = self.left.clamp(1, bytes.len());
            if self.left > 0 {
                let to_middle = self.left.wrapping_sub(self.bytes / 2);
                if flips && self.bytes >= LARGE && to_middle < passed {
                    bytes[to_middle] ^= 1 << 4;
                }
                self.left -= passed;
            } else if first == b'\n' {
                let length = self.line.strip_prefix(b"$").and_then(|digits| std::str::from_utf8(digits).ok());
                self.bytes = length.and_then(|digits| digits.parse().ok()).unwrap_or(0);
                self.left = self.bytes;
                self.line.clear();
            } else if first != b'\r' {
                self.line.push(first);
            }
            bytes = &mut bytes[passed..];
        }
    }
}

fn connection(mut client: TcpStream, server: u16, mood: &Arc<Mood>) {
    let Ok(mut upstream) = TcpStream::connect(("127.0.0.1", server)) else { return };
    let (Ok(mut from_client), Ok(mut to_server)) = (client.try_clone(), upstream.try_clone()) else { return };
    let of_requests = Arc::clone(mood);
    std::thread::spawn(move || {
        let mut bytes = [0; 64 << 10];
        while let Ok(count @ 1..) = from_client.read(&mut bytes) {
            if !of_requests.deaf.load(SeqCst) && to_server.write_all(&bytes[..count]).is_err() {
                break;
            }
        }
        let _ = to_server.shutdown(std::net::Shutdown::Both);
    });
    let mut bytes = [0; 64 << 10];
    let mut replies = Replies::default();
    while let Ok(count @ 1..) = upstream.read(&mut bytes) {
        replies.pass(&mut bytes[..count], mood.flips_same.load(SeqCst));
        if count >= LARGE && mood.flips.load(SeqCst) != 0 {
            let step = |x: u64| Some([x ^ x << 13].map(|x| x ^ x >> 7).map(|x| x ^ x << 17)[0]);
            let random = mood.flips.fetch_update(SeqCst, SeqCst, step).expect("the closure always answers");
            // In the middle, where payload is.
            let at = count / 4 + random as usize % (count / 2);
            bytes[at] ^= 1 << (random >> 60 & 7);
        }
        let mut rest = &bytes[..count];
        while !rest.is_empty() {
            let (byte_ms, piece_ms) = (mood.byte_ms.load(SeqCst), mood.piece_ms.load(SeqCst));
            let (want, slow) = match (byte_ms, piece_ms) {
                (0, 0) => (rest.len(), 0),
                (0, piece_ms) => (rest.len().min(PIECE), piece_ms),
                (byte_ms, _) => (1, byte_ms),
            };
            let taken = mood.passes.fetch_update(SeqCst, SeqCst, |left| {
                Some(if left == usize::MAX { left } else { left - left.min(want) })
            });
            let take = want.min(taken.expect("the closure always answers"));
            if take == 0 {
                std::thread::sleep(Duration::from_millis(5));
                if mood.leave.load(SeqCst) {
                    return;
                }
                continue;
            }
            std::thread::sleep(Duration::from_millis(slow));
            if client.write_all(&rest[..take]).is_err() {
                return;
            }
            rest = &rest[take..];
        }
    }
    let _ = client.shutdown(std::net::Shutdown::Both);
}
