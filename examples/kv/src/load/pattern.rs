//! What is stored under which key: bytes that follow from the key and its generation, so that every answer can be
//! checked byte for byte without keeping a copy.

/// The name of key `index`.
pub(super) fn key(index: u64) -> String {
    format!("load:{index:010}")
}

/// Appends the value of a key in its generation.
pub(super) fn value(index: u64, generation: u32, len: usize, out: &mut Vec<u8>) {
    let mut state = Random::new(index << 32 ^ u64::from(generation));
    let end = out.len() + len;
    out.reserve(len + 8);
    while out.len() < end {
        out.extend_from_slice(&state.next().to_le_bytes());
    }
    out.truncate(end);
}

/// SplitMix64: fast, and every seed gives another sequence.
#[derive(Debug)]
pub(super) struct Random {
    state: u64,
}

impl Random {
    pub(super) fn new(seed: u64) -> Self {
        Self { state: seed }
    }

    pub(super) fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.state;
        mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ mixed >> 31
    }
}

#[cfg(test)]
mod tests {
    use super::value;

    fn bytes(index: u64, generation: u32, len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        value(index, generation, len, &mut out);
        out
    }

    #[test]
    fn values_differ_by_key_and_generation_and_are_the_same_again() {
        assert_eq!(bytes(3, 4, 101), bytes(3, 4, 101));
        assert_eq!(bytes(3, 4, 101).len(), 101);
        assert_ne!(bytes(3, 4, 16), bytes(4, 3, 16));
        assert_ne!(bytes(3, 4, 16), bytes(3, 5, 16));
        assert_ne!(bytes(0, 0, 16)[..8], bytes(0, 0, 16)[8..]);
    }
}
