//! The attach channel: whole messages, in order, both ways; and a Unix socket that is one.
//!
//! [`Channel`], [`Listener`] (the card's side) and [`HostChannel`] (the host's) are all that sessions know of it; DOCA
//! Comch is the other implementation, in the rooms that know DOCA. The socket is SOCK_SEQPACKET: it keeps messages
//! whole, tells when the peer dies, and names the peer's process. It refuses to understand what it carries, and to
//! block where it does not say that it waits.

use std::fmt;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, Backlog, MsgFlags, SockFlag, SockType, UnixAddr, bind, connect, getsockopt, listen, recv, send,
    socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod};

use crate::attach::ATTACH_MESSAGE_MAX;

/// Why a message was not sent or received, or a channel not opened.
#[derive(Debug)]
pub enum ChannelError {
    /// Back-pressure: the peer has not read what was sent before. Wait until the descriptor is writable.
    Full,
    /// The peer is gone.
    Closed,
    /// A message that no attach channel carries. Ours when sending, the peer's when receiving.
    Length { bytes: usize, limit: usize },
    /// Another process serves this path.
    InUse { path: PathBuf, pid: Option<u32> },
    /// Something that is not a socket is in the way; it is not removed.
    NotASocket { path: PathBuf },
    /// Nobody serves this path.
    NobodyThere { path: PathBuf, source: io::Error },
    /// The peer sent more at a time than a channel holds.
    Babble,
    /// A call of the system failed.
    System { call: &'static str, source: io::Error },
    /// A call of the device failed.
    Device { what: String },
}

impl fmt::Display for ChannelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChannelError::Full => write!(f, "channel: the peer does not keep up"),
            ChannelError::Closed => write!(f, "channel: the peer is gone"),
            ChannelError::Length { bytes, limit } => {
                write!(f, "channel: message of {bytes} bytes, the limit is {limit}")
            }
            ChannelError::InUse { path, pid: Some(pid) } => {
                write!(f, "channel: {} is in use by pid {pid}: stop it or choose another path", path.display())
            }
            ChannelError::InUse { path, pid: None } => {
                write!(f, "channel: {} is in use by another process: stop it or choose another path", path.display())
            }
            ChannelError::NotASocket { path } => {
                write!(f, "channel: {} exists and is not a socket: choose another path", path.display())
            }
            ChannelError::NobodyThere { path, source } => {
                write!(f, "channel: nobody serves {} ({source}): is dpu-app running?", path.display())
            }
            ChannelError::Babble => write!(f, "channel: the peer sends more than anybody can take"),
            ChannelError::Device { what } => write!(f, "channel: {what}"),
            ChannelError::System { call, source } => write!(f, "channel: {call}: {source}"),
        }
    }
}

impl std::error::Error for ChannelError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ChannelError::NobodyThere { source, .. } | ChannelError::System { source, .. } => Some(source),
            _ => None,
        }
    }
}

fn system(call: &'static str) -> impl FnOnce(Errno) -> ChannelError {
    move |errno| ChannelError::System { call, source: errno.into() }
}

/// One peer. Nothing here blocks.
pub trait Channel: fmt::Debug {
    /// Sends one whole message of 1 to [`ATTACH_MESSAGE_MAX`] bytes.
    fn send(&mut self, message: &[u8]) -> Result<(), ChannelError>;

    /// Receives one whole message to the front of `out` and returns its bytes. `None`: nothing came yet. `out` of
    /// [`ATTACH_MESSAGE_MAX`] bytes holds any message.
    fn receive(&mut self, out: &mut [u8]) -> Result<Option<usize>, ChannelError>;

    /// Readable when there is something to receive, or the peer is gone. `None`: its listener says so
    /// ([`Listener::take_news`]).
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// The peer's identity, where the channel can tell.
    fn peer(&self) -> Option<Peer> {
        None
    }
}

/// The card's side: accepts hosts.
pub trait Listener: fmt::Debug {
    /// The next peer. `None`: nobody yet.
    fn accept(&mut self) -> Result<Option<Box<dyn Channel>>, ChannelError>;

    /// Readable when somebody is waiting. `None`: [`Self::take_news`] says so.
    fn fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Whether peers or messages came since the last call, or messages still wait: for channels without a descriptor.
    /// The answer changes only in the progress of the engine that the listener lives on and when a channel is dropped,
    /// so who has progressed until nothing happened and is told `false` may arm that engine and sleep.
    fn take_news(&mut self) -> bool {
        false
    }

    /// Asks what [`Self::take_news`] would answer, and leaves it so: the last look before sleep.
    fn has_news(&self) -> bool {
        false
    }
}

/// The host's end of a channel: it can wait. Nobody but its owner reads it, so a message that came is there until then.
pub trait HostChannel: Channel + Send {
    /// Waits until there is something to receive or the peer is gone. False when time ran out first; may be early. What
    /// came before the call counts: a doorbell that rang between the last look and this one is not lost.
    fn wait(&mut self, timeout: Duration) -> Result<bool, ChannelError>;

    /// Waits until there is room to send.
    fn wait_for_room(&mut self, timeout: Duration) -> Result<bool, ChannelError>;
}

/// A process of this machine, vouched for by the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub pid: u32,
    pub uid: u32,
    pub gid: u32,
}

/// A connected socket.
#[derive(Debug)]
pub struct UnixChannel {
    socket: OwnedFd,
}

fn new_socket() -> Result<OwnedFd, ChannelError> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(AddressFamily::Unix, SockType::SeqPacket, flags, None).map_err(system("socket"))
}

fn address(path: &Path) -> Result<UnixAddr, ChannelError> {
    UnixAddr::new(path).map_err(system("socket path"))
}

impl UnixChannel {
    /// Connects to whoever serves `path`.
    pub fn connect(path: &Path) -> Result<UnixChannel, ChannelError> {
        let socket = new_socket()?;
        match connect(socket.as_raw_fd(), &address(path)?) {
            Ok(()) => Ok(UnixChannel { socket }),
            // EAGAIN: the server's backlog is full, so it is there but does not accept.
            Err(errno @ (Errno::ENOENT | Errno::ECONNREFUSED | Errno::EAGAIN)) => {
                Err(ChannelError::NobodyThere { path: path.to_owned(), source: errno.into() })
            }
            Err(errno) => Err(system("connect")(errno)),
        }
    }
}

impl Channel for UnixChannel {
    fn send(&mut self, message: &[u8]) -> Result<(), ChannelError> {
        if message.is_empty() || message.len() > ATTACH_MESSAGE_MAX {
            return Err(ChannelError::Length { bytes: message.len(), limit: ATTACH_MESSAGE_MAX });
        }
        match retry(|| send(self.socket.as_raw_fd(), message, MsgFlags::MSG_NOSIGNAL)) {
            Ok(sent) => {
                debug_assert_eq!(sent, message.len(), "a packet goes whole or not at all");
                Ok(())
            }
            Err(Errno::EAGAIN) => Err(ChannelError::Full),
            Err(Errno::EPIPE | Errno::ECONNRESET) => Err(ChannelError::Closed),
            Err(errno) => Err(system("send")(errno)),
        }
    }

    fn receive(&mut self, out: &mut [u8]) -> Result<Option<usize>, ChannelError> {
        // MSG_TRUNC: the true length even where it is more than fits.
        let mut take = || retry(|| recv(self.socket.as_raw_fd(), out, MsgFlags::MSG_TRUNC));
        // A peer that closed with messages of ours unread: Linux says so once, and only then gives out what it had
        // sent.
        let taken = match take() {
            Err(Errno::ECONNRESET) => take(),
            taken => taken,
        };
        match taken {
            // We never send empty messages, so this is the end.
            Ok(0) => Err(ChannelError::Closed),
            Ok(bytes) if bytes > out.len() || bytes > ATTACH_MESSAGE_MAX => {
                Err(ChannelError::Length { bytes, limit: ATTACH_MESSAGE_MAX.min(out.len()) })
            }
            Ok(bytes) => Ok(Some(bytes)),
            Err(Errno::EAGAIN) => Ok(None),
            Err(Errno::ECONNRESET) => Err(ChannelError::Closed),
            Err(errno) => Err(system("recv")(errno)),
        }
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }

    fn peer(&self) -> Option<Peer> {
        let credentials = getsockopt(&self.socket, sockopt::PeerCredentials).ok()?;
        let (pid, uid, gid) = (credentials.pid(), credentials.uid(), credentials.gid());
        Some(Peer { pid: pid.try_into().ok()?, uid, gid })
    }
}

impl UnixChannel {
    fn poll(&self, flags: PollFlags, timeout: Duration) -> Result<bool, ChannelError> {
        // Rounded up: a wait of 0 ms in a loop is a spin.
        let ms = timeout.as_nanos().div_ceil(1_000_000).min(60_000) as u16;
        match poll(&mut [PollFd::new(self.socket.as_fd(), flags)], PollTimeout::from(ms)) {
            Ok(ready) => Ok(ready > 0),
            Err(Errno::EINTR) => Ok(true),
            Err(errno) => Err(system("poll")(errno)),
        }
    }
}

impl HostChannel for UnixChannel {
    fn wait(&mut self, timeout: Duration) -> Result<bool, ChannelError> {
        self.poll(PollFlags::POLLIN, timeout)
    }

    fn wait_for_room(&mut self, timeout: Duration) -> Result<bool, ChannelError> {
        self.poll(PollFlags::POLLOUT, timeout)
    }
}

/// A served path. Beside the socket lies `<path>.lock`, held while this lives: it, and not the socket's file, says
/// whether somebody serves the path, and it goes when its process goes, however that ends.
#[derive(Debug)]
pub struct UnixListener {
    /// Says "stream" in its type only; accept is the same for packets.
    socket: std::os::unix::net::UnixListener,
    path: PathBuf,
    /// Device and inode of our socket's file, so that we remove no other.
    file: (u64, u64),
    _lock: Flock<File>,
}

/// Peers that may wait for accept.
const BACKLOG: i32 = 16;

impl UnixListener {
    /// Serves `path` for this user only.
    pub fn bind(path: &Path) -> Result<UnixListener, ChannelError> {
        UnixListener::bind_with_mode(path, 0o600)
    }

    /// Serves `path` with these permissions of the socket's file. A stale socket is replaced.
    pub fn bind_with_mode(path: &Path, mode: u32) -> Result<UnixListener, ChannelError> {
        let lock = lock(path)?;
        match fs::symlink_metadata(path) {
            Ok(found) if found.file_type().is_socket() => {
                fs::remove_file(path).map_err(io_error("remove stale socket"))?;
            }
            Ok(_) => return Err(ChannelError::NotASocket { path: path.to_owned() }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io_error("stat socket path")(error)),
        }
        let socket = new_socket()?;
        // Linux makes the file with the socket's own mode: at no time is it open to more than its owner.
        fchmod(&socket, Mode::S_IRUSR | Mode::S_IWUSR).map_err(system("fchmod"))?;
        bind(socket.as_raw_fd(), &address(path)?).map_err(system("bind"))?;
        let file = fs::symlink_metadata(path).map_err(io_error("stat socket"))?;
        let listener =
            UnixListener { socket: socket.into(), path: path.to_owned(), file: (file.dev(), file.ino()), _lock: lock };
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(io_error("chmod socket"))?;
        listen(&listener.socket, Backlog::new(BACKLOG).map_err(system("backlog"))?).map_err(system("listen"))?;
        Ok(listener)
    }

    /// Path of the socket.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn io_error(call: &'static str) -> impl FnOnce(io::Error) -> ChannelError {
    move |source| ChannelError::System { call, source }
}

/// Takes `<path>.lock` and writes our process in it.
fn lock(path: &Path) -> Result<Flock<File>, ChannelError> {
    let mut name = path.as_os_str().to_owned();
    name.push(".lock");
    let options = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).to_owned();
    let file = options.open(&name).map_err(io_error("open lock file"))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(mut lock) => {
            let write = lock.set_len(0).and_then(|()| lock.write_all(std::process::id().to_string().as_bytes()));
            write.map_err(io_error("write lock file"))?;
            Ok(lock)
        }
        Err((mut file, Errno::EWOULDBLOCK)) => {
            let mut pid = String::new();
            let read = (&mut file).take(16).read_to_string(&mut pid);
            Err(ChannelError::InUse { path: path.to_owned(), pid: read.ok().and_then(|_| pid.trim().parse().ok()) })
        }
        Err((_, errno)) => Err(system("flock")(errno)),
    }
}

impl UnixListener {
    /// The next peer, known to be a socket.
    pub fn accept_socket(&mut self) -> Result<Option<UnixChannel>, ChannelError> {
        match self.socket.accept() {
            Ok((peer, _)) => {
                peer.set_nonblocking(true).map_err(io_error("set_nonblocking"))?;
                Ok(Some(UnixChannel { socket: peer.into() }))
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted) => {
                Ok(None)
            }
            Err(error) => Err(io_error("accept")(error)),
        }
    }
}

impl Listener for UnixListener {
    fn accept(&mut self) -> Result<Option<Box<dyn Channel>>, ChannelError> {
        Ok(self.accept_socket()?.map(|channel| Box::new(channel) as Box<dyn Channel>))
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.socket.as_fd())
    }
}

impl Drop for UnixListener {
    fn drop(&mut self) {
        // The lock file stays: removing it would let two holders of the lock exist.
        if fs::symlink_metadata(&self.path).is_ok_and(|file| (file.dev(), file.ino()) == self.file) {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> nix::Result<T>) -> nix::Result<T> {
    loop {
        match call() {
            Err(Errno::EINTR) => {}
            other => return other,
        }
    }
}

#[cfg(all(test, not(miri)))]
mod tests;
