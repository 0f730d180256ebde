//! `dpu-app run`: the data plane, until a signal or a host ends it.

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::process::ExitCode;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SigSet, Signal};

use crate::cli::arguments::{CliCommand, RunFlags, VERSION};
use crate::cli::config_file::Origin;
use crate::cli::failure::{EXIT_RUNTIME, EXIT_USAGE, fail, fail_by};
use crate::cli::read;
use crate::config::{Attach, Reload, Watchdog};

pub(super) fn run_data_plane(run: &RunFlags, origins: &HashMap<String, Origin>) -> ExitCode {
    let mut config = match run.config() {
        Ok(config) => config,
        Err(error) => return fail(EXIT_USAGE, error),
    };
    config.supervisor = match Watchdog::from_environment() {
        Ok(target) => target,
        Err(what) => return fail(EXIT_USAGE, what),
    };
    let flags = EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK;
    let stop = match EventFd::from_value_and_flags(0, flags) {
        Ok(stop) => stop,
        Err(errno) => return fail(EXIT_RUNTIME, format_args!("eventfd: {}", errno.desc())),
    };
    if let Err(error) = heed_signals(&stop, &config.reload) {
        return fail(EXIT_RUNTIME, error);
    }
    announce_version();
    let ready = || match config.attach {
        Attach::Socket => log::info!("ready: hosts attach to {}", config.socket.display()),
        Attach::Comch => log::info!("ready: hosts attach by Comch `{}`", config.comch_name),
        Attach::Both => {
            log::info!("ready: hosts attach by Comch `{}` and to {}", config.comch_name, config.socket.display());
        }
    };
    match crate::run(&config, &stop, ready) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail_by(&error, origins),
    }
}

/// Logs the version, and warns if this is not a card.
fn announce_version() {
    let running = doca::version::running_with();
    log::info!("dpu-app {}, running with DOCA {running}", *VERSION);
    if doca::version::is_emulator() {
        log::warn!(
            "EMULATOR: there is no card, all engines run in software; a card needs a build with the feature `sdk`"
        );
    } else if !VERSION.ends_with(&format!(" {running})")) {
        log::warn!("built for another DOCA than it runs with: build again if anything is odd");
    }
}

/// A thread of its own waits for SIGTERM, SIGINT and SIGHUP, so that no handler runs in the data plane.
fn heed_signals(stop: &EventFd, reload: &Reload) -> Result<(), String> {
    let mut signals = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().for_each(|signal| signals.add(signal));
    signals.thread_block().map_err(|errno| format!("sigmask: {}", errno.desc()))?;
    let stop = stop.as_fd().try_clone_to_owned().map_err(|error| format!("eventfd: {error}"))?;
    let reload = reload.clone();
    let wait = move || {
        let stop = std::fs::File::from(stop);
        while let Ok(signal) = signals.wait() {
            if signal == Signal::SIGHUP {
                read_again(&reload);
                continue;
            }
            log::info!("{signal}: stopping");
            let _ = std::io::Write::write(&mut &stop, &1_u64.to_ne_bytes());
        }
    };
    std::thread::Builder::new()
        .name(String::from("signals"))
        .spawn(wait)
        .map_err(|error| format!("thread: {error}"))?;
    Ok(())
}

/// Reads command line, environment and file again, and hands on what they say.
fn read_again(reload: &Reload) {
    log::info!("SIGHUP: reading the configuration again");
    let config = match read().map(|(arguments, _)| arguments.command) {
        Ok(CliCommand::Run(run)) => run.config().map_err(|error| error.to_string()),
        Ok(_) => return,
        Err(complaint) => Err(complaint.text),
    };
    match config.and_then(|config| config.check().map(|()| config).map_err(|error| error.to_string())) {
        Ok(config) => reload.ask(config),
        Err(text) => log::error!("reload: {}: nothing was changed", text.trim_end().replace('\n', " ")),
    }
}
