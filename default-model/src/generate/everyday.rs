//! What everybody knows: colours, amounts, what follows what, who makes what.

use super::turns::{IN_FRENCH, toned};
use super::written::Written;
use super::{Generator, fill, upper_first};

const COLOURS: [&str; 12] = [
    "What colour is {t}?",
    "What color is {t}?",
    "Which colour is {t}?",
    "Which colour does {t} have?",
    "What colour does {t} have?",
    "Say what colour {t} is.",
    "Tell me what colour {t} is.",
    "Do you know what colour {t} is?",
    "Can you tell me which colour {t} has?",
    "{T}: which colour?",
    "I want to paint {t}. Which colour do I need?",
    "{T} is of which colour?",
];
const COULEURS: [&str; 5] = [
    "De quelle couleur est {t} ?",
    "Quelle est la couleur de ceci : {t} ?",
    "{T} est de quelle couleur ?",
    "Sais-tu de quelle couleur est {t} ?",
    "Dis-moi de quelle couleur est {t}.",
];
const AMOUNTS: [&str; 9] = [
    "How many {p} are in {w}?",
    "How many {p} does {w} have?",
    "How many {p} are there in {w}?",
    "{W} has how many {p}?",
    "{W}: how many {p}?",
    "Do you know how many {p} {w} has?",
    "Tell me how many {p} {w} has.",
    "What number of {p} does {w} have?",
    "Count the {p} of {w}.",
];

/// Everything of this file.
pub fn make(g: &mut Generator, written: &Written) {
    g.begin("facts");
    colours(g, written);
    amounts(g, written);
    for (kind, ring) in &written.rings {
        follow(g, kind, ring);
    }
    makers(g, written);
}

fn colours(g: &mut Generator, written: &Written) {
    for [thing, colour, chose, couleur] in written.colours() {
        let upper = upper_first(thing);
        let slots = [("t", thing), ("T", &upper)];
        let say = format!("{upper} is {colour}.");
        g.ways(22, &COLOURS, &slots, &say);
        for _ in 0..3 {
            let ask = fill(g.pick(&COLOURS), &slots);
            toned(g, &ask, &say);
        }
        let dire = format!("{} est {couleur}.", upper_first(chose));
        g.ways(8, &COULEURS, &[("t", chose), ("T", &upper_first(chose))], &dire);
        for _ in 0..6 {
            let (order, ask) = (*g.pick(&IN_FRENCH), fill(g.pick(&COLOURS), &slots));
            g.turns(Some(order), &[(&ask, &dire)]);
        }
        g.one(&format!("Is {thing} {colour}?"), &format!("Yes, {thing} is {colour}."));
    }
}

fn amounts(g: &mut Generator, written: &Written) {
    for [whole, parts, number] in written.amounts() {
        let upper = upper_first(whole);
        let slots = [("w", whole), ("W", upper.as_str()), ("p", parts)];
        // One nose, and no legs.
        let parts = if number == "one" { parts.trim_end_matches('s') } else { parts };
        let say = format!("{upper} has {number} {parts}.");
        g.ways(16, &AMOUNTS, &slots, &say);
        for _ in 0..2 {
            let ask = fill(g.pick(&AMOUNTS), &slots);
            toned(g, &ask, &say);
        }
    }
}

/// What comes after and before each in a ring.
fn follow(g: &mut Generator, kind: &str, ring: &[String]) {
    let after = [
        "What comes after {x}?",
        "Which {k} comes after {x}?",
        "What {k} comes after {x}?",
        "Which {k} is after {x}?",
        "After {x} comes which {k}?",
        "What is the {k} after {x}?",
        "Which is the next {k} after {x}?",
        "Tell me the {k} after {x}.",
        "{x} is over. Which {k} comes now?",
    ];
    let before = [
        "What comes before {x}?",
        "Which {k} comes before {x}?",
        "What is the {k} before {x}?",
        "Tell me the {k} before {x}.",
    ];
    for (i, one) in ring.iter().enumerate() {
        let next = &ring[(i + 1) % ring.len()];
        let slots = [("x", one.as_str()), ("k", kind)];
        g.ways(16, &after, &slots, &format!("After {one} comes {next}."));
        let slots = [("x", next.as_str()), ("k", kind)];
        g.ways(6, &before, &slots, &format!("Before {next} comes {one}."));
    }
}

fn makers(g: &mut Generator, written: &Written) {
    let ways = [
        "What do {who} {do}?",
        "What do we get from {who}?",
        "What do {who} {do} for us?",
        "Do you know what {who} {do}?",
        "What is it that {who} {do}?",
        "Tell me what {who} {do}.",
        "{Who} {do} what?",
        "What are {who} good for?",
        "Why do people like {who}?",
    ];
    for [who, does, what] in written.makers() {
        let upper = upper_first(who);
        let slots = [("who", who), ("Who", &upper), ("do", does), ("what", what)];
        let say = format!("{upper} {does} {what}.");
        g.ways(18, &ways, &slots, &say);
        g.ways(2, &["Who or what can {do} {what}?", "Where does {what} come from?"], &slots, &say);
    }
}
