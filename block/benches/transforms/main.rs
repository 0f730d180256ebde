//! What the transforms cost and win on real KV, as markdown tables for docs/measurements.md:
//! `cargo bench -p block --bench transforms -- [--only study|ratio|kernel|codec] FILE...`
//! Each FILE is a safetensors file with a bf16 tensor `kv` of shape [.., layers, 2, tokens, heads, head size].

mod data;
mod ratio;
mod speed;
mod study;

fn main() {
    let mut only = None;
    let mut files = Vec::new();
    let mut arguments = std::env::args().skip(1).filter(|a| a != "--bench");
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--only" => only = arguments.next(),
            _ => files.push(argument),
        }
    }
    if files.is_empty() {
        println!("transforms: no files named, nothing measured");
        return;
    }
    let sets: Vec<data::Set> = files.iter().map(|file| data::Set::load(file)).collect();
    let wanted = |section: &str| only.as_deref().is_none_or(|o| o == section);
    if wanted("study") {
        study::print(&sets);
    }
    if wanted("ratio") {
        ratio::print(&sets);
    }
    if wanted("kernel") {
        speed::print_kernels(&sets[0]);
    }
    if wanted("codec") {
        speed::print_codecs(&sets[0]);
    }
}
