//! The Unix channel over real sockets.

use std::os::unix::net::UnixDatagram;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::*;

fn directory() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

fn readable(descriptor: BorrowedFd<'_>) -> bool {
    let mut descriptors = [PollFd::new(descriptor, PollFlags::POLLIN)];
    poll(&mut descriptors, PollTimeout::from(1000_u16)).unwrap() == 1
}

fn pair(listener: &mut UnixListener) -> (UnixChannel, Box<dyn Channel>) {
    let client = UnixChannel::connect(listener.path()).unwrap();
    assert!(readable(listener.fd().unwrap()));
    (client, listener.accept().unwrap().unwrap())
}

#[test]
fn messages_stay_whole_and_in_order() {
    let directory = directory();
    let mut listener = UnixListener::bind(&directory.path().join("socket")).unwrap();
    assert!(listener.accept().unwrap().is_none());
    let (mut client, mut server) = pair(&mut listener);
    let mut out = [0; ATTACH_MESSAGE_MAX];
    assert!(server.receive(&mut out).unwrap().is_none(), "does not block");
    client.send(b"one").unwrap();
    client.send(&[7; ATTACH_MESSAGE_MAX]).unwrap();
    server.send(b"answer").unwrap();
    assert!(readable(server.fd().unwrap()));
    assert_eq!(server.receive(&mut out).unwrap(), Some(3));
    assert_eq!(&out[..3], b"one");
    assert_eq!(server.receive(&mut out).unwrap(), Some(ATTACH_MESSAGE_MAX));
    assert_eq!(client.receive(&mut out).unwrap(), Some(6));
    assert_eq!(client.receive(&mut out).unwrap(), None);
}

#[test]
fn lengths_outside_the_limit_are_errors_on_both_sides() {
    let directory = directory();
    let mut listener = UnixListener::bind(&directory.path().join("socket")).unwrap();
    let (mut client, mut server) = pair(&mut listener);
    assert!(matches!(client.send(&[]), Err(ChannelError::Length { bytes: 0, .. })));
    assert!(matches!(client.send(&[0; ATTACH_MESSAGE_MAX + 1]), Err(ChannelError::Length { bytes: 4001, .. })));
    // A liar that goes around our send.
    send(client.socket.as_raw_fd(), &[0; 5000], MsgFlags::empty()).unwrap();
    let mut out = [0; ATTACH_MESSAGE_MAX];
    assert!(matches!(server.receive(&mut out), Err(ChannelError::Length { bytes: 5000, limit: 4000 })));
}

#[test]
fn a_peer_that_goes_is_noticed_and_one_that_does_not_read_is_back_pressure() {
    let directory = directory();
    let mut listener = UnixListener::bind(&directory.path().join("socket")).unwrap();
    let (mut client, mut server) = pair(&mut listener);
    let full = (0..100_000).find_map(|_| client.send(&[1; 4000]).err()).unwrap();
    assert!(matches!(full, ChannelError::Full), "{full}");
    drop(client);
    let mut out = [0; ATTACH_MESSAGE_MAX];
    assert!(readable(server.fd().unwrap()));
    let end = std::iter::repeat_with(|| server.receive(&mut out)).find_map(Result::err).unwrap();
    assert!(matches!(end, ChannelError::Closed), "{end}");
    assert!(matches!(server.send(b"x"), Err(ChannelError::Closed)));
}

#[test]
fn what_a_peer_said_before_it_closed_is_heard_though_it_left_messages_unread() {
    let directory = directory();
    let mut listener = UnixListener::bind(&directory.path().join("socket")).unwrap();
    let (mut client, mut server) = pair(&mut listener);
    client.send(b"hello").unwrap();
    client.send(b"and more").unwrap();
    server.send(b"refused").unwrap();
    server.send(b"bye").unwrap();
    drop(server);
    let mut out = [0; ATTACH_MESSAGE_MAX];
    assert_eq!(client.receive(&mut out).unwrap(), Some(7));
    assert_eq!(&out[..7], b"refused");
    assert_eq!(client.receive(&mut out).unwrap(), Some(3));
    assert!(matches!(client.receive(&mut out), Err(ChannelError::Closed)));
}

#[test]
fn a_path_in_use_names_its_user_and_a_stale_one_is_replaced() {
    let directory = directory();
    let path = directory.path().join("socket");
    let first = UnixListener::bind(&path).unwrap();
    let error = UnixListener::bind(&path).unwrap_err();
    let expected = format!("is in use by pid {}", std::process::id());
    assert!(error.to_string().contains(&expected), "{error}");
    assert!(UnixChannel::connect(&path).is_ok(), "the first still serves");
    drop(first);
    assert!(!path.exists(), "a listener takes its socket away");

    // As a killed process leaves it: a socket, and a lock that nobody holds.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let gone = UnixChannel::connect(&path).unwrap_err();
    assert!(matches!(gone, ChannelError::NobodyThere { .. }), "{gone}");
    let mut second = UnixListener::bind(&path).unwrap();
    pair(&mut second);
}

#[test]
fn a_file_in_the_way_is_not_removed() {
    let directory = directory();
    let path = directory.path().join("precious");
    fs::write(&path, "data").unwrap();
    assert!(matches!(UnixListener::bind(&path), Err(ChannelError::NotASocket { .. })));
    assert_eq!(fs::read(&path).unwrap(), b"data");
    let nobody = UnixChannel::connect(&directory.path().join("nothing")).unwrap_err();
    assert!(nobody.to_string().contains("is dpu-app running?"), "{nobody}");
}

#[test]
fn the_socket_is_for_its_owner_unless_told_otherwise_and_the_peer_is_known() {
    let directory = directory();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let path = directory.path().join("socket");
    let mut listener = UnixListener::bind(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    let (client, server) = pair(&mut listener);
    let this =
        Peer { pid: std::process::id(), uid: nix::unistd::getuid().as_raw(), gid: nix::unistd::getgid().as_raw() };
    assert_eq!(server.peer(), Some(this));
    assert_eq!(client.peer(), Some(this));
    let path = directory.path().join("group");
    let _listener = UnixListener::bind_with_mode(&path, 0o660).unwrap();
    assert_eq!(mode(&path), 0o660);
    assert_eq!(mode(&directory.path().join("group.lock")), 0o600);
}

#[test]
fn somebody_elses_socket_is_left_where_it_is() {
    let directory = directory();
    let path = directory.path().join("socket");
    let listener = UnixListener::bind(&path).unwrap();
    fs::remove_file(&path).unwrap();
    let _other = UnixDatagram::bind(&path).unwrap();
    drop(listener);
    assert!(path.exists());
}
