//! One card and its host. Orders come by standard input, answers go as lines of JSON to standard output.

use std::collections::HashMap;
use std::io::BufRead;
use std::ops::Range;
use std::time::{Duration, Instant};

use block::{ChunkKey, KeyChain, Namespace};
use host_ctl::{Arrangement, CardStatus, Client, Memory, Transfer};
use serde_json::{Value, json};

use super::rig::{Card, PAGE_TOKENS, answered};
use super::work::{Work, part};
use super::{CHUNK_TOKENS, SEED, geometry};

const PAGES_PER_CHUNK: usize = (CHUNK_TOKENS / PAGE_TOKENS) as usize;
/// Chunks of one store.
const STORED_AT_ONCE: usize = 16;
/// How long the movers may take to come to rest.
const SETTLE_MAX: Duration = Duration::from_secs(30);

/// `worker URL RECIPE REQUESTS CARD CARDS`.
pub(crate) fn run(words: &[String]) {
    let [url, recipe, requests, card, cards] = words else {
        panic!("worker URL RECIPE REQUESTS CARD CARDS: {words:?}")
    };
    let number = |word: &String| word.parse::<usize>().expect("a number");
    let work = Work::new(number(requests), SEED);
    let process = Card::start(url, recipe);
    let chunks = work.longest().max(STORED_AT_ONCE);
    let memory = Arrangement::Vllm.allocate(geometry(), PAGE_TOKENS, (chunks * PAGES_PER_CHUNK) as u32).expect("room");
    fill(&memory);
    let client = Client::attach(process.options(), Some(memory)).expect("it attached before");
    let names = names(&work, process.options().recipe.expect("start names one"));
    let mut host = Host { client, names, pages: (0..(chunks * PAGES_PER_CHUNK) as u32).collect() };
    println!("{}", json!({ "ready": true }));
    let own = |range: Range<usize>| part(&work, number(card), number(cards), range);
    for order in std::io::stdin().lock().lines().map_while(Result::ok) {
        let answer = match order.as_str() {
            "fill" => host.store(&work),
            "warm" => host.fetch(own(0..work.measured).map(|request| &request.chunks[..request.known])),
            "settle" => host.settle(),
            "measure" => {
                host.fetch(own(work.measured..work.requests.len()).map(|request| &request.chunks[..request.known]))
            }
            _ => break,
        };
        println!("{answer}");
    }
}

/// Numbers that compress no better than noise, in the range of real ones.
fn fill(memory: &Memory) {
    let mut state = SEED | 1;
    let mut element = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let value = (state >> 40) as f32 / (1 << 24) as f32 - 0.5;
        ((value.to_bits() >> 16) as u16).to_le_bytes()
    };
    for region in &memory.regions {
        let bytes: Vec<u8> = (0..region.mapping.bytes() / 2).flat_map(|_| element()).collect();
        region.mapping.write(0, &bytes);
    }
}

/// The key of each chunk of the trace: its tokens are its number, over and over.
fn names(work: &Work, recipe: block::Recipe) -> HashMap<u64, ChunkKey> {
    let namespace = Namespace { model: "bench", geometry: geometry(), recipe, salt: b"", rank: 0, ranks: 1 };
    let mut names = HashMap::new();
    for request in &work.requests {
        let mut chain = KeyChain::new(&namespace);
        for &chunk in &request.chunks {
            let key = chain.push(&[chunk as u32; CHUNK_TOKENS as usize]);
            assert_eq!(*names.entry(chunk).or_insert(key), key, "equal numbers have equal prefixes");
        }
    }
    names
}

struct Host {
    client: Client,
    names: HashMap<u64, ChunkKey>,
    pages: Vec<u32>,
}

impl Host {
    /// Puts every chunk of the trace; the bytes of one that lies at the same place of its batch are the same.
    fn store(&mut self, work: &Work) -> Value {
        let keys: Vec<ChunkKey> = work.different.iter().map(|chunk| self.names[chunk]).collect();
        let mut chunks = 0;
        for keys in keys.chunks(STORED_AT_ONCE) {
            let pages = &self.pages[..keys.len() * PAGES_PER_CHUNK];
            let transfer = Transfer::new(keys, pages);
            chunks += answered(&mut self.client, |client| client.post_store(&transfer)).chunks_done;
        }
        json!({ "chunks": chunks, "bytes": self.status()["store"]["bytes_put"] })
    }

    /// Restores one prefix after the other.
    fn fetch<'w>(&mut self, prefixes: impl Iterator<Item = &'w [u64]>) -> Value {
        let before = self.of_tiers("hits");
        let (mut chunks, mut ms) = (0, Vec::new());
        for prefix in prefixes.filter(|prefix| !prefix.is_empty()) {
            let keys: Vec<ChunkKey> = prefix.iter().map(|chunk| self.names[chunk]).collect();
            let pages = &self.pages[..keys.len() * PAGES_PER_CHUNK];
            let transfer = Transfer::new(&keys, pages);
            let since = Instant::now();
            chunks += answered(&mut self.client, |client| client.post_fetch(&transfer)).chunks_done;
            ms.push(since.elapsed().as_secs_f64() * 1e3);
        }
        let after = self.of_tiers("hits");
        let bytes = chunks * geometry().chunk_bytes();
        json!({ "chunks": chunks, "bytes": bytes, "ms": ms, "dram": after[0] - before[0], "dir": after[1] - before[1] })
    }

    /// Waits until nothing more comes into the tiers.
    fn settle(&mut self) -> Value {
        let end = Instant::now() + SETTLE_MAX;
        let mut moved = self.of_tiers("promoted");
        loop {
            std::thread::sleep(Duration::from_secs(1));
            let before = std::mem::replace(&mut moved, self.of_tiers("promoted"));
            if moved == before || Instant::now() > end {
                return json!({ "promoted": moved });
            }
        }
    }

    fn status(&mut self) -> Value {
        let answer = answered(&mut self.client, Client::post_status).answer;
        CardStatus::parse(&answer).expect("the card's status").value().clone()
    }

    /// One of the counters of T0 and T1.
    fn of_tiers(&mut self, counter: &str) -> [u64; 2] {
        let status = self.status();
        let tiers = status["tiers"].as_array().cloned().unwrap_or_default();
        ["dram", "dir"].map(|name| {
            tiers.iter().find(|tier| tier["tier"] == name).and_then(|tier| tier[counter].as_u64()).unwrap_or(0)
        })
    }
}
