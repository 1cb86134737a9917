//! Making a tokenizer from a corpus: SentencePiece's byte-pair encoding with Gemma's control tokens.
//!
//! Words are counted on all threads, then the commonest pair of neighbouring pieces becomes a piece,
//! over and over (<https://arxiv.org/abs/1508.07909>). As Gemma's tokenizer does, spaces become `▁`
//! and begin words, digits stand alone, runs of line ends are pieces, and characters that are too
//! rare are written as bytes. The result depends on the corpus and the options alone.

mod count;
mod merge;
mod write;

use crate::data::{Format, files};
use lapidary_formats::{FormatError, Result};
use std::collections::HashMap;
use std::path::PathBuf;

/// What to make.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenizerOptions {
    /// Entries of the vocabulary, all kinds together.
    pub vocab: usize,
    /// The share of the corpus's characters that get pieces of their own.
    pub coverage: f64,
    /// Characters of a piece at most.
    pub max_length: usize,
    /// Control tokens beside Gemma's: `<unused0>`, `<unused1>`, ..., for later use.
    pub unused: usize,
    /// Threads that count.
    pub threads: usize,
}

impl Default for TokenizerOptions {
    fn default() -> Self {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Self { vocab: 8192, coverage: 0.9995, max_length: 16, unused: 0, threads }
    }
}

/// A vocabulary that was learnt.
#[derive(Debug, Clone, PartialEq)]
pub struct Trained {
    /// Control tokens after Gemma's five and two turn marks.
    unused: usize,
    /// Pieces made of two others, the first made first.
    merges: Vec<String>,
    /// Single characters, the commonest first.
    characters: Vec<char>,
    /// Documents that were read.
    pub documents: u64,
    /// Bytes of text in them.
    pub bytes: u64,
    /// Records that could not be read: how many, and the first.
    pub broken: (u64, Option<FormatError>),
}

/// Control tokens, in the order of Gemma's first ids.
const CONTROL: [&str; 7] =
    ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<start_of_turn>", "<end_of_turn>"];

/// The longest run of line ends that is a piece.
const LINE_ENDS: usize = 4;

/// Learns a vocabulary from files of examples.
///
/// # Errors
/// If a file can't be read, or the corpus or the options don't allow a vocabulary of that size.
pub fn train_tokenizer(
    paths: &[PathBuf],
    format: Option<Format>,
    options: &TokenizerOptions,
) -> Result<Trained> {
    let mut all = Vec::new();
    for path in paths {
        all.extend(files(path)?);
    }
    let counted = count::count(&all, format, options.threads)?;
    let characters = characters(&counted.words, options.coverage);
    let fixed = CONTROL.len() + options.unused + LINE_ENDS + 256 + characters.len();
    let wrong = |problem: String| FormatError::new("the tokenizer", "vocabulary", problem);
    if options.vocab < fixed {
        return Err(wrong(format!(
            "{} entries are too few: control tokens, bytes and {} characters already take {fixed}",
            options.vocab,
            characters.len()
        )));
    }
    let wanted = options.vocab - fixed;
    let merges = merge::merges(&counted.words, &characters, wanted, options.max_length);
    if merges.len() < wanted {
        return Err(wrong(format!(
            "the corpus gives only {} entries, and {} were asked for: give more text, or ask for fewer",
            fixed + merges.len(),
            options.vocab
        )));
    }
    Ok(Trained {
        unused: options.unused,
        merges,
        characters,
        documents: counted.documents,
        bytes: counted.bytes,
        broken: counted.broken,
    })
}

/// The commonest characters that together make up `coverage` of the corpus, `▁` and the digits
/// always among them.
fn characters(words: &[(Box<str>, u64)], coverage: f64) -> Vec<char> {
    let mut counts: HashMap<char, u64> = HashMap::new();
    for (word, count) in words {
        for c in word.chars() {
            *counts.entry(c).or_default() += count;
        }
    }
    let total: u64 = counts.values().sum();
    let mut sorted: Vec<(char, u64)> = counts.into_iter().collect();
    sorted.sort_unstable_by_key(|(c, n)| (std::cmp::Reverse(*n), *c));
    let (mut kept, mut covered) = (Vec::new(), 0);
    for (c, n) in sorted {
        if covered as f64 >= coverage * total as f64 {
            break;
        }
        covered += n;
        kept.push(c);
    }
    let always = std::iter::once('▁').chain('0'..='9');
    let missing: Vec<char> = always.filter(|c| !kept.contains(c)).collect();
    kept.extend(missing);
    kept
}
