//! Which partition a record goes to.
//!
//! Promise: a key goes where Kafka's Java client would put it, so clients can share a topic. Records
//! without a key fill one partition's batch before they move on to the next: full batches are cheap.
//!
//! Not here: a partition the caller chose.

/// The partition of a key among `partitions`.
pub(crate) fn for_key(key: &[u8], partitions: usize) -> usize {
    let positive = (murmur2(key) & 0x7fff_ffff) as usize;
    positive.checked_rem(partitions).unwrap_or(0)
}

/// Austin Appleby's MurmurHash2 with the seed that Kafka's clients agreed on.
fn murmur2(data: &[u8]) -> u32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let mut hash = SEED ^ (data.len() as u32);
    let (words, tail) = data.as_chunks::<4>();
    for word in words {
        let mut k = u32::from_le_bytes(*word).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    if !tail.is_empty() {
        for (place, byte) in tail.iter().enumerate() {
            hash ^= u32::from(*byte) << (8 * place);
        }
        hash = hash.wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    hash ^ (hash >> 15)
}

/// Where records without a key go at the moment.
#[derive(Debug, Default)]
pub(crate) struct Sticky {
    turn: usize,
    bytes: usize,
}

impl Sticky {
    /// The partition for a record of `bytes`, moving on once a batch's worth went to the last one.
    pub fn next(&mut self, bytes: usize, batch_bytes: usize, partitions: usize) -> usize {
        if self.bytes > 0 && self.bytes.saturating_add(bytes) > batch_bytes {
            self.turn = self.turn.wrapping_add(1);
            self.bytes = 0;
        }
        self.bytes = self.bytes.saturating_add(bytes);
        self.turn.checked_rem(partitions).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_hash_as_in_other_clients() {
        // Values that Kafka's own tests state for its default partitioner's hash.
        let known: [(&[u8], i32); 5] = [
            (b"21", -973932308),
            (b"foobar", -790332482),
            (b"a-little-bit-long-string", -985981536),
            (b"a-little-bit-longer-string", -1486304829),
            (
                b"lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8",
                -58897971,
            ),
        ];
        for (key, hash) in known {
            assert_eq!(murmur2(key) as i32, hash, "{key:?}");
        }
    }

    #[test]
    fn every_key_has_a_partition() {
        for key in 0..1000u32 {
            assert!(for_key(&key.to_be_bytes(), 7) < 7);
        }
    }

    #[test]
    fn keyless_records_fill_one_batch_after_the_other() {
        let mut sticky = Sticky::default();
        let places: Vec<usize> = (0..6).map(|_| sticky.next(40, 100, 2)).collect();
        assert_eq!(places, [0, 0, 1, 1, 0, 0]);
        assert_eq!(
            Sticky::default().next(1000, 100, 2),
            0,
            "a large record has to go somewhere"
        );
    }
}
