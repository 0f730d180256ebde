//! Opening a device: it gets its engines, whose threads start with the first context that needs them.

use std::any::Any;
use std::sync::Arc;

use crate::config::Config;
use crate::core::chance;
use crate::core::dev::{Dev, DevInfo};
use crate::core::library::{Engines, Unit};
use crate::core::pool::Fifo;
use crate::engine::lane::ExporterLane;
use crate::engine::threads::Engine;
use crate::ffi::abi::{doca_dev, doca_devinfo};
use crate::ffi::{Answer, Handle, Out, exports};

/// The engines of one device.
struct Both {
    compress: Engine,
    dma: Engine,
}

impl Both {
    fn of(&self, unit: Unit) -> &Engine {
        match unit {
            Unit::Compress => &self.compress,
            Unit::Dma => &self.dma,
        }
    }
}

impl Engines for Both {
    fn start(&self, unit: Unit, config: &Config) -> Answer {
        self.of(unit).start(config)
    }

    fn take_in(&self, unit: Unit, tasks: Fifo) {
        self.of(unit).take_in(tasks);
    }

    fn lane(&self, courier: u64, config: &Config) -> Option<Arc<dyn Any + Send + Sync>> {
        ExporterLane::of(courier, config).map(|lane| lane as Arc<dyn Any + Send + Sync>)
    }
}

fn open(info: &DevInfo) -> Dev {
    let config = &info.config;
    let seed = config.seed.unwrap_or_else(chance::any_seed);
    if config.is_hostile() {
        eprintln!("doca-emulator: hostile device, seed={seed}: {config:?}");
    }
    let engines = Both {
        compress: Engine::new("compress", config.decompress_threads, config.reorder, seed),
        dma: Engine::new("dma", config.dma_threads, config.reorder, seed),
    };
    Dev::new(info, seed, engines)
}

exports! {
    fn doca_dev_open(devinfo: *mut doca_devinfo => Handle<DevInfo>, dev: *mut *mut doca_dev => Out<*mut doca_dev>) {
        dev.put(Handle::new(open(&devinfo)).to_c());
        Ok(())
    }
}
