//! Whose turn it is: start-time fair queueing over sessions (Goyal, Vin and Cheng, SIGCOMM 1996), in blocks.
//!
//! A block's turn is one after that of its session's block before, or the turn that has just passed, whichever is
//! later. So sessions that always have something to do move on at one pace, whatever they have asked for; one that
//! comes anew goes first, ahead of all that a long fetch has in the queues; and nobody saves up turns while it asks for
//! nothing.

use crate::config::{PLACES_MAX, SLOTS_MAX};

/// The next turn of each session.
#[derive(Debug)]
pub(crate) struct Turns {
    next: [u64; PLACES_MAX],
    passed: u64,
}

impl Default for Turns {
    fn default() -> Self {
        Self { next: [0; PLACES_MAX], passed: 0 }
    }
}

impl Turns {
    /// Returns the turn that the next block of a session would have.
    pub(crate) fn of(&self, session: usize) -> u64 {
        self.next[session].max(self.passed)
    }

    /// Takes the turn for a block of the session that starts now.
    pub(crate) fn take(&mut self, session: usize) -> u64 {
        let turn = self.of(session);
        self.next[session] = turn + 1;
        turn
    }

    /// Returns a turn after all that one session can have in the ring now, and before what it starts later: for blocks
    /// that have none of their own and may wait, but not for ever.
    pub(crate) fn after_all(&self) -> u64 {
        self.passed + SLOTS_MAX as u64
    }

    /// Takes note that a block with this turn has left the ring.
    pub(crate) fn passed(&mut self, turn: u64) {
        self.passed = self.passed.max(turn);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_comes_anew_goes_ahead_of_what_waits_and_then_takes_turns() {
        let mut turns = Turns::default();
        let long: Vec<u64> = (0..16).map(|_| turns.take(0)).collect();
        assert_eq!(long, (0..16).collect::<Vec<u64>>());
        turns.passed(3);
        assert_eq!([turns.take(1), turns.take(1), turns.of(1), turns.of(0)], [3, 4, 5, 16]);
        assert!(turns.after_all() > 16);
        // It has asked for nothing for long, and gets nothing for that.
        turns.passed(1000);
        assert_eq!([turns.take(1), turns.take(0), turns.of(1)], [1000, 1000, 1001]);
        // A straggler turns nothing back.
        turns.passed(5);
        assert_eq!(turns.of(2), 1000);
    }
}
