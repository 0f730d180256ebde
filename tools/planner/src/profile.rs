//! What the stages do on the machine that this runs on: engines by block size and depth, dequantization, copies, reads.
//! The data is made here (bell-shaped values, a scale per channel), encoded by the real encoder; where it runs over the
//! emulator, its engines are software and are measured as such. Init only: it allocates.

use std::collections::VecDeque;
use std::fs::File;
use std::hint::black_box;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use block::codec::Compressor;
use block::{ChunkKey, Codec, Geometry, Header, Plan, Recipe, TileOrder};
use doca::{Access, Area, Arena, Context, Depth, Device, Export, Mapping, ProgressEngine, Remote, RemoteRun, Source};

use dpu_app::SlotBytes;

use crate::models::CARD_EVENT_NS;
use crate::simulate::EngineModel;

/// Tasks in flight where an engine is to show all it can.
const DEEP: usize = 16;
/// A card that needs this long is not there.
const TIMEOUT: Duration = Duration::from_secs(5);

/// An engine with tasks of one size.
#[derive(Clone, Copy, Debug)]
pub struct EngineRate {
    pub written_bytes: f64,
    /// Time of a task that is alone, and between two completions of a full queue.
    pub alone_ns: f64,
    pub deep_ns: f64,
}

/// All stages with blocks of one size.
#[derive(Clone, Copy, Debug)]
pub struct BlockProfile {
    pub block_bytes: usize,
    pub wire_bytes: f64,
    pub codes_bytes: f64,
    pub tile_bytes: f64,
    pub inflate: EngineRate,
    /// `None`: this device writes to no memory of its own side; on a card the host's is another process's.
    pub dma: Option<EngineRate>,
    pub dequantize_ns_per_byte: f64,
    pub fetch_ns_per_byte: f64,
}

/// The machine.
#[derive(Clone, Debug)]
pub struct MachineProfile {
    pub cores: usize,
    /// Engines are software.
    pub emulated: bool,
    pub device: String,
    pub blocks: Vec<BlockProfile>,
    /// A copy by all cores at once: each byte read and written.
    pub memory_ns_per_byte: f64,
    /// An empty task from submit to its completion: what the engine thread does for each event.
    pub event_ns: f64,
}

/// What is profiled.
#[derive(Clone, Copy, Debug)]
pub struct ProfileSettings<'a> {
    pub selector: &'a doca::Selector,
    pub geometry: Geometry,
    pub recipe: Recipe,
    pub block_sizes: &'a [usize],
    /// Where a file of blocks is written and read again.
    pub directory: &'a Path,
    /// Time for each figure.
    pub time: Duration,
}

/// Why there is no profile.
#[derive(Debug)]
pub enum ProfileError {
    Device(doca::Error),
    Geometry(block::PlanError),
    Encode(block::EncodeError),
    Codec(block::codec::CodecError),
    Recipe,
    File(std::io::Error),
}

impl std::fmt::Display for ProfileError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Device(error) => write!(f, "device: {error}: `dpu-app devices` lists what there is"),
            Self::Geometry(error) => write!(f, "no block of this size fits the model: {error}"),
            Self::Encode(error) => write!(f, "encoding the blocks to measure with: {error}"),
            Self::Codec(error) => write!(f, "the encoder: {error}"),
            Self::Recipe => {
                write!(f, "the recipe leaves the inflate engine out (+raw): calibrate with one that inflates")
            }
            Self::File(error) => write!(f, "the file of blocks: {error}: is there room in --store's directory?"),
        }
    }
}

impl std::error::Error for ProfileError {}

impl From<doca::Error> for ProfileError {
    fn from(error: doca::Error) -> Self {
        Self::Device(error)
    }
}

/// Measures everything.
///
/// # Errors
/// What the device, the geometry or the directory refused.
pub fn measure(order: &ProfileSettings<'_>) -> Result<MachineProfile, ProfileError> {
    let device = Device::open(order.selector)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let blocks = order.block_sizes.iter().map(|&bytes| block(&device, order, bytes)).collect::<Result<Vec<_>, _>>()?;
    Ok(MachineProfile {
        cores,
        emulated: doca::version::is_emulator(),
        device: device.info().name(),
        blocks,
        memory_ns_per_byte: memory_ns_per_byte(cores, order.time),
        event_ns: event_ns(&device, order.time)?,
    })
}

/// Encoded blocks in registered memory, and the areas that they go through.
struct Bench {
    engine: ProgressEngine,
    wires: Vec<(Area, Header)>,
    codes: Vec<Area>,
    tiles: Vec<Area>,
}

impl Bench {
    fn new(
        device: &Device,
        order: &ProfileSettings<'_>,
        plan: &Plan,
        block_bytes: usize,
    ) -> Result<Self, ProfileError> {
        let sizes = SlotBytes::for_blocks(block_bytes);
        let mut arena = Arena::allocate(device, DEEP * sizes.total())?;
        let mut compressor =
            Compressor::new(block::codec::DEFLATE_LEVEL_DEFAULT, sizes.codes).map_err(ProfileError::Codec)?;
        let part = plan.largest(&order.geometry);
        let mut tile = vec![0; part.tile_bytes(&order.geometry)];
        bell_shaped(&mut tile, order.geometry);
        let key = ChunkKey::new([0; block::KEY_BYTES]);
        let (mut wires, mut codes, mut tiles) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..DEEP {
            let mut carve = |bytes| arena.carve(bytes).expect("sized for it");
            let (mut wire, mut area, tile_area) = (carve(sizes.wire), carve(sizes.codes), carve(sizes.tile));
            block::encode_tile(
                order.recipe,
                &order.geometry,
                &key,
                0,
                &part,
                TileOrder::TokenMajor,
                &tile,
                &mut area,
                &mut wire,
                &mut compressor,
            )
            .map_err(ProfileError::Encode)?;
            let header = Header::parse(&wire).expect("just written");
            if header.codec == Codec::Raw {
                return Err(ProfileError::Recipe);
            }
            wires.push((wire, header));
            codes.push(area);
            tiles.push(tile_area);
        }
        Ok(Self { engine: ProgressEngine::new()?, wires, codes, tiles })
    }

    /// Inflates with so many tasks in flight; ns a task.
    fn inflate_ns(&mut self, context: &mut Context, depth: usize, time: Duration) -> Result<f64, ProfileError> {
        let mut free: VecDeque<_> = self.wires.drain(..).zip(self.codes.drain(..)).collect();
        let mut held: Vec<Option<Header>> = vec![None; DEEP];
        let (mut done, mut since) = (0, Instant::now());
        let began = since;
        let mut warm = false;
        while !warm || since.elapsed() < time || done == 0 {
            if !warm && began.elapsed() > time / 4 {
                (warm, since, done) = (true, Instant::now(), 0);
            }
            while context.in_flight() < depth {
                let Some(((wire, header), codes)) = free.pop_front() else { break };
                let ticket = held.iter().position(Option::is_none).expect("a place per area");
                held[ticket] = Some(header);
                let codec = if header.codec == Codec::Lz4 {
                    doca::CompressedFormat::Lz4Block
                } else {
                    doca::CompressedFormat::Deflate
                };
                context
                    .inflate(ticket as u64, codec, wire, header.payload_range(), codes)
                    .map_err(|refused| refused.error)?;
            }
            self.wait(context)?;
            while let Some(completion) = context.poll() {
                completion.outcome?;
                done += 1;
                take_back(completion, &mut held, &mut free);
            }
        }
        let ns = since.elapsed().as_nanos() as f64 / f64::from(done);
        while context.in_flight() > 0 {
            self.wait(context)?;
            while let Some(completion) = context.poll() {
                take_back(completion, &mut held, &mut free);
            }
        }
        (self.wires, self.codes) = free.into_iter().unzip();
        Ok(ns)
    }

    /// Waits until the engine has something to say.
    fn wait(&self, context: &Context) -> Result<(), doca::Error> {
        let since = Instant::now();
        while !self.engine.progress() {
            if context.in_flight() == 0 {
                return Ok(());
            }
            if since.elapsed() > TIMEOUT {
                return Err(doca::Error { call: "doca_pe_progress", code: doca::Code(9) });
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Writes tiles to memory of another mapping with so many tasks in flight; ns a task.
    fn write_ns(
        &mut self,
        context: &mut Context,
        remote: &Remote,
        bytes: usize,
        depth: usize,
        time: Duration,
    ) -> Result<f64, doca::Error> {
        let (since, mut done) = (Instant::now(), 0_u32);
        while since.elapsed() < time || done == 0 {
            while context.in_flight() < depth {
                let Some(tile) = self.tiles.pop() else { break };
                let run = RemoteRun { remote, offset: 0, local: 0, bytes };
                context.write(0, tile, &[run]).map_err(|refused| refused.error)?;
            }
            self.wait(context)?;
            while let Some(completion) = context.poll() {
                completion.outcome?;
                self.tiles.extend(completion.area());
                done += 1;
            }
        }
        let ns = since.elapsed().as_nanos() as f64 / f64::from(done);
        while context.in_flight() > 0 {
            self.wait(context)?;
            while let Some(completion) = context.poll() {
                self.tiles.extend(completion.area());
            }
        }
        Ok(ns)
    }
}

fn take_back(completion: doca::Completion, held: &mut [Option<Header>], free: &mut VecDeque<((Area, Header), Area)>) {
    let header = held[completion.ticket as usize].take().expect("it was submitted");
    let (wire, codes) =
        (completion.source.and_then(Source::own).expect("its wire"), completion.destination.expect("its codes"));
    free.push_back(((wire, header), codes));
}

fn block(device: &Device, order: &ProfileSettings<'_>, block_bytes: usize) -> Result<BlockProfile, ProfileError> {
    let (geometry, time) = (order.geometry, order.time);
    let plan = Plan::choose(&geometry, block_bytes / geometry.element.bytes()).map_err(ProfileError::Geometry)?;
    let mut bench = Bench::new(device, order, &plan, block_bytes)?;
    let header = bench.wires[0].1;
    let (wire_bytes, codes_bytes) = (header.wire_bytes(), header.codes_bytes as usize);
    let tile_bytes = header.part.tile_bytes(&geometry);
    let depth = Depth { operations: DEEP, tasks: DEEP };
    let codecs: &[doca::CompressedFormat] = match header.codec {
        Codec::Lz4 => &[doca::CompressedFormat::Deflate, doca::CompressedFormat::Lz4Block],
        _ => &[doca::CompressedFormat::Deflate],
    };
    let inflate = {
        let mut context = Context::decompress(&bench.engine, device, codecs, depth)?;
        let alone_ns = bench.inflate_ns(&mut context, 1, time)?;
        let deep_ns = bench.inflate_ns(&mut context, DEEP, time)?;
        EngineRate { written_bytes: codes_bytes as f64, alone_ns, deep_ns }
    };
    let dma = dma_rate(device, &mut bench, tile_bytes, time).ok();
    let dequantize_ns = dequantize_ns(&mut bench, time);
    Ok(BlockProfile {
        block_bytes,
        wire_bytes: wire_bytes as f64,
        codes_bytes: codes_bytes as f64,
        tile_bytes: tile_bytes as f64,
        inflate,
        dma,
        dequantize_ns_per_byte: dequantize_ns / tile_bytes as f64,
        fetch_ns_per_byte: read_ns(order, &bench, wire_bytes).map_err(ProfileError::File)? / wire_bytes as f64,
    })
}

fn dma_rate(device: &Device, bench: &mut Bench, bytes: usize, time: Duration) -> Result<EngineRate, doca::Error> {
    let mut context = Context::dma(&bench.engine, device, Depth { operations: DEEP, tasks: DEEP })?;
    let mapping = Arc::new(Mapping::anonymous(bytes)?);
    let export = Export::new(device, mapping, Access::ReadWrite)?;
    let remote = Remote::import(device, export.blob())?;
    bench.write_ns(&mut context, &remote, bytes, DEEP, time / 4)?;
    let alone_ns = bench.write_ns(&mut context, &remote, bytes, 1, time)?;
    let deep_ns = bench.write_ns(&mut context, &remote, bytes, DEEP, time)?;
    Ok(EngineRate { written_bytes: bytes as f64, alone_ns, deep_ns })
}

/// One core, over blocks that take turns, so that caches are what they are in a fetch.
fn dequantize_ns(bench: &mut Bench, time: Duration) -> f64 {
    for ((wire, header), codes) in bench.wires.iter().zip(&mut bench.codes) {
        let codes = &mut codes[..header.codes_bytes as usize];
        block::codec::Decompressor::new().codes(header, wire, codes).expect("just encoded");
    }
    let bench = &mut *bench;
    let mut places = bench.wires.iter().zip(&bench.codes).zip(&mut bench.tiles).collect::<Vec<_>>();
    let mut next = 0;
    timed(time, || {
        let (((wire, header), codes), tile) = &mut places[next % DEEP];
        next += 1;
        let scales = &wire[header.scales_range()];
        let tile = &mut tile[..header.part.tile_bytes(&header.geometry)];
        block::restore(header, scales, &codes[..header.codes_bytes as usize], TileOrder::TokenMajor, tile)
            .expect("just encoded");
    })
}

/// Blocks read from a file one after the other, as a fetch worker of a `dir:` store does; the page cache has them.
fn read_ns(order: &ProfileSettings<'_>, bench: &Bench, wire_bytes: usize) -> std::io::Result<f64> {
    const BLOCKS: usize = 64;
    let path = order.directory.join(format!(".calibrate-{}", std::process::id()));
    let mut file = File::options().create_new(true).read(true).write(true).open(&path)?;
    std::fs::remove_file(&path)?;
    for _ in 0..BLOCKS {
        file.write_all(&bench.wires[0].0[..wire_bytes])?;
    }
    let mut into = vec![0; wire_bytes];
    let (mut next, mut result) = (0, Ok(()));
    let ns = timed(order.time, || {
        next += 1;
        if let Err(error) = file.read_exact_at(&mut into, ((next % BLOCKS) * wire_bytes) as u64) {
            result = Err(error);
        }
    });
    result.map(|()| ns)
}

/// ns of one call, after a quarter of the time for warming up.
fn timed(time: Duration, mut work: impl FnMut()) -> f64 {
    let mut run = |time| {
        let (since, mut calls) = (Instant::now(), 0_u32);
        while calls == 0 || since.elapsed() < time {
            work();
            calls += 1;
        }
        since.elapsed().as_nanos() as f64 / f64::from(calls)
    };
    run(time / 4);
    run(time)
}

/// All cores copy buffers larger than their caches.
fn memory_ns_per_byte(cores: usize, time: Duration) -> f64 {
    const BYTES: usize = 32 << 20;
    let one = move || {
        let (from, mut to) = (vec![1_u8; BYTES], vec![0_u8; BYTES]);
        timed(time, || {
            to.copy_from_slice(&from);
            black_box(&mut to);
        })
    };
    let threads: Vec<_> = (0..cores).map(|_| std::thread::spawn(one)).collect();
    let rates = threads.into_iter().map(|thread| 2.0 * BYTES as f64 / thread.join().expect("panic is abort"));
    1.0 / rates.sum::<f64>()
}

/// What a task costs the thread that submits and completes it, seen with the smallest copies; assumed where the device
/// writes to no memory of its own side.
fn event_ns(device: &Device, time: Duration) -> Result<f64, doca::Error> {
    let engine = ProgressEngine::new()?;
    let mut arena = Arena::allocate(device, 4096)?;
    let mut area = Some(arena.carve(64).expect("sized for it"));
    let Ok(mut context) = Context::dma(&engine, device, Depth { operations: 1, tasks: 1 }) else {
        return Ok(CARD_EVENT_NS);
    };
    let imported = Mapping::anonymous(4096).and_then(|mapping| {
        let export = Export::new(device, Arc::new(mapping), Access::ReadWrite)?;
        let remote = Remote::import(device, export.blob())?;
        Ok((export, remote))
    });
    let Ok((_export, remote)) = imported else { return Ok(CARD_EVENT_NS) };
    let mut result = Ok(());
    let ns = timed(time / 4, || {
        let Some(source) = area.take() else { return };
        let run = RemoteRun { remote: &remote, offset: 0, local: 0, bytes: 64 };
        if let Err(refused) = context.write(0, source, &[run]) {
            result = Err(refused.error);
            return;
        }
        while area.is_none() {
            let _ = engine.progress();
            if let Some(completion) = context.poll() {
                area = completion.area();
            }
        }
    });
    result.map(|()| ns)
}

/// Sums of four even draws: bell-shaped, with a scale for each channel.
fn bell_shaped(tile: &mut [u8], geometry: Geometry) {
    let row = geometry.row_elements();
    let bytes = geometry.element.bytes();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for (index, element) in tile.chunks_exact_mut(bytes).enumerate() {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let sum: u16 = (0..4).map(|n| (state >> (24 + 8 * n)) as u8 as u16).sum();
        let channel = 0.25 + (index % row % 7) as f32 / 4.0;
        let value = (f32::from(sum) - 510.0) / 148.0 * channel;
        match geometry.element {
            block::ElementType::F32 => element.copy_from_slice(&value.to_le_bytes()),
            block::ElementType::Bf16 => element.copy_from_slice(&value.to_le_bytes()[2..]),
            // Half floats as bits would not be bell-shaped; the exponent is moved by hand.
            block::ElementType::F16 => {
                let bits = value.to_bits();
                let exponent = ((bits >> 23) & 0xff).saturating_sub(112).min(30);
                let half = (bits >> 16 & 0x8000) | exponent << 10 | (bits >> 13 & 0x3ff);
                element.copy_from_slice(&(half as u16).to_le_bytes());
            }
            // Bytes with a bell-shaped magnitude.
            _ => element.fill(sum as u8),
        }
    }
}

/// The emulator's timing model through two sizes: a task's fixed part and its bytes, and how many are under way.
#[must_use]
pub fn engine_model(rates: &[EngineRate], emulated: bool, threads: usize) -> EngineModel {
    let (first, last) = (rates.first().expect("one size at least"), rates.last().expect("one size at least"));
    let span = last.written_bytes - first.written_bytes;
    let slope = if span > 0.0 { (last.deep_ns - first.deep_ns) / span } else { 0.0 };
    let ns_per_byte = slope.clamp(0.0, last.deep_ns / last.written_bytes);
    let task_ns = (first.deep_ns - first.written_bytes * ns_per_byte).max(0.0);
    if emulated {
        // All of it is a core's time; nothing of it is a card's.
        let software_ns_per_byte = last.alone_ns / last.written_bytes;
        return EngineModel { task_ns: 0.0, ns_per_byte: 0.0, depth: 1.0, software_ns_per_byte, threads };
    }
    let depth = (last.alone_ns / last.deep_ns).max(1.0);
    EngineModel { task_ns, ns_per_byte, depth, software_ns_per_byte: 0.0, threads: 0 }
}
