//! The commands. Each is a file: its arguments, then what it does and prints.

mod calibrate;
mod given;
mod simulate;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{CommandFactory, Parser, Subcommand};
use mailbox::{visible, visible_json};

/// Version, build (the scripts set it: see scripts/build-word.sh) and what it was built for: `0.1.0 (DOCA SDK 2.10.0087)`,
/// or `0.1.0 (emulator)`.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let build = option_env!("KVLANE_BUILD").unwrap_or_default();
    format!("{}{build} ({})", env!("CARGO_PKG_VERSION"), doca::version::built_for())
});
const EXIT_RUNTIME: u8 = 1;
const EXIT_USAGE: u8 = 2;

/// Plans for kvlane: measures a machine and proposes a configuration, and asks a model what a card would do.
#[derive(Debug, Parser)]
#[command(name = "kvlane-plan", version = VERSION.as_str(), max_term_width = 120)]
#[command(after_help = "Exit codes: 0 done, 1 it went wrong, 2 bad arguments.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Measure the stages on this machine, search the best configuration with the simulator, write it as a config file
    Calibrate(Box<calibrate::Calibrate>),
    /// What a BlueField-3 would do by the model: the scheduler of `dpu-app run` in virtual time
    Simulate(simulate::Simulate),
    /// Write the manual pages into a directory, as packages have them
    #[command(hide = true)]
    Man {
        /// An existing directory
        directory: PathBuf,
    },
}

pub(crate) fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).format(log_line).init();
    let done = match Arguments::parse().command {
        Command::Calibrate(calibrate) => calibrate.run().map_err(|error| (EXIT_RUNTIME, error)),
        Command::Simulate(simulate) => simulate.run().map_err(|error| (EXIT_USAGE, error)),
        Command::Man { directory } => clap_mangen::generate_to(Arguments::command(), &directory)
            .map_err(|error| (EXIT_USAGE, format!("{}: {error}", directory.display()))),
    };
    done.map_or_else(|(code, text)| fail(code, &text), |()| ExitCode::SUCCESS)
}

/// `kvlane-plan: warn: text`, as errors are shown, whatever the text has of others' making.
fn log_line(out: &mut env_logger::fmt::Formatter, record: &log::Record<'_>) -> std::io::Result<()> {
    writeln!(out, "kvlane-plan: {}: {}", record.level().as_str().to_lowercase(), visible(&record.args().to_string()))
}

/// The end of a command that failed: text for people, and an object for a machine that asked for one.
fn fail(code: u8, text: &str) -> ExitCode {
    eprintln!("kvlane-plan: {}", visible(text));
    if std::env::args_os().any(|word| word == "--json") {
        let object = format!("{{\"ok\":false,\"error\":{},\"code\":{code}}}", dpu_app::count::json::Quoted(text));
        say!("{}", visible_json(&object));
    }
    ExitCode::from(code)
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
