//! Where the paged KV cache of a host lies, and which stretches of it a block covers.
//!
//! A session registers one [`Layout`]; afterwards requests name pages and no addresses. Everything that any page number
//! below `page_count` can lead to is proved to lie inside its region here, once, so that the data path only compares
//! page numbers. It refuses layouts whose parts overlap, in one region or across regions that show the same memory: a
//! block restored into one would destroy another.
//!
//! ```text
//! byte of (layer, kind, page, token in page, head, byte of head) =
//!     base[layer][kind] + page * page_stride + token * token_stride + head * head_stride + byte
//! ```
//! Formats and examples: docs/mailbox.md, "Layouts".

use std::fmt;
use std::ops::Range;

use block::{Geometry, Kind, PLANES_MAX, Part, Planes, TileOrder};

/// Bases of one layout: one for each plane.
pub const BASES_MAX: usize = PLANES_MAX;

/// Nesting of a page's tokens and heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Order {
    /// `[token][head][element]`
    TokenMajor = 0,
    /// `[head][token][element]`
    HeadMajor = 1,
}

impl Order {
    pub(crate) const fn from_code(code: u8) -> Option<Order> {
        match code {
            0 => Some(Order::TokenMajor),
            1 => Some(Order::HeadMajor),
            _ => None,
        }
    }
}

/// The form that all layers share. Strides in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Form {
    pub order: Order,
    /// Tokens of one page; divides the chunk's tokens.
    pub page_tokens: u16,
    /// Page numbers are below this.
    pub page_count: u32,
    pub page_stride: u64,
    pub token_stride: u64,
    pub head_stride: u64,
}

/// Place of a region in its host's addresses, bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    pub address: u64,
    pub bytes: u64,
}

impl AddressRange {
    /// The first address behind it; `None` where that wraps.
    fn end(&self) -> Option<u64> {
        self.address.checked_add(self.bytes)
    }

    /// Whether the two share an address. Neither wraps.
    pub(crate) fn meets(&self, other: &AddressRange) -> bool {
        self.address < other.address + other.bytes && other.address < self.address + self.bytes
    }
}

/// Page 0, token 0, head 0 of one plane of one layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Base {
    pub region: u16,
    /// Bytes from the region's start.
    pub offset: u64,
}

/// One contiguous stretch of host memory and the stretch of the tile that goes there or comes from there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub region: u16,
    /// Bytes from the region's start.
    pub offset: u64,
    /// Bytes from the tile's start.
    pub tile_offset: usize,
    pub bytes: usize,
}

/// A base by its place among the bases, for who has to find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Named {
    pub planes: Planes,
    /// See [`Layout::new`].
    pub index: usize,
    pub base: Base,
}

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Base { region, offset } = self.base;
        write!(f, "{} (region {region} from byte {offset})", BaseName(self.word()))
    }
}

impl Named {
    /// The word that a refusal has for it: the index, and above it the word of the planes.
    pub(crate) fn word(&self) -> u64 {
        u64::from(self.planes.word()) << PLANES_SHIFT | self.index as u64
    }
}

const PLANES_SHIFT: u32 = 32;

/// Name of the plane at a base, for people, by its word ([`Named::word`]).
pub(crate) struct BaseName(pub(crate) u64);

impl fmt::Display for BaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // A newer card's planes are unknown here.
        let planes = u8::try_from(self.0 >> PLANES_SHIFT).ok().and_then(Planes::from_word);
        let index = self.0 as u32 as usize;
        let Some((layer, kind)) = planes.map(|planes| planes.of_plane(index)) else {
            return write!(f, "plane {index}");
        };
        write!(f, "{} of layer {layer}", kind.name())
    }
}

/// A layout that cannot be used, or a page that is not in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayoutError {
    /// The geometry itself is outside its limits.
    Geometry(block::GeometryError),
    /// Pages must divide chunks.
    PageTokens { page_tokens: u16, chunk_tokens: u16 },
    /// More pages per chunk than a record names.
    PagesPerChunk { pages: usize, limit: usize },
    /// No pages at all.
    NoPages,
    /// The bases are not one for each plane.
    BaseCount { found: usize, expected: usize },
    /// A base in a region that was not registered.
    Region { base: usize, region: u16, regions: usize },
    /// The last page of a base ends past its region.
    Outside { base: usize, end: u128, region_bytes: u64 },
    /// Pages, tokens or heads of one base lie on each other.
    Strides { inner: u64, stride: u64 },
    /// A region that reaches over the last address.
    Wraps { region: usize },
    /// Two bases share bytes.
    Overlap { one: Named, other: Named },
    /// A part that is not of this geometry.
    Part(Part),
    /// The page numbers are not one for each page of a chunk.
    PageCount { found: usize, expected: usize },
    /// A page number that the layout does not have.
    Page { index: usize, page: u32, page_count: u32 },
}

impl fmt::Display for LayoutError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            LayoutError::Geometry(error) => write!(f, "layout: {error}"),
            LayoutError::PageTokens { page_tokens, chunk_tokens } => {
                write!(f, "layout: pages of {page_tokens} tokens do not divide chunks of {chunk_tokens}")
            }
            LayoutError::PagesPerChunk { pages, limit } => {
                write!(f, "layout: a chunk has {pages} pages, a request can name {limit}")
            }
            LayoutError::NoPages => write!(f, "layout: page count is 0"),
            LayoutError::BaseCount { found, expected } => write!(f, "layout: {found} bases, expected {expected}"),
            LayoutError::Region { base, region, regions } => {
                write!(f, "layout: base {base} is in region {region}, {regions} are registered")
            }
            LayoutError::Outside { base, end, region_bytes } => {
                write!(f, "layout: base {base} reaches byte {end} of a region of {region_bytes}")
            }
            LayoutError::Strides { inner, stride } => {
                write!(f, "layout: stride {stride} is smaller than the {inner} bytes it steps over")
            }
            LayoutError::Wraps { region } => write!(f, "layout: region {region} reaches over the last address"),
            LayoutError::Overlap { one, other } => write!(f, "layout: {one} and {other} share bytes of memory"),
            LayoutError::Part(part) => write!(f, "layout: part {part:?} is not of this geometry"),
            LayoutError::PageCount { found, expected } => {
                write!(f, "layout: {found} page numbers for a chunk of {expected} pages")
            }
            LayoutError::Page { index, page, page_count } => {
                write!(f, "layout: page {index} of the chunk is {page}, the layout has {page_count}")
            }
        }
    }
}

impl std::error::Error for LayoutError {}

/// A checked description of a host's KV memory.
#[derive(Clone, Debug)]
pub struct Layout {
    geometry: Geometry,
    form: Form,
    bases: Box<[Base]>,
}

/// A stretch that is contiguous whatever the page numbers are.
struct Piece {
    layer: usize,
    /// Index among the chunk's pages.
    page_index: usize,
    in_page: u64,
    tile_offset: usize,
    bytes: usize,
}

impl Layout {
    /// Checks everything. `bases` holds K then V of layer 0 (or its one plane), then of layer 1, ...; `regions` each
    /// region by its index.
    pub fn new(
        geometry: Geometry,
        form: Form,
        bases: Box<[Base]>,
        regions: &[AddressRange],
    ) -> Result<Layout, LayoutError> {
        geometry.check().map_err(LayoutError::Geometry)?;
        let (page_tokens, chunk_tokens) = (form.page_tokens, geometry.chunk_tokens);
        if page_tokens == 0 || !chunk_tokens.is_multiple_of(page_tokens) {
            return Err(LayoutError::PageTokens { page_tokens, chunk_tokens });
        }
        let (pages, limit) = (usize::from(chunk_tokens / page_tokens), crate::limits::PAGES_PER_CHUNK_MAX);
        if pages > limit {
            return Err(LayoutError::PagesPerChunk { pages, limit });
        }
        if form.page_count == 0 {
            return Err(LayoutError::NoPages);
        }
        let expected = geometry.planes();
        if bases.len() != expected {
            return Err(LayoutError::BaseCount { found: bases.len(), expected });
        }
        if let Some(region) = regions.iter().position(|region| region.end().is_none()) {
            return Err(LayoutError::Wraps { region });
        }
        let layout = Layout { geometry, form, bases };
        let steps = layout.steps()?;
        let extent = layout.check_inside(regions, &steps)?;
        layout.check_apart(regions, &steps, extent)?;
        Ok(layout)
    }

    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    pub fn form(&self) -> &Form {
        &self.form
    }

    /// The order that tiles are restored to and stored from.
    pub fn tile_order(&self) -> TileOrder {
        match self.form.order {
            Order::TokenMajor => TileOrder::TokenMajor,
            Order::HeadMajor => TileOrder::HeadMajor { page_tokens: self.form.page_tokens },
        }
    }

    /// Page numbers that each chunk of a fetch or store names.
    pub fn pages_per_chunk(&self) -> usize {
        usize::from(self.geometry.chunk_tokens / self.form.page_tokens)
    }

    /// Calls `run` for the host stretches of one block of a chunk, in tile order, neighbours joined. `pages` are the
    /// chunk's page numbers; `clip` limits the tokens, counted from the chunk's first. Page numbers under clipped
    /// tokens are not looked at. On an error nothing was called.
    pub fn runs(
        &self,
        part: &Part,
        pages: &[u32],
        clip: Range<usize>,
        mut run: impl FnMut(Run),
    ) -> Result<(), LayoutError> {
        self.check_pages(part, pages, &clip)?;
        let mut last: Option<Run> = None;
        self.pieces(part, &clip, |piece| {
            let base = self.base(part.kind, usize::from(part.first_layer) + piece.layer);
            // Cannot overflow: check_inside added up the greatest of each.
            let offset = base.offset + u64::from(pages[piece.page_index]) * self.form.page_stride + piece.in_page;
            let next = Run { region: base.region, offset, tile_offset: piece.tile_offset, bytes: piece.bytes };
            match &mut last {
                Some(last) if last.is_followed_by(&next) => last.bytes += next.bytes,
                _ => last.replace(next).into_iter().for_each(&mut run),
            }
        });
        last.into_iter().for_each(run);
        Ok(())
    }

    /// The most runs that any page numbers and any clip make of this part. 0 for a part of another geometry.
    pub fn runs_max(&self, part: &Part) -> usize {
        if !part.within(&self.geometry) {
            return 0;
        }
        let mut pieces = 0;
        self.pieces(part, &(0..usize::from(self.geometry.chunk_tokens)), |_| pieces += 1);
        // A clip can split one whole head-major page at either end into its heads; it joins nothing.
        pieces + 2 * (usize::from(self.geometry.heads) - 1) * usize::from(part.layers)
    }

    fn base(&self, kind: Kind, layer: usize) -> Base {
        self.bases[kind.plane(layer)]
    }

    fn head_bytes(&self) -> usize {
        usize::from(self.geometry.head_size) * self.geometry.element.bytes()
    }

    /// (count, stride) of pages, tokens and heads, the widest stride first, each proved to step over what is inside.
    fn steps(&self) -> Result<[(u64, u64); 3], LayoutError> {
        let form = &self.form;
        let mut steps = [
            (u64::from(form.page_count), form.page_stride),
            (u64::from(form.page_tokens), form.token_stride),
            (u64::from(self.geometry.heads), form.head_stride),
        ];
        // What occurs once is never stepped over.
        for step in &mut steps {
            if step.0 == 1 {
                step.1 = u64::MAX;
            }
        }
        steps.sort_by_key(|&(_, stride)| std::cmp::Reverse(stride));
        let mut inner = self.head_bytes() as u128;
        for &(count, stride) in steps.iter().rev().filter(|&&(count, _)| count > 1) {
            if u128::from(stride) < inner {
                return Err(LayoutError::Strides { inner: inner.min(u64::MAX.into()) as u64, stride });
            }
            inner += u128::from(count - 1) * u128::from(stride);
        }
        Ok(steps)
    }

    /// Proves that each base with all that follows from it lies in its region; how many bytes that are.
    fn check_inside(&self, regions: &[AddressRange], steps: &[(u64, u64); 3]) -> Result<u64, LayoutError> {
        // At most 2^32 * 2^64 + ... : far from the end of a u128.
        let reach = |&(count, stride): &(u64, u64)| u128::from(count - 1) * u128::from(stride);
        let extent = steps.iter().map(reach).sum::<u128>() + self.head_bytes() as u128;
        for (index, base) in self.bases.iter().enumerate() {
            let unknown = LayoutError::Region { base: index, region: base.region, regions: regions.len() };
            let region_bytes = regions.get(usize::from(base.region)).ok_or(unknown)?.bytes;
            let end = u128::from(base.offset) + extent;
            if end > u128::from(region_bytes) {
                return Err(LayoutError::Outside { base: index, end, region_bytes });
            }
        }
        Ok(extent as u64)
    }

    /// No byte belongs to two bases, even where K and V or layers are interleaved page by page or token by token, and
    /// whatever regions name it. Each base is compared with those that begin within its extent: with none where layers
    /// lie apart, with all of at most [`BASES_MAX`] where they are interleaved.
    fn check_apart(&self, regions: &[AddressRange], steps: &[(u64, u64); 3], extent: u64) -> Result<(), LayoutError> {
        let head_bytes = self.head_bytes() as u64;
        // Cannot overflow: the region does not wrap, and the base lies in it.
        let address = |base: &Base| regions[usize::from(base.region)].address + base.offset;
        let mut starts: Vec<(u64, usize)> =
            self.bases.iter().enumerate().map(|(index, base)| (address(base), index)).collect();
        starts.sort_unstable();
        for (place, &(start, one)) in starts.iter().enumerate() {
            let near = starts[place + 1..].iter().take_while(|&&(next, _)| next - start < extent);
            if let Some(&(_, other)) = near.into_iter().find(|&&(next, _)| collide(next - start, steps, head_bytes)) {
                let [one, other] = [one.min(other), one.max(other)].map(|index| {
                    let planes = self.geometry.planes;
                    Named { planes, index, base: self.bases[index] }
                });
                return Err(LayoutError::Overlap { one, other });
            }
        }
        Ok(())
    }

    fn check_pages(&self, part: &Part, pages: &[u32], clip: &Range<usize>) -> Result<(), LayoutError> {
        if !part.within(&self.geometry) {
            return Err(LayoutError::Part(*part));
        }
        let expected = self.pages_per_chunk();
        if pages.len() != expected {
            return Err(LayoutError::PageCount { found: pages.len(), expected });
        }
        let tokens = tokens_of(part, clip);
        if tokens.is_empty() {
            return Ok(());
        }
        let page_tokens = usize::from(self.form.page_tokens);
        let used = tokens.start / page_tokens..tokens.end.div_ceil(page_tokens);
        let page_count = self.form.page_count;
        match used.into_iter().find(|&index| pages[index] >= page_count) {
            Some(index) => Err(LayoutError::Page { index, page: pages[index], page_count }),
            None => Ok(()),
        }
    }

    fn pieces(&self, part: &Part, clip: &Range<usize>, mut piece: impl FnMut(Piece)) {
        let tokens = tokens_of(part, clip);
        let layer_bytes = usize::from(part.tokens) * self.geometry.row_bytes();
        for layer in 0..usize::from(part.layers) {
            let emit = |page_index, in_page, tile_offset: usize, bytes| {
                piece(Piece { layer, page_index, in_page, tile_offset: layer * layer_bytes + tile_offset, bytes });
            };
            match self.form.order {
                Order::TokenMajor => self.token_major(part, &tokens, emit),
                Order::HeadMajor => self.head_major(part, &tokens, emit),
            }
        }
    }

    /// Tile order `[token][head]`: whole pages where host tokens are dense, else rows, else heads.
    fn token_major(&self, part: &Part, tokens: &Range<usize>, mut emit: impl FnMut(usize, u64, usize, usize)) {
        let (heads, head_bytes, row) = (self.geometry.heads, self.head_bytes(), self.geometry.row_bytes());
        let rows_dense = heads == 1 || self.form.head_stride == head_bytes as u64;
        let pages_dense = rows_dense && self.form.token_stride == row as u64;
        for (page_index, tokens) in self.by_page(tokens) {
            let first = tokens.start - usize::from(part.first_token);
            if pages_dense {
                emit(page_index, self.in_page(tokens.start, 0), first * row, tokens.len() * row);
                continue;
            }
            for (index, token) in tokens.enumerate() {
                let tile_offset = (first + index) * row;
                if rows_dense {
                    emit(page_index, self.in_page(token, 0), tile_offset, row);
                    continue;
                }
                for head in 0..usize::from(heads) {
                    emit(page_index, self.in_page(token, head), tile_offset + head * head_bytes, head_bytes);
                }
            }
        }
    }

    /// Tile order `[page of the part][head][token]`: whole pages where host and tile nest alike, else heads, else
    /// tokens.
    fn head_major(&self, part: &Part, tokens: &Range<usize>, mut emit: impl FnMut(usize, u64, usize, usize)) {
        let (heads, head_bytes, row) = (usize::from(self.geometry.heads), self.head_bytes(), self.geometry.row_bytes());
        let page_tokens = usize::from(self.form.page_tokens);
        let part_tokens = usize::from(part.first_token)..usize::from(part.first_token) + usize::from(part.tokens);
        let heads_dense = page_tokens == 1 || self.form.token_stride == head_bytes as u64;
        let pages_dense = heads_dense && (heads == 1 || self.form.head_stride == (page_tokens * head_bytes) as u64);
        // The tile's pages start at the part's first token, wherever the host's do.
        for start in part_tokens.clone().step_by(page_tokens) {
            let held = page_tokens.min(part_tokens.end - start);
            let used = start.max(tokens.start)..(start + held).min(tokens.end);
            if used.is_empty() {
                continue;
            }
            let tile_page = (start - part_tokens.start) * row;
            if pages_dense && used.len() == page_tokens && start.is_multiple_of(page_tokens) {
                emit(start / page_tokens, 0, tile_page, page_tokens * row);
                continue;
            }
            for head in 0..heads {
                for (page_index, tokens) in self.by_page(&used) {
                    let tile_offset = tile_page + (head * held + tokens.start - start) * head_bytes;
                    if heads_dense {
                        emit(page_index, self.in_page(tokens.start, head), tile_offset, tokens.len() * head_bytes);
                        continue;
                    }
                    for (index, token) in tokens.enumerate() {
                        emit(page_index, self.in_page(token, head), tile_offset + index * head_bytes, head_bytes);
                    }
                }
            }
        }
    }

    /// The same tokens, cut where host pages end.
    fn by_page(&self, tokens: &Range<usize>) -> impl Iterator<Item = (usize, Range<usize>)> + use<> {
        let page_tokens = usize::from(self.form.page_tokens);
        let Range { mut start, end } = *tokens;
        std::iter::from_fn(move || {
            let page_index = start / page_tokens;
            let cut = start..end.min((page_index + 1) * page_tokens);
            start = cut.end;
            (!cut.is_empty()).then_some((page_index, cut))
        })
    }

    fn in_page(&self, token: usize, head: usize) -> u64 {
        let token = token % usize::from(self.form.page_tokens);
        token as u64 * self.form.token_stride + head as u64 * self.form.head_stride
    }
}

impl Run {
    fn is_followed_by(&self, next: &Run) -> bool {
        self.region == next.region
            && self.offset + self.bytes as u64 == next.offset
            && self.tile_offset + self.bytes == next.tile_offset
    }
}

fn tokens_of(part: &Part, clip: &Range<usize>) -> Range<usize> {
    let first = usize::from(part.first_token);
    first.max(clip.start)..(first + usize::from(part.tokens)).min(clip.end)
}

/// Whether two heads of equal nests of steps, `distance` bytes apart at their start, can share a byte. What is inside a
/// step is no longer than its stride, so only the two multiples around the distance can bring them together.
fn collide(distance: u64, steps: &[(u64, u64)], head_bytes: u64) -> bool {
    let Some((&(count, stride), inner)) = steps.split_first() else { return distance < head_bytes };
    if count == 1 {
        return collide(distance, inner, head_bytes);
    }
    let (below, past) = (distance / stride, distance % stride);
    (below < count && collide(past, inner, head_bytes))
        || (below + 1 < count && collide(stride - past, inner, head_bytes))
}

#[cfg(test)]
#[path = "layout_tests.rs"]
mod tests;
