//! `kvlane-plan`: parses, calls the libraries, prints once, and turns errors into exit codes.
#![forbid(unsafe_code)]

/// A line on standard output. A reader that has heard enough (`| head`) is no error.
macro_rules! say {
    ($($line:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($line)*)));
    }};
}

mod cli;

use std::process::ExitCode;

use clap::Parser as _;
use host_ctl::command::{CommandOutcome, failed, log, refused};

/// Name in front of every message.
const PROGRAM: &str = "kvlane-plan";

fn main() -> ExitCode {
    log(PROGRAM);
    // A command line that cannot be read has not said whether it wants JSON: its words do.
    let json = std::env::args_os().any(|word| word == "--json");
    let arguments = match cli::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refused(&error, json),
    };
    match cli::run(arguments) {
        Ok(CommandOutcome::Good) => ExitCode::SUCCESS,
        Ok(CommandOutcome::Bad) => ExitCode::from(1),
        Err(cli::CommandFailure { code, text }) => {
            failed(PROGRAM, &text, code, json);
            ExitCode::from(code)
        }
    }
}
