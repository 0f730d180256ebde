//! What the device has to be able to do for this configuration, asked before anything is allocated.
//!
//! Without DMA there is no way to the host's memory: no start. Without an inflate engine (for blocks of this size) the
//! operator chooses: another device, or software with `--allow-software`; it is never chosen silently. Task counts
//! beyond what one context takes are refused with the flag that asks for them: the sum over all task types is what DOCA
//! limits.

use std::fmt;

use block::Codec;
use doca::{Depth, Device, DeviceInfo, OperationKind};

use crate::config::Config;
use crate::hub::session::MailLane;

/// Engines to use, and the depth of each.
#[derive(Clone, Copy, Debug)]
pub struct Fit {
    /// `None`: software inflates.
    pub inflate: Option<InflateFit>,
    pub bulk: Depth,
    pub mail: Depth,
}

#[derive(Clone, Copy, Debug)]
pub struct InflateFit {
    pub lz4: bool,
    pub depth: Depth,
}

/// Reason for which a device cannot serve this configuration.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Unfit {
    NoDma {
        device: String,
    },
    /// `engine` is a name of [`DeviceInfo::engines`].
    NoInflate {
        device: String,
        engine: &'static str,
    },
    BlockTooLarge {
        device: String,
        engine: &'static str,
        bytes_max: u64,
        block_bytes: usize,
    },
    TooManyTasks {
        device: String,
        flag: &'static str,
        value: usize,
        tasks: usize,
        tasks_max: u32,
    },
    Unanswered(doca::Error),
}

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDma { device } => write!(
                f,
                "device: {device} has no DMA engine, and nothing else reaches host memory: choose another with --device \
                 (`dpu-app devices` lists them)"
            ),
            Self::NoInflate { device, engine } => write!(
                f,
                "device: {device} has no {engine} engine: choose another with --device, or let software inflate with \
                 --allow-software"
            ),
            Self::BlockTooLarge { device, engine, bytes_max, block_bytes } => {
                write!(
                    f,
                    "device: {device}: its {engine} engine takes {bytes_max} bytes a task, --block-bytes is \
                     {block_bytes}: lower it"
                )?;
                if *engine == "dma" { Ok(()) } else { write!(f, ", or let software inflate with --allow-software") }
            }
            Self::TooManyTasks { device, flag, value, tasks, tasks_max } => write!(
                f,
                "device: {device}: {flag} {value} needs {tasks} tasks of one context, which takes {tasks_max}: lower it"
            ),
            Self::Unanswered(error) => write!(f, "device: {error}: is its driver loaded?"),
        }
    }
}

impl std::error::Error for Unfit {}

impl Fit {
    /// Asks an open device.
    ///
    /// # Errors
    /// Names the first thing that it cannot do.
    pub fn of(device: &Device, config: &Config) -> Result<Self, Unfit> {
        Self::choose(device.info(), config, |kind| device.tasks_max(kind).map_err(Unfit::Unanswered))
    }

    fn choose(
        info: &DeviceInfo,
        config: &Config,
        tasks_max: impl Fn(OperationKind) -> Result<u32, Unfit>,
    ) -> Result<Self, Unfit> {
        let (device, block_bytes) = (|| info.name(), config.block_bytes);
        let dma = info.dma.ok_or_else(|| Unfit::NoDma { device: device() })?;
        if dma.bytes_max < block_bytes as u64 {
            let bytes_max = dma.bytes_max;
            return Err(Unfit::BlockTooLarge { device: device(), engine: "dma", bytes_max, block_bytes });
        }
        let copies = tasks_max(OperationKind::Dma)?;
        let within = |flag, value, tasks: usize, tasks_max: u32| match tasks <= tasks_max as usize {
            true => Ok(()),
            false => Err(Unfit::TooManyTasks { device: device(), flag, value, tasks, tasks_max }),
        };
        // A transfer of a strided layout is many tasks; the depth counts transfers. More than one each is a luxury.
        let bulk = Depth { operations: config.dma_depth, tasks: config.dma_depth * 4 + 64 };
        let bulk = Depth { tasks: bulk.tasks.min(copies as usize), ..bulk };
        within("--dma-depth", config.dma_depth, config.dma_depth, copies)?;
        let letters = config.places() * MailLane::ALL.len();
        within("--sessions", config.sessions, letters, copies)?;
        let mail = Depth { operations: letters, tasks: letters };

        let inflate = match Self::inflate(info, config) {
            Ok(lz4) => {
                let depth = Depth { operations: config.inflate_depth, tasks: config.inflate_depth };
                let types = 1 + usize::from(lz4);
                within(
                    "--inflate-depth",
                    config.inflate_depth,
                    depth.tasks * types,
                    tasks_max(OperationKind::Decompress)?,
                )?;
                Some(InflateFit { lz4, depth })
            }
            Err(_) if config.allow_software => None,
            Err(unfit) => return Err(unfit),
        };
        Ok(Self { inflate, bulk, mail })
    }

    /// Tells whether the engine also takes LZ4; an error if it does not take what this configuration needs.
    fn inflate(info: &DeviceInfo, config: &Config) -> Result<bool, Unfit> {
        let (block_bytes, device) = (config.block_bytes, || info.name());
        let takes = |engine, caps: Option<doca::EngineCaps>| {
            let caps = caps.ok_or_else(|| Unfit::NoInflate { device: device(), engine })?;
            let bytes_max = caps.bytes_max;
            match bytes_max >= block_bytes as u64 {
                true => Ok(()),
                false => Err(Unfit::BlockTooLarge { device: device(), engine, bytes_max, block_bytes }),
            }
        };
        takes("inflate_deflate", info.inflate)?;
        let lz4 = takes("inflate_lz4_block", info.lz4_block);
        // A card without LZ4 serves well, unless LZ4 is what is stored here.
        match (lz4, config.recipe.codec) {
            (Err(unfit), Codec::Lz4) if !config.allow_software => Err(unfit),
            (lz4, _) => Ok(lz4.is_ok()),
        }
    }

    /// Says what software has to do, for the log; `None` if nothing.
    #[must_use]
    pub fn in_software(&self) -> Option<&'static str> {
        match self.inflate {
            None => Some("all blocks are inflated by software (--allow-software)"),
            Some(InflateFit { lz4: false, .. }) => Some("LZ4 blocks, if there are any, are inflated by software"),
            Some(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use doca::EngineCaps;

    use super::*;

    fn caps(bytes_max: u64) -> Option<EngineCaps> {
        Some(EngineCaps { bytes_max, list_max: 128 })
    }

    fn bf3() -> DeviceInfo {
        let (pci_address, ibdev) = (String::from("0000:03:00.0"), String::from("mlx5_0"));
        DeviceInfo {
            pci_address,
            ibdev,
            dma: caps(2 << 20),
            inflate: caps(2 << 20),
            lz4_block: caps(2 << 20),
            comch: doca::comch::Caps::default(),
            exports_memory: true,
            imports_memory: true,
        }
    }

    fn choose(info: &DeviceInfo, config: &Config, tasks_max: u32) -> Result<Fit, Unfit> {
        Fit::choose(info, config, |_| Ok(tasks_max))
    }

    fn refusal(info: &DeviceInfo, config: &Config, tasks_max: u32) -> String {
        choose(info, config, tasks_max).expect_err("must be refused").to_string()
    }

    #[test]
    fn a_bluefield_3_takes_the_defaults_of_any_machine() {
        for cores in [1, 2, 16] {
            let fit = choose(&bf3(), &Config::for_cores(cores), 8192).unwrap();
            assert!(fit.inflate.is_some_and(|inflate| inflate.lz4));
            assert_eq!(fit.in_software(), None);
        }
    }

    #[test]
    fn no_dma_is_refused_even_with_software_allowed() {
        let info = DeviceInfo { dma: None, ..bf3() };
        let config = Config { allow_software: true, ..Config::for_cores(2) };
        assert!(refusal(&info, &config, 8192).contains("0000:03:00.0 (mlx5_0) has no DMA engine"));
        let info = DeviceInfo { dma: caps(1 << 16), ..bf3() };
        let words = refusal(&info, &config, 8192);
        assert!(
            words.contains("65536 bytes a task, --block-bytes is 524288") && !words.contains("software"),
            "{words}"
        );
    }

    #[test]
    fn no_inflate_is_the_operators_choice() {
        for info in [DeviceInfo { inflate: None, ..bf3() }, DeviceInfo { inflate: caps(4096), ..bf3() }] {
            let mut config = Config::for_cores(2);
            assert!(refusal(&info, &config, 8192).ends_with("--allow-software"));
            config.allow_software = true;
            let fit = choose(&info, &config, 8192).unwrap();
            assert!(fit.inflate.is_none() && fit.in_software().is_some());
        }
    }

    #[test]
    fn no_lz4_matters_where_lz4_is_stored() {
        let info = DeviceInfo { lz4_block: None, ..bf3() };
        let mut config = Config::for_cores(2);
        assert!(choose(&info, &config, 8192).unwrap().inflate.is_some_and(|inflate| !inflate.lz4));
        config.recipe = "q5+lz4".parse().unwrap();
        assert!(refusal(&info, &config, 8192).contains("no inflate_lz4_block engine"));
        config.allow_software = true;
        assert!(choose(&info, &config, 8192).unwrap().inflate.is_some_and(|inflate| !inflate.lz4));
    }

    #[test]
    fn the_sum_over_the_task_types_is_what_counts() {
        let config = Config::for_cores(2);
        let sum = 2 * config.inflate_depth as u32;
        let tasks = sum.max((config.places() * MailLane::ALL.len()) as u32);
        assert!(choose(&bf3(), &config, tasks).is_ok());
        let info = DeviceInfo { lz4_block: None, ..bf3() };
        let deep = Config { inflate_depth: 60, dma_depth: 8, sessions: 8, ..config.clone() };
        assert!(choose(&info, &deep, 64).is_ok());
        assert!(
            refusal(&bf3(), &deep, 64).contains("--inflate-depth 60 needs 120 tasks of one context, which takes 64")
        );
        assert!(
            refusal(&bf3(), &Config { dma_depth: 64, sessions: 8, ..config.clone() }, 63).contains("--dma-depth 64")
        );
        assert!(refusal(&bf3(), &Config { dma_depth: 2, ..config }, 8).contains("--sessions 27"));
    }
}
