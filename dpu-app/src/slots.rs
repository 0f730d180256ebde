//! Memory of the blocks in progress: the ring of slots, each with a wire, a codes and a tile area, and what the tier in
//! memory lends.

pub mod lender;
pub mod ring;
pub mod wire;
