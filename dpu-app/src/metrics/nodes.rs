//! Families with a `node` label: one row for each server of the store.
//!
//! This is the place for them and there are none yet: `dir:` is one directory. A distributed store lists here what it
//! counts by server (names `kvlane_store_node_*`, labels `["node"]` first), and nothing else changes: they are written,
//! documented and tested with the others. The label's values are the store's own list of servers, `host:port`, of a fixed
//! size; [`super::REPLY_BYTES`] is to hold them all.

use super::families::Family;

pub(super) const NODE_FAMILIES: &[Family] = &[];
