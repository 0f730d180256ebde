//! Assigns the pages of T0's slab to chunks. No I/O, no locks.
//!
//! A chunk is a chain of runs (runs.rs): one for each of its parts (its head, each of its blocks), so that the part
//! can be read in place, or several for a part where no run was long enough. Hence room is never lost to
//! fragmentation; what it costs instead is a copy of the blocks that lie in pieces.

use super::runs::{NONE, PageRun, Runs};

/// Most runs of a chunk: what a seat has places for.
pub(super) const RUNS_PER_CHUNK_MAX: usize = 4096;

/// A chunk's pages.
#[derive(Clone, Copy, Debug)]
struct Record {
    first: u32,
    last: u32,
    runs: u32,
    users: u32,
    /// Nobody finds it, yet or any more: its pages go with the last user.
    gone: bool,
    next_free: u32,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct ChunkPages {
    records: Box<[Record]>,
    free_record: u32,
    runs: Runs,
}

impl ChunkPages {
    /// Init.
    pub(super) fn new(pages: usize, records: usize) -> Self {
        let link = |at: usize| if at + 1 < records { at as u32 + 1 } else { NONE };
        let record = |at| Record { first: NONE, last: NONE, runs: 0, users: 0, gone: false, next_free: link(at) };
        Self { records: (0..records).map(record).collect(), free_record: 0, runs: Runs::new(pages) }
    }

    /// Returns the bytes of the books of so many pages and records.
    pub(super) const fn memory_bytes(pages: usize, records: usize) -> usize {
        records * size_of::<Record>() + Runs::memory_bytes(pages)
    }

    pub(super) fn free_pages(&self) -> usize {
        self.runs.free_pages()
    }

    /// Takes a record without pages, which nobody finds yet.
    pub(super) fn begin(&mut self) -> Option<u32> {
        let record = Some(self.free_record).filter(|&record| record != NONE)?;
        self.free_record = self.records[record as usize].next_free;
        self.records[record as usize] =
            Record { first: NONE, last: NONE, runs: 0, users: 0, gone: true, next_free: NONE };
        Some(record)
    }

    /// Pages for the next part of a chunk, at least one: their first run. `None`: too few are free, or in too many
    /// pieces; what was taken is the record's all the same.
    pub(super) fn extend(&mut self, record: u32, pages: usize) -> Option<PageRun> {
        let Self { records, runs, .. } = self;
        let record = &mut records[record as usize];
        let (mut part, mut left) = (None, pages as u32);
        while left > 0 {
            if record.runs as usize == RUNS_PER_CHUNK_MAX {
                return None;
            }
            let run = runs.take(left)?;
            match record.last {
                NONE => record.first = run.first,
                last => runs.chain(runs.at(last), run),
            }
            (record.last, record.runs, left) = (run.first, record.runs + 1, left - run.pages);
            part.get_or_insert(run);
        }
        part
    }

    /// Lists the runs of a chunk, in order.
    pub(super) fn of(&self, record: u32) -> impl Iterator<Item = PageRun> {
        let first = Some(self.records[record as usize].first).filter(|&page| page != NONE);
        std::iter::successors(first.map(|page| self.runs.at(page)), |&run| self.runs.after(run))
    }

    /// Returns the run behind this one in its chunk.
    pub(super) fn after(&self, run: PageRun) -> Option<PageRun> {
        self.runs.after(run)
    }

    /// Lets a record be found from now on.
    pub(super) fn publish(&mut self, record: u32) {
        self.records[record as usize].gone = false;
    }

    /// Counts a reader more.
    pub(super) fn open(&mut self, record: u32) {
        self.records[record as usize].users += 1;
    }

    /// Counts a reader less.
    pub(super) fn close(&mut self, record: u32) {
        self.records[record as usize].users -= 1;
        self.release(record);
    }

    /// Nobody finds it any more.
    pub(super) fn leave(&mut self, record: u32) {
        self.records[record as usize].gone = true;
        self.release(record);
    }

    /// Frees the pages of a record that is gone and that nobody reads.
    pub(super) fn release(&mut self, record: u32) {
        let Record { first, users, gone, .. } = self.records[record as usize];
        if !gone || users > 0 {
            return;
        }
        let mut run = Some(first).filter(|&page| page != NONE).map(|page| self.runs.at(page));
        while let Some(now) = run {
            run = self.runs.after(now);
            self.runs.give(now);
        }
        self.records[record as usize].next_free = std::mem::replace(&mut self.free_record, record);
    }
}

/// Numbers below its argument, the same for the same seed.
#[cfg(test)]
pub(super) fn numbers(mut seed: u64) -> impl FnMut(usize) -> usize {
    move |end| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % end
    }
}

#[cfg(test)]
mod tests {
    use super::super::dram::{PAGE_BYTES, SPARE};
    use super::*;

    /// A full tier where chunks leave at random for others, ten times over: the share of blocks that lie in one run,
    /// and of the taken bytes that hold nothing.
    fn churned(gib: usize, blocks: usize, block_bytes: std::ops::Range<usize>) -> (f64, f64) {
        let mut next = numbers(5);
        let page_count = (gib << 30) / PAGE_BYTES;
        let spare = (page_count as f64 * SPARE) as usize;
        let mut pages = ChunkPages::new(page_count, page_count / 16);
        let mut held: Vec<(u32, usize)> = Vec::new();
        let (mut brought, mut bytes, mut taken) = (0, 0, 0);
        while brought < 10 * page_count {
            let lengths = (0..blocks).map(|_| block_bytes.start + next(block_bytes.len())).collect::<Vec<_>>();
            let counts = lengths.iter().map(|length| length.div_ceil(PAGE_BYTES));
            let count: usize = counts.clone().sum();
            while pages.free_pages() < count + spare {
                let leaves = next(held.len());
                pages.leave(held.swap_remove(leaves).0);
            }
            let record = pages.begin().expect("a record");
            counts.for_each(|count| assert!(pages.extend(record, count).is_some(), "room"));
            held.push((record, lengths.len()));
            (brought, bytes, taken) = (brought + count, bytes + lengths.iter().sum::<usize>(), taken + count);
        }
        // A block in several runs makes its chunk's chain longer: each of the others has one.
        let (all, runs) = held.iter().fold((0, 0), |(all, runs), (record, blocks)| {
            (all + blocks, runs + pages.of(*record).count().min(2 * blocks))
        });
        (1.0 - (runs - all) as f64 / all as f64, 1.0 - bytes as f64 / (taken * PAGE_BYTES) as f64)
    }

    /// `--nocapture` shows the figures of docs/tiers.md.
    #[test]
    fn most_blocks_lie_in_one_run_however_long_chunks_come_and_go() {
        for (what, gib, blocks, bytes) in [
            ("64 blocks of 90 to 330 KiB", 8, 64, 90 << 10..330 << 10),
            ("8 blocks of 200 to 900 KiB", 4, 8, 200 << 10..900 << 10),
            ("1 block of 200 to 900 KiB", 2, 1, 200 << 10..900 << 10),
        ] {
            let (in_one, waste) = churned(gib, blocks, bytes);
            println!("{gib} GiB, chunks of {what}: {:.2} % in one run, {:.1} % waste", 100.0 * in_one, 100.0 * waste);
            assert!(in_one > 0.95 && waste < 0.02, "{what}: {in_one} in one run, {waste} wasted");
        }
    }

    #[test]
    fn pages_stay_with_their_last_reader() {
        let mut pages = ChunkPages::new(8, 4);
        let record = pages.begin().expect("a record");
        assert_eq!(pages.extend(record, 4), Some(PageRun { first: 0, pages: 4 }));
        assert_eq!(pages.extend(record, 2), Some(PageRun { first: 4, pages: 2 }));
        assert_eq!(pages.of(record).map(|run| run.pages).collect::<Vec<_>>(), [4, 2]);
        pages.publish(record);
        pages.open(record);
        pages.open(record);
        pages.leave(record);
        pages.close(record);
        assert_eq!(pages.free_pages(), 2);
        pages.close(record);
        assert_eq!(pages.free_pages(), 8);
        // What does not fit is given back with what did.
        let record = pages.begin().expect("a record");
        assert_eq!((pages.extend(record, 9), pages.free_pages()), (None, 0));
        pages.release(record);
        assert_eq!(pages.free_pages(), 8);
    }
}
