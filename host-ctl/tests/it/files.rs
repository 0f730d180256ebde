//! Files: safetensors of all kinds of wrongness, chunk files with flipped bits.

use std::fs;
use std::path::{Path, PathBuf};

use block::codec::{Compressor, DEFLATE_LEVEL_DEFAULT};
use block::{
    ChunkKey, ElementType, Geometry, Header, Kind, Manifest, Part, Plan, Planes, TileOrder, encode_tile,
    manifest_bytes, wire_bytes_max,
};
use host_ctl::{KvFile, OutFile, TensorShape, ends_like_a_chunk, inspect, store_files};
use proptest::prelude::*;
use safetensors::Dtype;

use crate::kv_files::{GEOMETRY, kv_file, rows, values, write};

#[test]
fn every_kind_of_wrong_tensor_is_named_with_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    write(
        &path,
        &[
            ("flat", Dtype::BF16, &[64], &[0; 128]),
            ("no_kinds", Dtype::BF16, &[1, 3, 4, 1, 2], &[0; 48]),
            ("whole", Dtype::I64, &[1, 2, 2, 1, 2], &[0; 64]),
            ("empty", Dtype::BF16, &[1, 2, 0, 1, 2], &[]),
            ("ids", Dtype::I32, &[2, 3], &[1; 24]),
            ("minus", Dtype::I64, &[1], &[255; 8]),
            ("good", Dtype::F32, &[2, 1, 2, 4, 1, 2], &[0; 128]),
        ],
    );
    let file = KvFile::open(&path).unwrap();
    for (tensor, text, word) in [
        ("kv", None, "--tensor"),
        ("flat", None, "shape"),
        ("no_kinds", None, "shape"),
        ("whole", None, "convert"),
        ("empty", None, "no tokens"),
        ("good", Some(2), "--text"),
    ] {
        let error = file.kv(tensor, text).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(word), "{tensor}: {error}");
    }
    let (zero, one) = (file.kv("good", None).unwrap(), file.kv("good", Some(1)).unwrap());
    assert_eq!((zero.texts, one.offset - zero.offset), (Some(2), 64));
    assert_eq!(file.token_ids("ids", Some(1)).unwrap(), [0x0101_0101; 3]);
    for (tensor, text) in [("minus", None), ("good", None), ("ids", Some(2)), ("none", None)] {
        assert_eq!(file.token_ids(tensor, text).unwrap_err().exit_code(), 2, "{tensor}");
    }
    // Fewer tokens than a chunk.
    assert_eq!(file.memory(&zero, 8, 4).unwrap_err().exit_code(), 2);
    assert!(file.memory(&zero, 4, 4).is_ok());
}

#[test]
fn what_is_no_whole_safetensors_file_is_said_to_be_so() {
    let dir = tempfile::tempdir().unwrap();
    let path = kv_file(dir.path(), "f", &values(64, 1), &[1, 2, 4, 2, 4]);
    let whole = fs::read(&path).unwrap();
    for (bytes, word) in [
        (&whole[..whole.len() - 1], "truncated"),
        (&whole[..40], "truncated"),
        (&whole[..3], "too few"),
        (&b"GGUF----------------------------"[..], "header would be"),
        (&[&whole[..], b"more"].concat()[..], "behind the last tensor"),
    ] {
        fs::write(&path, bytes).unwrap();
        let error = KvFile::open(&path).unwrap_err();
        assert_eq!(error.exit_code(), 2);
        assert!(error.to_string().contains(word), "{error}");
    }
    assert_eq!(KvFile::open(dir.path()).unwrap_err().exit_code(), 2);
    assert_eq!(KvFile::open(&dir.path().join("none")).unwrap_err().exit_code(), 2);
}

proptest! {
    /// Whatever is done to a header, opening answers and never panics, and what opens lies inside the file.
    #[test]
    fn damaged_headers_never_lead_outside_the_file(
        changes in proptest::collection::vec((0_usize..200, any::<u8>()), 1..4),
        cut in proptest::option::of(0_usize..300),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let path = kv_file(dir.path(), "f", &values(64, 1), &[1, 2, 4, 2, 4]);
        let mut bytes = fs::read(&path).unwrap();
        for (at, byte) in changes {
            let at = at % bytes.len();
            bytes[at] = byte;
        }
        bytes.truncate(cut.unwrap_or(usize::MAX).min(bytes.len()));
        fs::write(&path, &bytes).unwrap();
        if let Ok(file) = KvFile::open(&path) {
            for tensor in file.tensors() {
                let _ = file.token_ids(&tensor.name, None);
                if let Ok(kv) = file.kv(&tensor.name, None) {
                    prop_assert!(kv.offset + kv.shape.bytes() <= bytes.len() as u64);
                    let _ = file.memory(&kv, 4, 2);
                }
            }
        }
    }
}

#[test]
fn an_out_file_has_its_name_only_when_published() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("out.safetensors");
    let shape = TensorShape { layers: 2, tokens: 32, heads: 2, head_size: 4, element: ElementType::F32 };
    let out = OutFile::create(&path, "kv", shape, &[("model", "m \"x\"".to_owned())]).unwrap();
    let memory = out.memory(16, 4).unwrap();
    assert!(!path.exists());
    drop(out);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "nothing is left");
    let out = OutFile::create(&path, "kv", shape, &[]).unwrap();
    out.memory(16, 4).unwrap().regions[0].mapping.write(out.kv().offset as usize, &[7; 16]);
    out.publish().unwrap();
    drop(memory);
    let file = KvFile::open(&path).unwrap();
    let kv = file.kv("kv", None).unwrap();
    let mut first = [0; 17];
    file.read(&mut first, kv.offset).unwrap();
    assert_eq!((first[..16].to_vec(), first[16]), (vec![7; 16], 0));
    assert_eq!(OutFile::create(dir.path(), "kv", shape, &[]).unwrap_err().exit_code(), 2);
    let nowhere = dir.path().join("no/where");
    assert_eq!(OutFile::create(&nowhere, "kv", shape, &[]).unwrap_err().exit_code(), 1);
    // More than any disk: an error up front.
    let huge = TensorShape { layers: 256, tokens: 1 << 40, heads: 16, head_size: 128, element: ElementType::F32 };
    assert_eq!(OutFile::create(&path, "kv", huge, &[]).unwrap_err().exit_code(), 1);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

/// Not a test of its own: the process that `nothing_is_left_of_a_file_whose_maker_was_killed` kills.
#[test]
fn a_maker_that_waits_to_be_killed() {
    let Some(path) = std::env::var_os("KVLANE_TEST_OUT") else { return };
    let shape = TensorShape { layers: 2, tokens: 4096, heads: 2, head_size: 64, element: ElementType::F32 };
    let out = OutFile::create(Path::new(&path), "kv", shape, &[]).unwrap();
    println!("\nmade {}", out.bytes());
    std::thread::sleep(std::time::Duration::from_secs(60));
}

#[test]
fn nothing_is_left_of_a_file_whose_maker_was_killed() {
    use std::io::{BufRead, BufReader};
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Stdio};
    for signal in [2, 15, 9] {
        let dir = tempfile::tempdir().unwrap();
        // Whoever starts tests in the background of a script has them ignore SIGINT.
        let mut maker = Command::new("env")
            .arg("--default-signal=INT,TERM")
            .arg(std::env::current_exe().unwrap())
            .args(["files::a_maker_that_waits_to_be_killed", "--exact", "--nocapture"])
            .env("KVLANE_TEST_OUT", dir.path().join("out"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(maker.stdout.take().unwrap()).lines();
        assert!(lines.any(|line| line.unwrap().starts_with("made ")), "it makes the file");
        let kill = format!("kill -{signal} {}", maker.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
        assert_eq!(maker.wait().unwrap().signal(), Some(signal));
        let left: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "signal {signal}: {left:?}");
    }
}

#[test]
fn a_name_said_twice_is_called_a_duplicate() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let header = |text: &str, data: usize| {
        let mut bytes = (text.len() as u64).to_le_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.resize(bytes.len() + data, 0);
        fs::write(&path, bytes).unwrap();
        KvFile::open(&path).map(|_| ()).map_err(|error| error.to_string())
    };
    let kv = |at: usize| format!(r#""kv":{{"dtype":"U8","shape":[4],"data_offsets":[{at},{}]}}"#, at + 4);
    assert_eq!(header(&format!("{{{}}}", kv(0)), 4), Ok(()));
    for text in [
        format!("{{{},{}}}", kv(0), kv(4)),
        format!("{{{},{}}}", kv(0), kv(0)),
        format!(r#"{{"__metadata__":{{"a":"1"}},"__metadata__":{{"a":"2"}},{}}}"#, kv(0)),
        format!(r#"{{"__metadata__":{{"a":"1","a":"2"}},{}}}"#, kv(0)),
    ] {
        let error = header(&text, 8).unwrap_err();
        assert!(error.contains("duplicate name \""), "{error}");
    }
}

#[test]
fn a_message_names_the_first_few_tensors_and_counts_the_rest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("f");
    let names: Vec<String> = (0..5000).map(|index| format!("model.layers.{index}.weight")).collect();
    let esc = "\u{1b}[31m".repeat(1000);
    let mut tensors: Vec<(&str, Dtype, &[usize], &[u8])> =
        names.iter().map(|name| (name.as_str(), Dtype::U8, &[1_usize][..], &[0_u8][..])).collect();
    tensors.push((&esc, Dtype::U8, &[1], &[0]));
    write(&path, &tensors);
    let file = KvFile::open(&path).unwrap();
    for error in [file.kv("kv", None).unwrap_err().to_string(), file.token_ids("tokens", None).unwrap_err().to_string()]
    {
        assert!(error.len() < 1000 && error.contains("it has 5001: "), "{} bytes: {error}", error.len());
        assert!(!error.contains('\u{1b}'), "{error:?}");
    }
    // A name that is longer than anybody reads, and that would act on a terminal.
    let error = file.kv(&esc, None).unwrap_err().to_string();
    assert!(error.len() < 500 && !error.contains('\u{1b}'), "{error:?}");
}

/// A chunk file as a dir store writes it, by docs/formats.md.
fn chunk_file(dir: &Path, recipe: &str) -> PathBuf {
    let bytes = values(2 * 2 * 16 * 16, 3);
    chunk_file_of(dir, recipe, &GEOMETRY, |part| {
        rows(part, 16, 0).into_iter().flat_map(|range| bytes[range].to_vec()).collect()
    })
}

fn chunk_file_of(dir: &Path, recipe: &str, geometry: &Geometry, tile: impl Fn(&Part) -> Vec<u8>) -> PathBuf {
    let key = ChunkKey::new([0xab; 32]);
    let plan = Plan::choose(geometry, 256).unwrap();
    let mut compressor = Compressor::new(DEFLATE_LEVEL_DEFAULT, geometry.chunk_bytes()).unwrap();
    let (mut file, mut table, mut lengths) = (Vec::new(), Vec::new(), Vec::new());
    for index in 0..plan.block_count(geometry) {
        let part = plan.part(geometry, index).unwrap();
        let tile = tile(&part);
        let (mut codes, mut wire) = (vec![0; tile.len()], vec![0; wire_bytes_max(geometry, &part)]);
        let recipe = recipe.parse().unwrap();
        let order = TileOrder::TokenMajor;
        let count =
            encode_tile(recipe, geometry, &key, index, &part, order, &tile, &mut codes, &mut wire, &mut compressor)
                .unwrap();
        table.extend((file.len() as u64).to_le_bytes());
        table.extend((count as u32).to_le_bytes());
        table.extend([0; 4]);
        lengths.push(count as u32);
        file.extend(&wire[..count]);
        file.resize(file.len().next_multiple_of(4096), 0);
    }
    let manifest = Manifest::new(key, *geometry, plan, &lengths).unwrap();
    let mut tail = table;
    let at = tail.len();
    tail.resize(at + manifest_bytes(lengths.len()), 0);
    manifest.encode(&mut tail[at..]);
    tail.extend(b"kvlntail");
    tail.extend(1_u32.to_le_bytes());
    tail.extend((lengths.len() as u32).to_le_bytes());
    tail.extend((manifest_bytes(lengths.len()) as u32).to_le_bytes());
    tail.extend([0; 4]);
    tail.extend(key.bytes());
    tail.extend([0; 4]);
    let crc = crc32fast::hash(&tail);
    tail.extend(crc.to_le_bytes());
    file.extend(tail);
    fs::create_dir_all(dir.join("ab")).unwrap();
    fs::write(dir.join("kvlane-store"), "kvlane dir store 1\n").unwrap();
    let path = dir.join("ab").join(key.to_string());
    fs::write(&path, file).unwrap();
    path
}

#[test]
fn a_good_chunk_is_described_and_found_in_its_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = chunk_file(dir.path(), "q5");
    assert!(ends_like_a_chunk(&path));
    let found = inspect(&path).unwrap();
    assert!(found.is_good(), "{:?}", found.findings);
    let chunk = found.chunk.unwrap();
    assert_eq!((chunk.geometry, chunk.blocks.len()), (GEOMETRY, 4));
    assert_eq!(chunk.raw_bytes, GEOMETRY.chunk_bytes() as u64);
    assert_eq!(chunk.recipes.values().sum::<usize>(), 4);
    for key in [None, Some(&chunk.key)] {
        assert_eq!(store_files(dir.path(), key).unwrap(), std::slice::from_ref(&path));
    }
    let other = path.with_file_name(ChunkKey::new([0xac; 32]).to_string());
    fs::rename(&path, &other).unwrap();
    assert!(inspect(&other).unwrap().findings[0].contains("name is another's"));
    let empty = tempfile::tempdir().unwrap();
    assert_eq!(store_files(empty.path(), None).unwrap_err().exit_code(), 2);
}

#[test]
fn chunks_of_one_plane_and_of_opaque_bytes_are_described_as_such() {
    let dir = tempfile::tempdir().unwrap();
    for (element, name) in [(ElementType::E4m3, "fp8_e4m3"), (ElementType::U16, "u16"), (ElementType::Bf16, "bf16")] {
        let geometry = Geometry { element, heads: 1, planes: Planes::One, ..GEOMETRY };
        let path = chunk_file_of(dir.path(), "lossless", &geometry, |part| vec![7; part.tile_bytes(&geometry)]);
        let found = inspect(&path).unwrap();
        assert!(found.is_good(), "{:?}", found.findings);
        let chunk = found.chunk.unwrap();
        assert_eq!((chunk.geometry, chunk.raw_bytes), (geometry, geometry.chunk_bytes() as u64));
        assert!(chunk.blocks.iter().all(|block| block.kind == Kind::Kv));
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_host-ctl"));
        let printed = command.arg("inspect").arg(&path).output().unwrap().stdout;
        let text = String::from_utf8(printed).unwrap();
        let shape = format!("2 layers x 1 heads of one plane x 8 {name}, chunks of 16 tokens");
        assert!(text.contains(&shape), "{text}");
    }
}

#[test]
fn a_flipped_bit_anywhere_that_matters_is_found() {
    let dir = tempfile::tempdir().unwrap();
    for recipe in ["q5", "lossless", "none"] {
        let path = chunk_file(dir.path(), recipe);
        let whole = fs::read(&path).unwrap();
        let chunk = inspect(&path).unwrap().chunk.unwrap();
        let tail = chunk.blocks.len() * 4096;
        // Blocks, then all of the tail.
        let blocks = chunk.blocks.iter().flat_map(|block| {
            let start = block.index * 4096;
            start..start + block.wire_bytes as usize
        });
        for at in blocks.step_by(7).chain((tail..whole.len()).step_by(3)) {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(&path, &bytes).unwrap();
            assert!(!inspect(&path).unwrap().is_good() || means_nothing(&whole, &bytes, at), "{recipe} byte {at}");
        }
        for cut in [0, 1, 63, 64, 4096, whole.len() - 1] {
            fs::write(&path, &whole[..cut]).unwrap();
            assert!(!inspect(&path).unwrap().is_good(), "{recipe} cut to {cut}");
        }
    }
}

/// Zeros between scales and payload, and spare bits of a Deflate stream: no reader sees them.
fn means_nothing(whole: &[u8], flipped: &[u8], at: usize) -> bool {
    let block = at / 4096 * 4096;
    let header = Header::parse(&whole[block..]).unwrap();
    let payload = header.payload_range();
    let codes = |file: &[u8]| {
        let mut codes = vec![0; header.codes_bytes as usize];
        block::codec::decompress(header.codec, &file[block..][payload.clone()], &mut codes).map(|()| codes)
    };
    (header.scales_range().end..payload.start).contains(&(at - block))
        || payload.contains(&(at - block)) && codes(whole) == codes(flipped)
}
