//! What the transforms cost and win on real KV: `cargo bench -p block --bench transforms -- [--only
//! study|ratio|kernel|codec|level] [--quick] [--element TYPE] [FILE...]` Each FILE is a safetensors file with a bf16
//! tensor `kv` of shape [.., layers, 2, tokens, heads, head size]; without one it is the repository's own, and without
//! `--only` nothing is measured: `kernel` and `codec` are reports of the page that `scripts/bench.sh` makes, the others
//! print tables for docs/measurements.md.

mod codecs;
mod data;
mod kernels;
mod levels;
mod place;
mod ratio;
mod speed;
mod study;

use block::ElementType;
use data::Set;
use speed::Turns;

const OWN_FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../testdata/decoder-kv.safetensors");

fn main() {
    let mut only = None;
    let mut turns = Turns { quick: false };
    let mut element = ElementType::Bf16;
    let mut files = Vec::new();
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--only" => only = arguments.next(),
            "--quick" => turns.quick = true,
            "--element" => {
                let name = arguments.next().unwrap_or_default();
                element = name.parse().expect("--element names an element type");
            }
            _ => files.push(argument),
        }
    }
    let Some(section) = only else {
        println!("transforms: nothing asked for with --only, nothing measured");
        return;
    };
    let command = format!("cargo bench -p block --bench transforms -- --only {section}");
    if files.is_empty() {
        files.push(OWN_FILE.into());
    }
    let sets: Vec<Set> = files.iter().map(|file| Set::load(file)).collect();
    let report = match section.as_str() {
        "study" => return study::print(&sets),
        "ratio" => return ratio::print(&sets.into_iter().map(|set| set.converted(element)).collect::<Vec<_>>()),
        "level" => return levels::print(&sets[0]),
        "kernel" => kernels::report(&sets[0], turns, &command),
        "codec" => codecs::report(&sets[0], turns, &command),
        _ => {
            eprintln!("transforms: --only {section}: it is one of study, ratio, kernel, codec, level");
            std::process::exit(2);
        }
    };
    report.publish().expect("KVLANE_BENCH_OUT names a directory that can be written");
}
