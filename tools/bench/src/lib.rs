//! What every benchmark reports: tables and plots, with the command and the machine that they came from. A benchmark
//! prints its report as Markdown and, where `KVLANE_BENCH_OUT` names a directory, leaves it there as `NAME.json`;
//! `scripts/bench.sh` makes one page, plots and one JSON file of those. Python benchmarks write the same JSON.

mod digest;
mod machine;
pub mod page;
mod report;
mod roofline;
mod sample;
pub mod svg;

pub use machine::Machine;
pub use report::{Plot, PlotKind, Report, Series, Table};
pub use roofline::Roofline;
pub use sample::Sample;
