//! Two KV tensors, original and restored, compared in the groups in which the card quantized: chunk by chunk, block by
//! block, with the bound that docs/formats.md promises.

use crate::{Error, KvFile, KvTensor};
use block::{Errors, Geometry, Kind, Plan, Recipe};

/// Differences of all K, or all V.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct KindErrors {
    pub elements: u64,
    pub max_abs: f64,
    pub rms: f64,
    /// Cosine of the worst block.
    pub cosine_min: f64,
    /// Elements beyond the bound, or not finite on one side only.
    pub over_bound: u64,
    pub bit_equal: bool,
}

/// See the module.
#[derive(Clone, Copy, Debug)]
pub struct Comparison {
    pub recipe: Recipe,
    pub geometry: Geometry,
    pub chunks: usize,
    /// Tokens of the original that the restored file does not have.
    pub tokens_missing: usize,
    pub k: KindErrors,
    pub v: KindErrors,
}

impl Comparison {
    /// Whether the recipe kept its promise: every bit, or every element within its bound.
    pub fn is_kept(&self) -> bool {
        if self.recipe.transform.quantizes() { self.k.over_bound + self.v.over_bound == 0 } else { self.is_bit_equal() }
    }

    pub fn is_bit_equal(&self) -> bool {
        self.k.bit_equal && self.v.bit_equal
    }
}

/// Sums over blocks.
struct Sums {
    errors: KindErrors,
    squares: f64,
}

impl Sums {
    fn new() -> Sums {
        let errors =
            KindErrors { elements: 0, max_abs: 0.0, rms: 0.0, cosine_min: 1.0, over_bound: 0, bit_equal: true };
        Sums { errors, squares: 0.0 }
    }

    fn add(&mut self, block: &Errors, odd: u64) {
        let errors = &mut self.errors;
        errors.elements += block.elements as u64;
        errors.max_abs = errors.max_abs.max(block.max_abs);
        errors.cosine_min = errors.cosine_min.min(block.cosine);
        errors.over_bound += block.over_bound as u64 + odd;
        errors.bit_equal &= block.bit_equal;
        self.squares += block.rms * block.rms * block.elements as f64;
    }

    fn finish(mut self) -> KindErrors {
        self.errors.rms = (self.squares / self.errors.elements.max(1) as f64).sqrt();
        self.errors
    }
}

/// Compares the tokens of `restored` with the first of `original`. `block_elements` is that of the card's largest
/// block: it decides which elements share a scale.
///
/// # Errors
/// Shapes that do not belong together, or no whole number of chunks.
pub fn compare(
    original: (&KvFile, &KvTensor),
    restored: (&KvFile, &KvTensor),
    recipe: Recipe,
    chunk_tokens: usize,
    block_elements: usize,
) -> Result<Comparison, Error> {
    let (before, after) = (original.1.shape, restored.1.shape);
    let place = restored.0.path().display();
    if (before.layers, before.heads, before.head_size, before.element)
        != (after.layers, after.heads, after.head_size, after.element)
    {
        let what = format!("{after:?} where the original has {before:?}");
        return Err(Error::input(place, what, "compare a file with what was restored from it"));
    }
    let whole = chunk_tokens > 0 && after.tokens > 0 && after.tokens.is_multiple_of(chunk_tokens);
    if !whole || after.tokens > before.tokens {
        let what = format!("{} tokens, the original has {}", after.tokens, before.tokens);
        return Err(Error::input(
            place,
            what,
            format!("needs whole chunks of --chunk-tokens {chunk_tokens}, no more than the original"),
        ));
    }
    let geometry = before.geometry(chunk_tokens);
    let geometry = geometry.map_err(|error| Error::input("--chunk-tokens", error, "choose another"))?;
    let plan = Plan::choose(&geometry, block_elements);
    let plan = plan.map_err(|error| Error::input("--block-elements", error, "choose what `host-ctl status` shows"))?;
    let chunks = after.tokens / chunk_tokens;
    let (mut k, mut v) = (Sums::new(), Sums::new());
    let (mut one, mut other) = (Vec::new(), Vec::new());
    for chunk in 0..chunks {
        for index in 0..plan.block_count(&geometry) {
            let part = plan.part(&geometry, index).expect("below the plan's block count");
            original.0.read_part(original.1, &geometry, chunk, &part, &mut one)?;
            restored.0.read_part(restored.1, &geometry, chunk, &part, &mut other)?;
            let errors = block::compare(recipe, &geometry, &part, &one, &other);
            let odd = if errors.bit_equal { 0 } else { not_finite_on_one_side(&geometry, &one, &other) };
            let sums = if part.kind == Kind::V { &mut v } else { &mut k };
            sums.add(&errors, odd);
        }
    }
    Ok(Comparison {
        recipe,
        geometry,
        chunks,
        tokens_missing: before.tokens - after.tokens,
        k: k.finish(),
        v: v.finish(),
    })
}

/// NaNs compare as no difference, so these are counted apart: elements that differ where one is not finite.
fn not_finite_on_one_side(geometry: &Geometry, one: &[u8], other: &[u8]) -> u64 {
    let each = geometry.element.bytes();
    let is_odd = |(one, other): (&[u8], &[u8])| {
        one != other && !(is_finite(geometry.element, one) && is_finite(geometry.element, other))
    };
    let elements = one.chunks_exact(each).zip(other.chunks_exact(each));
    elements.filter(|&(one, other)| is_odd((one, other))).count() as u64
}

fn is_finite(element: block::ElementType, bytes: &[u8]) -> bool {
    match *bytes {
        // Whatever opaque elements are, a difference is one.
        _ if element.is_opaque() => true,
        [byte] if element == block::ElementType::E4m3 => byte & 0x7f != 0x7f,
        [byte] => byte & 0x7f < 0x7c,
        [a, b] if element == block::ElementType::Bf16 => half::bf16::from_le_bytes([a, b]).is_finite(),
        [a, b] => half::f16::from_le_bytes([a, b]).is_finite(),
        [a, b, c, d] => f32::from_le_bytes([a, b, c, d]).is_finite(),
        _ => false,
    }
}
