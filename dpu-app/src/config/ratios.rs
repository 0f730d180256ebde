//! What recipes make of KV, as it was measured, and how an operator is told.

use block::{Recipe, Transform};

/// What a recipe with Deflate makes of bf16: docs/measurements.md, table "encoder-kv: ratio to bf16".
#[derive(Clone, Copy, Debug)]
pub struct Ratio {
    pub recipe: &'static str,
    pub ratio: f64,
    /// Restored bytes per byte of codes.
    pub tile_per_codes: f64,
    /// bf16, one core, over the copy of the tile on the same core: table "Kernels".
    pub of_memcpy: f64,
}

pub const RATIOS: [Ratio; 6] = [
    Ratio { recipe: "lossless", ratio: 1.45, tile_per_codes: 1.0, of_memcpy: 44.1 / 54.2 },
    Ratio { recipe: "q8", ratio: 2.18, tile_per_codes: 2.0, of_memcpy: 15.1 / 54.2 },
    Ratio { recipe: "q6", ratio: 2.98, tile_per_codes: 2.0, of_memcpy: 15.1 / 54.2 },
    Ratio { recipe: "q5", ratio: 3.70, tile_per_codes: 2.0, of_memcpy: 15.1 / 54.2 },
    Ratio { recipe: "q4p", ratio: 5.06, tile_per_codes: 4.0, of_memcpy: 13.1 / 54.2 },
    Ratio { recipe: "q3", ratio: 7.37, tile_per_codes: 2.0, of_memcpy: 15.1 / 54.2 },
];

impl Ratio {
    #[must_use]
    pub fn of(recipe: &str) -> Option<&'static Self> {
        RATIOS.iter().find(|ratio| ratio.recipe == recipe)
    }
}

/// What an operator has to know of a recipe: whether bits are lost, and what the other choice costs.
#[must_use]
pub(crate) fn words(recipe: Recipe) -> String {
    let size =
        |name: &str| Ratio::of(name).map_or(String::new(), |found| format!(" in about 1/{} of its bytes", found.ratio));
    let own = size(&recipe.transform.to_string());
    match recipe.transform {
        Transform::None | Transform::Lossless => {
            format!("recipe {recipe}: KV comes back bit for bit{own}; lossy recipes store less, q5{}", size("q5"))
        }
        _ => format!(
            "recipe {recipe}: lossy, KV is stored{own} and comes back rounded; lossless keeps every bit{}",
            size("lossless")
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;

    #[test]
    fn an_operator_hears_whether_bits_are_lost_and_by_default_none_are() {
        let said = |recipe: &str| words(recipe.parse().unwrap());
        assert_eq!(
            words(Config::for_cores(2).recipe),
            "recipe lossless+deflate: KV comes back bit for bit in about 1/1.45 of its bytes; lossy recipes store less, q5 in about 1/3.7 of its bytes"
        );
        assert!(said("none").contains("bit for bit"));
        for lossy in ["q8", "q5", "q4", "q3p", "peak20", "cachegen", "packed3"] {
            assert!(
                said(lossy).contains("lossy, KV is stored") && said(lossy).contains("lossless keeps every bit"),
                "{lossy}"
            );
        }
    }
}
