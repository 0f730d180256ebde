//! Threads on cores of their own.

use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The CPUs that this process may use, the last of them first: interrupts and other work mostly meet the first.
pub(crate) fn cpus() -> Vec<usize> {
    let ours = sched_getaffinity(Pid::from_raw(0)).expect("this thread's own");
    (0..CpuSet::count()).rev().filter(|&cpu| ours.is_set(cpu).expect("below the count")).collect()
}

/// Keeps this thread on one CPU.
pub(crate) fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    set.set(cpu).expect("a CPU of this machine");
    sched_setaffinity(Pid::from_raw(0), &set).expect("one of this process's CPUs");
}
