//! DOCA Comch: whole messages between a card (server) and its host (client), over PCIe.
//!
//! ```text
//!   Server --accept--> Connection ...      on a caller's progress engine: no thread, no descriptor of its own
//!   Client                                 one connection, on an engine of its own, whose descriptor `wait` sleeps on
//! ```
//!
//! Callbacks decode, record, return. What came lies in rings of fixed size at a **desk** (`desk.rs`) until its channel
//! asks for it; what goes is copied to a place of the outbox and stays there until DOCA has sent it (`outbox.rs`). Each
//! connection has both of its own, so that one that does not take its messages, or sends without end, is out of room
//! alone. All of that is allocated at start; sending and receiving allocate nothing.
//!
//! DOCA's user data is a ticket (index and generation) of a desk or of a place at it, never a pointer. A desk is found
//! through a table of the process, so a client may move between threads; a server stays where its engine is.
//!
//! It refuses: the fast path (producers and consumers), which nobody here needs; to block, `Client::connect` and
//! `Client::wait` aside; and to understand what it carries.

mod client;
mod desk;
mod endpoint;
mod events;
mod outbox;
mod server;

use std::fmt;
use std::time::Duration;

use doca_sys as sys;

use crate::device::Device;

pub use client::Client;
pub use server::{Connection, Server};

/// Messages of one connection that may wait for their channel to ask. This is also the receive queue that DOCA is told
/// of, so one call of `doca_pe_progress` cannot bring more.
pub const RECEIVED_MAX: usize = 32;
/// Messages of one connection on their way.
pub const SENDING_MAX: usize = 4;
/// Longest time that a dropped connection may take to send its last words.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Sizes of a server or client, fixed at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ComchLimits {
    /// Peers at the same time; a client has one.
    pub connections: usize,
    /// Longest message.
    pub message_bytes: usize,
}

/// What a device says about Comch; asked, never assumed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Caps {
    pub can_serve: bool,
    pub can_connect: bool,
    pub message_bytes_max: u32,
    pub name_bytes_max: u32,
    pub received_max: u32,
    pub connections_max: u32,
    pub sending_max: u32,
}

impl Caps {
    /// What an open device says.
    #[must_use]
    pub fn of(device: &Device) -> Self {
        device.info().comch
    }

    /// Asks a device. What it does not answer is 0.
    ///
    /// # Safety
    /// `info` is an element of a live list.
    pub(crate) unsafe fn ask(info: *mut sys::doca_devinfo) -> Self {
        let number = |ask: unsafe extern "C" fn(*const sys::doca_devinfo, *mut u32) -> sys::doca_error_t| {
            let mut number = 0;
            // SAFETY: cap queries read a live devinfo (the caller's duty) and write the place that they are given.
            let answer = unsafe { ask(info, &raw mut number) };
            if answer == sys::doca_error::DOCA_SUCCESS { number } else { 0 }
        };
        // SAFETY: as above.
        let (can_serve, can_connect) = unsafe {
            (
                call!(doca_comch_cap_server_is_supported(info)).is_ok(),
                call!(doca_comch_cap_client_is_supported(info)).is_ok(),
            )
        };
        Self {
            can_serve,
            can_connect,
            message_bytes_max: number(sys::doca_comch_cap_get_max_msg_size),
            name_bytes_max: number(sys::doca_comch_cap_get_max_name_len),
            received_max: number(sys::doca_comch_cap_get_max_recv_queue_size),
            connections_max: number(sys::doca_comch_cap_get_max_clients),
            sending_max: number(sys::doca_comch_cap_get_max_send_tasks),
        }
    }

    /// Whether a server or client with these sizes can be.
    fn check(&self, name: &str, limits: ComchLimits) -> Result<(), Error> {
        // DOCA's limit counts the zero at the end.
        if name.is_empty() || name.len() >= self.name_bytes_max as usize || name.contains('\0') {
            return Err(Error::Name { name: name.to_owned(), bytes_max: self.name_bytes_max.saturating_sub(1) });
        }
        let sizes = [
            ("bytes of a message", limits.message_bytes, self.message_bytes_max),
            ("connections", limits.connections, self.connections_max),
            ("messages received", RECEIVED_MAX, self.received_max),
            ("messages on their way", limits.connections * SENDING_MAX, self.sending_max),
        ];
        match sizes.into_iter().find(|&(_, needed, most)| needed > most as usize) {
            Some((what, needed, device_max)) => Err(Error::Size { what, needed, device_max: device_max as usize }),
            None => Ok(()),
        }
    }
}

/// Why there is no server, or no connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Error {
    /// Servers are a card's, clients a host's.
    Unsupported {
        device: String,
        side: &'static str,
    },
    /// No name that this device takes.
    Name {
        name: String,
        bytes_max: u32,
    },
    /// The device takes less than is needed.
    Size {
        what: &'static str,
        needed: usize,
        device_max: usize,
    },
    /// Another process serves this name to this function.
    NameTaken {
        name: String,
        function: String,
    },
    /// There is no server of this name for this function.
    NobodyThere {
        name: String,
        function: String,
    },
    /// The other side does not answer.
    Timeout {
        name: String,
        waited: Duration,
    },
    Device(crate::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unsupported { device, side } => write!(f, "comch: device {device} cannot be a {side}"),
            Self::Name { name, bytes_max } => {
                write!(f, "comch: name {name:?} is not 1 to {bytes_max} bytes without zeroes: choose another")
            }
            Self::Size { what, needed, device_max } => {
                write!(f, "comch: {needed} {what} are needed, the device takes {device_max}")
            }
            Self::NameTaken { name, function } => {
                write!(
                    f,
                    "comch: another process serves `{name}` to function {function}: stop it or choose another name"
                )
            }
            Self::NobodyThere { name, function } => {
                write!(f, "comch: nobody on the card serves `{name}` to function {function}")
            }
            Self::Timeout { name, waited } => {
                write!(f, "comch: the card does not answer for `{name}` within {} ms", waited.as_millis())
            }
            Self::Device(error) => write!(f, "comch: {error}"),
        }
    }
}

impl std::error::Error for Error {}

impl From<crate::Error> for Error {
    fn from(error: crate::Error) -> Self {
        Self::Device(error)
    }
}

/// Why a message was not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// Back-pressure: [`SENDING_MAX`] messages are on their way.
    Full,
    /// The peer is gone.
    Closed,
    /// Empty, or longer than the limit.
    Length,
}

/// Why there will be no more messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReceiveError {
    /// The peer is gone.
    Closed,
    /// The peer sent more than [`RECEIVED_MAX`] messages that nobody had taken, or one beyond the limit.
    Babble,
}
