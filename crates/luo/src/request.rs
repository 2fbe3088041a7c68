//! Numbers of requests: luod tells a repetition by them.

use std::sync::atomic::{AtomicU64, Ordering};

use rustix::rand::{GetRandomFlags, getrandom};

/// A number that no other request of any client is likely to have. It stays within the range of a
/// signed integer, and is never zero.
///
/// Each is drawn anew from the kernel: a start drawn once, then counted, would give parent and
/// child the same numbers after a `fork`, and luod would take the one's request for the other's.
pub(crate) fn next() -> u64 {
    static COUNT: AtomicU64 = AtomicU64::new(1);
    let mut bytes = [0; 8];
    let number = if getrandom(&mut bytes, GetRandomFlags::empty()) == Ok(bytes.len()) {
        u64::from_ne_bytes(bytes)
    } else {
        let pid = u64::from(rustix::process::getpid().as_raw_nonzero().get().unsigned_abs());
        (pid << 32).wrapping_add(COUNT.fetch_add(1, Ordering::Relaxed))
    };
    (number & (u64::MAX >> 2)).max(1)
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
