//! A byte trie: which of a set of strings begin here, and which of them is the longest.

use super::hash::MixMap;

/// A set of byte strings, each with the id of the token that it stands for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Trie {
    /// (node, byte) packed as `node << 8 | byte`, to the next node; node 0 is the root.
    edges: MixMap<u32>,
    /// Of each node, the id that ends there.
    ends: Vec<Option<u32>>,
    /// Which bytes leave the root: most positions of a text end here, without a look into `edges`.
    first: Vec<bool>,
}

impl Trie {
    /// Adds `key`; a later id for the same key replaces the earlier one. An empty key is left out.
    pub(crate) fn insert(&mut self, key: &[u8], id: u32) {
        if key.is_empty() {
            return;
        }
        if self.ends.is_empty() {
            self.ends.push(None);
            self.first = vec![false; 256];
        }
        self.first[key[0] as usize] = true;
        let mut node = 0usize;
        for &byte in key {
            let next = self.ends.len();
            let edge = self.edges.entry((node as u64) << 8 | u64::from(byte));
            node = *edge.or_insert(next as u32) as usize;
            if node == next {
                self.ends.push(None);
            }
        }
        self.ends[node] = Some(id);
    }

    /// Whether nothing was added.
    pub(crate) fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// Calls `found(length, id)` for each key that `text` begins with, the shortest first.
    pub(crate) fn prefixes(&self, text: &[u8], mut found: impl FnMut(usize, u32)) {
        if self.is_empty() || text.first().is_none_or(|&b| !self.first[b as usize]) {
            return;
        }
        let mut node = 0u32;
        for (i, &byte) in text.iter().enumerate() {
            let Some(&next) = self.edges.get(&(u64::from(node) << 8 | u64::from(byte))) else {
                return;
            };
            node = next;
            if let Some(id) = self.ends[node as usize] {
                found(i + 1, id);
            }
        }
    }

    /// The longest key that `text` begins with: its length and id.
    pub(crate) fn longest(&self, text: &[u8]) -> Option<(usize, u32)> {
        let mut best = None;
        self.prefixes(text, |len, id| best = Some((len, id)));
        best
    }
}

#[cfg(test)]
mod tests {
    use super::Trie;

    #[test]
    fn finds_every_prefix_and_the_longest() {
        let mut trie = Trie::default();
        for (i, key) in ["a", "ab", "abcd", "b"].iter().enumerate() {
            trie.insert(key.as_bytes(), i as u32);
        }
        let mut seen = Vec::new();
        trie.prefixes(b"abcx", |len, id| seen.push((len, id)));
        assert_eq!(seen, [(1, 0), (2, 1)]);
        assert_eq!(trie.longest(b"abcde"), Some((4, 2)));
        assert_eq!(trie.longest(b"c"), None);
        assert_eq!(trie.longest(b""), None);
    }
}
