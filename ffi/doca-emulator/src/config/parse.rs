//! The one parser of settings: `key=value`, separated by commas.

use std::fmt;
use std::str::FromStr;

use crate::config::limits::{LIST_MAX, TASKS_MAX};
use crate::config::{Config, FlipWay, PciAddress, Profile, Representors, Role, Without};

/// Functions of the card that a process may see.
const DEVICES_MAX: u32 = 8;
/// Functions of the host that one of them serves.
const REPRESENTORS_MAX: u32 = 64;
const THREADS_MAX: u32 = 64;

impl FromStr for Without {
    type Err = ();

    /// `inflate`, `lz4`, `dma`, joined by `+`.
    fn from_str(text: &str) -> Result<Without, ()> {
        let mut without = Without::default();
        for name in text.split('+') {
            match name {
                "inflate" => without.inflate = true,
                "lz4" => without.lz4 = true,
                "dma" => without.dma = true,
                _ => return Err(()),
            }
        }
        Ok(without)
    }
}

/// What is wrong with a configuration text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// An item without `=`.
    NotAnAssignment(String),
    UnknownKey(String),
    BadValue {
        key: &'static str,
        value: String,
        wanted: &'static str,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ConfigError::NotAnAssignment(item) => write!(f, "`{item}` is not key=value"),
            ConfigError::UnknownKey(key) => write!(f, "unknown key `{key}`"),
            ConfigError::BadValue { key, value, wanted } => write!(f, "{key}={value}: wanted {wanted}"),
        }
    }
}

impl std::error::Error for ConfigError {}

impl FromStr for Config {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Config, ConfigError> {
        let mut config = Config::default();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let (key, value) = item.split_once('=').ok_or_else(|| ConfigError::NotAnAssignment(item.to_owned()))?;
            config.set(key.trim(), value.trim())?;
        }
        config.check_addresses()?;
        Ok(config)
    }
}

impl Config {
    fn set(&mut self, key: &str, value: &str) -> Result<(), ConfigError> {
        match key {
            "profile" => {
                self.profile = match value {
                    "bf3" => Profile::Bf3,
                    "bf2" => Profile::Bf2,
                    _ => return Err(bad("profile", value, "bf2 or bf3")),
                }
            }
            "without" => {
                self.without = value.parse().map_err(|()| bad("without", value, "inflate, lz4, dma, joined by +"))?;
            }
            "buf_bytes_max" => self.buf_bytes_max = number("buf_bytes_max", value, 64..=u64::MAX, "64 or more")?,
            "list_max" => self.list_max = number("list_max", value, 1..=LIST_MAX, "1 to 128")?,
            "tasks_max" => self.tasks_max = number("tasks_max", value, 1..=TASKS_MAX, "1 to 8192")?,
            "devices" => self.devices = number("devices", value, 0..=DEVICES_MAX, "0 to 8")?,
            "role" => {
                self.role = match value {
                    "any" => Role::Any,
                    "host" => Role::Host,
                    "card" | "dpu" => Role::Card,
                    _ => return Err(bad("role", value, "any, host or card")),
                }
            }
            "pci" => self.pci = address("pci", value)?,
            "rep" if value.contains(':') => {
                self.rep =
                    Representors::At(value.split('+').map(|place| address("rep", place)).collect::<Result<_, _>>()?);
            }
            "rep" => {
                let wanted = "1 to 64, or PCI addresses with + between them";
                self.rep = Representors::Count(number("rep", value, 1..=REPRESENTORS_MAX, wanted)?);
            }
            "comch_dir" if value.is_empty() => return Err(bad("comch_dir", value, "a directory")),
            "comch_dir" => self.comch_dir = Some(value.into()),
            "comch_wait_ms" => self.comch_wait_ms = number("comch_wait_ms", value, 0..=600_000, "up to 600000")?,
            "decompress_threads" => self.decompress_threads = threads("decompress_threads", value)?,
            "dma_threads" => self.dma_threads = threads("dma_threads", value)?,
            "queue" => self.queue = number("queue", value, 0..=8192, "up to 8192")?,
            "window" => self.window = switch("window", value)?,
            "seed" => self.seed = Some(number("seed", value, 0..=u64::MAX, "a 64-bit number")?),
            "fail" => self.fail = probability("fail", value)?,
            "again" => self.again = probability("again", value)?,
            "corrupt" => self.corrupt = probability("corrupt", value)?,
            "dma_flip" => self.dma_flip = probability("dma_flip", value)?,
            "dma_flip_at" => self.dma_flip_at = number("dma_flip_at", value, 0..=u64::MAX, "a number of copies")?,
            "dma_flip_way" => {
                self.dma_flip_way = match value {
                    "any" => FlipWay::Any,
                    "to-host" => FlipWay::ToHost,
                    "from-host" => FlipWay::FromHost,
                    _ => return Err(bad("dma_flip_way", value, "any, to-host or from-host")),
                }
            }
            "dma_flip_bytes" => self.dma_flip_bytes = number("dma_flip_bytes", value, 0..=u32::MAX, "bytes")?,
            "delay_us" => self.delay_us = number("delay_us", value, 0..=10_000_000, "up to 10000000")?,
            "reorder" => self.reorder = switch("reorder", value)?,
            "faults" => {
                let wanted = "EFFECT:KIND:NUMBER such as fail:inflate:3 or delay:memcpy:2:5000, joined by +";
                let faults: Result<_, ()> = value.split('+').map(str::parse).collect();
                self.faults = faults.map_err(|()| bad("faults", value, wanted))?;
            }
            "lose_after" => self.lose_after = number("lose_after", value, 0..=u64::MAX, "a number of tasks")?,
            "exporter_gone" => self.exporter_gone = probability("exporter_gone", value)?,
            "timing" => self.timing = switch("timing", value)?,
            "task_ns" => self.task_ns = number("task_ns", value, 0..=1_000_000_000, "up to 1000000000")?,
            "gigabytes_per_s" => {
                self.gigabytes_per_s = number("gigabytes_per_s", value, 0.001..=1000.0, "0.001 to 1000")?;
            }
            "depth" => self.depth = number("depth", value, 1..=1024, "1 to 1024")?,
            "remember" => self.remember = number("remember", value, 0..=u64::MAX, "a number of bytes")?,
            "inline_bytes" => self.inline_bytes = number("inline_bytes", value, 0..=1 << 20, "up to 1048576")?,
            "quiet" => self.quiet = switch("quiet", value)?,
            "debug" => self.debug = switch("debug", value)?,
            _ => return Err(ConfigError::UnknownKey(key.to_owned())),
        }
        Ok(())
    }

    /// Checks that all functions are on their bus and that no two representors stand for the same one.
    fn check_addresses(&self) -> Result<(), ConfigError> {
        if self.rep.count() > REPRESENTORS_MAX {
            return Err(bad("rep", &self.rep.count().to_string(), "at most 64 addresses"));
        }
        let mut taken = Vec::new();
        for device in 0..self.devices {
            self.device_address(device).ok_or_else(|| bad("pci", &self.pci.to_string(), "room on the bus for all"))?;
            for representor in 0..self.rep.count() {
                let wanted = "room on the bus for all devices' representors";
                let address = self.host_address(device, representor);
                let address = address.ok_or_else(|| bad("rep", &format!("{:?}", self.rep), wanted))?;
                if taken.contains(&address) {
                    return Err(bad("rep", &address.to_string(), "each function once, over all devices"));
                }
                taken.push(address);
            }
        }
        Ok(())
    }
}

fn bad(key: &'static str, value: &str, wanted: &'static str) -> ConfigError {
    ConfigError::BadValue { key, value: value.to_owned(), wanted }
}

fn number<T: FromStr + PartialOrd>(
    key: &'static str,
    value: &str,
    range: std::ops::RangeInclusive<T>,
    wanted: &'static str,
) -> Result<T, ConfigError> {
    value.parse().ok().filter(|number| range.contains(number)).ok_or_else(|| bad(key, value, wanted))
}

fn threads(key: &'static str, value: &str) -> Result<u32, ConfigError> {
    number(key, value, 1..=THREADS_MAX, "1 to 64")
}

fn address(key: &'static str, value: &str) -> Result<PciAddress, ConfigError> {
    value.parse().map_err(|()| bad(key, value, "a PCI address such as 03:00.0"))
}

fn probability(key: &'static str, value: &str) -> Result<f64, ConfigError> {
    number(key, value, 0.0..=1.0, "0 to 1")
}

fn switch(key: &'static str, value: &str) -> Result<bool, ConfigError> {
    number(key, value, 0..=1, "0 or 1").map(|number: u8| number == 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{FaultEffect, PlannedFault, TaskKind};

    #[test]
    fn empty_text_is_the_default_card() {
        assert_eq!("".parse(), Ok(Config::default()));
        assert!(!Config::default().is_hostile());
    }

    #[test]
    fn every_key_is_read() {
        let text = "profile=bf2, without=lz4+dma,buf_bytes_max=4096,list_max=2,tasks_max=99,devices=2,role=host,pci=b1:00.2,rep=0001:3b:1f+0001:3b:02.1,comch_dir=/run/x,comch_wait_ms=5,decompress_threads=4,dma_threads=3,queue=9,window=0,seed=42,fail=0.5,again=0.25,\
                    corrupt=1,dma_flip=0.75,dma_flip_at=3,dma_flip_way=to-host,dma_flip_bytes=9000,delay_us=900,reorder=1,faults=fail:inflate:3+delay:memcpy:2:5000,lose_after=7,exporter_gone=0.125,timing=1,task_ns=1,\
                    gigabytes_per_s=2.5,depth=3,inline_bytes=64,remember=4096,quiet=1,debug=1,";
        let wanted = Config {
            profile: Profile::Bf2,
            without: Without { inflate: false, lz4: true, dma: true },
            buf_bytes_max: 4096,
            list_max: 2,
            tasks_max: 99,
            devices: 2,
            role: Role::Host,
            pci: PciAddress { domain: 0, bus: 0xb1, devfn: 2 },
            rep: Representors::At(vec![
                PciAddress { domain: 1, bus: 0x3b, devfn: 0x1f << 3 },
                PciAddress { domain: 1, bus: 0x3b, devfn: 0x02 << 3 | 1 },
            ]),
            comch_dir: Some("/run/x".into()),
            comch_wait_ms: 5,
            decompress_threads: 4,
            dma_threads: 3,
            queue: 9,
            window: false,
            seed: Some(42),
            fail: 0.5,
            again: 0.25,
            corrupt: 1.0,
            dma_flip: 0.75,
            dma_flip_at: 3,
            dma_flip_way: FlipWay::ToHost,
            dma_flip_bytes: 9000,
            delay_us: 900,
            reorder: true,
            faults: vec![
                PlannedFault { effect: FaultEffect::Fail, kind: TaskKind::Inflate, number: 3 },
                PlannedFault { effect: FaultEffect::Delay { us: 5000 }, kind: TaskKind::Memcpy, number: 2 },
            ],
            lose_after: 7,
            exporter_gone: 0.125,
            timing: true,
            task_ns: 1,
            gigabytes_per_s: 2.5,
            depth: 3,
            remember: 4096,
            inline_bytes: 64,
            quiet: true,
            debug: true,
        };
        assert_eq!(text.parse(), Ok(wanted));
    }

    #[test]
    #[cfg_attr(miri, ignore = "much text, and nothing that miri could find")]
    fn every_key_is_documented() {
        let page = include_str!("../../../../docs/emulator.md");
        let source = include_str!("parse.rs");
        let keys = source.split("fn set(").nth(1).and_then(|rest| rest.split("Checks that all functions").next());
        let keys = keys.into_iter().flat_map(str::lines).filter_map(|line| line.trim().strip_prefix('"'));
        let keys: Vec<&str> =
            keys.filter(|line| line.contains("=> ")).filter_map(|line| line.split('"').next()).collect();
        assert!(keys.len() > 20, "{keys:?}");
        for key in keys {
            assert!(page.contains(&format!("`{key}`")), "{key} is not in docs/emulator.md");
        }
    }

    #[test]
    fn the_representors_of_the_next_device_are_the_next_functions() {
        let places = |text: &str| -> Vec<String> {
            let config: Config = text.parse().expect(text);
            let all = (0..config.devices).flat_map(|device| (0..config.rep.count()).map(move |rep| (device, rep)));
            all.map(|(device, rep)| config.host_address(device, rep).expect("checked").to_string()[5..].to_owned())
                .collect()
        };
        assert_eq!(places("devices=2"), ["03:00.0", "03:00.1"]);
        assert_eq!(places("devices=2,rep=b1:00.0"), ["b1:00.0", "b1:00.1"]);
        assert_eq!(places("rep=3"), ["03:00.0", "03:00.1", "03:00.2"]);
        assert_eq!(places("rep=b1:00.0+b1:00.1,devices=2"), ["b1:00.0", "b1:00.1", "b1:00.2", "b1:00.3"]);
        assert_eq!(places("rep=b1:00.0+3b:00.0"), ["b1:00.0", "3b:00.0"]);
    }

    #[test]
    fn a_function_of_the_host_has_one_representor_and_is_on_its_bus() {
        let message = |text: &str| text.parse::<Config>().expect_err(text).to_string();
        let once = "wanted each function once, over all devices";
        assert_eq!(message("rep=b1:00.0+b1:00.0"), format!("rep=0000:b1:00.0: {once}"));
        assert_eq!(message("devices=2,rep=b1:00.0+b1:00.2"), format!("rep=0000:b1:00.2: {once}"));
        assert_eq!(message("pci=03:1f.7,devices=2"), "pci=0000:03:1f.7: wanted room on the bus for all");
        assert_eq!(message(&format!("rep=b1:00.0{}", "+b1:00.0".repeat(64))), "rep=65: wanted at most 64 addresses");
    }

    #[test]
    fn a_fault_names_an_effect_a_kind_and_a_task() {
        let parse = |text: &str| format!("faults={text}").parse::<Config>().map(|config| config.faults.len());
        assert_eq!(parse("corrupt:lz4-block:1+fail:deflate:2+fail:lz4-stream:9"), Ok(3));
        for text in
            ["", "fail", "fail:inflate", "fail:inflate:0", "fail:inflate:1:5", "fail:message-send:1", "again:inflate:1"]
                .into_iter()
                .chain(["delay:memcpy:1", "delay:memcpy:1:10000001", "fail:inflate:1+", "fail:INFLATE:1"])
        {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_typo_is_an_error_that_names_it() {
        let message = |text: &str| text.parse::<Config>().expect_err(text).to_string();
        assert_eq!(message("sead=1"), "unknown key `sead`");
        assert_eq!(message("seed"), "`seed` is not key=value");
        assert_eq!(message("fail=1.5"), "fail=1.5: wanted 0 to 1");
        assert_eq!(message("fail=NaN"), "fail=NaN: wanted 0 to 1");
        assert_eq!(message("dma_threads=0"), "dma_threads=0: wanted 1 to 64");
        assert_eq!(message("pci=3:0.0"), "pci=3:0.0: wanted a PCI address such as 03:00.0");
        assert_eq!(message("rep=0"), "rep=0: wanted 1 to 64, or PCI addresses with + between them");
        assert_eq!(message("rep=b1:00.0+"), "rep=: wanted a PCI address such as 03:00.0");
        assert_eq!(message("profile=bf4"), "profile=bf4: wanted bf2 or bf3");
        assert_eq!(message("without=flow"), "without=flow: wanted inflate, lz4, dma, joined by +");
    }
}
