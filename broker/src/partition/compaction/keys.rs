//! The last offset of each key, in a table of fixed size.
//!
//! Promise: memory is what was asked for at the start, whatever comes; a key that does not fit is refused.
//! A key is told by 128 bits that nobody can aim at: they depend on a secret of this process.
//! Not here: which records go in.

use std::hash::{DefaultHasher, Hasher};

/// Kafka's own table takes 24 bytes a key, too.
const SLOT_BYTES: usize = size_of::<Slot>();

/// Beyond three quarters full, looking for a place takes long.
const FULL_QUARTERS: usize = 3;

/// A map for a handful of keys is not worth a fraction of a page.
const SLOTS_MIN: usize = 64;

#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    hash: [u64; 2],
    /// The offset and one: zero is an empty slot.
    offset_and_one: i64,
}

/// Whatever two keys have in common, their hashes do not, for whoever does not know the seeds.
#[derive(Debug, Clone, Copy)]
pub struct KeyHasher(pub [u64; 2]);

impl KeyHasher {
    fn hash(&self, key: &[u8]) -> [u64; 2] {
        self.0.map(|seed| {
            let mut hasher = DefaultHasher::new();
            hasher.write_u64(seed);
            hasher.write(key);
            hasher.finish()
        })
    }
}

/// The key has no place in the map: it is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Full;

#[derive(Debug)]
pub struct KeyMap {
    hasher: KeyHasher,
    slots: Vec<Slot>,
    used: usize,
}

impl KeyMap {
    /// Room for `keys`, if `bytes_max` allows it.
    pub fn new(bytes_max: usize, keys: usize, hasher: KeyHasher) -> Self {
        let wanted = keys.saturating_mul(4).div_ceil(FULL_QUARTERS);
        let slots = wanted.clamp(SLOTS_MIN, (bytes_max / SLOT_BYTES).max(SLOTS_MIN));
        Self {
            hasher,
            slots: vec![Slot::default(); slots],
            used: 0,
        }
    }

    fn capacity(&self) -> usize {
        self.slots.len() / 4 * FULL_QUARTERS
    }

    /// Where a key is, or would be.
    fn place(&self, hash: [u64; 2]) -> usize {
        let slots = self.slots.len();
        let mut at = (hash[0] % slots as u64) as usize;
        // It ends: a quarter of the slots is empty.
        while let Some(slot) = self.slots.get(at)
            && slot.offset_and_one != 0
            && slot.hash != hash
        {
            at = (at + 1) % slots;
        }
        at
    }

    /// Keeps the larger offset of a key.
    ///
    /// # Errors
    /// [`Full`] for a new key that has no room.
    pub fn put(&mut self, key: &[u8], offset: i64) -> Result<(), Full> {
        let hash = self.hasher.hash(key);
        let (at, full) = (self.place(hash), self.used >= self.capacity());
        let Some(slot) = self.slots.get_mut(at) else {
            return Err(Full);
        };
        if slot.offset_and_one == 0 {
            if full {
                return Err(Full);
            }
            self.used += 1;
            slot.hash = hash;
        }
        slot.offset_and_one = slot.offset_and_one.max(offset.saturating_add(1));
        Ok(())
    }

    pub fn get(&self, key: &[u8]) -> Option<i64> {
        let slot = self.slots.get(self.place(self.hasher.hash(key)))?;
        (slot.offset_and_one != 0).then(|| slot.offset_and_one - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const HASHER: KeyHasher = KeyHasher([3, 4]);

    #[test]
    fn a_full_map_takes_later_offsets_of_what_it_knows_and_nothing_new() {
        let mut map = KeyMap::new(0, 1_000_000, HASHER);
        let mut taken = 0i64;
        while map.put(&taken.to_be_bytes(), taken).is_ok() {
            taken += 1;
        }
        assert_eq!(taken, 48, "three quarters of the least");
        assert_eq!(map.put(&0i64.to_be_bytes(), 1_000), Ok(()));
        assert_eq!(map.get(&0i64.to_be_bytes()), Some(1_000));
        assert_eq!(map.get(&taken.to_be_bytes()), None);
    }

    #[test]
    fn memory_is_what_the_budget_says() {
        let map = KeyMap::new(24_000, usize::MAX, HASHER);
        assert_eq!(map.slots.len(), 1_000);
        assert_eq!(
            KeyMap::new(24_000, 30, HASHER).slots.len(),
            SLOTS_MIN,
            "and no more than needed"
        );
    }

    #[test]
    fn another_process_hashes_the_same_key_otherwise() {
        assert_ne!(HASHER.hash(b"key"), KeyHasher([5, 6]).hash(b"key"));
        let [a, b] = HASHER.hash(b"key");
        assert_ne!(a, b);
    }

    proptest! {
        #[test]
        fn it_is_what_a_map_of_keys_is(puts in prop::collection::vec((0u8..200, 0i64..1_000), 0..400)) {
            let (mut map, mut model) = (KeyMap::new(1 << 20, 400, HASHER), HashMap::new());
            for (key, offset) in puts {
                prop_assert_eq!(map.put(&[key], offset), Ok(()));
                let held = model.entry(key).or_insert(offset);
                *held = offset.max(*held);
            }
            prop_assert_eq!(map.used, model.len());
            for key in 0u8..=255 {
                prop_assert_eq!(map.get(&[key]), model.get(&key).copied());
            }
        }
    }
}
