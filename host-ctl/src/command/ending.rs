//! How a program says what went wrong: a line for people, an object for machines, an exit code.

use std::io::Write as _;
use std::process::ExitCode;

use env_logger::fmt::Formatter;
use mailbox::visible;
use serde_json::json;

use super::show::print_json;

/// Longest error on one line; what is longer is a list that nobody reads.
const ERROR_CHARS_MAX: usize = 2000;

/// The end of a command that failed: text for people on standard error, and an object for a machine that asked for one.
pub fn failed(program: &str, text: &str, code: u8, json: bool) {
    let shown: String = visible(text).chars().take(ERROR_CHARS_MAX).collect();
    let rest = if shown.len() < text.len() && text.chars().count() > ERROR_CHARS_MAX { " ..." } else { "" };
    eprintln!("{program}: {shown}{rest}");
    if json {
        print_json(&json!({ "ok": false, "error": text, "code": code }));
    }
}

/// Logs as errors are shown, `host-ctl: warn: text`, whatever the text has of others' making.
pub fn log(program: &'static str) {
    let line = move |out: &mut Formatter, record: &log::Record<'_>| {
        let level = record.level().as_str().to_lowercase();
        writeln!(out, "{program}: {level}: {}", visible(&record.args().to_string()))
    };
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).format(line).init();
}

/// Help and version, which are no failures, or what is wrong with the command line.
pub fn refused(error: &clap::Error, json: bool) -> ExitCode {
    let code = error.exit_code().clamp(0, 255) as u8;
    let told = error.render().to_string();
    // Without what may be a part of a password: a URL with a space in it has become several arguments.
    let arguments: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    let text = store::scrub_secrets(&told, &arguments);
    if !error.use_stderr()
        || text == told && text.lines().all(|line| matches!(visible(line), std::borrow::Cow::Borrowed(_)))
    {
        // In colour, where there is somebody to see it.
        let _ = error.print();
    } else {
        text.lines().for_each(|line| eprintln!("{}", visible(line)));
    }
    if json && error.use_stderr() {
        let first = text.lines().next().unwrap_or_default();
        let value = json!({ "ok": false, "error": first.trim_start_matches("error: "), "code": code });
        let _ = writeln!(std::io::stdout(), "{value}");
    }
    ExitCode::from(code)
}
