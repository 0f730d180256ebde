//! The pages of T0's slab as runs: pages that are neighbours. No I/O, no locks, no search: free runs are listed by
//! length.
//!
//! ```text
//!   every page belongs to one run      |taken 3|free 5    |taken 2|free 1|   no two free runs are neighbours
//!   marks on its first and last page   |3 . . |5f . . . 5f|2 0    |1f    |   f: FREE
//! ```
//!
//! A run is taken from the first list that has only runs long enough (a good fit, as in TLSF), and what is left of it
//! goes back. Where no run is long enough the caller gets the longest there is and asks again for the rest.

/// The end of a list or a chain.
pub(super) const NONE: u32 = u32::MAX;
const FREE: u32 = 1 << 31;
/// Lists for each power of two, and powers of two.
const STEPS: usize = 16;
const LISTS: usize = 32 * STEPS;

/// Neighbouring pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct PageRun {
    pub(super) first: u32,
    pub(super) pages: u32,
}

/// See the module's head.
#[derive(Debug)]
pub(super) struct Runs {
    /// Length of each run, at its first page; of a free run with FREE, and at its last page, too.
    marks: Box<[u32]>,
    /// Next run in the list, or of a taken one in its owner's chain; at the run's first page.
    next: Box<[u32]>,
    /// Run before it in the list; at a free run's first page.
    previous: Box<[u32]>,
    lists: [u32; LISTS],
    /// Bit set of the lists that have a run.
    filled: [u64; LISTS / 64],
    free_pages: usize,
}

/// Returns the list of runs of this length.
fn list_of(pages: u32) -> usize {
    let power = pages.ilog2() as usize;
    let step = if power >= 4 {
        (pages >> (power - 4)) as usize & (STEPS - 1)
    } else {
        (pages << (4 - power)) as usize & (STEPS - 1)
    };
    power * STEPS + step
}

impl Runs {
    /// Init: below 2^31 pages, all of them free.
    pub(super) fn new(pages: usize) -> Self {
        let table = |value| vec![value; pages].into_boxed_slice();
        let mut runs = Self {
            marks: table(0),
            next: table(NONE),
            previous: table(NONE),
            lists: [NONE; LISTS],
            filled: [0; LISTS / 64],
            free_pages: 0,
        };
        runs.give(PageRun { first: 0, pages: pages as u32 });
        runs
    }

    /// Bytes of the tables for so many pages.
    pub(super) const fn memory_bytes(pages: usize) -> usize {
        size_of::<Self>() + 3 * pages * size_of::<u32>()
    }

    pub(super) fn free_pages(&self) -> usize {
        self.free_pages
    }

    /// A run of so many pages, or, where there is none, of as many as the longest has.
    pub(super) fn take(&mut self, pages: u32) -> Option<PageRun> {
        let list = self.filled_from(list_of(pages) + 1).or_else(|| self.longest())?;
        // Of the own list only the first is looked at: the others may be longer, but a search would have no end.
        let own = self.lists[list_of(pages)];
        let fits = own != NONE && self.marks[own as usize] & !FREE >= pages;
        let first = if fits { own } else { self.lists[list] };
        let run = PageRun { first, pages: self.marks[first as usize] & !FREE };
        self.unlist(run);
        let taken = PageRun { pages: run.pages.min(pages), ..run };
        self.free_pages -= run.pages as usize;
        if taken.pages < run.pages {
            self.list(PageRun { first: first + taken.pages, pages: run.pages - taken.pages });
        }
        self.marks[(first + taken.pages - 1) as usize] = 0;
        self.marks[first as usize] = taken.pages;
        self.next[first as usize] = NONE;
        Some(taken)
    }

    /// Makes a taken run free, one with its free neighbours.
    pub(super) fn give(&mut self, run: PageRun) {
        let PageRun { mut first, mut pages } = run;
        let free = |mark: Option<&u32>| mark.filter(|&mark| mark & FREE != 0).map(|mark| mark & !FREE);
        if let Some(before) = free(first.checked_sub(1).and_then(|last| self.marks.get(last as usize))) {
            self.unlist(PageRun { first: first - before, pages: before });
            self.free_pages -= before as usize;
            (first, pages) = (first - before, pages + before);
        }
        if let Some(behind) = free(self.marks.get((first + pages) as usize)) {
            self.unlist(PageRun { first: first + pages, pages: behind });
            self.free_pages -= behind as usize;
            pages += behind;
        }
        self.list(PageRun { first, pages });
    }

    /// The taken run that begins at this page.
    pub(super) fn at(&self, first: u32) -> PageRun {
        PageRun { first, pages: self.marks[first as usize] }
    }

    /// The run behind a taken one in its owner's chain.
    pub(super) fn after(&self, run: PageRun) -> Option<PageRun> {
        let next = self.next[run.first as usize];
        (next != NONE).then(|| self.at(next))
    }

    /// Puts a taken run behind another in its owner's chain.
    pub(super) fn chain(&mut self, run: PageRun, behind: PageRun) {
        self.next[run.first as usize] = behind.first;
    }

    fn list(&mut self, run: PageRun) {
        let list = list_of(run.pages);
        let head = std::mem::replace(&mut self.lists[list], run.first);
        self.filled[list / 64] |= 1 << (list % 64);
        self.next[run.first as usize] = head;
        self.previous[run.first as usize] = NONE;
        if head != NONE {
            self.previous[head as usize] = run.first;
        }
        self.marks[run.first as usize] = FREE | run.pages;
        self.marks[(run.first + run.pages - 1) as usize] = FREE | run.pages;
        self.free_pages += run.pages as usize;
    }

    /// Its marks stay.
    fn unlist(&mut self, run: PageRun) {
        let (previous, next) = (self.previous[run.first as usize], self.next[run.first as usize]);
        if next != NONE {
            self.previous[next as usize] = previous;
        }
        if previous != NONE {
            self.next[previous as usize] = next;
            return;
        }
        let list = list_of(run.pages);
        self.lists[list] = next;
        if next == NONE {
            self.filled[list / 64] &= !(1 << (list % 64));
        }
    }

    /// The first list from this one on that has a run.
    fn filled_from(&self, list: usize) -> Option<usize> {
        let mut mask = u64::MAX << (list % 64);
        for word in list / 64..self.filled.len() {
            let filled = self.filled[word] & mask;
            if filled != 0 {
                return Some(word * 64 + filled.trailing_zeros() as usize);
            }
            mask = u64::MAX;
        }
        None
    }

    /// The list of the longest runs.
    fn longest(&self) -> Option<usize> {
        let last = self.filled.iter().rposition(|&word| word != 0)?;
        Some(last * 64 + 63 - self.filled[last].leading_zeros() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every page is in one run, free neighbours are one, and the lists have each free run once.
    fn check(runs: &Runs) {
        let (mut at, mut free, mut before_is_free) = (0, Vec::new(), false);
        while at < runs.marks.len() {
            let (mark, pages) = (runs.marks[at], (runs.marks[at] & !FREE) as usize);
            assert!(pages > 0, "page {at} begins a run");
            let is_free = mark & FREE != 0;
            assert!(!(is_free && before_is_free), "page {at}: two free neighbours");
            assert_eq!(runs.marks[at + pages - 1] & FREE, mark & FREE, "page {at}");
            free.extend(is_free.then_some(at as u32));
            (at, before_is_free) = (at + pages, is_free);
        }
        assert_eq!(at, runs.marks.len());
        let mut listed = Vec::new();
        for (list, &first) in runs.lists.iter().enumerate() {
            let mut first = first;
            assert_eq!(first != NONE, runs.filled[list / 64] & (1 << (list % 64)) != 0);
            while first != NONE {
                assert_eq!(list_of(runs.marks[first as usize] & !FREE), list);
                listed.push(first);
                first = runs.next[first as usize];
            }
        }
        listed.sort_unstable();
        assert_eq!(listed, free);
        let pages: usize = free.iter().map(|&first| (runs.marks[first as usize] & !FREE) as usize).sum();
        assert_eq!(pages, runs.free_pages);
    }

    #[test]
    fn longer_runs_are_in_later_lists() {
        let lists: Vec<_> = (1..5000).map(list_of).collect();
        assert!(lists.is_sorted());
        assert!(lists[..31].windows(2).all(|pair| pair[0] < pair[1]), "short ones each in their own");
        assert!(list_of(FREE - 1) < LISTS);
    }

    #[test]
    fn a_run_is_cut_from_a_longer_one_and_grows_together_again() {
        let mut runs = Runs::new(100);
        let [a, b, c] = [10, 20, 30].map(|pages| runs.take(pages).expect("room"));
        assert_eq!((a.first, b.first, c.first), (0, 10, 30));
        runs.give(b);
        assert_eq!(runs.take(15), Some(PageRun { first: 10, pages: 15 }), "the hole fits");
        assert_eq!(runs.take(50), Some(PageRun { first: 60, pages: 40 }), "no run has 50: the longest");
        assert_eq!(runs.take(50), Some(PageRun { first: 25, pages: 5 }), "and what is left");
        assert_eq!((runs.take(1), runs.free_pages()), (None, 0));
        for run in
            [c, a, PageRun { first: 60, pages: 40 }, PageRun { first: 25, pages: 5 }, PageRun { first: 10, pages: 15 }]
        {
            runs.give(run);
            check(&runs);
        }
        assert_eq!(runs.take(100), Some(PageRun { first: 0, pages: 100 }));
    }

    #[test]
    fn no_page_is_lost_or_given_twice_whatever_comes_and_goes() {
        for pages in [1, 63, 64, 1000] {
            let mut next = super::super::pages::numbers(pages as u64);
            let mut runs = Runs::new(pages);
            let mut taken: Vec<PageRun> = Vec::new();
            for _ in 0..2000 {
                if next(2) == 0 {
                    taken.extend(runs.take(1 + next(pages / 4 + 1) as u32));
                } else if !taken.is_empty() {
                    runs.give(taken.swap_remove(next(taken.len())));
                }
                check(&runs);
                let held: usize = taken.iter().map(|run| run.pages as usize).sum();
                assert_eq!(held + runs.free_pages(), pages);
            }
            taken.sort_unstable_by_key(|run| run.first);
            assert!(taken.windows(2).all(|pair| pair[0].first + pair[0].pages <= pair[1].first));
        }
    }
}
