//! Timing: variants of one thing in turns, so that a busy moment of the machine meets all of them alike, and each as a
//! ratio to the first of the same turn.

use bench::Sample;
use std::time::Instant;

/// One thing to time.
pub(crate) struct Variant<'a> {
    pub(crate) bytes: usize,
    pub(crate) run: Box<dyn FnMut(usize) + 'a>,
}

impl<'a> Variant<'a> {
    /// `run` gets the number of its call, to choose a slot of a ring by.
    pub(crate) fn new(bytes: usize, run: impl FnMut(usize) + 'a) -> Self {
        Self { bytes, run: Box::new(run) }
    }
}

/// How fast a variant was.
#[derive(Clone, Default)]
pub(crate) struct Speed {
    /// GB/s of its bytes.
    pub(crate) gigabytes: Sample,
    /// The first variant's time over this one's, turn by turn.
    pub(crate) ratio: Sample,
}

/// Where the bytes are when a call starts.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Each call is made twice and the second one timed.
    Cache,
    /// Each call takes the next slot of a ring that no cache holds.
    Memory,
}

/// Times all variants in `turns` turns, after a tenth as many to warm up.
pub(crate) fn compare<const N: usize>(place: Place, turns: usize, mut variants: [Variant<'_>; N]) -> [Speed; N] {
    let mut speeds = std::array::from_fn(|_| Speed::default());
    let warm_up = turns.div_ceil(10);
    for turn in 0..warm_up + turns {
        let mut first = 0.0;
        for (index, (variant, speed)) in variants.iter_mut().zip(&mut speeds).enumerate() {
            if place == Place::Cache {
                (variant.run)(turn);
            }
            let start = Instant::now();
            (variant.run)(turn);
            let seconds = start.elapsed().as_secs_f64();
            if index == 0 {
                first = seconds;
            }
            if turn >= warm_up {
                speed.gigabytes.push(variant.bytes as f64 / seconds / 1e9);
                speed.ratio.push(first / seconds);
            }
        }
    }
    speeds
}

/// What this crate was told to run: fewer turns for a look, more for figures.
#[derive(Clone, Copy)]
pub(crate) struct Turns {
    pub(crate) quick: bool,
}

impl Turns {
    pub(crate) fn of(self, full: usize) -> usize {
        if self.quick { full.div_ceil(20) } else { full }
    }
}
