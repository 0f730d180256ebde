//! How this machine reaches the card: DOCA Comch over PCIe, or a Unix socket where host and card are one machine.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use doca::comch::{ReceiveError, SendError};
use doca::{Device, Selector, comch};
use mailbox::attach::{ATTACH_MESSAGE_MAX, SERVICE_NAME};
use mailbox::channel::{Channel, ChannelError, HostChannel, UnixChannel};

use crate::error::Error;

/// Where dpu-app is met.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// The card of this machine's device, by the name that it serves.
    Comch { name: String },
    /// A path on this machine: the card itself, or one without Comch.
    Socket(PathBuf),
}

impl Default for Route {
    fn default() -> Route {
        Route::Comch { name: SERVICE_NAME.to_owned() }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Route::Comch { name } => write!(f, "Comch `{name}`"),
            Route::Socket(path) => path.display().fmt(f),
        }
    }
}

impl Route {
    /// A line to the card, and the device that opens this machine's memory to it.
    ///
    /// # Errors
    /// Nobody there, or no device.
    pub fn open(&self, selector: &Selector, timeout: Duration) -> Result<(Box<dyn HostChannel>, Device), Error> {
        match self {
            // The card first, then the device: the operator hears of the nearest mistake.
            Route::Socket(path) => Ok((Box::new(UnixChannel::connect(path)?), Device::open(selector)?)),
            Route::Comch { name } => {
                let device = Device::open(selector)?;
                let client = comch::Client::connect(&device, name, ATTACH_MESSAGE_MAX, timeout)?;
                Ok((Box::new(ComchHostChannel { client }), device))
            }
        }
    }
}

/// The host's end of a Comch connection.
#[derive(Debug)]
struct ComchHostChannel {
    client: comch::Client,
}

fn device(error: doca::Error) -> ChannelError {
    ChannelError::Device { what: error.to_string() }
}

impl Channel for ComchHostChannel {
    fn send(&mut self, message: &[u8]) -> Result<(), ChannelError> {
        self.client.send(message).map_err(|error| match error {
            SendError::Full => ChannelError::Full,
            SendError::Closed => ChannelError::Closed,
            SendError::Length => ChannelError::Length { bytes: message.len(), limit: ATTACH_MESSAGE_MAX },
        })
    }

    fn receive(&mut self, out: &mut [u8]) -> Result<Option<usize>, ChannelError> {
        self.client.receive(out).map_err(|error| match error {
            ReceiveError::Closed => ChannelError::Closed,
            ReceiveError::Babble => ChannelError::Babble,
        })
    }
}

impl HostChannel for ComchHostChannel {
    fn wait(&mut self, timeout: Duration) -> Result<bool, ChannelError> {
        self.client.wait(timeout).map_err(device)
    }

    fn wait_for_room(&mut self, timeout: Duration) -> Result<bool, ChannelError> {
        self.client.wait_for_room(timeout).map_err(device)
    }
}
