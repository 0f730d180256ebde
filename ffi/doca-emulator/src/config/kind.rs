//! The kinds of task.

/// The task types of all contexts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Memcpy,
    Deflate,
    Inflate,
    Lz4Stream,
    Lz4Block,
    /// A Comch control message.
    MessageSend,
    DataSend,
    PostReceive,
}

pub(crate) const KINDS: usize = 8;

impl Kind {
    pub(crate) const ALL: [Kind; KINDS] = [
        Kind::Memcpy,
        Kind::Deflate,
        Kind::Inflate,
        Kind::Lz4Stream,
        Kind::Lz4Block,
        Kind::MessageSend,
        Kind::DataSend,
        Kind::PostReceive,
    ];

    pub(crate) fn is_of_an_engine(self) -> bool {
        !matches!(self, Kind::MessageSend | Kind::DataSend | Kind::PostReceive)
    }
}
