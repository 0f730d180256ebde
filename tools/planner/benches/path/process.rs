//! A process that runs the stages of a fetch (`kvlane_plan::trial`) into this process's pages when it is told to.
#![allow(dead_code, reason = "each bench takes what it needs")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use dpu_app::Config;
use kvlane_plan::trial::{self, Stage, TrialFetch, Way};

use host_ctl::Memory;

use crate::rig::{HEADS, LAYERS, Prefix};

const JOB: &str = "KVLANE_BENCH_TRIAL";

/// `Some` in such a process: what it is to do.
pub(crate) fn job() -> Option<String> {
    std::env::var(JOB).ok()
}

/// The process, as this one sees it.
#[derive(Debug)]
pub(crate) struct Bench {
    process: Child,
    answers: BufReader<ChildStdout>,
    _memory: Memory,
    _exports: Vec<doca::Export>,
}

impl Bench {
    pub(crate) fn start(url: &str, recipe: &str, prefix: &Prefix, emulator: &str) -> Self {
        let program = std::env::current_exe().expect("this program");
        Self::start_as(Command::new(program).env("DOCA_EMULATOR", emulator), url, recipe, prefix, prefix.memory())
    }

    /// Starts `command`, which ends with this program, and fetches into `memory`.
    pub(crate) fn start_as(command: &mut Command, url: &str, recipe: &str, prefix: &Prefix, memory: Memory) -> Self {
        let device = doca::Device::open(&doca::Selector::First).expect("the emulator");
        let export = |region: &host_ctl::RegisteredMapping| {
            doca::Export::new(&device, region.mapping.clone(), doca::Access::ReadWrite).expect("exported")
        };
        let exports: Vec<doca::Export> = memory.regions.iter().map(export).collect();
        let directory = prefix.path.parent().expect("a file in a directory");
        let mut process = command
            .env(JOB, format!("{url} {recipe} {} {}", prefix.shape.tokens, directory.display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("a second process");
        let mut input = process.stdin.as_ref().expect("piped");
        for export in &exports {
            let hex: String = export.blob().iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(input, "{hex}").expect("it listens");
        }
        writeln!(input).expect("it listens");
        let answers = BufReader::new(process.stdout.take().expect("piped"));
        Self { process, answers, _memory: memory, _exports: exports }
    }

    /// Fetches once; MB/s of restored bytes.
    pub(crate) fn fetch(&mut self, way: Way) -> f64 {
        let word = match way {
            Way::Together => "together",
            Way::InTurns => "in-turns",
            Way::Alone(stage) => stage.name(),
        };
        writeln!(self.process.stdin.as_ref().expect("piped"), "{word}").expect("it listens");
        let mut line = String::new();
        self.answers.read_line(&mut line).expect("it answers");
        line.trim().parse().expect("MB/s")
    }

    /// Lets it end by itself.
    pub(crate) fn finish(mut self) {
        drop(self.process.stdin.take());
        assert!(self.process.wait().is_ok_and(|status| status.success()), "it said why above");
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The second process: `job` is `URL RECIPE TOKENS DIRECTORY`; blobs, an empty line, then ways on standard input.
pub(crate) fn serve(job: &str) {
    let mut words = job.split(' ');
    let mut word = || words.next().expect("URL RECIPE TOKENS DIRECTORY");
    let (url, recipe) = (word().to_owned(), word().parse().expect("a recipe"));
    let tokens = word().parse().expect("tokens");
    let prefix = Prefix::made(Path::new(word()), LAYERS, HEADS, tokens);
    let mut lines = std::io::stdin().lines().map(|line| line.expect("text"));
    let blobs = lines.by_ref().take_while(|line| !line.is_empty()).map(|line| bytes(&line)).collect();
    let layout = prefix.memory().check().expect("the layout of the host").remove(0);
    let order = TrialFetch { keys: prefix.keys(recipe), layout, blobs, pages: prefix.pages() };
    std::mem::forget(prefix);
    let config =
        Config { store: url.into(), ..Config::for_cores(std::thread::available_parallelism().map_or(1, usize::from)) };
    let work = |trial: &mut trial::Trial<'_, '_>| {
        for line in lines {
            let elapsed = trial.fetch(way(&line));
            println!("{}", trial.bytes() as f64 / 1e6 / elapsed.as_secs_f64());
            std::io::stdout().flush().expect("somebody reads");
        }
    };
    trial::run(&config, &order, work).expect("a trial");
}

fn way(word: &str) -> Way {
    match word {
        "together" => Way::Together,
        "in-turns" => Way::InTurns,
        name => Way::Alone(Stage::ALL.into_iter().find(|stage| stage.name() == name).expect("a stage")),
    }
}

fn bytes(hex: &str) -> Vec<u8> {
    (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..2 * at + 2], 16).expect("hex")).collect()
}
