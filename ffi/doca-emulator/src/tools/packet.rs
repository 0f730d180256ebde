//! One packet over a Unix seqpacket socket, with descriptors in it or without, and who is at the other end.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::thread;
use std::time::Duration;

/// Room for two descriptors and their heading, aligned as one.
type Enclosure = [u64; 8];
const FILES_MAX: usize = 2;
/// Rest of a listener whose process has no descriptor left: the caller stays in its queue meanwhile.
const REST: Duration = Duration::from_millis(20);

pub(crate) fn iovec(bytes: &mut [u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }
}

/// Describes bytes that are only sent.
pub(crate) fn status(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

fn message(parts: &[libc::iovec]) -> libc::msghdr {
    // SAFETY: integers and pointers, for which zeroes are values.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = parts.as_ptr().cast_mut();
    message.msg_iovlen = parts.len() as _;
    message
}

/// Sends one packet.
pub(crate) fn send(socket: &OwnedFd, parts: &[libc::iovec], fds: &[libc::c_int]) -> io::Result<()> {
    assert!(fds.len() <= FILES_MAX, "the enclosure's room");
    let mut enclosure: Enclosure = [0; 8];
    let mut message = message(parts);
    if !fds.is_empty() {
        let bytes = size_of_val(fds) as libc::c_uint;
        message.msg_control = enclosure.as_mut_ptr().cast();
        // SAFETY: computes lengths; then the heading and its descriptors are written inside the enclosure, whose room
        // was checked above.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(bytes) as _;
            let heading = libc::CMSG_FIRSTHDR(&raw const message);
            (*heading).cmsg_level = libc::SOL_SOCKET;
            (*heading).cmsg_type = libc::SCM_RIGHTS;
            (*heading).cmsg_len = libc::CMSG_LEN(bytes) as _;
            libc::CMSG_DATA(heading).copy_from_nonoverlapping(fds.as_ptr().cast::<u8>(), size_of_val(fds));
        }
    }
    // SAFETY: the message points to lists of our own; the kernel checks where their ranges are.
    let sent = uninterrupted(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, libc::MSG_NOSIGNAL) });
    sent.map(drop)
}

/// Makes a system call again that one of the application's signals ended.
fn uninterrupted(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(bytes) => return Ok(bytes),
            Err(_) => match io::Error::last_os_error() {
                err if err.kind() == io::ErrorKind::Interrupted => {}
                err => return Err(err),
            },
        }
    }
}

/// Takes one packet; its length, at most that of the parts.
pub(crate) fn receive(socket: &OwnedFd, parts: &[libc::iovec], flags: libc::c_int) -> io::Result<usize> {
    let mut message = message(parts);
    // SAFETY: as in `send`; nobody else looks at the parts meanwhile, or is the exporter's application, as with any
    // DMA.
    uninterrupted(|| unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, flags) })
}

/// Takes one packet and the descriptors in it.
pub(crate) fn receive_files(socket: &OwnedFd, parts: &[libc::iovec]) -> io::Result<(usize, Vec<File>)> {
    let mut enclosure: Enclosure = [0; 8];
    let mut message = message(parts);
    message.msg_control = enclosure.as_mut_ptr().cast();
    message.msg_controllen = size_of::<Enclosure>() as _;
    let mut files = Vec::new();
    // SAFETY: room of our own with its lengths, and the caller's parts as in `receive`; what is enclosed is read within
    // the length that the kernel gives it, and each descriptor is new and owned by nobody else.
    let came = unsafe {
        let came = uninterrupted(|| libc::recvmsg(socket.as_raw_fd(), &raw mut message, libc::MSG_CMSG_CLOEXEC))?;
        let heading = libc::CMSG_FIRSTHDR(&raw const message);
        if !heading.is_null() && ((*heading).cmsg_level, (*heading).cmsg_type) == (libc::SOL_SOCKET, libc::SCM_RIGHTS) {
            let bytes = (*heading).cmsg_len as usize - libc::CMSG_LEN(0) as usize;
            let first = libc::CMSG_DATA(heading).cast::<[u8; 4]>();
            files.extend((0..bytes / 4).map(|at| File::from_raw_fd(libc::c_int::from_ne_bytes(first.add(at).read()))));
        }
        came
    };
    Ok((came, files))
}

pub(crate) fn seqpacket() -> io::Result<OwnedFd> {
    // SAFETY: makes a descriptor; no pointers.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nothing else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Bounds each wait of a socket: for room, for a packet, for a listener to take the connection.
pub(crate) fn set_patience(socket: &OwnedFd, patience: Duration) -> io::Result<()> {
    let patience = libc::timeval {
        tv_sec: patience.as_secs() as libc::time_t,
        tv_usec: patience.subsec_micros() as libc::suseconds_t,
    };
    for which in [libc::SO_RCVTIMEO, libc::SO_SNDTIMEO] {
        let (value, bytes) = ((&raw const patience).cast(), size_of::<libc::timeval>() as libc::socklen_t);
        // SAFETY: a value with its length.
        if unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, which, value, bytes) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Asks the kernel which process made the connection, or listened for it.
pub(crate) fn peer(socket: &OwnedFd) -> io::Result<libc::ucred> {
    let mut peer = libc::ucred { pid: 0, uid: libc::uid_t::MAX, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    let place = (&raw mut peer).cast();
    // SAFETY: a place of the length given.
    match unsafe { libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, place, &raw mut length) } {
        0 => Ok(peer),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The user that this process acts for.
pub(crate) fn user() -> libc::uid_t {
    // SAFETY: takes nothing and cannot fail.
    unsafe { libc::geteuid() }
}

/// Takes a connection, if one waits. Rests where the process has no descriptor left for it.
pub(crate) fn accept(listener: &OwnedFd) -> Option<OwnedFd> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the peer's address is not asked for.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), ptr::null_mut(), ptr::null_mut(), flags) };
    if fd < 0 {
        if matches!(
            io::Error::last_os_error().raw_os_error(),
            Some(libc::EMFILE | libc::ENFILE | libc::ENOMEM | libc::ENOBUFS)
        ) {
            thread::sleep(REST);
        }
        return None;
    }
    // SAFETY: a new descriptor that nothing else owns.
    Some(unsafe { OwnedFd::from_raw_fd(fd) })
}
