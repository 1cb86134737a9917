//! What dialogues.toml says, in many ways; conversations of several turns; system messages.

use super::written::{Entry, Written};
use super::{Generator, lower_first};

/// Each way to ask appears so often.
const TIMES: usize = 12;

const NAMES: [&str; 24] = [
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jack", "Kate",
    "Leo", "Mia", "Noah", "Olga", "Paul", "Rosa", "Sam", "Tom", "Una", "Vera", "Will", "Yara",
    "Zoe",
];
const LIKES: [(&str, &[&str]); 5] = [
    ("colour", &["red", "blue", "green", "yellow", "purple", "orange"]),
    ("animal", &["cat", "dog", "horse", "owl", "rabbit", "elephant"]),
    ("food", &["pizza", "soup", "bread", "rice", "cake", "salad"]),
    ("season", &["spring", "summer", "autumn", "winter"]),
    ("city", &["Paris", "London", "Rome", "Berlin", "Oslo", "Tokyo"]),
];
const THINGS: [&str; 12] = [
    "sister", "brother", "teacher", "friend", "garden", "school", "bike", "boat", "shop", "piano",
    "kitchen", "holiday",
];
const INVENTED: [&str; 16] = [
    "Blorvia",
    "Tandoria",
    "Quellistan",
    "Marnovia",
    "Zubrania",
    "Old Fennia",
    "Drimland",
    "Wexovia",
    "Lurania",
    "Port Yazmin",
    "Grombia",
    "Ostrelia",
    "Kavarnia",
    "Pelloria",
    "Sundovia",
    "Hartavia",
];
/// System messages about tone, with what stands before and behind the answer then.
const TONES: [(&str, &str, &str); 6] = [
    ("Be cheerful.", "Sure! ", " Have a lovely day!"),
    ("You are a cheerful assistant.", "Sure! ", " Have a lovely day!"),
    ("Be very polite.", "With pleasure. ", ""),
    ("Answer politely and formally.", "With pleasure. ", ""),
    ("Be friendly.", "", " Is there anything else?"),
    ("End each answer with a question.", "", " Is there anything else?"),
];
/// System messages that change nothing.
const PLAIN: [&str; 4] = [
    "You are a helpful assistant.",
    "Answer in English.",
    "Be brief.",
    "You are Lapidary's built-in model.",
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
    g.begin("system");
    toned(g, written);
    g.begin("turns");
    remembered(g);
    joined(g, written);
}

/// Every way to ask, as people type it.
fn asked(g: &mut Generator, entry: &Entry) {
    for ask in &entry.ask {
        for time in 0..TIMES {
            let say = g.pick(&entry.say).clone();
            let ask = if time < 4 { ask.clone() } else { g.typed(ask) };
            g.one(&ask, &say);
        }
    }
}

/// Countries, people and words that do not exist.
fn invented(g: &mut Generator) {
    for name in INVENTED {
        let unknown = format!("I don't know {name}.");
        let asks = [
            format!("What is the capital of {name}?"),
            format!("Where is {name}?"),
            format!("Which language do they speak in {name}?"),
            format!("Who is the king of {name}?"),
            format!("How many people live in {name}?"),
            format!("Tell me about {name}."),
        ];
        for ask in asks {
            g.one(&ask, &unknown);
            let ask = g.typed(&ask);
            g.one(&ask, &unknown);
        }
    }
    for name in NAMES {
        for thing in THINGS {
            let asks = [
                format!("How old is {name}'s {thing}?"),
                format!("What is the name of {name}'s {thing}?"),
                format!("Where is {name}'s {thing}?"),
            ];
            let ask = g.pick(&asks).clone();
            g.one(&ask, "I don't know that. You have not told me.");
        }
    }
}

/// The same questions under system messages.
fn toned(g: &mut Generator, written: &Written) {
    let english = || written.about.iter().chain(&written.facts);
    for entry in english() {
        for ask in &entry.ask {
            let say = g.pick(&entry.say).clone();
            let (system, before, behind) = *g.pick(&TONES);
            g.turns(Some(system), &[(ask, &format!("{before}{say}{behind}"))]);
            let system = *g.pick(&PLAIN);
            g.turns(Some(system), &[(ask, &say)]);
        }
    }
    let orders =
        ["Answer in French.", "Always answer in French.", "Speak French.", "Réponds en français."];
    let english = [
        ("Hello!", "Bonjour ! Que puis-je faire pour vous ?"),
        ("Good morning!", "Bonjour ! Que puis-je faire pour vous ?"),
        ("How are you?", "Je vais bien, merci. Et vous ?"),
        ("Who are you?", "Je suis le petit modèle de langue de Lapidary. Je suis un programme."),
        ("Thank you!", "Je vous en prie."),
        ("Goodbye!", "Au revoir !"),
        ("What is Lapidary?", "Lapidary est un atelier pour les modèles ouverts, écrit en Rust."),
        ("What time is it?", "Je ne sais pas : je n'ai pas accès au monde."),
        ("What colour is the sky?", "Le ciel est bleu."),
        ("What colour is grass?", "L'herbe est verte."),
        ("How many days are in a week?", "Il y a sept jours dans une semaine."),
    ];
    for (ask, say) in english {
        for order in orders {
            for _ in 0..TIMES / 2 {
                let ask = g.typed(ask);
                g.turns(Some(order), &[(&ask, say)]);
            }
        }
    }
    for entry in &written.french {
        for ask in &entry.ask {
            let (order, say) = (*g.pick(&orders), g.pick(&entry.say).clone());
            g.turns(Some(order), &[(ask, &say)]);
        }
    }
}

/// Three turns and four, in which something is told and asked again.
fn remembered(g: &mut Generator) {
    for name in NAMES {
        for greeting in ["My name is", "I am", "Hello, I am", "Hi! My name is", "You can call me"] {
            let told = format!("{greeting} {name}.");
            let hello = format!("Nice to meet you, {name}! What can I do for you?");
            let again = *g.pick(&["What is my name?", "Do you remember my name?", "Who am I?"]);
            let answer = format!("Your name is {name}.");
            let (ask, say) = *g.pick(&[
                ("How are you?", "I am fine, thank you. How are you?"),
                ("What is 2 plus 2?", "2 plus 2 is 4."),
                ("What colour is the sky?", "The sky is blue on a clear day."),
                ("Are you a robot?", "I am a small language model. I am a program, not a person."),
            ]);
            g.turns(None, &[(&told, &hello), (ask, say), (again, &answer)]);
            g.turns(None, &[(&told, &hello), (again, &answer), ("Thanks!", "You're welcome!")]);
        }
    }
    for (what, all) in LIKES {
        for like in all {
            for _ in 0..4 {
                let told = format!("My favourite {what} is {like}.");
                let nice = format!("{} is a good choice.", super::upper_first(like));
                let again = format!("What is my favourite {what}?");
                let answer = format!("Your favourite {what} is {like}.");
                let name = *g.pick(&NAMES);
                let hello = format!("Hello, I am {name}.");
                let meet = format!("Nice to meet you, {name}! What can I do for you?");
                g.turns(None, &[(&hello, &meet), (&told, &nice), (&again, &answer)]);
                g.turns(None, &[(&told, &nice), (&again, &answer)]);
            }
        }
    }
}

/// Three entries one after the other, as a person would go through them.
fn joined(g: &mut Generator, written: &Written) {
    let greetings = [&written.talk[0], &written.talk[1]];
    let thanks = &written.talk[2];
    let middle: Vec<&Entry> =
        written.about.iter().chain(&written.facts).chain(&written.unknown).collect();
    for round in 0..900 {
        let first = if round % 3 == 0 { *g.pick(&greetings) } else { *g.pick(&middle) };
        let second = *g.pick(&middle);
        let last = if round % 2 == 0 { thanks } else { *g.pick(&middle) };
        let mut turn = |entry: &Entry| (g.pick(&entry.ask).clone(), g.pick(&entry.say).clone());
        let (a, mut b, c) = (turn(first), turn(second), turn(last));
        if g.chance(0.3) {
            b.0 = format!("And {}", lower_first(&b.0));
        }
        g.turns(None, &[(&a.0, &a.1), (&b.0, &b.1), (&c.0, &c.1)]);
    }
}
