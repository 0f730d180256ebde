//! What fetches bring from the store below into memory on their way.

use block::{ChunkKey, Codec};
use store::Position;

use crate::chunks::{self, get_as, put, real_chunk, soon, with_caller};
use crate::tiered::{Any, Real, facts, keys, wait_until, with_bottom_dir};

fn behind(parent: Option<ChunkKey>) -> Option<Position> {
    Some(Position { namespace: 0, parent })
}

/// As a fetch of the data plane does it: in prefix order, then the touch.
fn fetch(store: &Any, prompt: &[Real]) {
    let mut parent = None;
    for chunk in prompt {
        let lengths: Vec<_> = chunk.blocks.iter().map(Vec::len).collect();
        let (manifest, blocks) = get_as(store, 0, &chunk.key, behind(parent), &lengths).expect("fetch");
        assert!(manifest == chunk.manifest && blocks == chunk.blocks, "other bytes than were put");
        parent = Some(chunk.key);
    }
    store.touch(0, None, &keys(prompt), true);
}

fn wire_bytes(prompt: &[Real]) -> u64 {
    prompt.iter().flat_map(|chunk| &chunk.blocks).map(|block| block.len() as u64).sum()
}

/// Opens a chunk and reads its first blocks.
fn begin(store: &Any, chunk: &Real, blocks: usize) {
    with_caller(store, |caller| {
        caller.open(0, &chunk.key, behind(None), &mut [0; 4096], soon()).expect("open");
        for (index, block) in chunk.blocks[..blocks].iter().enumerate() {
            assert_eq!(caller.read(0, index, block.len(), soon()).as_ref(), Ok(block));
        }
    });
}

#[test]
fn a_first_use_is_read_from_below_once_for_all_tiers() {
    with_bottom_dir("dram=8M,dir:DIR=32M", |_, open, prompt| {
        let store = open();
        fetch(&*store, prompt);
        assert_eq!(facts(&*store, "dram"), (3, 0));
        wait_until("promotion", || facts(&*store, "dir").0 == 3);
        // What came to the disk came from memory.
        assert_eq!(store.stats().bytes_read, wire_bytes(prompt));
        fetch(&*store, prompt);
        assert_eq!((facts(&*store, "dram"), facts(&*store, "dir")), ((3, 3), (3, 0)));
    });
}

#[test]
fn half_a_chunk_and_a_bad_one_do_not_come_in() {
    with_bottom_dir("dram=8M", |_, open, prompt| {
        let store = open();
        begin(&*store, &prompt[0], 1);
        store.close(0);
        begin(&*store, &prompt[1], prompt[1].blocks.len());
        with_caller(&*store, |caller| caller.discard(0, chunks::WHY, soon()));
        store.close(0);
        assert_eq!(facts(&*store, "dram"), (0, 0));
        let mut failed = 0;
        store.tiers(false, &mut |tier| failed = tier.failed);
        assert_eq!(failed, 2);
        // Nothing of them is in the way.
        fetch(&*store, &prompt[..1]);
        assert_eq!(facts(&*store, "dram"), (1, 0));
    });
}

#[test]
fn what_is_put_while_the_old_one_comes_in_is_what_is_found() {
    with_bottom_dir("dram=8M", |_, open, prompt| {
        let store = open();
        begin(&*store, &prompt[0], prompt[0].blocks.len());
        let (blocks, manifest) = real_chunk(&prompt[0].key, Codec::Lz4);
        put(&*store, 0, &prompt[0].key, &blocks, &manifest).expect("put");
        store.close(0);
        let new = [Real { key: prompt[0].key, blocks, manifest }];
        fetch(&*store, &new);
        fetch(&*store, &new);
        assert_eq!(facts(&*store, "dram").1, 1, "the second of the two");
    });
}
