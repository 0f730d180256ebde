//! The least frequently used leaves, of equals the least recently used; uses are counted while it is held. To compare
//! with.

use crate::ranked::{Ranked, ranked};

/// See the module's head.
#[derive(Debug)]
pub struct Lfu(Ranked);

ranked!(Lfu, "lfu", true);
