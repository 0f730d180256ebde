//! How a command ended, and how a card stands to its sessions.

use std::fmt;

/// The end of a command. A miss or a partial hit is `Ok` with fewer chunks done than asked: an answer, not an error.
/// Whatever the status, the first `chunks_done` chunks are whole and right, and nothing past them is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
pub enum Status {
    Ok = 1,
    StoreDown = 2,
    DeviceError = 3,
    DeadlineExceeded = 4,
    Cancelled = 5,
    Corrupt = 6,
    Unsupported = 7,
    Malformed = 8,
    Busy = 9,
    Draining = 10,
    NoSpace = 11,
    ReadOnly = 12,
    NoLayout = 13,
    NotFound = 14,
    Forbidden = 15,
}

impl Status {
    /// Every status, in the order of its word.
    pub const ALL: [Status; 15] = [
        Status::Ok,
        Status::StoreDown,
        Status::DeviceError,
        Status::DeadlineExceeded,
        Status::Cancelled,
        Status::Corrupt,
        Status::Unsupported,
        Status::Malformed,
        Status::Busy,
        Status::Draining,
        Status::NoSpace,
        Status::ReadOnly,
        Status::NoLayout,
        Status::NotFound,
        Status::Forbidden,
    ];

    /// The word on the wire.
    pub const fn code(self) -> u16 {
        self as u16
    }

    /// `None`: no word of this version.
    pub const fn from_code(code: u16) -> Option<Status> {
        if code >= 1 && (code as usize) <= Status::ALL.len() { Some(Status::ALL[code as usize - 1]) } else { None }
    }

    /// One word for machines: labels, JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::StoreDown => "store_down",
            Status::DeviceError => "device_error",
            Status::DeadlineExceeded => "deadline_exceeded",
            Status::Cancelled => "cancelled",
            Status::Corrupt => "corrupt",
            Status::Unsupported => "unsupported",
            Status::Malformed => "malformed",
            Status::Busy => "busy",
            Status::Draining => "draining",
            Status::NoSpace => "no_space",
            Status::ReadOnly => "read_only",
            Status::NoLayout => "no_layout",
            Status::NotFound => "not_found",
            Status::Forbidden => "forbidden",
        }
    }

    /// Whether the same request may succeed a little later, unchanged.
    pub const fn is_transient(self) -> bool {
        matches!(
            self,
            Status::StoreDown | Status::DeviceError | Status::DeadlineExceeded | Status::Busy | Status::NoSpace
        )
    }

    /// Text for people: what happened and what to do about it.
    pub const fn text(self) -> &'static str {
        match self {
            Status::Ok => "ok",
            Status::StoreDown => {
                "the store did not answer: recompute this prefix and check the store that the card is given"
            }
            Status::DeviceError => {
                "an engine of the card failed and is being restarted: recompute; look at the card's log if it repeats"
            }
            Status::DeadlineExceeded => {
                "the deadline passed first: recompute; raise the deadline or lower the load if it repeats"
            }
            Status::Cancelled => "cancelled by the host",
            Status::Corrupt => {
                "a stored chunk failed its check and was not used: recompute; the next store of it replaces it"
            }
            Status::Unsupported => "this card does not know the operation: upgrade dpu-app",
            Status::Malformed => {
                "the request does not fit the session's layout: a bug in the host side, please report it"
            }
            Status::Busy => "the card has no room for another request: retry, or recompute",
            Status::Draining => "the card is being stopped: recompute, and attach again when it is back",
            Status::NoSpace => "the store is full: free space or give it more; fetches still work",
            Status::ReadOnly => "the store is read-only for this card: nothing was stored",
            Status::NoLayout => {
                "this session registered no memory: attach with a geometry and a layout to fetch or store"
            }
            Status::NotFound => "no such request: it has completed already",
            Status::Forbidden => {
                "the card takes this from its own operator only: run host-ctl on the card with --socket PATH, or start \
                 dpu-app with --allow-host-stop"
            }
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text())
    }
}

/// Life of a session as its card sees it. `Steady <-> Draining`: a drain can be undone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum CardState {
    Steady = 1,
    Draining = 2,
}

impl CardState {
    /// The only ways from one to another.
    pub const fn may_become(self, next: CardState) -> bool {
        matches!((self, next), (CardState::Steady, CardState::Draining) | (CardState::Draining, CardState::Steady))
    }

    pub(crate) const fn from_code(code: u32) -> Option<CardState> {
        match code {
            1 => Some(CardState::Steady),
            2 => Some(CardState::Draining),
            _ => None,
        }
    }
}
