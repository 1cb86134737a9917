//! The examination's prompts, and what an answer has to be like.

use crate::Failure;
use crate::generate::plain;
use serde::Deserialize;
use std::collections::HashSet;

/// A turn.
#[derive(Debug, Clone, Deserialize)]
pub struct Turn {
    pub role: String,
    pub content: String,
}

/// A prompt.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// What it examines.
    pub kind: String,
    pub messages: Vec<Turn>,
    /// `en` or `fr`: of the answer.
    pub language: String,
    /// One of these has to stand in the answer.
    #[serde(default)]
    pub any: Vec<String>,
    /// Words that the answer has to have at least.
    #[serde(default)]
    pub words: usize,
}

/// An answer.
pub struct Answer {
    pub text: String,
    /// Whether the model ended it by itself.
    pub stopped: bool,
}

/// The share of repeated groups of four words from which on an answer rambles.
const REPEATED: f64 = 0.2;

impl Prompt {
    /// What the last turn asks.
    pub fn last_question(&self) -> Option<String> {
        self.messages.last().map(|m| m.content.clone())
    }

    /// What is wrong with an answer, the first that is found.
    pub fn fault(&self, answer: &Answer) -> Option<&'static str> {
        let text = answer.text.trim();
        let words = plain(text);
        let count = words.split(' ').filter(|w| !w.is_empty()).count();
        if !answer.stopped {
            return Some("does not stop");
        }
        if count < self.words.max(1) {
            return Some("too short");
        }
        if repeated(&words) > REPEATED {
            return Some("repeats itself");
        }
        if !speaks(&words, &self.language) {
            return Some("language");
        }
        if !self.any.is_empty() && !self.any.iter().any(|a| holds(text, a)) {
            return Some("answer");
        }
        if !text.chars().next().is_some_and(|c| c.is_uppercase() || !c.is_alphabetic()) {
            return Some("form");
        }
        None
    }
}

/// Whether `part` stands in `text` at the beginnings and ends of words.
fn holds(text: &str, part: &str) -> bool {
    let inside = |c: Option<char>| c.is_some_and(char::is_alphanumeric);
    text.match_indices(part).any(|(at, _)| {
        // Words may begin in the middle of another spelling only where the part does too.
        let before = text[..at].chars().next_back();
        let behind = text[at + part.len()..].chars().next();
        let first = part.chars().next();
        let last = part.chars().next_back();
        let letters = first.is_some_and(|c| c.is_ascii_digit() || c.is_uppercase());
        !(letters && inside(before) || last.is_some_and(char::is_alphanumeric) && inside(behind))
    })
}

/// The share of groups of four words that stood in the text before.
fn repeated(words: &str) -> f64 {
    let words: Vec<&str> = words.split(' ').collect();
    let (mut seen, mut again, mut all) = (HashSet::new(), 0u32, 0u32);
    for group in words.windows(4) {
        all += 1;
        again += u32::from(!seen.insert(group));
    }
    f64::from(again) / f64::from(all.max(1))
}

const ENGLISH: [&str; 24] = [
    "the", "and", "is", "of", "to", "a", "in", "it", "you", "i", "was", "he", "she", "that", "can",
    "with", "what", "for", "are", "have", "not", "my", "his", "her",
];
const FRENCH: [&str; 26] = [
    "le", "la", "les", "de", "des", "et", "est", "un", "une", "je", "vous", "il", "que", "qui",
    "pas", "du", "bonjour", "merci", "bien", "suis", "au", "revoir", "en", "mon", "ne", "font",
];

/// Whether common words of the language are at least as many as those of the other.
fn speaks(words: &str, language: &str) -> bool {
    let count = |list: &[&str]| words.split(' ').filter(|w| list.contains(w)).count();
    let (english, french) = (count(&ENGLISH), count(&FRENCH));
    if language == "fr" { french >= english } else { english >= french }
}

/// All prompts.
///
/// # Errors
/// If the file that was compiled in has a broken line.
pub fn read() -> Result<Vec<Prompt>, Failure> {
    let parse = |(i, line): (usize, &str)| {
        serde_json::from_str(line)
            .map_err(|e| Failure(format!("prompts.jsonl, line {}: {e}", i + 1)))
    };
    include_str!("../prompts.jsonl").lines().enumerate().map(parse).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(any: &[&str], language: &str, words: usize) -> Prompt {
        let any = any.iter().map(|a| (*a).to_owned()).collect();
        Prompt { kind: String::new(), messages: vec![], language: language.into(), any, words }
    }

    #[test]
    fn faults_are_found() {
        let fault = |p: &Prompt, text: &str| p.fault(&Answer { text: text.into(), stopped: true });
        let paris = prompt(&["Paris"], "en", 0);
        assert_eq!(fault(&paris, "The capital of France is Paris."), None);
        assert_eq!(fault(&paris, "The capital of France is Rome."), Some("answer"));
        assert_eq!(fault(&paris, "La ville est Paris."), Some("language"));
        assert_eq!(fault(&paris, ""), Some("too short"));
        assert_eq!(fault(&paris, "in Paris."), Some("form"));
        let unending = Answer { text: "Paris.".into(), stopped: false };
        assert_eq!(paris.fault(&unending), Some("does not stop"));
        let story = prompt(&["cat"], "en", 5);
        assert_eq!(fault(&story, "The cat sat."), Some("too short"));
        let again = "The cat sat on the mat. The cat sat on the mat.";
        assert_eq!(fault(&story, again), Some("repeats itself"));
        assert_eq!(fault(&prompt(&["4"], "en", 0), "2 plus 2 is 14."), Some("answer"));
        assert_eq!(fault(&prompt(&["4"], "en", 0), "2 plus 2 is 4."), None);
        assert_eq!(fault(&prompt(&["bye"], "en", 0), "Goodbye!"), None);
    }

    #[test]
    fn the_prompts_are_whole() {
        let prompts = read().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(prompts.len(), 200);
        let questions: HashSet<String> = prompts
            .iter()
            .map(|p| p.messages.iter().map(|m| plain(&m.content)).collect::<Vec<_>>().join("|"))
            .collect();
        assert_eq!(questions.len(), 200);
        for p in &prompts {
            assert_eq!(p.messages.last().map(|m| &*m.role), Some("user"), "{p:?}");
            assert!(["en", "fr"].contains(&&*p.language), "{p:?}");
        }
    }
}
