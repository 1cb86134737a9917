//! Quick hashes for integer keys and for pieces, seeded per process so that a file cannot aim at
//! their buckets.

use std::collections::HashMap;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::OnceLock;

/// A map from a packed integer key.
pub(crate) type MixMap<V> = HashMap<u64, V, Mix>;

/// Builds hashers that multiply the seeded key by an odd constant and fold the halves together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Mix(u64);

/// The state of one hash.
pub(crate) struct MixHasher(u64);

impl Default for Mix {
    fn default() -> Self {
        static SEED: OnceLock<u64> = OnceLock::new();
        Self(*SEED.get_or_init(|| RandomState::new().hash_one(0u8)))
    }
}

impl BuildHasher for Mix {
    type Hasher = MixHasher;
    fn build_hasher(&self) -> MixHasher {
        MixHasher(self.0)
    }
}

impl Hasher for MixHasher {
    fn write(&mut self, bytes: &[u8]) {
        for &b in bytes {
            self.write_u64(u64::from(b));
        }
    }
    fn write_u64(&mut self, key: u64) {
        let wide = u128::from(self.0 ^ key) * 0x9E37_79B9_7F4A_7C15;
        self.0 = (wide as u64) ^ ((wide >> 64) as u64);
    }
    fn finish(&self) -> u64 {
        self.0
    }
}

/// The ids of pieces by their text. It keeps no text of its own: a vocabulary of 262 144 pieces
/// would be copied once more, and looking up every split of every piece would follow each copy.
#[derive(Debug, Clone)]
pub(crate) struct Index {
    /// The upper half of a hash and an id, `VACANT` where nothing is; a power of two of them, at
    /// most half of them taken.
    slots: Vec<(u32, u32)>,
    seed: u64,
}

/// No id: vocabularies are far smaller.
const VACANT: u32 = u32::MAX;

impl Index {
    /// An index of pieces and their ids. Of a text given twice the first id counts.
    pub(crate) fn new<'a>(
        count: usize,
        entries: impl Iterator<Item = u32>,
        text: impl Fn(u32) -> &'a str,
    ) -> Self {
        let size = (2 * count).next_power_of_two().max(2);
        let mut index = Self { slots: vec![(0, VACANT); size], seed: Mix::default().0 };
        for id in entries.take(count) {
            let (hash, at) = index.find(text(id), &text);
            if index.slots[at].1 == VACANT {
                index.slots[at] = (hash, id);
            }
        }
        index
    }

    /// The id of a piece; `text` gives that of an id.
    pub(crate) fn get<'a>(&self, piece: &str, text: impl Fn(u32) -> &'a str) -> Option<u32> {
        let (_, at) = self.find(piece, text);
        Some(self.slots[at].1).filter(|id| *id != VACANT)
    }

    /// The upper half of the hash, and the slot that has the piece or could take it.
    fn find<'a>(&self, piece: &str, text: impl Fn(u32) -> &'a str) -> (u32, usize) {
        let hash = hash(self.seed, piece.as_bytes());
        let (high, mask) = ((hash >> 32) as u32, self.slots.len() - 1);
        let mut at = hash as usize & mask;
        loop {
            let (other, id) = self.slots[at];
            if id == VACANT || other == high && text(id) == piece {
                return (high, at);
            }
            at = (at + 1) & mask;
        }
    }
}

/// Eight bytes at a time, multiplied and folded as [`MixHasher`] does.
fn hash(seed: u64, bytes: &[u8]) -> u64 {
    let mut state = MixHasher(seed ^ bytes.len() as u64);
    let (words, rest) = bytes.as_chunks::<8>();
    for word in words {
        state.write_u64(u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    state.write_u64(u64::from_le_bytes(last));
    state.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_finds_what_a_map_finds() {
        let texts: Vec<String> = (0..5000u32)
            .map(|i| format!("{:x}", i.wrapping_mul(2_654_435_761) >> (i % 32)))
            .chain(["".into(), "a".into(), "a\0".into(), "abcdefgh".into(), "abcdefgh\0".into()])
            .collect();
        let mut map = HashMap::new();
        for (i, text) in texts.iter().enumerate() {
            map.entry(text.as_str()).or_insert(i as u32);
        }
        assert!(map.len() < texts.len(), "some stand twice");
        let text = |id: u32| texts[id as usize].as_str();
        let index = Index::new(texts.len(), 0..texts.len() as u32, text);
        for known in texts.iter().map(String::as_str).chain(["zz", "a\0\0", "abcdefg"]) {
            assert_eq!(index.get(known, text), map.get(known).copied(), "{known:?}");
        }
        assert_eq!(Index::new(0, 0..0, text).get("a", text), None);
    }
}
