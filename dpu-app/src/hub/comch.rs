//! Hosts that come by DOCA Comch: one server for each function of the host, all on the engine thread's progress engine.

use doca::comch::{Caps, ComchLimits, Connection, ReceiveError, SendError, Server};
use doca::{Device, ProgressEngine, Representor, RepresentorInfo};
use mailbox::attach::ATTACH_MESSAGE_MAX;
use mailbox::channel::{Channel, ChannelError, Listener};

use crate::config::Config;

/// Places beside those for sessions, for hosts that are told why they are not let in.
const PLACES_SPARE: usize = 8;

/// Reason for which hosts cannot come by Comch; an operator can do something about each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ComchError {
    /// The device is not a card's.
    NoServer {
        device: String,
    },
    /// It has no representor of a physical function, and none was named.
    NoRepresentor {
        device: String,
    },
    /// Nothing of this name is there.
    Unknown {
        name: String,
        there: Vec<RepresentorInfo>,
    },
    Comch(doca::comch::Error),
}

impl ComchError {
    /// Tells whether a device failed, and no setting was wrong.
    #[must_use]
    pub fn is_of_the_device(&self) -> bool {
        matches!(self, Self::Comch(doca::comch::Error::Device(_) | doca::comch::Error::Size { .. }))
    }
}

impl std::fmt::Display for ComchError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        const SOCKET: &str = "serve the socket only, with --attach socket";
        match self {
            Self::NoServer { device } => {
                write!(
                    f,
                    "comch: device {device} cannot be a server: run dpu-app on the card, check --device, or {SOCKET}"
                )
            }
            Self::NoRepresentor { device } => write!(
                f,
                "comch: device {device} has no representor of a physical function: check that the card is in DPU mode, \
                 name another with --representor, or {SOCKET}"
            ),
            Self::Unknown { name, there } => {
                write!(f, "comch: no representor {name}: ")?;
                match there.is_empty() {
                    true => write!(f, "there are none: check --device, or {SOCKET}"),
                    false => {
                        write!(f, "choose --representor among")?;
                        there.iter().try_for_each(|info| write!(f, " {info}"))
                    }
                }
            }
            Self::Comch(error @ doca::comch::Error::Size { .. }) => {
                write!(f, "{error}: update DOCA and firmware, lower --sessions, or {SOCKET}")
            }
            Self::Comch(error @ doca::comch::Error::NameTaken { .. } | error @ doca::comch::Error::Name { .. }) => {
                write!(f, "{error} (--comch-name)")
            }
            Self::Comch(error) => error.fmt(f),
        }
    }
}

/// Starts a server for each function that the configuration names; without a name, for every physical function: a
/// virtual one may be a guest's, and whoever attaches reads and writes the store.
///
/// # Errors
/// See [`ComchError`].
pub(crate) fn listen(
    engine: &ProgressEngine,
    device: &Device,
    config: &Config,
) -> Result<Vec<ComchListener>, ComchError> {
    let name = || device.info().pci_address.clone();
    if !Caps::of(device).can_serve {
        return Err(ComchError::NoServer { device: name() });
    }
    let there = Representor::list(device).map_err(|error| ComchError::Comch(error.into()))?;
    let mut chosen: Vec<&RepresentorInfo> = Vec::new();
    for wanted in &config.representors {
        let found = there.iter().find(|info| info.is_named(wanted));
        let found = found.ok_or_else(|| ComchError::Unknown { name: wanted.clone(), there: there.clone() })?;
        if !chosen.contains(&found) {
            chosen.push(found);
        }
    }
    if config.representors.is_empty() {
        chosen.extend(there.iter().filter(|info| info.is_physical));
    }
    if chosen.is_empty() {
        return Err(ComchError::NoRepresentor { device: name() });
    }
    let limits = ComchLimits { connections: config.sessions + PLACES_SPARE, message_bytes: ATTACH_MESSAGE_MAX };
    let start = |info: &RepresentorInfo| {
        let representor = Representor::open(device, info).map_err(doca::comch::Error::from)?;
        let server = Server::start(engine, representor, &config.comch_name, limits)?;
        log::info!("comch: `{}` serves function {info} of the host", config.comch_name);
        Ok(ComchListener { server })
    };
    chosen.into_iter().map(start).collect::<Result<_, _>>().map_err(ComchError::Comch)
}

/// Counts the bytes of the messages on their way out at the server of one function.
#[must_use]
pub(crate) fn memory_bytes(sessions: usize) -> usize {
    (sessions + PLACES_SPARE) * doca::comch::SENDING_MAX * ATTACH_MESSAGE_MAX
}

/// Counts the bytes of the messages that wait there for us: each place has them from its first host on.
#[must_use]
pub(crate) fn memory_of_hosts(sessions: usize) -> usize {
    (sessions + PLACES_SPARE) * memory_of_host()
}

/// Counts the bytes of one of these places.
#[must_use]
pub(crate) fn memory_of_host() -> usize {
    doca::comch::RECEIVED_MAX * ATTACH_MESSAGE_MAX
}

/// Listener for the hosts of one function.
#[derive(Debug)]
pub(crate) struct ComchListener {
    server: Server,
}

impl Listener for ComchListener {
    fn accept(&mut self) -> Result<Option<Box<dyn Channel>>, ChannelError> {
        Ok(self.server.accept().map(|connection| Box::new(ComchChannel { connection }) as Box<dyn Channel>))
    }

    fn take_news(&mut self) -> bool {
        self.server.take_news()
    }

    fn has_news(&self) -> bool {
        self.server.has_news()
    }
}

/// Channel of one host.
#[derive(Debug)]
struct ComchChannel {
    connection: Connection,
}

impl Channel for ComchChannel {
    fn send(&mut self, message: &[u8]) -> Result<(), ChannelError> {
        self.connection.send(message).map_err(|error| match error {
            SendError::Full => ChannelError::Full,
            SendError::Closed => ChannelError::Closed,
            SendError::Length => ChannelError::Length { bytes: message.len(), limit: ATTACH_MESSAGE_MAX },
        })
    }

    fn receive(&mut self, out: &mut [u8]) -> Result<Option<usize>, ChannelError> {
        self.connection.receive(out).map_err(|error| match error {
            ReceiveError::Closed => ChannelError::Closed,
            ReceiveError::Babble => ChannelError::Babble,
        })
    }
}
