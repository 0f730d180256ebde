//! One parameter after the other away from the defaults of this machine: workers, slots, block sizes, queue depths.

use std::path::Path;

use bench::{Plot, PlotKind, Report, Sample, Series, Table};

use crate::REMEMBER;
use crate::rig::{Card, Fetching, Prefix, Setup};

/// A parameter: its flags, all of which get each value.
const PARAMETERS: [(&str, &[&str], &[usize]); 5] = [
    ("fetch workers", &["--fetch-workers"], &[1, 2, 3, 4]),
    ("dequantize workers", &["--dequantize-workers"], &[1, 2, 3, 4]),
    ("slots", &["--slots"], &[2, 4, 8, 16, 32]),
    ("block KiB", &["--block-bytes"], &[64, 128, 256, 512, 1024, 2048]),
    ("queue depth", &["--inflate-depth", "--dma-depth"], &[1, 2, 4, 8, 16]),
];
const RECIPE: &str = "q5";

pub(crate) fn sweep(report: &mut Report, prefix: &Prefix, dir: &Path, runs: usize) {
    let mut table = Table::new(
        &format!("Sweep: {RECIPE}, `dir:`, MB/s of restored bf16; one parameter away from the defaults"),
        &["parameter", "value", "remembering", "spread", "as it is", "spread", ""],
    );
    for (name, flags, values) in PARAMETERS {
        let mut samples = vec![[Sample::default(), Sample::default()]; values.len()];
        for _ in 0..runs {
            for (&value, samples) in values.iter().zip(&mut samples) {
                for (emulator, sample) in [REMEMBER, ""].into_iter().zip(samples) {
                    sample.push(fetch_mb_s(flags, value, emulator, prefix, dir));
                }
            }
        }
        for (value, [remembering, plain]) in values.iter().zip(&samples) {
            let mb_s = |sample: &Sample| format!("{:.0}", sample.median());
            let spread = |sample: &Sample| format!("{:.0} %", 100.0 * sample.spread());
            let is_default = if *value == default_of(name) { "default" } else { "" };
            let cells = [mb_s(remembering), spread(remembering), mb_s(plain), spread(plain)];
            table.row(&[&name, value, &cells[0], &cells[1], &cells[2], &cells[3], &is_default]);
        }
        report.plots.push(plot(name, values, &samples));
        eprintln!("sweep of {name}: done");
    }
    report.tables.push(table);
}

fn default_of(name: &str) -> usize {
    let config = dpu_app::Config::for_cores(std::thread::available_parallelism().map_or(1, usize::from));
    match name {
        "fetch workers" => config.fetch_workers,
        "dequantize workers" => config.dequantize_workers,
        "slots" => config.slots,
        "block KiB" => config.block_bytes >> 10,
        _ => config.inflate_depth,
    }
}

fn fetch_mb_s(flags: &[&str], value: usize, emulator: &str, prefix: &Prefix, dir: &Path) -> f64 {
    let is_block = flags[0] == "--block-bytes";
    let text = (if is_block { value << 10 } else { value }).to_string();
    let words: Vec<&str> = flags.iter().flat_map(|flag| [*flag, &text]).collect();
    // One for each block size, stored once.
    let store = dir.join(format!("sweep-{}", if is_block { value } else { default_of("block KiB") }));
    let url = format!("dir:{}?sync=never", store.display());
    let mut card = Card::start_as(&Setup { flags: &words, emulator, ..Setup::default() }, &url, RECIPE);
    card.store(prefix);
    let mut fetching = Fetching::open(&card, prefix, prefix.memory(), card.options().spin);
    (0..2).for_each(|_| drop(fetching.once()));
    let speed = |_| prefix.bytes() / 1e6 / fetching.once().elapsed.as_secs_f64();
    let speed = (0..3).map(speed).collect::<Sample>().median();
    fetching.close();
    speed
}

fn plot(name: &str, values: &[usize], samples: &[[Sample; 2]]) -> Plot {
    let series = |(at, name): (usize, &str)| Series {
        name: name.into(),
        points: values.iter().zip(samples).map(|(&value, samples)| (value as f64, samples[at].median())).collect(),
        labels: Vec::new(),
    };
    Plot {
        name: format!("path-{}", name.replace(' ', "-").to_lowercase()),
        title: format!("Throughput by {name} ({RECIPE})"),
        x: name.into(),
        y: "MB/s of restored bf16".into(),
        log_x: true,
        log_y: false,
        kind: PlotKind::Lines,
        series: ["remembering", "as it is"].into_iter().enumerate().map(series).collect(),
    }
}
