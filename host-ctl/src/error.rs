//! The one error of the library: what happened, where, what to do, and who is to blame. The blame is the exit code.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use doca::comch;
use mailbox::attach::{AttachError, Farewell, Refuse};
use mailbox::channel::ChannelError;
use mailbox::layout::LayoutError;
use mailbox::{Operation, PeerError, PostError, Status};

/// Who has to move.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// A run that went wrong: files, stores, deadlines, data that does not compare.
    Run,
    /// What was asked for cannot be.
    Operator,
    /// The device of this machine, or of the card.
    Device,
    /// The card: absent, gone, refusing or lying.
    Peer,
}

impl Blame {
    /// The exit code of a program that ends with it. 0 is for none.
    pub const fn exit_code(self) -> u8 {
        match self {
            Blame::Run => 1,
            Blame::Operator => 2,
            Blame::Device => 3,
            Blame::Peer => 4,
        }
    }
}

/// How a card was lost. Whatever was in flight is neither done nor known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// The channel ended without a word.
    Died,
    /// It said why.
    Left(Farewell),
    /// It broke the rules of the page, and this side left.
    Lied(PeerError),
    /// It said something on the channel that has no meaning there.
    Babbled(AttachError),
}

impl fmt::Display for Gone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Gone::Died => write!(f, "dpu-app is gone: look at its log, start it and try again"),
            Gone::Left(farewell) => write!(f, "dpu-app ended the session: {}", farewell.text()),
            Gone::Lied(error) => {
                write!(f, "dpu-app broke the rules of the page ({error}): use the same build on both sides")
            }
            Gone::Babbled(error) => {
                write!(f, "dpu-app said what has no meaning here ({error}): use the same build on both sides")
            }
        }
    }
}

/// See the module.
#[derive(Debug)]
pub enum Error {
    /// Something that was given cannot be used.
    Input { place: String, what: String, fix: String },
    /// A call of the system failed.
    System { call: &'static str, path: PathBuf, source: io::Error },
    /// A call of DOCA failed on this machine.
    Device(doca::Error),
    /// There is no way to the card by Comch.
    Comch(comch::Error),
    /// The channel could not be opened or used.
    Channel(ChannelError),
    /// A message of ours that no channel carries.
    Attach(AttachError),
    /// The card said no to the attach.
    Refused(Refuse),
    /// The card stores with another transform than was asked for.
    Recipe { asked: block::Recipe, card: String },
    /// The layout that was given, and of which section where there are several.
    Layout { error: LayoutError, section: Option<usize> },
    /// A card that knows one section only.
    Sections { sections: usize },
    /// The card is lost.
    CardGone(Gone),
    /// Back-pressure: as many requests are queued as may be.
    Full { limit: usize },
    /// A request that the page does not take. Ours.
    Post(PostError),
    /// No such request, or its completion was taken already.
    UnknownRequest { id: u64 },
    /// Nothing came in time. The request, if there was one, goes on.
    Timeout { what: &'static str, waited: Duration },
    /// The card's answer to a request.
    Failed { operation: Operation, status: Status, done: u32, asked: u32 },
    /// An answer whose text is not what its completion vouches for.
    Answer { what: String },
    /// None of the prefix is stored.
    Miss { chunks: usize },
    /// Stored or restored data is not what it must be.
    Damaged { place: String, what: String },
}

impl Error {
    /// An error of the input: where, what, and what to do.
    pub fn input(place: impl fmt::Display, what: impl fmt::Display, fix: impl fmt::Display) -> Error {
        Error::Input { place: place.to_string(), what: what.to_string(), fix: fix.to_string() }
    }

    /// Makes an error of a system call on a file.
    pub fn system(call: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        move |source| Error::System { call, path: path.to_owned(), source }
    }

    pub fn blame(&self) -> Blame {
        match self {
            Error::Input { .. } | Error::Layout { .. } => Blame::Operator,
            // A path that is not there was mistyped; anything else happened while running.
            Error::System { call: "open", source, .. } if source.kind() == io::ErrorKind::NotFound => Blame::Operator,
            Error::Comch(comch::Error::Name { .. }) => Blame::Operator,
            Error::Comch(comch::Error::NobodyThere { .. } | comch::Error::Timeout { .. }) => Blame::Peer,
            Error::Device(_) | Error::Comch(_) | Error::Failed { status: Status::DeviceError, .. } => Blame::Device,
            Error::Sections { .. }
            | Error::Channel(_)
            | Error::Refused(_)
            | Error::CardGone(_)
            | Error::Answer { .. } => Blame::Peer,
            Error::Failed {
                status: Status::Unsupported | Status::Malformed | Status::Busy | Status::Draining | Status::Forbidden,
                ..
            } => Blame::Peer,
            Error::Timeout { .. } | Error::Recipe { .. } => Blame::Peer,
            _ => Blame::Run,
        }
    }

    /// Nobody serves the way to the card: it is not started, or not yet.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(
            self,
            Error::Channel(ChannelError::NobodyThere { .. }) | Error::Comch(comch::Error::NobodyThere { .. })
        )
    }

    pub fn exit_code(&self) -> u8 {
        self.blame().exit_code()
    }
}

/// Names the section that an error is about, where there are several.
fn of_section(section: &Option<usize>) -> String {
    section.map_or_else(String::new, |section| format!("section {section}: "))
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Input { place, what, fix } => write!(f, "{what}: {place}: {fix}"),
            Error::System { call, path, source } => write!(f, "{call}: {}: {source}{}", path.display(), advice(source)),
            Error::Device(error) => {
                write!(f, "device: {error}: check --device, and that this user may use the device")
            }
            Error::Comch(error) => match error {
                comch::Error::NobodyThere { .. } => {
                    write!(f, "{error}: is dpu-app running there, for this function (--representor)? ")?;
                    write!(f, "See --device, --comch-name; or name its socket with --socket")
                }
                comch::Error::Unsupported { .. } => {
                    write!(f, "{error}: on the card itself name dpu-app's socket with --socket; else check --device")
                }
                comch::Error::Timeout { .. } => write!(f, "{error}: look at dpu-app's log"),
                comch::Error::Size { .. } => write!(f, "{error}: update DOCA, or use --socket"),
                _ => error.fmt(f),
            },
            Error::Channel(error) => error.fmt(f),
            Error::Attach(error) => error.fmt(f),
            Error::Refused(refuse) => refuse.fmt(f),
            Error::Recipe { asked, card } => write!(
                f,
                "recipe: the card stores with {card}, {asked} was asked for: upgrade dpu-app, or leave --recipe out"
            ),
            Error::Sections { sections } => write!(
                f,
                "the card cannot read how a cache of {sections} sections is described, it knows caches of one: upgrade \
                 dpu-app on the card"
            ),
            Error::Layout { error: error @ LayoutError::Overlap { .. }, section } => {
                write!(
                    f,
                    "{}{error}: give each of them memory of its own, or set strides and offsets that keep them apart",
                    of_section(section)
                )
            }
            Error::Layout { error, section } => {
                write!(f, "{}{error}: change the layout, --page-tokens or --chunk-tokens", of_section(section))
            }
            Error::CardGone(gone) => gone.fmt(f),
            Error::Full { limit } => write!(f, "{limit} requests are queued: take completions first"),
            Error::Post(error) => error.fmt(f),
            Error::UnknownRequest { id } => write!(f, "request {id}: unknown, or its completion was taken already"),
            Error::Timeout { what, waited } => {
                write!(
                    f,
                    "{what}: no answer from the card in {waited:?}: look at `host-ctl status` and at dpu-app's log"
                )
            }
            Error::Failed { operation, status, done, asked } => {
                let name = format!("{operation:?}").to_lowercase();
                write!(f, "{name}: {status}")?;
                if *asked > 0 { write!(f, " ({done} of {asked} chunks were done)") } else { Ok(()) }
            }
            Error::Answer { what } => write!(f, "{what}: use the same build on both sides"),
            Error::Miss { chunks } => write!(
                f,
                "fetch: none of the prefix's {chunks} chunks is stored: check --model, --recipe, --salt, \
                 --chunk-tokens, the geometry and the tokens, or store it first"
            ),
            Error::Damaged { place, what } => write!(f, "{place}: {what}"),
        }
    }
}

/// What an operator can do about a system error, where that is plain.
fn advice(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ": free space or choose another place",
        io::ErrorKind::PermissionDenied => ": check permissions",
        io::ErrorKind::ReadOnlyFilesystem => ": choose another place",
        io::ErrorKind::NotFound => ": check the path",
        _ => "",
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Error::System { source, .. } => Some(source),
            Error::Device(error) => Some(error),
            Error::Comch(error) => Some(error),
            Error::Channel(error) => Some(error),
            _ => None,
        }
    }
}

impl From<doca::Error> for Error {
    fn from(error: doca::Error) -> Error {
        Error::Device(error)
    }
}

impl From<comch::Error> for Error {
    fn from(error: comch::Error) -> Error {
        match error {
            comch::Error::Device(error) => Error::Device(error),
            error => Error::Comch(error),
        }
    }
}

impl From<ChannelError> for Error {
    fn from(error: ChannelError) -> Error {
        Error::Channel(error)
    }
}

impl From<AttachError> for Error {
    fn from(error: AttachError) -> Error {
        Error::Attach(error)
    }
}

impl From<Gone> for Error {
    fn from(gone: Gone) -> Error {
        Error::CardGone(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_codes_are_those_of_the_style() {
        let failed = |status| Error::Failed { operation: Operation::Fetch, status, done: 1, asked: 2 };
        assert_eq!(Error::Miss { chunks: 3 }.exit_code(), 1);
        assert_eq!(failed(Status::Corrupt).exit_code(), 1);
        assert_eq!(Error::input("--tensor", "no", "yes").exit_code(), 2);
        assert_eq!(failed(Status::DeviceError).exit_code(), 3);
        assert_eq!(Error::from(Gone::Died).exit_code(), 4);
        assert_eq!(failed(Status::Draining).exit_code(), 4);
        assert_eq!(Error::Refused(Refuse::version(9)).exit_code(), 4);
    }

    #[test]
    fn a_failure_says_what_was_done_before_it() {
        let error = Error::Failed { operation: Operation::Store, status: Status::NoSpace, done: 3, asked: 8 };
        assert!(error.to_string().starts_with("store: the store is full"), "{error}");
        assert!(error.to_string().ends_with("(3 of 8 chunks were done)"), "{error}");
    }
}
