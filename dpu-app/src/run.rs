//! Init: opens the device and the store, allocates everything, starts the threads, and hands over to the engine thread.

use std::thread;

use doca::{Area, Code, Device, Selector, Slab};
use mailbox::channel::{Listener, UnixListener};
use nix::sys::eventfd::EventFd;
use store::Readable;

use crate::config::{Config, store_limits};
use crate::error::RunError;
use crate::hub::fit::Fit;
use crate::hub::{Hub, HubError};
use crate::metrics;
use crate::settings;
use crate::slots::lender::open_store;
use crate::workers::affinity;
use crate::workers::shared::Shared;
use crate::workers::threads::{Leaving, Lines};

/// Runs until `stop` is rung or a host says `Stop`, and everything has drained. `ready` is called when hosts can
/// attach.
///
/// # Errors
/// See [`RunError`]: the operator's mistakes come before anything is allocated.
pub fn run(config: &Config, stop: &EventFd, ready: impl FnOnce()) -> Result<(), RunError> {
    let Checked { device, .. } = check(config)?;
    let (store, slab) = open_store(config, &device).map_err(RunError::Store)?;
    serve(config, device, store.as_ref(), slab, stop, ready)
}

/// What [`check`] found, before anything is made.
#[derive(Debug)]
pub struct Checked {
    pub device: Device,
    pub fit: Fit,
    pub store: store::Outline,
}

/// Checks all that can be refused in advance: `run` begins with it, and `dpu-app limits` is it. Opens the device and
/// nothing else.
///
/// # Errors
/// See [`RunError`].
pub fn check(config: &Config) -> Result<Checked, RunError> {
    config.check().map_err(RunError::Config)?;
    check_cpus(config)?;
    let store =
        store::outline(config.store.reveal(), &store_limits(config), &config.namespaces).map_err(RunError::Store)?;
    let device = open(&config.device)?;
    let fit = Fit::of(&device, config).map_err(RunError::Unfit)?;
    Ok(Checked { device, fit, store })
}

/// Opens the device that was named, or says which there are.
fn open(wanted: &Selector) -> Result<Device, RunError> {
    Device::open(wanted).map_err(|error| match error.code {
        Code::NOT_FOUND => match Device::list() {
            Ok(seen) => RunError::NoDevice { wanted: wanted.clone(), seen },
            Err(error) => RunError::Device(error),
        },
        _ => RunError::Device(error),
    })
}

/// Runs with a device and a store that the caller opened, and the slab that the store lends from.
///
/// # Errors
/// See [`RunError`].
pub fn serve(
    config: &Config,
    device: Device,
    store: &dyn Readable<Area>,
    slab: Option<Slab>,
    stop: &EventFd,
    ready: impl FnOnce(),
) -> Result<(), RunError> {
    let fit = Fit::of(&device, config).map_err(RunError::Unfit)?;
    if !device.info().imports_memory {
        log::warn!("{}: says that it cannot import a host's memory: is this the card's side?", device.info().name());
    }
    if let Some(what) = fit.in_software() {
        log::warn!("{}: {what}", device.info().name());
    }
    let bind = |address| metrics::MetricsServer::bind(address).map_err(|error| RunError::Metrics { address, error });
    let metrics = config.metrics.map(bind).transpose()?;
    let mut listeners: Vec<Box<dyn Listener>> = Vec::new();
    if config.attach.has_socket() {
        let listener = UnixListener::bind(&config.socket)
            .map_err(|error| RunError::Channel { socket: config.socket.clone(), error })?;
        listeners.push(Box::new(listener));
    }
    let shared = Shared::allocate(config, &device, store, slab, stop)?;
    let mut lines = Lines::new(config)?;
    thread::scope(|scope| {
        let mut leaving = Leaving::of(&shared);
        let crews = lines.staff(scope, &shared, &mut leaving)?;
        let (info, settings) = (device.info().to_string(), settings::lines(config));
        let hub = Hub::new(&shared, device, &fit, crews, listeners).map_err(RunError::Hub)?;
        announce(&info, &shared, &settings);
        let _metrics = match &metrics {
            Some(server) => Some(server.start(scope, &shared, &info, &settings).map_err(RunError::System)?),
            None => None,
        };
        let _reload = config.reload.leave();
        let shared = &shared;
        let reload = move || config.reload.run(shared.config, shared.store);
        thread::Builder::new().name("reload".into()).spawn_scoped(scope, reload).map_err(RunError::System)?;
        ready();
        match hub.run().map_err(RunError::Hub) {
            Err(error @ RunError::Hub(HubError::WorkerHangs(_))) => leave_without(&error),
            ended => ended,
        }
    })
}

/// Ends the process: a scope joins its threads, and one of them does not come back.
fn leave_without(error: &RunError) -> ! {
    log::error!("{error}");
    std::process::exit(error.exit_code().into())
}

/// Logs what is about to run, once everything was allocated.
fn announce(device: &str, shared: &Shared<'_>, settings: &[(&str, String)]) {
    log::info!("device {device}");
    log::info!("store {}", shared.store.describe());
    log::info!("{}", crate::config::ratios::words(shared.config.recipe));
    for (name, value) in settings {
        log::info!("limit {name}: {value}");
    }
}

fn check_cpus(config: &Config) -> Result<(), RunError> {
    for (name, cpus) in [
        ("--fetch-cpus", &config.fetch_cpus),
        ("--dequantize-cpus", &config.dequantize_cpus),
        ("--encode-cpus", &config.encode_cpus),
    ] {
        if let Some(cpu) = affinity::unusable(cpus).map_err(|errno| RunError::System(errno.into()))? {
            return Err(RunError::Cpu { name, cpu });
        }
    }
    Ok(())
}
