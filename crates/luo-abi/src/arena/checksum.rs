//! The checksum of an arena, without a library, since this crate has no operating system.
//!
//! Whoever has one computes the same over large memory with the processor's instructions.

/// The polynomial, its lowest power in the highest bit.
const POLYNOMIAL: u64 = 0x9a6c_9329_ac4b_c9b5;

/// What a byte does to the sum that has so many bytes behind it.
static TABLES: [[u64; 256]; 8] = tables();

const fn tables() -> [[u64; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut byte = 0;
    while byte < 256 {
        let mut sum = byte as u64;
        let mut table = 0;
        while table < 8 {
            let mut bit = 0;
            while bit < 8 {
                sum = (sum >> 1) ^ (POLYNOMIAL & (sum & 1).wrapping_neg());
                bit += 1;
            }
            tables[table][byte] = sum;
            table += 1;
        }
        byte += 1;
    }
    tables
}

#[inline(always)]
const fn entry(table: usize, byte: u8) -> u64 {
    TABLES[table][byte as usize]
}

/// The checksum of everything in an arena: CRC-64/NVME. It is made against torn writes and bit
/// rot, not against malice.
#[must_use]
pub fn checksum(bytes: &[u8]) -> u64 {
    let (words, tail) = bytes.as_chunks::<8>();
    let mut sum = u64::MAX;
    for word in words {
        let [a, b, c, d, e, f, g, h] = (u64::from_le_bytes(*word) ^ sum).to_le_bytes();
        sum = entry(7, a)
            ^ entry(6, b)
            ^ entry(5, c)
            ^ entry(4, d)
            ^ entry(3, e)
            ^ entry(2, f)
            ^ entry(1, g)
            ^ entry(0, h);
    }
    for byte in tail {
        sum = (sum >> 8) ^ entry(0, sum as u8 ^ byte);
    }
    !sum
}

/// The checksum of a chunk of an object, or of bytes in the catalogue: never 0, never 1.
#[must_use]
pub fn chunk_sum(bytes: &[u8]) -> u64 {
    let sum = checksum(bytes);
    if sum < 2 { sum + 2 } else { sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_documented_one() {
        // The check value of CRC-64/NVME, over the customary nine bytes.
        assert_eq!(checksum(b"123456789"), 0xae8b_1486_0a79_9888);
        assert_eq!(checksum(b""), 0);
        assert_eq!(chunk_sum(b"123456789"), 0xae8b_1486_0a79_9888);
        assert_eq!(chunk_sum(b""), 2);
    }

    #[test]
    fn words_and_single_bytes_come_to_the_same() {
        let bytes: alloc::vec::Vec<u8> = (0..100_u8).map(|n| n.wrapping_mul(37)).collect();
        for len in 0..bytes.len() {
            let slow = bytes[..len]
                .iter()
                .fold(u64::MAX, |sum, byte| (sum >> 8) ^ entry(0, sum as u8 ^ byte));
            assert_eq!(checksum(&bytes[..len]), !slow, "{len} bytes");
        }
    }
}
