//! Words and things: meanings, opposites, verbs, elements, lists.

use super::facts::Facts;
use super::written::Written;
use super::{Generator, and, article, upper_first};

/// Everything of this file.
pub fn make(g: &mut Generator, written: &Written, facts: &Facts) {
    g.begin("science");
    elements(g, &facts.elements);
    g.begin("words");
    definitions(g, facts);
    opposites(g, written);
    verbs(g, written, &facts.verbs);
    forms(g, written);
    g.begin("lists");
    lists(g, &facts.lists);
}

fn elements(g: &mut Generator, elements: &[(String, String, u64)]) {
    for (name, symbol, number) in elements {
        let say = format!("The symbol of {} is {symbol}.", name.to_lowercase());
        g.one(&format!("What is the chemical symbol of {}?", name.to_lowercase()), &say);
        g.one(&format!("What is the symbol for {}?", name.to_lowercase()), &say);
        g.one(
            &format!("Which element has the symbol {symbol}?"),
            &format!("{symbol} is {}.", name.to_lowercase()),
        );
        let say = format!("The atomic number of {} is {number}.", name.to_lowercase());
        g.one(&format!("What is the atomic number of {}?", name.to_lowercase()), &say);
    }
}

const MEANINGS: [&str; 14] = [
    "What does “{w}” mean?",
    "What does {w} mean?",
    "What does the word {w} mean?",
    "Define {w}.",
    "Define the word {w}.",
    "What is the meaning of {w}?",
    "Explain {w}.",
    "Explain what {w} means.",
    "Can you explain {w} to me?",
    "Can you tell me what {w} means?",
    "I don't know the word {w}.",
    "I have read the word {w}. What does it mean?",
    "What is meant by {w}?",
    "{w}: what does that mean?",
];

fn definitions(g: &mut Generator, facts: &Facts) {
    for word in &facts.common {
        let Some((pos, definition)) = facts.definitions.get(word) else { continue };
        if definition.len() > 140 || definition.starts_with('(') {
            continue;
        }
        let say = match pos.as_str() {
            "noun" => format!("{} is a noun: {definition}.", upper_first(word)),
            "verb" => format!("To {word} means: {definition}."),
            _ => format!("{} means: {definition}.", upper_first(word)),
        };
        g.ways(3, &MEANINGS, &[("w", word)], &say);
    }
}

const OPPOSITES: [&str; 18] = [
    "What is the opposite of {w}?",
    "What is the opposite of “{w}”?",
    "What's the opposite of {w}?",
    "Tell me the opposite of {w}.",
    "Name the opposite of {w}.",
    "Say the opposite of {w}.",
    "Which word means the opposite of {w}?",
    "Which word is the opposite of {w}?",
    "Find the opposite of {w}.",
    "Opposite of {w}?",
    "{w} and its opposite: which word is it?",
    "Do you know the opposite of {w}?",
    "Can you tell me the opposite of {w}?",
    "I need a word that means the opposite of {w}.",
    "What is the contrary of {w}?",
    "If it is not {w}, what is it?",
    "Write down the opposite of {w}.",
    "The opposite of {w} is what?",
];

fn opposites(g: &mut Generator, written: &Written) {
    for (a, b) in written.opposites() {
        for (word, other) in [(a, b), (b, a)] {
            let say = format!("The opposite of {word} is {other}.");
            g.ways(20, &OPPOSITES, &[("w", word)], &say);
            let order = *g.pick(&super::turns::ONE_WORD);
            let ask = format!("What is the opposite of {word}?");
            g.turns(Some(order), &[(&ask, &format!("{}.", upper_first(other)))]);
        }
        let (next, other) = *g.pick(&written.opposites().collect::<Vec<_>>());
        let first =
            (format!("What is the opposite of {a}?"), format!("The opposite of {a} is {b}."));
        let then = [format!("And of {next}?"), format!("And {next}?"), format!("Now {next}.")];
        let then = g.pick(&then).clone();
        let say = format!("The opposite of {next} is {other}.");
        g.turns(None, &[(&first.0, &first.1), (&then, &say)]);
    }
}

const PASTS: [&str; 12] = [
    "What is the past tense of {v}?",
    "What is the past of {v}?",
    "What is the past tense of “{v}”?",
    "What's the past tense of {v}?",
    "Tell me the past tense of {v}.",
    "Give the past tense of {v}.",
    "Put {v} into the past tense.",
    "Past tense of {v}?",
    "Which form does {v} have in the past?",
    "Yesterday I ... Which form of {v} goes here?",
    "What does {v} become in the past?",
    "Write {v} in the past.",
];

fn verbs(g: &mut Generator, written: &Written, verbs: &[(String, String)]) {
    let say = |present: &str, past: &str| format!("The past tense of {present} is {past}.");
    for (present, past) in verbs {
        g.ways(2, &PASTS, &[("v", present)], &say(present, past));
    }
    for (present, past) in written.verbs() {
        g.ways(16, &PASTS, &[("v", present)], &say(present, past));
    }
}

const PLURALS: [&str; 7] = [
    "What is the plural of {w}?",
    "Tell me the plural of {w}.",
    "Plural of {w}?",
    "What do you call more than one {w}?",
    "One {w}, two what?",
    "Which plural does {w} have?",
    "Put {w} into the plural.",
];
const SPELLINGS: [&str; 5] = [
    "How do you spell {w}?",
    "Spell {w}.",
    "Spell the word {w}.",
    "Can you spell {w}?",
    "Which letters does {w} have?",
];

/// Plurals, spellings, and the letters that words begin with.
fn forms(g: &mut Generator, written: &Written) {
    for (one, many) in written.plurals() {
        g.ways(8, &PLURALS, &[("w", one)], &format!("The plural of {one} is {many}."));
        let letters: Vec<String> = one.chars().map(|c| c.to_uppercase().to_string()).collect();
        g.ways(2, &SPELLINGS, &[("w", one)], &format!("{}.", letters.join("-")));
        let ask = format!("Which letter does {one} begin with?");
        g.one(&ask, &format!("{} begins with {}.", upper_first(one), letters[0]));
    }
}

fn lists(g: &mut Generator, lists: &[(&'static str, Vec<String>)]) {
    for (one, all) in lists.iter().filter(|(_, all)| all.len() > 5) {
        let many = if *one == "part of the body" {
            "parts of the body".to_owned()
        } else if *one == "piece of clothing" {
            "pieces of clothing".to_owned()
        } else {
            format!("{one}s")
        };
        for _ in 0..60 {
            let few: Vec<&str> = (0..3).map(|_| g.pick(all).as_str()).collect();
            if few[0] == few[1] || few[1] == few[2] || few[0] == few[2] {
                continue;
            }
            let asks = [
                format!("Name three {many}."),
                format!("Tell me three {many}."),
                format!("Can you name three {many}?"),
                format!("Give me three {many}."),
            ];
            let ask = g.pick(&asks).clone();
            g.one(&ask, &format!("{}.", upper_first(&and(&few))));
            let ask = format!("Name {} {one}.", article(one));
            g.one(&ask, &format!("{}.", upper_first(few[0])));
        }
        // The other lists have things without a plural.
        let counted = ["fruit", "animal", "flower", "musical instrument"].contains(one);
        for thing in all.iter().take(120).filter(|_| counted) {
            let kind = article(one);
            g.one(
                &format!("What is {} {thing}?", article(thing)),
                &format!("{} {thing} is {kind} {one}.", upper_first(article(thing))),
            );
        }
    }
}
