//! What the program is told by a file and by variables, and what it says of it: nothing is passed over.

use std::path::Path;
use std::process::{Command, Output};

use serde_json::Value;

struct Said {
    code: i32,
    out: String,
    err: String,
}

fn dpu_app(arguments: &[&str], variables: &[(&str, &str)]) -> Said {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dpu-app"));
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("KVLANE_")) {
        command.env_remove(name);
    }
    let Output { status, stdout, stderr } =
        command.args(arguments).envs(variables.iter().copied()).env_remove("DOCA_EMULATOR").output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    Said { code: status.code().unwrap(), out: text(stdout), err: text(stderr) }
}

/// `limits` and `run` with a config file of these bytes, which both have to refuse: what they say.
fn refused(dir: &Path, bytes: &[u8]) -> String {
    let path = dir.join("conf");
    std::fs::write(&path, bytes).unwrap();
    let store = format!("dir:{}/store", dir.display());
    let mut said = Vec::new();
    for command in ["limits", "run"] {
        let arguments = [command, "--config", path.to_str().unwrap(), "--attach", "socket"];
        let Said { code, err, .. } = dpu_app(&arguments, &[("KVLANE_STORE", &store)]);
        assert_eq!(code, 2, "{command}: {err}");
        assert!(!dir.join("store").exists(), "{command} made a store");
        // Beside what `run` says of itself first.
        said.push(err.lines().filter(|line| line.starts_with("dpu-app: ")).collect::<Vec<_>>().join("\n"));
    }
    assert_eq!(said[0], said[1], "limits refuses what run refuses");
    said.remove(0)
}

#[test]
fn what_moved_to_kvlane_plan_is_named_and_exits_with_2() {
    for name in ["calibrate", "simulate"] {
        let Said { code, out, err } = dpu_app(&[name, "--model", "mla", "--json"], &[]);
        assert_eq!((code, err.lines().count()), (2, 1), "{err}");
        assert!(err.contains("moved") && err.contains(&format!("`kvlane-plan {name}`")), "{err}");
        assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["code"], 2, "{out}");
    }
}

#[test]
fn a_line_that_cannot_be_obeyed_is_an_error_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    for (text, line, words) in [
        ("slots = 8\nslot = 9\n", 2, "no flag is called \"slot\", the nearest is `slots`"),
        ("block_bytes = 65536\n", 1, "the nearest is `block-bytes`"),
        ("SLOTS = 8\n", 1, "the nearest is `slots`"),
        ("--slots = 8\n", 1, "the nearest is `slots`"),
        ("\n# fine\nslots 8\n", 3, "a line without `=`"),
        ("[run]\nslots = 8\n", 1, "a line without `=`"),
        ("slots = 8\nchunks = 4\nslots = 9\n", 3, "`slots` stands on line 1 already"),
        ("slots = 8\nslots = 8\n", 2, "`slots` stands on line 1 already"),
        ("slots = many\n", 1, "invalid value 'many' for '--slots <N>'"),
        ("slots = -1\n", 1, "invalid value '-1'"),
        ("slots =\n", 1, "`slots` has no value"),
        ("slots = \"8\"\n", 1, "the value of `slots` is in quotes"),
        ("busy-poll = yes\n", 1, "`busy-poll` is true or false"),
        ("attach = pcie\n", 1, "both, comch, socket"),
        ("recipe = q99\n", 1, "invalid value 'q99'"),
        ("metrics = nowhere\n", 1, "metrics"),
        ("config = other.conf\n", 1, "no flag is called \"config\""),
        ("help = true\n", 1, "no flag is called \"help\""),
        ("# a comment\n\nslots = 65\n", 3, "--slots 65 is outside 2..=64"),
        ("deflate-level = 13\n", 1, "--deflate-level 13 is outside 1..=12"),
        ("sessions = 161\n", 1, "--sessions 161 is outside 1..=160"),
        ("fetch-cpus = 4095\n", 1, "may not use core 4095"),
        ("\u{1b}[31mred = 1\n", 1, "what stands before `=` is no flag's name"),
    ] {
        let said = refused(dir.path(), text.as_bytes());
        let place = format!("{}/conf:{line}: ", dir.path().display());
        assert!(said.contains(&place) && said.contains(words), "{text:?}: {said}");
        assert!(!said.contains('\u{1b}') && said.lines().count() == 1, "{said:?}");
    }
}

#[test]
fn a_file_that_is_none_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert!(refused(dir.path(), b"slots = 8\n\xff\xfe = 1\n").contains("is no UTF-8 text from line 2 on"));
    assert!(refused(dir.path(), b"\x7fELF\0\0\0").contains("zero bytes"));
    let at = dir.path();
    for (path, words) in [(at.to_owned(), "is a directory"), (at.join("none"), "No such file"), ("".into(), "value")] {
        for command in ["limits", "run"] {
            let said = dpu_app(&[command, "--store", "dir:/tmp/x", "--config", path.to_str().unwrap()], &[]);
            assert!(said.code == 2 && said.err.contains(words), "{}: {}", path.display(), said.err);
        }
    }
}

#[test]
fn flags_win_over_variables_and_those_over_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let (path, store) = (dir.path().join("conf"), format!("dir:{}/store", dir.path().display()));
    let text = format!("\u{feff}slots = 8\r\nchunks=5 # five\nbusy-poll = false\ndevice = nobody\nstore = {store}\n");
    std::fs::write(&path, text).unwrap();
    let path = path.to_str().unwrap();
    // A short flag is the same flag.
    let device = doca::Device::list().unwrap()[0].pci_address.clone();
    let limits = |more: &[&str], variables: &[(&str, &str)]| {
        let said = dpu_app(&[&["limits", "--json", "--config", path, "-d", &device], more].concat(), variables);
        assert_eq!(said.code, 0, "{}", said.err);
        serde_json::from_str::<Value>(&said.out).unwrap()
    };
    let found = limits(&[], &[]);
    assert_eq!((found["slots"].as_u64(), found["chunks"].as_u64()), (Some(8), Some(5)));
    assert_eq!(limits(&[], &[("KVLANE_SLOTS", "10")])["slots"], 10);
    assert_eq!(limits(&["--slots=12"], &[("KVLANE_SLOTS", "10")])["slots"], 12);
    // The file itself may be named by a variable.
    let said = dpu_app(&["limits", "--json", "-d", &device], &[("KVLANE_CONFIG", path)]);
    assert_eq!(serde_json::from_str::<Value>(&said.out).unwrap()["slots"], 8, "{}", said.err);
}

#[test]
fn a_hash_inside_of_a_word_is_no_comment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("conf");
    std::fs::write(&path, "store = redis://:pa#ss@localhost:1/3 # the fourth\n").unwrap();
    let said = dpu_app(&["limits", "--config", path.to_str().unwrap()], &[]);
    assert!(said.code == 0 && said.out.contains("store: redis://localhost:1/3"), "{}{}", said.out, said.err);
    assert!(!said.out.contains("pa#ss"));
}

#[test]
fn a_variable_that_no_flag_has_is_said_once_with_the_nearest() {
    let dir = tempfile::tempdir().unwrap();
    let store = format!("dir:{}/store", dir.path().display());
    let variables = [("KVLANE_SLOT", "8"), ("KVLANE_STORE", &store), ("KVLANE_NAMESPACE", "other programs'")];
    let said = dpu_app(&["limits"], &variables);
    assert_eq!(said.code, 0, "{}", said.err);
    assert_eq!(said.err.matches("KVLANE_SLOT is set and no flag has it").count(), 1, "{}", said.err);
    assert!(said.err.contains("KVLANE_SLOTS is the nearest") && !said.err.contains("NAMESPACE"), "{}", said.err);
    // A bad value of one is an error that names it.
    let said = dpu_app(&["limits"], &[("KVLANE_STORE", &store), ("KVLANE_SLOTS", "many")]);
    assert!(said.code == 2 && said.err.contains("(from KVLANE_SLOTS)"), "{}", said.err);
    let said = dpu_app(&["limits"], &[("KVLANE_STORE", &store), ("KVLANE_SLOTS", "65")]);
    assert!(said.code == 2 && said.err.contains("KVLANE_SLOTS: --slots 65 is outside"), "{}", said.err);
}

#[test]
fn limits_answers_for_the_store_and_its_tiers_and_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().display();
    let url = format!("tiers:dram=64M,dir:{at}/disk=1G,dir:{at}/all?bytes=2G");
    let arguments = ["limits", "--slots", "32", "--block-bytes", "524288", "--store"];
    let said = dpu_app(&[&arguments[..], &[&url, "--json"]].concat(), &[]);
    assert_eq!(said.code, 0, "{}", said.err);
    let value: Value = serde_json::from_str(&said.out).unwrap();
    let names: Vec<&str> =
        value["store"].as_array().unwrap().iter().map(|part| part["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["dram", "dir", "dir"]);
    assert_eq!(value["store"][1]["bytes_max"], 1_u64 << 30);
    let sum = |object: &Value| object.as_object().unwrap().values().map(|bytes| bytes.as_u64().unwrap()).sum::<u64>();
    assert_eq!(value["memory_bytes"], sum(&value["memory"]));
    assert_eq!(value["pinned_bytes"], sum(&value["pinned"]));
    assert_eq!(value["huge_pages_of_2_mib"].as_u64().unwrap() << 21, value["pinned_bytes"].as_u64().unwrap());
    assert_eq!(value["pinned"]["tier in memory"], 64 << 20);
    assert!(value["memory"]["store"].as_u64().unwrap() > 64 << 20);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "it made nothing");
    let text = dpu_app(&[&arguments[..], &[&url]].concat(), &[]).out;
    for words in
        ["store: dram: 67108864 bytes", "pinned memory MiB: ", "huge pages of 2 MiB: ", "memory of a session KiB: "]
    {
        assert!(text.contains(words), "{words}: {text}");
    }
}

#[test]
fn a_failure_is_a_json_object_where_json_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("no\u{1b}ne");
    let path = path.to_str().unwrap();
    let cases: [(&[&str], i32); 5] = [
        (&["limits", "--store", "http://x"], 2),
        (&["limits", "--store", "dir:/tmp/x", "--config", path], 2),
        (&["limits"], 2),
        (&["scrub", path], 2),
        (&["devices", "--wrong"], 2),
    ];
    for (arguments, code) in cases {
        let said = dpu_app(&[arguments, &["--json"]].concat(), &[]);
        assert_eq!(said.code, code, "{arguments:?}: {}", said.err);
        let value: Value = serde_json::from_str(&said.out).unwrap_or_else(|error| panic!("{error}: {}", said.out));
        assert_eq!(value["code"], code);
        assert!(value["error"].as_str().is_some_and(|text| !text.is_empty()), "{value}");
        assert!(!said.err.is_empty() && !said.err.contains('\u{1b}') && !said.out.contains('\u{1b}'));
    }
}

#[test]
fn the_file_that_packages_bring_is_taken_whole_also_its_examples() {
    let dir = tempfile::tempdir().unwrap();
    let (path, store) = (dir.path().join("conf"), format!("dir:{}/store", dir.path().display()));
    let shipped = include_str!("../../../scripts/systemd/dpu-app.conf");
    // `#name = value` is an example, `# words` a comment.
    let is_example = |line: &&str| line.starts_with('#') && !line.starts_with("# ") && line.contains('=');
    assert!(shipped.lines().filter(is_example).count() >= 6, "{shipped}");
    // Devices and functions of the host that no machine here has.
    let known = |line: &&str| !line.contains("device =") && !line.contains("representor =");
    let lines = shipped.lines().filter(known).map(|line| if is_example(&line) { &line[1..] } else { line });
    std::fs::write(&path, lines.collect::<Vec<_>>().join("\n")).unwrap();
    let said = dpu_app(&["limits", "--store", &store, "--config", path.to_str().unwrap()], &[]);
    assert_eq!(said.code, 0, "{}", said.err);
    assert!(said.out.contains("stop and drain by hosts: allowed"), "{}", said.out);
}
