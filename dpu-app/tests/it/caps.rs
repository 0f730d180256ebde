//! What `dpu-app` makes of what a device can do: it says it, refuses what does not work with the way out, and takes
//! over in software only where that was allowed. The devices are the emulator's, without some of a card's engines.

use std::process::{Command, Output, Stdio};

use crate::rig::*;
use doca_emulator::Without;
use mailbox::Status;

const LACKS_INFLATE: Without = Without { inflate: true, lz4: false, dma: false };

fn dpu_app(emulator: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dpu-app"));
    command.args(arguments).env("DOCA_EMULATOR", emulator).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn a_reader_that_has_heard_enough_is_no_error() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let mut command = Command::new(env!("CARGO_BIN_EXE_dpu-app"));
    let listed =
        command.args(["limits", "--store", "dir:unused"]).stdout(writer).stderr(Stdio::piped()).output().unwrap();
    assert!(listed.status.success() && listed.stderr.is_empty(), "{}", text(&listed.stderr));
}

#[test]
fn devices_are_listed_with_all_that_was_asked() {
    let listed = dpu_app("profile=bf2,list_max=7,tasks_max=99,devices=2", &["devices"]);
    assert!(listed.status.success());
    let words = text(&listed.stdout);
    for line in [
        "0000:03:00.0 (mlx5_0)\n",
        "0000:03:00.1 (mlx5_1)\n",
        "  dma                2097152 bytes a task, lists of 7, 99 tasks a context\n",
        "  inflate_deflate    134217728 bytes a task, lists of 7, 99 tasks a context\n",
        "  inflate_lz4_block  no\n",
        "  memory             export and import\n",
        "  comch              server and client, messages of 4080 bytes\n",
    ] {
        assert!(words.contains(line), "expected {line:?} in:\n{words}");
    }
}

#[test]
fn devices_are_listed_for_scripts() {
    let listed = dpu_app("without=inflate+dma,role=host", &["devices", "--json"]);
    let object: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((&object["emulator"], &object["built_for"]), (&true.into(), &"emulator".into()));
    let device = &object["devices"][0];
    assert_eq!(device["pci_address"], "0000:03:00.0");
    assert!(device["dma"].is_null() && device["inflate_deflate"].is_null());
    assert_eq!(device["inflate_lz4_block"]["bytes_max"], 2 << 20);
    assert_eq!(device["inflate_lz4_block"]["tasks_max"], 8192);
    assert_eq!((&device["comch"]["server"], &device["exports_memory"]), (&false.into(), &true.into()));
}

#[test]
fn what_a_device_lacks_is_refused_with_the_way_out() {
    let cases: [(&str, &[&str], &[&str]); 9] = [
        ("devices=0", &[], &["DOCA sees no device", "DPU mode"]),
        ("", &["--device", "04:00.0"], &["no 04:00.0", "DOCA sees 0000:03:00.0 (mlx5_0)", "--device"]),
        ("without=dma", &[], &["0000:03:00.0 (mlx5_0) has no DMA engine"]),
        ("without=dma", &["--device", "mlx5_0", "--allow-software"], &["(mlx5_0) has no DMA engine", "--device"]),
        ("without=inflate", &[], &["no inflate_deflate engine", "--device", "--allow-software"]),
        ("profile=bf2", &["--recipe", "q5+lz4"], &["no inflate_lz4_block engine", "--allow-software"]),
        ("buf_bytes_max=4096", &[], &["dma engine takes 4096 bytes a task, --block-bytes is 524288: lower it"]),
        ("tasks_max=20", &["--slots", "8"], &["--sessions 27 needs 112 tasks of one context, which takes 20"]),
        (
            "tasks_max=40",
            &["--inflate-depth", "21", "--sessions", "4"],
            &["--inflate-depth 21 needs 42 tasks", "takes 40"],
        ),
    ];
    let home = tempfile::tempdir().unwrap();
    let store = format!("dir:{}", home.path().join("store").display());
    let socket = home.path().join("socket").display().to_string();
    for (emulator, more, words) in cases {
        let run = dpu_app(emulator, &[&["run", "--store", &store, "--socket", &socket], more].concat());
        let said = text(&run.stderr);
        assert_eq!(run.status.code(), Some(3), "{emulator}: {said}");
        let errors: Vec<&str> = said.lines().filter(|line| line.starts_with("dpu-app: ")).collect();
        assert_eq!(errors.len(), 1, "{emulator}: one line: {said}");
        for word in words {
            assert!(errors[0].contains(word), "{emulator}: expected {word:?} in: {}", errors[0]);
        }
    }
}

#[test]
fn a_start_on_the_emulator_is_loud_and_the_version_says_it() {
    let home = tempfile::tempdir().unwrap();
    let store = format!("dir:{}", home.path().join("store").display());
    let run = dpu_app("without=dma", &["run", "--store", &store]);
    let loud: Vec<String> =
        text(&run.stderr).lines().filter(|line| line.contains("EMULATOR")).map(str::to_owned).collect();
    assert!(loud.len() == 1 && loud[0].contains("WARN"), "one warning: {loud:?}");
    let version = text(&dpu_app("", &["--version"]).stdout);
    assert!(version.starts_with("dpu-app ") && version.ends_with(" (emulator)\n"), "{version}");
}

/// Stores with one recipe and fetches back; returns how many blocks software inflated.
fn there_and_back(emulator: doca_emulator::Config, allow_software: bool, recipe: &str) -> u64 {
    const CHUNKS: usize = 2;
    let card = Card::start_with(emulator, |config| config.allow_software = allow_software);
    let (keys, content) = stored(&card, recipe, 1, CHUNKS);
    let target = empty(host_ctl::Arrangement::Vllm, geometry(), CHUNKS);
    let mut host = card.attach(recipe, target.clone());
    let fetched = fetch(&mut host, &keys, &linear(CHUNKS));
    assert_eq!((fetched.status, fetched.chunks_done), (Status::Ok, CHUNKS));
    assert!(logical(&target, &linear(CHUNKS)) == content, "{recipe}: every bit");
    card.counter("blocks_in_software")
}

#[test]
fn software_inflates_where_it_was_allowed_and_the_engine_where_it_can() {
    let whole = doca_emulator::Config::default;
    assert_eq!(there_and_back(whole(), true, "lossless"), 0, "allowed, and not needed");
    let lacking = doca_emulator::Config { without: LACKS_INFLATE, ..whole() };
    assert!(there_and_back(lacking, true, "lossless") > 0);
    let bf2 = || doca_emulator::Config { profile: doca_emulator::Profile::Bf2, ..whole() };
    assert_eq!(there_and_back(bf2(), false, "lossless"), 0, "a BlueField-2 inflates Deflate");
    assert!(there_and_back(bf2(), true, "lossless+lz4") > 0, "and no LZ4");
}
