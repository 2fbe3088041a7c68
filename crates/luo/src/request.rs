//! Numbers of requests: luod tells a repetition by them.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// A number that no other request of any client is likely to have: a random start for each
/// process, then counting. It stays within the range of a signed integer, and is never zero.
pub(crate) fn next() -> u64 {
    static START: OnceLock<u64> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(1);
    let start = *START.get_or_init(|| {
        let mut bytes = [0; 8];
        let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        let pid = u64::from(rustix::process::getpid().as_raw_nonzero().get().unsigned_abs());
        if got == Ok(bytes.len()) { u64::from_ne_bytes(bytes) } else { pid << 32 }
    });
    (start.wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed)) & (u64::MAX >> 2)).max(1)
}

#[cfg(test)]
mod tests {
    #[test]
    fn numbers_differ_and_fit_a_signed_integer() {
        let (a, b) = (super::next(), super::next());
        assert_ne!(a, b);
        assert!(i64::try_from(a).is_ok() && i64::try_from(b).is_ok());
    }
}
