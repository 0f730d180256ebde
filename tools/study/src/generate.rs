//! Large KV-like files from small real ones, for measuring. **Synthetic**: every element is one of the source's,
//! perhaps with the other sign, but in another place. A plane (K or V of a layer) is laid with tiles as wide as a head
//! of the source; each tile has an order of tokens, an order of channels and signs of its own. So values and their
//! spread are those of the source, and no two tiles repeat each other to a compressor; what attention would make of
//! them means nothing. Say so where a figure comes from such a file. Same seed, same file. Written as a stream; memory
//! is the source, one row and the orders of one plane's tiles.

use std::io::{BufWriter, Write};
use std::path::Path;

use block::{ElementType, Kind, Planes};
use half::{bf16, f16};
use host_ctl::{Announce, Error, KvFile, KvTensor, OutFile, Random, TensorShape, dtype_name};

/// Largest source: it is held in memory, four bytes an element.
const SOURCE_BYTES_MAX: u64 = 256 << 20;
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
    if ![shape.element, source.1.shape.element].into_iter().all(is_float) {
        let names = "make and read files of bf16, f16 or f32";
        return Err(Error::input("--dtype", shape.element, names));
    }
    let from = Source::read(source, shape.element)?;
    let kv_bytes = shape.bytes();
    let dims = vec![shape.layers, 2, shape.tokens, shape.heads, shape.head_size];
    let tensors = [
        Announce { name: "kv", dtype: dtype_name(shape.element), shape: dims, bytes: kv_bytes },
        Announce { name: "tokens", dtype: "I32", shape: vec![shape.tokens], bytes: shape.tokens as u64 * 4 },
    ];
    let facts = [
        ("format", "kvlane kv [layers, 2, tokens, heads, head size]".to_owned()),
        ("synthetic", format!("real KV with tokens, channels and signs shuffled, seed {}", wanted.seed)),
    ];
    let out = OutFile::reserve(path, &tensors, shape, &facts)?;
    let failed = Error::system("write", path);
    let mut writer = BufWriter::with_capacity(1 << 20, out.file());
    let mut write = || -> std::io::Result<()> {
        for layer in 0..shape.layers {
            for &kind in Planes::KeysAndValues.kinds() {
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

fn is_float(element: ElementType) -> bool {
    matches!(element, ElementType::Bf16 | ElementType::F16 | ElementType::F32)
}

/// A source tensor as words of the wanted type, `[layer][kind][token][head][channel]`.
struct Source {
    shape: TensorShape,
    words: Vec<u32>,
}

/// One column of a plane, a source's head wide: where its elements come from.
struct Tile {
    head: usize,
    /// Source tokens in the order in which they are used; dealt anew when all were.
    tokens: Vec<u32>,
    /// Channel of the source's head, and the bits to flip: the sign or nothing.
    channels: Vec<(u32, u32)>,
}

impl Source {
    fn read((file, kv): (&KvFile, &KvTensor), wanted: ElementType) -> Result<Source, Error> {
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
        let to_word = |value: f32| match wanted {
            ElementType::Bf16 => bf16::from_f32(value).to_bits().into(),
            ElementType::F16 => f16::from_f32(value).to_bits().into(),
            _ => value.to_bits(),
        };
        let words = match shape.element {
            ElementType::Bf16 => {
                bytes.as_chunks().0.iter().map(|&word| to_word(bf16::from_le_bytes(word).to_f32())).collect()
            }
            ElementType::F16 => {
                bytes.as_chunks().0.iter().map(|&word| to_word(f16::from_le_bytes(word).to_f32())).collect()
            }
            _ => bytes.as_chunks().0.iter().map(|&word| to_word(f32::from_le_bytes(word))).collect(),
        };
        Ok(Source { shape, words })
    }

    /// K or V of one layer: `[token][head][channel]`.
    fn write_plane(&self, out: &mut impl Write, wanted: &Synthetic, layer: usize, kind: Kind) -> std::io::Result<()> {
        let TensorShape { tokens, heads, head_size, element, .. } = wanted.shape;
        let from = &self.shape;
        let plane_words = from.tokens * from.heads * from.head_size;
        let plane = &self.words[kind.plane(layer % from.layers) * plane_words..][..plane_words];
        let mut random = Random::new(wanted.seed ^ (kind.plane(layer) as u64) << 40);
        let mut tiles = self.tiles(heads, head_size, element, &mut random);
        let mut row = Vec::with_capacity(wanted.shape.row_bytes());
        for token in 0..tokens {
            let at = token % from.tokens;
            row.clear();
            for tile in &mut tiles {
                if at == 0 {
                    random.shuffle(&mut tile.tokens);
                }
                let words = (tile.tokens[at] as usize * from.heads + tile.head) * from.head_size;
                let words = &plane[words..][..from.head_size];
                let words = tile.channels.iter().map(|&(channel, flip)| words[channel as usize] ^ flip);
                match element {
                    ElementType::F32 => row.extend(words.flat_map(u32::to_le_bytes)),
                    _ => row.extend(words.flat_map(|word| (word as u16).to_le_bytes())),
                }
            }
            out.write_all(&row)?;
        }
        Ok(())
    }

    /// The columns of a plane. A head that is wider than the source's has several, the last perhaps cut.
    fn tiles(&self, heads: usize, head_size: usize, element: ElementType, random: &mut Random) -> Vec<Tile> {
        let width = self.shape.head_size;
        let sign = 1 << (8 * element.bytes() - 1);
        let columns = (0..heads).flat_map(|_| (0..head_size).step_by(width));
        let tile = |(index, first): (usize, usize)| {
            let mut channels: Vec<(u32, u32)> =
                (0..width as u32).map(|channel| (channel, random.below(2) * sign)).collect();
            random.shuffle(&mut channels);
            channels.truncate(head_size - first);
            Tile { head: index % self.shape.heads, tokens: (0..self.shape.tokens as u32).collect(), channels }
        };
        columns.enumerate().map(tile).collect()
    }
}
