//! Dialogues from facts: deterministic by the seed, without any of the examination's prompts.

mod facts;
mod numbers;
mod talk;
mod written;

use crate::{Failure, corpus};
use lapidary_tune::data::Rng;
use serde_json::{Value, json};
use std::collections::HashSet;
use std::path::Path;

pub use written::Written;

/// The dialogues so far, and what they are made with.
pub struct Generator {
    rng: Rng,
    kind: &'static str,
    reserved: HashSet<String>,
    dialogues: Vec<Value>,
    /// How many were left out because the examination asks the same.
    pub left_out: usize,
}

impl Generator {
    /// A generator that never says what is `reserved`: the last user turns of the examination.
    pub fn new(seed: u64, reserved: impl Iterator<Item = String>) -> Self {
        let reserved = reserved.map(|p| plain(&p)).collect();
        let rng = Rng::new(seed, 0);
        Self { rng, kind: "", reserved, dialogues: Vec::new(), left_out: 0 }
    }

    /// What follows is of this kind.
    fn begin(&mut self, kind: &'static str) {
        self.kind = kind;
    }

    fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.rng.below(from.len())]
    }

    fn chance(&mut self, share: f64) -> bool {
        self.rng.unit() < share
    }

    /// A question with its answer.
    fn one(&mut self, ask: &str, say: &str) {
        self.turns(None, &[(ask, say)]);
    }

    /// A conversation: questions and answers by turns, under a system message or none.
    fn turns(&mut self, system: Option<&str>, turns: &[(&str, &str)]) {
        if turns.iter().any(|(ask, _)| self.reserved.contains(&plain(ask))) {
            self.left_out += 1;
            return;
        }
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let mut messages: Vec<Value> = system.iter().map(|s| turn("system", s)).collect();
        for (ask, say) in turns {
            messages.extend([turn("user", ask), turn("assistant", say)]);
        }
        self.dialogues.push(json!({"messages": messages, "kind": self.kind}));
    }

    /// A question as people type it: with a greeting before it, in lower case, without its mark.
    fn typed(&mut self, ask: &str) -> String {
        // Orders, greetings and French sentences don't go with an English beginning.
        let question = ask.ends_with('?') && !ask.ends_with(" ?");
        match self.rng.below(10) {
            0 if question => format!("Hello! {ask}"),
            1 if question => format!("Please tell me: {}", lower_first(ask)),
            2 => ask.to_lowercase(),
            3 => ask.trim_end_matches(['?', '.', '!']).trim_end().to_owned(),
            _ => ask.to_owned(),
        }
    }

    /// All dialogues in a random order.
    pub fn finish(mut self) -> Vec<Value> {
        self.rng.shuffle(&mut self.dialogues);
        self.dialogues
    }
}

/// Writes the dialogues of `seed`.
///
/// # Errors
/// If the corpus can't be read, or the file can't be written.
pub fn generate(corpus: &Path, seed: u64, out: &Path) -> Result<(), Failure> {
    let reserved = crate::prompts::read()?;
    let mut g = Generator::new(seed, reserved.into_iter().filter_map(|p| p.last_question()));
    let written = Written::read()?;
    talk::make(&mut g, &written);
    numbers::make(&mut g);
    facts::make(&mut g, &written, &facts::Facts::read(corpus)?);
    let left_out = g.left_out;
    let dialogues = g.finish();
    let mut kinds = std::collections::BTreeMap::<String, usize>::new();
    for dialogue in &dialogues {
        *kinds.entry(dialogue["kind"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    let (count, hash) = crate::prepare::write(out, dialogues.into_iter())?;
    println!("{count} dialogues, {left_out} left out as examined; {kinds:?}\nsha256 {hash}");
    Ok(())
}

/// Letters and digits alone, in lower case.
pub fn plain(text: &str) -> String {
    let letters = |c: char| if c.is_alphanumeric() { c } else { ' ' };
    let text: String = text.to_lowercase().chars().map(letters).collect();
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// With a small first letter, unless the word is "I".
fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) if !text.starts_with("I ") && !text.starts_with("I'") => {
            first.to_lowercase().chain(chars).collect()
        }
        _ => text.to_owned(),
    }
}

/// With a capital first letter.
fn upper_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or(String::new(), |first| first.to_uppercase().chain(chars).collect())
}

/// "a" or "an", by the first letter.
fn article(noun: &str) -> &'static str {
    if noun.starts_with(['a', 'e', 'i', 'o', 'u', 'A', 'E', 'I', 'O', 'U']) { "an" } else { "a" }
}

/// Reads a file of the corpus by its name.
fn documents(corpus: &Path, name: &str) -> Result<Vec<Value>, Failure> {
    Ok(corpus::File::open(&corpus.join(format!("{name}.jsonl.zst")))?.documents)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(seed: u64, reserved: &[String]) -> Generator {
        let mut g = Generator::new(seed, reserved.iter().cloned());
        let written = Written::read().unwrap_or_else(|e| panic!("{e}"));
        talk::make(&mut g, &written);
        numbers::make(&mut g);
        g
    }

    fn asked(dialogues: &[Value]) -> HashSet<String> {
        let messages = dialogues.iter().filter_map(|d| d["messages"].as_array()).flatten();
        let asked = messages.filter(|m| m["role"] == "user").filter_map(|m| m["content"].as_str());
        asked.map(plain).collect()
    }

    #[test]
    fn the_seed_alone_decides() {
        assert_eq!(made(7, &[]).finish(), made(7, &[]).finish());
        assert_ne!(made(7, &[]).finish(), made(8, &[]).finish());
    }

    #[test]
    fn what_is_reserved_is_never_asked() {
        let free = made(1, &[]);
        assert_eq!(free.left_out, 0);
        assert!(asked(&free.finish()).contains("who made you"));
        let held = made(1, &["Who made YOU".to_owned()]);
        assert!(held.left_out > 0);
        assert!(!asked(&held.finish()).contains("who made you"));
    }

    /// The examination's last questions are asked nowhere.
    #[test]
    fn what_is_examined_is_not_taught() {
        let prompts = crate::prompts::read().unwrap_or_else(|e| panic!("{e}"));
        let examined: Vec<String> = prompts.iter().filter_map(|p| p.last_question()).collect();
        assert_eq!(examined.len(), 200);
        let dialogues = made(1, &examined).finish();
        assert!(dialogues.len() > 5000, "{}", dialogues.len());
        let asked = asked(&dialogues);
        for question in &examined {
            assert!(!asked.contains(&plain(question)), "{question}");
        }
    }
}
