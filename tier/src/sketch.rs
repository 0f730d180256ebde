//! What is remembered of chunks that are not held: how often each was used of late, in a few bytes for each, to
//! within some error. A count-min sketch whose counters decay like the frequencies of chunks that are held.
//!
//! A key has [`ROWS`] counters in one cache line. A use adds [`UNIT`] times two to the part of a half-life that has gone
//! by in the present one, and every half-life halves a line when it is next looked at: which is exponential decay, told
//! forwards, to the rounding of a byte. A line that is told of too many uses in one half-life is halved early, so that a
//! scan cannot fill it: it forgets sooner instead of believing that everything was used often. Only the least of a key's counters grow (conservative update).

/// Counters of a key.
const ROWS: usize = 4;
/// What a use at the beginning of a half-life adds.
const UNIT: f64 = 4.0;
const CELLS: usize = 59;
/// Uses after which a line is halved early: with those before and after, half of its counters are then above zero.
const ADDS_MAX: u8 = 6;

#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
struct Line {
    /// Half-lives since time 0 up to which it has been halved.
    epoch: u32,
    /// Uses since it was halved last.
    adds: u8,
    cells: [u8; CELLS],
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Sketch {
    lines: Box<[Line]>,
}

const fn lines_of(keys: usize) -> usize {
    // Two keys held to a line, and some eight more that are not: seldom are all four counters of a key another's.
    keys.div_ceil(2).next_power_of_two()
}

impl Sketch {
    pub(crate) const fn memory_bytes(keys: usize) -> usize {
        lines_of(keys) * size_of::<Line>()
    }

    pub(crate) fn new(keys: usize) -> Self {
        Self { lines: vec![Line { epoch: 0, adds: 0, cells: [0; CELLS] }; lines_of(keys)].into() }
    }

    /// The line of a key, halved up to now, and its counters.
    fn look(&mut self, hash: u64, time: f64) -> (&mut Line, [usize; ROWS]) {
        let at = (hash >> 40) as usize & (self.lines.len() - 1);
        let line = &mut self.lines[at];
        let epoch = time as u32;
        let halvings = epoch.saturating_sub(line.epoch);
        if halvings > 0 {
            (line.epoch, line.adds) = (epoch, 0);
            line.cells.iter_mut().for_each(|cell| *cell = cell.checked_shr(halvings).unwrap_or(0));
        }
        // Four different ones: a start and three odd steps below a quarter of the line.
        let (start, step) = ((hash >> 8) as usize % CELLS, 1 + (hash >> 16) as usize % (CELLS / ROWS));
        (line, std::array::from_fn(|row| (start + row * step) % CELLS))
    }

    /// Counts one use. Time is in half-lives.
    pub(crate) fn add(&mut self, hash: u64, time: f64) {
        let (line, cells) = self.look(hash, time);
        line.adds += 1;
        if line.adds > ADDS_MAX {
            line.adds = 0;
            line.cells.iter_mut().for_each(|cell| *cell /= 2);
        }
        let grown = f64::from(least(line, cells)) + UNIT * time.fract().exp2();
        raise(line, cells, grown);
    }

    /// Remembers a frequency that was kept exactly until now.
    pub(crate) fn keep(&mut self, hash: u64, time: f64, frequency_log2: f64) {
        let (line, cells) = self.look(hash, time);
        let value = UNIT * (frequency_log2 - f64::from(line.epoch)).exp2();
        raise(line, cells, value);
    }

    /// The frequency of a key as [`crate::Worth`] keeps it: log2 of the sum over its uses of two to their time. `None`:
    /// not used for some half-lives.
    pub(crate) fn frequency_log2(&mut self, hash: u64, time: f64) -> Option<f64> {
        let (line, cells) = self.look(hash, time);
        let least = least(line, cells);
        (least > 0).then(|| (f64::from(least) / UNIT).log2() + f64::from(line.epoch))
    }
}

fn least(line: &Line, cells: [usize; ROWS]) -> u8 {
    cells.iter().map(|&cell| line.cells[cell]).min().unwrap_or(0)
}

fn raise(line: &mut Line, cells: [usize; ROWS], value: f64) {
    let value = value.round().clamp(0.0, u8::MAX.into()) as u8;
    cells.iter().for_each(|&cell| line.cells[cell] = line.cells[cell].max(value));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hash(n: u64) -> u64 {
        (n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ (n << 33)
    }

    #[test]
    fn uses_add_up_and_fade_by_half_each_half_life() {
        let mut sketch = Sketch::new(1024);
        (0..4).for_each(|_| sketch.add(hash(1), 5.0));
        let now =
            |sketch: &mut Sketch, time: f64| sketch.frequency_log2(hash(1), time).map(|log2| (log2 - time).exp2());
        assert_eq!(now(&mut sketch, 5.0), Some(4.0));
        assert_eq!(now(&mut sketch, 6.0), Some(2.0));
        assert_eq!(now(&mut sketch, 7.0), Some(1.0));
        assert_eq!(now(&mut sketch, 60.0), None);
        // In the middle of a half-life a use weighs more than one at its beginning, and is as much on its own scale.
        sketch.add(hash(2), 60.5);
        let found = (sketch.frequency_log2(hash(2), 60.5).expect("just used") - 60.5).exp2();
        assert!((found - 1.0).abs() < 0.1, "{found}");
    }

    #[test]
    fn a_scan_of_any_length_makes_few_keys_look_used_twice() {
        let mut sketch = Sketch::new(1000);
        let mut wrong = 0;
        for n in 0..20_000 {
            sketch.add(hash(n), 0.0);
            wrong += usize::from(sketch.frequency_log2(hash(n), 0.0).expect("just used").exp2() > 1.4);
        }
        assert!(wrong < 1600, "{wrong} of 20000 keys look used twice");
    }

    #[test]
    fn a_second_use_soon_after_the_first_is_seen() {
        let mut sketch = Sketch::new(1000);
        let mut seen = 0;
        for n in 0..2000 {
            sketch.add(hash(n), 0.0);
            if n >= 1000 {
                sketch.add(hash(n - 1000), 0.0);
                seen += usize::from(sketch.frequency_log2(hash(n - 1000), 0.0).expect("used").exp2() > 1.4);
            }
        }
        assert!(seen > 950, "{seen} of 1000");
    }
}
