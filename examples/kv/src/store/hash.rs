//! SipHash-1-3: keyed, so that clients cannot choose keys that share a bucket.
//!
//! Invariants: the result is part of the layout of the store's memory and never changes; the standard library's
//! hasher makes no such promise.

/// Hashes `bytes` under a 128-bit key.
pub(super) fn siphash13(key: [u64; 2], bytes: &[u8]) -> u64 {
    let mut state = State {
        v0: key[0] ^ 0x736f_6d65_7073_6575,
        v1: key[1] ^ 0x646f_7261_6e64_6f6d,
        v2: key[0] ^ 0x6c79_6765_6e65_7261,
        v3: key[1] ^ 0x7465_6462_7974_6573,
    };
    let (words, tail) = bytes.as_chunks::<8>();
    for word in words {
        state.absorb(u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..tail.len()].copy_from_slice(tail);
    state.absorb(u64::from_le_bytes(last) | ((bytes.len() as u64 & 0xff) << 56));
    state.v2 ^= 0xff;
    for _ in 0..3 {
        state.round();
    }
    state.v0 ^ state.v1 ^ state.v2 ^ state.v3
}

struct State {
    v0: u64,
    v1: u64,
    v2: u64,
    v3: u64,
}

impl State {
    fn absorb(&mut self, word: u64) {
        self.v3 ^= word;
        self.round();
        self.v0 ^= word;
    }

    fn round(&mut self) {
        self.v0 = self.v0.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(13) ^ self.v0;
        self.v0 = self.v0.rotate_left(32);
        self.v2 = self.v2.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(16) ^ self.v2;
        self.v0 = self.v0.wrapping_add(self.v3);
        self.v3 = self.v3.rotate_left(21) ^ self.v0;
        self.v2 = self.v2.wrapping_add(self.v1);
        self.v1 = self.v1.rotate_left(17) ^ self.v2;
        self.v2 = self.v2.rotate_left(32);
    }
}

#[cfg(test)]
mod tests {
    use std::hash::Hasher;

    use super::siphash13;

    #[test]
    fn the_hash_is_siphash_1_3() {
        // The standard library's hasher is SipHash-1-3 with a zero key today; it checks the arithmetic.
        for len in 0..70 {
            let bytes: Vec<u8> = (0..len).map(|i: u8| i.wrapping_mul(37).wrapping_add(5)).collect();
            #[allow(clippy::default_constructed_unit_structs, reason = "names the hasher")]
            let mut hasher = std::hash::DefaultHasher::new();
            hasher.write(&bytes);
            assert_eq!(siphash13([0, 0], &bytes), hasher.finish());
        }
        assert_ne!(siphash13([1, 0], b"key"), siphash13([0, 1], b"key"));
    }

    #[test]
    fn the_hash_never_changes_between_versions() {
        assert_eq!(siphash13([1, 2], b"luo"), 9_344_268_144_427_628_945);
    }
}
