//! How a connection introduces itself: protocol, user, name, database, and on a replica that it may be read.

use super::fault::Fault;
use super::options::Options;
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    Denied,
    /// It is starting, or has no more room for clients.
    Later,
}

impl Greeting {
    /// `replica`: the connection is for reading from a replica of a cluster.
    pub(super) fn new(options: &Options, replica: bool) -> Self {
        Self { step: if options.resp3 { Step::Hello } else { Step::Auth }, replica }
    }

    /// Writes the next question; `None` when all have been asked.
    pub(super) fn ask(&mut self, options: &Options, out: &mut [u8]) -> Option<usize> {
        let user = options.user.as_deref().unwrap_or("default").as_bytes();
        let password = options.password.as_deref().map(str::as_bytes);
        let name = options.name.as_bytes();
        let written = match self.step {
            Step::Hello => match password {
                Some(password) => write_command(out, &[b"HELLO", b"3", b"AUTH", user, password, b"SETNAME", name]),
                None => write_command(out, &[b"HELLO", b"3", b"SETNAME", name]),
            },
            Step::Auth => match (password, &options.user) {
                (None, _) => return self.skip(Step::Name, options, out),
                (Some(password), Some(_)) => write_command(out, &[b"AUTH", user, password]),
                (Some(password), None) => write_command(out, &[b"AUTH", password]),
            },
            Step::Name => write_command(out, &[b"CLIENT", b"SETNAME", name]),
            Step::Select if options.database == 0 => return self.skip(Step::ReadOnly, options, out),
            Step::Select => write_command(out, &[b"SELECT", Digits::default().of(options.database as usize)]),
            Step::ReadOnly if !self.replica => return self.skip(Step::Done, options, out),
            Step::ReadOnly => write_command(out, &[b"READONLY"]),
            Step::Done => return None,
        };
        Some(written.expect("the longest greeting fits"))
    }

    fn skip(&mut self, next: Step, options: &Options, out: &mut [u8]) -> Option<usize> {
        self.step = next;
        self.ask(options, out)
    }

    /// Takes the answer to the last question.
    pub(super) fn answer(&mut self, reply: &Reply<'_>) -> Result<(), Refusal> {
        let fault = match reply {
            Reply::Error(text) => Some(Fault::read(text)),
            _ => None,
        };
        self.step = match (self.step, fault) {
            (_, Some(Fault::Later)) => return Err(Refusal::Later),
            // A proxy or a server before Redis 6.
            (Step::Hello, Some(Fault::Unknown)) => Step::Auth,
            (Step::Hello | Step::Auth | Step::Select, Some(Fault::Denied)) => return Err(Refusal::Denied),
            (Step::Hello | Step::Auth | Step::Select, Some(_)) => return Err(Refusal::Later),
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
