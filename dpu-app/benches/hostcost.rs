//! `cargo bench -p dpu-app --bench hostcost -- [--quick]`
//!
//! What a fetch costs the host: CPU time of the process that posts and waits, its sleeps, and the KV bytes that it
//! touches, for each GB restored. The host sleeps between completions, as a serving engine's connector does.
//!
//! **No KV byte**: the host's pages of the KV cache are made inaccessible for the time of the fetches (the card writes
//! by its own way), so that a touch would end this process with a signal.
#![allow(unsafe_code)]

use std::num::NonZeroUsize;
use std::ptr::NonNull;

use bench::{Report, Sample, Table};
use host_ctl::Memory;
use nix::sys::mman::{ProtFlags, mprotect};
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rig::{Card, Fetching, LAYERS, Prefix, seal};

mod rig;

const RECIPES: [&str; 3] = ["lossless", "q5", "q8+raw"];

fn main() {
    let quick = std::env::args().any(|word| word == "--quick");
    let (tokens, rounds) = if quick { (512, 2) } else { (8192, 7) };
    let dir = std::env::temp_dir().join(format!("kvlane-bench-hostcost-{}", std::process::id()));
    let prefix = Prefix::of(&dir, LAYERS, tokens);
    let title = "Host cost: what a fetch takes from the host";
    let mut report = Report::new("hostcost", title, "cargo bench -p dpu-app --bench hostcost");
    report.notes.push(
        "One request for the whole prefix of an 8B-class model; `dir:` store in the page cache. The pages of the KV cache are \
         PROT_NONE in the host process meanwhile: that it lives to tell is the proof that it touched no KV byte."
            .into(),
    );
    let columns = ["recipe", "restored GB", "fetches", "host CPU ms / GB", "spread", "sleeps / GB", "KV bytes touched"];
    let mut table = Table::new("", &columns);
    for recipe in RECIPES {
        let store = format!("dir:{}?sync=never", dir.join(format!("store-{recipe}")).display());
        let mut card = Card::start(&store, recipe);
        card.store(&prefix);
        let (cpu, sleeps, gb) = fetches(&card, &prefix, rounds);
        let spread = format!("{:.0} %", 100.0 * cpu.spread());
        let (cpu, sleeps) = (format!("{:.2}", cpu.median()), format!("{:.0}", sleeps.median()));
        table.row(&[&recipe, &format!("{gb:.2}"), &rounds, &cpu, &spread, &sleeps, &0]);
    }
    report.tables.push(table);
    let _ = std::fs::remove_dir_all(&dir);
    report.publish().expect("KVLANE_BENCH_OUT is a directory");
}

/// CPU ms and sleeps for each GB, and GB of one fetch.
fn fetches(card: &Card, prefix: &Prefix, rounds: usize) -> (Sample, Sample, f64) {
    let mut memory = prefix.memory();
    seal(&mut memory);
    let mut fetching = Fetching::open(card, prefix, memory.clone(), card.options().spin);
    let mut once = || fetching.once().restored_bytes as f64 / 1e9;
    // The card's way to the pages is there after this.
    let gb = once();
    protect(&memory, ProtFlags::PROT_NONE);
    let (mut cpu, mut sleeps) = (Sample::default(), Sample::default());
    for _ in 0..rounds {
        let before = getrusage(UsageWho::RUSAGE_SELF).expect("it always answers");
        once();
        let after = getrusage(UsageWho::RUSAGE_SELF).expect("it always answers");
        cpu.push((cpu_ms(&after) - cpu_ms(&before)) / gb);
        sleeps.push((after.voluntary_context_switches() - before.voluntary_context_switches()) as f64 / gb);
    }
    protect(&memory, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE);
    fetching.close();
    (cpu, sleeps, gb)
}

fn cpu_ms(usage: &Usage) -> f64 {
    (usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as f64 / 1e3
}

fn protect(memory: &Memory, access: ProtFlags) {
    for region in &memory.regions {
        let address = NonZeroUsize::new(region.mapping.address() as usize).expect("mapped");
        let first = NonNull::new(std::ptr::with_exposed_provenance_mut(address.get())).expect("not zero");
        // SAFETY: whole pages of a mapping that `memory` keeps; nobody has a reference into it, and its owner only
        // hands addresses to the card. Should this process read there all the same, it ends: that is what is measured.
        unsafe { mprotect(first, region.mapping.bytes(), access) }.expect("pages of our own");
    }
}
