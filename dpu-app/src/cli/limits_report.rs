//! `dpu-app limits`: what `run` with the same flags would have, or the very error with which it would not start.

use std::collections::HashMap;
use std::process::ExitCode;

use crate::config::Config;
use crate::count::json::Quoted;
use mailbox::visible;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::cli::arguments::LimitsFlags;
use crate::cli::config_file::Origin;
use crate::cli::failure::{EXIT_USAGE, fail, fail_by};
use crate::run::{Checked, check};

pub(crate) fn limits(limits: &LimitsFlags, origins: &HashMap<String, Origin>) -> ExitCode {
    let config: Config = match limits.run.config() {
        Ok(config) => config,
        Err(error) => return fail(EXIT_USAGE, error),
    };
    let checked = match check(&config) {
        Ok(checked) => checked,
        Err(error) => return fail_by(&error, origins),
    };
    let mut lines: Vec<(&str, String)> = vec![("device", checked.device.info().to_string())];
    lines.extend(checked.store.parts.iter().map(|part| ("store", part.text.clone())));
    lines.extend(crate::settings::lines(&config));
    lines.push(("memory that this user may pin", may_pin()));
    if limits.json {
        say!("{}", json(&config, &checked, &lines));
    } else {
        lines.iter().for_each(|(name, value)| say!("{name}: {}", visible(value)));
    }
    ExitCode::SUCCESS
}

/// RLIMIT_MEMLOCK of this process. The unit has its own: LimitMEMLOCK=infinity.
fn may_pin() -> String {
    match getrlimit(Resource::RLIMIT_MEMLOCK) {
        Ok((RLIM_INFINITY, _)) => String::from("all (RLIMIT_MEMLOCK is unlimited)"),
        Ok((bytes, _)) => format!("{:.1} MiB (RLIMIT_MEMLOCK)", bytes as f64 / f64::from(1 << 20)),
        Err(errno) => format!("unknown (getrlimit: {})", errno.desc()),
    }
}

fn json(config: &Config, checked: &Checked, lines: &[(&str, String)]) -> String {
    let object = |numbers: &[(&str, usize)]| {
        let numbers: Vec<String> = numbers.iter().map(|(name, bytes)| format!("{}:{bytes}", Quoted(name))).collect();
        format!("{{{}}}", numbers.join(","))
    };
    let sum = |numbers: &[(&str, usize)]| numbers.iter().map(|(_, bytes)| bytes).sum::<usize>();
    let number = |value: Option<u64>| value.map_or(String::from("null"), |value| value.to_string());
    let store: Vec<String> = checked
        .store
        .parts
        .iter()
        .map(|part| {
            format!(
                "{{\"name\":\"{}\",\"text\":{},\"memory_bytes\":{},\"pinned_bytes\":{},\"bytes_max\":{},\"chunks_max\":{}}}",
                part.name,
                Quoted(&part.text),
                part.memory_bytes,
                part.pinned_bytes,
                number(part.bytes_max),
                number(part.chunks_max)
            )
        })
        .collect();
    let (memory, pinned) = (crate::footprint::lines(config), crate::footprint::pinned(config));
    let texts: Vec<String> =
        lines.iter().map(|(name, value)| format!("[{},{}]", Quoted(name), Quoted(value))).collect();
    format!(
        "{{\"ok\":true,\"sessions\":{},\"slots\":{},\"block_bytes\":{},\"chunks\":{},\"store\":[{}],\"memory_bytes\":{},\
         \"memory\":{},\"memory_bytes_at_start\":{},\"session_bytes\":{},\"pinned_bytes\":{},\"pinned\":{},\"huge_pages_of_2_mib\":{},\"lines\":[{}]}}",
        config.sessions,
        config.slots,
        config.block_bytes,
        config.chunks,
        store.join(","),
        sum(&memory),
        object(&memory),
        crate::footprint::at_start(config),
        crate::footprint::of_session(config),
        sum(&pinned),
        object(&pinned),
        sum(&pinned) / doca::HUGE_PAGE_BYTES,
        texts.join(",")
    )
}
