//! A card in this process: real mailbox, real socket, no DOCA. It reaches the host's memory through the very objects
//! that were exported, keeps chunks in a table, and misbehaves on demand.
#![allow(dead_code)] // each test uses its part

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use block::{ChunkKey, Geometry, Part, TileOrder};
use doca::{Access, Mapping};
use host_ctl::{Client, Error, Exported, Exporter, Memory, Options, Route};
use mailbox::attach::{ATTACH_MESSAGE_MAX, Attachment, Farewell, Intake, Message, Refuse, Welcome};
use mailbox::channel::{Channel, Listener, UnixChannel, UnixListener};
use mailbox::layout::Layout;
use mailbox::{Answer, COMMAND_WINDOW, CardRing, Command, Operation, PAGES_PER_CHUNK_MAX, Page, Span, Status};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// How this card is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) recipe: &'static str,
    pub(crate) chunks_max: u32,
    pub(crate) requests_max: u32,
    /// Answers what has come together, backwards.
    pub(crate) backwards: bool,
    /// Hangs up when this many commands have come.
    pub(crate) dies_after: Option<usize>,
    /// Says good-bye then, instead of nothing.
    pub(crate) farewell: Option<Farewell>,
    /// Never answers this.
    pub(crate) ignores: Option<Operation>,
    /// Completes a request that nobody posted when this many commands have come.
    pub(crate) lies_after: Option<usize>,
    /// Refuses every attach.
    pub(crate) refuses: Option<Refuse>,
    /// Accepts and says nothing.
    pub(crate) mute: bool,
    /// Forgets the last chunk of every fetch before it serves it, this many times.
    pub(crate) evicts: usize,
    /// Answers this chunk of a fetch as corrupt, and takes it out.
    pub(crate) corrupt: Option<u32>,
    /// Text of a status; CORRUPT in it stands for the number of chunks that were taken out as corrupt.
    pub(crate) status: &'static str,
}

impl Default for Manner {
    fn default() -> Manner {
        Manner {
            recipe: "lossless",
            chunks_max: 1024,
            requests_max: 32,
            backwards: false,
            dies_after: None,
            farewell: None,
            ignores: None,
            lies_after: None,
            refuses: None,
            mute: false,
            evicts: 0,
            corrupt: None,
            status: r#"{"card":{"state":"steady"},"stages":{"write":{"jobs":1,"busy_ms":1.5,"bytes_in":1}}}"#,
        }
    }
}

/// Exported objects by the number that serves as their blob.
#[derive(Debug, Default)]
struct Registry {
    pages: HashMap<u64, Page>,
    regions: HashMap<u64, Arc<Mapping>>,
    next: u64,
}

#[derive(Debug, Default)]
struct Shared {
    registry: Mutex<Registry>,
    chunks: Mutex<HashMap<ChunkKey, Vec<u8>>>,
    /// Sleeps that ended by the clock and not by a doorbell, though there was a command.
    late: AtomicUsize,
    sleeps: AtomicUsize,
    commands: AtomicUsize,
    sessions: AtomicUsize,
    evictions: AtomicUsize,
    corrupted: AtomicUsize,
    stop: std::sync::atomic::AtomicBool,
}

#[derive(Debug)]
struct FakeExporter(Arc<Shared>);

impl Exporter for FakeExporter {
    fn page(&mut self, page: &Page) -> Result<Exported, Error> {
        let mut registry = self.0.registry.lock().unwrap();
        registry.next += 1;
        let id = registry.next;
        registry.pages.insert(id, page.share().unwrap());
        Ok(Exported { base: 4096, bytes: mailbox::PAGE_BYTES as u64, blob: id.to_le_bytes().to_vec() })
    }

    fn region(&mut self, mapping: &Arc<Mapping>, _: Access) -> Result<Exported, Error> {
        let mut registry = self.0.registry.lock().unwrap();
        registry.next += 1;
        let id = registry.next;
        registry.regions.insert(id, Arc::clone(mapping));
        Ok(Exported { base: mapping.address(), bytes: mapping.bytes() as u64, blob: id.to_le_bytes().to_vec() })
    }
}

/// The card, until dropped.
#[derive(Debug)]
pub(crate) struct FakeCard {
    shared: Arc<Shared>,
    socket: PathBuf,
    pub(crate) options: Options,
    thread: Option<JoinHandle<()>>,
    _dir: Option<tempfile::TempDir>,
}

impl FakeCard {
    pub(crate) fn start(manner: Manner) -> FakeCard {
        let dir = tempfile::tempdir().unwrap();
        let mut card = Self::start_at(&dir.path().join("card.sock"), manner);
        card._dir = Some(dir);
        card
    }

    pub(crate) fn start_at(socket: &std::path::Path, manner: Manner) -> FakeCard {
        let socket = socket.to_owned();
        let mut listener = UnixListener::bind(&socket).unwrap();
        let shared = Arc::new(Shared { evictions: AtomicUsize::new(manner.evicts), ..Shared::default() });
        let serving = Arc::clone(&shared);
        let thread = std::thread::spawn(move || {
            let mut sessions = Vec::new();
            while !serving.stop.load(Ordering::Relaxed) {
                wait(listener.fd().expect("a socket"), 10);
                if let Some(channel) = listener.accept_socket().unwrap() {
                    let shared = Arc::clone(&serving);
                    sessions.push(std::thread::spawn(move || serve(Box::new(channel), manner, &shared)));
                }
            }
            sessions.into_iter().for_each(|session| session.join().unwrap());
        });
        let timeout = Duration::from_secs(5);
        let route = Route::Socket(socket.clone());
        let options = Options { route, timeout, client: "test".to_owned(), ..Options::default() };
        FakeCard { shared, socket, options, thread: Some(thread), _dir: None }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    pub(crate) fn attach(&self, memory: Option<Memory>) -> Result<Client, Error> {
        self.attach_as(&self.options, memory)
    }

    pub(crate) fn attach_as(&self, options: &Options, memory: Option<Memory>) -> Result<Client, Error> {
        let channel = UnixChannel::connect(&self.socket)?;
        Client::attach_over(Box::new(channel), Box::new(FakeExporter(Arc::clone(&self.shared))), options, memory)
    }

    /// A door for the transfers.
    pub(crate) fn door(&self) -> impl FnMut(Option<Memory>) -> Result<Client, Error> {
        let mut options = self.options.clone();
        options.part_chunks = Some(3);
        let (shared, socket) = (Arc::clone(&self.shared), self.socket.clone());
        move |memory| {
            let channel = UnixChannel::connect(&socket)?;
            Client::attach_over(Box::new(channel), Box::new(FakeExporter(Arc::clone(&shared))), &options, memory)
        }
    }

    pub(crate) fn chunks(&self) -> usize {
        self.shared.chunks.lock().unwrap().len()
    }

    pub(crate) fn put(&self, key: ChunkKey, chunk: Vec<u8>) {
        self.shared.chunks.lock().unwrap().insert(key, chunk);
    }

    pub(crate) fn forget(&self, key: &ChunkKey) {
        self.shared.chunks.lock().unwrap().remove(key).expect("was there");
    }

    pub(crate) fn commands(&self) -> usize {
        self.shared.commands.load(Ordering::Relaxed)
    }

    pub(crate) fn sessions(&self) -> usize {
        self.shared.sessions.load(Ordering::Relaxed)
    }

    pub(crate) fn sleeps(&self) -> (usize, usize) {
        (self.shared.sleeps.load(Ordering::Relaxed), self.shared.late.load(Ordering::Relaxed))
    }
}

impl Drop for FakeCard {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        let joined = self.thread.take().unwrap().join();
        assert!(joined.is_ok() || std::thread::panicking(), "the fake card panicked");
    }
}

fn wait(fd: std::os::fd::BorrowedFd<'_>, ms: u16) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::from(ms)).unwrap_or(0) > 0
}

fn say(channel: &mut dyn Channel, message: &Message<'_>) {
    let mut bytes = [0; ATTACH_MESSAGE_MAX];
    let _ = channel.send(message.encode(&mut bytes).unwrap());
}

/// Hears one message; `None` when the host is gone or said good-bye.
fn hear(channel: &mut dyn Channel, bytes: &mut [u8; ATTACH_MESSAGE_MAX], ms: u16) -> Option<Option<usize>> {
    wait(channel.fd().expect("a socket"), ms);
    match channel.receive(bytes) {
        Ok(None) => Some(None),
        Ok(Some(count)) if matches!(Message::decode(&bytes[..count]), Ok(Message::Bye(_))) => None,
        Ok(Some(count)) => Some(Some(count)),
        Err(_) => None,
    }
}

fn serve(mut channel: Box<dyn Channel>, manner: Manner, shared: &Shared) {
    let mut intake = Intake::new();
    let mut bytes = [0; ATTACH_MESSAGE_MAX];
    let attachment = loop {
        if shared.stop.load(Ordering::Relaxed) {
            return;
        }
        let Some(heard) = hear(channel.as_mut(), &mut bytes, 10) else { return };
        let Some(count) = heard.filter(|_| !manner.mute) else { continue };
        if let Some(refuse) = manner.refuses {
            return say(channel.as_mut(), &Message::Refuse(refuse));
        }
        match intake.take(&Message::decode(&bytes[..count]).unwrap()) {
            Ok(None) => {}
            Ok(Some(attachment)) => break attachment,
            Err(refuse) => return say(channel.as_mut(), &Message::Refuse(refuse)),
        }
    };
    let session = Session::new(channel, manner, attachment, shared);
    session.run();
}

struct Session<'a> {
    channel: Box<dyn Channel>,
    manner: Manner,
    shared: &'a Shared,
    page: Page,
    ring: CardRing,
    layout: Option<Layout>,
    regions: Vec<Arc<Mapping>>,
    pending: Vec<Command>,
    ignored: Vec<u64>,
    seen: usize,
}

impl<'a> Session<'a> {
    fn new(channel: Box<dyn Channel>, manner: Manner, attachment: Attachment, shared: &'a Shared) -> Session<'a> {
        shared.sessions.fetch_add(1, Ordering::Relaxed);
        let id = |blob: &[u8]| u64::from_le_bytes(blob.try_into().unwrap());
        let mut registry = shared.registry.lock().unwrap();
        let page = registry.pages.remove(&id(&attachment.page.blob)).unwrap();
        let regions = attachment.regions.iter().map(|region| registry.regions.remove(&id(&region.blob)).unwrap());
        let regions = regions.collect();
        let ring = CardRing::new(attachment.generation);
        let mut session = Session {
            channel,
            manner,
            shared,
            page,
            ring,
            layout: attachment.layouts.into_iter().next(),
            regions,
            pending: Vec::new(),
            ignored: Vec::new(),
            seen: 0,
        };
        let identity = session.copy(session.ring.identity_span());
        session.ring.check_identity(&identity).unwrap();
        session.line(false);
        let welcome = Welcome {
            session: 1,
            generation: attachment.generation,
            block_elements: 1 << 18,
            chunks_max: manner.chunks_max,
            requests_max: manner.requests_max,
            recipe: manner.recipe,
            card: "fake",
        };
        say(session.channel.as_mut(), &Message::Welcome(welcome));
        session
    }

    fn copy(&self, span: Span) -> Vec<u8> {
        let mut bytes = vec![0; span.bytes];
        self.page.read(span, &mut bytes);
        bytes
    }

    fn line(&mut self, asleep: bool) {
        let (span, line) = self.ring.line(asleep);
        self.page.write(span.offset, &line);
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    fn run(mut self) {
        let mut bytes = [0; ATTACH_MESSAGE_MAX];
        let mut idle = Instant::now();
        loop {
            if self.shared.stop.load(Ordering::Relaxed) {
                return;
            }
            if hear(self.channel.as_mut(), &mut bytes, 0).is_none() {
                return;
            }
            let came = self.accept();
            if came > 0 {
                idle = Instant::now();
            }
            if self.manner.dies_after.is_some_and(|limit| self.seen >= limit) {
                if let Some(farewell) = self.manner.farewell {
                    say(self.channel.as_mut(), &Message::Bye(farewell));
                }
                return;
            }
            if self.manner.lies_after.is_some_and(|limit| self.seen >= limit) {
                self.lie();
                self.manner.lies_after = None;
            }
            // A backwards card waits until nothing more comes.
            if !self.pending.is_empty() && (!self.manner.backwards || idle.elapsed() > Duration::from_millis(3)) {
                if self.manner.backwards {
                    self.pending.reverse();
                }
                let command = self.pending.remove(0);
                if self.manner.backwards {
                    self.pending.reverse();
                }
                self.answer(&command);
                idle = Instant::now();
            }
            if self.pending.is_empty() && idle.elapsed() > Duration::from_millis(2) {
                if self.sleep(&mut bytes).is_none() {
                    return;
                }
                idle = Instant::now();
            }
        }
    }

    /// Strict: only a doorbell wakes this card, or seconds that a test counts.
    fn sleep(&mut self, bytes: &mut [u8; ATTACH_MESSAGE_MAX]) -> Option<()> {
        self.line(true);
        if self.accept() > 0 {
            self.line(false);
            return Some(());
        }
        self.shared.sleeps.fetch_add(1, Ordering::Relaxed);
        let since = Instant::now();
        let mut rung = false;
        while !rung && since.elapsed() < Duration::from_secs(3) && !self.shared.stop.load(Ordering::Relaxed) {
            rung = hear(self.channel.as_mut(), bytes, 10)?.is_some();
        }
        let came = self.accept();
        if !rung && came > 0 {
            self.shared.late.fetch_add(1, Ordering::Relaxed);
        }
        self.line(false);
        Some(())
    }

    fn accept(&mut self) -> usize {
        let mut commands = heapless_commands();
        let window = self.copy(self.ring.command_window());
        self.ring.accept(&window, &mut commands).unwrap();
        let count = commands.len();
        self.seen += count;
        self.shared.commands.fetch_add(count, Ordering::Relaxed);
        for command in commands {
            if self.manner.ignores == Some(command.operation) {
                self.ignored.push(command.request);
            } else {
                self.pending.push(command);
            }
        }
        count
    }

    fn records(&self, command: &Command) -> Vec<(ChunkKey, Vec<u32>)> {
        let mut records = Vec::new();
        while let Some(span) = self.ring.record_window(command, records.len() as u32) {
            let bytes = self.copy(span);
            for record in self.ring.records(command, records.len() as u32, &bytes).unwrap() {
                let record = record.unwrap();
                records.push((record.key, record.pages.copy_to(&mut [0; PAGES_PER_CHUNK_MAX]).to_vec()));
            }
        }
        records
    }

    fn answer(&mut self, command: &Command) {
        let records = self.records(command);
        let mut answer = Answer::new(command.request, Status::Ok);
        match command.operation {
            Operation::Lookup => {
                let chunks = self.shared.chunks.lock().unwrap();
                answer.chunks_done = records.iter().take_while(|(key, _)| chunks.contains_key(key)).count() as u32;
            }
            Operation::Store => {
                for (key, pages) in &records {
                    answer.chunks_done += 1;
                    // Of one that is there nothing moves.
                    if !command.stores_again() && self.shared.chunks.lock().unwrap().contains_key(key) {
                        continue;
                    }
                    let chunk = self.gather(pages);
                    answer.wire_bytes += 100;
                    answer.restored_bytes += chunk.len() as u64;
                    self.shared.chunks.lock().unwrap().insert(*key, chunk);
                }
            }
            Operation::Fetch => self.fetch(&records, &mut answer),
            Operation::Status => {
                let corrupted = self.shared.corrupted.load(Ordering::Relaxed).to_string();
                let text = self.manner.status.replace("CORRUPT", &corrupted).into_bytes();
                let text = &text[..];
                self.page.write(self.ring.answer_span(command, text.len()).offset, text);
                answer.answer_bytes = text.len() as u32;
                answer.answer_crc = CardRing::answer_crc(text);
            }
            Operation::Cancel => match self.ignored.iter().position(|&request| request == command.target) {
                Some(at) => {
                    let request = self.ignored.remove(at);
                    self.complete(&Answer::new(request, Status::Cancelled));
                }
                None => match self.pending.iter().position(|pending| pending.request == command.target) {
                    Some(at) => {
                        let request = self.pending.remove(at).request;
                        self.complete(&Answer::new(request, Status::Cancelled));
                    }
                    None => answer.status = Status::NotFound,
                },
            },
            _ => {}
        }
        self.complete(&answer);
    }

    fn fetch(&mut self, records: &[(ChunkKey, Vec<u32>)], answer: &mut Answer) {
        if self.shared.evictions.load(Ordering::Relaxed) > 0 {
            self.shared.evictions.fetch_sub(1, Ordering::Relaxed);
            self.shared.chunks.lock().unwrap().remove(&records[records.len() - 1].0);
        }
        for (key, pages) in records {
            if self.manner.corrupt == Some(answer.chunks_done) {
                answer.status = Status::Corrupt;
                self.shared.chunks.lock().unwrap().remove(key);
                self.shared.corrupted.fetch_add(1, Ordering::Relaxed);
                return;
            }
            let Some(chunk) = self.shared.chunks.lock().unwrap().get(key).cloned() else { return };
            self.scatter(pages, &chunk);
            answer.chunks_done += 1;
            answer.wire_bytes += 100;
            answer.restored_bytes += chunk.len() as u64;
        }
    }

    fn complete(&mut self, answer: &Answer) {
        let (span, line) = self.ring.complete(answer);
        self.page.write(span.offset, &line);
        std::sync::atomic::fence(Ordering::SeqCst);
        let host = loop {
            let bytes = self.copy(self.ring.host_line_span());
            if let Some(host) = self.ring.read_host_line(&bytes).unwrap() {
                break host;
            }
        };
        if host.ring {
            say(self.channel.as_mut(), &Message::Doorbell);
        }
    }

    /// A whole and sealed completion of a request that was never posted, by a ring of its own.
    fn lie(&mut self) {
        let (page, generation) = (Page::create(self.page.generation()).unwrap(), self.page.generation());
        let mut host = mailbox::HostRing::new(page);
        let _ = host.post(&mailbox::Request::new(0xdead, Operation::Ping), &[]).unwrap();
        let mut ring = CardRing::new(generation);
        let mut window = vec![0; ring.command_window().bytes];
        host.page().read(ring.command_window(), &mut window);
        ring.accept(&window, &mut heapless_commands()).unwrap();
        let (span, line) = ring.complete(&Answer::new(0xdead, Status::Ok));
        self.page.write(span.offset, &line);
    }

    fn parts(geometry: &Geometry) -> impl Iterator<Item = Part> {
        let tokens = geometry.chunk_tokens;
        let planes = geometry.planes;
        (0..geometry.planes()).map(move |plane| planes.of_plane(plane)).map(move |(layer, kind)| Part {
            kind,
            first_layer: layer as u16,
            layers: 1,
            first_token: 0,
            tokens,
        })
    }

    /// A chunk in canonical order.
    fn gather(&self, pages: &[u32]) -> Vec<u8> {
        let layout = self.layout.as_ref().unwrap();
        let geometry = layout.geometry();
        let mut chunk = Vec::new();
        for part in Self::parts(geometry) {
            let mut tile = vec![0; part.tile_bytes(geometry)];
            let copy = |run: mailbox::layout::Run| {
                let to = &mut tile[run.tile_offset..run.tile_offset + run.bytes];
                self.regions[usize::from(run.region)].read(run.offset as usize, to);
            };
            layout.runs(&part, pages, 0..usize::from(part.tokens), copy).unwrap();
            let mut plain = vec![0; tile.len()];
            heads(geometry, layout.tile_order(), |canonical, in_tile, bytes| {
                plain[canonical..canonical + bytes].copy_from_slice(&tile[in_tile..in_tile + bytes]);
            });
            chunk.extend(plain);
        }
        chunk
    }

    fn scatter(&self, pages: &[u32], chunk: &[u8]) {
        let layout = self.layout.as_ref().unwrap();
        let geometry = layout.geometry();
        let mut rest = chunk;
        for part in Self::parts(geometry) {
            let (plain, next) = rest.split_at(part.tile_bytes(geometry));
            rest = next;
            let mut tile = vec![0; plain.len()];
            heads(geometry, layout.tile_order(), |canonical, in_tile, bytes| {
                tile[in_tile..in_tile + bytes].copy_from_slice(&plain[canonical..canonical + bytes]);
            });
            let copy = |run: mailbox::layout::Run| {
                let from = &tile[run.tile_offset..run.tile_offset + run.bytes];
                self.regions[usize::from(run.region)].write(run.offset as usize, from);
            };
            layout.runs(&part, pages, 0..usize::from(part.tokens), copy).unwrap();
        }
    }
}

/// Canonical offset, tile offset and bytes of every head of every token of one layer.
fn heads(geometry: &Geometry, order: TileOrder, mut each: impl FnMut(usize, usize, usize)) {
    let (heads, bytes) = (usize::from(geometry.heads), usize::from(geometry.head_size) * geometry.element.bytes());
    for token in 0..usize::from(geometry.chunk_tokens) {
        for head in 0..heads {
            let canonical = token * heads + head;
            let in_tile = match order {
                TileOrder::TokenMajor => canonical,
                TileOrder::HeadMajor { page_tokens } => {
                    let page_tokens = usize::from(page_tokens);
                    (token / page_tokens * heads + head) * page_tokens + token % page_tokens
                }
            };
            each(canonical * bytes, in_tile * bytes, bytes);
        }
    }
}

fn heapless_commands() -> heapless::Vec<Command, COMMAND_WINDOW> {
    heapless::Vec::new()
}
