//! The bytes of the Redis protocol, RESP2 and RESP3: commands out, small replies in.
//!
//! Commands are encoded and scalars decoded by `redis-protocol`. Three things are done here because the library would
//! allocate for them or wants a whole reply in one buffer: the head of a bulk string whose payload goes elsewhere, the
//! frame around a payload that is not copied, and the end of an aggregate (a greeting, a map of slots).
//! Spec: <https://redis.io/docs/latest/develop/reference/protocol-spec/>.

use redis_protocol::resp2::encode::encode_borrowed;
use redis_protocol::resp2::types::BorrowedFrame;
use redis_protocol::resp3::decode::complete::decode_range;
use redis_protocol::resp3::types::RangeFrame;

/// Words of a command at most.
const WORDS_MAX: usize = 12;
/// Bytes of `$LEN\r\n` at most.
pub(super) const BULK_HEAD_MAX: usize = 24;
/// How deep aggregates may nest before a reply is garbage.
const DEPTH_MAX: usize = 8;

/// A reply that fits its buffer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Reply<'a> {
    Simple(&'a [u8]),
    Error(&'a [u8]),
    Number(i64),
    Bulk(&'a [u8]),
    Null,
    /// An aggregate, or a scalar that no command of ours is answered with; as it came.
    Other(&'a [u8]),
}

/// Bytes that are no reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Garbage;

/// The first reply in `bytes` and its length, if it is there as a whole.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Reply<'_>, usize)>, Garbage> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    if !b"+-:$_!".contains(&first) {
        return Ok(end_of(bytes, 0)?.map(|end| (Reply::Other(&bytes[..end]), end)));
    }
    if bytes.starts_with(b"$-") {
        // The null of RESP2, which the decoder of RESP3 does not know.
        return match line(bytes)? {
            Some((-1, end)) => Ok(Some((Reply::Null, end))),
            Some(_) => Err(Garbage),
            None => Ok(None),
        };
    }
    let Some((frame, end)) = decode_range(bytes).map_err(|_| Garbage)? else { return Ok(None) };
    let of = |range: (usize, usize)| bytes.get(range.0..range.1).ok_or(Garbage);
    let reply = match frame {
        RangeFrame::SimpleString { data, .. } => Reply::Simple(of(data)?),
        RangeFrame::SimpleError { data, .. } | RangeFrame::BlobError { data, .. } => Reply::Error(of(data)?),
        RangeFrame::Number { data, .. } => Reply::Number(data),
        RangeFrame::BlobString { data, .. } => Reply::Bulk(of(data)?),
        RangeFrame::Null => Reply::Null,
        _ => return Err(Garbage),
    };
    Ok(Some((reply, end)))
}

/// The head of a bulk string: its payload's bytes and its own. `None` where it is not all there yet.
pub(super) fn bulk_head(bytes: &[u8]) -> Result<Option<(usize, usize)>, Garbage> {
    debug_assert_eq!(bytes.first(), Some(&b'$'));
    match line(bytes)? {
        None => Ok(None),
        Some((number, end)) => usize::try_from(number).map(|bytes| Some((bytes, end))).map_err(|_| Garbage),
    }
}

/// What the head of a bulk string of `bytes` bytes will be.
pub(super) fn write_bulk_head(out: &mut [u8], bytes: usize) -> usize {
    write_count(out, b'$', bytes)
}

/// The number after the type byte of a line, and where the line ends.
fn line(bytes: &[u8]) -> Result<Option<(i64, usize)>, Garbage> {
    let Some(end) = bytes.windows(2).position(|pair| pair == b"\r\n") else {
        return if bytes.len() > BULK_HEAD_MAX { Err(Garbage) } else { Ok(None) };
    };
    let digits = std::str::from_utf8(&bytes[1..end]).map_err(|_| Garbage)?;
    Ok(Some((digits.parse().map_err(|_| Garbage)?, end + 2)))
}

/// Where the reply at the head of `bytes` ends.
fn end_of(bytes: &[u8], depth: usize) -> Result<Option<usize>, Garbage> {
    let Some(&first) = bytes.first() else { return Ok(None) };
    if depth > DEPTH_MAX {
        return Err(Garbage);
    }
    match first {
        b'*' | b'~' | b'>' | b'%' | b'|' => {
            let Some((count, mut end)) = line(bytes)? else { return Ok(None) };
            let each = if matches!(first, b'%' | b'|') { 2 } else { 1 };
            for _ in 0..count.max(0).saturating_mul(each) {
                let Some(more) = end_of(&bytes[end..], depth + 1)? else { return Ok(None) };
                end += more;
            }
            Ok(Some(end))
        }
        b'$' | b'=' | b'!' => {
            let Some((count, head)) = line(bytes)? else { return Ok(None) };
            let end = if count < 0 { head } else { head.saturating_add(count as usize).saturating_add(2) };
            Ok((end <= bytes.len()).then_some(end))
        }
        b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => {
            Ok(bytes.windows(2).position(|pair| pair == b"\r\n").map(|end| end + 2))
        }
        _ => Err(Garbage),
    }
}

/// Walks over the elements of an aggregate that [`parse`] gave as `Other`; of a map its keys and values in turn.
pub(super) fn elements(aggregate: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    let head = line(aggregate).ok().flatten();
    let mut rest = head.map_or(&[][..], |(_, end)| &aggregate[end..]);
    std::iter::from_fn(move || {
        let (reply, end) = parse(rest).ok().flatten()?;
        rest = &rest[end..];
        Some(reply)
    })
}

/// Writes a command to the head of `out`; `None` where it does not fit.
pub(super) fn write_command(out: &mut [u8], words: &[&[u8]]) -> Option<usize> {
    let frames: heapless::Vec<BorrowedFrame<'_>, WORDS_MAX> =
        words.iter().map(|word| BorrowedFrame::BulkString(word)).collect();
    encode_borrowed(out, &BorrowedFrame::Array(&frames), false).ok()
}

/// Writes a command up to its last word, which is `payload` bytes long, goes after it uncopied, and then `\r\n`.
pub(super) fn write_command_head(out: &mut [u8], words: &[&[u8]], payload: usize) -> Option<usize> {
    let mut end = write_count(out.get_mut(..BULK_HEAD_MAX)?, b'*', words.len() + 1);
    for word in words {
        end += encode_borrowed(&mut out[end..], &BorrowedFrame::BulkString(word), false).ok()?;
    }
    Some(end + write_count(out.get_mut(end..end + BULK_HEAD_MAX)?, b'$', payload))
}

fn write_count(out: &mut [u8], kind: u8, count: usize) -> usize {
    let mut digits = Digits::default();
    let digits = digits.of(count);
    out[0] = kind;
    out[1..=digits.len()].copy_from_slice(digits);
    out[digits.len() + 1..digits.len() + 3].copy_from_slice(b"\r\n");
    digits.len() + 3
}

/// A number in decimal without an allocation.
#[derive(Debug, Default)]
pub(super) struct Digits([u8; 20]);

impl Digits {
    pub(super) fn of(&mut self, mut number: usize) -> &[u8] {
        let mut at = self.0.len();
        loop {
            at -= 1;
            self.0[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return &self.0[at..];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reply_is_found_when_it_is_whole_and_not_before() {
        let replies: [(&[u8], Reply<'_>); 13] = [
            (b"+OK\r\n", Reply::Simple(b"OK")),
            (b"-MOVED 3999 127.0.0.1:6381\r\n", Reply::Error(b"MOVED 3999 127.0.0.1:6381")),
            (b":0\r\n", Reply::Number(0)),
            (b":-2\r\n", Reply::Number(-2)),
            (b"$5\r\nhello\r\n", Reply::Bulk(b"hello")),
            (b"$0\r\n\r\n", Reply::Bulk(b"")),
            (b"$2\r\n\r\n\r\n", Reply::Bulk(b"\r\n")),
            (b"$-1\r\n", Reply::Null),
            (b"_\r\n", Reply::Null),
            (b"!9\r\nERR again\r\n", Reply::Error(b"ERR again")),
            (b"*2\r\n$1\r\na\r\n*1\r\n:7\r\n", Reply::Other(b"*2\r\n$1\r\na\r\n*1\r\n:7\r\n")),
            (b"%1\r\n+proto\r\n:3\r\n", Reply::Other(b"%1\r\n+proto\r\n:3\r\n")),
            (b"*-1\r\n", Reply::Other(b"*-1\r\n")),
        ];
        for (bytes, reply) in replies {
            for cut in 0..bytes.len() {
                assert_eq!(parse(&bytes[..cut]), Ok(None), "{:?}", String::from_utf8_lossy(&bytes[..cut]));
            }
            let more = [bytes, b"+next\r\n"].concat();
            assert_eq!(parse(&more), Ok(Some((reply, bytes.len()))), "{:?}", String::from_utf8_lossy(bytes));
        }
        for garbage in [&b"HTTP/1.1 200 OK\r\n"[..], b"\0\0\0\0", b":x\r\n", b"$-5\r\n", b"*a\r\n", b"*1\r\n?\r\n"] {
            assert_eq!(parse(garbage), Err(Garbage), "{:?}", String::from_utf8_lossy(garbage));
        }
        let deep = b"*1\r\n".repeat(100);
        assert_eq!(parse(&deep), Err(Garbage));
    }

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        let mut out = [0; 128];
        let bytes = write_command(&mut out, &[b"HGET", b"kvlane:{ab}", b"0"]).unwrap();
        assert_eq!(&out[..bytes], b"*3\r\n$4\r\nHGET\r\n$11\r\nkvlane:{ab}\r\n$1\r\n0\r\n");
        let bytes = write_command_head(&mut out, &[b"HSET", b"k", b"12"], 70_000).unwrap();
        assert_eq!(&out[..bytes], b"*4\r\n$4\r\nHSET\r\n$1\r\nk\r\n$2\r\n12\r\n$70000\r\n");
        assert_eq!(write_command(&mut [0; 10], &[b"HGET", b"k", b"0"]), None);
        let bytes = write_bulk_head(&mut out, 1 << 20);
        assert_eq!(bulk_head(&out[..bytes]), Ok(Some((1 << 20, bytes))));
    }

    #[test]
    fn elements_of_maps_and_arrays_come_in_turn() {
        let map = b"%2\r\n+a\r\n:1\r\n+b\r\n*1\r\n:2\r\n";
        let found: Vec<_> = elements(map).collect();
        assert_eq!(found, [Reply::Simple(b"a"), Reply::Number(1), Reply::Simple(b"b"), Reply::Other(b"*1\r\n:2\r\n")]);
    }
}
