//! `host-ctl inspect`.

use std::path::{Path, PathBuf};

use block::{ChunkKey, KeyError};
use clap::Args;
use host_ctl::command::{CommandOutcome, Output, Show, bad, mb};
use host_ctl::{
    Error, InspectedBlock, InspectedChunk, Inspection, KvFile, ends_like_a_chunk, inspect, inspect_store, store_files,
};
use mailbox::visible;
use serde_json::{Value, json};

use super::amounts::{geometry_json, geometry_text};

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// A chunk file of a dir: store, dir:PATH or the directory of a store, redis://HOST[/DB][/KEY], or a .safetensors
    /// file
    path: String,
    /// Only this chunk of a store
    #[arg(long, value_name = "HEX", value_parser = parse_key)]
    key: Option<ChunkKey>,
    /// List every block
    #[arg(long)]
    blocks: bool,
    #[command(flatten)]
    output: Output,
}

fn parse_key(text: &str) -> Result<ChunkKey, String> {
    text.parse().map_err(|error: KeyError| error.to_string())
}

pub(crate) fn run(arguments: &Arguments) -> Result<CommandOutcome, Error> {
    let show = Show::new(&arguments.output);
    if store::is_on_servers(&arguments.path) {
        return remote(&show, arguments);
    }
    if store::looks_like_a_login(&arguments.path) {
        // Not repeated: it may hold a password.
        return Err(bad("PATH", "is neither a path nor a redis:// URL".to_owned(), "write redis://HOST/KEY"));
    }
    let store = store::directory(&arguments.path);
    let path = PathBuf::from(store.unwrap_or(Path::new(&arguments.path)));
    if store.is_some() || path.is_dir() {
        let files = store_files(&path, arguments.key.as_ref())?;
        return chunks(&show, arguments, &files);
    }
    if arguments.key.is_some() {
        return Err(bad("--key", "names a chunk of a store".to_owned(), "give the store as dir:PATH"));
    }
    let is_named_like_a_chunk =
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| parse_key(name).is_ok());
    if is_named_like_a_chunk || ends_like_a_chunk(&path) {
        return chunks(&show, arguments, &[path]);
    }
    tensors(&show, &path)
}

fn chunks(show: &Show, arguments: &Arguments, files: &[PathBuf]) -> Result<CommandOutcome, Error> {
    let mut tally = Tally::default();
    let mut bar = show.bar("inspect", "chunks");
    for (index, path) in files.iter().enumerate() {
        bar.set(index, files.len());
        let found = match inspect(path) {
            Ok(found) => found,
            // Evicted while we walked a store that is in use.
            Err(Error::System { call: "open", source, .. })
                if files.len() > 1 && source.kind() == std::io::ErrorKind::NotFound =>
            {
                continue;
            }
            Err(error) => return Err(error),
        };
        tally.add(show, arguments, &found);
    }
    drop(bar);
    Ok(tally.end(show))
}

/// Chunks of a store that has no files here. The key may stand at the end of the URL, as in `redis-cli --scan`.
fn remote(show: &Show, arguments: &Arguments) -> Result<CommandOutcome, Error> {
    let (place, query) = arguments.path.split_once('?').map_or((arguments.path.as_str(), None), |(p, q)| (p, Some(q)));
    let (place, key) = match place.rsplit_once('/').map(|(place, last)| (place, parse_key(last))) {
        Some((place, Ok(key))) => (place, Some(key)),
        _ => (place, arguments.key),
    };
    let url = query.map_or(place.to_owned(), |query| format!("{place}?{query}"));
    let mut tally = Tally::default();
    let mut bar = show.bar("inspect", "chunks");
    inspect_store(&url, key.as_ref(), &mut |index, of, found| {
        bar.set(index, of);
        tally.add(show, arguments, &found);
    })?;
    drop(bar);
    Ok(tally.end(show))
}

/// What all chunks together come to.
#[derive(Default)]
struct Tally {
    looked: usize,
    bad: usize,
    raw: u64,
    wire: u64,
    values: Vec<Value>,
}

impl Tally {
    fn add(&mut self, show: &Show, arguments: &Arguments, found: &Inspection) {
        self.looked += 1;
        self.bad += usize::from(!found.is_good());
        if let Some(chunk) = &found.chunk {
            self.raw += chunk.raw_bytes;
            self.wire += chunk.wire_bytes;
        }
        describe(show, arguments, found);
        self.values.push(inspection_json(found, arguments.blocks));
    }

    fn end(self, show: &Show) -> CommandOutcome {
        let Tally { looked, bad, raw, wire, values } = self;
        let ratio = if wire == 0 { 0.0 } else { raw as f64 / wire as f64 };
        let sizes = format!("{} raw, {} on the wire, ratio {ratio:.2}", mb(raw), mb(wire));
        let verdict = match bad {
            0 => format!("good: every check of {looked} chunks passed ({sizes})"),
            _ => format!("damaged: {bad} of {looked} chunks ({sizes}); dpu-app takes them out when they are fetched"),
        };
        let value = json!({
            "command": "inspect", "ok": bad == 0, "chunks": values, "damaged": bad,
            "raw_bytes": raw, "wire_bytes": wire, "ratio": ratio,
        });
        show.end(&verdict, &value);
        if bad == 0 { CommandOutcome::Good } else { CommandOutcome::Bad }
    }
}

fn describe(show: &Show, arguments: &Arguments, found: &Inspection) {
    show.line(&found.path.display().to_string());
    if let Some(chunk) = &found.chunk {
        let InspectedChunk { key, geometry, plan, .. } = chunk;
        let recipes: Vec<String> =
            chunk.recipes.iter().map(|(recipe, blocks)| format!("{blocks} x {recipe}")).collect();
        let ratio = chunk.raw_bytes as f64 / chunk.wire_bytes.max(1) as f64;
        show.table(&[
            ("  key", key.to_string()),
            ("  geometry", geometry_text(geometry)),
            (
                "  plan",
                format!(
                    "{} blocks of {} layers x {} tokens",
                    chunk.blocks.len(),
                    plan.layers_per_block,
                    plan.tokens_per_block
                ),
            ),
            ("  blocks", recipes.join(", ")),
            (
                "  bytes",
                format!(
                    "{} raw, {} on the wire, ratio {ratio:.2}, {} in the file",
                    mb(chunk.raw_bytes),
                    mb(chunk.wire_bytes),
                    mb(chunk.file_bytes)
                ),
            ),
        ]);
        if arguments.blocks {
            show.line("  block kind layers  tokens        wire         raw  ratio  recipe");
            for block in &chunk.blocks {
                let InspectedBlock {
                    index, kind, first_layer, layers, first_token, tokens, wire_bytes, raw_bytes, ..
                } = block;
                let (last_layer, last_token) = (first_layer + layers - 1, first_token + tokens - 1);
                let span = format!("{first_layer}-{last_layer}");
                let range = format!("{first_token}-{last_token}");
                let ratio = *raw_bytes as f64 / *wire_bytes as f64;
                show.line(&format!(
                    "  {index:>5}    {} {span:>6} {range:>7} {wire_bytes:>11} {raw_bytes:>11} {ratio:>6.2}  {}+{}",
                    kind.name(),
                    block.transform,
                    block.codec
                ));
            }
        }
    }
    let mut rows: Vec<(&str, String)> = found.findings.iter().map(|what| ("  DAMAGED", what.clone())).collect();
    if rows.is_empty() {
        rows.push(("  checks", "manifest, headers, scales, codes: all passed".to_owned()));
    }
    show.table(&rows);
}

fn inspection_json(found: &Inspection, with_blocks: bool) -> Value {
    let mut value = json!({
        "path": found.path.display().to_string(),
        "ok": found.is_good(),
        "findings": found.findings,
    });
    if let Some(chunk) = &found.chunk {
        value["key"] = json!(chunk.key.to_string());
        value["geometry"] = geometry_json(&chunk.geometry);
        value["plan"] = json!({
            "layers_per_block": chunk.plan.layers_per_block, "tokens_per_block": chunk.plan.tokens_per_block,
        });
        value["block_count"] = json!(chunk.blocks.len());
        value["recipes"] = json!(chunk.recipes);
        value["file_bytes"] = json!(chunk.file_bytes);
        value["wire_bytes"] = json!(chunk.wire_bytes);
        value["raw_bytes"] = json!(chunk.raw_bytes);
        if with_blocks {
            let block = |block: &InspectedBlock| {
                json!({
                    "index": block.index, "kind": block.kind.name(),
                    "first_layer": block.first_layer, "layers": block.layers,
                    "first_token": block.first_token, "tokens": block.tokens,
                    "transform": block.transform, "codec": block.codec,
                    "wire_bytes": block.wire_bytes, "raw_bytes": block.raw_bytes,
                })
            };
            value["blocks"] = chunk.blocks.iter().map(block).collect();
        }
    }
    value
}

fn tensors(show: &Show, path: &Path) -> Result<CommandOutcome, Error> {
    let file = KvFile::open(path)?;
    let mut values = Vec::new();
    let mut storable = 0;
    for tensor in file.tensors() {
        let kv = file.kv(&tensor.name, None);
        let what = match &kv {
            Ok(kv) => {
                storable += 1;
                let shape = &kv.shape;
                let texts = kv.texts.map_or(String::new(), |texts| format!("{texts} texts (choose with --text), "));
                format!(
                    "can be stored: {texts}{} tokens, {} layers x {} KV heads x {} {}",
                    shape.tokens, shape.layers, shape.heads, shape.head_size, shape.element
                )
            }
            Err(_) if file.token_ids(&tensor.name, None).is_ok() => "token ids".to_owned(),
            Err(Error::Input { what, .. }) => format!("cannot be stored: {what}"),
            Err(error) => return Err(Error::Damaged { place: path.display().to_string(), what: error.to_string() }),
        };
        let name = visible(&tensor.name);
        show.line(&format!("{name:<16} {:<5} {:?}, {}: {what}", tensor.dtype, tensor.shape, mb(tensor.bytes)));
        values.push(json!({
            "name": tensor.name, "dtype": tensor.dtype, "shape": tensor.shape, "bytes": tensor.bytes,
            "storable": kv.is_ok(), "what": what,
        }));
    }
    let verdict = format!("good: safetensors, {} tensors, {storable} can be stored", values.len());
    show.end(&verdict, &json!({ "command": "inspect", "ok": true, "tensors": values }));
    Ok(CommandOutcome::Good)
}
