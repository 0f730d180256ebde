//! What an operator types: the command line with its environment and config file, and the commands that only report.

mod arguments;
mod config_file;
pub mod devices;
mod limits_report;
mod scrubbing;

pub use arguments::main;
