//! The directory store against a model of ten lines: least recently used goes first, and the limit holds.

use proptest::prelude::*;
use store::dir::{DirOptions, DirStore};
use store::{Store, StoreError};

use crate::chunks::{Look, chunk_path, condemn, get, key, limits, memory_dir, noise, put, soon};

const CHUNKS: u64 = 12;
const BYTES_MAX: u64 = 200 << 10;
const CHUNKS_MAX: usize = 7;
/// Table row, manifest, trailer.
const TAIL_BYTES: u64 = 16 + 1 + 64;

#[derive(Clone, Debug)]
enum Op {
    Put { n: u64, bytes: usize },
    Abort { n: u64, bytes: usize },
    Get { n: u64 },
    Touch { prefix: Vec<u64> },
    Corrupt { n: u64 },
    Restart,
}

/// Chunks of a prompt's beginning in their order. None is there twice: a key tells all that is before it.
fn prefix() -> impl Strategy<Value = Vec<u64>> {
    proptest::sample::subsequence((0..CHUNKS).collect::<Vec<_>>(), 0..6).prop_shuffle()
}

fn op() -> impl Strategy<Value = Op> {
    let n = 0..CHUNKS;
    prop_oneof![
        6 => (n.clone(), 1..90_000usize).prop_map(|(n, bytes)| Op::Put { n, bytes }),
        1 => (n.clone(), 200_000..260_000usize).prop_map(|(n, bytes)| Op::Put { n, bytes }),
        1 => (n.clone(), 1..90_000usize).prop_map(|(n, bytes)| Op::Abort { n, bytes }),
        6 => n.clone().prop_map(|n| Op::Get { n }),
        2 => prefix().prop_map(|prefix| Op::Touch { prefix }),
        1 => n.prop_map(|n| Op::Corrupt { n }),
        1 => Just(Op::Restart),
    ]
}

/// Chunks by use, the oldest first: number, length of its block.
#[derive(Debug, Default)]
struct Model {
    chunks: Vec<(u64, usize)>,
}

fn room(bytes: usize) -> u64 {
    (bytes as u64).next_multiple_of(4096)
}

impl Model {
    fn bytes(&self) -> u64 {
        self.chunks.iter().map(|&(_, bytes)| room(bytes) + TAIL_BYTES).sum()
    }

    /// Evicts until `pending` bytes and `chunks` more chunks fit.
    fn make_room(&mut self, pending: u64, chunks: usize) -> bool {
        if pending > BYTES_MAX {
            return false;
        }
        while self.bytes() + pending > BYTES_MAX || self.chunks.len() + chunks > CHUNKS_MAX {
            self.chunks.remove(0);
        }
        true
    }

    fn remove(&mut self, n: u64) -> Option<usize> {
        let at = self.chunks.iter().position(|&(m, _)| m == n)?;
        Some(self.chunks.remove(at).1)
    }

    fn touch(&mut self, n: u64) -> Option<usize> {
        let bytes = self.remove(n)?;
        self.chunks.push((n, bytes));
        Some(bytes)
    }
}

fn open(dir: &std::path::Path) -> DirStore {
    let options = DirOptions { bytes_max: Some(BYTES_MAX), chunks_max: CHUNKS_MAX, sync: false };
    DirStore::open(dir, &limits(), options).expect("the directory opens")
}

fn run(ops: &[Op]) -> Result<(), TestCaseError> {
    let dir = memory_dir();
    let mut store = open(dir.path());
    let mut model = Model::default();
    for op in ops {
        match op {
            &Op::Put { n, bytes } => {
                let found = put(&store, 0, &key(n), &[noise(n, bytes)], b"m");
                let fits = model.make_room(room(bytes), 0) && model.make_room(room(bytes) + TAIL_BYTES, 1);
                prop_assert_eq!(found.is_ok(), fits, "{:?}", found);
                if fits {
                    model.remove(n);
                    model.chunks.push((n, bytes));
                } else {
                    prop_assert!(matches!(found, Err(StoreError::Full { .. })), "{:?}", found);
                }
            }
            &Op::Abort { n, bytes } => {
                store.begin_put(1, &key(n), None, soon()).expect("begin");
                let found = store.put_block(1, 3, &noise(n, bytes));
                prop_assert_eq!(found.is_ok(), model.make_room(room(bytes), 0));
                store.abort_put(1);
            }
            &Op::Get { n } => match model.touch(n) {
                Some(bytes) => prop_assert!(get(&store, 2, &key(n), &[bytes]).expect("get").1 == [noise(n, bytes)]),
                None => prop_assert_eq!(get(&store, 2, &key(n), &[]), Err(StoreError::Miss)),
            },
            Op::Touch { prefix } => {
                store.touch(0, None, &prefix.iter().copied().map(key).collect::<Vec<_>>(), false);
                prefix.iter().rev().for_each(|&n| _ = model.touch(n));
            }
            &Op::Corrupt { n } => {
                // None of these files is below a sixteenth of the store, save small ones: keep the quarantine empty.
                condemn(&store, 3, &key(n));
                model.remove(n);
                let _ = std::fs::remove_file(store.quarantine_path().join(key(n).to_string()));
                drop(store);
                keep_order(dir.path(), &model);
                store = open(dir.path());
            }
            Op::Restart => {
                drop(store);
                keep_order(dir.path(), &model);
                store = open(dir.path());
            }
        }
        let stats = store.stats();
        prop_assert_eq!((stats.chunks, stats.bytes), (model.chunks.len() as u64, model.bytes()), "after {:?}", op);
        for n in 0..CHUNKS {
            let there = model.chunks.iter().any(|&(m, _)| m == n);
            prop_assert_eq!(store.lookup(&[key(n)], soon()), Ok(usize::from(there)), "chunk {} after {:?}", n, op);
            prop_assert_eq!(chunk_path(dir.path(), &key(n)).exists(), there, "file of {} after {:?}", n, op);
        }
    }
    Ok(())
}

/// A restart keeps the order of use only to ten minutes; the model is exact, so its order is written down first.
fn keep_order(dir: &std::path::Path, model: &Model) {
    let start = std::time::SystemTime::now() - std::time::Duration::from_secs(100);
    for (age, &(n, _)) in model.chunks.iter().enumerate() {
        let file = std::fs::File::options().write(true).open(chunk_path(dir, &key(n))).expect("the chunk's file");
        file.set_modified(start + std::time::Duration::from_secs(age as u64)).expect("utimens");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn any_run_of_operations_leaves_what_the_model_says(ops in proptest::collection::vec(op(), 1..50)) {
        run(&ops)?;
    }
}
