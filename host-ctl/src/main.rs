//! `host-ctl`: parses, calls the library, prints once, and turns errors into exit codes.
#![forbid(unsafe_code)]

mod cli;

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use mailbox::visible;

fn main() -> ExitCode {
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("warn")).format(log_line).init();
    // A command line that cannot be read has not said whether it wants JSON: its words do.
    let json = std::env::args_os().any(|argument| argument == "--json");
    let arguments = match cli::Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refused(&error, json),
    };
    match cli::run(arguments) {
        Ok(cli::Verdict::Good) => ExitCode::SUCCESS,
        Ok(cli::Verdict::Bad) => ExitCode::from(1),
        Err(error) => {
            cli::failed(&error.to_string(), error.exit_code(), json);
            ExitCode::from(error.exit_code())
        }
    }
}

/// `host-ctl: warn: text`, as errors are shown, whatever the text has of others' making.
fn log_line(out: &mut env_logger::fmt::Formatter, record: &log::Record<'_>) -> std::io::Result<()> {
    writeln!(out, "host-ctl: {}: {}", record.level().as_str().to_lowercase(), visible(&record.args().to_string()))
}

/// Help and version, which are no failures, or what is wrong with the command line.
fn refused(error: &clap::Error, json: bool) -> ExitCode {
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
        let value = serde_json::json!({ "ok": false, "error": first.trim_start_matches("error: "), "code": code });
        let _ = writeln!(std::io::stdout(), "{value}");
    }
    ExitCode::from(code)
}
