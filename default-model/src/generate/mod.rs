//! Dialogues from facts: deterministic by the seed, without any of the examination's prompts.

mod countries;
mod everyday;
mod facts;
mod numbers;
mod stories;
mod talk;
mod turns;
mod words;
mod written;

use crate::copies::HeldOut;
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

    /// Asks the same in `times` of the ways, each drawn anew, as people type it.
    fn ways(&mut self, times: usize, ways: &[&str], slots: &[(&str, &str)], say: &str) {
        for time in 0..times {
            let ask = fill(self.pick(ways), slots);
            // The first of them is as it is written.
            let ask = if time == 0 { ask } else { self.typed(&ask) };
            self.one(&ask, say);
        }
    }

    /// A question as people type it: with something before or behind it, in lower case, without
    /// its mark.
    fn typed(&mut self, ask: &str) -> String {
        let bare = ask.trim_end_matches(['?', '.', '!']).trim_end().to_owned();
        if ask.contains(" ?") || french(ask) {
            return match self.rng.below(12) {
                0 | 1 => ask.to_lowercase(),
                2 => bare,
                3 => format!("Bonjour ! {ask}"),
                4 => format!("{bare}, s'il vous plaît."),
                5 => format!("Une question : {}", lower_first(ask)),
                _ => ask.to_owned(),
            };
        }
        // Greetings don't go with another beginning.
        let (question, order) = (ask.ends_with('?'), ask.ends_with('.'));
        match self.rng.below(16) {
            0 | 1 => ask.to_lowercase(),
            2 => bare,
            3 => bare.to_lowercase(),
            4 | 5 if question => {
                let before = *self.pick(&BEFORE);
                format!("{before}{}", lower_first(ask))
            }
            6 if question => format!("{}{ask}", self.pick(&["Hello! ", "Hi! ", "Good morning. "])),
            7 if question => format!("{bare}, please?"),
            7 if order && !ask.contains(['P', 'p']) => format!("{bare}, please."),
            8 if question => format!("{ask} {}", self.pick(&BEHIND)),
            8 if order && !["I ", "A ", "My ", "This "].iter().any(|b| ask.starts_with(b)) => {
                format!("Please {}", lower_first(ask))
            }
            _ => ask.to_owned(),
        }
    }

    /// All dialogues in a random order.
    pub fn finish(mut self) -> Vec<Value> {
        self.rng.shuffle(&mut self.dialogues);
        self.dialogues
    }
}

/// What people write before a question, and behind it.
const BEFORE: [&str; 10] = [
    "Please tell me: ",
    "Tell me, ",
    "I have a question: ",
    "A quick question: ",
    "I wonder: ",
    "My son asks: ",
    "Now this: ",
    "OK, ",
    "Well, ",
    "For school: ",
];
const BEHIND: [&str; 5] =
    ["Thank you!", "Please tell me.", "I forgot.", "Do you know it?", "I need it for school."];

/// Whether a sentence begins as French ones without a question mark do.
fn french(text: &str) -> bool {
    const BEGIN: [&str; 14] = [
        "Dis-",
        "Dis ",
        "Dites",
        "Raconte",
        "Donne",
        "Nomme",
        "Compte ",
        "Merci",
        "Bonjour",
        "Calcule ",
        "Présente",
        "Parle-",
        "Explique-",
        "Salue-",
    ];
    BEGIN.iter().any(|b| text.starts_with(b))
}

/// A pattern with its slots filled: `{name}`.
fn fill(pattern: impl AsRef<str>, slots: &[(&str, &str)]) -> String {
    let mut out = String::with_capacity(96);
    let mut rest = pattern.as_ref();
    while let Some((before, behind)) = rest.split_once('{') {
        out.push_str(before);
        let Some((name, after)) = behind.split_once('}') else { break };
        let value = slots.iter().find(|(slot, _)| *slot == name).map(|(_, value)| *value);
        // A slot that is missing stays visible: the tests look for braces.
        out.push_str(value.unwrap_or("{}"));
        rest = after;
    }
    out.push_str(rest);
    out
}

/// Writes the dialogues of `seed`, from the corpus without what `prepare` holds out in `work`.
///
/// # Errors
/// If the corpus can't be read, or the file can't be written.
pub fn generate(corpus: &Path, seed: u64, work: &Path) -> Result<(), Failure> {
    let reserved = crate::prompts::read()?;
    let mut g = Generator::new(seed, reserved.into_iter().filter_map(|p| p.last_question()));
    let facts = facts::Facts::read(corpus, &HeldOut::read(&work.join("held_out"))?)?;
    make(&mut g, &Written::read()?);
    from_corpus(&mut g, &Written::read()?, &facts)?;
    let left_out = g.left_out;
    let dialogues = g.finish();
    let mut kinds = std::collections::BTreeMap::<String, usize>::new();
    for dialogue in &dialogues {
        *kinds.entry(dialogue["kind"].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    let (count, hash) =
        crate::prepare::write(&work.join("dialogues.jsonl"), dialogues.into_iter())?;
    let made = json!({ "seed": seed, "dialogues": count, "data_sha256": hash });
    crate::prepare::note(work, "dialogues", made)?;
    println!("{count} dialogues, {left_out} left out as examined; {kinds:?}\nsha256 {hash}");
    Ok(())
}

/// What needs no corpus.
fn make(g: &mut Generator, written: &Written) {
    talk::make(g, written);
    turns::make(g, written);
    everyday::make(g, written);
    numbers::make(g);
}

fn from_corpus(g: &mut Generator, written: &Written, facts: &facts::Facts) -> Result<(), Failure> {
    countries::make(g, written, facts);
    words::make(g, written, facts);
    stories::make(g, written, &stories::Grammar::read()?, &facts.stories);
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

/// "a, b and c".
fn and(all: &[&str]) -> String {
    match all {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
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
        make(&mut g, &written);
        g
    }

    fn asked(dialogues: &[Value]) -> HashSet<String> {
        let messages = dialogues.iter().filter_map(|d| d["messages"].as_array()).flatten();
        let asked = messages.filter(|m| m["role"] == "user").filter_map(|m| m["content"].as_str());
        asked.map(plain).collect()
    }

    #[test]
    fn lists_are_joined() {
        assert_eq!(and(&["a", "b", "c"]), "a, b and c");
        assert_eq!(and(&["a"]), "a");
    }

    #[test]
    fn slots_are_filled() {
        assert_eq!(fill("{a} and {b}.", &[("a", "x"), ("b", "y")]), "x and y.");
        assert_eq!(fill("{c}!", &[("a", "x")]), "{}!");
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
        assert!(dialogues.len() > 20_000, "{}", dialogues.len());
        let asked = asked(&dialogues);
        assert!(asked.iter().all(|a| !a.is_empty()));
        for question in &examined {
            assert!(!asked.contains(&plain(question)), "{question}");
        }
    }
}
