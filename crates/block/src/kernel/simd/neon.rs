//! NEON, which every 64-bit Arm core has, the card's Cortex-A78 among them: no half-precision arithmetic, no bf16.

use crate::format::geometry::ElementType;
use crate::kernel::lanes::{Lanes, UNIT};
use crate::kernel::number::{Element, least_normal};
use std::arch::aarch64::*;
use std::mem::transmute;

/// Proof that the processor has the features that the kernels of `neon` are compiled for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Neon(());

impl Neon {
    pub(super) fn detect() -> Option<Self> {
        std::arch::is_aarch64_feature_detected!("neon").then_some(Self(()))
    }
}

/// Magnitudes of a step's elements by the magnitude of the code less the peak: low and high bytes apart, or, of
/// elements of one byte, the first 16 and the second 16.
#[derive(Clone, Copy)]
pub(super) struct NeonTable {
    low: uint8x16_t,
    high: uint8x16_t,
    peak: u8,
}

/// A unit: [low, high] of each 8.
type Floats = [[float32x4_t; 2]; 4];

// SAFETY of all blocks below: the intrinsics ask for nothing but their CPU features, of which `self` is the proof;
// memory is read and written by the functions at the end of this file alone, which take safe references.
impl Lanes for Neon {
    type Floats = Floats;
    type Table = NeonTable;

    #[inline(always)]
    fn read<E: Element>(self, elements: &[u8]) -> Floats {
        let [a, b, c, d] = quarters(elements);
        // SAFETY: see above.
        unsafe {
            match E::TYPE {
                ElementType::Bf16 => [from_bf16(load(a)), from_bf16(load(b)), from_bf16(load(c)), from_bf16(load(d))],
                ElementType::F16 => [from_f16(load(a)), from_f16(load(b)), from_f16(load(c)), from_f16(load(d))],
                ElementType::F32 => [from_f32(a), from_f32(b), from_f32(c), from_f32(d)],
                ElementType::E4m3 => [from_e4m3(a), from_e4m3(b), from_e4m3(c), from_e4m3(d)],
                ElementType::E5m2 => [from_e5m2(a), from_e5m2(b), from_e5m2(c), from_e5m2(d)],
                _ => unreachable!("opaque elements are no numbers"),
            }
        }
    }

    #[inline(always)]
    fn write<E: Element>(self, values: Floats, elements: &mut [u8]) {
        let quarter = elements.len() / 4;
        for (elements, [low, high]) in elements.chunks_exact_mut(quarter).zip(values) {
            // SAFETY: see above.
            unsafe {
                match E::TYPE {
                    ElementType::Bf16 => store(elements, to_bf16(low, high)),
                    ElementType::F16 => {
                        let [low, high] = [narrowed::<13, 16>(low, 15), narrowed::<13, 16>(high, 15)];
                        store(elements, vreinterpretq_u8_u16(vuzp1q_u16(low, high)));
                    }
                    ElementType::F32 => {
                        let (first, second) = elements.split_at_mut(16);
                        store(first, vreinterpretq_u8_f32(low));
                        store(second, vreinterpretq_u8_f32(high));
                    }
                    ElementType::E4m3 => {
                        store_8(elements, narrowed::<20, 24>(low, 7), narrowed::<20, 24>(high, 7));
                    }
                    ElementType::E5m2 => {
                        store_8(elements, narrowed::<21, 24>(low, 15), narrowed::<21, 24>(high, 15));
                    }
                    _ => unreachable!("opaque elements are no numbers"),
                }
            }
        }
    }

    #[inline(always)]
    fn load(self, values: &[f32; UNIT]) -> Floats {
        // SAFETY: an array of 32 f32 has the bits of eight vectors of 4.
        unsafe { transmute::<[f32; UNIT], Floats>(*values) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> Floats {
        // SAFETY: see above.
        unsafe { [[vdupq_n_f32(value); 2]; 4] }
    }

    #[inline(always)]
    fn times(self, [a, b, c, d]: Floats, [e, f, g, h]: Floats) -> Floats {
        // SAFETY: see above.
        unsafe { [product(a, e), product(b, f), product(c, g), product(d, h)] }
    }

    #[inline(always)]
    fn signed(self, codes: &[u8; UNIT], peak: u8) -> Floats {
        let (first, second) = codes.split_at(UNIT / 2);
        // SAFETY: see above.
        unsafe {
            let peak = vdupq_n_u8(peak);
            let first = vreinterpretq_s8_u8(vsubq_u8(load(first), peak));
            let second = vreinterpretq_s8_u8(vsubq_u8(load(second), peak));
            [
                from_words(vmovl_s8(vget_low_s8(first))),
                from_words(vmovl_high_s8(first)),
                from_words(vmovl_s8(vget_low_s8(second))),
                from_words(vmovl_high_s8(second)),
            ]
        }
    }

    #[inline(always)]
    fn coded(self, [a, b, c, d]: Floats, peak: u8, codes: &mut [u8; UNIT]) {
        let (first, second) = codes.split_at_mut(UNIT / 2);
        // SAFETY: see above.
        unsafe {
            let peak = vdupq_n_u8(peak);
            store(first, vaddq_u8(vreinterpretq_u8_s8(to_bytes(a, b)), peak));
            store(second, vaddq_u8(vreinterpretq_u8_s8(to_bytes(c, d)), peak));
        }
    }

    #[inline(always)]
    fn table<E: Element, const WIDE: bool>(self, peak: u8, step: f32) -> NeonTable {
        const MAGNITUDES: [u8; UNIT] = [
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28,
            29, 30, 31,
        ];
        let mut elements = [0; 2 * UNIT];
        let values = self.times(self.signed(&MAGNITUDES, 0), self.splat(step));
        self.write::<E>(values, &mut elements[..UNIT * E::BYTES]);
        let (first, second) = (load(&elements[..16]), load(&elements[16..32]));
        if E::BYTES == 1 {
            return NeonTable { low: first, high: second, peak };
        }
        // SAFETY: see above.
        unsafe { NeonTable { low: vuzp1q_u8(first, second), high: vuzp2q_u8(first, second), peak } }
    }

    #[inline(always)]
    fn look_up<E: Element, const WIDE: bool>(self, codes: &[u8; UNIT], table: &NeonTable, elements: &mut [u8]) {
        if E::BYTES == 1 {
            for (codes, elements) in codes.chunks_exact(16).zip(elements.chunks_exact_mut(16)) {
                // SAFETY: see above.
                unsafe {
                    let signed = vsubq_u8(load(codes), vdupq_n_u8(table.peak));
                    let magnitude = vreinterpretq_u8_s8(vabsq_s8(vreinterpretq_s8_u8(signed)));
                    let found = if WIDE {
                        vqtbl2q_u8(uint8x16x2_t(table.low, table.high), magnitude)
                    } else {
                        vqtbl1q_u8(table.low, magnitude)
                    };
                    store(elements, veorq_u8(found, vandq_u8(signed, vdupq_n_u8(0x80))));
                }
            }
            return;
        }
        for (codes, elements) in codes.chunks_exact(16).zip(elements.chunks_exact_mut(32)) {
            let (first, second) = elements.split_at_mut(16);
            // SAFETY: see above.
            unsafe {
                let signed = vsubq_u8(load(codes), vdupq_n_u8(table.peak));
                let magnitude = vreinterpretq_u8_s8(vabsq_s8(vreinterpretq_s8_u8(signed)));
                let sign = vandq_u8(signed, vdupq_n_u8(0x80));
                let low = vqtbl1q_u8(table.low, magnitude);
                let high = veorq_u8(vqtbl1q_u8(table.high, magnitude), sign);
                store(first, vzip1q_u8(low, high));
                store(second, vzip2q_u8(low, high));
            }
        }
    }

    #[inline(always)]
    fn unpack(self, pairs: &[u8; UNIT / 2]) -> [u8; UNIT] {
        let mut codes = [0; UNIT];
        let (first, second) = codes.split_at_mut(UNIT / 2);
        // SAFETY: see above.
        unsafe {
            let pairs = load(pairs);
            let (low, high) = (vandq_u8(pairs, vdupq_n_u8(15)), vshrq_n_u8::<4>(pairs));
            store(first, vzip1q_u8(low, high));
            store(second, vzip2q_u8(low, high));
        }
        codes
    }

    #[inline(always)]
    fn pack(self, codes: &[u8; UNIT]) -> [u8; UNIT / 2] {
        let mut pairs = [0; UNIT / 2];
        let (first, second) = codes.split_at(UNIT / 2);
        // SAFETY: see above.
        unsafe {
            let (low, high) = (vuzp1q_u8(load(first), load(second)), vuzp2q_u8(load(first), load(second)));
            store(&mut pairs, vorrq_u8(low, vshlq_n_u8::<4>(high)));
        }
        pairs
    }
}

#[inline]
#[target_feature(enable = "neon")]
fn product([a, b]: [float32x4_t; 2], [c, d]: [float32x4_t; 2]) -> [float32x4_t; 2] {
    [vmulq_f32(a, c), vmulq_f32(b, d)]
}

#[inline]
#[target_feature(enable = "neon")]
fn from_bf16(elements: uint8x16_t) -> [float32x4_t; 2] {
    let words = vreinterpretq_u16_u8(elements);
    [
        vreinterpretq_f32_u32(vshll_n_u16::<16>(vget_low_u16(words))),
        vreinterpretq_f32_u32(vshll_high_n_u16::<16>(words)),
    ]
}

/// Rounds to nearest even.
#[inline]
#[target_feature(enable = "neon")]
fn to_bf16(low: float32x4_t, high: float32x4_t) -> uint8x16_t {
    let (low, high) = (vreinterpretq_u32_f32(low), vreinterpretq_u32_f32(high));
    let (half, one) = (vdupq_n_u32(0x7fff), vdupq_n_u32(1));
    let low = vaddq_u32(vaddq_u32(low, half), vandq_u32(vshrq_n_u32::<16>(low), one));
    let high = vaddq_u32(vaddq_u32(high, half), vandq_u32(vshrq_n_u32::<16>(high), one));
    vreinterpretq_u8_u16(vuzp2q_u16(vreinterpretq_u16_u32(low), vreinterpretq_u16_u32(high)))
}

/// Reads as [`crate::kernel::number::F16`] does: exponents' biases differ by 112, and the product is exact.
#[inline]
#[target_feature(enable = "neon")]
fn from_f16(elements: uint8x16_t) -> [float32x4_t; 2] {
    let words = vreinterpretq_u16_u8(elements);
    let bias = vdupq_n_f32(f32::from_bits((127 + 112) << 23));
    let sign = vandq_u16(words, vdupq_n_u16(0x8000));
    let magnitude = veorq_u16(words, sign);
    let low = vmulq_f32(vreinterpretq_f32_u32(vshll_n_u16::<13>(vget_low_u16(magnitude))), bias);
    let high = vmulq_f32(vreinterpretq_f32_u32(vshll_high_n_u16::<13>(magnitude)), bias);
    let (low_sign, high_sign) = (vshll_n_u16::<16>(vget_low_u16(sign)), vshll_high_n_u16::<16>(sign));
    [
        vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(low), low_sign)),
        vreinterpretq_f32_u32(vorrq_u32(vreinterpretq_u32_f32(high), high_sign)),
    ]
}

/// As f16, whose bias is 8 more.
#[inline]
#[target_feature(enable = "neon")]
fn from_e4m3(elements: &[u8]) -> [float32x4_t; 2] {
    // The sign, a second one in the place of the highest bit of the exponent, exponent and mantissa.
    let words = vshlq_n_u16::<7>(vreinterpretq_u16_s16(vmovl_s8(vreinterpret_s8_u8(load_8(elements)))));
    let [low, high] = from_f16(vreinterpretq_u8_u16(vandq_u16(words, vdupq_n_u16(!0x4000))));
    [vmulq_n_f32(low, 256.0), vmulq_n_f32(high, 256.0)]
}

/// As f16, whose high bytes they are.
#[inline]
#[target_feature(enable = "neon")]
fn from_e5m2(elements: &[u8]) -> [float32x4_t; 2] {
    from_f16(vreinterpretq_u8_u16(vshll_n_u8::<8>(load_8(elements))))
}

/// Writes as [`crate::kernel::number`] does, to the low halves of 32 bits: `DROPPED` bits of the mantissa are rounded
/// away, and the sign moves down by `SIGN` bits.
#[inline]
#[target_feature(enable = "neon")]
fn narrowed<const DROPPED: i32, const SIGN: i32>(values: float32x4_t, bias: u32) -> uint16x8_t {
    let least = vdupq_n_u32(least_normal(bias));
    let bits = vreinterpretq_u32_f32(values);
    let magnitude = vandq_u32(bits, vdupq_n_u32(0x7fff_ffff));
    let binade = vmaxq_u32(vandq_u32(magnitude, vdupq_n_u32(0x7f80_0000)), least);
    let magic = vaddq_u32(binade, vdupq_n_u32((DROPPED as u32) << 23));
    let sum = vaddq_f32(vreinterpretq_f32_u32(magnitude), vreinterpretq_f32_u32(magic));
    let significand = vsubq_u32(vreinterpretq_u32_f32(sum), magic);
    let exponent = vshrq_n_u32::<DROPPED>(vsubq_u32(binade, least));
    let sign = vandq_u32(vshrq_n_u32::<SIGN>(bits), vdupq_n_u32(1 << (31 - SIGN)));
    vreinterpretq_u16_u32(vaddq_u32(significand, vorrq_u32(exponent, sign)))
}

#[inline]
#[target_feature(enable = "neon")]
fn from_f32(elements: &[u8]) -> [float32x4_t; 2] {
    let (low, high) = elements.split_at(16);
    [vreinterpretq_f32_u8(load(low)), vreinterpretq_f32_u8(load(high))]
}

#[inline]
#[target_feature(enable = "neon")]
fn from_words(signed: int16x8_t) -> [float32x4_t; 2] {
    [vcvtq_f32_s32(vmovl_s16(vget_low_s16(signed))), vcvtq_f32_s32(vmovl_high_s16(signed))]
}

/// Rounds to nearest even.
#[inline]
#[target_feature(enable = "neon")]
fn to_bytes(first: [float32x4_t; 2], second: [float32x4_t; 2]) -> int8x16_t {
    let first = vmovn_high_s32(vmovn_s32(vcvtnq_s32_f32(first[0])), vcvtnq_s32_f32(first[1]));
    let second = vmovn_high_s32(vmovn_s32(vcvtnq_s32_f32(second[0])), vcvtnq_s32_f32(second[1]));
    vmovn_high_s16(vmovn_s16(first), second)
}

#[inline(always)]
fn quarters(bytes: &[u8]) -> [&[u8]; 4] {
    let (low, high) = bytes.split_at(bytes.len() / 2);
    let (a, b) = low.split_at(low.len() / 2);
    let (c, d) = high.split_at(high.len() / 2);
    [a, b, c, d]
}

/// Panics unless there are 16 bytes.
#[inline(always)]
fn load(bytes: &[u8]) -> uint8x16_t {
    let bytes: [u8; 16] = bytes.try_into().expect("16 bytes");
    // SAFETY: an array of bytes has the bits of a vector; it is a copy, so nothing aliases it.
    unsafe { transmute(bytes) }
}

/// Panics unless there are 16 bytes.
#[inline(always)]
fn store(bytes: &mut [u8], vector: uint8x16_t) {
    // SAFETY: a vector has the bits of an array of bytes; it is a copy, so nothing aliases it.
    bytes.copy_from_slice(&unsafe { transmute::<uint8x16_t, [u8; 16]>(vector) });
}

/// Panics unless there are 8 bytes.
#[inline(always)]
fn load_8(bytes: &[u8]) -> uint8x8_t {
    let bytes: [u8; 8] = bytes.try_into().expect("8 bytes");
    // SAFETY: as for `load`.
    unsafe { transmute(bytes) }
}

/// Stores the lowest bytes of 8 words of 32 bits. Panics unless there is room for 8 bytes.
#[inline]
#[target_feature(enable = "neon")]
fn store_8(bytes: &mut [u8], low: uint16x8_t, high: uint16x8_t) {
    let vector = vmovn_u16(vuzp1q_u16(low, high));
    // SAFETY: as for `store`.
    bytes.copy_from_slice(&unsafe { transmute::<uint8x8_t, [u8; 8]>(vector) });
}
