//! The card's side of an attach: collects messages in their order, and refuses what is out of it.
//!
//! ```text
//! Hello --> Regions --> Layout --> Commit            a control-only session goes from Regions to Commit
//!                          ^-------Section           each section after the first, and its layout
//! ```
//! It allocates, bounded by the limits: an attach is Init. It imports nothing; exports are handed on as they came.

use block::{Geometry, Recipe};

use super::{Commit, Hello, LayoutPart, Message, PAGE_REGION, Reason, Refuse, Region, SectionShape};
use crate::layout::{AddressRange, BASES_MAX, Base, Form, Layout, LayoutError};
use crate::limits::PAGE_BYTES;

/// The message that is expected next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IntakeState {
    /// Nothing came yet.
    Hello,
    /// Exports: the page's first.
    Regions,
    /// Bases of the section that was described last.
    Layout,
    /// Everything came but the host's word that it is everything; or one more section.
    Commit,
    /// Nothing more: a commit or a refusal ended it.
    Over,
}

impl IntakeState {
    /// The only ways from one to another.
    pub const fn may_become(self, next: IntakeState) -> bool {
        use IntakeState::{Commit, Hello, Layout, Over, Regions};
        matches!(
            (self, next),
            (Hello, Regions)
                | (Regions, Regions | Layout | Commit)
                | (Layout, Layout | Commit)
                | (Commit, Layout)
                | (_, Over)
        )
    }
}

/// An exported region, kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RegionExport {
    pub base: u64,
    pub bytes: u64,
    pub writable: bool,
    pub blob: Box<[u8]>,
}

impl RegionExport {
    /// Place in the host's addresses; the message was checked not to wrap.
    pub fn addresses(&self) -> AddressRange {
        AddressRange { address: self.base, bytes: self.bytes }
    }
}

/// All that an attach said, checked.
#[derive(Debug)]
pub struct Attachment {
    pub generation: u64,
    pub pid: u32,
    pub client: String,
    pub namespace: Option<String>,
    /// `None`: as the card is configured.
    pub recipe: Option<Recipe>,
    pub page: RegionExport,
    /// Exports, by region index.
    pub regions: Vec<RegionExport>,
    /// Layouts by section; none: control-only.
    pub layouts: Vec<Layout>,
}

/// A section of which not everything came yet.
#[derive(Debug)]
struct OpenSection {
    geometry: Geometry,
    form: Option<Form>,
    bases: Vec<Base>,
}

impl OpenSection {
    fn new(geometry: Geometry) -> OpenSection {
        OpenSection { geometry, form: None, bases: Vec::new() }
    }
}

/// Collects one attach.
#[derive(Debug)]
pub struct Intake {
    state: IntakeState,
    generation: u64,
    pid: u32,
    client: String,
    namespace: Option<String>,
    sections: Vec<OpenSection>,
    recipe: Option<Recipe>,
    region_count: u16,
    page: Option<RegionExport>,
    regions: Vec<RegionExport>,
}

impl Default for Intake {
    fn default() -> Intake {
        Intake::new()
    }
}

impl Intake {
    pub fn new() -> Intake {
        Intake {
            state: IntakeState::Hello,
            generation: 0,
            pid: 0,
            client: String::new(),
            namespace: None,
            sections: Vec::new(),
            recipe: None,
            region_count: 0,
            page: None,
            regions: Vec::new(),
        }
    }

    /// The message that is expected next.
    pub fn state(&self) -> IntakeState {
        self.state
    }

    fn set(&mut self, next: IntakeState) {
        assert!(self.state.may_become(next), "{:?} -> {next:?}", self.state);
        self.state = next;
    }

    /// Takes one message. `Some` after a good commit; a refusal is the answer to send, and the end.
    pub fn take(&mut self, message: &Message<'_>) -> Result<Option<Attachment>, Refuse> {
        let taken = match (self.state, message) {
            (IntakeState::Hello, Message::Hello(hello)) => self.hello(hello).map(|()| None),
            (IntakeState::Regions, Message::Region(region)) => self.region(region).map(|()| None),
            (IntakeState::Layout, Message::Layout(part)) => self.layout(part).map(|()| None),
            (IntakeState::Commit, Message::Section(section)) if !self.sections.is_empty() => {
                self.section(section).map(|()| None)
            }
            (IntakeState::Commit, Message::Commit(commit)) => self.commit(commit).map(Some),
            (state, message) => Err(Refuse::new(Reason::Order, state as u64, message.kind().into())),
        };
        if taken.is_err() {
            self.set(IntakeState::Over);
        }
        taken
    }

    fn hello(&mut self, hello: &Hello<'_>) -> Result<(), Refuse> {
        self.generation = hello.generation;
        self.pid = hello.pid;
        self.client = hello.client.to_owned();
        self.namespace = hello.namespace.map(str::to_owned);
        self.sections.extend(hello.geometry.map(OpenSection::new));
        self.recipe = hello.recipe;
        self.region_count = hello.region_count;
        self.set(IntakeState::Regions);
        Ok(())
    }

    fn region(&mut self, region: &Region<'_>) -> Result<(), Refuse> {
        let export = RegionExport {
            base: region.base,
            bytes: region.bytes,
            writable: region.writable,
            blob: region.export.into(),
        };
        let refuse = Err(Refuse::new(Reason::Region, self.regions.len() as u64, region.index.into()));
        match (&self.page, region.index) {
            (None, PAGE_REGION) if region.writable && region.bytes == PAGE_BYTES as u64 => self.page = Some(export),
            (Some(_), index) if usize::from(index) == self.regions.len() && index < self.region_count => {
                self.regions.push(export);
            }
            _ => return refuse,
        }
        self.set(match (self.regions.len() < self.region_count.into(), self.sections.is_empty()) {
            (true, _) => IntakeState::Regions,
            (false, false) => IntakeState::Layout,
            (false, true) => IntakeState::Commit,
        });
        Ok(())
    }

    fn layout(&mut self, part: &LayoutPart<'_>) -> Result<(), Refuse> {
        let sections = self.sections.len();
        let section = self.sections.last_mut().expect("only a session with a geometry has a layout");
        let expected = section.geometry.planes();
        let known = section.bases.len();
        let fits = usize::from(part.first) == known
            && part.bases.count() > 0
            && known + part.bases.count() <= expected
            && section.form.is_none_or(|form| form == part.form);
        if !fits {
            return Err(Refuse::new(Reason::Layout, known as u64, part.first.into()).in_section(sections - 1, sections));
        }
        section.form = Some(part.form);
        section.bases.extend(part.bases.iter());
        let whole = section.bases.len() == expected;
        self.set(if whole { IntakeState::Commit } else { IntakeState::Layout });
        Ok(())
    }

    fn section(&mut self, section: &SectionShape) -> Result<(), Refuse> {
        let known = self.sections.len();
        if usize::from(section.index) != known {
            return Err(Refuse::new(Reason::Layout, known as u64, section.index.into()));
        }
        let bases = self.base_count() + section.geometry.planes();
        if bases > BASES_MAX {
            return Err(Refuse::new(Reason::Layout, BASES_MAX as u64, bases as u64).in_section(known, known + 1));
        }
        self.sections.push(OpenSection::new(section.geometry));
        self.set(IntakeState::Layout);
        Ok(())
    }

    /// Counts the bases of all sections that came.
    fn base_count(&self) -> usize {
        self.sections.iter().map(|section| section.bases.len()).sum()
    }

    fn commit(&mut self, commit: &Commit) -> Result<Attachment, Refuse> {
        let (regions, bases) = (self.regions.len() as u64, self.base_count() as u64);
        if u64::from(commit.region_count) != regions {
            return Err(Refuse::new(Reason::Region, regions, commit.region_count.into()));
        }
        if u64::from(commit.base_count) != bases {
            return Err(Refuse::new(Reason::Layout, bases, commit.base_count.into()));
        }
        let further = self.sections.len().saturating_sub(1) as u64;
        if u64::from(commit.further_sections) != further {
            return Err(Refuse::new(Reason::Layout, further, commit.further_sections.into()));
        }
        let page = self.page.as_ref().expect("regions start with the page").addresses();
        if let Some(over) = self.regions.iter().position(|region| region.addresses().meets(&page)) {
            return Err(Refuse::new(Reason::Region, regions, over as u64));
        }
        let layouts = self.layouts(bases)?;
        self.set(IntakeState::Over);
        Ok(Attachment {
            generation: self.generation,
            pid: self.pid,
            client: std::mem::take(&mut self.client),
            namespace: self.namespace.take(),
            recipe: self.recipe,
            page: self.page.take().expect("regions start with the page"),
            regions: std::mem::take(&mut self.regions),
            layouts,
        })
    }

    /// Checks the layouts of all sections, in their order.
    fn layouts(&mut self, bases: u64) -> Result<Vec<Layout>, Refuse> {
        let ranges: Vec<AddressRange> = self.regions.iter().map(RegionExport::addresses).collect();
        let (regions, sections) = (ranges.len() as u64, self.sections.len());
        let layout = |(index, section): (usize, OpenSection)| {
            let form = section.form.expect("a commit is taken when all layouts have come");
            Layout::new(section.geometry, form, section.bases.into(), &ranges).map_err(|error| {
                let refusal = match error {
                    LayoutError::Overlap { one, other } => Refuse::new(Reason::Overlap, one.word(), other.word()),
                    _ => Refuse::new(Reason::Layout, regions, bases),
                };
                refusal.in_section(index, sections)
            })
        };
        std::mem::take(&mut self.sections).into_iter().enumerate().map(layout).collect()
    }
}
