//! Latencies in little space: a histogram of constant relative width, and the worst of each millisecond.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Buckets to each power of two: a value is known to 1/32.
const STEPS: u64 = 32;
const STEP_BITS: u32 = STEPS.ilog2();
const BUCKETS: usize = (STEPS as usize) * (64 - STEP_BITS as usize + 1);

/// Counts of latencies, each known to about 3 percent; the worst is exact.
#[derive(Debug, Clone)]
pub struct Histogram {
    counts: Vec<u64>,
    total: u64,
    worst: Duration,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: vec![0; BUCKETS], total: 0, worst: Duration::ZERO }
    }
}

impl Histogram {
    /// Counts one latency.
    pub fn record(&mut self, latency: Duration) {
        let nanos = u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX);
        if let Some(count) = self.counts.get_mut(bucket(nanos)) {
            *count += 1;
        }
        self.total += 1;
        self.worst = self.worst.max(latency);
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.worst = self.worst.max(other.worst);
    }

    /// How many latencies were counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The longest.
    pub fn worst(&self) -> Duration {
        self.worst
    }

    /// The latency that `percent` of all do not exceed; zero where nothing was counted.
    pub fn percentile(&self, percent: f64) -> Duration {
        let wanted = ((self.total as f64 * percent / 100.0).ceil() as u64).max(1);
        let mut seen = 0;
        for (index, count) in self.counts.iter().enumerate() {
            seen += count;
            if seen >= wanted {
                return Duration::from_nanos(upper(index)).min(self.worst);
            }
        }
        self.worst
    }
}

fn bucket(nanos: u64) -> usize {
    if nanos < STEPS {
        return nanos as usize;
    }
    let shift = nanos.ilog2() - STEP_BITS;
    (u64::from(shift + 1) * STEPS + (nanos >> shift) - STEPS) as usize
}

/// The largest value of a bucket.
fn upper(bucket: usize) -> u64 {
    let (row, column) = (bucket as u64 / STEPS, bucket as u64 % STEPS);
    if row == 0 {
        return column;
    }
    let shift = row - 1;
    ((STEPS + column + 1) << shift).wrapping_sub(1)
}

/// One millisecond of a time line.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Slot {
    /// Milliseconds since the load began.
    pub at_ms: u32,
    /// Requests answered in it.
    pub served: u32,
    /// The worst latency among them, in microseconds.
    pub worst_us: u32,
}

/// The worst latency of each millisecond.
#[derive(Debug, Clone, Default)]
pub struct Timeline {
    slots: Vec<Slot>,
}

impl Timeline {
    /// Counts one answer. `at` is since the load began and never goes back to an earlier millisecond by more than
    /// the last slot.
    pub fn record(&mut self, at: Duration, latency: Duration) {
        let at_ms = u32::try_from(at.as_millis()).unwrap_or(u32::MAX);
        let worst_us = u32::try_from(latency.as_micros()).unwrap_or(u32::MAX);
        match self.slots.last_mut() {
            Some(slot) if slot.at_ms >= at_ms => {
                slot.served += 1;
                slot.worst_us = slot.worst_us.max(worst_us);
            }
            _ => self.slots.push(Slot { at_ms, served: 1, worst_us }),
        }
    }

    /// The slots in which something was answered, in order.
    pub fn into_slots(self) -> Vec<Slot> {
        self.slots
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_in_order_and_narrow() {
        let mut last = 0;
        for nanos in (0..5000).chain((13..64).map(|i| 1 << i)).chain([u64::MAX]) {
            let index = bucket(nanos);
            assert!(index < BUCKETS && index >= last);
            assert!(upper(index) >= nanos && upper(index) - nanos <= nanos / 32);
            last = index;
        }
    }

    #[test]
    fn percentiles_are_those_of_the_values() {
        let mut histogram = Histogram::default();
        for micros in 1..=1000 {
            histogram.record(Duration::from_micros(micros));
        }
        let mut twice = histogram.clone();
        twice.merge(&histogram);
        for histogram in [histogram, twice] {
            for (percent, micros) in [(50.0, 500.0), (99.0, 990.0), (100.0, 1000.0)] {
                let found = histogram.percentile(percent).as_secs_f64() * 1e6;
                assert!((found / micros - 1.0).abs() < 0.04, "{percent}: {found}");
            }
            assert_eq!(histogram.worst(), Duration::from_micros(1000));
        }
        assert_eq!(Histogram::default().percentile(50.0), Duration::ZERO);
    }

    #[test]
    fn the_time_line_keeps_the_worst_of_each_millisecond() {
        let mut timeline = Timeline::default();
        for (at_us, latency_us) in [(100, 5), (900, 9), (1000, 3), (7500, 2)] {
            timeline.record(Duration::from_micros(at_us), Duration::from_micros(latency_us));
        }
        let slot = |at_ms, served, worst_us| Slot { at_ms, served, worst_us };
        assert_eq!(timeline.into_slots(), [slot(0, 2, 9), slot(1, 1, 3), slot(7, 1, 2)]);
    }
}
