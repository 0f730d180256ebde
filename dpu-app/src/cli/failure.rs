//! The end of a command that failed: text for people, and an object for a machine that asked for one.

use std::collections::HashMap;
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::OnceLock;

use clap::CommandFactory;
use mailbox::{visible, visible_json};

use crate::cli::arguments::CommandLine;
use crate::cli::config_file::{self, Origin};
use crate::count::json;
use crate::error::RunError;

pub(crate) const EXIT_RUNTIME: u8 = 1;
pub(crate) const EXIT_USAGE: u8 = 2;

/// Whether failures are to be JSON objects, too.
pub(super) static JSON: OnceLock<bool> = OnceLock::new();

/// Says why a command failed, as its end.
pub(crate) fn fail(code: u8, what: impl std::fmt::Display) -> ExitCode {
    let text = what.to_string();
    eprintln!("dpu-app: {}", visible(&text));
    say_json(code, &text);
    ExitCode::from(code)
}

fn say_json(code: u8, text: &str) {
    if JSON.get() == Some(&true) {
        say!("{}", visible_json(&format!("{{\"ok\":false,\"error\":{},\"code\":{code}}}", json::Quoted(text))));
    }
}

/// Fails as [`fail`] does, and names the file or variable that set the flag to blame.
pub(crate) fn fail_by(error: &RunError, origins: &HashMap<String, Origin>) -> ExitCode {
    match error.flag().and_then(|flag| origins.get(flag)) {
        Some(origin) => fail(error.exit_code(), format_args!("{origin}: {error}")),
        None => fail(error.exit_code(), error),
    }
}

/// What is wrong with what was said: `text` says it without what may be a part of a password.
pub(super) struct Complaint {
    /// Help or version, which are no complaint.
    pub(super) help: Option<clap::Error>,
    pub(super) text: String,
}

impl Complaint {
    pub(super) fn of(error: clap::Error, arguments: Vec<OsString>) -> Self {
        if !error.use_stderr() {
            return Self { help: Some(error), text: String::new() };
        }
        let mut text = error.render().to_string();
        if let Some(variable) = config_file::variable_in(&CommandLine::command(), &error) {
            text = text.replacen('\n', &format!(" (from {variable})\n"), 1);
        }
        let texts = |texts: Vec<OsString>| -> Vec<String> {
            texts.iter().map(|text| text.to_string_lossy().into_owned()).collect()
        };
        let ours = std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("KVLANE_"));
        let environment = texts(ours.map(|(_, value)| value).collect());
        let text = store::scrub_secrets(&text, &texts(arguments));
        Self { help: None, text: store::scrub_secrets(&text, &environment) }
    }

    /// Says it, as the end of the program.
    pub(super) fn end(self) -> ExitCode {
        if let Some(help) = self.help {
            let _ = help.print();
            return ExitCode::SUCCESS;
        }
        let text = self.text.strip_prefix("error: ").unwrap_or(&self.text);
        let mut lines = text.lines();
        let first = lines.next().unwrap_or_default();
        let code = fail(EXIT_USAGE, first);
        lines.for_each(|line| eprintln!("{}", visible(line)));
        code
    }
}
