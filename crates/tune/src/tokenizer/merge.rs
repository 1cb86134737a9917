//! Byte-pair encoding: the commonest pair of neighbours becomes a piece.

use std::cmp::Reverse;
use std::collections::hash_map::Entry;
use std::collections::{BinaryHeap, HashMap};

/// A word: its symbols and how often it occurs.
struct Word {
    symbols: Vec<u32>,
    count: i64,
}

/// Two neighbouring symbols, packed.
type Pair = u64;

fn pair(left: u32, right: u32) -> Pair {
    u64::from(left) << 32 | u64::from(right)
}

/// How often a pair occurs, and words that hold it or have held it.
#[derive(Default)]
struct Known {
    count: i64,
    words: Vec<u32>,
}

/// A pair that may be next: the greatest count wins; among equals, the piece that comes first in
/// the order of its bytes. The count may be out of date, which is seen when it is taken.
type Candidate = (i64, Reverse<Box<str>>, Pair);

/// Pairs that occur less often are no pattern.
const LEAST: i64 = 2;

struct Trainer {
    words: Vec<Word>,
    /// The text of each symbol, and how many characters it has.
    symbols: Vec<(Box<str>, usize)>,
    ids: HashMap<Box<str>, u32>,
    pairs: HashMap<Pair, Known>,
    queue: BinaryHeap<Candidate>,
    max_length: usize,
}

/// The first `wanted` pieces, fewer if the corpus has no more. Characters outside `characters`
/// part words.
pub(super) fn merges(
    words: &[(Box<str>, u64)],
    characters: &[char],
    wanted: usize,
    max_length: usize,
) -> Vec<String> {
    let mut trainer = Trainer::new(words, characters, max_length);
    let mut made = Vec::with_capacity(wanted);
    while made.len() < wanted {
        let Some((best, text)) = trainer.best() else { break };
        // Another pair may have spelt the same piece before: then it is that piece.
        let next = trainer.symbols.len() as u32;
        let id = match trainer.ids.entry(text.clone()) {
            Entry::Occupied(known) => *known.get(),
            Entry::Vacant(free) => {
                free.insert(next);
                trainer.symbols.push((text.clone(), text.chars().count()));
                made.push(text.into_string());
                next
            }
        };
        trainer.join(best, id);
    }
    made
}

impl Trainer {
    fn new(words: &[(Box<str>, u64)], characters: &[char], max_length: usize) -> Self {
        let symbols: Vec<(Box<str>, usize)> =
            characters.iter().map(|c| (c.to_string().into(), 1)).collect();
        let ids = (symbols.iter().enumerate()).map(|(i, (s, _))| (s.clone(), i as u32)).collect();
        let by_char: HashMap<char, u32> =
            characters.iter().enumerate().map(|(i, c)| (*c, i as u32)).collect();
        let mut new = Self {
            words: Vec::new(),
            symbols,
            ids,
            pairs: HashMap::new(),
            queue: BinaryHeap::new(),
            max_length,
        };
        for (word, count) in words {
            let known: Vec<Option<u32>> = word.chars().map(|c| by_char.get(&c).copied()).collect();
            for symbols in known.split(Option::is_none).filter(|s| s.len() > 1) {
                let symbols = symbols.iter().copied().flatten().collect();
                new.words.push(Word { symbols, count: *count as i64 });
            }
        }
        for i in 0..new.words.len() {
            new.count_word(i, &[]);
        }
        let all: Vec<Pair> = new.pairs.keys().copied().collect();
        all.into_iter().for_each(|p| new.offer(p));
        new
    }

    /// Takes the commonest pair out of the queue.
    fn best(&mut self) -> Option<(Pair, Box<str>)> {
        while let Some((count, Reverse(text), pair)) = self.queue.pop() {
            match self.pairs.get(&pair).map_or(0, |known| known.count) {
                now if now == count => return Some((pair, text)),
                now if now >= LEAST && now < count => self.queue.push((now, Reverse(text), pair)),
                // Gone, or offered again with its greater count.
                _ => {}
            }
        }
        None
    }

    /// Writes `id` for the pair in every word.
    fn join(&mut self, joined: Pair, id: u32) {
        let (left, right) = ((joined >> 32) as u32, joined as u32);
        let Some(known) = self.pairs.get_mut(&joined) else { return };
        let mut changed = Vec::new();
        for w in std::mem::take(&mut known.words) {
            let word = &mut self.words[w as usize];
            let old = word.symbols.clone();
            word.symbols.clear();
            let mut i = 0;
            while i < old.len() {
                if old[i] == left && old.get(i + 1) == Some(&right) {
                    word.symbols.push(id);
                    i += 2;
                } else {
                    word.symbols.push(old[i]);
                    i += 1;
                }
            }
            if word.symbols.len() < old.len() {
                changed.extend(self.count_word(w as usize, &old));
            }
        }
        changed.sort_unstable();
        changed.dedup();
        changed.into_iter().for_each(|p| self.offer(p));
    }

    /// Counts the pairs of a word that had the symbols `old`. Returns those that became commoner.
    fn count_word(&mut self, index: usize, old: &[u32]) -> Vec<Pair> {
        let word = &self.words[index];
        let pairs = |symbols: &[u32]| -> Vec<Pair> {
            symbols.windows(2).map(|w| pair(w[0], w[1])).collect()
        };
        let (before, after) = (pairs(old), pairs(&word.symbols));
        let times = |all: &[Pair], p: Pair| all.iter().filter(|q| **q == p).count() as i64;
        let mut commoner = Vec::new();
        for (i, p) in before.iter().chain(&after).enumerate() {
            let first = !before[..i.min(before.len())].contains(p)
                && (i < before.len() || !after[..i - before.len()].contains(p));
            if !first || self.too_long(*p) {
                continue;
            }
            let (was, is) = (times(&before, *p), times(&after, *p));
            if was == is {
                continue;
            }
            let known = self.pairs.entry(*p).or_default();
            known.count += (is - was) * word.count;
            if was == 0 {
                known.words.push(index as u32);
            }
            if is > was {
                commoner.push(*p);
            }
        }
        commoner
    }

    fn too_long(&self, p: Pair) -> bool {
        let length = |id: u32| self.symbols[id as usize].1;
        length((p >> 32) as u32) + length(p as u32) > self.max_length
    }

    fn offer(&mut self, p: Pair) {
        let count = self.pairs.get(&p).map_or(0, |known| known.count);
        if count >= LEAST {
            let text = |id: u32| &*self.symbols[id as usize].0;
            let joined = format!("{}{}", text((p >> 32) as u32), text(p as u32));
            self.queue.push((count, Reverse(joined.into()), p));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(all: &[(&str, u64)]) -> Vec<(Box<str>, u64)> {
        all.iter().map(|(w, n)| ((*w).into(), *n)).collect()
    }

    /// The algorithm as its paper states it: count everything anew for each merge.
    fn plainly(
        words: &[(Box<str>, u64)],
        chars: &[char],
        wanted: usize,
        max: usize,
    ) -> Vec<String> {
        let mut split: Vec<(Vec<String>, u64)> = Vec::new();
        for (word, n) in words {
            for part in word.split(|c| !chars.contains(&c)) {
                split.push((part.chars().map(String::from).collect(), *n));
            }
        }
        let mut made: Vec<String> = Vec::new();
        while made.len() < wanted {
            let mut counts: HashMap<(String, String), u64> = HashMap::new();
            for (word, n) in &split {
                for w in word.windows(2) {
                    *counts.entry((w[0].clone(), w[1].clone())).or_default() += n;
                }
            }
            counts.retain(|(a, b), n| *n >= 2 && a.chars().count() + b.chars().count() <= max);
            let best = counts.into_iter().max_by_key(|((a, b), n)| {
                // The last tie-breaker is that of the packed ids, which a plain count can't know;
                // it decides only between pairs that spell the same piece.
                (*n, Reverse(format!("{a}{b}")))
            });
            let Some(((a, b), _)) = best else { break };
            let piece = format!("{a}{b}");
            for (word, _) in &mut split {
                let mut i = 0;
                while i + 1 < word.len() {
                    if word[i] == a && word[i + 1] == b {
                        word[i].clone_from(&piece);
                        word.remove(i + 1);
                    }
                    i += 1;
                }
            }
            if !made.contains(&piece) {
                made.push(piece);
            }
        }
        made
    }

    #[test]
    fn pieces_are_those_of_the_plain_algorithm() {
        let corpus = words(&[
            ("▁low", 50),
            ("▁lower", 20),
            ("▁newest", 61),
            ("▁widest", 33),
            ("aaaaaaa", 9),
            ("▁new", 12),
            ("xyx", 1),
            ("▁wizened", 4),
            ("zéz", 7),
        ]);
        let chars: Vec<char> = "▁abcdefghijklmnopqrstuvwxyz".chars().collect();
        for wanted in [1, 5, 12, 40] {
            for max in [3, 16] {
                let got = merges(&corpus, &chars, wanted, max);
                assert_eq!(got, plainly(&corpus, &chars, wanted, max), "{wanted} {max}");
            }
        }
        assert!(merges(&corpus, &chars, 40, 16).contains(&"▁newest".to_owned()));
        assert!(!merges(&corpus, &chars, 40, 16).iter().any(|p| p.contains('é')));
    }
}
