//! `dpu-app scrub`.

use std::process::ExitCode;

use crate::count::json::Quoted;
use clap::Args;
use mailbox::visible;
use store::scrub;

use crate::cli::failure::{EXIT_RUNTIME, EXIT_USAGE, fail};

#[derive(Debug, Args)]
pub(crate) struct Scrub {
    /// The store: dir:PATH
    store: String,
    /// Move damaged files to the store's quarantine (no dpu-app may be using it)
    #[arg(long)]
    repair: bool,
    /// One JSON object instead of text
    #[arg(long)]
    json: bool,
}

pub(crate) fn scrub_store(scrub: &Scrub) -> ExitCode {
    let Some(path) = store::directory(&scrub.store) else {
        return fail(
            EXIT_USAGE,
            format_args!("{}: only dir:PATH stores can be scrubbed", store::Url::from(&*scrub.store)),
        );
    };
    let mode = if scrub.repair { scrub::Mode::Repair } else { scrub::Mode::Report };
    let mut findings = Vec::new();
    let report = scrub::run(path, mode, &mut |event| {
        if let scrub::ScrubEvent::Finding(finding) = event {
            match scrub.json {
                true => findings.push(finding.to_string()),
                false => say!("{}", visible(&finding.to_string())),
            }
        }
    });
    let report = match report {
        Ok(report) => report,
        Err(error) => return fail(EXIT_USAGE, error),
    };
    if scrub.json {
        let numbers = [
            ("files", report.files),
            ("bytes", report.bytes),
            ("blocks", report.blocks),
            ("good", report.good),
            ("damaged", report.damaged),
            ("moved", report.moved),
            ("unreadable", report.unreadable),
            ("foreign", report.foreign),
            ("misnamed", report.misnamed),
            ("unfinished", report.unfinished),
            ("quarantined", report.quarantined),
        ];
        let numbers: Vec<_> = numbers.iter().map(|(name, value)| format!("\"{name}\":{value}")).collect();
        let findings: Vec<_> = findings.iter().map(|finding| Quoted(finding).to_string()).collect();
        say!("{{{},\"findings\":[{}]}}", numbers.join(","), findings.join(","));
    } else {
        say!(
            "{} files, {} blocks, {} bytes: {} good, {} damaged ({} moved), {} unreadable, {} of another version, {} misnamed",
            report.files,
            report.blocks,
            report.bytes,
            report.good,
            report.damaged,
            report.moved,
            report.unreadable,
            report.foreign,
            report.misnamed
        );
    }
    if report.damaged > report.moved || report.unreadable > 0 {
        ExitCode::from(EXIT_RUNTIME)
    } else {
        ExitCode::SUCCESS
    }
}
