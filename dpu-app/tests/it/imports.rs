//! A host whose exports lead to somebody who never answers costs itself an attach, and nobody else anything.

use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::rig::*;
use host_ctl::Arrangement;
use mailbox::attach::{ATTACH_MESSAGE_MAX, Commit, Hello, Message, PAGE_REGION, Reason, Region};
use mailbox::channel::HostChannel;
use mailbox::{PAGE_BYTES, Status};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen, socket};

/// Attaches that are tried: a loaded machine may not get to the others' requests in the second that one waits.
const TRIES: usize = 10;

/// An export of the emulator's, of whoever listens under this name.
fn blob(courier: u64) -> Vec<u8> {
    let mut blob = b"kvl-pci\0".to_vec();
    [2_u32, 77].iter().for_each(|half| blob.extend(half.to_le_bytes()));
    [5_u64, 6].iter().for_each(|half| blob.extend(half.to_le_bytes()));
    [0_u32, 1 << 2].iter().for_each(|half| blob.extend(half.to_le_bytes()));
    [1_u64 << 40, PAGE_BYTES as u64, courier].iter().for_each(|word| blob.extend(word.to_le_bytes()));
    blob.resize(124, 0);
    let crc = crc32fast::hash(&blob);
    blob.extend(crc.to_le_bytes());
    blob
}

fn say(line: &mut dyn HostChannel, message: &Message<'_>) {
    let mut bytes = [0; ATTACH_MESSAGE_MAX];
    line.send(message.encode(&mut bytes).unwrap()).unwrap();
}

#[test]
fn an_exporter_that_never_answers_holds_up_nobody_else() {
    let name = u64::from(std::process::id()) << 32 | 0x15;
    let deaf = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
    let address = UnixAddr::new_abstract(format!("doca-emulator-{name:016x}").as_bytes()).unwrap();
    bind(deaf.as_raw_fd(), &address).unwrap();
    listen(&deaf, Backlog::new(100).unwrap()).unwrap();
    let export = blob(name);

    let card = Card::start();
    let mut other = card.attach("q5", empty(Arrangement::Vllm, geometry(), 1));
    for route in card.routes() {
        let is_passed = || {
            let mut line = line(&route);
            let hello = Hello {
                generation: 1,
                pid: 1,
                region_count: 0,
                geometry: None,
                recipe: None,
                client: "deaf",
                namespace: None,
            };
            say(line.as_mut(), &Message::Hello(hello));
            let page =
                Region { index: PAGE_REGION, writable: true, base: 1 << 40, bytes: PAGE_BYTES as u64, export: &export };
            say(line.as_mut(), &Message::Region(page));
            say(line.as_mut(), &Message::Commit(Commit { region_count: 0, base_count: 0, further_sections: 0 }));
            // The card has heard all of it, and asks.
            std::thread::sleep(Duration::from_millis(100));
            let ping = other.post_ping().unwrap();
            assert_eq!(other.wait(ping, WAIT).unwrap().status, Status::Ok);
            let mut bytes = [0; ATTACH_MESSAGE_MAX];
            let is_passed = line.receive(&mut bytes).unwrap().is_none();
            if !is_passed {
                return false;
            }
            assert!(line.wait(WAIT).unwrap());
            let count = line.receive(&mut bytes).unwrap().expect("it was waited for");
            match Message::decode(&bytes[..count]).unwrap() {
                Message::Refuse(refuse) => assert_eq!(refuse.reason(), Some(Reason::Region)),
                message => panic!("{message:?}"),
            }
            true
        };
        assert!(std::iter::repeat_with(is_passed).take(TRIES).any(|is_passed| is_passed), "{route}");
    }
    other.close(WAIT).unwrap();
    card.await_empty();
}
