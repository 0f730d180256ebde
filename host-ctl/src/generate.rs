//! Large KV-like files from small real ones, for measuring. **Synthetic**: layers and heads are tiled from the source
//! with noise of each tile's own, and tokens are shuffled, so that no two tiles repeat each other to a compressor. Say
//! so where a figure comes from such a file. Same seed, same file. Written as a stream; memory is the source and one
//! layer's row.

use std::io::{BufWriter, Write};
use std::path::Path;

use block::ElementType;
use half::{bf16, f16};

use crate::error::Error;
use crate::kv_file::{KvFile, KvTensor, TensorShape};
use crate::out_file::{Announce, OutFile, dtype_name};
use crate::random::Random;

/// Largest source: it is held in memory as f32.
const SOURCE_BYTES_MAX: u64 = 256 << 20;
/// Gain of a channel of a tile, and noise of an element, each relative to the element.
const GAIN: f32 = 0.05;
const NOISE: f32 = 0.02;
/// Tokens in the file are ids below this.
const VOCABULARY: u32 = 128_000;

/// What to make.
#[derive(Clone, Copy, Debug)]
pub struct Synthetic {
    pub shape: TensorShape,
    pub seed: u64,
}

/// Writes tensors `kv` and `tokens`. Returns the file's bytes. `watch` hears of layers done, of how many.
///
/// # Errors
/// A source that is too large, a shape that cannot be, no room.
pub fn generate(
    source: (&KvFile, &KvTensor),
    wanted: &Synthetic,
    path: &Path,
    watch: &mut dyn FnMut(usize, usize),
) -> Result<u64, Error> {
    let shape = wanted.shape;
    shape.geometry(1).map_err(|error| Error::input("generate", error, "choose other sizes"))?;
    if shape.tokens == 0 || shape.tokens > u32::MAX as usize {
        return Err(Error::input("--tokens", shape.tokens, "choose from 1 to 4294967295"));
    }
    let from = Source::read(source)?;
    let kv_bytes = shape.bytes();
    let dims = vec![shape.layers, 2, shape.tokens, shape.heads, shape.head_size];
    let tensors = [
        Announce { name: "kv", dtype: dtype_name(shape.element), shape: dims, bytes: kv_bytes },
        Announce { name: "tokens", dtype: "I32", shape: vec![shape.tokens], bytes: shape.tokens as u64 * 4 },
    ];
    let facts = [
        ("format", "kvlane kv [layers, 2, tokens, heads, head size]".to_owned()),
        ("synthetic", format!("tiled from real KV with noise and shuffled tokens, seed {}", wanted.seed)),
    ];
    let out = OutFile::reserve(path, &tensors, shape, &facts)?;
    let failed = Error::system("write", path);
    let mut writer = BufWriter::with_capacity(1 << 20, &out.file);
    let mut write = || -> std::io::Result<()> {
        for layer in 0..shape.layers {
            for kind in 0..2 {
                from.write_plane(&mut writer, wanted, layer, kind)?;
            }
            watch(layer + 1, shape.layers);
        }
        let mut random = Random::new(wanted.seed ^ 0x70_6b65_6e73);
        (0..shape.tokens).try_for_each(|_| writer.write_all(&random.below(VOCABULARY).to_le_bytes()))?;
        writer.flush()
    };
    write().map_err(failed)?;
    drop(writer);
    let bytes = out.bytes();
    out.publish()?;
    Ok(bytes)
}

/// A source tensor as f32, `[layer][kind][token][channel]`.
struct Source {
    layers: usize,
    tokens: usize,
    channels: usize,
    values: Vec<f32>,
}

impl Source {
    fn read((file, kv): (&KvFile, &KvTensor)) -> Result<Source, Error> {
        let shape = kv.shape;
        if shape.bytes() > SOURCE_BYTES_MAX {
            let what = format!("{} bytes of source", shape.bytes());
            return Err(Error::input(
                file.path().display(),
                what,
                format!("at most {SOURCE_BYTES_MAX}: it is held in memory"),
            ));
        }
        let mut bytes = vec![0; shape.bytes() as usize];
        file.read(&mut bytes, kv.offset)?;
        let values = match shape.element {
            ElementType::Bf16 => bytes.as_chunks().0.iter().map(|&word| bf16::from_le_bytes(word).to_f32()).collect(),
            ElementType::F16 => bytes.as_chunks().0.iter().map(|&word| f16::from_le_bytes(word).to_f32()).collect(),
            ElementType::F32 => bytes.as_chunks().0.iter().map(|&word| f32::from_le_bytes(word)).collect(),
        };
        Ok(Source { layers: shape.layers, tokens: shape.tokens, channels: shape.heads * shape.head_size, values })
    }

    /// K or V of one layer: `[token][channel]`.
    fn write_plane(&self, out: &mut impl Write, wanted: &Synthetic, layer: usize, kind: usize) -> std::io::Result<()> {
        let TensorShape { tokens, heads, head_size, element, .. } = wanted.shape;
        let channels = heads * head_size;
        let mut random = Random::new(wanted.seed.wrapping_mul(0x9e37_79b9).wrapping_add((layer * 2 + kind) as u64));
        let gains: Vec<f32> = (0..channels).map(|_| 1.0 + GAIN * random.unit()).collect();
        let plane = (layer % self.layers * 2 + kind) * self.tokens;
        // K and V of a token come from the same source token.
        let mut order: Vec<u32> = (0..self.tokens as u32).collect();
        let mut row = Vec::with_capacity(channels * element.bytes());
        for token in 0..tokens {
            if token % self.tokens == 0 {
                Random::new(wanted.seed ^ ((layer * tokens + token) as u64) << 8).shuffle(&mut order);
            }
            let from = (plane + order[token % self.tokens] as usize) * self.channels;
            row.clear();
            for (channel, gain) in gains.iter().enumerate() {
                let value = self.values[from + channel % self.channels] * (gain + NOISE * random.unit());
                match element {
                    ElementType::Bf16 => row.extend_from_slice(&bf16::from_f32(value).to_le_bytes()),
                    ElementType::F16 => row.extend_from_slice(&f16::from_f32(value).to_le_bytes()),
                    ElementType::F32 => row.extend_from_slice(&value.to_le_bytes()),
                }
            }
            out.write_all(&row)?;
        }
        Ok(())
    }
}
