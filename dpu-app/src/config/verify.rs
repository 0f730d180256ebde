//! `--verify-dma`: which blocks are read back from the host's pages and compared. What it is for: pipeline/verify.rs.

use std::fmt;
use std::str::FromStr;

/// With [`Verify::Sample`], one block of so many is compared.
pub const SAMPLE_BLOCKS: u32 = 64;
/// Comparisons of one block, each after a transfer, before its chunk fails.
pub const VERIFY_TRIES: u8 = 3;

/// Which blocks are compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Verify {
    #[default]
    Off,
    /// One of [`SAMPLE_BLOCKS`]; all, from the first that differs on.
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
