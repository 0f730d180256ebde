//! Makes a session of a line: the host's half of the conversation that mailbox/src/attach.rs draws.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use block::Recipe;
use doca::{Device, Selector};
use mailbox::attach::{
    ATTACH_MESSAGE_MAX, AttachError, Commit, EXPORT_BYTES_MAX, Hello, Message, PAGE_REGION, Reason, Region,
    SectionShape, layout_parts,
};
use mailbox::channel::{ChannelError, HostChannel};
use mailbox::layout::{Base, Form};
use mailbox::{HostRing, Page};

use crate::client::Client;
use crate::error::{Error, Gone};
use crate::export::{DeviceExporter, Exported, Exporter};
use crate::memory::Memory;
use crate::route::Route;

/// What is the same for all sessions that a program opens.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where dpu-app is met.
    pub route: Route,
    /// Name of this program, for people who look at the card.
    pub client: String,
    /// Whose quota of the card's tiers these sessions use; `None`: that of all who do not say.
    pub namespace: Option<String>,
    /// Device that opens this machine's memory to the card.
    pub device: Selector,
    /// How to store and what to look for; `None` is the card's own recipe.
    pub recipe: Option<Recipe>,
    /// Time limit of attaching, and of leaving.
    pub timeout: Duration,
    /// Where nobody serves the route yet, try again until the timeout: a card that is just being started comes.
    pub awaits_card: bool,
    /// How long a wait looks at the page before it sleeps.
    pub spin: Duration,
    /// Chunks of one request on the page; longer requests are cut. `None`: as many as page and card take.
    pub part_chunks: Option<usize>,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            route: Route::default(),
            client: "host-ctl".to_owned(),
            namespace: None,
            device: Selector::First,
            recipe: None,
            timeout: Duration::from_secs(10),
            awaits_card: false,
            spin: Duration::from_micros(30),
            part_chunks: None,
        }
    }
}

/// What the card said of itself, kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CardFacts {
    /// The card's number for this session.
    pub session: u32,
    /// Elements of its largest block.
    pub block_elements: u32,
    /// Chunks of one request on the page.
    pub chunks_max: u32,
    /// Requests in flight that it works on.
    pub requests_max: u32,
    /// What it stores with in this session; keys depend on it.
    pub recipe: Recipe,
    /// Its program and version.
    pub card: String,
}

/// Where sessions come from. A closure is one, which is what tests use.
pub trait Door {
    /// A session with this memory, or for control only. `part_chunks` as in [`Options`].
    ///
    /// # Errors
    /// Nobody there, refused, or no device.
    fn attach(&mut self, memory: Option<Memory>) -> Result<Client, Error>;
}

impl<F: FnMut(Option<Memory>) -> Result<Client, Error>> Door for F {
    fn attach(&mut self, memory: Option<Memory>) -> Result<Client, Error> {
        self(memory)
    }
}

impl Door for Options {
    fn attach(&mut self, memory: Option<Memory>) -> Result<Client, Error> {
        Client::attach(self, memory)
    }
}

impl Client {
    /// Attaches by the route that the options name, with memory exported by a device of this machine.
    ///
    /// # Errors
    /// Nobody there, refused, no device, or a layout that cannot be.
    pub fn attach(options: &Options, memory: Option<Memory>) -> Result<Client, Error> {
        // The layout first: the operator hears of the nearest mistake.
        if let Some(memory) = &memory {
            memory.check()?;
        }
        let (line, device) = reach(options)?;
        Client::attach_over(line, Box::new(DeviceExporter::new(device)), options, memory)
    }

    /// Attaches over any line, with memory exported by anything.
    ///
    /// # Errors
    /// As [`Client::attach`].
    pub fn attach_over(
        line: Box<dyn HostChannel>,
        mut exporter: Box<dyn Exporter>,
        options: &Options,
        memory: Option<Memory>,
    ) -> Result<Client, Error> {
        let layouts = memory.as_ref().map_or(Ok(Vec::new()), Memory::check)?;
        let sections = layouts.len();
        let page = Page::create(generation()).map_err(|error| match error {
            mailbox::PageError::System { call, source } => Error::System { call, path: "page".into(), source },
            error => Error::input("page", error, "report it"),
        })?;
        let mut talk = Talk { line, until: Instant::now() + options.timeout, timeout: options.timeout };
        let told = talk.introduce(&page, exporter.as_mut(), options, memory.as_ref());
        let facts = told.and_then(|()| talk.welcome(page.generation())).map_err(|error| match error {
            // It has read nothing that is not of one section.
            Error::Refused(refuse) if sections > 1 && refuse.reason() == Some(Reason::Malformed) => {
                Error::Sections { sections }
            }
            error => error,
        })?;
        if let Some(asked) = options.recipe.filter(|asked| asked.transform != facts.recipe.transform) {
            return Err(Error::Recipe { asked, card: facts.recipe.to_string() });
        }
        Ok(Client::new(talk.line, HostRing::new(page), exporter, facts, layouts, memory, options))
    }
}

/// Pause between two tries to reach a card that is not there yet: the first, and the longest.
const TRY_FIRST: Duration = Duration::from_millis(50);
const TRY_LAST: Duration = Duration::from_millis(500);
/// Wait after which people are told what is waited for.
const SAID_AFTER: Duration = Duration::from_secs(1);

/// A line to the card, once there is one.
fn reach(options: &Options) -> Result<(Box<dyn HostChannel>, Device), Error> {
    let since = Instant::now();
    let (mut said, mut pause) = (false, TRY_FIRST);
    loop {
        let left = options.timeout.saturating_sub(since.elapsed());
        let error = match options.route.open(&options.device, left.max(TRY_FIRST)) {
            Err(error) if options.awaits_card && error.is_absence() && !left.is_zero() => error,
            reached => return reached,
        };
        if since.elapsed() >= SAID_AFTER && !said {
            said = true;
            log::warn!("{error} Waiting for it, {:.0} s in all (--timeout-ms)", options.timeout.as_secs_f64());
        }
        std::thread::sleep(pause.min(left));
        pause = (2 * pause).min(TRY_LAST);
    }
}

/// A number that rises with each page of this machine.
fn generation() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_nanos() as u64)
}

/// The conversation before there is a session.
struct Talk {
    line: Box<dyn HostChannel>,
    until: Instant,
    timeout: Duration,
}

impl Talk {
    fn introduce(
        &mut self,
        page: &Page,
        exporter: &mut dyn Exporter,
        options: &Options,
        memory: Option<&Memory>,
    ) -> Result<(), Error> {
        let regions = memory.map_or(&[][..], |memory| &memory.regions);
        self.say(&Message::Hello(Hello {
            generation: page.generation(),
            pid: std::process::id(),
            region_count: regions.len() as u16,
            geometry: memory.map(|memory| memory.geometry),
            recipe: options.recipe,
            client: &options.client,
            namespace: options.namespace.as_deref(),
        }))?;
        let exported = exporter.page(page)?;
        self.region(PAGE_REGION, true, &exported)?;
        for (index, region) in regions.iter().enumerate() {
            let exported = exporter.region(&region.mapping, region.access)?;
            self.region(index as u16, region.access == doca::Access::ReadWrite, &exported)?;
        }
        let (mut base_count, mut further_sections) = (0, 0);
        if let Some(memory) = memory {
            self.layout(&memory.form, &memory.bases)?;
            for (index, section) in memory.further.iter().enumerate() {
                let shape = SectionShape { index: index as u16 + 1, geometry: section.geometry };
                self.say(&Message::Section(shape))?;
                self.layout(&section.form, &section.bases)?;
            }
            (base_count, further_sections) = (memory.base_count(), memory.further.len());
        }
        self.say(&Message::Commit(Commit {
            region_count: regions.len() as u16,
            base_count: base_count as u16,
            further_sections: further_sections as u16,
        }))
    }

    fn layout(&mut self, form: &Form, bases: &[Base]) -> Result<(), Error> {
        layout_parts(form, bases).try_for_each(|part| self.say(&Message::Layout(part)))
    }

    fn region(&mut self, index: u16, writable: bool, exported: &Exported) -> Result<(), Error> {
        let Exported { base, bytes, blob } = exported;
        if blob.len() > EXPORT_BYTES_MAX {
            let (value, limit) = (blob.len() as u64, EXPORT_BYTES_MAX as u64);
            return Err(AttachError::Field { what: "bytes of an export", value, limit }.into());
        }
        self.say(&Message::Region(Region { index, writable, base: *base, bytes: *bytes, export: blob }))
    }

    /// Sends, and listens first: a card that has refused us says so while we still introduce ourselves.
    fn say(&mut self, message: &Message<'_>) -> Result<(), Error> {
        self.hear_objection()?;
        let mut bytes = [0; ATTACH_MESSAGE_MAX];
        let bytes = message.encode(&mut bytes)?;
        loop {
            match self.line.send(bytes) {
                Ok(()) => return Ok(()),
                Err(ChannelError::Full) => self.wait(|line, left| line.wait_for_room(left))?,
                Err(ChannelError::Closed) => {
                    self.hear_objection()?;
                    return Err(Gone::Died.into());
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// What the card has said before it was its turn.
    fn hear_objection(&mut self) -> Result<(), Error> {
        let mut bytes = [0; ATTACH_MESSAGE_MAX];
        while let Ok(Some(count)) = self.line.receive(&mut bytes) {
            match Message::decode(&bytes[..count]) {
                Ok(Message::Refuse(refuse)) => return Err(Error::Refused(refuse)),
                Ok(Message::Bye(farewell)) => return Err(Gone::Left(farewell).into()),
                _ => {}
            }
        }
        Ok(())
    }

    fn welcome(&mut self, generation: u64) -> Result<CardFacts, Error> {
        let mut bytes = [0; ATTACH_MESSAGE_MAX];
        loop {
            let count = match self.line.receive(&mut bytes) {
                Ok(Some(count)) => count,
                Ok(None) => {
                    self.wait(|line, left| line.wait(left))?;
                    continue;
                }
                Err(ChannelError::Closed) => return Err(Gone::Died.into()),
                Err(error) => return Err(error.into()),
            };
            match Message::decode(&bytes[..count]) {
                Ok(Message::Welcome(welcome)) if welcome.generation == generation => return believe(&welcome),
                Ok(Message::Refuse(refuse)) => return Err(Error::Refused(refuse)),
                Ok(Message::Bye(farewell)) => return Err(Gone::Left(farewell).into()),
                // A card may ring before it speaks.
                Ok(Message::Doorbell) => {}
                Ok(other) => {
                    let (what, value) = ("kind of the card's answer", other.kind().into());
                    return Err(Gone::Babbled(AttachError::Field { what, value, limit: 6 }).into());
                }
                Err(error) => return Err(Gone::Babbled(error).into()),
            }
        }
    }

    fn wait(
        &mut self,
        wait: impl Fn(&mut dyn HostChannel, Duration) -> Result<bool, ChannelError>,
    ) -> Result<(), Error> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::Timeout { what: "attach", waited: self.timeout });
        }
        wait(self.line.as_mut(), left)?;
        Ok(())
    }
}

/// A welcome's words, checked: each is a limit that this side divides by or compares keys with.
fn believe(welcome: &mailbox::attach::Welcome<'_>) -> Result<CardFacts, Error> {
    let zero = [("chunks of a request", welcome.chunks_max), ("requests in flight", welcome.requests_max)];
    if let Some((what, _)) = zero.into_iter().find(|&(_, value)| value == 0) {
        return Err(Gone::Babbled(AttachError::Field { what, value: 0, limit: u64::from(u32::MAX) }).into());
    }
    let unknown = |error| Error::Answer { what: format!("attach: the card's recipe {:?}: {error}", welcome.recipe) };
    Ok(CardFacts {
        session: welcome.session,
        block_elements: welcome.block_elements,
        chunks_max: welcome.chunks_max,
        requests_max: welcome.requests_max,
        recipe: welcome.recipe.parse().map_err(unknown)?,
        card: welcome.card.to_owned(),
    })
}
