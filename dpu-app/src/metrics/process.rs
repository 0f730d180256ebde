//! What the process uses of the machine, as the kernel counts it.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use nix::unistd::{SysconfVar, sysconf};

/// `/proc/self/statm` is seven numbers.
const STATM_BYTES: usize = 256;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Usage {
    pub resident_bytes: u64,
    /// User and system time of all threads.
    pub cpu: Duration,
}

/// Holds the file open, so that to look costs no descriptor and no memory.
#[derive(Debug)]
pub(super) struct Process {
    statm: Option<File>,
    page_bytes: u64,
}

impl Process {
    pub(super) fn new() -> Self {
        let page_bytes = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as u64;
        Self { statm: File::open("/proc/self/statm").ok(), page_bytes }
    }

    /// What the kernel does not tell is 0.
    pub(super) fn usage(&self) -> Usage {
        let mut bytes = [0; STATM_BYTES];
        let read = self.statm.as_ref().and_then(|statm| statm.read_at(&mut bytes, 0).ok()).unwrap_or(0);
        let text = std::str::from_utf8(&bytes[..read]).unwrap_or_default();
        let pages = text.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0);
        let duration =
            |time: TimeVal| Duration::from_secs(time.tv_sec() as u64) + Duration::from_micros(time.tv_usec() as u64);
        let cpu = getrusage(UsageWho::RUSAGE_SELF)
            .map_or(Duration::ZERO, |usage| duration(usage.user_time()) + duration(usage.system_time()));
        Usage { resident_bytes: pages * self.page_bytes, cpu }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_time_that_are_used_are_seen() {
        let process = Process::new();
        let before = process.usage();
        assert!(before.resident_bytes > 100 << 10, "{before:?}");
        let memory = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = process.usage();
        assert!(after.resident_bytes >= before.resident_bytes + (32 << 20), "{before:?} {after:?}");
        assert!(after.cpu > before.cpu, "{before:?} {after:?}");
        drop(memory);
    }
}
