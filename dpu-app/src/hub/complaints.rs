//! Faults that hosts are answered with, said once each: a line when one begins, and a line when it is over.
//!
//! A request that fails is its host's to report; a thousand of them are one fault of this card's store, and its own log
//! has to say so. Looked at are the counters of answers, not the answers: nothing is done while hosts are served. A
//! store that is down is said where that is found out.

use std::fmt::Arguments;
use std::time::{Duration, Instant};

use log::Level;
use mailbox::Status;

use crate::count::answers::{Answers, Asked};
use crate::count::counters::get;

/// Interval of looks at the counters.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Time without a fault after which it is over.
const QUIET: Duration = Duration::from_secs(30);

/// What the log says, and what to do about it.
const SAID: [(Status, &str); 5] = [
    (Status::NoSpace, "the store is full: give it more room, or let it evict (docs/stores.md)"),
    (Status::ReadOnly, "the store takes no writes from this card: `dpu-app store-check` says what is missing"),
    (Status::Corrupt, "chunks in the store are damaged: they are not served"),
    (Status::DeadlineExceeded, "the store or the host's memory is too slow for the hosts' deadlines, or stands still"),
    (Status::DeviceError, "the device could not move or restore chunks"),
];

/// A fault that goes on.
#[derive(Clone, Copy, Debug)]
struct Episode {
    began: Instant,
    last: Instant,
    /// Requests.
    count: u64,
}

/// Faults that go on.
#[derive(Debug)]
pub(crate) struct Complaints {
    seen: [[u64; SAID.len()]; Asked::CHUNKS.len()],
    open: [[Option<Episode>; SAID.len()]; Asked::CHUNKS.len()],
    next: Instant,
}

impl Complaints {
    #[must_use]
    pub(crate) fn new(now: Instant) -> Self {
        Self { seen: Default::default(), open: Default::default(), next: now }
    }

    /// Returns when to look again, if there may be something to say by then.
    #[must_use]
    pub(crate) fn due(&self, answers: &Answers) -> Option<Instant> {
        let changed = |(a, s): (usize, usize)| get(answers.status(Asked::CHUNKS[a], SAID[s].0)) != self.seen[a][s];
        places().any(|(a, s)| self.open[a][s].is_some() || changed((a, s))).then_some(self.next)
    }

    /// Looks at the counters, and reports what has begun or is over since the last look.
    pub(crate) fn look(&mut self, answers: &Answers, now: Instant, mut say: impl FnMut(Level, Arguments<'_>)) {
        if now < self.next {
            return;
        }
        self.next = now + LOOK_EVERY;
        for (a, s) in places() {
            let (asked, (status, what)) = (Asked::CHUNKS[a].name(), SAID[s]);
            let count = get(answers.status(Asked::CHUNKS[a], status));
            let new = count - std::mem::replace(&mut self.seen[a][s], count);
            let open = &mut self.open[a][s];
            match open {
                None if new > 0 => {
                    *open = Some(Episode { began: now, last: now, count: new });
                    say(Level::Warn, format_args!("{asked} requests are answered {}: {what}", status.name()));
                }
                Some(episode) if new > 0 => {
                    episode.last = now;
                    episode.count += new;
                }
                Some(Episode { began, last, count }) if now - *last >= QUIET => {
                    let (name, seconds) = (status.name(), (*last - *began).as_secs_f64());
                    say(Level::Warn, format_args!("{asked} requests answered {name}: over: {count} in {seconds:.0} s"));
                    *open = None;
                }
                _ => {}
            }
        }
    }
}

fn places() -> impl Iterator<Item = (usize, usize)> {
    (0..Asked::CHUNKS.len()).flat_map(|a| (0..SAID.len()).map(move |s| (a, s)))
}

#[cfg(test)]
mod tests {
    use mailbox::Operation;

    use super::*;

    fn look(complaints: &mut Complaints, answers: &Answers, now: Instant) -> Vec<String> {
        let mut said = Vec::new();
        complaints.look(answers, now, |_, line| said.push(line.to_string()));
        said
    }

    #[test]
    fn a_fault_is_said_when_it_begins_and_when_it_is_over() {
        let (answers, start) = (Answers::default(), Instant::now());
        let mut complaints = Complaints::new(start);
        answers.count(Operation::Store, Status::Ok);
        assert_eq!(complaints.due(&answers), None);
        assert!(look(&mut complaints, &answers, start).is_empty());
        let at = |seconds| start + Duration::from_secs(seconds);
        for second in 1..=20 {
            answers.count(Operation::Store, Status::NoSpace);
            answers.count(Operation::Store, Status::NoSpace);
            let said = look(&mut complaints, &answers, at(second));
            assert_eq!(said.len(), usize::from(second == 1), "{said:?}");
            assert!(
                said.iter().all(|line| line.starts_with("store requests are answered no_space: the store is full"))
            );
        }
        assert!(look(&mut complaints, &answers, at(49)).is_empty());
        assert_eq!(complaints.due(&answers), Some(at(50)), "an idle card wakes to say that it is over");
        assert_eq!(look(&mut complaints, &answers, at(50)), ["store requests answered no_space: over: 40 in 19 s"]);
        assert_eq!(complaints.due(&answers), None);
        answers.count(Operation::Fetch, Status::Corrupt);
        assert_eq!(complaints.due(&answers), Some(at(51)));
        assert_eq!(look(&mut complaints, &answers, at(51)).len(), 1, "the next one is another one");
    }
}
