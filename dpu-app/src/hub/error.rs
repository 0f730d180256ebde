//! Why the engine thread stops by itself.

use std::fmt;
use std::time::Duration;

use block::ChunkKey;
use nix::errno::Errno;

use crate::hub::ENGINE_TIMEOUT;
use crate::hub::comch::ComchError;
use crate::pipeline::job::CrewKind;

/// Reason for which the data plane stops by itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HubError {
    /// The device failed for good.
    Device(doca::Error),
    /// Hosts cannot come by Comch.
    Comch(ComchError),
    /// An engine has not completed anything for 30 s.
    EngineStuck(doca::OperationKind),
    /// Everything has drained but a worker that does not come back.
    WorkerHangs(Hanging),
    System {
        call: &'static str,
        errno: Errno,
    },
}

/// A call of the store that does not come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hanging {
    pub crew: CrewKind,
    pub lasts: Duration,
    /// Name of the job that it is for, and the chunk.
    pub job: &'static str,
    pub key: Option<ChunkKey>,
}

impl fmt::Display for Hanging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (crew, lasts) = (self.crew.name(), self.lasts.as_secs_f64());
        write!(f, "a {crew} worker has been in one call for {lasts:.1} s ({}", self.job)?;
        self.key.map_or(Ok(()), |key| write!(f, " of chunk {key}"))?;
        write!(f, "), which nobody can end: left without it; does the disk or the server behind --store hang?")
    }
}

impl fmt::Display for HubError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Device(error) => write!(f, "device: {error}"),
            Self::Comch(error) => error.fmt(f),
            Self::EngineStuck(kind) => {
                write!(f, "device: the {kind:?} engine completed nothing for {} s", ENGINE_TIMEOUT.as_secs())
            }
            Self::WorkerHangs(hanging) => hanging.fmt(f),
            Self::System { call, errno } => write!(f, "{call}: {}", errno.desc()),
        }
    }
}

impl std::error::Error for HubError {}

impl From<doca::Error> for HubError {
    fn from(error: doca::Error) -> Self {
        Self::Device(error)
    }
}

pub(super) fn system(call: &'static str) -> impl FnOnce(Errno) -> HubError {
    move |errno| HubError::System { call, errno }
}
