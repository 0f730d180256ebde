//! AVX2 with F16C, as all x86-64 servers of the last ten years have it.

use crate::format::geometry::ElementType;
use crate::kernel::lanes::{Lanes, UNIT};
use crate::kernel::number::{Element, least_normal};
use std::arch::x86_64::*;
use std::mem::transmute;

/// Proof that the processor has the features that the kernels of `avx2` are compiled for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Avx2(());

impl Avx2 {
    pub(super) fn detect() -> Option<Self> {
        let has = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("bmi2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c");
        has.then_some(Self(()))
    }
}

/// Magnitudes of a step's elements by the magnitude of the code less the peak, in both halves: low and high bytes
/// apart, or, of elements of one byte, the first 16 and, if wide, the second 16.
#[derive(Clone, Copy)]
pub(super) struct Avx2Table {
    low: __m256i,
    high: __m256i,
    peak: __m256i,
}

const NEAREST: i32 = _MM_FROUND_TO_NEAREST_INT;

// SAFETY of all blocks below: the intrinsics ask for nothing but their CPU features, of which `self` is the proof;
// memory is read and written by the functions at the end of this file alone, which take safe references.
impl Lanes for Avx2 {
    type Floats = [__m256; 4];
    type Table = Avx2Table;

    #[inline(always)]
    fn read<E: Element>(self, elements: &[u8]) -> [__m256; 4] {
        let [low, high] = halves(elements);
        let ([a, b], [c, d]) = (halves(low), halves(high));
        // SAFETY: see above.
        unsafe {
            match E::TYPE {
                ElementType::Bf16 => [from_bf16(a), from_bf16(b), from_bf16(c), from_bf16(d)],
                ElementType::F16 => [from_f16(a), from_f16(b), from_f16(c), from_f16(d)],
                ElementType::F32 => [from_f32(a), from_f32(b), from_f32(c), from_f32(d)],
                ElementType::E4m3 => joined(from_e4m3(low), from_e4m3(high)),
                ElementType::E5m2 => joined(from_e5m2(low), from_e5m2(high)),
                _ => unreachable!("opaque elements are no numbers"),
            }
        }
    }

    #[inline(always)]
    fn write<E: Element>(self, values: [__m256; 4], elements: &mut [u8]) {
        // SAFETY: see above.
        unsafe {
            match E::TYPE {
                ElementType::E4m3 => return store_256(elements, to_eight_bits::<20>(values, least_normal(7))),
                ElementType::E5m2 => return store_256(elements, to_eight_bits::<21>(values, least_normal(15))),
                _ => {}
            }
            let ([low, high], [a, b, c, d]) = (halves_mut(elements), values);
            match E::TYPE {
                ElementType::Bf16 => {
                    store_256(low, in_order(_mm256_packus_epi32(rounded(a), rounded(b))));
                    store_256(high, in_order(_mm256_packus_epi32(rounded(c), rounded(d))));
                }
                ElementType::F16 => {
                    store_256(low, to_f16(a, b));
                    store_256(high, to_f16(c, d));
                }
                ElementType::F32 => {
                    for (half, [a, b]) in [(low, [a, b]), (high, [c, d])] {
                        let [first, second] = halves_mut(half);
                        store_256(first, _mm256_castps_si256(a));
                        store_256(second, _mm256_castps_si256(b));
                    }
                }
                _ => unreachable!("opaque elements are no numbers"),
            }
        }
    }

    #[inline(always)]
    fn load(self, values: &[f32; UNIT]) -> [__m256; 4] {
        // SAFETY: an array of 32 f32 has the bits of four vectors of 8.
        unsafe { transmute::<[f32; UNIT], [__m256; 4]>(*values) }
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [__m256; 4] {
        // SAFETY: see above.
        unsafe { [_mm256_set1_ps(value); 4] }
    }

    #[inline(always)]
    fn times(self, a: [__m256; 4], b: [__m256; 4]) -> [__m256; 4] {
        let ([a, b, c, d], [e, f, g, h]) = (a, b);
        // SAFETY: see above.
        unsafe { [_mm256_mul_ps(a, e), _mm256_mul_ps(b, f), _mm256_mul_ps(c, g), _mm256_mul_ps(d, h)] }
    }

    #[inline(always)]
    fn signed(self, codes: &[u8; UNIT], peak: u8) -> [__m256; 4] {
        // SAFETY: see above.
        unsafe {
            let signed = _mm256_sub_epi8(load_256(codes), _mm256_set1_epi8(peak as i8));
            let (low, high) = (_mm256_castsi256_si128(signed), _mm256_extracti128_si256::<1>(signed));
            let (second, fourth) = (_mm_unpackhi_epi64(low, low), _mm_unpackhi_epi64(high, high));
            [from_bytes(low), from_bytes(second), from_bytes(high), from_bytes(fourth)]
        }
    }

    #[inline(always)]
    fn coded(self, [a, b, c, d]: [__m256; 4], peak: u8, codes: &mut [u8; UNIT]) {
        // SAFETY: see above.
        unsafe {
            let (low, high) = (to_words(a, b), to_words(c, d));
            let signed = packed_in_order(_mm256_packs_epi16(low, high));
            store_256(codes, _mm256_add_epi8(signed, _mm256_set1_epi8(peak as i8)));
        }
    }

    #[inline(always)]
    fn table<E: Element, const WIDE: bool>(self, peak: u8, step: f32) -> Avx2Table {
        let mut elements = [0; 2 * UNIT];
        const MAGNITUDES: [u8; UNIT] = [
            0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
        ];
        let values = self.times(self.signed(&MAGNITUDES, 0), self.splat(step));
        if E::BYTES == 1 {
            let (low, high) = elements.split_at_mut(UNIT);
            self.write::<E>(values, low);
            if WIDE {
                // Magnitudes as the codes of a peak of 16 below zero.
                self.write::<E>(self.times(self.signed(&MAGNITUDES, 0u8.wrapping_sub(16)), self.splat(step)), high);
            }
            let (low, high) = (load_256(low), load_256(high));
            // SAFETY: see above.
            return unsafe { Avx2Table { low, high, peak: _mm256_set1_epi8(peak as i8) } };
        }
        self.write::<E>(values, &mut elements);
        // SAFETY: see above.
        unsafe {
            // Each half of the elements is the same 16: their low bytes to one vector, their high ones to another.
            let apart = _mm256_setr_epi8(
                0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13, 15, 0, 2, 4, 6, 8, 10, 12, 14, 1, 3, 5, 7, 9, 11, 13,
                15,
            );
            let first = _mm256_shuffle_epi8(load_256(&elements[..UNIT]), apart);
            let both = _mm256_permute4x64_epi64::<0b11_01_10_00>(first);
            Avx2Table {
                low: _mm256_permute2x128_si256::<0>(both, both),
                high: _mm256_permute2x128_si256::<0x11>(both, both),
                peak: _mm256_set1_epi8(peak as i8),
            }
        }
    }

    #[inline(always)]
    fn look_up<E: Element, const WIDE: bool>(self, codes: &[u8; UNIT], table: &Avx2Table, elements: &mut [u8]) {
        if E::BYTES == 1 {
            // SAFETY: see above.
            unsafe {
                let signed = _mm256_sub_epi8(load_256(codes), table.peak);
                let magnitude = _mm256_abs_epi8(signed);
                let sign = _mm256_and_si256(signed, _mm256_set1_epi8(-128));
                let mut found = _mm256_shuffle_epi8(table.low, magnitude);
                if WIDE {
                    // Magnitudes of 16 and more, by the bit that says so.
                    let second = _mm256_shuffle_epi8(table.high, magnitude);
                    found = _mm256_blendv_epi8(found, second, _mm256_slli_epi16::<3>(magnitude));
                }
                store_256(elements, _mm256_xor_si256(found, sign));
            }
            return;
        }
        // SAFETY: see above.
        unsafe {
            // Interleaving works within halves: codes 0..8, 16..24 and 8..16, 24..32.
            let signed = _mm256_sub_epi8(in_order(load_256(codes)), table.peak);
            let magnitude = _mm256_abs_epi8(signed);
            let sign = _mm256_and_si256(signed, _mm256_set1_epi8(-128));
            let low = _mm256_shuffle_epi8(table.low, magnitude);
            let high = _mm256_xor_si256(_mm256_shuffle_epi8(table.high, magnitude), sign);
            let (first, second) = elements.split_at_mut(UNIT);
            store_256(first, _mm256_unpacklo_epi8(low, high));
            store_256(second, _mm256_unpackhi_epi8(low, high));
        }
    }

    #[inline(always)]
    fn unpack(self, pairs: &[u8; UNIT / 2]) -> [u8; UNIT] {
        // SAFETY: see above; an array of bytes has the bits of a vector.
        unsafe {
            let pairs = _mm256_cvtepu8_epi16(load_128(pairs));
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
            let packed = in_order(_mm256_packus_epi16(pairs, pairs));
            transmute::<__m128i, [u8; UNIT / 2]>(_mm256_castsi256_si128(packed))
        }
    }
}

/// bf16 in the low halves of 32 bits.
#[inline]
#[target_feature(enable = "avx2")]
fn rounded(values: __m256) -> __m256i {
    let bits = _mm256_castps_si256(values);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let up = _mm256_add_epi32(_mm256_set1_epi32(0x7fff), odd);
    _mm256_srli_epi32::<16>(_mm256_add_epi32(bits, up))
}

/// Exchanges the middle quarters.
#[inline]
#[target_feature(enable = "avx2")]
fn in_order(vector: __m256i) -> __m256i {
    _mm256_permute4x64_epi64::<0b11_01_10_00>(vector)
}

#[inline]
#[target_feature(enable = "avx2")]
fn from_bf16(elements: &[u8]) -> __m256 {
    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(load_128(elements))))
}

#[inline]
#[target_feature(enable = "f16c")]
fn from_f16(elements: &[u8]) -> __m256 {
    _mm256_cvtph_ps(load_128(elements))
}

#[inline]
#[target_feature(enable = "avx2")]
fn from_f32(elements: &[u8]) -> __m256 {
    _mm256_castsi256_ps(load_256(elements))
}

/// As f16, whose bias is 8 more.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn from_e4m3(elements: &[u8]) -> [__m256; 2] {
    // The sign, a second one in the place of the highest bit of the exponent, exponent and mantissa.
    let words = _mm256_slli_epi16::<7>(_mm256_cvtepi8_epi16(load_128(elements)));
    let [low, high] = from_f16_words(_mm256_and_si256(words, _mm256_set1_epi16(!0x4000)));
    let bias = _mm256_set1_ps(256.0);
    [_mm256_mul_ps(low, bias), _mm256_mul_ps(high, bias)]
}

/// As f16, whose high bytes they are.
#[inline]
#[target_feature(enable = "avx2,f16c")]
fn from_e5m2(elements: &[u8]) -> [__m256; 2] {
    from_f16_words(_mm256_slli_epi16::<8>(_mm256_cvtepu8_epi16(load_128(elements))))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn from_f16_words(words: __m256i) -> [__m256; 2] {
    [_mm256_cvtph_ps(_mm256_castsi256_si128(words)), _mm256_cvtph_ps(_mm256_extracti128_si256::<1>(words))]
}

/// Rounds as [`crate::kernel::number`] does: `DROPPED` bits of the mantissa are dropped.
#[inline]
#[target_feature(enable = "avx2")]
fn to_eight_bits<const DROPPED: i32>([a, b, c, d]: [__m256; 4], least: u32) -> __m256i {
    let low = _mm256_packus_epi32(narrowed::<DROPPED>(a, least), narrowed::<DROPPED>(b, least));
    let high = _mm256_packus_epi32(narrowed::<DROPPED>(c, least), narrowed::<DROPPED>(d, least));
    packed_in_order(_mm256_packus_epi16(low, high))
}

#[inline]
#[target_feature(enable = "avx2")]
fn narrowed<const DROPPED: i32>(values: __m256, least: u32) -> __m256i {
    let bits = _mm256_castps_si256(values);
    let magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fff_ffff));
    let least = _mm256_set1_epi32(least as i32);
    let binade = _mm256_max_epu32(_mm256_and_si256(magnitude, _mm256_set1_epi32(0x7f80_0000)), least);
    let magic = _mm256_add_epi32(binade, _mm256_set1_epi32(DROPPED << 23));
    let sum = _mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_castsi256_ps(magic));
    let significand = _mm256_sub_epi32(_mm256_castps_si256(sum), magic);
    let exponent = _mm256_srli_epi32::<DROPPED>(_mm256_sub_epi32(binade, least));
    let sign = _mm256_and_si256(_mm256_srli_epi32::<24>(bits), _mm256_set1_epi32(0x80));
    _mm256_add_epi32(significand, _mm256_or_si256(exponent, sign))
}

/// Packing twice works within each half: words of four bytes come out as 0 2 4 6 1 3 5 7.
#[inline]
#[target_feature(enable = "avx2")]
fn packed_in_order(packed: __m256i) -> __m256i {
    _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7))
}

#[inline]
#[target_feature(enable = "avx2,f16c")]
fn to_f16(a: __m256, b: __m256) -> __m256i {
    _mm256_set_m128i(_mm256_cvtps_ph::<NEAREST>(b), _mm256_cvtps_ph::<NEAREST>(a))
}

/// The lowest eight of some signed bytes.
#[inline]
#[target_feature(enable = "avx2")]
fn from_bytes(signed: __m128i) -> __m256 {
    _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(signed))
}

/// Rounded to nearest even and packed within each half.
#[inline]
#[target_feature(enable = "avx2")]
fn to_words(a: __m256, b: __m256) -> __m256i {
    _mm256_packs_epi32(_mm256_cvtps_epi32(a), _mm256_cvtps_epi32(b))
}

#[inline(always)]
fn halves(bytes: &[u8]) -> [&[u8]; 2] {
    let (low, high) = bytes.split_at(bytes.len() / 2);
    [low, high]
}

#[inline(always)]
fn joined([a, b]: [__m256; 2], [c, d]: [__m256; 2]) -> [__m256; 4] {
    [a, b, c, d]
}

#[inline(always)]
fn halves_mut(bytes: &mut [u8]) -> [&mut [u8]; 2] {
    let (low, high) = bytes.split_at_mut(bytes.len() / 2);
    [low, high]
}

/// Panics unless there are 16 bytes.
#[inline(always)]
fn load_128(bytes: &[u8]) -> __m128i {
    let bytes: [u8; 16] = bytes.try_into().expect("16 bytes");
    // SAFETY: an array of bytes has the bits of a vector; it is a copy, so nothing aliases it.
    unsafe { transmute(bytes) }
}

/// Panics unless there are 32 bytes.
#[inline(always)]
fn load_256(bytes: &[u8]) -> __m256i {
    let bytes: [u8; 32] = bytes.try_into().expect("32 bytes");
    // SAFETY: as for `load_128`.
    unsafe { transmute(bytes) }
}

/// Panics unless there are 32 bytes.
#[inline(always)]
fn store_256(bytes: &mut [u8], vector: __m256i) {
    // SAFETY: a vector has the bits of an array of bytes; it is a copy, so nothing aliases it.
    bytes.copy_from_slice(&unsafe { transmute::<__m256i, [u8; 32]>(vector) });
}
