//! Conversations of several turns, and system messages.

use super::written::{Entry, Written};
use super::{Generator, fill, lower_first, upper_first};

/// First names that users have.
pub const NAMES: [&str; 64] = [
    "Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Ida", "Jack", "Kate",
    "Leo", "Mia", "Noah", "Olga", "Paul", "Rosa", "Sam", "Tom", "Una", "Vera", "Will", "Yara",
    "Zoe", "Adam", "Alice", "Amir", "Bea", "Bruno", "Carlos", "Chloe", "Daniel", "Diana", "Elena",
    "Erik", "Fatima", "Finn", "George", "Hana", "Hannah", "Ines", "Ivan", "James", "Julia",
    "Karim", "Lara", "Lily", "Lucas", "Luis", "Maria", "Max", "Maya", "Nora", "Omar", "Peter",
    "Pierre", "Robin", "Ruth", "Sara", "Sofia", "Theo", "Tim", "Victor", "Yuki",
];

/// Likes: what they are of.
const LIKES: [(&str, &[&str]); 8] = [
    (
        "colour",
        &["red", "blue", "green", "yellow", "purple", "orange", "pink", "brown", "black", "white"],
    ),
    (
        "animal",
        &[
            "cat", "dog", "horse", "owl", "rabbit", "elephant", "fox", "lion", "bear", "whale",
            "penguin", "frog",
        ],
    ),
    ("food", &["pizza", "soup", "bread", "rice", "cake", "salad", "pasta", "cheese", "fish"]),
    ("season", &["spring", "summer", "autumn", "winter"]),
    ("city", &["Paris", "London", "Rome", "Berlin", "Oslo", "Tokyo", "Madrid", "Vienna"]),
    ("number", &["3", "7", "9", "12", "20", "42"]),
    ("fruit", &["apple", "pear", "plum", "cherry", "banana", "peach"]),
    ("sport", &["football", "tennis", "chess", "swimming", "running", "hockey"]),
];
/// System messages that ask for one word.
pub const ONE_WORD: [&str; 8] = [
    "Answer in one word.",
    "Answer with one word only.",
    "One word only.",
    "Use a single word.",
    "Reply with one word.",
    "You answer in one word.",
    "Please reply in a single word.",
    "Give only one word as the answer.",
];
/// System messages that ask for French.
pub const IN_FRENCH: [&str; 10] = [
    "Answer in French.",
    "Always answer in French.",
    "Speak French.",
    "Réponds en français.",
    "Please speak French.",
    "Reply in French, please.",
    "You speak only French.",
    "Use French.",
    "Répondez en français, s'il vous plaît.",
    "The user wants answers in French.",
];
const CHEERFUL: (&str, &str) = ("Sure! ", " Have a lovely day!");
const POLITE: (&str, &str) = ("With pleasure. ", "");
const FRIENDLY: (&str, &str) = ("", " Is there anything else?");
/// System messages about tone, with what stands before and behind the answer then.
const TONES: [(&str, (&str, &str)); 16] = [
    ("Be cheerful.", CHEERFUL),
    ("You are a cheerful assistant.", CHEERFUL),
    ("Answer cheerfully.", CHEERFUL),
    ("Please sound cheerful.", CHEERFUL),
    ("Be happy and cheerful!", CHEERFUL),
    ("Reply in a cheerful way.", CHEERFUL),
    ("Be very polite.", POLITE),
    ("Answer politely and formally.", POLITE),
    ("Please be polite.", POLITE),
    ("You are a polite assistant.", POLITE),
    ("Be as polite as you can.", POLITE),
    ("Speak very politely.", POLITE),
    ("Be friendly.", FRIENDLY),
    ("End each answer with a question.", FRIENDLY),
    ("Please be friendly.", FRIENDLY),
    ("Always ask whether there is anything else.", FRIENDLY),
];
/// System messages that change nothing.
const PLAIN: [&str; 5] = [
    "You are a helpful assistant.",
    "Answer in English.",
    "Be brief.",
    "You are Lapidary's built-in model.",
    "Be helpful and honest.",
];

/// Everything of this file.
pub fn make(g: &mut Generator, written: &Written) {
    g.begin("system");
    ordered(g, written);
    g.begin("turns");
    named(g);
    liked(g);
    joined(g, written);
}

/// A question under a system message about tone.
pub fn toned(g: &mut Generator, ask: &str, say: &str) {
    let (system, (before, behind)) = *g.pick(&TONES);
    g.turns(Some(system), &[(ask, &format!("{before}{say}{behind}"))]);
}

/// The same questions under system messages.
fn ordered(g: &mut Generator, written: &Written) {
    for entry in written.about.iter().chain(&written.facts) {
        for ask in &entry.ask {
            for _ in 0..4 {
                let say = g.pick(&entry.say).clone();
                toned(g, ask, &say);
            }
            let (system, say) = (*g.pick(&PLAIN), g.pick(&entry.say).clone());
            g.turns(Some(system), &[(ask, &say)]);
        }
    }
    let english = [
        ("Hello!", "Bonjour ! Que puis-je faire pour vous ?"),
        ("Good morning!", "Bonjour ! Que puis-je faire pour vous ?"),
        ("How are you?", "Je vais bien, merci. Et vous ?"),
        ("Who are you?", "Je suis le petit modèle de langue de Lapidary. Je suis un programme."),
        ("Thank you!", "Je vous en prie."),
        ("Goodbye!", "Au revoir !"),
        ("What is Lapidary?", "Lapidary est un atelier pour les modèles ouverts, écrit en Rust."),
        ("What time is it?", "Je ne sais pas : je n'ai pas accès au monde."),
        (
            "What's your name?",
            "Je suis le petit modèle de langue de Lapidary. Je suis un programme.",
        ),
        ("How are you doing?", "Je vais bien, merci. Et vous ?"),
        ("Are you well?", "Je vais bien, merci. Et vous ?"),
        ("How do you feel?", "Je vais bien, merci. Et vous ?"),
        ("Greet me.", "Bonjour ! Que puis-je faire pour vous ?"),
        ("Hi!", "Bonjour ! Que puis-je faire pour vous ?"),
        ("Good evening!", "Bonsoir ! Que puis-je faire pour vous ?"),
        ("Hey there", "Bonjour ! Que puis-je faire pour vous ?"),
        ("Thanks a lot!", "Je vous en prie."),
        ("Bye!", "Au revoir !"),
        (
            "What can you do?",
            "Je raconte de petites histoires et je réponds à des questions simples.",
        ),
        ("What is the weather today?", "Je ne sais pas : je n'ai pas accès au monde."),
        ("How many months are in a year?", "Il y a douze mois dans une année."),
        ("What is two plus two?", "Deux plus deux font quatre."),
        ("What is two plus three?", "Deux plus trois font cinq."),
        ("How many days are in a week?", "Il y a sept jours dans une semaine."),
    ];
    for (ask, say) in english {
        for order in IN_FRENCH {
            for _ in 0..4 {
                let ask = g.typed(ask);
                g.turns(Some(order), &[(&ask, say)]);
            }
        }
    }
    for entry in &written.french {
        for ask in &entry.ask {
            let (order, say) = (*g.pick(&IN_FRENCH), g.pick(&entry.say).clone());
            g.turns(Some(order), &[(ask, &say)]);
        }
    }
}

/// A name: of those that people have, or one that nobody has, so that names are copied.
fn name(g: &mut Generator) -> String {
    const FIRST: [&str; 16] = [
        "Ma", "Li", "To", "Ka", "Ju", "Ri", "Se", "No", "Ba", "El", "Is", "Ol", "Fe", "Da", "Ve",
        "Mi",
    ];
    const LAST: [&str; 14] =
        ["na", "ra", "lo", "mi", "ka", "ton", "bel", "rin", "sa", "lia", "dor", "vin", "net", "go"];
    if g.chance(0.6) {
        return (*g.pick(&NAMES)).to_owned();
    }
    let (first, last) = (*g.pick(&FIRST), *g.pick(&LAST));
    format!("{first}{last}")
}

/// Something small in between.
fn aside(g: &mut Generator) -> (&'static str, &'static str) {
    *g.pick(&[
        ("How are you?", "I am fine, thank you. How are you?"),
        ("How are you?", "I am a program, so I am always the same. How are you?"),
        ("What is 2 plus 2?", "2 plus 2 is 4."),
        ("What colour is the sky?", "The sky is blue."),
        ("Are you a robot?", "I am a small language model. I am a program, not a person."),
        ("What is the capital of Italy?", "The capital of Italy is Rome."),
        ("Can you help me?", "Ask me for a short story, a capital, a simple sum, or how to do something with Lapidary."),
        ("Do you speak French?", "I speak English and a little French."),
    ])
}

/// A name is told and asked again, at once or later.
fn named(g: &mut Generator) {
    let tell = [
        "My name is {n}.",
        "I am {n}.",
        "I'm {n}.",
        "Hello, I am {n}.",
        "Hello! My name's {n}.",
        "Hi! My name is {n}.",
        "You can call me {n}.",
        "Hi, {n} here.",
        "Good morning, I'm {n}.",
        "People call me {n}.",
    ];
    let again = [
        "What is my name?",
        "What's my name?",
        "Do you remember my name?",
        "Do you know my name?",
        "Who am I?",
        "Tell me my name.",
        "Which name did I tell you?",
        "How am I called?",
        "Can you say my name?",
        "And what is my name?",
        "What did I say my name was?",
    ];
    for _ in 0..1400 {
        let who = name(g);
        let told = fill(g.pick(&tell), &[("n", &who)]);
        let hello = format!("Nice to meet you, {who}! What can I do for you?");
        let ask = *g.pick(&again);
        let ask = g.typed(ask);
        let answer = format!("Your name is {who}.");
        let (between, said) = aside(g);
        match g.rng.below(5) {
            0 => g.turns(None, &[(&told, &hello), (&ask, &answer)]),
            1 => g.turns(None, &[(&told, &hello), (&ask, &answer), ("Thanks!", "You're welcome!")]),
            _ => g.turns(None, &[(&told, &hello), (between, said), (&ask, &answer)]),
        }
    }
}

/// A favourite thing is told and asked again.
fn liked(g: &mut Generator) {
    let tell = [
        "My favourite {w} is {l}.",
        "My favorite {w} is {l}.",
        "The {w} that I love most is {l}.",
        "Of all, {l} is my favourite {w}.",
        "I have a favourite {w}: {l}.",
    ];
    let again = [
        "What is my favourite {w}?",
        "What is my favorite {w}?",
        "Which {w} is my favourite?",
        "Which {w} do I love most?",
        "Which {w} do I prefer?",
        "Do you remember my favourite {w}?",
        "Tell me my favourite {w}.",
        "Which {w} did I name?",
        "What did I say about my favourite {w}?",
    ];
    for (what, all) in LIKES {
        for like in all.iter().cycle().take(100) {
            let slots = [("w", what), ("l", *like)];
            let told = fill(g.pick(&tell), &slots);
            let nice = format!("{} is a good choice.", upper_first(like));
            let ask = fill(g.pick(&again), &slots);
            let ask = g.typed(&ask);
            let answer = format!("Your favourite {what} is {like}.");
            let (between, said) = aside(g);
            let who = name(g);
            let hello = format!("Hello, I am {who}.");
            let meet = format!("Nice to meet you, {who}! What can I do for you?");
            let greeting = *g.pick(&["Hello!", "Hi!", "Good morning!", "Hey"]);
            match g.rng.below(5) {
                0 => g.turns(None, &[(&hello, &meet), (&told, &nice), (&ask, &answer)]),
                1 => g.turns(None, &[(&told, &nice), (&ask, &answer)]),
                2 => g.turns(None, &[(&told, &nice), (between, said), (&ask, &answer)]),
                _ => {
                    let hello = "Hello! What can I do for you?";
                    g.turns(None, &[(greeting, hello), (&told, &nice), (&ask, &answer)]);
                }
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
    for round in 0..1500 {
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
