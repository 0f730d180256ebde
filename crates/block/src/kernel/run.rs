//! What the kernels do with one run of elements. A run is contiguous in codes and in the tile; elements are bytes here,
//! [`Element::BYTES`] of them for each code.
//!
//! Few levels mean few elements: up to [`TABLE_PEAK_MAX`] and in one or two bytes, all elements of a step are computed
//! once, into a table that fits registers, and codes are only looked up. Else each code is multiplied by its step.

use crate::kernel::lanes::{BYTE_TABLE_PEAK_MAX, Lanes, TABLE_PEAK_MAX, UNIT};
use crate::kernel::number::{self, Element};

/// The elements that codes of one step stand for.
pub(crate) trait Levels<L: Lanes>: Copy {
    fn new<E: Element>(lanes: L, peak: u8, step: f32) -> Self;
    fn step(&self) -> Step;
    /// Elements of a unit of codes.
    fn look_up<E: Element>(&self, lanes: L, codes: &[u8; UNIT], elements: &mut [u8]);
}

/// Codes are multiplied.
#[derive(Clone, Copy)]
pub(crate) struct Step {
    peak: u8,
    step: f32,
}

/// Codes are looked up: for elements of one or two bytes and peaks up to [`TABLE_PEAK_MAX`], or up to
/// [`widest_table`].
#[derive(Clone, Copy)]
pub(crate) struct LookupTable<L: Lanes, const WIDE: bool> {
    step: Step,
    table: L::Table,
}

/// The largest peak whose elements fit a wide table; 0: elements that have none.
#[inline(always)]
pub(crate) fn widest_table<E: Element, L: Lanes>() -> u8 {
    match E::BYTES {
        1 => BYTE_TABLE_PEAK_MAX,
        2 => L::WIDE_TABLE_PEAK_MAX,
        _ => 0,
    }
}

impl<L: Lanes> Levels<L> for Step {
    #[inline(always)]
    fn new<E: Element>(_: L, peak: u8, step: f32) -> Self {
        Self { peak, step }
    }

    #[inline(always)]
    fn step(&self) -> Step {
        *self
    }

    #[inline(always)]
    fn look_up<E: Element>(&self, lanes: L, codes: &[u8; UNIT], elements: &mut [u8]) {
        value::<E, L>(lanes, codes, self.peak, lanes.splat(self.step), elements);
    }
}

impl<L: Lanes, const WIDE: bool> Levels<L> for LookupTable<L, WIDE> {
    #[inline(always)]
    fn new<E: Element>(lanes: L, peak: u8, step: f32) -> Self {
        debug_assert!(peak <= widest_table::<E, L>() && (WIDE || peak <= TABLE_PEAK_MAX));
        Self { step: Step { peak, step }, table: lanes.table::<E, WIDE>(peak, step) }
    }

    #[inline(always)]
    fn step(&self) -> Step {
        self.step
    }

    #[inline(always)]
    fn look_up<E: Element>(&self, lanes: L, codes: &[u8; UNIT], elements: &mut [u8]) {
        lanes.look_up::<E, WIDE>(codes, &self.table, elements);
    }
}

/// Elements of codes of one step.
#[inline(always)]
pub(crate) fn values<E: Element, L: Lanes, V: Levels<L>>(lanes: L, codes: &[u8], levels: &V, elements: &mut [u8]) {
    if codes.len() < UNIT {
        return short_values::<E>(codes, levels.step(), elements);
    }
    for (codes, elements) in units(codes).zip(element_units_mut::<E>(elements)) {
        levels.look_up::<E>(lanes, codes, elements);
    }
    if rest(codes.len()) {
        levels.look_up::<E>(lanes, last(codes), last_elements_mut::<E>(elements));
    }
}

/// [`values`] of two codes a byte; elements are an even number.
#[inline(always)]
pub(crate) fn packed_values<E: Element, L: Lanes, V: Levels<L>>(
    lanes: L,
    pairs: &[u8],
    levels: &V,
    elements: &mut [u8],
) {
    if pairs.len() < UNIT / 2 {
        let mut codes = [0; UNIT];
        unpack(pairs, &mut codes);
        return short_values::<E>(&codes[..2 * pairs.len()], levels.step(), elements);
    }
    for (pairs, elements) in units(pairs).zip(element_units_mut::<E>(elements)) {
        levels.look_up::<E>(lanes, &lanes.unpack(pairs), elements);
    }
    if rest(pairs.len() * 2) {
        levels.look_up::<E>(lanes, &lanes.unpack(last(pairs)), last_elements_mut::<E>(elements));
    }
}

/// Less than a unit: rare, and kept out of the way of what is not.
#[cold]
#[inline(never)]
fn short_values<E: Element>(codes: &[u8], Step { peak, step }: Step, elements: &mut [u8]) {
    for (element, &code) in E::cast_mut(elements).iter_mut().zip(codes) {
        *element = E::write(number::value(code, peak.into(), step));
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
        for ((code, &step), element) in codes.chunks(1).zip(steps).zip(elements.chunks_exact_mut(E::BYTES)) {
            short_values::<E>(code, Step { peak, step }, element);
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
        return short_codes::<E>(elements, peak, inverse, codes);
    }
    let inverse = lanes.splat(inverse);
    for (elements, codes) in element_units::<E>(elements).zip(units_mut(codes)) {
        code::<E, L>(lanes, elements, peak, inverse, codes);
    }
    if rest(codes.len()) {
        code::<E, L>(lanes, last_elements::<E>(elements), peak, inverse, last_mut(codes));
    }
}

#[cold]
#[inline(never)]
fn short_codes<E: Element>(elements: &[u8], peak: u8, inverse: f32, codes: &mut [u8]) {
    for (slot, &element) in codes.iter_mut().zip(E::cast(elements)) {
        *slot = number::code(E::read(element), inverse, peak.into());
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
        for ((element, &inverse), code) in elements.chunks_exact(E::BYTES).zip(inverses).zip(codes.chunks_mut(1)) {
            short_codes::<E>(element, peak, inverse, code);
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
