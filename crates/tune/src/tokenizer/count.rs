//! The words of a corpus and how often each occurs.

use crate::data::{Format, Raw, Records};
use lapidary_formats::{FormatError, Result};
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};

/// What was counted.
pub(super) struct Counted {
    /// Words with their counts, in the order of their bytes.
    pub words: Vec<(Box<str>, u64)>,
    pub documents: u64,
    pub bytes: u64,
    pub broken: (u64, Option<FormatError>),
}

/// Records that one task counts.
const RECORDS: usize = 256;

/// Records of one file, with their lines.
struct Task {
    file: usize,
    records: Vec<(u64, Raw)>,
}

#[derive(Default)]
struct Tally {
    words: HashMap<Box<str>, u64>,
    documents: u64,
    bytes: u64,
    broken: u64,
    /// File, line and problem of the first broken record.
    first_broken: Option<(usize, u64, String)>,
}

/// Counts the words of all files: one thread reads, the others understand and count.
pub(super) fn count(files: &[PathBuf], format: Option<Format>, threads: usize) -> Result<Counted> {
    let (send, receive) = sync_channel::<Task>(2 * threads.max(1));
    let receive = Arc::new(Mutex::new(receive));
    let (read, tallies) = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads.max(1))
            .map(|_| {
                let receive = receive.clone();
                scope.spawn(move || tally(&receive))
            })
            .collect();
        let read = files.iter().enumerate().try_for_each(|(file, path)| {
            let mut from = Records::open(path, format, None)?;
            loop {
                let mut records = Vec::with_capacity(RECORDS);
                while records.len() < RECORDS {
                    let Some(record) = from.next()? else { break };
                    records.push(record);
                }
                if records.is_empty() {
                    return Ok(());
                }
                // Fails only if every worker has gone, which their results show.
                let _ = send.send(Task { file, records });
            }
        });
        drop(send);
        let tallies: Vec<_> =
            workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        (read, tallies)
    });
    read?;
    let mut all = Tally::default();
    for tally in tallies {
        let tally = tally.map_err(|_| FormatError::new("the corpus", "", "a thread failed"))?;
        merge(&mut all, tally);
    }
    let mut words: Vec<_> = all.words.into_iter().collect();
    words.sort_unstable();
    let first = all.first_broken.map(|(file, line, problem)| {
        FormatError::new(files[file].display(), format!("line {line}"), problem)
    });
    Ok(Counted { words, documents: all.documents, bytes: all.bytes, broken: (all.broken, first) })
}

fn merge(all: &mut Tally, one: Tally) {
    for (word, count) in one.words {
        *all.words.entry(word).or_default() += count;
    }
    all.documents += one.documents;
    all.bytes += one.bytes;
    all.broken += one.broken;
    all.first_broken = match (all.first_broken.take(), one.first_broken) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    };
}

fn tally(tasks: &Mutex<Receiver<Task>>) -> Tally {
    let mut tally = Tally::default();
    let mut word = String::new();
    loop {
        let task = tasks.lock().unwrap_or_else(|e| e.into_inner()).recv();
        let Ok(Task { file, records }) = task else { return tally };
        for (line, raw) in records {
            let document = match raw.parse() {
                Ok(document) => document,
                Err(problem) => {
                    tally.broken += 1;
                    let here = (file, line, problem);
                    let earlier = tally.first_broken.take().filter(|f| *f < here);
                    tally.first_broken = Some(earlier.unwrap_or(here));
                    continue;
                }
            };
            tally.documents += 1;
            for text in document.words() {
                tally.bytes += text.len() as u64;
                split(text, &mut word, &mut |w| {
                    // Looked up first: most words are known, and need no copy.
                    match tally.words.get_mut(w) {
                        Some(count) => *count += 1,
                        None => drop(tally.words.insert(w.into(), 1)),
                    }
                });
            }
        }
    }
}

/// Cuts a text into the stretches inside which pieces may form: `▁` with the letters, or the marks,
/// that follow it; single digits; runs of `▁` before a word. Line ends are pieces already.
fn split(text: &str, word: &mut String, found: &mut dyn FnMut(&str)) {
    word.clear();
    let mut before = Class::Break;
    for c in text.chars() {
        let class = Class::of(c);
        let goes_on = match (before, class) {
            (Class::Space, Class::Space) => true,
            // A word takes the last of the spaces before it along.
            (Class::Space, Class::Letter | Class::Mark) => {
                if word.len() > '▁'.len_utf8() {
                    word.truncate(word.len() - '▁'.len_utf8());
                    found(word);
                    word.clear();
                    word.push('▁');
                }
                true
            }
            (a, b) => a == b && matches!(a, Class::Letter | Class::Mark),
        };
        if !goes_on && !word.is_empty() {
            found(word);
            word.clear();
        }
        match class {
            Class::Break => {}
            Class::Space => word.push('▁'),
            _ => word.push(c),
        }
        before = class;
    }
    if !word.is_empty() {
        found(word);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Space,
    Letter,
    Digit,
    Mark,
    Break,
}

impl Class {
    fn of(c: char) -> Self {
        match c {
            ' ' | '▁' => Class::Space,
            '\n' => Class::Break,
            _ if c.is_numeric() => Class::Digit,
            _ if c.is_alphabetic() || is_combining(c) => Class::Letter,
            _ => Class::Mark,
        }
    }
}

/// Marks that belong to the letter before them, in the blocks that text really uses.
fn is_combining(c: char) -> bool {
    matches!(c, '\u{300}'..='\u{36f}' | '\u{1ab0}'..='\u{1aff}' | '\u{20d0}'..='\u{20ff}' | '\u{fe00}'..='\u{fe0f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_begin_with_their_space_and_digits_stand_alone() {
        let words = |text: &str| {
            let mut all = Vec::new();
            split(text, &mut String::new(), &mut |w| all.push(w.to_owned()));
            all.join("|")
        };
        assert_eq!(words("The cat's 12  (old)\n\nx"), "The|▁cat|'|s|▁|1|2|▁|▁(|old|)|x");
        assert_eq!(words("   a"), "▁▁|▁a");
        assert_eq!(words("  "), "▁▁");
        assert_eq!(words("e\u{301}te 你好!?"), "e\u{301}te|▁你好|!?");
        assert_eq!(words(""), "");
    }
}
