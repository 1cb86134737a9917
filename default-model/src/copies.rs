//! What is held out, and documents that have too much in common with it.

use crate::{Failure, corpus, prepare};
use std::collections::HashSet;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;

/// Words of a shingle.
const SHINGLE: usize = 8;
/// The share of a document's shingles from which on it counts as a copy.
const SHARE: f64 = 0.1;

/// The texts that training must not see.
#[derive(Default)]
pub struct HeldOut {
    shingles: HashSet<u64>,
    /// Whole lines and quoted sentences: what is too short for shingles.
    sentences: HashSet<String>,
}

impl HeldOut {
    /// Adds a document: its text, and the sentences in it that may stand in other documents.
    pub fn add(&mut self, text: &str) {
        let words = words(text);
        self.shingles.extend(shingles(&words));
        for sentence in sentences(text) {
            self.sentences.insert(sentence);
        }
    }

    /// What `prepare` wrote into a folder: all of it.
    ///
    /// # Errors
    /// If the folder or a file of it can't be read.
    pub fn read(folder: &Path) -> Result<Self, Failure> {
        let wrong = |e: std::io::Error| {
            Failure::new(folder, format!("cannot be read: run `default-model prepare` first: {e}"))
        };
        let mut held = Self::default();
        for entry in fs::read_dir(folder).map_err(wrong)? {
            let path = entry.map_err(wrong)?.path();
            let text = fs::read_to_string(&path).map_err(wrong)?;
            for document in corpus::lines(&path, &text)? {
                held.add(&prepare::no_marks(&prepare::plain(&document)));
            }
        }
        Ok(held)
    }

    /// Whether a document repeats what is held out: one of its sentences of two words and more, or
    /// a tenth of its shingles.
    pub fn has(&self, text: &str) -> bool {
        let words = words(text);
        let all: Vec<u64> = shingles(&words).collect();
        let found = all.iter().filter(|s| self.shingles.contains(s)).count();
        if !all.is_empty() && found as f64 >= SHARE * all.len() as f64 {
            return true;
        }
        // Long documents share a short sentence by chance.
        words.len() < 100 && sentences(text).any(|s| self.sentences.contains(&s))
    }
}

/// Letters and digits in lower case, in words.
fn words(text: &str) -> Vec<String> {
    text.split(|c: char| !c.is_alphanumeric())
        .filter(|w| !w.is_empty())
        .map(str::to_lowercase)
        .collect()
}

fn shingles(words: &[String]) -> impl Iterator<Item = u64> + '_ {
    words.windows(SHINGLE).map(|w| {
        let mut hasher = DefaultHasher::new();
        w.hash(&mut hasher);
        hasher.finish()
    })
}

/// Lines, what stands in quotation marks in them, and what follows a colon, of two words and more.
fn sentences(text: &str) -> impl Iterator<Item = String> + '_ {
    let parts = text.lines().flat_map(|line| {
        let quoted = |open: char, close: char| Some(line.split_once(open)?.1.split_once(close)?.0);
        let after = line.split_once(": ").map(|(_, rest)| rest);
        [Some(line), after, quoted('“', '”'), quoted('«', '»')]
    });
    parts.flatten().map(words).filter(|w| w.len() > 1).map(|w| w.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_are_found() {
        let mut held = HeldOut::default();
        held.add("user\nTranslate into French: We're your last hope.\nmodel\nTu es là.");
        held.add("The fox ran over the hill and through the wood to the old mill by the river.");
        assert!(held.has("How do you say “We're your last hope” in French?"));
        assert!(held.has("Comment dit-on « tu es là » en anglais ?"));
        assert!(held.has("He said: the fox ran over the hill and through the wood!"));
        assert!(!held.has("Translate into French: She was our first hope."));
        assert!(!held.has("The fox ran home."));
        assert!(!held.has("user\nHello"));
    }
}
