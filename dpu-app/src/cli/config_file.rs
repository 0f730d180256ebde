//! What `run` and `limits` are told beside their flags: a file of `flag = value` lines, and KVLANE_* variables. Nothing
//! that is said there is passed over: what no flag has, what says nothing and what is said twice is an error with its
//! place.
//!
//! ```text
//!   # a comment: at the start of a line, or behind a space      store = redis://:pa#ss@host   no comment in it
//!   slots = 32          --slots 32            a flag of the command line wins over its variable,
//!   busy-poll = true    --busy-poll           and that over a line here
//! ```

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use mailbox::quoted;

/// Longest config file, bytes.
const BYTES_MAX: u64 = 1 << 20;
/// Longest name of a flag that a message repeats, bytes.
const FLAG_BYTES_MAX: usize = 40;
/// Variables of this project that no flag of ours has.
const VARIABLES_OF_OTHERS: [&str; 5] =
    ["KVLANE_NAMESPACE", "KVLANE_HOST_DEVICE", "KVLANE_SRC", "KVLANE_ROOT", "KVLANE_BUILD"];

/// Where a flag's value comes from, if not from the command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    Line { path: PathBuf, line: usize },
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => f.write_str(name),
        }
    }
}

/// A file that cannot be used, or what is wrong in a line or a variable.
#[derive(Debug)]
pub(crate) enum Wrong {
    File { path: PathBuf, error: io::Error },
    Value { origin: Origin, what: String },
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, error } => write!(
                f,
                "config file {}: {error}: name a file of `flag = value` lines that this user can read",
                path.display()
            ),
            Self::Value { origin, what } => write!(f, "{origin}: {what}"),
        }
    }
}

/// The command line with all that was said elsewhere put into it.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) arguments: Vec<OsString>,
    /// Origins by flag, with its dashes.
    pub(crate) origins: HashMap<String, Origin>,
    /// Variables that no flag has, for the log.
    pub(crate) warnings: Vec<String>,
}

/// Reads the file that `--config` (or its variable) names and looks through the environment.
///
/// # Errors
/// See [`Wrong`]. A command line that cannot be read is left to clap's own words.
pub(crate) fn told(command: &Command, arguments: Vec<OsString>, environment: &[OsString]) -> Result<Told, Wrong> {
    let mut told = Told { arguments, origins: HashMap::new(), warnings: Vec::new() };
    let lenient = command.clone().mut_subcommands(|sub| sub.mut_args(|arg| arg.required(false)));
    let Ok(matches) = lenient.try_get_matches_from(&told.arguments) else { return Ok(told) };
    let Some((name, matches)) = matches.subcommand() else { return Ok(told) };
    let Some(sub) = command.find_subcommand(name).filter(|sub| flag(sub, "config").is_some()) else { return Ok(told) };
    for arg in sub.get_arguments() {
        if source(matches, arg) == Some(ValueSource::EnvVariable)
            && let (Some(long), Some(variable)) = (arg.get_long(), arg.get_env())
        {
            let origin = Origin::Variable(variable.to_string_lossy().into_owned());
            told.origins.insert(format!("--{long}"), origin);
        }
    }
    told.warnings = strangers(sub, environment);
    if let Some(path) = matches.get_one::<PathBuf>("config") {
        let lines = read(path)?;
        let mut words = Vec::new();
        for Line { number, flag: name, value } in parse(path, &lines, sub)? {
            let arg = flag(sub, name).expect("parse looked");
            if matches!(source(matches, arg), Some(ValueSource::CommandLine | ValueSource::EnvVariable)) {
                continue;
            }
            told.origins.insert(format!("--{name}"), Origin::Line { path: path.clone(), line: number });
            words.extend(word(arg, name, value).map(OsString::from));
        }
        // Behind the subcommand's name, which is the first word: there are no flags before it.
        let at = told.arguments.len().min(2);
        told.arguments.splice(at..at, words);
    }
    Ok(told)
}

/// Finds who set the flag, as far as the command line and the environment say.
fn source(matches: &ArgMatches, arg: &Arg) -> Option<ValueSource> {
    matches.value_source(arg.get_id().as_str())
}

/// The argument of a flag, by its long name without dashes.
fn flag<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    command.get_arguments().find(|arg| arg.get_long() == Some(name) && !matches!(arg.get_action(), ArgAction::Help))
}

/// What a line stands for on the command line; nothing for a switch that is off.
fn word(arg: &Arg, name: &str, value: &str) -> Option<String> {
    match (arg.get_action(), value) {
        (ArgAction::SetTrue, "true") => Some(format!("--{name}")),
        (ArgAction::SetTrue, _) => None,
        _ => Some(format!("--{name}={value}")),
    }
}

fn read(path: &Path) -> Result<String, Wrong> {
    let failed = |error: io::Error| Wrong::File { path: path.to_owned(), error };
    let found = std::fs::metadata(path).map_err(failed)?;
    if found.is_dir() {
        return Err(failed(io::Error::other("is a directory")));
    }
    if found.is_file() && found.len() > BYTES_MAX {
        return Err(failed(io::Error::other(format!("{} bytes are more than the {BYTES_MAX} of any", found.len()))));
    }
    let bytes = std::fs::read(path).map_err(failed)?;
    let text = match String::from_utf8(bytes) {
        Ok(text) if !text.contains('\0') => text,
        Ok(_) => return Err(failed(io::Error::other("is no text: it has zero bytes"))),
        Err(error) => {
            let good = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = good.iter().filter(|&&byte| byte == b'\n').count() + 1;
            return Err(failed(io::Error::other(format!("is no UTF-8 text from line {line} on"))));
        }
    };
    Ok(text)
}

/// One line that says something.
struct Line<'a> {
    number: usize,
    flag: &'a str,
    value: &'a str,
}

/// All lines, each a flag's of `command` with a value that it takes. What a line says is never shown: it may hold a
/// password.
fn parse<'a>(path: &Path, text: &'a str, command: &Command) -> Result<Vec<Line<'a>>, Wrong> {
    let mut lines: Vec<Line<'a>> = Vec::new();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let number = index + 1;
        let origin = Origin::Line { path: path.to_owned(), line: number };
        let wrong = |what: String| Err(Wrong::Value { origin: origin.clone(), what });
        let line = without_comment(line).trim();
        if line.is_empty() {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            return wrong("a line without `=`: write `flag = value`, or # in front of a comment".to_owned());
        };
        let (name, value) = (name.trim(), value.trim());
        let Some(arg) = flag(command, name).filter(|_| name != "config") else {
            // What cannot be a flag's name may be a part of a URL, and that of a password.
            let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            if name.len() > FLAG_BYTES_MAX || !name.chars().all(is_name) {
                return wrong("what stands before `=` is no flag's name: write `flag = value`".to_owned());
            }
            let near = nearest(command, name).map_or(String::new(), |near| format!(", the nearest is `{near}`"));
            return wrong(format!("no flag is called {}{near}: see dpu-app run --help", quoted(name)));
        };
        let is_list = matches!(arg.get_action(), ArgAction::Append);
        if let Some(before) = lines.iter().find(|line| line.flag == name && !is_list) {
            return wrong(format!("`{name}` stands on line {} already: keep one of them", before.number));
        }
        if let Err(what) = check(arg, name, value) {
            return wrong(what);
        }
        lines.push(Line { number, flag: name, value });
    }
    Ok(lines)
}

/// A line up to a # that begins it or stands behind a space: one inside of a word, as in a password, is a part of it.
fn without_comment(line: &str) -> &str {
    let begins = |at: &usize| line[..*at].chars().next_back().is_none_or(char::is_whitespace);
    let comment = line.match_indices('#').map(|(at, _)| at).find(begins);
    &line[..comment.unwrap_or(line.len())]
}

/// Whether a flag takes a value. The answer never holds it whole where it may be a secret: clap's does.
fn check(arg: &Arg, name: &str, value: &str) -> Result<(), String> {
    if value.is_empty() {
        return Err(format!("`{name}` has no value: give it one, or take the line out"));
    }
    if matches!(arg.get_action(), ArgAction::SetTrue) {
        return match value {
            "true" | "false" => Ok(()),
            _ => Err(format!("`{name}` is true or false")),
        };
    }
    let quotes = ['"', '\''];
    if value.len() > 1 && quotes.iter().any(|&quote| value.starts_with(quote) && value.ends_with(quote)) {
        return Err(format!("the value of `{name}` is in quotes: leave them out"));
    }
    let alone = Command::new("dpu-app").no_binary_name(true).arg(arg.clone().required(false));
    match alone.try_get_matches_from([format!("--{name}={value}")]) {
        Ok(_) => Ok(()),
        Err(error) => {
            let text = error.render().to_string();
            let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
            let choices = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(all)) => format!(": one of {}", all.join(", ")),
                _ => String::new(),
            };
            Err(store::scrub_secrets(&first, &[value]) + &choices)
        }
    }
}

/// The flag that a misspelt name was meant for, without dashes.
fn nearest(command: &Command, name: &str) -> Option<String> {
    let lenient = command.clone().mut_args(|arg| arg.required(false)).no_binary_name(true);
    let meant = name.replace('_', "-").to_lowercase();
    let meant = meant.trim_start_matches('-');
    if flag(command, meant).is_some() {
        return Some(meant.to_owned());
    }
    let error = lenient.try_get_matches_from([format!("--{meant}")]).err()?;
    match error.get(ContextKind::SuggestedArg)? {
        ContextValue::String(near) => Some(near.trim_start_matches('-').to_owned()),
        _ => None,
    }
}

/// Variables that look like ours and are no flag's. Not an error: an orchestrator makes some up (KVLANE_PORT, for a
/// service of our name), and other programs of ours have their own.
fn strangers(command: &Command, environment: &[OsString]) -> Vec<String> {
    let is_ours = |name: &OsStr| command.get_arguments().any(|arg| arg.get_env() == Some(name));
    let mut warnings = Vec::new();
    for name in environment.iter().filter(|name| !is_ours(name)) {
        let name = name.to_string_lossy();
        let Some(rest) = name.strip_prefix("KVLANE_").filter(|_| !VARIABLES_OF_OTHERS.contains(&&*name)) else {
            continue;
        };
        let near = nearest(command, rest)
            .map_or(String::new(), |near| format!(": KVLANE_{} is the nearest", near.replace('-', "_").to_uppercase()));
        warnings.push(format!("{name} is set and no flag has it, so it does nothing{near}"));
    }
    warnings
}

/// The variable that clap speaks of in an error about a value, where the command line did not give that flag.
pub(crate) fn variable_in(command: &Command, error: &clap::Error) -> Option<String> {
    let ContextValue::String(text) = error.get(ContextKind::InvalidArg)? else { return None };
    let long = text.strip_prefix("--")?.split([' ', '=']).next()?;
    let given = |word: OsString| {
        word.to_str().and_then(|word| word.split('=').next()).is_some_and(|word| word == format!("--{long}"))
    };
    let arg = command.get_subcommands().find_map(|sub| flag(sub, long))?;
    let variable = arg.get_env()?;
    let is_set = std::env::var_os(variable).is_some() && !std::env::args_os().any(given);
    is_set.then(|| variable.to_string_lossy().into_owned())
}
