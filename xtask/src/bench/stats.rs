//! What is told of many measurements.

use std::time::Duration;

/// Measurements, sorted.
#[derive(Debug)]
pub(super) struct Samples(Vec<Duration>);

impl Samples {
    /// `None` where there is no measurement.
    pub(super) fn new(mut samples: Vec<Duration>) -> Option<Self> {
        samples.sort_unstable();
        (!samples.is_empty()).then_some(Self(samples))
    }

    /// The smallest that at least `percent` of all are no larger than.
    pub(super) fn percentile(&self, percent: usize) -> Duration {
        let rank = (self.0.len() * percent.min(100)).div_ceil(100).max(1);
        self.0.get(rank - 1).copied().unwrap_or_default()
    }

    pub(super) fn median(&self) -> Duration {
        self.percentile(50)
    }
}

/// Microseconds, with fractions.
pub(super) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_one_of_the_measurements() {
        let samples = (1..=200).rev().map(Duration::from_micros).collect();
        let samples = Samples::new(samples).expect("there are some");
        assert_eq!(samples.median(), Duration::from_micros(100));
        assert_eq!(samples.percentile(99), Duration::from_micros(198));
        assert_eq!(samples.percentile(100), Duration::from_micros(200));
        assert_eq!(samples.percentile(0), Duration::from_micros(1));
        assert!(Samples::new(Vec::new()).is_none());
    }
}
