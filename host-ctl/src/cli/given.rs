//! Arguments that several commands take, and what they mean to the library.

use std::path::PathBuf;
use std::time::Duration;

use block::{ElementType, Geometry, Recipe};
use clap::Args;
use doca::Selector;
use host_ctl::command::{Pick, bad, parse_recipe};
use host_ctl::{Error, Identity, KvFile, Options, Route, TensorShape, TokenSpec};
use mailbox::attach::SERVICE_NAME;

/// Tensor that holds token ids, where nothing else is said.
const TOKENS_TENSOR: &str = "tokens";

/// How to reach a card.
#[derive(Debug, Args)]
pub(crate) struct Card {
    /// Name that dpu-app serves by DOCA Comch to this machine's device
    #[arg(long, env = "KVLANE_COMCH_NAME", default_value = SERVICE_NAME, value_name = "NAME")]
    comch_name: String,
    /// Go by dpu-app's Unix socket, usually /run/kvlane/dpu-app.sock, and not by Comch: on the card itself, or where
    /// there is no Comch
    #[arg(long, env = "KVLANE_SOCKET", value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Whose quota of the card's tiers this uses, of those that `dpu-app --tier-quota` names [default: default]
    #[arg(long, env = "KVLANE_NAMESPACE", value_name = "NAME")]
    namespace: Option<String>,
    /// Device of this machine, by PCI address or name [default: the first that fits]
    #[arg(long, short, env = "KVLANE_HOST_DEVICE", value_name = "NAME")]
    device: Option<String>,
    /// Give up attaching after this long; until then wait for a dpu-app that is just being started
    #[arg(long, default_value_t = 10_000, value_name = "MS", value_parser = milliseconds())]
    timeout_ms: u64,
    /// Give up a request that has not moved for this long
    #[arg(long, default_value_t = 60_000, value_name = "MS", value_parser = milliseconds())]
    patience_ms: u64,
}

/// Milliseconds, from one to an hour.
fn milliseconds() -> clap::builder::RangedU64ValueParser {
    clap::value_parser!(u64).range(1..=3_600_000)
}

impl Card {
    pub(crate) fn options(&self, recipe: Option<Recipe>) -> Options {
        Options {
            route: self.route(),
            namespace: self.namespace.clone(),
            device: self.device.clone().map_or(Selector::First, Selector::Named),
            recipe,
            timeout: Duration::from_millis(self.timeout_ms),
            awaits_card: true,
            ..Options::default()
        }
    }

    pub(crate) fn patience(&self) -> Duration {
        Duration::from_millis(self.patience_ms)
    }

    pub(crate) fn route(&self) -> Route {
        match &self.socket {
            Some(path) => Route::Socket(path.clone()),
            None => Route::Comch { name: self.comch_name.clone() },
        }
    }
}

/// What names chunks beside the tokens and the geometry.
#[derive(Debug, Args)]
pub(crate) struct Naming {
    /// Model name and revision; part of every key
    #[arg(long, value_name = "NAME")]
    pub(crate) model: String,
    /// How chunks are stored: lossless, q8, q6, q5, q4, q3, q4p, cachegen, peak1..peak127 or none, with +deflate, +lz4
    /// or +raw if wanted; part of every key [default: dpu-app's own]
    #[arg(long, value_name = "RECIPE", value_parser = parse_recipe)]
    pub(crate) recipe: Option<Recipe>,
    /// Separates tenants; part of every key
    #[arg(long, default_value = "", value_name = "TEXT")]
    salt: String,
    /// Tensor-parallel rank; part of every key
    #[arg(long, default_value_t = 0, value_name = "N")]
    rank: u32,
    /// Number of tensor-parallel ranks; part of every key
    #[arg(long, default_value_t = 1, value_name = "N")]
    ranks: u32,
    /// Tokens of one chunk, the unit of naming and hits; part of every key
    #[arg(long, default_value_t = 256, value_name = "N")]
    pub(crate) chunk_tokens: usize,
}

impl Naming {
    pub(crate) fn identity(&self) -> Result<Identity<'_>, Error> {
        if self.rank >= self.ranks {
            let what = format!("--rank {} of --ranks {}", self.rank, self.ranks);
            return Err(bad("--rank", what, "ranks count from 0"));
        }
        Ok(Identity { model: &self.model, salt: self.salt.as_bytes(), rank: self.rank, ranks: self.ranks })
    }

    /// Geometry of the chunks of a tensor of this shape.
    pub(crate) fn geometry(&self, shape: &TensorShape) -> Result<Geometry, Error> {
        shape.geometry(self.chunk_tokens).map_err(|error| bad("--chunk-tokens", error.to_string(), "choose another"))
    }
}

/// Where a shape comes from when there is no KV to store.
#[derive(Debug, Args)]
pub(crate) struct ShapeArguments {
    /// Take geometry, and tensors of token ids, from this safetensors file
    #[arg(long, value_name = "FILE", required_unless_present = "geometry", conflicts_with = "geometry")]
    like: Option<PathBuf>,
    /// Geometry in words: layers x KV heads x head size, then bf16, f16, f32, fp8_e4m3 or fp8_e5m2, as in 32x8x128:bf16
    #[arg(long, value_name = "LxHxD:TYPE", value_parser = parse_shape)]
    geometry: Option<TensorShape>,
    #[command(flatten)]
    pick: Pick,
    /// Token ids: tensor:NAME (of --like), range:A..B, file:PATH (numbers) or text:PATH (bytes) [default:
    /// tensor:tokens]
    #[arg(long, value_name = "SPEC")]
    tokens: Option<TokenSpec>,
}

impl ShapeArguments {
    /// Shape and token ids.
    pub(crate) fn load(&self) -> Result<(TensorShape, Vec<u32>), Error> {
        let file = self.like.as_ref().map(|path| KvFile::open(path)).transpose()?;
        let shape = match (&file, self.geometry) {
            (Some(file), _) => file.kv(&self.pick.tensor, self.pick.text)?.shape,
            (None, Some(shape)) => shape,
            (None, None) => return Err(bad("geometry", "not given".to_owned(), "give --like FILE or --geometry")),
        };
        let tokens = load_tokens(self.tokens.as_ref(), file.as_ref(), self.pick.text)?;
        Ok((shape, tokens))
    }
}

/// Token ids as given, or the file's own.
pub(crate) fn load_tokens(
    spec: Option<&TokenSpec>,
    file: Option<&KvFile>,
    text: Option<usize>,
) -> Result<Vec<u32>, Error> {
    let has_tokens = |file: &KvFile| file.tensors().iter().any(|tensor| tensor.name == TOKENS_TENSOR);
    match (spec, file) {
        (Some(spec), file) => spec.load(file, text),
        (None, Some(file)) if has_tokens(file) => TokenSpec::Tensor(TOKENS_TENSOR.to_owned()).load(Some(file), text),
        _ => Err(bad(
            "--tokens",
            "no token ids".to_owned(),
            "give tensor:NAME, range:A..B, file:PATH or text:PATH: keys are made of them",
        )),
    }
}

fn parse_shape(text: &str) -> Result<TensorShape, String> {
    let form = "not LAYERSxHEADSxHEADSIZE:TYPE, as in 32x8x128:bf16";
    let (sizes, element) = text.split_once(':').ok_or(form)?;
    let element: ElementType = element.parse().map_err(|error: block::GeometryError| error.to_string())?;
    let sizes: Vec<usize> = sizes.split('x').map(str::parse).collect::<Result<_, _>>().map_err(|_| form.to_owned())?;
    let [layers, heads, head_size] = sizes[..] else { return Err(form.to_owned()) };
    let shape = TensorShape { layers, tokens: 0, heads, head_size, element };
    shape.geometry(1).map_err(|error| error.to_string())?;
    Ok(shape)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_geometry_in_words_is_read_and_nonsense_is_not() {
        let shape = parse_shape("32x8x128:bf16").unwrap();
        assert_eq!((shape.layers, shape.heads, shape.head_size, shape.element), (32, 8, 128, ElementType::Bf16));
        for wrong in
            ["", "32x8:bf16", "32x8x128", "32x8x128:fp8", "0x8x128:f16", "axbxc:f32", "1x2x3x4:f32", "999x1x1:f32"]
        {
            assert!(parse_shape(wrong).is_err(), "{wrong}");
        }
    }
}
