//! The arithmetic of transforms, for every processor.
//!
//! ```text
//!   simd      the choice at run time; the only place where features of a processor are asked for
//!    |  avx512, avx2, neon     what each instruction set does with 32 elements      one trait: lanes::Lanes
//!   generic   the kernels: rows of a block, run by run, over any `Lanes`
//!    |  rows  which elements stand next to each other, in codes and in the tile (shape)
//!    |  run   what is done with a run, whatever its length
//!   number    conversions, scales and steps        oracle   the same from the formulas, one element at a time (tests)
//! ```

pub(crate) mod generic;
pub(crate) mod lanes;
pub(crate) mod number;
#[cfg(test)]
pub(crate) mod oracle;
pub(crate) mod rows;
pub(crate) mod run;
pub(crate) mod shape;
pub(crate) mod simd;
