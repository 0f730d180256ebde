//! How a connection introduces itself: protocol, user, name, database, and on a replica that it may be read.

use std::fmt;

use super::Connector;
use super::advice;
use super::fault::{Fault, Said, said};
use super::options::Login;
use super::resp::{Digits, Reply, write_command};

/// Bytes of the longest greeting: user, password and name are bounded by this.
pub(super) const GREETING_BYTES: usize = 2 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// `HELLO 3`, with user, password and name.
    Hello,
    /// What HELLO has not done, where a server does not know it.
    Auth,
    Name,
    Select,
    /// Reads of a replica are ours to ask for.
    ReadOnly,
    Done,
}

/// One question at a time, then [`Self::is_done`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Greeting {
    step: Step,
    replica: bool,
}

/// The server does not take us.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LoginRefusal {
    /// The refusal passes by itself: the server is starting, or has no more room for clients.
    pub(super) later: bool,
    /// The question.
    pub(super) asked: &'static str,
    pub(super) said: Said,
}

impl fmt::Display for LoginRefusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "it answered {} with \"{}\": {}", self.asked, self.said, advice::of_refusal(self))
    }
}

impl std::error::Error for LoginRefusal {}

impl Greeting {
    /// `replica`: the connection is for reading from a replica of a cluster.
    pub(super) fn new(connector: &Connector, replica: bool) -> Self {
        Self { step: if connector.options.resp3 { Step::Hello } else { Step::Auth }, replica }
    }

    /// Writes the next question; `None` when all have been asked.
    pub(super) fn ask(&mut self, connector: &Connector, out: &mut [u8]) -> Option<usize> {
        let login = connector.login();
        let Login { user, password } = &*login;
        let password = password.as_ref().map(|password| password.reveal().as_bytes());
        let (user, named) = (user.as_deref().unwrap_or("default").as_bytes(), user.is_some());
        let (name, database) = (connector.options.name.as_bytes(), connector.options.database);
        let written = match self.step {
            Step::Hello => match password {
                Some(password) => write_command(out, &[b"HELLO", b"3", b"AUTH", user, password, b"SETNAME", name]),
                None => write_command(out, &[b"HELLO", b"3", b"SETNAME", name]),
            },
            Step::Auth => match password {
                None => return self.skip(Step::Name, connector, out),
                Some(password) if named => write_command(out, &[b"AUTH", user, password]),
                Some(password) => write_command(out, &[b"AUTH", password]),
            },
            Step::Name => write_command(out, &[b"CLIENT", b"SETNAME", name]),
            Step::Select if database == 0 => return self.skip(Step::ReadOnly, connector, out),
            Step::Select => write_command(out, &[b"SELECT", Digits::default().of(database as usize)]),
            Step::ReadOnly if !self.replica => return self.skip(Step::Done, connector, out),
            Step::ReadOnly => write_command(out, &[b"READONLY"]),
            Step::Done => return None,
        };
        Some(written.expect("the longest greeting fits"))
    }

    fn skip(&mut self, next: Step, connector: &Connector, out: &mut [u8]) -> Option<usize> {
        self.step = next;
        self.ask(connector, out)
    }

    /// Takes the answer to the last question.
    pub(super) fn answer(&mut self, connector: &Connector, reply: &Reply<'_>) -> Result<(), LoginRefusal> {
        let (fault, text): (_, &[u8]) = match reply {
            Reply::Error(text) => (Some(Fault::read(text)), text),
            _ => (None, b""),
        };
        self.step = match (self.step, fault) {
            (step, Some(Fault::Later)) => return Err(step.refused(true, text, connector)),
            // A proxy or a server before Redis 6.
            (Step::Hello, Some(Fault::Unknown)) => Step::Auth,
            (step @ (Step::Hello | Step::Auth | Step::Select), Some(_)) => {
                return Err(step.refused(false, text, connector));
            }
            (Step::Hello, None) => Step::Select,
            (Step::Auth, None) => Step::Name,
            // Nobody is refused for a name.
            (Step::Name, _) => Step::Select,
            (Step::Select, None) => Step::ReadOnly,
            // A single server needs no READONLY and says so.
            (Step::ReadOnly, _) => Step::Done,
            (Step::Done, _) => unreachable!("nothing was asked"),
        };
        Ok(())
    }
}

impl Step {
    fn refused(self, later: bool, text: &[u8], connector: &Connector) -> LoginRefusal {
        let asked = match self {
            Self::Hello => "HELLO",
            Self::Auth => "AUTH",
            Self::Name => "CLIENT SETNAME",
            Self::Select => "SELECT",
            Self::ReadOnly | Self::Done => "READONLY",
        };
        LoginRefusal { later, asked, said: said(text, &connector.login()) }
    }
}
