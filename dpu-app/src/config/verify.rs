//! `--verify-dma`: which blocks are read back from the host's pages and compared. What it is for: pipeline/verify.rs.

use std::fmt;
use std::str::FromStr;

/// Blocks of which [`Verify::Sample`] compares one.
pub const SAMPLE_BLOCKS: u32 = 64;
/// Transfers of one block, each compared, before its chunk fails.
pub(crate) const VERIFY_TRIES: u8 = 3;

/// Which blocks are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Verify {
    #[default]
    Off,
    /// One block in [`SAMPLE_BLOCKS`], and every block from the first difference on.
    Sample,
    All,
}

impl FromStr for Verify {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "sample" => Ok(Self::Sample),
            "all" => Ok(Self::All),
            _ => Err("off, sample or all"),
        }
    }
}

impl fmt::Display for Verify {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Sample => "sample",
            Self::All => "all",
        })
    }
}
