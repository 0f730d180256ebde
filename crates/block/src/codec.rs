//! Codecs: what they are called, and how software encodes and decodes them. The card's engine decodes some of them in
//! hardware; nothing encodes in hardware. Deflate is one raw RFC 1951 stream, LZ4 one bare block. No frames, no size
//! words: lengths and checksums are in the block header.
//!
//! A new codec is a variant of [`Codec`], its name, and an arm each in [`Compressor::compress`] and
//! [`Decompressor::decompress`]; the tests of this file run over all of them. What the engine does not know, software
//! decodes.

use crate::format::header::Header;
use std::fmt;

/// Codes to payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Codec {
    /// The codes themselves.
    Raw = 0,
    /// One raw Deflate stream (RFC 1951).
    Deflate = 1,
    /// One bare LZ4 block: no frame, no size word.
    Lz4 = 2,
}

impl Codec {
    /// Every codec, in the order of its word.
    pub const ALL: [Codec; 3] = [Codec::Raw, Codec::Deflate, Codec::Lz4];

    pub const fn word(self) -> u8 {
        self as u8
    }

    pub const fn from_word(word: u8) -> Option<Self> {
        if (word as usize) < Self::ALL.len() { Some(Self::ALL[word as usize]) } else { None }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Deflate => "deflate",
            Self::Lz4 => "lz4",
        }
    }

    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|codec| codec.name() == name)
    }
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Levels of Deflate that [`Compressor::new`] takes.
pub const DEFLATE_LEVEL_MAX: i32 = 12;
/// Measured: docs/measurements.md, "Transforms".
pub const DEFLATE_LEVEL_DEFAULT: i32 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodecError {
    Level(i32),
    Deflate,
    Lz4,
    /// The payload decoded to another length than the header says.
    Bytes {
        expected: usize,
        found: usize,
    },
    /// CRC-32 of the codes.
    CodesCrc {
        expected: u32,
        found: u32,
    },
}

impl fmt::Display for CodecError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Level(n) => write!(f, "deflate level {n} is outside 1..={DEFLATE_LEVEL_MAX}"),
            Self::Deflate => write!(f, "decompress deflate: the payload is malformed or too long"),
            Self::Lz4 => write!(f, "decompress lz4: the payload is malformed or too long"),
            Self::Bytes { expected, found } => write!(f, "decompress: {found} codes bytes, not {expected}"),
            Self::CodesCrc { expected, found } => {
                write!(f, "decompress: crc-32 of the codes is {found:08x}, the header says {expected:08x}")
            }
        }
    }
}

impl std::error::Error for CodecError {}

/// Encoder state of one worker. Allocates when made (and grows once, to the largest codes it has met, for LZ4).
pub struct Compressor {
    deflate: libdeflater::Compressor,
    lz4: lz4_flex::block::CompressTable,
    scratch: Vec<u8>,
}

impl fmt::Debug for Compressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compressor").field("scratch_bytes", &self.scratch.len()).finish_non_exhaustive()
    }
}

impl Compressor {
    /// `codes_bytes_max` is the longest codes that it will be given: room is made for them here.
    pub fn new(deflate_level: i32, codes_bytes_max: usize) -> Result<Self, CodecError> {
        // The library's level 0 stores; that is `Codec::Raw` here.
        let refused = CodecError::Level(deflate_level);
        let level = libdeflater::CompressionLvl::new(deflate_level).map_err(|_| refused)?;
        if !(1..=DEFLATE_LEVEL_MAX).contains(&deflate_level) {
            return Err(refused);
        }
        Ok(Self {
            deflate: libdeflater::Compressor::new(level),
            lz4: lz4_flex::block::CompressTable::large(),
            scratch: vec![0; lz4_flex::block::get_maximum_output_size(codes_bytes_max)],
        })
    }

    /// Compresses `codes` to the start of `payload` and returns its length, or `None` if that would not fit.
    pub fn compress(&mut self, codec: Codec, codes: &[u8], payload: &mut [u8]) -> Option<usize> {
        match codec {
            Codec::Raw => {
                payload.get_mut(..codes.len())?.copy_from_slice(codes);
                Some(codes.len())
            }
            Codec::Deflate => self.deflate.deflate_compress(codes, payload).ok(),
            Codec::Lz4 => {
                // The encoder insists on room for the worst case, which a payload area does not have.
                let room = lz4_flex::block::get_maximum_output_size(codes.len());
                if self.scratch.len() < room {
                    self.scratch.resize(room, 0);
                }
                let bytes = lz4_flex::block::compress_into_with_table(codes, &mut self.scratch, &mut self.lz4).ok()?;
                payload.get_mut(..bytes)?.copy_from_slice(&self.scratch[..bytes]);
                Some(bytes)
            }
        }
    }
}

/// Decoder state of one worker.
pub struct Decompressor {
    deflate: libdeflater::Decompressor,
}

impl fmt::Debug for Decompressor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Decompressor")
    }
}

impl Default for Decompressor {
    fn default() -> Self {
        Self::new()
    }
}

impl Decompressor {
    pub fn new() -> Self {
        Self { deflate: libdeflater::Decompressor::new() }
    }

    /// Decodes `payload` to exactly all of `codes`. Says nothing of the codes' checksum.
    pub fn decompress(&mut self, codec: Codec, payload: &[u8], codes: &mut [u8]) -> Result<(), CodecError> {
        let found = match codec {
            Codec::Raw if payload.len() == codes.len() => {
                codes.copy_from_slice(payload);
                codes.len()
            }
            Codec::Raw => payload.len(),
            Codec::Deflate => self.deflate.deflate_decompress(payload, codes).map_err(|_| CodecError::Deflate)?,
            Codec::Lz4 => lz4_flex::block::decompress_into(payload, codes).map_err(|_| CodecError::Lz4)?,
        };
        if found != codes.len() {
            return Err(CodecError::Bytes { expected: codes.len(), found });
        }
        Ok(())
    }

    /// Decodes the payload of a wire block that [`Header::open`] took to exactly all of `codes`, and checks their
    /// CRC-32. `codes` has the header's `codes_bytes`.
    pub fn codes(&mut self, header: &Header, wire: &[u8], codes: &mut [u8]) -> Result<(), CodecError> {
        self.decompress(header.codec, &wire[header.payload_range()], codes)?;
        let (expected, found) = (header.codes_crc, crc32fast::hash(codes));
        if found == expected { Ok(()) } else { Err(CodecError::CodesCrc { expected, found }) }
    }
}

/// [`Decompressor::decompress`] with a decoder made for this call.
pub fn decompress(codec: Codec, payload: &[u8], codes: &mut [u8]) -> Result<(), CodecError> {
    Decompressor::new().decompress(codec, payload, codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_and_name_of_a_codec_comes_back() {
        for codec in Codec::ALL {
            assert_eq!((Codec::from_word(codec.word()), Codec::parse(codec.name())), (Some(codec), Some(codec)));
        }
        assert_eq!((Codec::from_word(Codec::ALL.len() as u8), Codec::parse("zstd")), (None, None));
    }

    #[test]
    #[cfg(not(miri))] // Deflate is C
    fn every_codec_gives_back_what_it_was_given_and_nothing_else() {
        let codes: Vec<u8> = (0..5000_u32).map(|i| (i * i / 700) as u8 & 15).collect();
        let mut compressor = Compressor::new(DEFLATE_LEVEL_DEFAULT, codes.len()).unwrap();
        let mut decompressor = Decompressor::new();
        for codec in Codec::ALL {
            let mut payload = vec![0; codes.len()];
            let bytes = compressor.compress(codec, &codes, &mut payload).expect("it does not grow");
            assert!((bytes < codes.len()) == (codec != Codec::Raw), "{codec}");
            let payload = &payload[..bytes];
            let mut decoded = vec![0xee; codes.len()];
            assert_eq!(decompressor.decompress(codec, payload, &mut decoded), Ok(()), "{codec}");
            assert!(decoded == codes, "{codec}");
            for wrong in [codes.len() - 1, codes.len() + 1] {
                assert!(decompressor.decompress(codec, payload, &mut vec![0; wrong]).is_err(), "{codec}: {wrong}");
            }
            assert!(decompressor.decompress(codec, &payload[..bytes - 1], &mut decoded).is_err(), "{codec}: cut off");
            assert_eq!(compressor.compress(codec, &codes, &mut vec![0; bytes - 1]), None, "{codec}: no room");
        }
    }
}
