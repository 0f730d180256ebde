//! The machine that a figure came from, as far as the kernel tells.

use std::{fmt, fs};

use serde::{Deserialize, Serialize};

/// What a reader has to know to compare figures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Machine {
    /// Model name of the processor.
    pub cpu: String,
    /// Processors that this process may use.
    pub cpus: usize,
    /// `uname -m`.
    pub arch: String,
    /// MemTotal in GiB.
    pub memory_gib: f64,
    /// Release of the kernel.
    pub kernel: String,
}

impl Machine {
    /// This one.
    pub fn here() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map_or(String::from("unknown"), |(_, value)| value.trim().into())
        };
        let memory_kib = field(&read("/proc/meminfo"), "MemTotal");
        let memory_kib = memory_kib.split(' ').next().and_then(|kib| kib.parse::<f64>().ok()).unwrap_or(0.0);
        Self {
            cpu: field(&read("/proc/cpuinfo"), "model name"),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            arch: std::env::consts::ARCH.into(),
            memory_gib: (memory_kib / (1 << 20) as f64 * 10.0).round() / 10.0,
            kernel: read("/proc/sys/kernel/osrelease").trim().into(),
        }
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cpu, cpus, arch, memory_gib, kernel } = self;
        write!(f, "{cpu}, {cpus} CPUs ({arch}), {memory_gib} GiB, Linux {kernel}")
    }
}
