//! The commands. Each is a file: its arguments, then what it does and prints.

mod calibrate;
mod generate;
mod given;
mod simulate;
mod tiers;

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{CommandFactory, Parser, Subcommand};
use host_ctl::command::CommandOutcome;

/// Version, build (the scripts set it: see scripts/build-word.sh) and what it was built for:
/// `0.1.0 (DOCA SDK 2.10.0087)`, or `0.1.0 (emulator)`.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let build = option_env!("KVLANE_BUILD").unwrap_or_default();
    format!("{}{build} ({})", env!("CARGO_PKG_VERSION"), doca::version::built_for())
});
const EXIT_RUNTIME: u8 = 1;
const EXIT_USAGE: u8 = 2;

/// Plans for kvlane: what a card would do, and which configuration and tiers suit.
///
/// Exit codes: 0 done; 1 it went wrong; 2 bad arguments or input; 3 device.
#[derive(Debug, Parser)]
#[command(name = "kvlane-plan", version = VERSION.as_str(), max_term_width = 120)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure the stages on this machine, search the best configuration with the simulator, write it as a config file
    Calibrate(Box<calibrate::Calibrate>),
    /// Ask the model what a BlueField-3 would do: the scheduler of `dpu-app run` in virtual time
    Simulate(simulate::Simulate),
    /// Size tiers with a trace of requests, or draw what a card's tiers hold
    Tiers(tiers::Arguments),
    /// Make a large synthetic KV file from a small real one, for benchmarks
    ///
    /// The result is SYNTHETIC: its elements are the source's in other places, tokens, channels and signs shuffled for
    /// each head of each layer. It has the sizes of a large model and shrinks about as much as the source does; what
    /// attention would make of it means nothing. Say so where a figure comes from it.
    Generate(generate::Arguments),
    /// Write the manual pages into a directory, as packages have them
    #[command(hide = true)]
    Man {
        /// An existing directory
        directory: PathBuf,
    },
}

/// Why a command failed, and its exit code.
#[derive(Debug)]
pub(crate) struct CommandFailure {
    pub(crate) code: u8,
    pub(crate) text: String,
}

impl From<host_ctl::Error> for CommandFailure {
    fn from(error: host_ctl::Error) -> Self {
        Self { code: error.exit_code(), text: error.to_string() }
    }
}

/// Gives an exit code to what came without one.
fn or_code(done: Result<(), String>, code: u8) -> Result<CommandOutcome, CommandFailure> {
    done.map(|()| CommandOutcome::Good).map_err(|text| CommandFailure { code, text })
}

pub(crate) fn run(arguments: Arguments) -> Result<CommandOutcome, CommandFailure> {
    match arguments.command {
        Command::Calibrate(arguments) => or_code(arguments.run(), EXIT_RUNTIME),
        Command::Simulate(arguments) => or_code(arguments.run(), EXIT_USAGE),
        Command::Tiers(arguments) => Ok(tiers::run(&arguments)?),
        Command::Generate(arguments) => Ok(generate::run(&arguments)?),
        Command::Man { directory } => {
            let written = clap_mangen::generate_to(Arguments::command(), &directory);
            or_code(written.map_err(|error| format!("{}: {error}", directory.display())), EXIT_USAGE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_contradict_nowhere() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn every_argument_has_a_word_of_help() {
        for command in Arguments::command().get_subcommands() {
            assert!(command.get_about().is_some(), "{}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
        }
    }
}
