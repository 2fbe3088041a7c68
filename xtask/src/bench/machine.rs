//! What the report says of the machine: what bears on the figures, and nothing that names it.

use std::fs;
use std::thread;

/// Key and value, in the order of the report.
pub(super) fn describe() -> Vec<(&'static str, String)> {
    let cores =
        thread::available_parallelism().map_or_else(|_| "unknown".into(), |n| n.to_string());
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let memory = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    vec![
        ("cores", cores),
        ("CPU", field(&cpu, "model name").unwrap_or("unknown").to_owned()),
        ("memory", field(&memory, "MemTotal").map_or_else(|| "unknown".into(), gibibytes)),
        // The rest of the release may name who built it, and for what machine.
        ("kernel", release.split('-').next().unwrap_or_default().to_owned()),
        ("build", if cfg!(debug_assertions) { "debug" } else { "release" }.to_owned()),
    ]
}

fn field<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim())
}

fn gibibytes(kibibytes: &str) -> String {
    let number = kibibytes.trim_end_matches("kB").trim();
    number.parse::<u64>().map_or_else(|_| "unknown".into(), |kib| format!("{} GiB", kib >> 20))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_proc_are_found() {
        let text = "processor\t: 0\nmodel name\t: A CPU: fast\n";
        assert_eq!(field(text, "model name"), Some("A CPU: fast"));
        assert_eq!(field(text, "MemTotal"), None);
        assert_eq!(gibibytes("16777216 kB"), "16 GiB");
    }

    #[test]
    fn every_key_has_a_value() {
        assert!(describe().iter().all(|(_, value)| !value.is_empty()));
    }
}
