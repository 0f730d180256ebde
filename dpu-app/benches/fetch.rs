//! `cargo bench -p dpu-app --bench fetch -- [--gb N] [--runs N] [--recipes q8,q5,...] [--soak-gb N] [--dir PATH]
//! [--quick]`
//!
//! How fast a prefix of an 8B-class model comes back through the whole data plane, beside what the emulator's engines
//! do alone: the same blocks, the same tasks in flight, the same destination pages in the same other process, without
//! store and without dequantization. Both in turn, medians of `--runs`. The real dpu-app runs as a process of its own
//! with its defaults and a `dir:` store; this process is the host. Data: testdata/ tiled to size by `study::generate`.
//!
//! MB/s are 10^6 bytes of restored bf16 a second.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use bench::{Plot, PlotKind, Report, Sample, Series, Table};
use block::codec::Compressor;
use block::{Codec, Geometry, Header, Part, Plan, Recipe, TileOrder};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use doca::{Area, Arena, Context, Depth, Device, ProgressEngine, Remote, RemoteRun, Source};
use host_ctl::{Arrangement, KvFile, PageOrder};
use rig::{CHUNK_TOKENS, Card, HEAD_SIZE, HEADS, LAYERS, PAGE_TOKENS, Prefix, warm};

mod rig;

/// Different blocks that the engines go through when they run alone.
const BLOCKS: usize = 64;

/// Tokens of one GiB of bf16.
const GIB_TOKENS: usize = (1 << 30) / (2 * LAYERS * HEADS * HEAD_SIZE * 2);
const COLUMNS: [&str; 12] = [
    "recipe",
    "ratio",
    "engines alone MB/s",
    "spread",
    "fetch MB/s",
    "spread",
    "share",
    "fetch ms",
    "inflate ms",
    "dequantize ms",
    "write ms",
    "dpu-app RSS MiB before / after",
];

struct Arguments {
    tokens: usize,
    runs: usize,
    recipes: Vec<String>,
    soak_gb: usize,
    dir: PathBuf,
}

fn main() {
    if let Ok(job) = std::env::var("KVLANE_BENCH_ENGINES") {
        return engines_alone(&job);
    }
    let arguments = parse();
    let prefix = Prefix::of(&arguments.dir, LAYERS, arguments.tokens);
    let title = "A fetch through the whole data plane, beside the engines alone";
    let mut report = Report::new("fetch", title, "cargo bench -p dpu-app --bench fetch -- --gb 1 --runs 5");
    report.notes.push(format!(
        "{} tokens of an 8B-class geometry ({LAYERS} layers x {HEADS} heads x {HEAD_SIZE}, bf16, chunks of {CHUNK_TOKENS}) \
         come back from a `dir:` store in the page cache into shuffled pages of {PAGE_TOKENS} tokens in another process's \
         memory. Engines alone: the emulator's engines with the same blocks, tasks in flight and pages, without store and \
         dequantization. Both in turn, medians of {}; ms: how long a stage was busy in the last fetch. Everything shares the \
         processors.",
        arguments.tokens, arguments.runs
    ));
    let mut table = Table::new("", &COLUMNS);
    let series = |name: &str| Series { name: name.into(), labels: arguments.recipes.clone(), ..Series::default() };
    let mut bars = vec![series("engines alone"), series("fetch")];
    for (place, recipe) in arguments.recipes.iter().enumerate() {
        let speeds = bench(recipe, &arguments, &prefix, &mut table);
        bars.iter_mut().zip(speeds).for_each(|(bar, speed)| bar.points.push((place as f64, speed)));
    }
    report.tables.push(table);
    report.plots.push(Plot {
        name: "fetch".into(),
        title: "A fetch and its engines alone".into(),
        x: "recipe".into(),
        y: "MB/s of restored bf16".into(),
        log_x: false,
        log_y: false,
        kind: PlotKind::Bars,
        series: bars,
    });
    report.publish().expect("KVLANE_BENCH_OUT is a directory");
}

fn parse() -> Arguments {
    let mut arguments = Arguments {
        tokens: GIB_TOKENS,
        runs: 5,
        recipes: ["lossless", "q8", "q6", "q5", "q4", "q3", "q4p", "cachegen"].map(String::from).to_vec(),
        soak_gb: 0,
        dir: std::env::temp_dir().join(format!("kvlane-bench-fetch-{}", std::process::id())),
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut value = || words.next().unwrap_or_else(|| panic!("{word} needs a value"));
        match word.as_str() {
            "--gb" => arguments.tokens = value().parse::<usize>().expect("--gb N") * GIB_TOKENS,
            "--runs" => arguments.runs = value().parse().expect("--runs N"),
            "--recipes" => arguments.recipes = value().split(',').map(String::from).collect(),
            "--soak-gb" => arguments.soak_gb = value().parse().expect("--soak-gb N"),
            "--dir" => arguments.dir = value().into(),
            "--quick" => {
                arguments.tokens = 2 * CHUNK_TOKENS;
                arguments.runs = 1;
                arguments.recipes = ["q5", "q4p"].map(String::from).to_vec();
            }
            // Cargo's own.
            "--bench" => {}
            other => panic!("{other}: see the head of benches/fetch.rs"),
        }
    }
    arguments
}

/// One recipe: a row of the table; MB/s of the engines alone and of the fetch.
fn bench(recipe: &str, arguments: &Arguments, prefix: &Prefix, table: &mut Table) -> [f64; 2] {
    let store = arguments.dir.join("store");
    let _ = std::fs::remove_dir_all(&store);
    let mut card = Card::start(&format!("dir:{}?sync=never", store.display()), recipe);
    let stored = card.store(prefix);
    let before = rss_mib(card.pid());
    let bytes = arguments.tokens * 2 * LAYERS * HEADS * HEAD_SIZE * 2;
    let mut engines = Engines::start(recipe, prefix);
    engines.run(bytes);
    let (mut alone, mut whole, mut stages) = (Sample::default(), Sample::default(), Vec::new());
    for _ in 0..arguments.runs {
        alone.push(engines.run(bytes));
        let report = card.fetch(prefix, 2);
        whole.push(warm(&report).raw_mb_s());
        stages = report.stages;
    }
    drop(engines);
    if arguments.soak_gb > 0 {
        card.fetch(prefix, (arguments.soak_gb * 1_000_000_000).div_ceil(bytes));
    }
    let after = rss_mib(card.pid());
    drop(card);
    let _ = std::fs::remove_dir_all(&store);
    let ms = |name: &str| {
        let stage = stages.iter().find(|stage| stage.name == name);
        format!("{:.0}", stage.map_or(0.0, |stage| stage.busy_ms / 2.0))
    };
    let mb_s = |sample: &Sample| format!("{:.0}", sample.median());
    let percent = |share: f64| format!("{:.0} %", 100.0 * share);
    table.row(&[
        &recipe,
        &format!("{:.2}", stored.amounts.ratio()),
        &mb_s(&alone),
        &percent(alone.spread()),
        &mb_s(&whole),
        &percent(whole.spread()),
        &percent(whole.median() / alone.median()),
        &ms("fetch"),
        &ms("inflate"),
        &ms("dequantize"),
        &ms("write"),
        &format!("{before:.1} / {after:.1}"),
    ]);
    eprintln!("{recipe}: done");
    [alone.median(), whole.median()]
}

fn rss_mib(pid: u32) -> f64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("it lives");
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).expect("the kernel says");
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<f64>().ok()).expect("a number") / 1024.0
}

/// A process that runs the engines and nothing else, writing to this process's pages.
struct Engines {
    process: Child,
    answers: BufReader<std::process::ChildStdout>,
    _memory: host_ctl::Memory,
    _exports: Vec<doca::Export>,
}

impl Engines {
    fn start(recipe: &str, prefix: &Prefix) -> Self {
        let (file, shape) = (&prefix.path, prefix.shape);
        let geometry = shape.geometry(CHUNK_TOKENS).expect("an 8B-class geometry");
        let pages = (shape.tokens / usize::from(PAGE_TOKENS)) as u32;
        let memory = Arrangement::Vllm.allocate(geometry, PAGE_TOKENS, pages).expect("memory");
        let device = Device::open(&doca::Selector::First).expect("the emulator");
        let exports = memory.regions.iter().map(|region| {
            doca::Export::new(&device, region.mapping.clone(), doca::Access::ReadWrite).expect("exported")
        });
        let exports: Vec<doca::Export> = exports.collect();
        let mut process = Command::new(std::env::current_exe().expect("this program"))
            .env("KVLANE_BENCH_ENGINES", format!("{recipe} {} {pages}", file.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a second process");
        let stdin = process.stdin.as_mut().expect("piped");
        for export in &exports {
            let hex: String = export.blob().iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(stdin, "{hex}").expect("it listens");
        }
        writeln!(stdin).expect("it listens");
        let answers = BufReader::new(process.stdout.take().expect("piped"));
        Self { process, answers, _memory: memory, _exports: exports }
    }

    fn run(&mut self, bytes: usize) -> f64 {
        writeln!(self.process.stdin.as_mut().expect("piped"), "{bytes}").expect("it listens");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it answers");
        line.trim().parse().expect("MB/s")
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The second process: `RECIPE FILE PAGES` in the environment; blobs, an empty line, then sizes on standard input.
fn engines_alone(job: &str) {
    let mut words = job.split(' ');
    let mut word = || words.next().expect("RECIPE FILE PAGES");
    let recipe: Recipe = word().parse().expect("a recipe");
    let file = KvFile::open(Path::new(word())).expect("the data");
    let pages: u32 = word().parse().expect("pages");
    let kv = file.kv("kv", None).expect("the data");
    let geometry = kv.shape.geometry(CHUNK_TOKENS).expect("an 8B-class geometry");
    let device = Device::open(&doca::Selector::First).expect("the emulator");
    let mut lines = std::io::stdin().lines().map(|line| line.expect("text"));
    let mut remotes = Vec::new();
    for line in lines.by_ref().take_while(|line| !line.is_empty()) {
        let bytes: Vec<u8> =
            (0..line.len() / 2).map(|i| u8::from_str_radix(&line[2 * i..2 * i + 2], 16).expect("hex")).collect();
        remotes.push(Remote::import(&device, &bytes).expect("imported"));
    }
    let mut alone = Alone::new(&device, recipe, geometry, &file, &kv);
    let table = PageOrder::Shuffled { seed: 3 }.table(pages);
    for line in lines {
        let bytes: usize = line.parse().expect("a size");
        println!("{}", alone.run(bytes, &remotes, &table));
        std::io::stdout().flush().expect("somebody reads");
    }
}

/// Slots of the ring by default on this machine; the engines alone get as many.
fn depth() -> usize {
    dpu_app::Config::for_cores(std::thread::available_parallelism().map_or(1, usize::from)).slots
}

struct Alone {
    engine: ProgressEngine,
    inflate: Context,
    dma: Context,
    /// Encoded blocks, each in registered memory of its own, with the place of its payload.
    wires: Vec<(Option<Area>, Header)>,
    codes: Vec<Area>,
    tiles: Vec<Area>,
    geometry: Geometry,
    part: Part,
}

impl Alone {
    fn new(device: &Device, recipe: Recipe, geometry: Geometry, file: &KvFile, kv: &host_ctl::KvTensor) -> Self {
        let engine = ProgressEngine::new().expect("the emulator");
        let depth = depth();
        let sizes = Depth { operations: depth, tasks: depth * 4 };
        let config = dpu_app::Config::for_cores(2);
        let slot = config.slot_bytes();
        let plan = Plan::choose(&geometry, config.block_bytes / geometry.element.bytes()).expect("a plan");
        let part = plan.part(&geometry, 0).expect("a first block");
        let tile_bytes = part.tile_bytes(&geometry);
        let mut arena = Arena::allocate(device, BLOCKS * slot.wire + depth * (slot.codes + slot.tile)).expect("memory");
        let mut compressor = Compressor::new(config.deflate_level, slot.codes).expect("an encoder");
        let (mut tile, mut codes) = (vec![0; tile_bytes], vec![0; slot.codes]);
        let key = block::ChunkKey::new([0; block::KEY_BYTES]);
        let mut wires = Vec::new();
        for index in 0..BLOCKS.min(plan.block_count(&geometry)) {
            let part = plan.part(&geometry, index).expect("by the plan");
            file.read(&mut tile, kv.row_offset(part.first_layer.into(), part.kind, 0)).expect("the data");
            let mut area = arena.carve(slot.wire).expect("sized for it");
            let order = TileOrder::TokenMajor;
            block::encode_tile(
                recipe,
                &geometry,
                &key,
                index,
                &part,
                order,
                &tile,
                &mut codes,
                &mut area,
                &mut compressor,
            )
            .expect("encodes");
            let header = Header::parse(&area).expect("just written");
            wires.push((Some(area), header));
        }
        let mut carve = |bytes| (0..depth).map(|_| arena.carve(bytes).expect("sized for it")).collect::<Vec<_>>();
        let (codes, tiles) = (carve(slot.codes), carve(slot.tile));
        let codecs = [doca::CompressedFormat::Deflate, doca::CompressedFormat::Lz4Block];
        let inflate = Context::decompress(&engine, device, &codecs, sizes).expect("the emulator inflates");
        let dma = Context::dma(&engine, device, sizes).expect("the emulator copies");
        Self { engine, inflate, dma, wires, codes, tiles, geometry, part }
    }

    /// Progress, or sleep until there is some: what a program that does nothing else would do.
    fn sleep(&self) {
        while !self.engine.progress() {
            self.engine.arm().expect("the emulator arms");
            let mut fds = [PollFd::new(self.engine.fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::NONE).expect("poll");
            self.engine.disarm().expect("the emulator disarms");
        }
        while self.engine.progress() {}
    }

    /// Restores (as far as engines do) `bytes` bytes; MB/s.
    fn run(&mut self, bytes: usize, remotes: &[Remote], table: &[u32]) -> f64 {
        let tile_bytes = self.part.tile_bytes(&self.geometry);
        let blocks = bytes / tile_bytes;
        let page_bytes = usize::from(PAGE_TOKENS) * self.geometry.row_bytes();
        let pages = tile_bytes / page_bytes;
        let mut free: VecDeque<usize> = (0..self.wires.len()).collect();
        // Blocks whose codes are there, waiting for the DMA engine.
        let (mut to_write, mut started, mut written) = (0, 0, 0);
        let since = Instant::now();
        while written < blocks {
            while started < blocks && to_write < self.codes.len() {
                let Some(&index) = free.front() else { break };
                let header = self.wires[index].1;
                if header.codec == Codec::Raw {
                    if to_write >= self.tiles.len() {
                        break;
                    }
                    to_write += 1;
                } else {
                    let Some(codes) = self.codes.pop() else { break };
                    let wire = self.wires[index].0.take().expect("free");
                    let codec = if header.codec == Codec::Lz4 {
                        doca::CompressedFormat::Lz4Block
                    } else {
                        doca::CompressedFormat::Deflate
                    };
                    self.inflate.inflate(index as u64, codec, wire, header.payload_range(), codes).expect("room");
                }
                free.pop_front();
                if header.codec == Codec::Raw {
                    free.push_back(index);
                }
                started += 1;
            }
            while to_write > 0 {
                let Some(tile) = self.tiles.pop() else { break };
                let chunk = written % (table.len() / pages);
                let mut runs = heapless::Vec::<RemoteRun<'_>, 1024>::new();
                for (place, page) in table[chunk * pages..(chunk + 1) * pages].iter().enumerate() {
                    let remote = &remotes[written % remotes.len()];
                    let offset = *page as usize * page_bytes;
                    let run = RemoteRun { remote, offset: offset as u64, local: place * page_bytes, bytes: page_bytes };
                    runs.push(run).expect("pages of one block");
                }
                self.dma.write(0, tile, &runs).expect("room");
                to_write -= 1;
            }
            self.sleep();
            while let Some(done) = self.inflate.poll() {
                done.outcome.expect("a good block");
                let index = done.ticket as usize;
                self.wires[index].0 = done.source.and_then(Source::own);
                self.codes.extend(done.destination);
                free.push_back(index);
                to_write += 1;
            }
            while let Some(done) = self.dma.poll() {
                done.outcome.expect("reachable pages");
                self.tiles.extend(done.area());
                written += 1;
            }
        }
        bytes as f64 / 1e6 / since.elapsed().as_secs_f64()
    }
}
