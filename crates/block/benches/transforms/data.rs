//! Real KV cut into blocks.

use block::{ElementType, Geometry, Kind, Part, Plan};
use half::{bf16, f16};
use safetensors::SafeTensors;

/// Elements of a block in all tables but those that say otherwise: 1 MiB of one-byte codes.
pub(crate) const BLOCK_ELEMENTS: usize = 1 << 20;

pub(crate) struct Set {
    pub(crate) name: String,
    pub(crate) geometry: Geometry,
    pub(crate) blocks: Vec<Block>,
}

/// One block's elements in canonical order, and where it stands.
pub(crate) struct Block {
    pub(crate) part: Part,
    pub(crate) index: usize,
    pub(crate) tile: Vec<u8>,
}

impl Set {
    pub(crate) fn load(file: &str) -> Self {
        let bytes = std::fs::read(file).expect("read a file of KV");
        let tensors = SafeTensors::deserialize(&bytes).expect("a safetensors file");
        let kv = tensors.tensor("kv").expect("a tensor `kv`");
        let shape = kv.shape();
        let [layers, 2, tokens, heads, head_size] = shape[shape.len() - 5..] else {
            panic!("kv is [.., layers, 2, tokens, heads, head size], not {shape:?}");
        };
        let geometry =
            Geometry::new(layers, heads, head_size, 256, ElementType::Bf16).expect("a geometry within limits");
        let plan = Plan::choose(&geometry, BLOCK_ELEMENTS).expect("a plan");
        let text_bytes = tokens * geometry.token_bytes();
        let mut blocks = Vec::new();
        for text in kv.data().chunks_exact(text_bytes) {
            for chunk in 0..tokens / 256 {
                for index in 0..plan.block_count(&geometry) {
                    let part = plan.part(&geometry, index).expect("below the block count");
                    let mut tile = Vec::with_capacity(part.tile_bytes(&geometry));
                    for layer in part.first_layer..part.first_layer + part.layers {
                        let token = chunk * 256 + part.first_token as usize;
                        let row = part.kind.plane(layer.into()) * tokens + token;
                        let span = part.tokens as usize * geometry.row_bytes();
                        tile.extend_from_slice(&text[row * geometry.row_bytes()..][..span]);
                    }
                    blocks.push(Block { part, index, tile });
                }
            }
        }
        let name = file.rsplit('/').next().unwrap_or(file).trim_end_matches(".safetensors").to_string();
        Self { name, geometry, blocks }
    }

    /// The same with elements of another type.
    pub(crate) fn converted(mut self, element: ElementType) -> Self {
        self.geometry.element = element;
        self.blocks.iter_mut().for_each(|block| block.tile = convert(&block.tile, element));
        self
    }

    pub(crate) fn of(&self, kind: Option<Kind>) -> impl Iterator<Item = &Block> {
        self.blocks.iter().filter(move |b| kind.is_none_or(|k| b.part.kind == k))
    }
}

/// bf16 elements as another type; f16 rounds the few that do not fit it.
pub(crate) fn convert(tile: &[u8], element: ElementType) -> Vec<u8> {
    let values = tile.as_chunks::<2>().0.iter().map(|&b| bf16::from_le_bytes(b));
    match element {
        ElementType::Bf16 => tile.to_vec(),
        ElementType::F16 => values.flat_map(|v| f16::from_f32(v.to_f32()).to_le_bytes()).collect(),
        ElementType::F32 => values.flat_map(|v| v.to_f32().to_le_bytes()).collect(),
        ElementType::E4m3 => values.map(|v| eight_bits(v.to_f32(), 3, 7, 448.0)).collect(),
        ElementType::E5m2 => values.map(|v| eight_bits(v.to_f32(), 2, 15, 57_344.0)).collect(),
        ElementType::U8 | ElementType::U16 | ElementType::U32 => unreachable!("opaque elements have no values"),
    }
}

/// The nearest number of eight bits, of these bits of the mantissa, this bias and this largest value.
fn eight_bits(value: f32, mantissa: i32, bias: i32, most: f32) -> u8 {
    let magnitude = value.abs().min(most);
    let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(1 - bias);
    let units = (magnitude * 2f32.powi(mantissa - exponent)).round_ties_even() as i32;
    let sign = if value.is_sign_negative() { 0x80 } else { 0 };
    (units + ((exponent + bias - 1) << mantissa)) as u8 | sign
}
