//! What the benches of the whole data plane share: a real dpu-app in a process of its own, and a prefix of an 8B-class
//! model (testdata/ tiled to size by `study::generate`) that goes through it. The bench's process is the host.
#![allow(dead_code, reason = "each bench takes what it needs")]

use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::{ChunkKey, ElementType, Geometry, Namespace, Recipe};
use doca::{Access, Mapping};
use host_ctl::{
    Amounts, Arrangement, Client, Completion, FetchOrder, FetchReport, Identity, KvFile, Memory, Options, PageOrder,
    RequestId, Route, StoreOrder, StoreReport, Target, TensorShape, Transfer, fetch, store,
};
use nix::fcntl::{FcntlArg, SealFlag, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::ftruncate;
use study::{Synthetic, generate};

pub(crate) const PAGE_TOKENS: u16 = 16;
pub(crate) const CHUNK_TOKENS: usize = 256;
pub(crate) const LAYERS: usize = 32;
pub(crate) const HEADS: usize = 8;
pub(crate) const HEAD_SIZE: usize = 128;
const IDENTITY: Identity<'static> = Identity { model: "bench", salt: b"", rank: 0, ranks: 1 };
const PATIENCE: Duration = Duration::from_secs(600);

/// A synthetic KV file of `gib` GiB in `dir`, removed when this is dropped.
#[derive(Debug)]
pub(crate) struct Prefix {
    pub(crate) path: PathBuf,
    pub(crate) shape: TensorShape,
}

impl Prefix {
    pub(crate) fn generate(dir: &Path, gib: usize) -> Self {
        Self::of(dir, LAYERS, gib * (1 << 30) / (2 * LAYERS * HEADS * HEAD_SIZE * 2))
    }

    /// One of a model of `layers` layers.
    pub(crate) fn of(dir: &Path, layers: usize, tokens: usize) -> Self {
        Self::shaped(dir, layers, HEADS, tokens)
    }

    /// One of a model of `layers` layers with `heads` KV heads.
    pub(crate) fn shaped(dir: &Path, layers: usize, heads: usize, tokens: usize) -> Self {
        std::fs::create_dir_all(dir).expect("the working directory");
        let prefix = Self::made(dir, layers, heads, tokens);
        let (path, shape) = (&prefix.path, prefix.shape);
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/../testdata/decoder-kv.safetensors");
        let source = KvFile::open(Path::new(source)).expect("testdata");
        let kv = source.kv("kv", None).expect("testdata holds kv");
        generate((&source, &kv), &Synthetic { shape, seed: 1 }, path, &mut |_, _| ()).expect("room for the data");
        prefix
    }

    /// One that another process has made there; only one of them may drop it.
    pub(crate) fn made(dir: &Path, layers: usize, heads: usize, tokens: usize) -> Self {
        let path = dir.join(format!("kv-{layers}-{heads}-{tokens}.safetensors"));
        let shape = TensorShape { layers, tokens, heads, head_size: HEAD_SIZE, element: ElementType::Bf16 };
        Self { path, shape }
    }
}

impl Prefix {
    pub(crate) fn geometry(&self) -> Geometry {
        Geometry::new(self.shape.layers, self.shape.heads, HEAD_SIZE, CHUNK_TOKENS, self.shape.element)
            .expect("a geometry")
    }

    fn page_count(&self) -> u32 {
        (self.shape.tokens / usize::from(PAGE_TOKENS)) as u32
    }

    /// Of all its elements.
    pub(crate) fn bytes(&self) -> f64 {
        (self.shape.tokens * self.geometry().token_bytes()) as f64
    }

    /// Names of its chunks in a store.
    pub(crate) fn keys(&self, recipe: Recipe) -> Vec<ChunkKey> {
        let file = KvFile::open(&self.path).expect("just written");
        let tokens = file.token_ids("tokens", None).expect("just written");
        let Identity { model, salt, rank, ranks } = IDENTITY;
        let namespace = Namespace { model, geometry: self.geometry(), recipe, salt, rank, ranks };
        host_ctl::Prefix::new(&namespace, &tokens).expect("a model with a name").keys().to_vec()
    }

    /// Where its chunks lie in memory.
    pub(crate) fn pages(&self) -> Vec<u32> {
        PageOrder::Shuffled { seed: 3 }.table(self.page_count())
    }

    /// Room for all of it, as a serving engine allocates it.
    pub(crate) fn memory(&self) -> Memory {
        Arrangement::Vllm.allocate(self.geometry(), PAGE_TOKENS, self.page_count()).expect("room")
    }
}

impl Drop for Prefix {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Gives it memory that the emulator maps for itself: what the kernel copies between processes respects the protection
/// of pages, and no tool sees it.
pub(crate) fn seal(memory: &mut Memory) {
    for region in &mut memory.regions {
        let bytes = region.mapping.bytes();
        let file = memfd_create(c"kv", MFdFlags::MFD_ALLOW_SEALING).expect("a memfd");
        ftruncate(&file, bytes as i64).expect("room");
        fcntl(&file, FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK)).expect("a seal");
        region.mapping = Arc::new(Mapping::of_file(&file, bytes, Access::ReadWrite).expect("room"));
    }
}

/// How a card of a bench differs from one as it comes.
#[derive(Debug, Default)]
pub(crate) struct Setup<'a> {
    /// Met by this Unix socket instead of Comch.
    pub(crate) socket: Option<PathBuf>,
    /// Of `dpu-app run`.
    pub(crate) flags: &'a [&'a str],
    /// A list as `taskset` reads it; empty: all.
    pub(crate) cpus: &'a str,
    /// A value of `DOCA_EMULATOR`; empty: that of the bench.
    pub(crate) emulator: &'a str,
}

/// Set for a process of the bench's program that is to be dpu-app.
const AS_CARD: &str = "KVLANE_BENCH_CARD";

/// Cargo names dpu-app to benches of its own package only; a bench of another package is dpu-app itself where it is
/// asked to be, so that it never runs an older one. First thing in such a bench's `main`.
pub(crate) fn be_dpu_app_where_asked() {
    if std::env::var_os(AS_CARD).is_some() {
        let good = dpu_app::main() == ExitCode::SUCCESS;
        std::process::exit(i32::from(!good));
    }
}

fn program() -> PathBuf {
    option_env!("CARGO_BIN_EXE_dpu-app").map_or_else(|| std::env::current_exe().expect("this program"), PathBuf::from)
}

/// A dpu-app process of its own.
#[derive(Debug)]
pub(crate) struct Card {
    process: Child,
    options: Options,
}

impl Card {
    pub(crate) fn start(store: &str, recipe: &str) -> Self {
        Self::start_as(&Setup::default(), store, recipe)
    }

    pub(crate) fn start_as(setup: &Setup<'_>, store: &str, recipe: &str) -> Self {
        let name = format!("bench-{}", std::process::id());
        let mut command = Command::new(program());
        if !setup.cpus.is_empty() {
            command = Command::new("taskset");
            command.args(["--cpu-list", setup.cpus]).arg(program());
        }
        if !setup.emulator.is_empty() {
            command.env("DOCA_EMULATOR", setup.emulator);
        }
        command.args(["run", "--store", store, "--comch-name", &name]).args(setup.flags);
        match &setup.socket {
            Some(path) => command.args(["--attach", "socket", "--socket"]).arg(path),
            None => command.args(["--attach", "comch"]),
        };
        let mut process = command.env(AS_CARD, "1").env("RUST_LOG", "warn").spawn().expect("dpu-app starts");
        let options = Options {
            route: setup.socket.clone().map_or(Route::Comch { name }, Route::Socket),
            client: String::from("bench"),
            recipe: Some(recipe.parse().expect("a recipe")),
            ..Options::default()
        };
        let deadline = Instant::now() + Duration::from_secs(10);
        while Client::attach(&options, None).is_err() {
            assert!(Instant::now() < deadline, "dpu-app does not answer");
            assert!(process.try_wait().is_ok_and(|ended| ended.is_none()), "dpu-app did not start: see above");
            std::thread::sleep(Duration::from_millis(100));
        }
        Self { process, options }
    }

    pub(crate) fn store(&mut self, prefix: &Prefix) -> StoreReport {
        let file = KvFile::open(&prefix.path).expect("just written");
        let kv = file.kv("kv", None).expect("just written");
        let tokens = file.token_ids("tokens", None).expect("just written");
        let order = StoreOrder {
            file: &file,
            kv: &kv,
            identity: IDENTITY,
            tokens: &tokens,
            chunk_tokens: CHUNK_TOKENS,
            page_tokens: PAGE_TOKENS,
            deadline: Some(PATIENCE),
            patience: PATIENCE,
            again: false,
            importances: &[],
        };
        store(&mut self.options, &order, &mut |_, _| ()).expect("stored")
    }

    /// Fetches the whole prefix `repeat` times into the same memory. The first finds pages that nobody has touched yet,
    /// which a serving engine's cache does not have.
    pub(crate) fn fetch(&mut self, prefix: &Prefix, repeat: usize) -> FetchReport {
        let file = KvFile::open(&prefix.path).expect("just written");
        let tokens = file.token_ids("tokens", None).expect("just written");
        let order = FetchOrder {
            identity: IDENTITY,
            tokens: &tokens,
            shape: prefix.shape,
            chunk_tokens: CHUNK_TOKENS,
            page_tokens: PAGE_TOKENS,
            deadline: Some(PATIENCE),
            patience: PATIENCE,
            target: Target::Anonymous { arrangement: Arrangement::Vllm, order: PageOrder::Shuffled { seed: 3 } },
            repeat,
        };
        let report = fetch(&mut self.options, &order, &mut |_, _| ()).expect("fetched");
        assert_eq!(report.fetched, report.chunks, "all of it");
        report
    }

    /// How this card is met; for sessions of a bench's own.
    pub(crate) fn options(&self) -> &Options {
        &self.options
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

/// A session that fetches a whole prefix into shuffled pages, as often as it is asked.
#[derive(Debug)]
pub(crate) struct Fetching {
    client: Client,
    keys: Vec<ChunkKey>,
    pages: Vec<u32>,
}

impl Fetching {
    /// `memory` is that of the prefix; the host looks at its page for `spin` before it sleeps.
    pub(crate) fn open(card: &Card, prefix: &Prefix, memory: Memory, spin: Duration) -> Self {
        let keys = prefix.keys(card.options.recipe.expect("start names one"));
        let pages = prefix.pages();
        let options = Options { spin, ..card.options.clone() };
        Self { client: Client::attach(&options, Some(memory)).expect("it attached before"), keys, pages }
    }

    pub(crate) fn once(&mut self) -> Completion {
        let transfer = Transfer { deadline: Some(PATIENCE), ..Transfer::new(&self.keys, &self.pages) };
        let completion = answered(&mut self.client, |client| client.post_fetch(&transfer));
        assert_eq!(completion.chunks_done, self.keys.len(), "all of it");
        completion
    }

    /// Of its first chunk.
    pub(crate) fn key(&self) -> ChunkKey {
        self.keys[0]
    }

    pub(crate) fn close(self) {
        self.client.close(PATIENCE).expect("nothing is in flight");
    }
}

/// Posts a request and waits for its answer, which is a good one.
pub(crate) fn answered(
    client: &mut Client,
    post: impl FnOnce(&mut Client) -> Result<RequestId, host_ctl::Error>,
) -> Completion {
    let id = post(client).expect("room");
    client.wait(id, PATIENCE).and_then(Completion::ok).expect("an answer")
}

impl Drop for Card {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The last run of a fetch.
pub(crate) fn warm(report: &FetchReport) -> Amounts {
    *report.runs.last().expect("at least one")
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
