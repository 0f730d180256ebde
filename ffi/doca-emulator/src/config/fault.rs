//! Faults of certain tasks: "the third inflate fails", "the second copy is 5 ms late".

use std::str::FromStr;

use crate::config::TaskKind;

/// Longest planned delay.
const DELAY_US_MAX: u32 = 10_000_000;

/// What happens to the task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultEffect {
    /// It fails with `IO_FAILED`.
    Fail,
    /// It succeeds, and one bit of what it wrote is flipped.
    Corrupt,
    /// It starts this much later.
    Delay { us: u32 },
}

/// One fault of one task of a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PlannedFault {
    pub effect: FaultEffect,
    /// A kind that an engine runs.
    pub kind: TaskKind,
    /// Number of the task among the device's tasks of that kind, in the order of their submits, from 1.
    pub number: u64,
}

impl FromStr for PlannedFault {
    type Err = ();

    /// `EFFECT:KIND:NUMBER`; `delay:KIND:NUMBER:MICROSECONDS`.
    fn from_str(text: &str) -> Result<PlannedFault, ()> {
        let fields: Vec<&str> = text.split(':').collect();
        let (effect, kind, number) = match fields[..] {
            ["fail", kind, number] => (FaultEffect::Fail, kind, number),
            ["corrupt", kind, number] => (FaultEffect::Corrupt, kind, number),
            ["delay", kind, number, us] => {
                let us = us.parse().ok().filter(|us| *us <= DELAY_US_MAX).ok_or(())?;
                (FaultEffect::Delay { us }, kind, number)
            }
            _ => return Err(()),
        };
        let kind = match kind {
            "memcpy" => TaskKind::Memcpy,
            "deflate" => TaskKind::Deflate,
            "inflate" => TaskKind::Inflate,
            "lz4-stream" => TaskKind::Lz4Stream,
            "lz4-block" => TaskKind::Lz4Block,
            _ => return Err(()),
        };
        let number = number.parse().ok().filter(|number| *number > 0).ok_or(())?;
        Ok(PlannedFault { effect, kind, number })
    }
}
