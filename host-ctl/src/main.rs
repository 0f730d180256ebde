//! `host-ctl`: parses, calls the library, prints once, and turns errors into exit codes.
#![forbid(unsafe_code)]

mod cli;

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).init();
    let arguments = cli::Arguments::parse();
    match cli::run(arguments) {
        Ok(cli::Verdict::Good) => ExitCode::SUCCESS,
        Ok(cli::Verdict::Bad) => ExitCode::from(1),
        Err(error) => {
            eprintln!("host-ctl: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
