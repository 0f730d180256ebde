//! Who started this process and wants signs of life from it, as systemd says it in the environment (sd_notify(3)).

use std::env;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::SocketAddr;
use std::time::Duration;

/// Socket of a supervisor, and how long it waits for a sign of life.
#[derive(Clone, Debug)]
pub struct Watchdog {
    pub(crate) address: SocketAddr,
    pub(crate) interval: Option<Duration>,
}

impl Watchdog {
    /// Reads `NOTIFY_SOCKET`, `WATCHDOG_USEC` and `WATCHDOG_PID`; `None` if nobody listens.
    ///
    /// # Errors
    /// Names the variable that makes no sense.
    pub fn from_environment() -> Result<Option<Self>, String> {
        let text = |name: &str| env::var(name).ok().filter(|value| !value.is_empty());
        let Some(socket) = text("NOTIFY_SOCKET") else { return Ok(None) };
        let address = match socket.split_at_checked(1) {
            Some(("@", name)) => SocketAddr::from_abstract_name(name),
            Some(("/", _)) => SocketAddr::from_pathname(&socket),
            _ => Err(io::ErrorKind::Unsupported.into()),
        };
        let address = address.map_err(|error| format!("NOTIFY_SOCKET {socket}: {error}"))?;
        let ours = text("WATCHDOG_PID").is_none_or(|pid| pid == std::process::id().to_string());
        let interval = match text("WATCHDOG_USEC").filter(|_| ours) {
            Some(usec) => match usec.parse() {
                Ok(usec) if usec > 0 => Some(Duration::from_micros(usec)),
                _ => return Err(format!("WATCHDOG_USEC {usec}: not a number of microseconds")),
            },
            None => None,
        };
        Ok(Some(Self { address, interval }))
    }
}
