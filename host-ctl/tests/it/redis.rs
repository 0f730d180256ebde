//! `host-ctl inspect redis://` and `store-check` against a real server.

#[path = "../../../crates/store/tests/servers/mod.rs"]
mod servers;

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use block::codec::Compressor;
use block::{ChunkKey, ElementType, Geometry, Manifest, Plan, TileOrder};
use servers::{Server, program};
use store::{Limits, Readable};

fn host_ctl(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_host-ctl")).args(arguments).output().expect("host-ctl runs")
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// Puts a chunk as dpu-app would.
fn put_real_chunk(url: &str, key: &ChunkKey) {
    let geometry = Geometry::new(2, 2, 32, 64, ElementType::Bf16).expect("a small geometry");
    let plan = Plan::choose(&geometry, geometry.layer_chunk_bytes()).expect("a plan");
    let mut compressor = Compressor::new(1, 1 << 20).expect("level 1");
    let store: Box<dyn Readable<Vec<u8>>> = store::open(url, &Limits::default()).expect("a server");
    store.begin_put(0, key, None, Instant::now() + Duration::from_secs(10)).expect("begin");
    let mut lengths = Vec::new();
    for index in 0..plan.block_count(&geometry) {
        let part = plan.part(&geometry, index).expect("a part");
        let tile: Vec<u8> = (0..part.tile_bytes(&geometry)).map(|i| if i % 2 == 1 { 0x3f } else { i as u8 }).collect();
        let mut codes = vec![0; tile.len()];
        let mut wire = vec![0; block::wire_bytes_max(&geometry, &part)];
        let recipe = "q8".parse().expect("a recipe");
        let order = TileOrder::TokenMajor;
        let bytes = block::encode_tile(
            recipe,
            &geometry,
            key,
            index,
            &part,
            order,
            &tile,
            &mut codes,
            &mut wire,
            &mut compressor,
        );
        let bytes = bytes.expect("finite elements encode");
        store.put_block(0, index, &wire[..bytes]).expect("put");
        lengths.push(bytes as u32);
    }
    let manifest = Manifest::new(*key, geometry, plan, &lengths).expect("lengths of real blocks");
    let mut bytes = vec![0; block::manifest_bytes(lengths.len())];
    manifest.encode(&mut bytes);
    store.commit_put(0, lengths.len(), &bytes).expect("commit");
}

#[test]
fn inspect_explains_a_chunk_finds_damage_and_changes_nothing() {
    let Some(program) = program() else { return };
    let server = Server::start(program, &[]);
    let url = format!("redis://{}", server.address());
    let keys: Vec<ChunkKey> = (1..=3).map(|n| ChunkKey::new([n; 32])).collect();
    keys.iter().for_each(|key| put_real_chunk(&url, key));
    let one = host_ctl(&["inspect", &format!("{url}/{}", keys[0]), "--blocks"]);
    assert!(
        one.status.success() && said(&one).contains("all passed") && said(&one).contains("2 layers"),
        "{}",
        said(&one)
    );
    let all = host_ctl(&["inspect", &url, "--json"]);
    assert!(all.status.success() && said(&all).matches("\"block_count\":").count() == 3, "{}", said(&all));
    let absent = host_ctl(&["inspect", &url, "--key", &ChunkKey::new([9; 32]).to_string()]);
    assert_eq!(absent.status.code(), Some(1), "{}", said(&absent));
    // Another length, other bytes of the same length, another type.
    let name = |key: &ChunkKey| format!("kvlane:{{{key}}}");
    let length: usize = server.cli(&["HSTRLEN", &name(&keys[1]), "1"]).parse().expect("a length");
    server.cli(&["HSET", &name(&keys[0]), "0", "short"]);
    server.cli(&["HSET", &name(&keys[1]), "1", &"x".repeat(length)]);
    server.cli(&["SET", &name(&keys[2]), "a string"]);
    let all = host_ctl(&["inspect", &url]);
    assert!(all.status.code() == Some(1) && said(&all).contains("3 of 3 chunks"), "{}", said(&all));
    assert_eq!(server.cli(&["DBSIZE"]), "3", "it only looks");
}

#[test]
fn store_check_says_what_to_change_and_leaves_nothing_behind() {
    let Some(program) = program() else { return };
    let server = Server::start(program, &["--maxmemory", "64mb"]);
    let check = |login: &str, more: &[&str]| {
        host_ctl(&[&["store-check", &format!("redis://{login}{}", server.address())], more].concat())
    };
    let found = check("", &[]);
    let text = said(&found);
    assert!(found.status.success(), "{text}");
    for part in
        ["noeviction", "maxmemory-policy allkeys-lru", "reading is allowed", "storing is allowed", "MB/s", "p99"]
    {
        assert!(text.contains(part), "{part}: {text}");
    }
    server.cli(&["CONFIG", "SET", "maxmemory-policy", "allkeys-lru"]);
    assert!(said(&check("", &["--json"])).contains("evicts by allkeys-lru"));
    assert_eq!(server.cli(&["DBSIZE"]), "0");
    server.cli(&["ACL", "SETUSER", "reader", "on", ">pw", "~kvlane:*", "-@all", "+hget", "+hexists"]);
    let found = check("reader:pw@", &[]);
    assert!(found.status.success() && said(&found).contains("+hset"), "{}", said(&found));
    server.cli(&["ACL", "SETUSER", "nobody", "on", ">pw", "~kvlane:*", "-@all", "+hget"]);
    let found = check("nobody:pw@", &[]);
    assert!(found.status.code() == Some(1) && said(&found).contains("+hexists"), "{}", said(&found));
    let found = check("wrong:topsecret@", &[]);
    assert!(found.status.code() == Some(1) && said(&found).contains("refuses us"), "{}", said(&found));
    assert!(!said(&found).contains("topsecret"), "{}", said(&found));
    assert_eq!(host_ctl(&["store-check", "dir:/tmp"]).status.code(), Some(2));
    assert_eq!(host_ctl(&["store-check", "redis://h?color=red"]).status.code(), Some(2));
}

#[test]
fn a_url_that_is_misspelt_is_not_repeated() {
    for arguments in [
        &["inspect", "redis//u:TopSecret@h"][..],
        &["inspect", "redis://u:Top?Secret@h"],
        &["inspect", "dir:redis://u:TopSecret@h"],
        &["store-check", "redis//u:TopSecret@h"],
        &["store-check", "redis://u:TopSecret@h/Secret"],
        &["store-check", "redis://u:Top", "TopSecret@h"],
    ] {
        let output = host_ctl(arguments);
        assert!(!output.status.success() && !said(&output).contains("Secret"), "{arguments:?}: {}", said(&output));
    }
    let help = Command::new(env!("CARGO_BIN_EXE_host-ctl"))
        .args(["store-check", "--help"])
        .env("KVLANE_STORE", "redis://u:TopSecret@h")
        .output()
        .expect("host-ctl runs");
    assert!(help.status.success() && !said(&help).contains("Secret"), "{}", said(&help));
}
