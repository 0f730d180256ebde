//! The kinds of task.

/// The task types of all contexts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TaskKind {
    Memcpy,
    Deflate,
    Inflate,
    Lz4Stream,
    Lz4Block,
    /// A Comch control message.
    MessageSend,
    /// Data of a Comch producer.
    DataSend,
    /// A buffer for data, of a Comch consumer.
    PostReceive,
}

pub(crate) const KINDS: usize = 8;

impl TaskKind {
    pub(crate) const ALL: [TaskKind; KINDS] = [
        TaskKind::Memcpy,
        TaskKind::Deflate,
        TaskKind::Inflate,
        TaskKind::Lz4Stream,
        TaskKind::Lz4Block,
        TaskKind::MessageSend,
        TaskKind::DataSend,
        TaskKind::PostReceive,
    ];

    pub(crate) fn is_of_an_engine(self) -> bool {
        !matches!(self, TaskKind::MessageSend | TaskKind::DataSend | TaskKind::PostReceive)
    }
}
