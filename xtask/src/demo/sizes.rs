//! How much data, and how long: what was wanted, and what this machine has room for.

use std::time::Duration;

use crate::failure::{Failed, Result};

/// Memory that is left to everything else, in bytes.
const SPARE: u64 = 512 << 20;

/// How big the demonstration is.
#[derive(Debug, Clone)]
pub(super) struct Sizes {
    /// Data of the main part, in MiB.
    pub(super) main_mib: u64,
    /// Connections of the load.
    pub(super) connections: usize,
    /// Bytes of each value.
    pub(super) value_len: usize,
    /// How long each step lasts, from its event on.
    pub(super) step: Duration,
    /// Data of the two updates that are compared, in MiB.
    pub(super) compared_mib: [u64; 2],
    /// Updates with each amount of data.
    pub(super) rounds: usize,
    /// What had to be made smaller, in words.
    pub(super) shortages: Vec<String>,
}

impl Sizes {
    /// What `cargo xtask demo` shows.
    pub(super) const FULL: Self = Self {
        main_mib: 256,
        connections: 64,
        value_len: 4096,
        step: Duration::from_secs(3),
        compared_mib: [16, 1024],
        rounds: 3,
        shortages: Vec::new(),
    };

    /// What tests run.
    pub(super) const QUICK: Self = Self {
        main_mib: 16,
        connections: 16,
        value_len: 4096,
        step: Duration::from_millis(500),
        compared_mib: [4, 32],
        rounds: 1,
        shortages: Vec::new(),
    };

    /// As much of it as fits into so much memory; what does not is said in `shortages`.
    pub(super) fn within(mut self, available: u64) -> Result<Self> {
        let room = available.saturating_sub(SPARE) >> 20;
        // What kv needs beside the values: keys, the table, blocks that are not quite full.
        let fits = |mib: u64| mib + mib / 4 <= room;
        let (least, most) = (self.compared_mib[0], self.compared_mib[1]);
        let fitting = |wanted: u64| (0..).map(|by| wanted >> by).find(|mib| fits(*mib));
        for (what, size) in
            [("the main part", &mut self.main_mib), ("the large update", &mut self.compared_mib[1])]
        {
            let wanted = *size;
            *size = fitting(wanted).unwrap_or(0);
            if *size != wanted {
                self.shortages.push(format!(
                    "only {} MiB of memory are available: {what} has {size} MiB of data instead of {wanted}",
                    available >> 20
                ));
            }
        }
        if self.main_mib < least.min(16) || self.compared_mib[1] <= least {
            return Err(Failed::new(format!(
                "only {} MiB of memory are available, and the demonstration needs {}; end something, \
                 or try --quick",
                available >> 20,
                (SPARE >> 20) + most / 8
            )));
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn with_enough_memory_nothing_is_made_smaller() {
        let sizes = Sizes::FULL.within(4 << 30).expect("it fits");
        assert_eq!((sizes.main_mib, sizes.compared_mib), (256, [16, 1024]));
        assert!(sizes.shortages.is_empty());
    }

    #[test]
    fn what_does_not_fit_is_made_smaller_and_said() {
        let sizes = Sizes::FULL.within(1 << 30).expect("something fits");
        assert_eq!((sizes.main_mib, sizes.compared_mib), (256, [16, 256]));
        assert_eq!(sizes.shortages.len(), 1);
        assert!(sizes.shortages[0].contains("256 MiB of data instead of 1024"), "{sizes:?}");
    }

    #[test]
    fn where_hardly_anything_is_left_it_is_refused() {
        let refused = Sizes::FULL.within(520 << 20).expect_err("it does not fit");
        assert!(refused.chain().contains("520 MiB"), "{}", refused.chain());
    }
}
