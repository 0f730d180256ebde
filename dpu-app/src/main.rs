//! `dpu-app`: reads its configuration, runs the data plane, maps errors to exit codes. Prints an error once.
#![forbid(unsafe_code)]

mod arguments;
mod forecast;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    arguments::main(arguments::Arguments::parse_from(arguments::with_file(std::env::args_os())))
}
