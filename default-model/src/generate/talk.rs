//! What dialogues.toml says, in many ways, and what nobody can know.

use super::turns::NAMES;
use super::written::{Entry, Written};
use super::{Generator, fill, upper_first};

/// Each way to ask appears so often, and each thing that one may want to do.
const TIMES: usize = 10;
const TASKS: usize = 14;

const THINGS: [&str; 12] = [
    "sister", "brother", "teacher", "friend", "garden", "school", "bike", "boat", "shop", "piano",
    "kitchen", "holiday",
];

/// How people ask for what they want to do: {t}.
const FRAMES: [&str; 24] = [
    "How do I {t}?",
    "How can I {t}?",
    "How do I {t}?",
    "How can I {t}?",
    "How does one {t}?",
    "How do you {t}?",
    "I want to {t}.",
    "I would like to {t}.",
    "I need to {t}.",
    "I am trying to {t}. What is the command?",
    "What is the command to {t}?",
    "Which command do I use to {t}?",
    "With which command can I {t}?",
    "Which command do I need to {t}?",
    "Give me the command to {t}.",
    "Show me how to {t}.",
    "Tell me how to {t}.",
    "Can Lapidary {t}?",
    "Can I {t}?",
    "Help me to {t}.",
    "What must I do to {t}?",
    "Is there a way to {t}?",
    "What should I enter to {t}?",
    "Please help: I want to {t}.",
];

/// Everything of this file.
pub fn make(g: &mut Generator, written: &Written) {
    for (kind, entries) in [
        ("about", &written.about),
        ("talk", &written.talk),
        ("unknown", &written.unknown),
        ("french", &written.french),
        ("facts", &written.facts),
    ] {
        g.begin(kind);
        entries.iter().for_each(|entry| asked(g, entry));
    }
    g.begin("unknown");
    invented(g);
    untold(g);
}

/// Every way to ask, as people type it, and every way to ask for what they want to do.
fn asked(g: &mut Generator, entry: &Entry) {
    for ask in &entry.ask {
        for time in 0..TIMES {
            let say = g.pick(&entry.say).clone();
            let ask = if time < 4 { ask.clone() } else { g.typed(ask) };
            g.one(&ask, &say);
        }
    }
    for task in &entry.tasks {
        for _ in 0..TASKS {
            let say = g.pick(&entry.say).clone();
            g.ways(1, &FRAMES, &[("t", task)], &say);
        }
    }
}

/// Countries that do not exist, each with a name of its own.
fn invented(g: &mut Generator) {
    let asks = [
        "What is the capital of {c}?",
        "What is {c}'s capital?",
        "Which city is the capital of {c}?",
        "Name the capital of {c}.",
        "Where is {c}?",
        "Where in the world is {c}?",
        "On which continent is {c}?",
        "Which language do they speak in {c}?",
        "Who is the king of {c}?",
        "Who rules {c}?",
        "How many people live in {c}?",
        "Tell me about {c}.",
        "Which countries border {c}?",
        "What do people eat in {c}?",
        "Have you heard of {c}?",
        "Where is the kingdom of {c}?",
        "Do you know the land of {c}?",
    ];
    for _ in 0..500 {
        let name = land(g);
        g.ways(3, &asks, &[("c", &name)], &format!("I don't know {name}."));
    }
}

/// An invented country's name.
fn land(g: &mut Generator) -> String {
    const BEGIN: [&str; 20] = [
        "Blo", "Tan", "Que", "Mar", "Zu", "Dri", "We", "Lu", "Gro", "Os", "Ka", "Pel", "Sun",
        "Har", "Fi", "Bra", "Nol", "Ve", "Sko", "Ji",
    ];
    const MIDDLE: [&str; 14] =
        ["", "", "bra", "do", "li", "no", "ra", "ve", "sto", "mi", "ga", "fu", "lo", "re"];
    const END: [&str; 14] = [
        "via", "ria", "stan", "land", "nia", "mia", "dor", "lia", "vania", "burg", "zia", "thia",
        "ko", "dova",
    ];
    let (begin, middle, end) = (*g.pick(&BEGIN), *g.pick(&MIDDLE), *g.pick(&END));
    match g.rng.below(12) {
        0 => format!("Old {begin}{middle}{end}"),
        1 => format!("New {begin}{middle}{end}"),
        _ => format!("{begin}{middle}{end}"),
    }
}

/// What the user has not told.
fn untold(g: &mut Generator) {
    let asks = [
        "How old is {o} {t}?",
        "What is the name of {o} {t}?",
        "Where is {o} {t}?",
        "What is {o} {t} called?",
        "Who is {o} {t}?",
        "What does {o} {t} look like?",
        "When did {o} {t} begin?",
        "What did {o} {t} cost?",
    ];
    for thing in THINGS {
        for owner in NAMES.iter().take(16).map(|n| format!("{n}'s")).chain(["my".to_owned()]) {
            let times = if owner == "my" { 12 } else { 2 };
            for _ in 0..times {
                let say = *g.pick(&[
                    "I don't know that. You have not told me.",
                    "I don't know: you haven't told me.",
                ]);
                let ask = fill(g.pick(&asks), &[("o", &owner), ("t", thing)]);
                let ask = g.typed(&ask);
                g.one(&upper_first(&ask), say);
            }
        }
    }
}
