//! What an operator types: the command line with its environment and config file, and the commands that only report.
//! Flags win over environment, environment over file.

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use mailbox::visible;

mod arguments;
mod config_file;
mod data_plane;
pub(crate) mod devices;
mod failure;
mod limits_report;
mod scrubbing;

use arguments::{CliCommand, CommandLine, Devices};
use config_file::Told;
use data_plane::run_data_plane;
use failure::{Complaint, EXIT_USAGE, JSON, fail};
use limits_report::limits;
use scrubbing::scrub_store;

/// Commands that kvlane-plan has now.
const MOVED: [&str; 2] = ["calibrate", "simulate"];

pub fn main() -> ExitCode {
    // All of it passes the logger; what is logged is decided by the level, which SIGHUP may change.
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("trace")).format(log_line).init();
    let says_level = std::env::var_os("RUST_LOG").is_none();
    if says_level {
        log::set_max_level(log::LevelFilter::Info);
    }
    // What cannot be read has not said whether it wants JSON: its words do.
    JSON.set(std::env::args_os().any(|word| word == "--json")).expect("set once");
    let first = std::env::args_os().nth(1).unwrap_or_default();
    if let Some(name) = MOVED.iter().find(|name| first == **name) {
        return fail(EXIT_USAGE, format_args!("{name}: moved: `kvlane-plan {name}` takes the same arguments"));
    }
    let (arguments, told) = match read() {
        Ok(read) => read,
        Err(complaint) => return complaint.end(),
    };
    if let CliCommand::Run(run) = &arguments.command
        && says_level
    {
        log::set_max_level(run.log_level);
    }
    told.warnings.iter().for_each(|warning| log::warn!("{warning}"));
    let origins = &told.origins;
    match arguments.command {
        CliCommand::Run(run) => run_data_plane(&run, origins),
        CliCommand::Limits(flags) => limits(&flags, origins),
        CliCommand::Devices(Devices { json }) => list_devices(json),
        CliCommand::Scrub(scrub) => scrub_store(&scrub),
        CliCommand::Man { directory } => match clap_mangen::generate_to(CommandLine::command(), &directory) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => fail(EXIT_USAGE, format_args!("{}: {error}", directory.display())),
        },
    }
}

/// `[2026-11-30T12:00:00Z WARN ] text`, whatever the text has of others' making.
fn log_line(out: &mut env_logger::fmt::Formatter, record: &log::Record<'_>) -> std::io::Result<()> {
    let (time, level) = (out.timestamp(), record.level());
    writeln!(out, "[{time} {level:<5}] {}", visible(&record.args().to_string()))
}

/// Command line, environment and file, as they are now.
fn read() -> Result<(CommandLine, Told), Complaint> {
    let environment: Vec<OsString> = std::env::vars_os().map(|(name, _)| name).collect();
    let told = config_file::told(&CommandLine::command(), std::env::args_os().collect(), &environment);
    let told = told.map_err(|wrong| Complaint { help: None, text: wrong.to_string() })?;
    match CommandLine::try_parse_from(&told.arguments) {
        Ok(arguments) => Ok((arguments, told)),
        Err(error) => Err(Complaint::of(error, told.arguments)),
    }
}

fn list_devices(json: bool) -> ExitCode {
    match devices::list() {
        Ok(list) if list.is_empty() => fail(3, "no device: is the driver loaded and the card in DPU mode?"),
        Ok(list) => {
            match json {
                true => say!("{}", devices::json(&list)),
                false => list.iter().for_each(|device| say!("{device}")),
            }
            ExitCode::SUCCESS
        }
        Err(error) => fail(3, format_args!("device: {error}")),
    }
}
