//! KV caches as serving engines arrange them, for measuring and tests, and as files have them.
//!
//! ```text
//! contiguous   one region   [layer][K,V][token][head][element]            pages are just its tokens, 16 by 16
//! vllm         one a layer  [K,V][page][token][head][element]
//! vllm-joint   one a layer  [page][K,V][token][head][element]
//! head-major   one a layer  [K,V][page][head][token][element]
//! ```

use std::str::FromStr;
use std::sync::Arc;

use block::Geometry;
use doca::{Access, Mapping};
use mailbox::layout::{Base, Form, Order};

use crate::error::Error;
use crate::memory::{Memory, RegisteredMapping};
use crate::random::Random;

/// See the module.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arrangement {
    Contiguous,
    #[default]
    Vllm,
    VllmJoint,
    HeadMajor,
}

impl Arrangement {
    pub const ALL: [Arrangement; 4] =
        [Arrangement::Contiguous, Arrangement::Vllm, Arrangement::VllmJoint, Arrangement::HeadMajor];

    pub const fn name(self) -> &'static str {
        match self {
            Arrangement::Contiguous => "contiguous",
            Arrangement::Vllm => "vllm",
            Arrangement::VllmJoint => "vllm-joint",
            Arrangement::HeadMajor => "head-major",
        }
    }

    /// Form, bases and the size of each region for `page_count` pages.
    pub fn describe(self, geometry: &Geometry, page_tokens: u16, page_count: u32) -> (Form, Vec<Base>, Vec<u64>) {
        let head = geometry.head_size as u64 * geometry.element.bytes() as u64;
        let row = geometry.row_bytes() as u64;
        let page = row * u64::from(page_tokens);
        let kinds = geometry.planes.kinds().len() as u64;
        // All pages of one plane.
        let plane = page * u64::from(page_count);
        let token_major = Form {
            order: Order::TokenMajor,
            page_tokens,
            page_count,
            page_stride: page,
            token_stride: row,
            head_stride: head,
        };
        let form = match self {
            Arrangement::Contiguous | Arrangement::Vllm => token_major,
            Arrangement::VllmJoint => Form { page_stride: kinds * page, ..token_major },
            Arrangement::HeadMajor => Form {
                order: Order::HeadMajor,
                token_stride: head,
                head_stride: head * u64::from(page_tokens),
                ..token_major
            },
        };
        let base = |index: usize| {
            let (layer, kind) = geometry.planes.of_plane(index);
            let of_layer = |step: u64| Base { region: layer as u16, offset: kind.place() as u64 * step };
            match self {
                Arrangement::Contiguous => Base { region: 0, offset: index as u64 * plane },
                Arrangement::VllmJoint => of_layer(page),
                Arrangement::Vllm | Arrangement::HeadMajor => of_layer(plane),
            }
        };
        let regions = match self {
            Arrangement::Contiguous => vec![geometry.planes() as u64 * plane],
            _ => vec![kinds * plane; geometry.layers.into()],
        };
        (form, (0..geometry.planes()).map(base).collect(), regions)
    }

    /// Anonymous memory in this arrangement.
    ///
    /// # Errors
    /// A layout that cannot be, or no memory.
    pub fn allocate(self, geometry: Geometry, page_tokens: u16, page_count: u32) -> Result<Memory, Error> {
        let (form, bases, sizes) = self.describe(&geometry, page_tokens, page_count);
        let region = |bytes: u64| {
            let bytes = usize::try_from(bytes).map_err(|_| too_large())?;
            Ok(RegisteredMapping { mapping: Arc::new(Mapping::anonymous(bytes)?), access: Access::ReadWrite })
        };
        let regions = sizes.into_iter().map(region).collect::<Result<Vec<RegisteredMapping>, Error>>()?;
        let memory = Memory { geometry, form, bases, regions, further: Vec::new() };
        memory.check()?;
        Ok(memory)
    }
}

fn too_large() -> Error {
    Error::input("memory", "more bytes than this machine has addresses", "fetch fewer tokens")
}

impl FromStr for Arrangement {
    type Err = String;

    fn from_str(name: &str) -> Result<Arrangement, String> {
        let names = Arrangement::ALL.map(Arrangement::name).join(", ");
        Arrangement::ALL
            .into_iter()
            .find(|arrangement| arrangement.name() == name)
            .ok_or_else(|| format!("not one of {names}"))
    }
}

/// Which pages a prompt's tokens lie in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PageOrder {
    /// 0, 1, 2, ...
    #[default]
    Linear,
    /// Pages in random order, as after long use of a paged allocator.
    Shuffled { seed: u64 },
}

impl PageOrder {
    /// A page table of `page_count` pages, each once.
    pub fn table(self, page_count: u32) -> Vec<u32> {
        let mut pages: Vec<u32> = (0..page_count).collect();
        if let PageOrder::Shuffled { seed } = self {
            Random::new(seed).shuffle(&mut pages);
        }
        pages
    }
}

impl FromStr for PageOrder {
    type Err = String;

    fn from_str(text: &str) -> Result<PageOrder, String> {
        match text.split_once(':') {
            None if text == "linear" => Ok(PageOrder::Linear),
            Some(("shuffled", seed)) => match seed.parse() {
                Ok(seed) => Ok(PageOrder::Shuffled { seed }),
                Err(_) => Err(format!("seed {seed:?} is not a number")),
            },
            _ => Err("not linear or shuffled:SEED".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use block::{ElementType, Kind, Part};
    use mailbox::layout::{AddressRange, Layout};

    /// The byte of an element, straight from the drawings of the module.
    fn naive(
        arrangement: Arrangement,
        geometry: &Geometry,
        page_tokens: u64,
        page_count: u64,
        at: [u64; 6],
    ) -> (u16, u64) {
        let [layer, kind, page, token, head, element] = at;
        let (heads, size) = (u64::from(geometry.heads), u64::from(geometry.head_size));
        let nest = |dims: &[(u64, u64)]| dims.iter().fold(0, |sum, &(index, count)| sum * count + index);
        let (region, index) = match arrangement {
            Arrangement::Contiguous => {
                let all = page * page_tokens + token;
                let tokens = page_count * page_tokens;
                (0, nest(&[(layer, 0), (kind, 2), (all, tokens), (head, heads), (element, size)]))
            }
            Arrangement::Vllm => {
                let dims = [(kind, 2), (page, page_count), (token, page_tokens), (head, heads), (element, size)];
                (layer, nest(&dims))
            }
            Arrangement::VllmJoint => {
                let dims = [(page, page_count), (kind, 2), (token, page_tokens), (head, heads), (element, size)];
                (layer, nest(&dims))
            }
            Arrangement::HeadMajor => {
                let dims = [(kind, 2), (page, page_count), (head, heads), (token, page_tokens), (element, size)];
                (layer, nest(&dims))
            }
        };
        (region as u16, index * geometry.element.bytes() as u64)
    }

    #[test]
    fn every_element_lies_where_the_drawing_says() {
        let geometry = Geometry::new(3, 2, 4, 16, ElementType::Bf16).unwrap();
        let (page_tokens, page_count) = (4_u16, 9_u32);
        let pages = [7, 0, 3, 8];
        for arrangement in Arrangement::ALL {
            let (form, bases, sizes) = arrangement.describe(&geometry, page_tokens, page_count);
            let place = |(index, &bytes)| AddressRange { address: (index as u64 + 1) << 32, bytes };
            let regions: Vec<AddressRange> = sizes.iter().enumerate().map(place).collect();
            let layout = Layout::new(geometry, form, bases.into(), &regions).unwrap();
            for (layer, kind) in (0..3).flat_map(|layer| [(layer, Kind::K), (layer, Kind::V)]) {
                let part = Part { kind, first_layer: layer, layers: 1, first_token: 0, tokens: 16 };
                let mut found = vec![None; part.tile_bytes(&geometry)];
                let collect = |run: mailbox::layout::Run| {
                    for byte in 0..run.bytes {
                        found[run.tile_offset + byte] = Some((run.region, run.offset + byte as u64));
                    }
                };
                layout.runs(&part, &pages, 0..16, collect).unwrap();
                for token in 0..16_usize {
                    for (head, element) in (0..2_u64).flat_map(|head| (0..4_u64).map(move |element| (head, element))) {
                        let page = u64::from(pages[token / 4]);
                        let at = [layer.into(), kind as u64, page, token as u64 % 4, head, element];
                        let expected = naive(arrangement, &geometry, 4, 9, at);
                        let tile = match arrangement {
                            Arrangement::HeadMajor => (token / 4 * 8 + head as usize * 4 + token % 4) * 4,
                            _ => (token * 2 + head as usize) * 4,
                        };
                        let index = (tile + element as usize) * 2;
                        assert_eq!(found[index], Some(expected), "{arrangement:?} {at:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn a_shuffled_table_has_every_page_once() {
        let table = PageOrder::Shuffled { seed: 5 }.table(1000);
        assert_ne!(table, PageOrder::Linear.table(1000));
        assert_ne!(table, PageOrder::Shuffled { seed: 6 }.table(1000));
        let mut sorted = table;
        sorted.sort_unstable();
        assert_eq!(sorted, PageOrder::Linear.table(1000));
    }

    #[test]
    fn names_and_orders_parse_back() {
        for arrangement in Arrangement::ALL {
            assert_eq!(arrangement.name().parse(), Ok(arrangement));
        }
        assert_eq!("shuffled:12".parse(), Ok(PageOrder::Shuffled { seed: 12 }));
        for bad in ["shuffled", "shuffled:x", "linear:1", ""] {
            assert!(bad.parse::<PageOrder>().is_err(), "{bad}");
        }
    }
}
