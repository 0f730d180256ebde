//! Why the data plane did not start, or did not go on: what an operator reads, and the exit code.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;

use doca::{Code, DeviceInfo, Selector};
use mailbox::channel::ChannelError;
use nix::errno::Errno;

use crate::config::ConfigError;
use crate::hub::HubError;
use crate::hub::fit::Unfit;
use crate::workers::threads::StartError;

/// Reason for which the data plane did not start, or did not go on.
#[derive(Debug)]
pub enum RunError {
    Config(ConfigError),
    Cpu { name: &'static str, cpu: usize },
    Store(store::OpenError),
    Channel { socket: PathBuf, error: ChannelError },
    Metrics { address: SocketAddr, error: io::Error },
    Device(doca::Error),
    NoDevice { wanted: Selector, seen: Vec<DeviceInfo> },
    Unfit(Unfit),
    Encoder(block::codec::CodecError),
    System(io::Error),
    Hub(HubError),
}

impl fmt::Display for RunError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => write!(f, "{error}"),
            Self::Cpu { name, cpu } => {
                write!(
                    f,
                    "{name}: this process may not use core {cpu}: see `nproc`, the unit's CPUAffinity, or taskset"
                )
            }
            Self::Store(error) => write!(f, "{error}"),
            // Its other errors name the path themselves.
            Self::Channel { socket, error: error @ ChannelError::System { source, .. } } => {
                let what = lacking(source).unwrap_or("check that its directory exists and is yours");
                write!(f, "{error}: {}: {what}", socket.display())
            }
            Self::Channel { error, .. } => write!(f, "{error}"),
            Self::Metrics { address, error } => {
                let what = lacking(error).unwrap_or("choose another address or port with --metrics, or leave it out");
                write!(f, "metrics: {address}: {error}: {what}")
            }
            Self::Device(error) => write!(f, "device: {error}: check the device's name and its driver"),
            Self::NoDevice { wanted, seen } => {
                match wanted {
                    Selector::First => write!(f, "device: none can do DMA or export memory. ")?,
                    Selector::Named(name) => write!(f, "device: no {name}. ")?,
                }
                let names: Vec<String> = seen.iter().map(DeviceInfo::name).collect();
                match names.is_empty() {
                    true => write!(f, "DOCA sees no device: is the driver loaded and the card in DPU mode?"),
                    false => write!(f, "DOCA sees {}: name one with --device", names.join(", ")),
                }
            }
            Self::Unfit(unfit) => write!(f, "{unfit}"),
            Self::Encoder(error) => write!(f, "encoder: {error}"),
            Self::System(error) => {
                write!(f, "system: {error}")?;
                lacking(error).map_or(Ok(()), |what| write!(f, ": {what}"))
            }
            Self::Hub(HubError::System { call, errno }) => {
                write!(f, "{call}: {}", errno.desc())?;
                store::advice(*errno).map_or(Ok(()), |what| write!(f, ": {what}"))
            }
            Self::Hub(HubError::Device(error)) if error.code == Code::OPERATING_SYSTEM => write!(
                f,
                "device: {error}: see the limits of this process: descriptors (LimitNOFILE=, ulimit -n), locked memory \
                 (LimitMEMLOCK=, ulimit -l)"
            ),
            Self::Hub(error) => write!(f, "{error}"),
        }
    }
}

impl std::error::Error for RunError {}

impl From<StartError> for RunError {
    fn from(error: StartError) -> Self {
        match error {
            StartError::System(error) => Self::System(error),
            StartError::Device(error) => Self::Device(error),
            StartError::Encoder(error) => Self::Encoder(error),
        }
    }
}

impl RunError {
    /// Names the flag whose value is to blame, with its dashes.
    #[must_use]
    pub fn flag(&self) -> Option<&'static str> {
        match self {
            Self::Config(ConfigError { name, .. }) | Self::Cpu { name, .. } => Some(name),
            Self::Store(_) => Some("--store"),
            Self::Channel { .. } => Some("--socket"),
            Self::Metrics { .. } => Some("--metrics"),
            Self::NoDevice { wanted: Selector::Named(_), .. } => Some("--device"),
            Self::Unfit(Unfit::TooManyTasks { flag, .. }) => Some(flag),
            Self::Unfit(Unfit::BlockTooLarge { .. }) => Some("--block-bytes"),
            Self::Encoder(_) => Some("--deflate-level"),
            _ => None,
        }
    }

    /// 2: only the operator can mend it, so that starting again is of no use (the unit's RestartPreventExitStatus); 3:
    /// the device; 1: anything else, which may pass by itself.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Store(error) if error.may_pass() => 1,
            // The process before this one has not gone yet.
            Self::Channel { error: ChannelError::InUse { .. }, .. } => 1,
            Self::Metrics { error, .. } if may_pass(error) => 1,
            Self::Channel { error: ChannelError::System { source, .. }, .. } if may_pass(source) => 1,
            Self::Config(_)
            | Self::Cpu { .. }
            | Self::Store(_)
            | Self::Channel { .. }
            | Self::Metrics { .. }
            | Self::Encoder(_) => 2,
            Self::Hub(HubError::Comch(error)) if !error.is_of_the_device() => 2,
            Self::Device(_) | Self::NoDevice { .. } | Self::Unfit(_) => 3,
            Self::Hub(HubError::Comch(_) | HubError::Device(_) | HubError::EngineStuck(_)) => 3,
            Self::System(_) | Self::Hub(HubError::System { .. } | HubError::WorkerHangs(_)) => 1,
        }
    }
}

/// Tells whether the system only lacks something at present: descriptors, memory, or an address of a network that comes
/// up late.
fn may_pass(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(errno, Some(Errno::EADDRNOTAVAIL | Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS))
}

/// Says what to do where descriptors are lacking.
fn lacking(error: &io::Error) -> Option<&'static str> {
    let errno = error.raw_os_error().map(Errno::from_raw)?;
    store::advice(errno).filter(|_| matches!(errno, Errno::EMFILE | Errno::ENFILE))
}
