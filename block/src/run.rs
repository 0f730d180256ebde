//! What the kernels do with one run of elements. A run is contiguous in codes and in the tile; elements are bytes here,
//! [`Element::BYTES`] of them for each code.
//!
//! Few levels mean few elements: up to [`TABLE_PEAK_MAX`] and in 16 bits, all elements of a step are computed once, into a
//! table that fits registers, and codes are only looked up. Else each code is multiplied by its step.

use crate::geometry::ElementType;
use crate::lanes::{Lanes, TABLE_PEAK_MAX, UNIT};
use crate::number::{self, Element};

/// The step of some codes, and their table if they have one.
#[derive(Clone, Copy)]
pub(crate) struct Levels<L: Lanes> {
    peak: u8,
    step: f32,
    table: Option<L::Table>,
}

impl<L: Lanes> Levels<L> {
    #[inline(always)]
    pub(crate) fn new<E: Element>(lanes: L, peak: u8, step: f32) -> Self {
        // Not `bool::then`: what a closure does may be compiled apart, without the instruction set.
        let tabled = E::TYPE != ElementType::F32 && peak <= TABLE_PEAK_MAX;
        let table = if tabled { Some(lanes.table::<E>(peak, step)) } else { None };
        Self { peak, step, table }
    }
}

/// Elements of codes of one step.
#[inline(always)]
pub(crate) fn values<E: Element, L: Lanes>(lanes: L, codes: &[u8], levels: &Levels<L>, elements: &mut [u8]) {
    let &Levels { peak, step, ref table } = levels;
    if codes.len() < UNIT {
        for (element, &code) in E::cast_mut(elements).iter_mut().zip(codes) {
            *element = E::write(number::value(code, peak.into(), step));
        }
    } else if let Some(table) = table {
        for (codes, elements) in units(codes).zip(element_units_mut::<E>(elements)) {
            lanes.look_up(codes, table, elements);
        }
        if rest(codes.len()) {
            lanes.look_up(last(codes), table, last_elements_mut::<E>(elements));
        }
    } else {
        let step = lanes.splat(step);
        for (codes, elements) in units(codes).zip(element_units_mut::<E>(elements)) {
            value::<E, L>(lanes, codes, peak, step, elements);
        }
        if rest(codes.len()) {
            value::<E, L>(lanes, last(codes), peak, step, last_elements_mut::<E>(elements));
        }
    }
}

/// [`values`] of two codes a byte; elements are an even number.
#[inline(always)]
pub(crate) fn packed_values<E: Element, L: Lanes>(lanes: L, pairs: &[u8], levels: &Levels<L>, elements: &mut [u8]) {
    let &Levels { peak, step, ref table } = levels;
    if pairs.len() < UNIT / 2 {
        let mut codes = [0; UNIT];
        unpack(pairs, &mut codes);
        values::<E, L>(lanes, &codes[..2 * pairs.len()], levels, elements);
    } else if let Some(table) = table {
        for (pairs, elements) in units(pairs).zip(element_units_mut::<E>(elements)) {
            lanes.look_up(&lanes.unpack(pairs), table, elements);
        }
        if rest(pairs.len() * 2) {
            lanes.look_up(&lanes.unpack(last(pairs)), table, last_elements_mut::<E>(elements));
        }
    } else {
        let step = lanes.splat(step);
        for (pairs, elements) in units(pairs).zip(element_units_mut::<E>(elements)) {
            value::<E, L>(lanes, &lanes.unpack(pairs), peak, step, elements);
        }
        if rest(pairs.len() * 2) {
            value::<E, L>(lanes, &lanes.unpack(last(pairs)), peak, step, last_elements_mut::<E>(elements));
        }
    }
}

/// Elements of codes that have a step each.
#[inline(always)]
pub(crate) fn channel_values<E: Element, L: Lanes>(
    lanes: L,
    codes: &[u8],
    peak: u8,
    steps: &[f32],
    elements: &mut [u8],
) {
    if codes.len() < UNIT {
        for ((element, &code), &step) in E::cast_mut(elements).iter_mut().zip(codes).zip(steps) {
            *element = E::write(number::value(code, peak.into(), step));
        }
        return;
    }
    for ((codes, steps), elements) in units(codes).zip(units(steps)).zip(element_units_mut::<E>(elements)) {
        value::<E, L>(lanes, codes, peak, lanes.load(steps), elements);
    }
    if rest(codes.len()) {
        value::<E, L>(lanes, last(codes), peak, lanes.load(last(steps)), last_elements_mut::<E>(elements));
    }
}

/// Codes of elements of one step.
#[inline(always)]
pub(crate) fn codes<E: Element, L: Lanes>(lanes: L, elements: &[u8], peak: u8, inverse: f32, codes: &mut [u8]) {
    if codes.len() < UNIT {
        for (slot, &element) in codes.iter_mut().zip(E::cast(elements)) {
            *slot = number::code(E::read(element), inverse, peak.into());
        }
        return;
    }
    let inverse = lanes.splat(inverse);
    for (elements, codes) in element_units::<E>(elements).zip(units_mut(codes)) {
        code::<E, L>(lanes, elements, peak, inverse, codes);
    }
    if rest(codes.len()) {
        code::<E, L>(lanes, last_elements::<E>(elements), peak, inverse, last_mut(codes));
    }
}

/// Codes of elements that have a step each.
#[inline(always)]
pub(crate) fn channel_codes<E: Element, L: Lanes>(
    lanes: L,
    elements: &[u8],
    peak: u8,
    inverses: &[f32],
    codes: &mut [u8],
) {
    if codes.len() < UNIT {
        for ((slot, &element), &inverse) in codes.iter_mut().zip(E::cast(elements)).zip(inverses) {
            *slot = number::code(E::read(element), inverse, peak.into());
        }
        return;
    }
    for ((elements, inverses), codes) in element_units::<E>(elements).zip(units(inverses)).zip(units_mut(codes)) {
        code::<E, L>(lanes, elements, peak, lanes.load(inverses), codes);
    }
    if rest(codes.len()) {
        code::<E, L>(lanes, last_elements::<E>(elements), peak, lanes.load(last(inverses)), last_mut(codes));
    }
}

#[inline(always)]
fn value<E: Element, L: Lanes>(lanes: L, codes: &[u8; UNIT], peak: u8, steps: L::Floats, elements: &mut [u8]) {
    lanes.write::<E>(lanes.times(lanes.signed(codes, peak), steps), elements);
}

#[inline(always)]
fn code<E: Element, L: Lanes>(lanes: L, elements: &[u8], peak: u8, inverses: L::Floats, codes: &mut [u8; UNIT]) {
    lanes.coded(lanes.times(lanes.read::<E>(elements), inverses), peak, codes);
}

// A run's units: whole ones from its start, and where they leave a rest the run's last one, which overlaps them.

#[inline(always)]
fn rest(codes: usize) -> bool {
    !codes.is_multiple_of(UNIT)
}

#[inline(always)]
fn units<T, const N: usize>(run: &[T]) -> impl Iterator<Item = &[T; N]> {
    run.as_chunks().0.iter()
}

#[inline(always)]
fn units_mut(run: &mut [u8]) -> impl Iterator<Item = &mut [u8; UNIT]> {
    run.as_chunks_mut().0.iter_mut()
}

#[inline(always)]
fn element_units<E: Element>(run: &[u8]) -> impl Iterator<Item = &[u8]> {
    run.chunks_exact(UNIT * E::BYTES)
}

#[inline(always)]
fn element_units_mut<E: Element>(run: &mut [u8]) -> impl Iterator<Item = &mut [u8]> {
    run.chunks_exact_mut(UNIT * E::BYTES)
}

#[inline(always)]
fn last<T, const N: usize>(run: &[T]) -> &[T; N] {
    run.last_chunk().expect("at least a unit")
}

#[inline(always)]
fn last_mut(run: &mut [u8]) -> &mut [u8; UNIT] {
    run.last_chunk_mut().expect("at least a unit")
}

#[inline(always)]
fn last_elements<E: Element>(run: &[u8]) -> &[u8] {
    &run[run.len() - UNIT * E::BYTES..]
}

#[inline(always)]
fn last_elements_mut<E: Element>(run: &mut [u8]) -> &mut [u8] {
    let first = run.len() - UNIT * E::BYTES;
    &mut run[first..]
}

/// Two codes a byte to one code a byte.
#[inline(always)]
pub(crate) fn unpack(pairs: &[u8], codes: &mut [u8]) {
    for (codes, &pair) in codes.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
        *codes = [pair & 15, pair >> 4];
    }
}
