//! The least recently used leaves: to compare with.

use crate::ranked::{Ranked, ranked};

/// See the module's head.
#[derive(Debug)]
pub struct Lru(Ranked);

ranked!(Lru, "lru", false);
