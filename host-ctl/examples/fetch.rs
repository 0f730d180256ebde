//! What a serving engine does with a prompt: attach, look up, fetch what is stored into pages of its own.
//!
//! ```text
//! dpu-app run --store dir:/tmp/kvlane-store --socket /tmp/kvlane.sock &
//! cargo run -p host-ctl --example fetch -- /tmp/kvlane.sock
//! ```

use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use block::{ElementType, Geometry, Namespace};
use host_ctl::{Arrangement, Client, Options, Prefix, Route, Transfer};

/// Longest wait for one answer.
const PATIENCE: Duration = Duration::from_secs(30);
const CHUNK_TOKENS: usize = 256;
const PAGE_TOKENS: u16 = 16;
const PAGES_PER_CHUNK: usize = CHUNK_TOKENS / PAGE_TOKENS as usize;
/// Pages of the engine's cache: the card can reach these and nothing else.
const PAGES: u32 = 1024;

fn main() -> Result<(), Box<dyn Error>> {
    let socket = std::env::args().nth(1).map_or_else(|| PathBuf::from("/run/kvlane/dpu-app.sock"), PathBuf::from);

    // Attach: memory as vLLM lays it out, of a model with 32 layers and 8 KV heads of 128 elements.
    let geometry = Geometry::new(32, 8, 128, CHUNK_TOKENS, ElementType::Bf16)?;
    let memory = Arrangement::Vllm.allocate(geometry, PAGE_TOKENS, PAGES)?;
    let options =
        Options { route: Route::Socket(socket), client: String::from("the fetch example"), ..Options::default() };
    let mut client = Client::attach(&options, Some(memory))?;

    // Look up: the keys of a prompt's chunks follow from its tokens and from what produced the KV.
    let tokens: Vec<u32> = (0..2048).collect();
    let recipe = client.card_facts().recipe;
    let namespace = Namespace { model: "demo", geometry, recipe, salt: b"", rank: 0, ranks: 1 };
    let prefix = Prefix::new(&namespace, &tokens)?;
    let request = client.post_lookup(prefix.keys())?;
    let found = client.wait(request, PATIENCE)?.ok()?.chunks_done;
    println!("{found} of {} chunks are stored", prefix.chunks());

    // Fetch: the leading chunks into pages, here simply the first ones.
    if found > 0 {
        let pages: Vec<u32> = (0..).take(found * PAGES_PER_CHUNK).collect();
        let request = client.post_fetch(&Transfer::new(&prefix.keys()[..found], &pages))?;
        let completion = client.wait(request, PATIENCE)?.ok()?;
        println!("{} chunks are in place after {:?}", completion.chunks_done, completion.elapsed);
    }
    Ok(client.close(PATIENCE)?)
}
