//! What an instruction set does with some elements at a time. `run` says what for; `simd` has those that we know.

use crate::kernel::number::{self, Element};
use crate::kernel::run::unpack;

/// Elements that are worked on at a time.
pub(crate) const UNIT: usize = 32;
/// The largest peak of a table that every instruction set has: of 16 magnitudes, or of 31 elements.
pub(crate) const TABLE_PEAK_MAX: u8 = 15;
/// The largest peak of a wide table of elements of one byte, which every instruction set has, too.
pub(crate) const BYTE_TABLE_PEAK_MAX: u8 = 31;

/// An instruction set. A value of such a type says that this processor has it. Elements and codes are those of a unit.
pub(crate) trait Lanes: Copy {
    type Floats: Copy;
    /// The elements, of one or two bytes, of all codes of one step.
    type Table: Copy;
    /// The largest peak of a wide table of elements of two bytes; [`TABLE_PEAK_MAX`] without.
    const WIDE_TABLE_PEAK_MAX: u8 = TABLE_PEAK_MAX;

    fn read<E: Element>(self, elements: &[u8]) -> Self::Floats;
    /// Rounds to nearest even. Values are the quantizer's: finite, and zero or at least a step.
    fn write<E: Element>(self, values: Self::Floats, elements: &mut [u8]);
    fn load(self, values: &[f32; UNIT]) -> Self::Floats;
    fn splat(self, value: f32) -> Self::Floats;
    fn times(self, a: Self::Floats, b: Self::Floats) -> Self::Floats;
    /// Codes less the peak.
    fn signed(self, codes: &[u8; UNIT], peak: u8) -> Self::Floats;
    /// Values of at most the peak, rounded to nearest even, plus the peak.
    fn coded(self, values: Self::Floats, peak: u8, codes: &mut [u8; UNIT]);
    /// Makes the table of a step, for peaks up to [`TABLE_PEAK_MAX`], or `WIDE` ones.
    fn table<E: Element, const WIDE: bool>(self, peak: u8, step: f32) -> Self::Table;
    fn look_up<E: Element, const WIDE: bool>(self, codes: &[u8; UNIT], table: &Self::Table, elements: &mut [u8]);
    /// Two codes a byte to one code a byte.
    fn unpack(self, pairs: &[u8; UNIT / 2]) -> [u8; UNIT];
    /// One code a byte, below 16, to two codes a byte.
    fn pack(self, codes: &[u8; UNIT]) -> [u8; UNIT / 2];
}

/// No instruction set in particular: what the compiler makes of plain loops.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Plain;

impl Lanes for Plain {
    type Floats = [f32; UNIT];
    /// One element after the other.
    type Table = [u8; 2 * UNIT];

    #[inline(always)]
    fn read<E: Element>(self, elements: &[u8]) -> [f32; UNIT] {
        let elements = E::cast(elements);
        std::array::from_fn(|i| E::read(elements[i]))
    }

    #[inline(always)]
    fn write<E: Element>(self, values: [f32; UNIT], elements: &mut [u8]) {
        for (element, value) in E::cast_mut(elements).iter_mut().zip(values) {
            *element = E::write(value);
        }
    }

    #[inline(always)]
    fn load(self, values: &[f32; UNIT]) -> [f32; UNIT] {
        *values
    }

    #[inline(always)]
    fn splat(self, value: f32) -> [f32; UNIT] {
        [value; UNIT]
    }

    #[inline(always)]
    fn times(self, a: [f32; UNIT], b: [f32; UNIT]) -> [f32; UNIT] {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn signed(self, codes: &[u8; UNIT], peak: u8) -> [f32; UNIT] {
        std::array::from_fn(|i| number::value(codes[i], peak.into(), 1.0))
    }

    #[inline(always)]
    fn coded(self, values: [f32; UNIT], peak: u8, codes: &mut [u8; UNIT]) {
        for (slot, value) in codes.iter_mut().zip(values) {
            *slot = number::code(value, 1.0, peak.into());
        }
    }

    #[inline(always)]
    fn table<E: Element, const WIDE: bool>(self, peak: u8, step: f32) -> [u8; 2 * UNIT] {
        let mut table = [0; 2 * UNIT];
        for (element, code) in E::cast_mut(&mut table).iter_mut().zip(0..) {
            *element = E::write(number::value(code, peak.into(), step));
        }
        table
    }

    #[inline(always)]
    fn look_up<E: Element, const WIDE: bool>(self, codes: &[u8; UNIT], table: &[u8; 2 * UNIT], elements: &mut [u8]) {
        let table = E::cast(table);
        for (element, &code) in E::cast_mut(elements).iter_mut().zip(codes) {
            *element = table[code as usize % table.len()];
        }
    }

    #[inline(always)]
    fn unpack(self, pairs: &[u8; UNIT / 2]) -> [u8; UNIT] {
        let mut codes = [0; UNIT];
        unpack(pairs, &mut codes);
        codes
    }

    #[inline(always)]
    fn pack(self, codes: &[u8; UNIT]) -> [u8; UNIT / 2] {
        std::array::from_fn(|i| codes[2 * i] | codes[2 * i + 1] << 4)
    }
}
