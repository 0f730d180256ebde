//! CPU time of a process's threads, by kind: the kernel's own count (/proc/PID/task/*/schedstat, in ns).

use std::collections::BTreeMap;
use std::fs;

/// Seconds by kind of thread: its name without the number behind it. The first thread of a process is its `engine`
/// thread: that is who runs the data plane.
#[derive(Clone, Debug, Default)]
pub(crate) struct Cpu(BTreeMap<String, f64>);

impl Cpu {
    pub(crate) fn of(pid: u32) -> Self {
        let mut seconds = BTreeMap::new();
        for task in fs::read_dir(format!("/proc/{pid}/task")).expect("it lives").flatten() {
            let read = |name| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let ns = read("schedstat").split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).unwrap_or(0.0);
            let first = task.file_name().to_str() == Some(&pid.to_string());
            let name = if first { String::from("engine") } else { read("comm") };
            let kind = name.trim().trim_end_matches(|c: char| c.is_ascii_digit()).trim_end_matches('-');
            *seconds.entry(kind.into()).or_default() += ns / 1e9;
        }
        Self(seconds)
    }

    pub(crate) fn since(&self, before: &Self) -> Self {
        let since = |(kind, now): (&String, &f64)| (kind.clone(), now - before.kind(kind));
        Self(self.0.iter().map(since).collect())
    }

    pub(crate) fn kind(&self, kind: &str) -> f64 {
        self.0.get(kind).copied().unwrap_or(0.0)
    }

    pub(crate) fn total(&self) -> f64 {
        self.0.values().sum()
    }
}
