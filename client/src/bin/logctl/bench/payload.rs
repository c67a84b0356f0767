//! What a benchmark's records hold: the same in every run. Pure.

use bytes::Bytes;

/// Distinct payloads; enough that no compressor's window holds them all.
const PAYLOADS: u64 = 1024;

/// And no more memory than this for them, but at least a few.
const POOL_BYTES: u64 = 64 << 20;
const PAYLOADS_MIN: u64 = 16;

/// Values to send in turn.
pub fn pool(size: u64) -> Vec<Bytes> {
    let count = (POOL_BYTES / size.max(1)).clamp(PAYLOADS_MIN, PAYLOADS);
    (1..=count).map(|seed| one(seed, size)).collect()
}

/// Letters that differ from record to record, from a generator that gives the same ones in every run.
pub fn one(seed: u64, size: u64) -> Bytes {
    const LETTERS: &[u8; 16] = b"abcdefghijklmnop";
    let mut state = (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let length = usize::try_from(size).unwrap_or(usize::MAX);
    let mut letters = Vec::with_capacity(length + 16);
    while letters.len() < length {
        // Marsaglia's xorshift.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let nibbles = (0..16).map(|at| (state >> (4 * at)) & 15);
        letters.extend(nibbles.map(|nibble| LETTERS[nibble as usize]));
    }
    letters.truncate(length);
    letters.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payloads_have_the_size_asked_for_and_differ() {
        let (first, second) = (one(1, 100), one(2, 100));
        assert_eq!((first.len(), second.len()), (100, 100));
        assert_ne!(first, second);
        assert_eq!(first, one(1, 100));
    }

    #[test]
    fn large_ones_are_fewer() {
        assert_eq!(pool(100).len(), 1024);
        assert_eq!(pool(1 << 20).len(), 64);
    }
}
