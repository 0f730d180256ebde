//! The transforms of the compression engine on plain slices: raw deflate, LZ4 blocks and streams, and checksums.
//!
//! LZ4 stream, as the cards take it: the blocks of an LZ4 frame, each behind its little-endian size word (top bit:
//! stored as is) and, if so declared, followed by the xxHash-32 of its bytes. No frame header, no end mark.
//! The format: <https://github.com/lz4/lz4/blob/dev/doc/lz4_Frame_format.md>.

use libdeflater::{CompressionLvl, Compressor, Decompressor};

/// Input that does not decode, or an output that does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unusable;

/// Bytes of history that LZ4 may refer to.
const LZ4_REACH: usize = 64 << 10;
const STORED: u32 = 1 << 31;

/// The state of one engine thread. What a profile cannot do is never built.
pub(crate) struct DeflateState {
    /// Not under miri, which cannot run C: deflate tasks fail there.
    inflater: Option<Decompressor>,
    deflater: Option<Compressor>,
}

impl DeflateState {
    pub(crate) fn new(deflates: bool) -> DeflateState {
        // Level 1: a card's engine is fast rather than thorough. (Level 0 would only store.)
        let deflater = deflates.then(|| Compressor::new(CompressionLvl::new(1).unwrap_or_default()));
        DeflateState { inflater: (!cfg!(miri)).then(Decompressor::new), deflater }
    }

    pub(crate) fn inflate(&mut self, input: &[u8], output: &mut [u8]) -> Result<usize, Unusable> {
        let inflater = self.inflater.as_mut().ok_or(Unusable)?;
        inflater.deflate_decompress(input, output).map_err(|_| Unusable)
    }

    pub(crate) fn deflate(&mut self, input: &[u8], output: &mut [u8]) -> Result<usize, Unusable> {
        let deflater = self.deflater.as_mut().ok_or(Unusable)?;
        deflater.deflate_compress(input, output).map_err(|_| Unusable)
    }
}

pub(crate) fn lz4_block(input: &[u8], output: &mut [u8]) -> Result<usize, Unusable> {
    lz4_flex::block::decompress_into(input, output).map_err(|_| Unusable)
}

pub(crate) fn lz4_stream(
    mut input: &[u8],
    output: &mut [u8],
    has_block_checksum: bool,
    are_blocks_independent: bool,
) -> Result<usize, Unusable> {
    let mut written = 0;
    while !input.is_empty() {
        let word = u32::from_le_bytes(*take(&mut input)?);
        let block = split(&mut input, (word & !STORED) as usize)?;
        if block.is_empty() {
            return Err(Unusable);
        }
        if has_block_checksum && u32::from_le_bytes(*take(&mut input)?) != xxh32(block) {
            return Err(Unusable);
        }
        let (before, rest) = output.split_at_mut(written);
        written += if word & STORED != 0 {
            rest.get_mut(..block.len()).ok_or(Unusable)?.copy_from_slice(block);
            block.len()
        } else if are_blocks_independent || before.is_empty() {
            lz4_block(block, rest)?
        } else {
            let dictionary = &before[before.len().saturating_sub(LZ4_REACH)..];
            lz4_flex::block::decompress_into_with_dict(block, rest, dictionary).map_err(|_| Unusable)?
        };
    }
    Ok(written)
}

fn split<'a>(input: &mut &'a [u8], bytes: usize) -> Result<&'a [u8], Unusable> {
    let (head, tail) = input.split_at_checked(bytes).ok_or(Unusable)?;
    *input = tail;
    Ok(head)
}

fn take<'a>(input: &mut &'a [u8]) -> Result<&'a [u8; 4], Unusable> {
    split(input, 4)?.try_into().map_err(|_| Unusable)
}

pub(crate) fn adler32(bytes: &[u8]) -> u32 {
    libdeflater::adler32(bytes)
}

/// xxHash-32 with seed 0: <https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md>.
pub(crate) fn xxh32(bytes: &[u8]) -> u32 {
    const P1: u32 = 0x9e37_79b1;
    const P2: u32 = 0x85eb_ca77;
    const P3: u32 = 0xc2b2_ae3d;
    const P4: u32 = 0x27d4_eb2f;
    const P5: u32 = 0x1656_67b1;
    let (stripes, tail) = bytes.as_chunks::<16>();
    let mut hash = if stripes.is_empty() {
        P5
    } else {
        let mut lanes = [P1.wrapping_add(P2), P2, 0, 0u32.wrapping_sub(P1)];
        for stripe in stripes {
            let (words, _) = stripe.as_chunks::<4>();
            for (lane, word) in lanes.iter_mut().zip(words) {
                let mixed = lane.wrapping_add(u32::from_le_bytes(*word).wrapping_mul(P2));
                *lane = mixed.rotate_left(13).wrapping_mul(P1);
            }
        }
        let turned = lanes.iter().zip([1, 7, 12, 18]).map(|(lane, bits)| lane.rotate_left(bits));
        turned.fold(0, u32::wrapping_add)
    };
    hash = hash.wrapping_add(bytes.len() as u32);
    let (words, last) = tail.as_chunks::<4>();
    for word in words {
        let mixed = hash.wrapping_add(u32::from_le_bytes(*word).wrapping_mul(P3));
        hash = mixed.rotate_left(17).wrapping_mul(P4);
    }
    for byte in last {
        hash = hash.wrapping_add(u32::from(*byte).wrapping_mul(P5)).rotate_left(11).wrapping_mul(P1);
    }
    hash = (hash ^ (hash >> 15)).wrapping_mul(P2);
    hash = (hash ^ (hash >> 13)).wrapping_mul(P3);
    hash ^ (hash >> 16)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn xxh32_matches_published_values() {
        assert_eq!(xxh32(b""), 0x02cc_5d05);
        assert_eq!(xxh32(b"a"), 0x550d_7456);
        assert_eq!(xxh32(b"abc"), 0x32d1_53ff);
        assert_eq!(xxh32(b"Nobody inspects the spammish repetition"), 0xe229_3b2f);
    }

    fn stream(blocks: &[&[u8]], checksums: bool, linked: bool) -> Vec<u8> {
        let mut wire = Vec::new();
        let mut before: Vec<u8> = Vec::new();
        for block in blocks {
            let packed = if linked && !before.is_empty() {
                lz4_flex::block::compress_with_dict(block, &before)
            } else {
                lz4_flex::block::compress(block)
            };
            wire.extend((packed.len() as u32).to_le_bytes());
            wire.extend(&packed);
            if checksums {
                wire.extend(xxh32(&packed).to_le_bytes());
            }
            before.extend(*block);
        }
        wire
    }

    #[test]
    #[cfg_attr(miri, ignore = "slow, and all safe code")]
    fn lz4_streams_decode_in_all_four_shapes() {
        let block: Vec<u8> = (0..5000u32).flat_map(|i| (i % 700).to_le_bytes()).collect();
        for (checksums, linked) in [(false, false), (true, false), (false, true), (true, true)] {
            let wire = stream(&[&block, &block, &block[..99]], checksums, linked);
            let mut output = vec![0; 2 * block.len() + 99];
            assert_eq!(lz4_stream(&wire, &mut output, checksums, !linked), Ok(output.len()));
            assert_eq!(output, [&block[..], &block, &block[..99]].concat());
        }
    }

    #[test]
    fn stored_blocks_are_copied() {
        let mut wire = (STORED | 5).to_le_bytes().to_vec();
        wire.extend(b"plain");
        let mut output = [0; 8];
        assert_eq!(lz4_stream(&wire, &mut output, false, true), Ok(5));
        assert_eq!(&output[..5], b"plain");
        assert_eq!(lz4_stream(&wire, &mut output[..4], false, true), Err(Unusable));
    }

    #[test]
    fn torn_streams_are_refused() {
        let wire = stream(&[&[7; 1000]], true, false);
        let mut output = [0; 1000];
        for length in 1..wire.len() {
            assert_eq!(lz4_stream(&wire[..length], &mut output, true, true), Err(Unusable), "{length} bytes");
        }
        assert_eq!(lz4_stream(&[0; 4], &mut output, false, true), Err(Unusable), "an end mark");
        let mut wrong_sum = wire;
        *wrong_sum.last_mut().expect("not empty") ^= 1;
        assert_eq!(lz4_stream(&wrong_sum, &mut output, true, true), Err(Unusable));
    }
}
