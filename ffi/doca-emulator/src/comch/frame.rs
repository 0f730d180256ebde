//! The frames of a Comch connection.
//!
//! A frame is one packet: four little-endian words, then bytes.
//! ```text
//!   HELLO     version, longest message, window   name of the server     client -> server, first
//!   WELCOME   version, longest message, window                          server -> client, first
//!   REFUSED   a doca_error                                              server -> client, last
//!   MESSAGE                                      the message
//!   WINDOW    messages that the reader took
//!   CONSUMER  id                                                        answered by KNOWN; GONE when it stops
//!   POSTED    id of a consumer, buffers
//!   DATA      consumer, producer, bytes in all   immediate data behind its length, first bytes
//!   MORE                                         further bytes
//! ```

use crate::config::IMM_BYTES_MAX;

pub(crate) const VERSION: u32 = 1;
const HEAD_BYTES: usize = 16;
/// Longest piece of data in one frame.
pub(crate) const FRAGMENT_BYTES: usize = 32 << 10;
/// More than any frame.
pub(crate) const FRAME_BYTES_MAX: usize = HEAD_BYTES + 1 + IMM_BYTES_MAX + FRAGMENT_BYTES;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum FrameKind {
    Hello = 1,
    Welcome = 2,
    Refused = 3,
    Message = 4,
    Window = 5,
    Consumer = 6,
    Known = 7,
    Gone = 8,
    Posted = 9,
    Data = 10,
    More = 11,
}

impl FrameKind {
    fn from_word(word: u32) -> Option<FrameKind> {
        use FrameKind::*;
        [Hello, Welcome, Refused, Message, Window, Consumer, Known, Gone, Posted, Data, More]
            .into_iter()
            .find(|what| *what as u32 == word)
    }
}

pub(crate) fn frame(what: FrameKind, words: [u32; 3], bytes: &[u8]) -> Vec<u8> {
    frame_in(Vec::with_capacity(HEAD_BYTES + bytes.len()), what, words, bytes)
}

/// A frame in a buffer that is empty.
pub(crate) fn frame_in(mut frame: Vec<u8>, what: FrameKind, words: [u32; 3], bytes: &[u8]) -> Vec<u8> {
    frame.extend((what as u32).to_le_bytes());
    words.iter().for_each(|word| frame.extend(word.to_le_bytes()));
    frame.extend(bytes);
    frame
}

/// A frame taken apart.
pub(crate) fn parse(frame: &[u8]) -> Option<(FrameKind, [u32; 3], &[u8])> {
    let (head, bytes) = frame.split_at_checked(HEAD_BYTES)?;
    let (words, _) = head.as_chunks::<4>();
    let word = |index: usize| words.get(index).map(|word| u32::from_le_bytes(*word));
    Some((FrameKind::from_word(word(0)?)?, [word(1)?, word(2)?, word(3)?], bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_round_trip() {
        let packet = frame(FrameKind::Data, [1, 2, 3], b"bytes");
        assert!(parse(&packet).is_some_and(|parsed| parsed == (FrameKind::Data, [1, 2, 3], b"bytes".as_slice())));
    }

    #[test]
    fn what_is_no_frame_is_refused() {
        assert!(
            parse(&[0; 16]).is_none()
                && parse(&[1; 16]).is_none()
                && parse(&frame(FrameKind::Hello, [0; 3], &[])[..15]).is_none()
        );
    }
}
