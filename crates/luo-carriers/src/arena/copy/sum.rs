//! Checksums of chunks, and pages of zeros.

use crc_fast::{CrcAlgorithm, checksum};

/// No checksum: of a chunk with no byte but zeros, of which nothing need be stored.
pub(super) const NOTHING: u64 = 0;
/// No checksum: of a chunk whose stored content is not known. Differs from every checksum.
pub(super) const UNKNOWN: u64 = 1;

/// The checksum of a chunk's bytes: never [`NOTHING`], never [`UNKNOWN`].
pub(super) fn sum(bytes: &[u8]) -> u64 {
    let sum = checksum(CrcAlgorithm::Crc64Nvme, bytes);
    if sum <= UNKNOWN { sum + 2 } else { sum }
}

/// Whether all bytes are zero. Looks no further than the first cache line that holds another.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let (lines, rest) = bytes.as_chunks::<64>();
    lines.iter().all(|line| line.iter().fold(0, |all, byte| all | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_bit_anywhere_makes_a_page_no_page_of_zeros() {
        let mut page = [0; 4096 + 5];
        assert!(is_zero(&page));
        for at in [0, 1, 63, 64, 4095, 4096, 4100] {
            page[at] = 0x80;
            assert!(!is_zero(&page), "{at}");
            page[at] = 0;
        }
    }

    #[test]
    fn the_checksum_is_the_documented_one() {
        // The check value of CRC-64/NVME, over the customary nine bytes.
        assert_eq!(sum(b"123456789"), 0xae8b_1486_0a79_9888);
    }
}
