//! Learns how soon chunks come back, from those that did and those that did not, and tells how many uses to expect of
//! a chunk.
//!
//! **What is counted.** Chunks are classed by the number of their uses, to the power of two, and those of one use by
//! whether they follow a chunk that was known before. For each class and each age since the last use (two buckets to an
//! octave) it is counted how many came back at that age, and how long chunks were waited for at that age. The first
//! divided by the second is the hazard. No chunk has to be waited for to the end: one that leaves early was waited for
//! less (Kaplan and Meier, 1958). Old counts fade.
//!
//! **What is told.** From an age on, the most returns for the time waited, over all times that one might wait: Gittins'
//! index (1979), as for a bandit that pays once. It is the hit density of LHD (Beckmann et al., NSDI 2018), except that
//! the time after which a chunk is given up is free and not left to the policy. It needs no half-life: that a session
//! has paused for longer than sessions pause, or that a document is popular all day, is in the counts.

/// Unit of the times here, in milliseconds.
pub(super) const TICK_MS: u64 = 16;
/// Number of buckets of ages: two to an octave.
const BUCKETS: usize = 63;
/// Classes: the one of a first use behind nothing known, one of a first use behind something known, then octaves of
/// uses.
const CLASSES: usize = 1 + LEVELS;
const LEVELS: usize = 8;
const UNKNOWN: u8 = 0;
/// Uses after which the rates of the next class are computed anew.
const UPDATE_USES: u32 = 32;
/// Share of a class's counts that stays when its rates are computed anew: counts reach back some 70 000 uses.
const FADE: f64 = 1.0 - 1.0 / 256.0;
/// Returns for each bucket that are believed in before any was seen ...
const PRIOR_RETURNS: f64 = 0.5;
/// ... at a rate of this many, times the level of uses, for each age that goes by.
const PRIOR_RATE: f64 = 0.1;
/// Age in ticks below which all ages are one to the prior.
const PRIOR_AGE: f64 = 64.0;
/// Weight of a bucket's neighbours beside it.
const NEIGHBOUR: f64 = 0.5;

/// The uses of one chunk, as far as they matter. Times are in ticks.
#[derive(Clone, Copy, Debug)]
pub(super) struct History {
    last: u32,
    /// Time up to which it was waited for.
    seen: u32,
    uses: u16,
    /// Whether a chunk of one use follows a chunk that was known, or an earlier life kept it.
    follows: bool,
}

impl History {
    /// Makes the history of a first use, maybe behind another chunk.
    pub(super) fn first(now: u32, before: Option<History>) -> Self {
        let follows = before.is_some_and(|before| before.class() != UNKNOWN);
        Self { last: now, seen: now, uses: 1, follows }
    }

    /// Makes the history of a chunk that an earlier life kept, used last at this time.
    pub(super) fn kept(last: u32) -> Self {
        Self { last, seen: last, uses: 1, follows: true }
    }

    fn class(&self) -> u8 {
        match (self.uses, self.follows) {
            (1, false) => UNKNOWN,
            (uses, _) => 1 + (uses.ilog2() as u8).min(LEVELS as u8 - 1),
        }
    }
}

/// Counts and rates of one class.
#[derive(Debug)]
struct Class {
    returns: [f64; BUCKETS],
    /// Chunks times ticks.
    waited: [f64; BUCKETS],
    /// Returns for each tick, at best: what is told of the class.
    told: [f32; BUCKETS],
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Returns {
    classes: Box<[Class; CLASSES]>,
    uses: u32,
    /// Class whose rates are computed anew next.
    turn: usize,
}

impl Returns {
    pub(super) const MEMORY_BYTES: usize = size_of::<[Class; CLASSES]>();

    pub(super) fn new() -> Self {
        let class = |_| Class { returns: [0.0; BUCKETS], waited: [0.0; BUCKETS], told: [0.0; BUCKETS] };
        let mut classes = Box::new(std::array::from_fn(class));
        classes.iter_mut().enumerate().for_each(|(level, class)| class.tell(level));
        Self { classes, uses: 0, turn: 0 }
    }

    /// Counts that a chunk came back.
    pub(super) fn used(&mut self, history: &mut History, now: u32) {
        self.waited(history, now);
        self.classes[usize::from(history.class())].returns[bucket(now.saturating_sub(history.last))] += 1.0;
        (history.last, history.uses) = (now, history.uses.saturating_add(1));
        self.uses += 1;
        if self.uses == UPDATE_USES {
            let class = &mut self.classes[self.turn];
            class.returns.iter_mut().chain(&mut class.waited).for_each(|count| *count *= FADE);
            class.tell(self.turn);
            (self.uses, self.turn) = (0, (self.turn + 1) % CLASSES);
        }
    }

    /// Counts that a chunk has not come back until now.
    pub(super) fn waited(&mut self, history: &mut History, now: u32) {
        let now = now.max(history.seen);
        let (from, to) = (history.seen - history.last, now - history.last);
        let (first, last) = (bucket(from), bucket(to));
        let waited = &mut self.classes[usize::from(history.class())].waited[first..=last];
        for (at, waited) in (first..).zip(waited) {
            *waited += f64::from(to).min(edge(at + 1)) - f64::from(from).max(edge(at));
        }
        history.seen = now;
    }

    /// Returns the uses to expect of a chunk for each tick that it is kept, if it is kept as long as that is best.
    pub(super) fn rate(&self, history: &History, now: u32) -> f64 {
        let age = now.saturating_sub(history.last);
        self.classes[usize::from(history.class())].told[bucket(age)].into()
    }
}

impl Class {
    /// Computes what is told from what is counted.
    fn tell(&mut self, level: usize) {
        /// A stretch of buckets, for one chunk at its beginning: returns, ticks waited, share that has not come back.
        #[derive(Clone, Copy)]
        struct Stretch {
            returns: f64,
            waited: f64,
            stay: f64,
            end: usize,
        }
        let mut best = [Stretch { returns: 0.0, waited: 1.0, stay: 1.0, end: BUCKETS }; BUCKETS];
        for at in (0..BUCKETS).rev() {
            let hazard = self.hazard(at, level);
            let comes = -(-hazard * (edge(at + 1) - edge(at))).exp_m1();
            let mut own = Stretch { returns: comes, waited: comes / hazard, stay: 1.0 - comes, end: at + 1 };
            // It pays to wait on as long as what follows is better than what there is.
            while own.end < BUCKETS && best[own.end].returns * own.waited > own.returns * best[own.end].waited {
                let next = best[own.end];
                own.returns += own.stay * next.returns;
                own.waited += own.stay * next.waited;
                (own.stay, own.end) = (own.stay * next.stay, next.end);
            }
            best[at] = own;
            self.told[at] = (own.returns / own.waited) as f32;
        }
    }

    /// Returns for each tick of waiting at an age, with what is believed before anything is seen.
    fn hazard(&self, at: usize, level: usize) -> f64 {
        let rate = PRIOR_RATE * level.max(1) as f64 / ((edge(at) + edge(at + 1)) / 2.0 + PRIOR_AGE);
        let about = |counts: &[f64; BUCKETS]| {
            let neighbours = counts.get(at.wrapping_sub(1)).unwrap_or(&0.0) + counts.get(at + 1).unwrap_or(&0.0);
            counts[at] + NEIGHBOUR * neighbours
        };
        (PRIOR_RETURNS + about(&self.returns)) / (PRIOR_RETURNS / rate + about(&self.waited))
    }
}

/// The bucket of an age: that of 0, then the lower and the upper half of each octave of (age + 1).
fn bucket(age: u32) -> usize {
    let from_one = age.saturating_add(1);
    let octave = from_one.ilog2() as usize;
    match octave {
        0 => 0,
        _ => 2 * octave - 1 + (from_one >> (octave - 1) & 1) as usize,
    }
}

/// Where a bucket begins.
fn edge(bucket: usize) -> f64 {
    let octave = (bucket.div_ceil(2) as f64).exp2();
    match bucket {
        0 => 0.0,
        _ if bucket % 2 == 1 => octave - 1.0,
        _ => 1.5 * octave - 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_lie_in_their_buckets() {
        for age in (0..2000).chain([1 << 20, (1 << 31) - 1, u32::MAX - 1]) {
            let at = bucket(age);
            assert!(at < BUCKETS && edge(at) <= f64::from(age) && f64::from(age) < edge(at + 1), "{age}: {at}");
        }
    }

    #[test]
    fn all_time_that_is_waited_is_counted_once() {
        let mut returns = Returns::new();
        let mut history = History::first(10, None);
        for now in [10, 11, 11, 500, 70_000] {
            returns.waited(&mut history, now);
        }
        let waited: f64 = returns.classes[0].waited.iter().sum();
        assert!((waited - 69_990.0).abs() < 1e-6, "{waited}");
    }

    /// Lets chunks of one class come back after `pause` ticks, or never, and looks at the rate told at some ages.
    fn learned(pause: impl Fn(u32) -> Option<u32>, ages: &[u32]) -> Vec<f64> {
        let mut returns = Returns::new();
        for n in 0..40_000 {
            let mut history = History::first(0, None);
            match pause(n) {
                Some(pause) => returns.used(&mut history, pause),
                None => returns.waited(&mut history, 1_000_000),
            }
        }
        let history = History::first(0, None);
        ages.iter().map(|&age| returns.rate(&history, age)).collect()
    }

    #[test]
    fn a_pause_is_waited_for_and_what_is_late_is_given_up() {
        // Half come back after some 1000 ticks, evenly between 800 and 1200; the others never do.
        let told = learned(|n| n.is_multiple_of(2).then_some(800 + n / 2 % 400), &[0, 700, 3000, 100_000]);
        // At once: half a return for 0.5 x 1000 ticks until then, and 0.5 x 1200 in vain. Buckets are not as sharp.
        assert!((told[0] * 2200.0 - 1.0).abs() < 0.25, "{told:?}");
        // Shortly before it is due it is worth more.
        assert!(told[1] > 1.5 * told[0], "{told:?}");
        assert!(told[2].max(told[3]) < told[0] / 1000.0, "{told:?}");
    }

    #[test]
    fn what_comes_at_random_is_worth_the_same_at_every_age() {
        let geometric = |n: u32| {
            let uniform = (f64::from(n.wrapping_mul(0x9e37_79b9)) + 0.5) / f64::from(u32::MAX);
            Some((-uniform.ln() * 500.0) as u32)
        };
        let told = learned(geometric, &[0, 30, 500, 1500]);
        assert!(told.iter().all(|told| (told * 500.0 - 1.0).abs() < 0.25), "{told:?}");
    }

    #[test]
    fn before_anything_is_seen_young_and_often_used_chunks_are_worth_more() {
        let returns = Returns::new();
        let once = History::first(0, None);
        let often = History { uses: 8, ..once };
        let rates = [0, 1000, 100_000, 10_000_000].map(|now| returns.rate(&once, now));
        assert!(rates.is_sorted_by(|a, b| a > b), "{rates:?}");
        assert!(returns.rate(&often, 1000) > returns.rate(&once, 1000));
    }
}
