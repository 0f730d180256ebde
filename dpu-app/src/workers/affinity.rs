//! Cores of the worker threads (`--fetch-cpus`, `--dequantize-cpus`, `--encode-cpus`): ShadowServe gives network
//! and dequantization disjoint groups of cores. Without a list the kernel decides, among the cores that this process
//! may use.

use nix::errno::Errno;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

/// The first of `cpus` that this process may not use.
///
/// # Errors
/// What `sched_getaffinity(2)` answered.
pub(crate) fn unusable(cpus: &[usize]) -> Result<Option<usize>, Errno> {
    let ours = sched_getaffinity(Pid::from_raw(0))?;
    Ok(cpus.iter().copied().find(|cpu| !ours.is_set(*cpu).unwrap_or(false)))
}

/// Keeps the calling thread on the core of the `index`-th worker of a crew; cores are given out in turn.
///
/// # Errors
/// What `sched_setaffinity(2)` answered.
pub(crate) fn pin(cpus: &[usize], index: usize) -> Result<(), Errno> {
    if cpus.is_empty() {
        return Ok(());
    }
    let mut set = CpuSet::new();
    set.set(cpus[index % cpus.len()])?;
    sched_setaffinity(Pid::from_raw(0), &set)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_stays_on_its_core_and_a_core_that_is_not_there_is_named() {
        let ours = sched_getaffinity(Pid::from_raw(0)).unwrap();
        let usable: Vec<usize> = (0..CpuSet::count()).filter(|cpu| ours.is_set(*cpu).unwrap()).collect();
        assert_eq!(unusable(&usable), Ok(None));
        assert_eq!(unusable(&[usable[0], CpuSet::count()]), Ok(Some(CpuSet::count())));
        for index in [0, usable.len() - 1, usable.len()] {
            let cpus = usable.clone();
            let mine = std::thread::spawn(move || {
                pin(&cpus, index).unwrap();
                sched_getaffinity(Pid::from_raw(0)).unwrap()
            });
            let mine = mine.join().unwrap();
            let on: Vec<usize> = (0..CpuSet::count()).filter(|cpu| mine.is_set(*cpu).unwrap()).collect();
            assert_eq!(on, [usable[index % usable.len()]]);
        }
    }
}
