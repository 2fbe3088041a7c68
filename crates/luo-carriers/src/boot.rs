//! Which boot of the machine this is.

/// Where the kernel tells the boot's id.
const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// The boot's id, zeros where it cannot be read.
#[must_use]
pub fn boot_id() -> [u8; 16] {
    let text = std::fs::read_to_string(BOOT_ID).unwrap_or_default();
    let digits: String = text.trim().chars().filter(|c| *c != '-').collect();
    let number = u128::from_str_radix(&digits, 16).unwrap_or(0);
    if digits.len() == 32 { number.to_be_bytes() } else { [0; 16] }
}
