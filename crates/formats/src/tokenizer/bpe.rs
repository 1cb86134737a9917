//! Byte pair encoding: start from single characters (or bytes) and merge the best pair, again and
//! again, until no pair is known. O(n log n) in the length of the text.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

use super::hash::MixMap;

/// Marks a character that is no token by itself; its code point is in the low bits.
const LOOSE: u32 = 1 << 31;
/// "No such token" in the table of bytes, "no neighbour" in the list of symbols.
const NONE: u32 = u32::MAX;
/// Up to this many symbols a plain search for the best pair beats a queue.
const SHORT: usize = 16;

/// A byte pair model over ids.
#[derive(Debug, Clone)]
pub(crate) struct Bpe {
    /// (left, right) packed as `left << 32 | right`, to (rank, merged id). The lowest rank merges first.
    pairs: MixMap<(u32, u32)>,
    /// Code point to the token that is that character alone.
    chars: MixMap<u32>,
    /// Byte to its token, or `NONE`.
    pub(crate) bytes: [u32; 256],
    /// What stands for a character that nothing else covers.
    pub(crate) unk: Option<u32>,
    /// Spell characters without a token of their own as bytes.
    pub(crate) byte_fallback: bool,
    /// A run of unknown characters gives one unknown token.
    pub(crate) fuse_unk: bool,
    /// Start from bytes and not from characters (GPT-2).
    pub(crate) byte_level: bool,
    /// Whole words that are taken without merging (`ignore_merges`).
    pub(crate) whole: HashMap<Box<[u8]>, u32>,
    /// Tokens that may only be a step on the way: split again afterwards (SentencePiece "unused").
    pub(crate) unused: MixMap<()>,
}

/// One symbol of the text while it is being merged: a link of a list.
#[derive(Clone, Copy)]
struct Symbol {
    id: u32,
    /// Starting symbols that it covers; 0 once it has been merged into its left neighbour.
    len: u32,
    prev: u32,
    next: u32,
}

/// A candidate merge, ordered by rank and then from left to right.
type Candidate = Reverse<(u32, u32, u32, u32)>;

impl Bpe {
    /// A model without any merge, starting from bytes or from characters.
    pub(crate) fn new(byte_level: bool) -> Self {
        Self {
            pairs: MixMap::default(),
            chars: MixMap::default(),
            bytes: [NONE; 256],
            unk: None,
            byte_fallback: false,
            fuse_unk: true,
            byte_level,
            whole: HashMap::new(),
            unused: MixMap::default(),
        }
    }

    /// Makes room for `count` pairs.
    pub(crate) fn reserve(&mut self, count: usize) {
        self.pairs.reserve(count);
    }

    /// `id` is the token of the single character `c`.
    pub(crate) fn add_char(&mut self, c: char, id: u32) {
        self.chars.insert(u64::from(u32::from(c)), id);
    }

    /// Two neighbours merge into `id`; of a pair given twice the lower rank counts.
    pub(crate) fn add_pair(&mut self, left: u32, right: u32, rank: u32, id: u32) {
        let slot = self.pairs.entry(key(left, right)).or_insert((rank, id));
        if rank < slot.0 {
            *slot = (rank, id);
        }
    }

    /// Adds every way in which `piece` (token `id`) splits into two known halves, where `id_of`
    /// knows the pieces that may be merged. This is SentencePiece's rule, as a table of pairs: a
    /// half is a piece or a single character.
    pub(crate) fn add_splits(
        &mut self,
        piece: &str,
        id: u32,
        score: f32,
        id_of: impl Fn(&str) -> Option<u32>,
    ) {
        let half = |s: &str| {
            id_of(s).or_else(|| {
                let mut chars = s.chars();
                let c = chars.next()?;
                chars.next().is_none().then_some(LOOSE | u32::from(c))
            })
        };
        for (at, _) in piece.char_indices().skip(1) {
            if let (Some(left), Some(right)) = (half(&piece[..at]), half(&piece[at..])) {
                self.add_pair(left, right, rank_of_score(score), id);
            }
        }
    }

    /// Appends the ids of one word (or of a whole text, where nothing splits it).
    pub(crate) fn encode(&self, word: &str, out: &mut Vec<u32>) {
        if let Some(&id) = self.whole.get(word.as_bytes()) {
            out.push(id);
            return;
        }
        let ids = self.merge(self.start(word));
        for id in ids {
            if id & LOOSE == 0 {
                out.push(id);
            } else if let Some(c) = char::from_u32(id & !LOOSE) {
                self.spell(c, out);
            }
        }
    }

    /// The symbols from which merging starts.
    fn start(&self, word: &str) -> Vec<u32> {
        if self.byte_level {
            let known = |b: u8| match self.bytes[b as usize] {
                NONE => self.unk,
                id => Some(id),
            };
            return word.bytes().filter_map(known).collect();
        }
        let id = |c: char| {
            let code = u32::from(c);
            self.chars.get(&u64::from(code)).copied().unwrap_or(LOOSE | code)
        };
        word.chars().map(id).collect()
    }

    /// A character without a token: its bytes, or the unknown token.
    fn spell(&self, c: char, out: &mut Vec<u32>) {
        let mut buffer = [0; 4];
        let bytes = c.encode_utf8(&mut buffer).as_bytes();
        if self.byte_fallback && bytes.iter().all(|&b| self.bytes[b as usize] != NONE) {
            out.extend(bytes.iter().map(|&b| self.bytes[b as usize]));
        } else if let Some(unk) = self.unk
            && !(self.fuse_unk && out.last() == Some(&unk))
        {
            out.push(unk);
        }
    }

    fn pair(&self, left: u32, right: u32) -> Option<(u32, u32)> {
        self.pairs.get(&key(left, right)).copied()
    }

    fn merge(&self, mut ids: Vec<u32>) -> Vec<u32> {
        let mut made = HashMap::new();
        if ids.len() <= SHORT {
            self.merge_short(&mut ids, &mut made);
        } else {
            ids = self.merge_long(&ids, &mut made);
        }
        if made.is_empty() {
            return ids;
        }
        self.undo_unused(&ids, &made)
    }

    fn note_unused(&self, id: u32, halves: (u32, u32), made: &mut HashMap<u32, (u32, u32)>) {
        if !self.unused.is_empty() && self.unused.contains_key(&u64::from(id)) {
            made.insert(id, halves);
        }
    }

    fn merge_short(&self, ids: &mut Vec<u32>, made: &mut HashMap<u32, (u32, u32)>) {
        // Of each pair, its merge; kept in step with `ids` so that a round looks up two pairs only.
        let mut best = [None; SHORT];
        for i in 1..ids.len() {
            best[i - 1] = self.pair(ids[i - 1], ids[i]);
        }
        while ids.len() > 1 {
            let found = (0..ids.len() - 1).filter_map(|i| Some((best[i]?, i)));
            let Some(((_, id), at)) = found.min_by_key(|&((rank, _), i)| (rank, i)) else { return };
            self.note_unused(id, (ids[at], ids[at + 1]), made);
            ids[at] = id;
            ids.remove(at + 1);
            best.copy_within(at + 1.., at);
            if at > 0 {
                best[at - 1] = self.pair(ids[at - 1], id);
            }
            best[at] = ids.get(at + 1).and_then(|&next| self.pair(id, next));
        }
    }

    fn merge_long(&self, ids: &[u32], made: &mut HashMap<u32, (u32, u32)>) -> Vec<u32> {
        let last = ids.len() - 1;
        let link = |i: usize, id: u32| Symbol {
            id,
            len: 1,
            prev: if i == 0 { NONE } else { i as u32 - 1 },
            next: if i == last { NONE } else { i as u32 + 1 },
        };
        let mut symbols: Vec<Symbol> = ids.iter().enumerate().map(|(i, &id)| link(i, id)).collect();
        let candidates = (0..last).filter_map(|i| self.candidate(&symbols, i as u32));
        let mut queue: BinaryHeap<Candidate> = candidates.collect::<Vec<_>>().into();
        while let Some(Reverse((_, at, len, id))) = queue.pop() {
            let left = symbols[at as usize];
            if left.len == 0 || left.next == NONE {
                continue;
            }
            let right = symbols[left.next as usize];
            // Symbols only grow: another length means that one of the two has changed since.
            if left.len + right.len != len {
                continue;
            }
            self.note_unused(id, (left.id, right.id), made);
            symbols[left.next as usize].len = 0;
            symbols[at as usize] = Symbol { id, len, prev: left.prev, next: right.next };
            if right.next != NONE {
                symbols[right.next as usize].prev = at;
                queue.extend(self.candidate(&symbols, at));
            }
            if left.prev != NONE {
                queue.extend(self.candidate(&symbols, left.prev));
            }
        }
        symbols.iter().filter(|s| s.len > 0).map(|s| s.id).collect()
    }

    /// The merge of the symbol at `at` with its right neighbour.
    fn candidate(&self, symbols: &[Symbol], at: u32) -> Option<Candidate> {
        let left = symbols[at as usize];
        let right = symbols.get(left.next as usize)?;
        let (rank, id) = self.pair(left.id, right.id)?;
        Some(Reverse((rank, at, left.len + right.len, id)))
    }

    /// Splits unused tokens into the halves that they were last made of, down to used ones.
    fn undo_unused(&self, ids: &[u32], made: &HashMap<u32, (u32, u32)>) -> Vec<u32> {
        let mut out = Vec::with_capacity(ids.len());
        let mut stack: Vec<u32> = ids.iter().rev().copied().collect();
        while let Some(id) = stack.pop() {
            match made.get(&id) {
                Some(&(left, right)) => stack.extend([right, left]),
                None => out.push(id),
            }
        }
        out
    }
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// Turns a score (higher is better, not NaN) into a rank (lower is better), keeping the order.
fn rank_of_score(score: f32) -> u32 {
    let bits = if score == 0.0 { 0 } else { score.to_bits() };
    let ordered = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    !ordered
}
