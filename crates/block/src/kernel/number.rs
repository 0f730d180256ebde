//! Elements as bytes, as words and as f32: the arithmetic that every kernel and the oracle share. All conversions are
//! branch-free so that loops over them vectorize. Conversions from f32 round to nearest even and expect a finite value
//! whose rounding is finite, which is what the quantizer's formula yields.

use crate::format::geometry::ElementType;

/// One element type. `Word` is its bits; magnitudes (bits without the sign) order like absolute values.
pub(crate) trait Element: Copy + 'static {
    type Bytes: Copy + AsRef<[u8]>;
    type Word: Copy + Ord + Default;
    const TYPE: ElementType;
    const BYTES: usize = size_of::<Self::Bytes>();
    /// The magnitude of infinity: finite values lie below.
    const INFINITE: Self::Word;

    fn cast(bytes: &[u8]) -> &[Self::Bytes];
    fn cast_mut(bytes: &mut [u8]) -> &mut [Self::Bytes];
    fn magnitude(bytes: Self::Bytes) -> Self::Word;
    fn bytes_of(word: Self::Word) -> Self::Bytes;
    fn read(bytes: Self::Bytes) -> f32;
    fn write(value: f32) -> Self::Bytes;
    /// Rotated left by one bit, so that the sign lies with the mantissa and the exponent fills the highest byte; one
    /// byte stays as it is.
    fn rotated(bytes: Self::Bytes) -> Self::Bytes;
    /// Elements from their byte planes, undoing [`Element::rotated`]. `planes[j]` holds byte j; surplus planes are
    /// empty.
    fn merge(planes: [&[u8]; 4], out: &mut [Self::Bytes]);
}

#[derive(Clone, Copy)]
pub(crate) struct Bf16;
#[derive(Clone, Copy)]
pub(crate) struct F16;
#[derive(Clone, Copy)]
pub(crate) struct F32;
#[derive(Clone, Copy)]
pub(crate) struct E4m3;
#[derive(Clone, Copy)]
pub(crate) struct E5m2;

macro_rules! sixteen_bits {
    () => {
        type Bytes = [u8; 2];
        type Word = u16;

        #[inline(always)]
        fn cast(bytes: &[u8]) -> &[[u8; 2]] {
            bytes.as_chunks().0
        }

        #[inline(always)]
        fn cast_mut(bytes: &mut [u8]) -> &mut [[u8; 2]] {
            bytes.as_chunks_mut().0
        }

        #[inline(always)]
        fn magnitude(bytes: [u8; 2]) -> u16 {
            u16::from_le_bytes(bytes) & 0x7fff
        }

        #[inline(always)]
        fn bytes_of(word: u16) -> [u8; 2] {
            word.to_le_bytes()
        }

        #[inline(always)]
        fn rotated(bytes: [u8; 2]) -> [u8; 2] {
            u16::from_le_bytes(bytes).rotate_left(1).to_le_bytes()
        }

        #[inline(always)]
        fn merge(planes: [&[u8]; 4], out: &mut [[u8; 2]]) {
            let low_high = planes[0].iter().zip(planes[1]);
            for (element, (&low, &high)) in out.iter_mut().zip(low_high) {
                *element = u16::from_le_bytes([low, high]).rotate_right(1).to_le_bytes();
            }
        }
    };
}

impl Element for Bf16 {
    const TYPE: ElementType = ElementType::Bf16;
    const INFINITE: u16 = 0x7f80;

    sixteen_bits!();

    #[inline(always)]
    fn read(bytes: [u8; 2]) -> f32 {
        f32::from_bits(u32::from(u16::from_le_bytes(bytes)) << 16)
    }

    #[inline(always)]
    fn write(value: f32) -> [u8; 2] {
        let bits = value.to_bits();
        ((bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16) as u16).to_le_bytes()
    }
}

impl Element for F16 {
    const TYPE: ElementType = ElementType::F16;
    const INFINITE: u16 = 0x7c00;

    sixteen_bits!();

    #[inline(always)]
    fn read(bytes: [u8; 2]) -> f32 {
        let word = u32::from(u16::from_le_bytes(bytes));
        f32::from_bits(widened::<10, 15>(word & 0x7fff) | (word & 0x8000) << 16)
    }

    #[inline(always)]
    fn write(value: f32) -> [u8; 2] {
        ((narrowed::<10, 15>(value) | value.to_bits() >> 16 & 0x8000) as u16).to_le_bytes()
    }
}

macro_rules! eight_bits {
    ($mantissa: literal, $bias: literal) => {
        type Bytes = [u8; 1];
        type Word = u8;

        #[inline(always)]
        fn cast(bytes: &[u8]) -> &[[u8; 1]] {
            bytes.as_chunks().0
        }

        #[inline(always)]
        fn cast_mut(bytes: &mut [u8]) -> &mut [[u8; 1]] {
            bytes.as_chunks_mut().0
        }

        #[inline(always)]
        fn magnitude([byte]: [u8; 1]) -> u8 {
            byte & 0x7f
        }

        #[inline(always)]
        fn bytes_of(word: u8) -> [u8; 1] {
            [word]
        }

        #[inline(always)]
        fn read([byte]: [u8; 1]) -> f32 {
            let byte = u32::from(byte);
            f32::from_bits(widened::<$mantissa, $bias>(byte & 0x7f) | (byte & 0x80) << 24)
        }

        #[inline(always)]
        fn write(value: f32) -> [u8; 1] {
            [(narrowed::<$mantissa, $bias>(value) | value.to_bits() >> 24 & 0x80) as u8]
        }

        #[inline(always)]
        fn rotated(byte: [u8; 1]) -> [u8; 1] {
            byte
        }

        #[inline(always)]
        fn merge(planes: [&[u8]; 4], out: &mut [[u8; 1]]) {
            out.as_flattened_mut().copy_from_slice(planes[0]);
        }
    };
}

impl Element for E4m3 {
    const TYPE: ElementType = ElementType::E4m3;
    /// Not infinite: the one magnitude that is no number.
    const INFINITE: u8 = 0x7f;

    eight_bits!(3, 7);
}

impl Element for E5m2 {
    const TYPE: ElementType = ElementType::E5m2;
    const INFINITE: u8 = 0x7c;

    eight_bits!(2, 15);
}

/// The bits of an f32 of some magnitude's value: the exponents' biases differ, and the product is exact, for subnormals
/// too.
#[inline(always)]
fn widened<const MANTISSA: u32, const BIAS: u32>(magnitude: u32) -> u32 {
    (f32::from_bits(magnitude << (23 - MANTISSA)) * f32::from_bits((127 + 127 - BIAS) << 23)).to_bits()
}

/// The bits of the least normal number of a format, as f32: smaller ones are its multiples.
pub(crate) const fn least_normal(bias: u32) -> u32 {
    (127 + 1 - bias) << 23
}

/// The magnitude of a value's nearest number.
#[inline(always)]
fn narrowed<const MANTISSA: u32, const BIAS: u32>(value: f32) -> u32 {
    let magnitude = value.to_bits() & 0x7fff_ffff;
    let (least, dropped) = (least_normal(BIAS), 23 - MANTISSA);
    // Added to the magnitude, a power of two `dropped` binades above its own (at least that of the least normal number)
    // leaves its rounded significand in the low bits; the significand's leading bit then counts as one exponent.
    let binade = (magnitude & 0x7f80_0000).max(least);
    let magic = binade.wrapping_add(dropped << 23);
    let significand = (f32::from_bits(magnitude) + f32::from_bits(magic)).to_bits().wrapping_sub(magic);
    significand.wrapping_add((binade - least) >> dropped)
}

impl Element for F32 {
    type Bytes = [u8; 4];
    type Word = u32;
    const TYPE: ElementType = ElementType::F32;
    const INFINITE: u32 = 0x7f80_0000;

    #[inline(always)]
    fn cast(bytes: &[u8]) -> &[[u8; 4]] {
        bytes.as_chunks().0
    }

    #[inline(always)]
    fn cast_mut(bytes: &mut [u8]) -> &mut [[u8; 4]] {
        bytes.as_chunks_mut().0
    }

    #[inline(always)]
    fn magnitude(bytes: [u8; 4]) -> u32 {
        u32::from_le_bytes(bytes) & 0x7fff_ffff
    }

    #[inline(always)]
    fn bytes_of(word: u32) -> [u8; 4] {
        word.to_le_bytes()
    }

    #[inline(always)]
    fn read(bytes: [u8; 4]) -> f32 {
        f32::from_le_bytes(bytes)
    }

    #[inline(always)]
    fn write(value: f32) -> [u8; 4] {
        value.to_le_bytes()
    }

    #[inline(always)]
    fn rotated(bytes: [u8; 4]) -> [u8; 4] {
        u32::from_le_bytes(bytes).rotate_left(1).to_le_bytes()
    }

    #[inline(always)]
    fn merge(planes: [&[u8]; 4], out: &mut [[u8; 4]]) {
        let halves = planes[0].iter().zip(planes[1]).zip(planes[2].iter().zip(planes[3]));
        for (element, ((&a, &b), (&c, &d))) in out.iter_mut().zip(halves) {
            *element = u32::from_le_bytes([a, b, c, d]).rotate_right(1).to_le_bytes();
        }
    }
}

/// The smallest nonzero absolute maximum that a group of elements may have to be quantized: below it a step could be
/// subnormal in f32 and lose bits, so such a block is stored lossless.
pub(crate) const SMALLEST_PEAK_VALUE: f32 = f32::from_bits((127 - 118) << 23);

/// The step of a group: `m / C`, moved one f32 down where `C * step` would pass `m`, so that no restored value can.
#[inline(always)]
pub(crate) fn step(m: f32, peak: f32) -> f32 {
    let step = m / peak;
    f32::from_bits(step.to_bits().wrapping_sub(u32::from(step * peak > m)))
}

/// `C / m`, and 0 for a group of zeros.
#[inline(always)]
pub(crate) fn inverse(m: f32, peak: f32) -> f32 {
    if m == 0.0 { 0.0 } else { peak / m }
}

/// 1.5 * 2^23: adding it leaves a number's nearest integer (ties to even) in the low bits.
const INTEGER: f32 = 12_582_912.0;

/// The code of `x`: `round(x * inverse) + C`.
#[inline(always)]
pub(crate) fn code(x: f32, inverse: f32, peak: u32) -> u8 {
    (x * inverse + INTEGER).to_bits().wrapping_sub(INTEGER.to_bits()).wrapping_add(peak) as u8
}

/// The value of a code: `(code - C) * step`.
#[inline(always)]
pub(crate) fn value(code: u8, peak: i32, step: f32) -> f32 {
    (i32::from(code) - peak) as f32 * step
}
