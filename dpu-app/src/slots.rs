//! Memory of the blocks in progress: the ring of slots, each with a wire, a codes and a tile area, and what the tier in
//! memory lends.

pub(crate) mod lender;
pub(crate) mod ring;
pub(crate) mod wire;
