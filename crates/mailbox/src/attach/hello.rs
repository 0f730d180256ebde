//! The host's first message: who it is, and what its cache looks like.

use block::{Codec, GEOMETRY_BYTES, Geometry, Recipe, Transform};

use super::message::{Body, at_most, name, name_of};
use super::{AttachError, HELLO_BYTES, REGIONS_MAX};
use crate::words::Word;

/// The host introduces itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello<'a> {
    /// Generation of the page that follows.
    pub generation: u64,
    /// Process, for people.
    pub pid: u32,
    /// KV regions that follow, the page not counted.
    pub region_count: u16,
    /// Shape of the cache; `None`: a control-only session, which has no regions and no layout.
    pub geometry: Option<Geometry>,
    /// Recipe that the card stores this session's chunks with; `None`: the card's own.
    pub recipe: Option<Recipe>,
    /// Name for people: 1 to [`NAME_BYTES_MAX`](super::NAME_BYTES_MAX) printable bytes.
    pub client: &'a str,
    /// Namespace whose quota of the card's tiers the session uses, likewise; `None`: the one for sessions that name
    /// none.
    pub namespace: Option<&'a str>,
}

/// Flags of a hello. A recipe needs one: the words of "none, raw" are all zero.
const HAS_GEOMETRY: u8 = 1;
const HAS_RECIPE: u8 = 2;

/// Transform words and codec word.
fn recipe_of([transform, parameter, codec]: [u8; 3]) -> Result<Recipe, AttachError> {
    let unknown = |what, value: u8| AttachError::Field { what, value: value.into(), limit: 0 };
    let transform =
        Transform::from_words([transform, parameter]).ok_or(unknown("transform of the recipe", transform))?;
    let codec = Codec::from_word(codec).ok_or(unknown("codec of the recipe", codec))?;
    Ok(Recipe { transform, codec })
}

impl<'a> Hello<'a> {
    pub(super) fn check(&self) -> Result<&Hello<'a>, AttachError> {
        name(self.client)?;
        self.namespace.map(name).transpose()?;
        at_most("region count", self.region_count.into(), if self.geometry.is_some() { REGIONS_MAX } else { 0 })?;
        if let Some(geometry) = self.geometry {
            geometry.check().map_err(AttachError::Geometry)?;
        }
        Ok(self)
    }

    pub(super) fn name_bytes(&self) -> usize {
        self.client.len() + self.namespace.map_or(0, str::len)
    }

    pub(super) fn encode(&self, body: &mut [u8]) {
        self.generation.put(body, 0);
        self.pid.put(body, 8);
        self.region_count.put(body, 12);
        body[14] = self.client.len() as u8;
        body[15] = self.namespace.map_or(0, str::len) as u8;
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        body[16] = flag(self.geometry.is_some(), HAS_GEOMETRY) | flag(self.recipe.is_some(), HAS_RECIPE);
        if let Some(recipe) = self.recipe {
            recipe.transform.words().put(body, 17);
            body[19] = recipe.codec.word();
        }
        if let Some(geometry) = self.geometry {
            geometry.encode().put(body, 20);
        }
        let (client, namespace) = body[HELLO_BYTES..].split_at_mut(self.client.len());
        client.copy_from_slice(self.client.as_bytes());
        namespace.copy_from_slice(self.namespace.unwrap_or_default().as_bytes());
    }

    pub(super) fn decode(body: Body<'a>) -> Result<Hello<'a>, AttachError> {
        let [client, namespace]: [u8; 2] = Word::get(body.at_least(HELLO_BYTES)?.bytes, 14);
        let body = body.exactly(HELLO_BYTES + usize::from(client) + usize::from(namespace))?;
        let (client, namespace) = body.bytes[HELLO_BYTES..].split_at(client.into());
        let geometry: [u8; GEOMETRY_BYTES] = Word::get(body.bytes, 20);
        let flags = body.bytes[16];
        at_most("hello flags", flags.into(), (HAS_GEOMETRY | HAS_RECIPE).into())?;
        let geometry = if flags & HAS_GEOMETRY != 0 {
            Some(Geometry::decode(&geometry).map_err(AttachError::Geometry)?)
        } else {
            body.zero(20, GEOMETRY_BYTES)?;
            None
        };
        let recipe = if flags & HAS_RECIPE != 0 {
            Some(recipe_of(Word::get(body.bytes, 17))?)
        } else {
            body.zero(17, 3)?;
            None
        };
        let hello = Hello {
            generation: Word::get(body.bytes, 0),
            pid: Word::get(body.bytes, 8),
            region_count: Word::get(body.bytes, 12),
            geometry,
            recipe,
            client: name_of(client)?,
            namespace: if namespace.is_empty() { None } else { Some(name_of(namespace)?) },
        };
        hello.check().copied()
    }
}

const _: () = assert!(20 + GEOMETRY_BYTES == HELLO_BYTES);
