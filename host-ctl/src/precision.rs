//! Bits where they matter: a level of precision for each chunk of a prefix, by importance and a budget of bytes.
//!
//! ```text
//! noise of a chunk = importance x (1 / peak)^2      a step of the quantizer is 1 / peak of the largest element
//!                                                   (recipes that restore every bit make none)
//! all chunks start at the finest level; then the step down that costs the least noise for each byte that it saves, until
//! the budget is met
//! ```
//! Steps go along the lower convex hull of the levels' (bytes, noise), so no other choice that takes as many bytes has
//! less noise. What is left of the budget is less than one step of one chunk. Of equals the tail of the prefix steps
//! down first. Whether importance pays, and how much: docs/measurements.md, "Precision by importance".
//!
//! Pure. What it refuses: an importance that is not a positive number, a level without one peak, and a budget below
//! what the coarsest level takes.

use std::fmt;

use block::{Recipe, Transform};

/// How a chunk may be stored, and the bytes that it then takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Level {
    pub recipe: Recipe,
    pub bytes: u64,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum PrecisionError {
    Importance { chunk: usize, value: f32 },
    Level(Recipe),
    NoLevels,
    Budget { least: u64, given: u64 },
}

impl fmt::Display for PrecisionError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Importance { chunk, value } => {
                write!(f, "the importance of chunk {chunk} is {value}, which is not above 0")
            }
            Self::Level(recipe) => write!(f, "{recipe} is no level of precision: its layers have different peaks"),
            Self::NoLevels => f.write_str("no levels to choose from"),
            Self::Budget { least, given } => {
                write!(f, "a budget of {given} bytes: all chunks at the coarsest level take {least}")
            }
        }
    }
}

impl std::error::Error for PrecisionError {}

/// One level lower on the hull: what it saves, and the noise that each saved byte costs.
#[derive(Clone, Copy, Debug)]
struct Step {
    level: usize,
    saves: u64,
    price: f64,
}

/// An index of `levels` for each chunk.
///
/// # Errors
/// Whatever the module refuses.
pub fn assign(importance: &[f32], levels: &[Level], budget: u64) -> Result<Vec<usize>, PrecisionError> {
    let is_bad = |value: &f32| !(value.is_finite() && *value > 0.0);
    if let Some(chunk) = importance.iter().position(is_bad) {
        return Err(PrecisionError::Importance { chunk, value: importance[chunk] });
    }
    let (finest, steps) = descent(levels)?;
    let mut chosen = vec![finest; importance.len()];
    let mut bytes = levels[finest].bytes * importance.len() as u64;
    // Prices rise along a chunk's steps, and equal ones keep their order: no step comes before the one above it.
    let of_chunk =
        |chunk: usize| steps.iter().map(move |step| (f64::from(importance[chunk]) * step.price, chunk, step));
    let mut all: Vec<_> = (0..importance.len()).rev().flat_map(of_chunk).collect();
    all.sort_by(|a, b| a.0.total_cmp(&b.0));
    for (_, chunk, step) in all {
        if bytes <= budget {
            break;
        }
        chosen[chunk] = step.level;
        bytes -= step.saves;
    }
    if bytes > budget { Err(PrecisionError::Budget { least: bytes, given: budget }) } else { Ok(chosen) }
}

/// The finest level, and the steps down from it along the hull.
fn descent(levels: &[Level]) -> Result<(usize, Vec<Step>), PrecisionError> {
    let noises = levels.iter().map(|level| noise(level.recipe)).collect::<Result<Vec<_>, _>>()?;
    let mut order: Vec<usize> = (0..levels.len()).collect();
    order.sort_by(|&a, &b| noises[a].total_cmp(&noises[b]).then(levels[a].bytes.cmp(&levels[b].bytes)));
    let (&finest, lower) = order.split_first().ok_or(PrecisionError::NoLevels)?;
    let mut steps: Vec<Step> = Vec::new();
    for &level in lower {
        loop {
            let from = steps.last().map_or(finest, |step| step.level);
            if levels[level].bytes >= levels[from].bytes {
                break; // more noise for nothing
            }
            let saves = levels[from].bytes - levels[level].bytes;
            let step = Step { level, saves, price: (noises[level] - noises[from]) / saves as f64 };
            if steps.last().is_some_and(|before| before.price >= step.price) {
                steps.pop(); // above the line from the level before it to this one
                continue;
            }
            steps.push(step);
            break;
        }
    }
    Ok((finest, steps))
}

/// Noise of a chunk of importance 1.
fn noise(recipe: Recipe) -> Result<f64, PrecisionError> {
    match recipe.transform {
        Transform::None | Transform::Lossless => Ok(0.0),
        Transform::Quant { peak } | Transform::Packed { peak } => Ok(f64::from(peak).powi(-2)),
        Transform::CacheGen => Err(PrecisionError::Level(recipe)),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn levels(named: &[(&str, u64)]) -> Vec<Level> {
        named.iter().map(|&(recipe, bytes)| Level { recipe: recipe.parse().unwrap(), bytes }).collect()
    }

    fn noise_of(importance: &[f32], levels: &[Level], chosen: &[usize]) -> f64 {
        let one = |(&importance, &level): (&f32, &usize)| f64::from(importance) * noise(levels[level].recipe).unwrap();
        importance.iter().zip(chosen).map(one).sum()
    }

    fn bytes_of(levels: &[Level], chosen: &[usize]) -> u64 {
        chosen.iter().map(|&level| levels[level].bytes).sum()
    }

    #[test]
    fn the_important_quarter_keeps_its_bits() {
        let levels = levels(&[("q8", 880), ("q5", 520), ("q4", 400)]);
        let importance = [9.0, 1.0, 1.0, 1.0];
        assert_eq!(assign(&importance, &levels, 4 * 880).unwrap(), [0, 0, 0, 0]);
        assert_eq!(assign(&importance, &levels, 880 + 3 * 520).unwrap(), [0, 1, 1, 1]);
        assert_eq!(assign(&importance, &levels, 520 + 3 * 400).unwrap(), [1, 2, 2, 2]);
        assert_eq!(assign(&[1.0; 4], &levels, 3 * 880 + 520).unwrap(), [0, 0, 0, 1], "of equals the tail first");
    }

    #[test]
    fn levels_that_are_worth_nothing_are_not_used() {
        // q6 takes more than q8, and q4 lies above the line from q5 to q3.
        let levels = levels(&[("q6", 900), ("q8", 880), ("q5", 520), ("q4", 519), ("q3", 200)]);
        for budget in (5 * 200..5 * 900).step_by(50) {
            let chosen = assign(&[1.0, 2.0, 3.0, 4.0, 5.0], &levels, budget).unwrap();
            assert!(chosen.iter().all(|level| [1, 2, 4].contains(level)), "{budget}: {chosen:?}");
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_name() {
        let two = levels(&[("q8", 880), ("q5", 520)]);
        let refused = |importance: &[f32], levels: &[Level], budget| assign(importance, levels, budget).unwrap_err();
        assert_eq!(refused(&[1.0, 1.0], &two, 1039), PrecisionError::Budget { least: 1040, given: 1039 });
        for value in [0.0, -1.0, f32::INFINITY] {
            assert_eq!(refused(&[1.0, value], &two, 9999), PrecisionError::Importance { chunk: 1, value });
        }
        assert!(refused(&[f32::NAN], &two, 9999).to_string().contains("chunk 0"));
        assert_eq!(refused(&[1.0], &[], 9999), PrecisionError::NoLevels);
        assert!(refused(&[1.0], &levels(&[("cachegen", 1)]), 9999).to_string().contains("cachegen"));
    }

    proptest! {
        /// Every choice of levels is tried.
        #[test]
        fn nothing_within_the_same_bytes_has_less_noise(
            importance in prop::collection::vec(0.01f32..100.0, 1..5),
            bytes in prop::collection::vec(1u64..1000, 4),
            share in 0.0f64..1.0,
        ) {
            let names = ["q8", "q6", "q4", "q3"];
            let named: Vec<_> = names.into_iter().zip(bytes).collect();
            let levels = levels(&named);
            let least = levels.iter().map(|level| level.bytes).min().unwrap() * importance.len() as u64;
            let most = levels[0].bytes.max(least / importance.len() as u64) * importance.len() as u64;
            let budget = least + ((most - least) as f64 * share) as u64;
            let chosen = assign(&importance, &levels, budget).unwrap();
            let (bytes, noise) = (bytes_of(&levels, &chosen), noise_of(&importance, &levels, &chosen));
            prop_assert!(bytes <= budget);
            for code in 0..4usize.pow(importance.len() as u32) {
                let other: Vec<usize> = (0..importance.len()).map(|at| code / 4usize.pow(at as u32) % 4).collect();
                if bytes_of(&levels, &other) <= bytes {
                    let less = noise_of(&importance, &levels, &other);
                    prop_assert!(less >= noise * (1.0 - 1e-9), "{chosen:?} has {noise}, {other:?} {less}");
                }
            }
        }
    }
}
