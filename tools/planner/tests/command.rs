//! The program itself: what it prints, and above all how it exits.

#[path = "../../../host-ctl/tests/it/small_file.rs"]
mod small_file;

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;
use small_file::kv_file;

fn plan(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kvlane-plan")).args(arguments).output().unwrap()
}

/// Exit code and standard error.
fn fails(arguments: &[&str]) -> (i32, String) {
    let output = plan(arguments);
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn prints(arguments: &[&str]) -> String {
    let output = plan(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_command_explains_itself_with_its_defaults() {
    for (command, word) in [
        (&["generate"][..], "SYNTHETIC"),
        (&["tiers", "simulate"], "[default: ours,lru,lfu,s3fifo,best]"),
        (&["tiers", "plot"], "host-ctl tiers show --json"),
        (&["simulate"], "[default: llama-3.1-8b]"),
        (&["calibrate"], "[default: lossless]"),
    ] {
        // Wrapped at the width of a terminal that is not there.
        let help = prints(&[command, &["--help"]].concat()).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains(word) && help.contains("--json"), "{command:?}: {help}");
    }
    assert!(prints(&["--help"]).contains("Exit codes: 0"));
}

#[test]
fn bad_arguments_and_bad_input_exit_with_2_and_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let file = kv_file(dir.path(), "f", 0);
    let file = file.to_str().unwrap();
    let none = dir.path().join("none");
    let none = none.to_str().unwrap();
    let text = dir.path().join("text");
    fs::write(&text, "no safetensors at all, but long enough").unwrap();
    let text = text.to_str().unwrap();
    for arguments in [
        &["sing"][..],
        &["generate", "--from", text, "--out", none],
        &["generate", "--from", none, "--out", none],
        &["generate", "--from", file, "--layers", "0", "--out", none],
        &["tiers", "simulate", "--tier", "dram=8G"],
        &["tiers", "simulate", "--tier", "dram", "--synthetic", "chat"],
        &["tiers", "plot", "--from", text, "--out", none],
        &["simulate", "--recipe", "q99"],
        &["simulate", "--block-bytes", "7"],
    ] {
        let output = plan(&[arguments, &["--json"]].concat());
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {error}");
        assert!(!error.is_empty() && !error.contains("panicked"), "{arguments:?}: {error}");
        let value: Value = serde_json::from_slice(&output.stdout).expect("one object");
        assert!(value["code"] == 2 && value["ok"] == false, "{value}");
        assert!(value["error"].as_str().is_some_and(|text| !text.is_empty()), "{value}");
    }
    assert!(!Path::new(none).exists());
    let (code, error) = fails(&["calibrate", "--device", "ff:00.0", "--seconds", "0.1"]);
    assert_eq!(code, 1, "{error}");
    assert!(error.starts_with("kvlane-plan: device: "), "{error}");
}

#[test]
fn generate_makes_a_file_that_can_be_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (from, out) = (kv_file(dir.path(), "f", 0), dir.path().join("big"));
    let (from, out) = (from.to_str().unwrap(), out.to_str().unwrap());
    let sizes = ["--layers", "3", "--heads", "1", "--head-size", "32", "--tokens", "40"];
    let text = prints(&[&["generate", "--from", from, "--out", out][..], &sizes].concat());
    assert!(text.contains("synthetic"), "{text}");
    let shape = host_ctl::KvFile::open(Path::new(out)).unwrap().kv("kv", None).unwrap().shape;
    assert_eq!((shape.tokens, shape.layers, shape.heads, shape.head_size), (40, 3, 1, 32));
    assert_eq!(shape.element.name(), "bf16");
}

#[test]
fn tiers_are_simulated_and_drawn() {
    let dir = tempfile::tempdir().unwrap();
    let svg = dir.path().join("hits.svg");
    let words = ["tiers", "simulate", "--synthetic", "chat", "--requests", "300", "--tier", "dram=200M", "--json"];
    let out = ["--chunk-bytes", "4M", "--plot", svg.to_str().unwrap()];
    let value: Value = serde_json::from_str(&prints(&[&words[..], &out].concat())).unwrap();
    assert_eq!((&value["command"], value["policies"].as_array().unwrap().len()), (&"tiers simulate".into(), 5));
    let drawn = fs::read_to_string(&svg).unwrap();
    assert!(["ours", "lru", "lfu", "s3fifo", "best"].iter().all(|name| drawn.contains(name)), "{drawn}");
    // What a card says of its tiers.
    let (status, svg) = (dir.path().join("tiers.json"), dir.path().join("scores.svg"));
    fs::write(&status, r#"{"ok":true,"tiers":[{"tier":"dram","scores":[0,1,3,0]},{"tier":"d<ir","scores":[]}]}"#)
        .unwrap();
    let text = prints(&["tiers", "plot", "--from", status.to_str().unwrap(), "--out", svg.to_str().unwrap()]);
    assert!(text.starts_with("drawn: 2 tiers"), "{text}");
    let drawn = fs::read_to_string(&svg).unwrap();
    assert!(drawn.contains("dram") && drawn.contains("d&lt;ir"), "{drawn}");
}

#[test]
fn a_card_is_simulated_by_the_model() {
    let value: Value = serde_json::from_str(&prints(&["simulate", "--request-chunks", "4", "--json"])).unwrap();
    assert!(value["gb_per_s"].as_f64().unwrap() > 1.0, "{value}");
    assert!(prints(&["simulate", "--request-chunks", "4"]).contains("measured on no card"));
}
