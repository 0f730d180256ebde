//! The program itself: what it prints, and above all how it exits.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use mailbox::attach::Refuse;
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::Value;

use crate::fake::{FakeCard, Manner};
use crate::small_file::kv_file;

fn host_ctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_host-ctl")).args(arguments).env_remove("KVLANE_SOCKET").output().unwrap()
}

/// Exit code and standard error.
fn fails(arguments: &[&str]) -> (i32, String) {
    let output = host_ctl(arguments);
    (output.status.code().unwrap(), String::from_utf8(output.stderr).unwrap())
}

fn prints(arguments: &[&str]) -> String {
    let output = host_ctl(arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn every_command_explains_itself_with_its_defaults() {
    for (command, word) in [
        ("store", "[default: 256]"),
        ("fetch", "[default: vllm]"),
        ("lookup", "KVLANE_SOCKET"),
        ("inspect", "--key"),
        ("status", "[default: kvlane]"),
        ("ping", "[default: 10]"),
        ("drain", "--json"),
        ("stop", "--timeout-ms"),
    ] {
        // Wrapped at the width of a terminal that is not there.
        let help = prints(&[command, "--help"]).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(help.contains(word), "{command}: {help}");
        assert!(help.contains("--json") && help.contains("--quiet"), "{command}");
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
        &["store"],
        &["store", file],
        &["store", file, "--model", "m", "--recipe", "q99"],
        &["store", file, "--model", "m", "--tokens", "poem:x"],
        &["store", file, "--model", "m", "--rank", "2", "--ranks", "2"],
        &["store", file, "--model", "", "--chunk-tokens", "16"],
        &["store", file, "--model", " ", "--chunk-tokens", "16"],
        &["fetch", "--model", "", "--like", file, "--chunk-tokens", "16", "--anonymous"],
        &["lookup", "--model", "", "--like", file, "--chunk-tokens", "16"],
        &["importance", "2", "--model", "", "--like", file, "--chunk-tokens", "16"],
        &["store", file, "--model", "m"],
        &["store", file, "--model", "m", "--chunk-tokens", "16", "--page-tokens", "5"],
        &["store", file, "--model", "m", "--chunk-tokens", "16", "--tensor", "flat"],
        &["store", file, "--model", "m", "--chunk-tokens", "16", "--tokens", "range:0..65"],
        &["store", none, "--model", "m"],
        &["store", text, "--model", "m"],
        &["fetch", "--model", "m", "--like", file],
        &["fetch", "--model", "m", "--geometry", "2x2x8:bf16", "--out", none],
        &["fetch", "--model", "m", "--geometry", "2x2x8:bf16", "--tokens", "tensor:tokens", "--out", none],
        &["fetch", "--model", "m", "--geometry", "2x2x8:fp4", "--tokens", "range:0..256", "--out", none],
        &["fetch", "--model", "m", "--like", file, "--geometry", "2x2x8:bf16", "--out", none],
        &["fetch", "--model", "m", "--like", file, "--out", none, "--anonymous"],
        &["fetch", "--model", "m", "--like", file, "--out", none, "--layout", "vllm"],
        &["fetch", "--model", "m", "--like", file, "--out", none, "--repeat", "0"],
        &["lookup", "--model", "m", "--tokens", "range:0..256"],
        &["inspect", none],
        &["inspect", text],
        &["inspect", file, "--key", "0123"],
        &["inspect", &format!("dir:{}", dir.path().display())],
        &["status", "--watch", "0"],
    ] {
        let (code, error) = fails(arguments);
        assert_eq!(code, 2, "{arguments:?}: {error}");
        assert!(!error.is_empty() && !error.contains("panicked"), "{arguments:?}: {error}");
    }
    assert!(!Path::new(none).exists());
    let (_, error) = fails(&["store", file, "--model", "m", "--tensor", "keys"]);
    assert_eq!(error.lines().count(), 1, "{error}");
    assert!(error.starts_with("host-ctl: no tensor \"keys\""), "{error}");
    assert!(error.contains("it has flat, kv, tokens: choose with --tensor"), "{error}");
}

#[test]
fn a_card_that_is_not_there_or_refuses_exits_with_4() {
    let dir = tempfile::tempdir().unwrap();
    let file = kv_file(dir.path(), "f", 0);
    let file = file.to_str().unwrap();
    let socket = dir.path().join("none.sock");
    let socket = socket.to_str().unwrap();
    for command in [
        &["ping"][..],
        &["status", "--json"],
        &["drain"],
        &["stop"],
        &["lookup", "--model", "m", "--like", file, "--chunk-tokens", "16"],
        &["store", file, "--model", "m", "--chunk-tokens", "16"],
        &["fetch", "--model", "m", "--like", file, "--chunk-tokens", "16", "--anonymous"],
    ] {
        let (code, error) = fails(&[command, &["--socket", socket, "--timeout-ms", "60"]].concat());
        assert_eq!(code, 4, "{command:?}: {error}");
        assert!(error.contains("is dpu-app running?"), "{error}");
    }
    let output = Command::new(env!("CARGO_BIN_EXE_host-ctl"))
        .args(["ping", "--timeout-ms", "60"])
        .env("KVLANE_SOCKET", socket)
        .output()
        .unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains(socket), "the environment names the socket");

    let card = FakeCard::start(Manner { refuses: Some(Refuse::version(1)), ..Manner::default() });
    let (code, error) = fails(&["ping", "--socket", card.socket().to_str().unwrap()]);
    assert_eq!(code, 4, "{error}");
    assert!(error.contains("refuses"), "{error}");
    let mute = FakeCard::start(Manner { mute: true, ..Manner::default() });
    let (code, error) = fails(&["ping", "--timeout-ms", "100", "--socket", mute.socket().to_str().unwrap()]);
    assert_eq!(code, 4, "{error}");
}

#[test]
fn a_card_that_comch_does_not_reach_is_named_with_what_to_do() {
    let name = format!("nobody-{}", std::process::id());
    let says = |emulator: &str, arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_host-ctl"));
        let output = command
            .args(arguments)
            .args(["--timeout-ms", "200"])
            .env("DOCA_EMULATOR", emulator)
            .env_remove("KVLANE_SOCKET")
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let cases: [(&str, &[&str], i32, &[&str]); 4] = [
        ("", &["ping", "--comch-name", &name], 4, &[&name, "is dpu-app running there", "--representor", "--socket"]),
        ("pci=b1:00.1", &["ping", "--comch-name", &name, "-d", "b1:00.1"], 4, &["0000:b1:00.1"]),
        ("role=card", &["ping"], 3, &["cannot be a Comch client", "on the card itself", "--socket"]),
        ("", &["ping", "--comch-name", ""], 2, &["name"]),
    ];
    for (emulator, arguments, code, words) in cases {
        let (found, said) = says(emulator, arguments);
        assert_eq!(found, Some(code), "{arguments:?}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{arguments:?} says {words:?}: {said}");
    }
}

#[test]
fn a_card_that_is_not_there_yet_is_waited_for_and_people_are_told() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("late.sock");
    let since = std::time::Instant::now();
    let (code, error) = fails(&["ping", "--socket", socket.to_str().unwrap(), "--timeout-ms", "1500"]);
    assert_eq!(code, 4, "{error}");
    assert!(since.elapsed() >= std::time::Duration::from_millis(1400), "it gave up after {:?}", since.elapsed());
    assert!(error.lines().next().unwrap().contains("Waiting for it, 2 s in all (--timeout-ms)"), "{error}");
    assert_eq!(error.lines().count(), 2, "said once, then the end: {error}");
    // One that is there then is attached to: it refuses, which ends the wait.
    let path = socket.clone();
    let late = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(300));
        FakeCard::start_at(&path, Manner { refuses: Some(Refuse::version(1)), ..Manner::default() })
    });
    let (code, error) = fails(&["ping", "--socket", socket.to_str().unwrap(), "--timeout-ms", "20000"]);
    assert_eq!(code, 4, "{error}");
    assert!(error.contains("refuses"), "{error}");
    drop(late.join().unwrap());
}

#[test]
fn a_failure_is_a_json_object_where_json_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let (file, none) = (kv_file(dir.path(), "f", 0), dir.path().join("none\u{1b}[31m"));
    let (file, none) = (file.to_str().unwrap(), none.to_str().unwrap());
    let cases: [(&[&str], i32); 11] = [
        (&["ping", "--socket", none, "--timeout-ms", "60"], 4),
        (&["status", "--socket", none, "--timeout-ms", "60"], 4),
        (&["drain", "--socket", none, "--timeout-ms", "60"], 4),
        (&["stop", "--socket", none, "--timeout-ms", "60"], 4),
        (&["tiers", "show", "--socket", none, "--timeout-ms", "60"], 4),
        (&["lookup", "--model", "m", "--like", none], 2),
        (&["store", none, "--model", "m"], 2),
        (&["fetch", "--model", "m", "--like", none, "--anonymous"], 2),
        (&["inspect", none], 2),
        (&["compare", file, file], 2),
        (&["store", file, "--model", "m", "--recipe", "q\u{1b}[99m"], 2),
    ];
    for (arguments, code) in cases {
        let output = host_ctl(&[arguments, &["--json"]].concat());
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        let value: Value = serde_json::from_slice(&output.stdout).expect("one object");
        assert_eq!(value["code"], code, "{value}");
        assert!(value["error"].as_str().is_some_and(|text| !text.is_empty()) && value["ok"] == false, "{value}");
        assert!(!output.stderr.is_empty(), "people are told, too");
        for bytes in [&output.stdout, &output.stderr] {
            assert!(!bytes.contains(&0x1b), "{arguments:?}: {:?}", String::from_utf8_lossy(bytes));
        }
    }
}

#[test]
fn names_of_others_do_nothing_to_a_terminal() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let bytes = [0_u8; 4];
    let view = TensorView::new(Dtype::U8, vec![4], &bytes).unwrap();
    fs::write(&path, safetensors::serialize([("\u{1b}[2Jevil\nname\u{9b}", view)], None).unwrap()).unwrap();
    let path = path.to_str().unwrap();
    for arguments in [
        &["inspect", path][..],
        &["inspect", path, "--json"],
        &["store", path, "--model", "m", "--tokens", "range:0..256"],
    ] {
        let output = host_ctl(arguments);
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(!text.contains('\u{1b}') && !text.contains('\u{9b}'), "{text:?}");
        assert!(text.contains("1b") && text.contains("[2Jevil"), "it is shown: {text}");
        assert!(!text.contains("evil\nname"), "a line break in a name is none of ours: {text}");
    }
}

#[test]
fn inspect_lists_what_can_be_stored_and_exits_with_1_on_a_damaged_chunk() {
    let dir = tempfile::tempdir().unwrap();
    let file = kv_file(dir.path(), "f", 0);
    let text = prints(&["inspect", file.to_str().unwrap()]);
    assert!(text.contains("can be stored: 64 tokens") && text.contains("token ids"), "{text}");
    let value: Value = serde_json::from_str(&prints(&["inspect", file.to_str().unwrap(), "--json"])).unwrap();
    assert_eq!(value["tensors"].as_array().unwrap().len(), 3);
    let chunk = dir.path().join("ab".repeat(32));
    fs::write(&chunk, [1; 5000]).unwrap();
    assert_eq!(host_ctl(&["inspect", chunk.to_str().unwrap()]).status.code(), Some(1));
}

#[test]
fn what_moved_to_kvlane_plan_is_named_and_exits_with_2() {
    for (arguments, now) in [
        (&["generate", "--out", "x"][..], "`kvlane-plan generate`"),
        (&["tiers", "simulate", "--tier", "dram=1G"], "`kvlane-plan tiers simulate`"),
        (&["tiers", "show", "--plot=x.svg"], "kvlane-plan tiers plot"),
    ] {
        let (code, error) = fails(arguments);
        assert_eq!((code, error.lines().count()), (2, 1), "{error}");
        assert!(error.contains("moved") && error.contains(now), "{error}");
    }
}

#[test]
fn compare_exits_with_1_beyond_the_bound_and_0_within() {
    let dir = tempfile::tempdir().unwrap();
    let (one, same, other) = (kv_file(dir.path(), "a", 0), kv_file(dir.path(), "b", 0), kv_file(dir.path(), "c", 255));
    let [one, same, other] = [&one, &same, &other].map(|path| path.to_str().unwrap());
    let options = ["--chunk-tokens", "16", "--recipe", "lossless"];
    let text = prints(&[&["compare", one, same][..], &options].concat());
    assert!(text.trim_end().ends_with("equal: every bit (4 chunks, lossless+deflate)"), "{text}");
    let quiet = prints(&[&["compare", one, same, "--quiet"][..], &options].concat());
    assert_eq!(quiet.lines().count(), 1);
    let output = host_ctl(&[&["compare", one, other, "--json"][..], &options].concat());
    assert_eq!(output.status.code(), Some(1));
    let value: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((&value["ok"], &value["bit_equal"]), (&Value::Bool(false), &Value::Bool(false)));
}
