//! Repeated measurements of one thing.

/// Values in the order they were measured.
#[derive(Clone, Debug, Default)]
pub struct Sample(Vec<f64>);

impl Sample {
    /// Adds one measurement.
    pub fn push(&mut self, value: f64) {
        self.0.push(value);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing was measured yet.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The value below which a share `rank` (0 to 1) of the measurements lies, nearest rank; NaN without any.
    pub fn quantile(&self, rank: f64) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let index = (rank * sorted.len() as f64).ceil() as usize;
        sorted.get(index.saturating_sub(1).min(sorted.len().saturating_sub(1))).copied().unwrap_or(f64::NAN)
    }

    /// The middle one.
    pub fn median(&self) -> f64 {
        self.quantile(0.5)
    }

    /// Half of the distance between the quartiles as a share of the median: how far a figure can be trusted.
    pub fn spread(&self) -> f64 {
        (self.quantile(0.75) - self.quantile(0.25)) / 2.0 / self.median()
    }
}

impl FromIterator<f64> for Sample {
    fn from_iter<I: IntoIterator<Item = f64>>(values: I) -> Self {
        Self(values.into_iter().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::Sample;

    #[test]
    fn quantiles_are_nearest_ranks() {
        let sample: Sample = (1..=100).rev().map(f64::from).collect();
        assert_eq!((sample.median(), sample.quantile(0.99), sample.quantile(0.0)), (50.0, 99.0, 1.0));
        assert_eq!((sample.quantile(1.0), sample.spread()), (100.0, 0.5));
        assert!(Sample::default().median().is_nan());
    }
}
