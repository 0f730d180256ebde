//! The commands. Each is a file: its arguments, then what it does and prints.

mod amounts;
mod compare;
mod control;
mod fetch;
mod given;
mod importance;
mod inspect;
mod lookup;
mod precision;
mod status;
mod store;
mod store_check;
mod tiers;
mod trace;

use std::path::PathBuf;
use std::sync::LazyLock;

use clap::{CommandFactory, Parser, Subcommand};
use host_ctl::Error;
use host_ctl::command::CommandOutcome;

/// Version, build (the scripts set it: see scripts/build-word.sh) and what it was built for:
/// `0.1.0 (DOCA SDK 2.10.0087)`, or `0.1.0 (emulator)`.
static VERSION: LazyLock<String> = LazyLock::new(|| {
    let build = option_env!("KVLANE_BUILD").unwrap_or_default();
    format!("{}{build} ({})", env!("CARGO_PKG_VERSION"), doca::version::built_for())
});

/// What moved to kvlane-plan: the words that it was asked by, and what to ask now.
const MOVED: [(&[&str], &str); 3] = [
    (&["generate"], "kvlane-plan generate` takes the same arguments"),
    (&["tiers", "simulate"], "kvlane-plan tiers simulate` takes the same arguments"),
    (&["tiers", "show", "--plot"], "host-ctl tiers show --json | kvlane-plan tiers plot --out FILE` draws them"),
];

/// Says where a command is that this program had once.
pub(crate) fn moved(arguments: &[String]) -> Option<String> {
    let says = |word: &&str| arguments.iter().any(|argument| argument.split('=').next() == Some(*word));
    let is_asked = |words: &&[&str]| arguments.first().is_some_and(|first| first == words[0]) && words.iter().all(says);
    let (words, now) = MOVED.iter().find(|(words, _)| is_asked(words))?;
    Some(format!("{}: moved: `{now}", words.join(" ")))
}

/// Stores KV-cache prefixes through dpu-app and fetches them back.
///
/// Exit codes: 0 done (a partial hit, too); 1 it went wrong: nothing found, corrupt, beyond the bound, store or disk
/// full; 2 bad arguments or input; 3 device; 4 dpu-app absent, gone, refusing or of another version.
#[derive(Debug, Parser)]
#[command(name = "host-ctl", version = VERSION.as_str(), max_term_width = 120)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Store the KV cache in a safetensors file under the chunks of a prompt
    Store(store::Arguments),
    /// Fetch the stored leading chunks of a prompt into a file, or into memory to measure
    Fetch(fetch::Arguments),
    /// Compare a restored file with its original, to the bit or to the quantizer's bound
    Compare(compare::Arguments),
    /// Ask how much of a prompt is stored
    Lookup(lookup::Arguments),
    /// Say what the chunks of a prompt are worth to the card's tiers, beside how often they are used
    Importance(importance::Arguments),
    /// Look into a chunk file, a dir: store or a safetensors file, and check all of it
    Inspect(inspect::Arguments),
    /// Show dpu-app's limits, counters, times of its stages, sessions and events
    Status(status::Arguments),
    /// Show what requests waited for lately: those that were late, with the stage that took longest, and the last
    /// stages of all
    Trace(trace::Arguments),
    /// Look at a Redis store from end to end, without a card: permissions, speed, settings, and what to change
    StoreCheck(store_check::Arguments),
    /// Show a card's tiers
    Tiers(tiers::Arguments),
    /// Measure the time from a command to its completion
    Ping(control::PingArguments),
    /// Tell dpu-app to finish what runs and take nothing new, from anybody; --undo takes that back. By its socket, or
    /// where it allows hosts to (--allow-host-stop)
    Drain(control::DrainArguments),
    /// Tell dpu-app to finish what runs and end. By its socket, or where it allows hosts to (--allow-host-stop)
    Stop(control::Arguments),
    /// Write the manual pages into a directory, as packages have them
    #[command(hide = true)]
    Man {
        /// An existing directory
        directory: PathBuf,
    },
}

pub(crate) fn run(arguments: Arguments) -> Result<CommandOutcome, Error> {
    match arguments.command {
        Command::Store(arguments) => store::run(&arguments),
        Command::Fetch(arguments) => fetch::run(&arguments),
        Command::Compare(arguments) => compare::run(&arguments),
        Command::Lookup(arguments) => lookup::run(&arguments),
        Command::Importance(arguments) => importance::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Trace(arguments) => trace::run(&arguments),
        Command::StoreCheck(arguments) => store_check::run(&arguments),
        Command::Tiers(arguments) => tiers::run(&arguments),
        Command::Ping(arguments) => control::ping(&arguments),
        Command::Drain(arguments) => control::drain(&arguments),
        Command::Stop(arguments) => control::stop(&arguments),
        Command::Man { directory } => {
            clap_mangen::generate_to(Arguments::command(), &directory).map_err(|source| Error::System {
                call: "write",
                path: directory,
                source,
            })?;
            Ok(CommandOutcome::Good)
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
