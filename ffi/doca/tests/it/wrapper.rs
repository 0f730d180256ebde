//! The wrapper over the emulator: areas come back from every operation, a stopped context restarts, nothing leaks.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::ptr::NonNull;
use std::sync::Arc;
use std::thread;

use doca::{
    Access, Area, Arena, Code, Completion, CompressedFormat, Context, ContextState, Depth, Device, Dmabuf, Export,
    Mapping, ProgressEngine, Remote, RemoteRun, Selector, Slab,
};

const AREA: usize = 64 << 10;

struct Rig {
    engine: ProgressEngine,
    device: Device,
    arena: Arena,
}

impl Rig {
    fn new() -> Self {
        let device = Device::open(&Selector::First).unwrap();
        let arena = Arena::allocate(&device, 64 * AREA).unwrap();
        Self { engine: ProgressEngine::new().unwrap(), device, arena }
    }

    fn area(&mut self, content: &[u8]) -> Area {
        let mut area = self.arena.carve(AREA).unwrap();
        area[..content.len()].copy_from_slice(content);
        area
    }

    fn decompress(&self, depth: usize) -> Context {
        let depth = Depth { operations: depth, tasks: depth };
        Context::decompress(&self.engine, &self.device, &[CompressedFormat::Deflate, CompressedFormat::Lz4Block], depth)
            .unwrap()
    }

    fn dma(&self, operations: usize, tasks: usize) -> Context {
        Context::dma(&self.engine, &self.device, Depth { operations, tasks }).unwrap()
    }

    /// What the card writes to the remote is in the memory behind it.
    fn write_arrives(&mut self, remote: &Remote, memory: &Mapping) {
        let mut context = self.dma(1, 4);
        let area = self.area(b"card data");
        context.write(0, area, &[RemoteRun { remote, offset: 100, local: 0, bytes: 9 }]).unwrap();
        assert!(self.next(&mut context).outcome.is_ok());
        let mut seen = [0; 9];
        memory.read(100, &mut seen);
        assert_eq!(&seen, b"card data");
    }

    fn next(&self, context: &mut Context) -> Completion {
        loop {
            if let Some(completion) = context.poll() {
                return completion;
            }
            let _ = self.engine.progress();
        }
    }
}

fn deflate(content: &[u8]) -> Vec<u8> {
    let mut compressor = libdeflater::Compressor::new(libdeflater::CompressionLvl::default());
    let mut out = vec![0; compressor.deflate_compress_bound(content.len())];
    let bytes = compressor.deflate_compress(content, &mut out).unwrap();
    out.truncate(bytes);
    out
}

fn text(seed: usize, bytes: usize) -> Vec<u8> {
    (0..bytes).map(|i| ((i * 31 + seed * 7) / 13 % 61) as u8).collect()
}

#[test]
fn a_block_inflates_and_both_areas_come_back() {
    let mut rig = Rig::new();
    let mut context = rig.decompress(4);
    let content = text(1, 50_000);
    let packed = deflate(&content);
    let (source, destination) = (rig.area(&packed), rig.area(&[]));
    context.inflate(7, CompressedFormat::Deflate, source, 0..packed.len(), destination).unwrap();
    assert_eq!(context.in_flight(), 1);
    let done = rig.next(&mut context);
    let outcome = done.outcome.unwrap();
    assert_eq!((done.ticket, outcome.bytes), (7, content.len()));
    assert_eq!(&done.destination.unwrap()[..content.len()], &content[..]);
    assert_eq!(&done.source.unwrap()[..packed.len()], &packed[..]);
    assert_eq!(context.in_flight(), 0);
}

#[test]
fn a_corrupt_block_stops_the_context_and_restart_brings_it_back() {
    let mut rig = Rig::new();
    let mut context = rig.decompress(8);
    let content = text(2, 40_000);
    let packed = deflate(&content);
    for ticket in 0..8_u64 {
        let mut source = rig.area(&packed);
        if ticket == 3 {
            source[..packed.len()].fill(0xff);
        }
        let destination = rig.area(&[]);
        context.inflate(ticket, CompressedFormat::Deflate, source, 0..packed.len(), destination).unwrap();
    }
    let mut failed = Vec::new();
    for _ in 0..8 {
        let done = rig.next(&mut context);
        assert!(done.source.is_some() && done.destination.is_some(), "areas come back from failures too");
        if done.outcome.is_err() {
            failed.push(done);
        }
    }
    assert!(failed.iter().any(|done| done.ticket == 3));
    assert_ne!(context.state(), ContextState::Running, "a failed task stops its context");
    context.restart().unwrap();
    assert_eq!(context.state(), ContextState::Running);
    for done in failed.into_iter().filter(|done| done.ticket != 3) {
        let (source, destination) = (done.source.unwrap(), done.destination.unwrap());
        context.inflate(done.ticket, CompressedFormat::Deflate, source, 0..packed.len(), destination).unwrap();
        let done = rig.next(&mut context);
        assert_eq!(done.outcome.unwrap().bytes, content.len(), "the innocent succeed afterwards");
    }
}

#[test]
fn a_full_context_refuses_and_gives_the_areas_back() {
    let mut rig = Rig::new();
    let mut context = rig.decompress(1);
    let packed = deflate(&text(3, 1000));
    let (a, b) = (rig.area(&packed), rig.area(&[]));
    context.inflate(0, CompressedFormat::Deflate, a, 0..packed.len(), b).unwrap();
    assert!(!context.has_room());
    let (a, b) = (rig.area(&packed), rig.area(&[]));
    let refused = context.inflate(1, CompressedFormat::Deflate, a, 0..packed.len(), b).unwrap_err();
    assert!(refused.error.is_back_pressure());
    assert!(refused.source.is_some() && refused.destination.is_some());
    rig.next(&mut context).outcome.unwrap();
    assert!(context.has_room());
}

#[test]
fn a_range_outside_its_area_is_refused() {
    let mut rig = Rig::new();
    let mut context = rig.decompress(1);
    let (a, b) = (rig.area(&[]), rig.area(&[]));
    let refused = context.inflate(0, CompressedFormat::Deflate, a, AREA - 1..AREA + 1, b).unwrap_err();
    assert_eq!(refused.error.code, Code::INVALID_VALUE);
    assert_eq!(context.in_flight(), 0);
}

#[test]
fn runs_scatter_and_gather_with_gaps_on_both_sides() {
    // More than one task's list takes.
    const RUNS: usize = if cfg!(miri) { 140 } else { 300 };
    let mut rig = Rig::new();
    let mapping = Arc::new(Mapping::anonymous(1 << 20).unwrap());
    let export = Export::new(&rig.device, Arc::clone(&mapping), Access::ReadWrite).unwrap();
    let remote = Remote::import(&rig.device, export.blob()).unwrap();
    assert_eq!(remote.bytes(), 1 << 20);
    // In no order on the remote side, with holes on the local side.
    let runs: Vec<RemoteRun<'_>> = (0..RUNS)
        .map(|i| RemoteRun {
            remote: &remote,
            offset: ((i * 7919) % 300 * 3000) as u64,
            local: i * 200,
            bytes: 100 + i % 50,
        })
        .collect();
    let mut context = rig.dma(2, 16);
    let content = text(4, RUNS * 200);
    let area = rig.area(&content);
    context.write(1, area, &runs).unwrap();
    let done = rig.next(&mut context);
    assert_eq!(done.outcome.unwrap().bytes, runs.iter().map(|run| run.bytes).sum::<usize>());
    for run in &runs {
        let mut there = vec![0; run.bytes];
        mapping.read(run.offset as usize, &mut there);
        assert_eq!(there, &content[run.local..run.local + run.bytes]);
    }
    let back = rig.area(&[]);
    context.read(2, back, &runs).unwrap();
    let done = rig.next(&mut context);
    done.outcome.unwrap();
    let back = done.destination.unwrap();
    for run in &runs {
        assert_eq!(back[run.local..run.local + run.bytes], content[run.local..run.local + run.bytes]);
    }
}

#[test]
fn threads_that_copy_the_same_bytes_do_not_race() {
    const BYTES: usize = 64;
    let mapping = Mapping::anonymous(4096).unwrap();
    thread::scope(|scope| {
        for filling in [1, 2] {
            let mapping = &mapping;
            scope.spawn(move || {
                for _ in 0..20 {
                    mapping.write(100, &[filling; BYTES]);
                    let mut seen = [0; BYTES];
                    mapping.read(100, &mut seen);
                    assert!(seen.iter().all(|byte| [1, 2].contains(byte)), "{seen:?}");
                }
            });
        }
    });
}

#[test]
fn lent_memory_is_reached_in_place_and_its_lender_goes_with_the_last_export() {
    let mut rig = Rig::new();
    let memory = Arc::new(Mapping::anonymous(4096).unwrap());
    let base = NonNull::new(memory.address() as *mut u8).unwrap();
    let lender = Box::new(Arc::clone(&memory));
    // SAFETY: the lender is the mapping itself, which stays where it is while it lives; nobody has a reference into it.
    let lent = Arc::new(unsafe { Mapping::lent(base, 4096, lender) }.unwrap());
    let export = Export::new(&rig.device, Arc::clone(&lent), Access::ReadWrite).unwrap();
    let remote = Remote::import(&rig.device, export.blob()).unwrap();
    rig.write_arrives(&remote, &memory);
    drop((remote, lent));
    assert_eq!(Arc::strong_count(&memory), 2, "the export needs it");
    drop(export);
    assert_eq!(Arc::strong_count(&memory), 1);
    // SAFETY: nothing is lent: a length of zero is refused.
    assert!(unsafe { Mapping::lent(base, 0, Box::new(())) }.is_err());
}

#[test]
fn a_dmabuf_that_is_refused_is_registered_by_address() {
    let mut rig = Rig::new();
    let memory = Arc::new(Mapping::anonymous(4096).unwrap());
    let base = NonNull::new(memory.address() as *mut u8).unwrap();
    let lender = Box::new(Arc::clone(&memory));
    let dmabuf = Dmabuf { fd: std::fs::File::open("/dev/null").unwrap().into(), offset: 0 };
    // SAFETY: the lender is the mapping itself; no dma-buf is behind the descriptor, and the emulator takes none.
    let lent = unsafe { Mapping::lent_dmabuf(base, 4096, dmabuf, lender) }.unwrap();
    let export = Export::new(&rig.device, Arc::new(lent), Access::ReadWrite).unwrap();
    let remote = Remote::import(&rig.device, export.blob()).unwrap();
    rig.write_arrives(&remote, &memory);
}

#[test]
fn a_run_past_the_end_of_remote_memory_is_refused_before_anything_is_sent() {
    let mut rig = Rig::new();
    let mapping = Arc::new(Mapping::anonymous(4096).unwrap());
    let export = Export::new(&rig.device, Arc::clone(&mapping), Access::ReadWrite).unwrap();
    let remote = Remote::import(&rig.device, export.blob()).unwrap();
    let mut context = rig.dma(1, 4);
    for (offset, bytes) in [(4096, 1), (4000, 97), (u64::MAX, 2)] {
        let area = rig.area(&[1; 100]);
        let refused = context.write(0, area, &[RemoteRun { remote: &remote, offset, local: 0, bytes }]).unwrap_err();
        assert_eq!(refused.error.code, Code::INVALID_VALUE, "{offset} {bytes}");
        assert!(refused.source.is_some());
    }
}

#[test]
fn read_only_memory_cannot_be_written_and_stays_readable() {
    let mut rig = Rig::new();
    let mapping = Arc::new(Mapping::anonymous(4096).unwrap());
    mapping.write(0, b"host data");
    let export = Export::new(&rig.device, Arc::clone(&mapping), Access::Read).unwrap();
    let remote = Remote::import(&rig.device, export.blob()).unwrap();
    let mut context = rig.dma(1, 4);
    let run = [RemoteRun { remote: &remote, offset: 0, local: 0, bytes: 9 }];
    let area = rig.area(b"card data");
    context.write(0, area, &run).unwrap();
    assert!(rig.next(&mut context).outcome.is_err());
    context.restart().unwrap();
    let area = rig.area(&[]);
    context.read(1, area, &run).unwrap();
    let done = rig.next(&mut context);
    done.outcome.unwrap();
    assert_eq!(&done.destination.unwrap()[..9], b"host data");
}

#[test]
fn garbage_is_not_an_export() {
    let rig = Rig::new();
    assert!(Remote::import(&rig.device, &[]).is_err());
    assert!(Remote::import(&rig.device, &[0x5a; 200]).is_err());
}

#[test]
fn a_context_dropped_with_work_in_flight_waits_for_it() {
    let mut rig = Rig::new();
    let packed = deflate(&text(5, 60_000));
    for _ in 0..20 {
        let mut context = rig.decompress(4);
        rig.arena = Arena::allocate(&rig.device, 64 * AREA).unwrap();
        for ticket in 0..4 {
            let (a, b) = (rig.area(&packed), rig.area(&[]));
            context.inflate(ticket, CompressedFormat::Deflate, a, 0..packed.len(), b).unwrap();
        }
        drop(context);
    }
}

#[test]
fn areas_of_one_region_never_overlap() {
    let rig = Rig::new();
    let mut arena = Arena::allocate(&rig.device, 1 << 20).unwrap();
    let mut areas: Vec<Area> = (1..100).filter_map(|bytes| arena.carve(bytes * 37)).collect();
    for (index, area) in areas.iter_mut().enumerate() {
        area.fill(index as u8);
    }
    for (index, area) in areas.iter().enumerate() {
        assert_eq!(area.as_ptr() as usize % doca::AREA_ALIGNMENT, 0);
        assert!(area.iter().all(|byte| *byte == index as u8));
    }
    assert!(arena.carve(usize::MAX).is_none());
}

#[test]
fn several_operations_read_one_run_of_a_slab_and_its_pages_stay_lent_until_the_last_loan_comes_home() {
    const PAGE: usize = 4096;
    let mut rig = Rig::new();
    let (content, at) = (text(9, 30_000), PAGE - 8);
    let packed = deflate(&content);
    let slab = Slab::allocate(&rig.device, packed.len() / PAGE + 3, PAGE).unwrap();
    slab.write(at, &packed);
    let mut context = rig.decompress(4);
    for ticket in 0..3 {
        let destination = rig.area(&[]);
        context
            .inflate(ticket, CompressedFormat::Deflate, slab.lend(at, packed.len()), 0..packed.len(), destination)
            .unwrap();
    }
    let write = || catch_unwind(AssertUnwindSafe(|| slab.write(PAGE, &[0])));
    for _ in 0..3 {
        assert!(write().is_err(), "an engine may be reading, or a loan is in the completion");
        let done = rig.next(&mut context);
        assert_eq!(done.outcome.unwrap().bytes, content.len());
        assert_eq!(&done.destination.unwrap()[..content.len()], &content[..]);
        assert_eq!(&done.source.unwrap()[..], &packed[..]);
    }
    // A transfer reads from it, too, and gives the loan back where it is refused.
    let mapping = Arc::new(Mapping::anonymous(PAGE).unwrap());
    let export = Export::new(&rig.device, Arc::clone(&mapping), Access::ReadWrite).unwrap();
    let remote = Remote::import(&rig.device, export.blob()).unwrap();
    let mut dma = rig.dma(1, 4);
    let run = [RemoteRun { remote: &remote, offset: 5, local: 3, bytes: 100 }];
    dma.write(0, slab.lend(at, packed.len()), &run).unwrap();
    let refused = dma.write(1, slab.lend(at, 200), &run).unwrap_err();
    assert!(refused.error.is_back_pressure() && refused.source.as_deref() == Some(&packed[..200]));
    drop(refused);
    rig.next(&mut dma).outcome.unwrap();
    let mut there = [0; 100];
    mapping.read(5, &mut there);
    assert_eq!(there, packed[3..103]);
    assert!(write().is_ok(), "nothing is lent any more");
}
