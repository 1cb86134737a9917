//! A quick hash for integer keys, seeded per process so that a file cannot aim at its buckets.

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
