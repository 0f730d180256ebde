//! `host-ctl`: parses, calls the library, prints once, and turns errors into exit codes.
#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

use clap::Parser as _;
use host_ctl::command::{CommandOutcome, failed, log, refused};

/// Name in front of every message.
const PROGRAM: &str = "host-ctl";
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    log(PROGRAM);
    let words: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    // A command line that cannot be read has not said whether it wants JSON: its words do.
    let json = words.iter().any(|word| word == "--json");
    if let Some(text) = cli::moved(&words) {
        failed(PROGRAM, &text, EXIT_USAGE, json);
        return ExitCode::from(EXIT_USAGE);
    }
    let arguments = match cli::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refused(&error, json),
    };
    match cli::run(arguments) {
        Ok(CommandOutcome::Good) => ExitCode::SUCCESS,
        Ok(CommandOutcome::Bad) => ExitCode::from(1),
        Err(error) => {
            failed(PROGRAM, &error.to_string(), error.exit_code(), json);
            ExitCode::from(error.exit_code())
        }
    }
}
