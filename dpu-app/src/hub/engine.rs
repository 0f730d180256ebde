//! A DOCA context and what the engine thread keeps beside it: who may submit, and whether the device still works.
//!
//! A failed task stops its whole context (DOCA), whoever is to blame, and most who are to blame are hosts whose memory
//! is gone. So restarts without a success between them say nothing of the device yet: from `DOUBT` of them on a DMA
//! engine has to **prove itself**, and copies bytes of our own, alone. If it can, the count begins anew and those that
//! fail are to blame for themselves (probation.rs); if not, it tries again until [`RESTARTS_MAX`]. No host is part of
//! that, so no host can bring a card there, and a device that is broken costs no session.

use std::time::Instant;

use doca::{Area, Arena, Completion, Context, ContextState, Device};

use crate::count::counters::Occupancy;
use crate::pipeline::probation::{Probation, UNREACHABLE_MIN};

/// Context restarts in a row, without one success between them, after which the device is given up.
pub(crate) const RESTARTS_MAX: u32 = 64;
/// Restarts in a row from which a DMA engine has to prove itself: before a session would be blamed.
const DOUBT: u32 = 4;
const _: () = assert!(DOUBT < UNREACHABLE_MIN as u32 && DOUBT < RESTARTS_MAX);

/// Bytes that it has to copy.
const PROOF_BYTES: usize = doca::AREA_ALIGNMENT;
/// DOCA user data of that copy: no slot's and no lane's.
const PROOF: u64 = u64::MAX;

/// A context with its probation, its proofs and its clock.
#[derive(Debug)]
pub(crate) struct CardEngine {
    pub context: Context,
    pub probation: Probation,
    pub occupancy: Occupancy,
    /// Restarts since the last success.
    pub restarts: u32,
    pub last_progress: Instant,
    proof: Option<Proof>,
}

/// Memory of our own that a DMA engine copies to prove itself; empty while it does.
#[derive(Debug)]
struct Proof {
    areas: Option<(Area, Area)>,
    /// Byte that is copied, another one each time.
    byte: u8,
}

impl CardEngine {
    #[must_use]
    pub(crate) fn new(context: Context) -> Self {
        let (probation, occupancy) = (Probation::default(), Occupancy::default());
        Self { context, probation, occupancy, restarts: 0, last_progress: Instant::now(), proof: None }
    }

    /// Allocates the memory for the proofs of a DMA engine. Init only.
    ///
    /// # Errors
    /// What the device answered.
    pub(crate) fn can_prove_itself(&mut self, device: &Device) -> Result<(), doca::Error> {
        let mut arena = Arena::allocate(device, 2 * PROOF_BYTES)?;
        let mut carve = || arena.carve(PROOF_BYTES).expect("the arena was sized for both");
        self.proof = Some(Proof { areas: Some((carve(), carve())), byte: 0 });
        Ok(())
    }

    /// Tells whether the device has to prove itself before anything else is asked of it.
    fn is_in_doubt(&self) -> bool {
        self.proof.is_some() && self.restarts >= DOUBT
    }

    /// Tells whether one more operation may be submitted now.
    #[must_use]
    pub(crate) fn admits(&self) -> bool {
        !self.is_in_doubt() && self.probation.admits(self.context.in_flight()) && self.context.has_room()
    }

    /// Takes note that an operation was submitted.
    pub(crate) fn submitted(&mut self) {
        let in_flight = self.context.in_flight();
        self.probation.submitted(in_flight);
        if in_flight == 1 {
            self.last_progress = Instant::now();
        }
    }

    /// Takes the next operation that has ended, as [`Context::poll`] gives it; proofs are taken here. `depth` as in
    /// [`Self::ended`].
    pub(crate) fn poll(&mut self, depth: usize) -> Option<Completion> {
        loop {
            let completion = self.context.poll()?;
            if completion.ticket != PROOF {
                return Some(completion);
            }
            self.proved(completion, depth);
        }
    }

    /// Restarts a context that a failed task has stopped; its flushed operations come with the next poll. `true` if it
    /// had stopped.
    ///
    /// # Errors
    /// Fails if the device does not give the tasks back, or does not start again.
    pub(crate) fn revive(&mut self) -> Result<bool, doca::Error> {
        if self.context.state() == ContextState::Running {
            return Ok(false);
        }
        self.context.restart()?;
        self.restarts += 1;
        Ok(true)
    }

    /// Makes a device in doubt copy bytes of our own, when nothing else is in flight; `true` if that was submitted.
    pub(crate) fn prove(&mut self) -> bool {
        if !self.is_in_doubt() || self.context.in_flight() > 0 {
            return false;
        }
        let proof = self.proof.as_mut().expect("only one with a proof is in doubt");
        let Some((mut source, mut destination)) = proof.areas.take() else { return false };
        proof.byte = proof.byte.wrapping_add(1);
        source.fill(proof.byte);
        destination.fill(!proof.byte);
        match self.context.copy(PROOF, source, destination) {
            Ok(()) => {
                self.submitted();
                true
            }
            Err(refused) => {
                self.restarts += u32::from(!refused.error.is_back_pressure());
                proof.areas = refused.source.and_then(doca::Source::own).zip(refused.destination);
                false
            }
        }
    }

    fn proved(&mut self, completion: Completion, depth: usize) {
        let Completion { outcome, source, destination, .. } = completion;
        let proof = self.proof.as_mut().expect("it was submitted");
        proof.areas = source.and_then(doca::Source::own).zip(destination);
        let is_right = proof.areas.as_ref().is_some_and(|(source, destination)| source[..] == destination[..]);
        let succeeded = outcome.is_ok() && is_right;
        if succeeded {
            log::debug!("the {:?} engine works after {} restarts in a row", self.context.kind(), self.restarts);
        }
        self.ended(succeeded, depth);
    }

    /// Takes note that an operation ended; `true` if it failed alone, and so is to blame. Up to `depth` others failed
    /// with it.
    pub(crate) fn ended(&mut self, succeeded: bool, depth: usize) -> bool {
        self.last_progress = Instant::now();
        if succeeded {
            self.restarts = 0;
            self.probation.succeeded();
            return false;
        }
        self.probation.failed(depth)
    }
}
