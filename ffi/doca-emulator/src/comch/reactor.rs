//! The meeting place of DOCA Comch: a server listens on a socket file, clients connect to it, and a thread per running
//! server or client reads for all of its links.
//!
//! The file's name says which function of the host and which server: `<address of the function>-<checksum of name>`, in
//! the directory `comch_dir`, whose owner is looked at first ([`crate::comch::meeting`]). The server keeps a lock on a
//! file beside it, so that a file left behind by a process that died is recognised, and a second server of the same
//! name is refused.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::comch::frame::{FRAME_BYTES_MAX, FrameKind, VERSION, parse};
use crate::comch::inbox::{Event, Inbox};
use crate::comch::link::{Link, Over};
use crate::comch::meeting::{self, Meeting};
use crate::config::Config;
use crate::ffi::{Fault, complain};
use crate::tools::packet::{self, seqpacket};

/// Clients that one server serves.
pub(crate) const CLIENTS_MAX: u32 = 512;
/// Longest time that a new connection may take to introduce itself.
const GREETING: Duration = Duration::from_secs(2);
/// Pause between two attempts of a client.
const RETRY: Duration = Duration::from_millis(10);

/// Rouses a reactor's thread.
pub(crate) struct Wake(File);

impl Wake {
    fn new() -> Result<Wake, Fault> {
        // SAFETY: makes a descriptor; no pointers.
        let fd = unsafe { libc::eventfd(0, libc::EFD_NONBLOCK | libc::EFD_CLOEXEC) };
        if fd < 0 {
            return Err(Fault::DOCA_ERROR_OPERATING_SYSTEM);
        }
        // SAFETY: a new descriptor that nothing else owns.
        Ok(Wake(unsafe { File::from_raw_fd(fd) }))
    }

    pub(crate) fn ring(&self) {
        // The only failure is a full counter, and then the descriptor is readable already.
        let _ = (&self.0).write(&1u64.to_ne_bytes());
    }

    fn quieten(&self) {
        let _ = (&self.0).read(&mut [0; 8]);
    }
}

/// What a reactor needs to know, on whatever thread.
pub(crate) struct Terms {
    pub(crate) address: String,
    pub(crate) name: String,
    pub(crate) message_max: u32,
    pub(crate) window: u32,
    pub(crate) inbox: Inbox,
}

/// A running reactor. Dropping it ends its thread and all its links.
pub(crate) struct Reactor {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// The files of a server, removed with it.
    files: Option<(PathBuf, File)>,
}

struct Shared {
    terms: Terms,
    wake: Arc<Wake>,
    is_closing: AtomicBool,
    links: Mutex<Vec<Entry>>,
}

struct Entry {
    link: Arc<Link>,
    /// None once it has introduced itself.
    greeting_until: Option<Instant>,
}

impl Drop for Reactor {
    fn drop(&mut self) {
        self.shared.is_closing.store(true, Ordering::Release);
        self.shared.wake.ring();
        if let Some(thread) = self.thread.take() {
            // A panic would have ended the process.
            let _ = thread.join();
        }
        for entry in self.shared.lock().drain(..) {
            entry.link.close();
        }
        if let Some((path, lock)) = self.files.take() {
            let _ = fs::remove_file(&path);
            drop(lock);
        }
    }
}

impl Reactor {
    /// All links that have introduced themselves.
    pub(crate) fn links(&self) -> Vec<Arc<Link>> {
        let links = self.shared.lock();
        links.iter().filter(|entry| entry.greeting_until.is_none()).map(|entry| Arc::clone(&entry.link)).collect()
    }

    pub(crate) fn serve(config: &Config, terms: Terms) -> Result<Reactor, Fault> {
        let path = place(&Meeting::of(config)?.path, &terms);
        let lock = meeting::lock_file(&path)?;
        let _ = fs::remove_file(&path);
        let listener = listen(&path)?;
        Reactor::run(terms, Some((path, lock)), move |shared| {
            let mut reader = Reader::new();
            while reader.round(shared, Some(&listener), None) {}
        })
    }

    pub(crate) fn visit(config: &Config, terms: Terms) -> Result<Reactor, Fault> {
        let meeting = Meeting::of(config)?;
        let path = place(&meeting.path, &terms);
        let patience = Duration::from_millis(config.comch_wait_ms.into());
        Reactor::run(terms, None, move |shared| {
            let Some(socket) = shared.connect(&path, &meeting, Instant::now() + patience) else {
                complain(&format!("comch: there is no server `{}` for {}", shared.terms.name, shared.terms.address));
                return shared.tell(Event::Refused);
            };
            let link = Arc::new(Link::new(socket, Arc::clone(&shared.wake)));
            let terms = &shared.terms;
            link.tell(FrameKind::Hello, [VERSION, terms.message_max, terms.window], terms.name.as_bytes());
            shared.lock().push(Entry { link, greeting_until: Some(Instant::now() + GREETING + patience) });
            let mut reader = Reader::new();
            while reader.round(shared, None, Some(Event::Refused)) {}
        })
    }

    fn run(
        terms: Terms,
        files: Option<(PathBuf, File)>,
        work: impl FnOnce(&Shared) + Send + 'static,
    ) -> Result<Reactor, Fault> {
        let wake = Arc::new(Wake::new()?);
        let shared = Shared { terms, wake, is_closing: AtomicBool::new(false), links: Mutex::new(Vec::new()) };
        let shared = Arc::new(shared);
        let theirs = Arc::clone(&shared);
        let thread = thread::Builder::new().name("comch".to_owned()).spawn(move || {
            let _guard = crate::tools::abort::AbortOnPanic;
            work(&theirs);
        });
        let thread = Some(thread.map_err(|_| Fault::DOCA_ERROR_INITIALIZATION)?);
        Ok(Reactor { shared, thread, files })
    }
}

impl Shared {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Entry>> {
        self.links.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_closing(&self) -> bool {
        self.is_closing.load(Ordering::Acquire)
    }

    fn tell(&self, event: Event) {
        self.terms.inbox.tell(event);
    }

    /// None without a server, or with one that a stranger has put there.
    fn connect(&self, path: &Path, meeting: &Meeting, until: Instant) -> Option<OwnedFd> {
        loop {
            let socket = seqpacket().ok()?;
            let (address, length) = socket_address(path)?;
            // SAFETY: an address with its length.
            if unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), length) } == 0 {
                return meeting.trusts(&socket, path).then_some(socket);
            }
            if self.is_closing() || Instant::now() >= until {
                return None;
            }
            thread::sleep(RETRY);
        }
    }
}

/// The buffers of a reactor's thread.
struct Reader {
    room: Vec<u8>,
    polls: Vec<libc::pollfd>,
    /// Links of the current round; kept for its capacity.
    links: Vec<(Arc<Link>, Option<Instant>)>,
}

impl Reader {
    fn new() -> Reader {
        Reader { room: vec![0; FRAME_BYTES_MAX], polls: Vec::new(), links: Vec::new() }
    }

    /// Waits and works once; false when the reactor closes, or when a client's link, whose end is `last_words`, does.
    fn round(&mut self, shared: &Shared, listener: Option<&OwnedFd>, last_words: Option<Event>) -> bool {
        let mut links = std::mem::take(&mut self.links);
        links.extend(shared.lock().iter().map(|entry| (Arc::clone(&entry.link), entry.greeting_until)));
        let goes_on = self.look(shared, listener, last_words, &links);
        links.clear();
        self.links = links;
        goes_on
    }

    fn look(
        &mut self,
        shared: &Shared,
        listener: Option<&OwnedFd>,
        last_words: Option<Event>,
        links: &[(Arc<Link>, Option<Instant>)],
    ) -> bool {
        let is_client = listener.is_none();
        let poll = |fd, events| libc::pollfd { fd, events, revents: 0 };
        self.polls.clear();
        self.polls.push(poll(shared.wake.0.as_raw_fd(), libc::POLLIN));
        // A negative descriptor is skipped.
        self.polls.push(poll(listener.map_or(-1, |listener| listener.as_raw_fd()), libc::POLLIN));
        for (link, _) in links {
            let write = if link.has_to_write() { libc::POLLOUT } else { 0 };
            self.polls.push(poll(link.fd(), libc::POLLIN | write));
        }
        let patience = if links.iter().any(|(_, until)| until.is_some()) { 100 } else { -1 };
        // SAFETY: entries of our own with their number.
        unsafe { libc::poll(self.polls.as_mut_ptr(), self.polls.len() as libc::nfds_t, patience) };
        if self.polls[0].revents != 0 {
            shared.wake.quieten();
        }
        if shared.is_closing() {
            return false;
        }
        for (index, (link, until)) in links.iter().enumerate() {
            let events = self.polls[index + 2].revents;
            if events & libc::POLLOUT != 0 {
                link.write_more();
            }
            let is_late = until.is_some_and(|until| Instant::now() > until);
            let is_read = events & (libc::POLLIN | libc::POLLHUP | libc::POLLERR) != 0;
            let alive = !is_late && link.is_open() && (!is_read || self.read(shared, link).is_ok());
            if !alive {
                shared.lock().retain(|entry| !Arc::ptr_eq(&entry.link, link));
                let was_open = link.close();
                if is_client {
                    let greeted = until.is_none() || link.message_max.load(Ordering::Relaxed) > 0;
                    let words = if greeted { Some(Event::Left(Arc::clone(link))) } else { last_words };
                    words.into_iter().for_each(|event| shared.tell(event));
                    return false;
                }
                if was_open && link.message_max.load(Ordering::Relaxed) > 0 {
                    shared.tell(Event::Left(Arc::clone(link)));
                }
            }
        }
        if let (Some(listener), true) = (listener, self.polls[1].revents != 0) {
            accept(shared, listener);
        }
        true
    }

    fn read(&mut self, shared: &Shared, link: &Arc<Link>) -> Result<(), Over> {
        const PACKETS_MAX: usize = 64;
        for _ in 0..PACKETS_MAX {
            let Some(length) = link.receive(&mut self.room)? else { break };
            let packet = &self.room[..length];
            let is_new =
                shared.lock().iter().any(|entry| Arc::ptr_eq(&entry.link, link) && entry.greeting_until.is_some());
            if is_new {
                greet(shared, link, packet)?;
                for entry in shared.lock().iter_mut().filter(|entry| Arc::ptr_eq(&entry.link, link)) {
                    entry.greeting_until = None;
                }
                shared.tell(Event::Joined(Arc::clone(link)));
            } else if let Some(event) = link.take_in(packet, shared.terms.window)? {
                shared.tell(event);
            }
        }
        Ok(())
    }
}

/// The first packet of a link.
fn greet(shared: &Shared, link: &Link, packet: &[u8]) -> Result<(), Over> {
    let terms = &shared.terms;
    let (what, [first, message_max, window], bytes) = parse(packet).ok_or(Over)?;
    match what {
        FrameKind::Hello if first == VERSION && bytes == terms.name.as_bytes() => {
            link.tell(FrameKind::Welcome, [VERSION, terms.message_max, terms.window], &[]);
        }
        FrameKind::Hello => {
            link.tell(FrameKind::Refused, [Fault::DOCA_ERROR_UNSUPPORTED_VERSION.0, 0, 0], &[]);
            return Err(Over);
        }
        FrameKind::Welcome if first == VERSION => {}
        FrameKind::Refused => {
            complain(&format!("comch: server `{}` refused the connection: code {first}", terms.name));
            return Err(Over);
        }
        _ => return Err(Over),
    }
    link.agree(terms.message_max.min(message_max), window);
    Ok(())
}

fn accept(shared: &Shared, listener: &OwnedFd) {
    let Some(socket) = packet::accept(listener) else { return };
    let link = Arc::new(Link::new(socket, Arc::clone(&shared.wake)));
    let mut links = shared.lock();
    if links.len() >= CLIENTS_MAX as usize {
        link.tell(FrameKind::Refused, [Fault::DOCA_ERROR_FULL.0, 0, 0], &[]);
        return;
    }
    links.push(Entry { link, greeting_until: Some(Instant::now() + GREETING) });
}

fn place(directory: &Path, terms: &Terms) -> PathBuf {
    directory.join(format!("{}-{:08x}", terms.address, crc32fast::hash(terms.name.as_bytes())))
}

/// None if the path is too long for a socket.
fn socket_address(path: &Path) -> Option<(libc::sockaddr_un, libc::socklen_t)> {
    // SAFETY: integers, for which zeroes are values.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as libc::sa_family_t;
    let bytes = path.as_os_str().as_bytes();
    if bytes.len() >= address.sun_path.len() {
        return None;
    }
    for (to, from) in address.sun_path.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    Some((address, size_of::<libc::sockaddr_un>() as libc::socklen_t))
}

fn listen(path: &Path) -> Result<OwnedFd, Fault> {
    let socket = seqpacket().map_err(|_| Fault::DOCA_ERROR_OPERATING_SYSTEM)?;
    let (address, length) = socket_address(path).ok_or_else(|| {
        complain(&format!("comch: {} is too long for a socket: choose a shorter comch_dir", path.display()));
        Fault::DOCA_ERROR_INVALID_VALUE
    })?;
    // SAFETY: an address with its length, and a socket of our own.
    let bound = unsafe {
        libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) == 0
            && libc::listen(socket.as_raw_fd(), 128) == 0
    };
    if !bound {
        complain(&format!("comch: {}: {}: is it somebody else's?", path.display(), io::Error::last_os_error()));
        return Err(Fault::DOCA_ERROR_OPERATING_SYSTEM);
    }
    Ok(socket)
}
