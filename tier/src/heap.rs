//! Leftist heaps in one arena: the least of a set in no time, entering and leaving in logarithmic time at worst, for any
//! number of disjoint sets without memory of their own. A set is the place of its root, or [`NONE`].
//!
//! Why not a binary heap: one array for each namespace and class would be as long as the arena each.

use crate::table::NONE;

#[derive(Clone, Copy, Debug)]
struct Link {
    priority: f64,
    left: u32,
    right: u32,
    up: u32,
    /// Steps to the nearest place without two children, plus one: never larger on the right than on the left.
    rank: u32,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) struct Heaps {
    links: Box<[Link]>,
}

impl Heaps {
    pub(crate) const fn memory_bytes(places: usize) -> usize {
        places * size_of::<Link>()
    }

    pub(crate) fn new(places: usize) -> Self {
        Self { links: vec![Link { priority: 0.0, left: NONE, right: NONE, up: NONE, rank: 1 }; places].into() }
    }

    pub(crate) fn priority(&self, at: u32) -> f64 {
        self.links[at as usize].priority
    }

    /// The caller has seen that `at` is in no set.
    pub(crate) fn insert(&mut self, root: &mut u32, at: u32, priority: f64) {
        self.links[at as usize] = Link { priority, left: NONE, right: NONE, up: NONE, rank: 1 };
        *root = self.merge(*root, at);
    }

    /// The caller has seen that `at` is in the set of `root`.
    pub(crate) fn remove(&mut self, root: &mut u32, at: u32) {
        let Link { left, right, up, .. } = self.links[at as usize];
        let rest = self.merge(left, right);
        if rest != NONE {
            self.links[rest as usize].up = up;
        }
        if up == NONE {
            debug_assert_eq!(*root, at, "it is in this set");
            *root = rest;
            return;
        }
        let above = &mut self.links[up as usize];
        if above.left == at {
            above.left = rest;
        } else {
            above.right = rest;
        }
        self.settle(up, true);
    }

    fn rank(&self, at: u32) -> u32 {
        if at == NONE { 0 } else { self.links[at as usize].rank }
    }

    fn merge(&mut self, mut a: u32, mut b: u32) -> u32 {
        let (mut root, mut tail) = (NONE, NONE);
        while a != NONE && b != NONE {
            if self.priority(b) < self.priority(a) {
                std::mem::swap(&mut a, &mut b);
            }
            self.links[a as usize].up = tail;
            if tail == NONE {
                root = a;
            } else {
                self.links[tail as usize].right = a;
            }
            tail = a;
            a = self.links[a as usize].right;
        }
        let rest = if a == NONE { b } else { a };
        if rest != NONE {
            self.links[rest as usize].up = tail;
        }
        if tail == NONE {
            return rest;
        }
        self.links[tail as usize].right = rest;
        self.settle(tail, false);
        root
    }

    /// Puts ranks right from `at` upwards; with `early` it stops where nothing changes any more.
    fn settle(&mut self, mut at: u32, early: bool) {
        while at != NONE {
            let Link { left, right, rank, up, .. } = self.links[at as usize];
            let turned = self.rank(left) < self.rank(right);
            let link = &mut self.links[at as usize];
            if turned {
                (link.left, link.right) = (right, left);
            }
            let now = self.rank(if turned { left } else { right }) + 1;
            self.links[at as usize].rank = now;
            if early && now == rank {
                return;
            }
            at = up;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_root_is_always_the_least_and_ranks_hold(steps in prop::collection::vec((0..24u32, -50..50i32), 1..200)) {
            let mut heaps = Heaps::new(24);
            let mut roots = [NONE; 2];
            let mut oracle = [Vec::<(i32, u32)>::new(), Vec::new()];
            for (at, priority) in steps {
                let set = (at % 2) as usize;
                match oracle[set].iter().position(|(_, other)| *other == at) {
                    Some(index) => {
                        heaps.remove(&mut roots[set], at);
                        oracle[set].swap_remove(index);
                    }
                    None => {
                        heaps.insert(&mut roots[set], at, priority.into());
                        oracle[set].push((priority, at));
                    }
                }
                for (root, members) in roots.iter().zip(&oracle) {
                    let least = members.iter().map(|(priority, _)| f64::from(*priority)).reduce(f64::min);
                    prop_assert_eq!((*root != NONE).then(|| heaps.priority(*root)), least);
                }
                for (_, at) in oracle.iter().flatten() {
                    let link = heaps.links[*at as usize];
                    prop_assert!(heaps.rank(link.left) >= heaps.rank(link.right));
                }
            }
        }
    }
}
