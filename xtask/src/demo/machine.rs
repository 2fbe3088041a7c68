//! What the demonstration wants to know of the machine.

use std::fs;

use crate::failure::{Context as _, Failed, Result};

/// Memory that can be used without swapping, in bytes.
pub(super) fn available_bytes() -> Result<u64> {
    let text = fs::read_to_string("/proc/meminfo").context(|| "read /proc/meminfo".into())?;
    available(&text).ok_or_else(|| Failed::new("/proc/meminfo has no line MemAvailable"))
}

fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The machine in a few words, for the report.
pub(super) fn describe() -> String {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let kernel = rustix::system::uname();
    let cpu = fs::read_to_string("/proc/cpuinfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find(|line| line.starts_with("model name"))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        })
        .unwrap_or_else(|| kernel.machine().to_string_lossy().into_owned());
    format!("{cores} × {cpu}, Linux {}", kernel.release().to_string_lossy())
}

/// Time that the machine's processors spent on something else than idling, and in all, in ticks.
pub(super) fn processor_ticks() -> Option<(u64, u64)> {
    ticks(&fs::read_to_string("/proc/stat").ok()?)
}

fn ticks(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; what follows is counted in these.
    let all: u64 = numbers.iter().take(8).sum();
    let idle: u64 = numbers.iter().skip(3).take(2).sum();
    Some((all - idle, all))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_kibibytes() {
        assert_eq!(available("MemFree: 1 kB\nMemAvailable:     2048 kB\n"), Some(2 << 20));
        assert_eq!(available("MemFree: 1 kB\n"), None);
    }

    #[test]
    fn idle_time_is_not_work() {
        assert_eq!(ticks("cpu  10 0 5 80 5 0 0 0 0 0\ncpu0 1 1 1 1\n"), Some((15, 100)));
    }
}
