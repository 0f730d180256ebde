//! AVX-512 as Zen 4 and Sapphire Rapids have it, with bf16 conversions and permutations of bytes.

use crate::format::geometry::ElementType;
use crate::kernel::lanes::{Lanes, UNIT};
use crate::kernel::number::{Element, least_normal};
use std::arch::x86_64::*;
use std::mem::transmute;

/// Proof that the processor has the features that the kernels of `avx512` are compiled for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx512(());

impl Avx512 {
    pub(super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("avx512bf16")
            && is_x86_feature_detected!("avx512vbmi")
            && is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;

/// 0..64.
const CODES: [[u8; UNIT]; 2] = *multiples(1).as_chunks().0.first_chunk().expect("two units");
/// Indices of the lowest bytes of the words of two vectors.
const LOWEST_BYTES: [u8; 64] = multiples(4);

/// The first multiples of `factor` that are below 128, the rest zero.
const fn multiples(factor: u8) -> [u8; 64] {
    let mut numbers = [0; 64];
    let mut i = 0;
    while i < 64 && i * (factor as usize) < 128 {
        numbers[i] = i as u8 * factor;
        i += 1;
    }
    numbers
}

// SAFETY of all blocks below: the intrinsics ask for nothing but their CPU features, of which `self` is the proof;
// memory is read and written by the functions at the end of this file alone, which take safe references.
impl Lanes for Avx512 {
    type Floats = [__m512; 2];
    /// 32 elements each, the second ones only if wide; those of one byte in the lower half.
    type Table = [__m512i; 2];
    const WIDE_TABLE_PEAK_MAX: u8 = 31;

    #[inline(always)]
    fn read<E: Element>(self, elements: &[u8]) -> [__m512; 2] {
        let [low, high] = halves(elements);
        // SAFETY: see above.
        unsafe {
            match E::TYPE {
                ElementType::Bf16 => [from_bf16(load_256(low)), from_bf16(load_256(high))],
                ElementType::F16 => [_mm512_cvtph_ps(load_256(low)), _mm512_cvtph_ps(load_256(high))],
                ElementType::F32 => [_mm512_castsi512_ps(load_512(low)), _mm512_castsi512_ps(load_512(high))],
                ElementType::E4m3 => from_e4m3(load_256(elements)),
                ElementType::E5m2 => from_e5m2(load_256(elements)),
                _ => unreachable!("opaque elements are no numbers"),
            }
        }
    }

    #[inline(always)]
    fn write<E: Element>(self, [low, high]: [__m512; 2], elements: &mut [u8]) {
        // SAFETY: see above.
        unsafe {
            match E::TYPE {
                // The conversion takes subnormal numbers for zeros; a quantizer's values are none.
                ElementType::Bf16 => {
                    store_512(elements, transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(high, low)))
                }
                ElementType::F16 => {
                    let [low_half, high_half] = halves_mut(elements);
                    store_256(low_half, _mm512_cvtps_ph::<NEAREST>(low));
                    store_256(high_half, _mm512_cvtps_ph::<NEAREST>(high));
                }
                ElementType::F32 => {
                    let [low_half, high_half] = halves_mut(elements);
                    store_512(low_half, _mm512_castps_si512(low));
                    store_512(high_half, _mm512_castps_si512(high));
                }
                ElementType::E4m3 => store_256(elements, to_eight_bits::<20>(low, high, least_normal(7))),
                ElementType::E5m2 => store_256(elements, to_eight_bits::<21>(low, high, least_normal(15))),
                _ => unreachable!("opaque elements are no numbers"),
            }
        }
    }

    #[inline(always)]
    fn load(self, values: &[f32; UNIT]) -> [__m512; 2] {
        // SAFETY: an array of 32 f32 has the bits of two vectors of 16.
        unsafe { transmute::<[f32; UNIT], [__m512; 2]>(*values) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [__m512; 2] {
        // SAFETY: see above.
        unsafe { [_mm512_set1_ps(value); 2] }
    }

    #[inline(always)]
    fn times(self, a: [__m512; 2], b: [__m512; 2]) -> [__m512; 2] {
        // SAFETY: see above.
        unsafe { [_mm512_mul_ps(a[0], b[0]), _mm512_mul_ps(a[1], b[1])] }
    }

    #[inline(always)]
    fn signed(self, codes: &[u8; UNIT], peak: u8) -> [__m512; 2] {
        // SAFETY: see above.
        unsafe {
            let signed = _mm256_sub_epi8(load_256(codes), _mm256_set1_epi8(peak as i8));
            [from_bytes(_mm256_castsi256_si128(signed)), from_bytes(_mm256_extracti128_si256::<1>(signed))]
        }
    }

    #[inline(always)]
    fn coded(self, [low, high]: [__m512; 2], peak: u8, codes: &mut [u8; UNIT]) {
        // SAFETY: see above.
        unsafe {
            // Added to 1.5 * 2^23, a number leaves its nearest integer in the low bits.
            let integer = _mm512_set1_ps(12_582_912.0);
            let low = _mm512_castps_si512(_mm512_add_ps(low, integer));
            let high = _mm512_castps_si512(_mm512_add_ps(high, integer));
            let signed = _mm512_castsi512_si256(_mm512_permutex2var_epi8(low, load_512(&LOWEST_BYTES), high));
            store_256(codes, _mm256_add_epi8(signed, _mm256_set1_epi8(peak as i8)));
        }
    }

    #[inline(always)]
    fn table<E: Element, const WIDE: bool>(self, peak: u8, step: f32) -> [__m512i; 2] {
        let mut elements = [[0; 2 * UNIT]; 2];
        for (elements, codes) in elements.iter_mut().zip(&CODES).take(if WIDE { 2 } else { 1 }) {
            let elements = &mut elements[..UNIT * E::BYTES];
            self.write::<E>(self.times(self.signed(codes, peak), self.splat(step)), elements);
        }
        [load_512(&elements[0]), load_512(&elements[1])]
    }

    #[inline(always)]
    fn look_up<E: Element, const WIDE: bool>(
        self,
        codes: &[u8; UNIT],
        &[first, second]: &[__m512i; 2],
        elements: &mut [u8],
    ) {
        if E::BYTES == 1 {
            // SAFETY: see above.
            unsafe {
                let (codes, first) = (load_256(codes), _mm512_castsi512_si256(first));
                let found = if WIDE {
                    _mm256_permutex2var_epi8(first, codes, _mm512_castsi512_si256(second))
                } else {
                    _mm256_permutexvar_epi8(codes, first)
                };
                store_256(elements, found);
            }
            return;
        }
        // SAFETY: see above.
        unsafe {
            let codes = _mm512_cvtepu8_epi16(load_256(codes));
            let found = if WIDE {
                _mm512_permutex2var_epi16(first, codes, second)
            } else {
                _mm512_permutexvar_epi16(codes, first)
            };
            store_512(elements, found);
        }
    }

    #[inline(always)]
    fn unpack(self, pairs: &[u8; UNIT / 2]) -> [u8; UNIT] {
        // SAFETY: see above; an array of bytes has the bits of a vector.
        unsafe {
            let pairs = _mm256_cvtepu8_epi16(transmute::<[u8; UNIT / 2], __m128i>(*pairs));
            let codes = _mm256_or_si256(pairs, _mm256_slli_epi16::<4>(pairs));
            transmute::<__m256i, [u8; UNIT]>(_mm256_and_si256(codes, _mm256_set1_epi8(15)))
        }
    }

    #[inline(always)]
    fn pack(self, codes: &[u8; UNIT]) -> [u8; UNIT / 2] {
        // SAFETY: see above; a vector has the bits of an array of bytes.
        unsafe {
            // Each pair's first code and 16 times its second one, added up.
            let pairs = _mm256_maddubs_epi16(load_256(codes), _mm256_set1_epi16(0x1001));
            transmute::<__m128i, [u8; UNIT / 2]>(_mm256_cvtepi16_epi8(pairs))
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f")]
fn from_bf16(elements: __m256i) -> __m512 {
    _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(elements)))
}

/// As f16, whose bias is 8 more.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn from_e4m3(elements: __m256i) -> [__m512; 2] {
    // The sign, a second one in the place of the highest bit of the exponent, exponent and mantissa.
    let words = _mm512_slli_epi16::<7>(_mm512_cvtepi8_epi16(elements));
    let [low, high] = from_f16_words(_mm512_and_si512(words, _mm512_set1_epi16(!0x4000)));
    let bias = _mm512_set1_ps(256.0);
    [_mm512_mul_ps(low, bias), _mm512_mul_ps(high, bias)]
}

/// As f16, whose high bytes they are.
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn from_e5m2(elements: __m256i) -> [__m512; 2] {
    from_f16_words(_mm512_slli_epi16::<8>(_mm512_cvtepu8_epi16(elements)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn from_f16_words(words: __m512i) -> [__m512; 2] {
    [_mm512_cvtph_ps(_mm512_castsi512_si256(words)), _mm512_cvtph_ps(_mm512_extracti64x4_epi64::<1>(words))]
}

/// Rounds as [`crate::kernel::number`] does: `DROPPED` bits of the mantissa are dropped.
#[inline]
#[target_feature(enable = "avx512f")]
fn to_eight_bits<const DROPPED: u32>(low: __m512, high: __m512, least: u32) -> __m256i {
    _mm256_set_m128i(narrowed::<DROPPED>(high, least), narrowed::<DROPPED>(low, least))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn narrowed<const DROPPED: u32>(values: __m512, least: u32) -> __m128i {
    let bits = _mm512_castps_si512(values);
    let magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fff_ffff));
    let least = _mm512_set1_epi32(least as i32);
    let binade = _mm512_max_epu32(_mm512_and_si512(magnitude, _mm512_set1_epi32(0x7f80_0000)), least);
    let magic = _mm512_add_epi32(binade, _mm512_set1_epi32((DROPPED << 23) as i32));
    let sum = _mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_castsi512_ps(magic));
    let significand = _mm512_sub_epi32(_mm512_castps_si512(sum), magic);
    let exponent = _mm512_srli_epi32::<DROPPED>(_mm512_sub_epi32(binade, least));
    let sign = _mm512_and_si512(_mm512_srli_epi32::<24>(bits), _mm512_set1_epi32(0x80));
    _mm512_cvtepi32_epi8(_mm512_add_epi32(significand, _mm512_or_si512(exponent, sign)))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn from_bytes(signed: __m128i) -> __m512 {
    _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(signed))
}

/// The two halves of a unit.
#[inline(always)]
fn halves(bytes: &[u8]) -> [&[u8]; 2] {
    let (low, high) = bytes.split_at(bytes.len() / 2);
    [low, high]
}

#[inline(always)]
fn halves_mut(bytes: &mut [u8]) -> [&mut [u8]; 2] {
    let (low, high) = bytes.split_at_mut(bytes.len() / 2);
    [low, high]
}

/// Panics unless there are 32 bytes.
#[inline(always)]
fn load_256(bytes: &[u8]) -> __m256i {
    let bytes: [u8; 32] = bytes.try_into().expect("32 bytes");
    // SAFETY: an array of bytes has the bits of a vector; it is a copy, so nothing aliases it.
    unsafe { transmute(bytes) }
}

/// Panics unless there are 64 bytes.
#[inline(always)]
fn load_512(bytes: &[u8]) -> __m512i {
    let bytes: [u8; 64] = bytes.try_into().expect("64 bytes");
    // SAFETY: as for `load_256`.
    unsafe { transmute(bytes) }
}

/// Panics unless there are 32 bytes.
#[inline(always)]
fn store_256(bytes: &mut [u8], vector: __m256i) {
    // SAFETY: a vector has the bits of an array of bytes; it is a copy, so nothing aliases it.
    bytes.copy_from_slice(&unsafe { transmute::<__m256i, [u8; 32]>(vector) });
}

/// Panics unless there are 64 bytes.
#[inline(always)]
fn store_512(bytes: &mut [u8], vector: __m512i) {
    // SAFETY: as for `store_256`.
    bytes.copy_from_slice(&unsafe { transmute::<__m512i, [u8; 64]>(vector) });
}
