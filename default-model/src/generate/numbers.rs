//! Numbers and simple sums.

use super::{Generator, upper_first};

const WORDS: [&str; 21] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
];
const FRENCH: [&str; 21] = [
    "zéro", "un", "deux", "trois", "quatre", "cinq", "six", "sept", "huit", "neuf", "dix", "onze",
    "douze", "treize", "quatorze", "quinze", "seize", "dix-sept", "dix-huit", "dix-neuf", "vingt",
];
const THINGS: [&str; 8] = ["apples", "books", "coins", "eggs", "pens", "balls", "shells", "cards"];

const SUMS: [&str; 20] = [
    "What is {a} plus {b}?",
    "What is {a} plus {b}?",
    "What is {a} + {b}?",
    "{a} + {b} = ?",
    "{a}+{b}",
    "{a} + {b}",
    "How much is {a} plus {b}?",
    "How much is {a} and {b}?",
    "What's {a} plus {b}?",
    "Add {a} and {b}.",
    "Add {b} to {a}.",
    "Add up {a} and {b} for me.",
    "What is the sum of {a} and {b}?",
    "What are {a} and {b} together?",
    "What do {a} and {b} make?",
    "Calculate {a} plus {b}.",
    "Work out {a} plus {b}.",
    "{a} plus {b} is how much?",
    "If I add {a} and {b}, what comes out?",
    "Do you know what {a} plus {b} is?",
];
const DIFFERENCES: [&str; 18] = [
    "What is {a} minus {b}?",
    "What is {a} minus {b}?",
    "What is {a} - {b}?",
    "{a} - {b} = ?",
    "{a}-{b}",
    "How much is {a} minus {b}?",
    "How much is {a} less {b}?",
    "What's {a} minus {b}?",
    "Take {b} from {a}.",
    "Take {b} away from {a}.",
    "Subtract {b} from {a}.",
    "What is left of {a} without {b}?",
    "Calculate {a} minus {b}.",
    "Work out {a} minus {b}.",
    "{a} minus {b} is how much?",
    "What is the result of {a} minus {b}?",
    "If I take {b} from {a}, what is left?",
    "Do you know what {a} minus {b} is?",
];
const PRODUCTS: [&str; 18] = [
    "What is {a} times {b}?",
    "What is {a} times {b}?",
    "What is {a} x {b}?",
    "{a} x {b} = ?",
    "{a} * {b}",
    "{a}*{b}",
    "How much is {a} times {b}?",
    "What's {a} times {b}?",
    "Multiply {a} by {b}.",
    "Multiply {a} and {b}.",
    "What is {a} multiplied by {b}?",
    "What is the product of {a} and {b}?",
    "Calculate {a} times {b}.",
    "Work out {a} times {b}.",
    "{a} times {b} is how much?",
    "What is the result of {a} times {b}?",
    "If I multiply {a} by {b}, what comes out?",
    "Do you know what {a} times {b} is?",
];
const QUOTIENTS: [&str; 6] = [
    "What is {a} divided by {b}?",
    "Divide {a} by {b}.",
    "{a} / {b} = ?",
    "How much is {a} divided by {b}?",
    "How many times does {b} go into {a}?",
    "What is the result of {a} divided by {b}?",
];

/// Everything of this file.
pub fn make(g: &mut Generator) {
    g.begin("numbers");
    for a in 0..=20 {
        for b in 0..=20 {
            // The small ones are what people ask.
            let often = if a <= 12 && b <= 12 { 3 } else { 1 };
            sum(g, a, b, 7 * often);
            if b <= a {
                difference(g, a, b, 8 * often);
            }
            if a <= 12 && b <= 12 {
                product(g, a, b, 18);
            }
        }
    }
    for (a, b) in (20..=50).step_by(5).flat_map(|a| (5..=50).step_by(5).map(move |b| (a, b))) {
        sum(g, a, b, 4);
    }
    for _ in 0..1500 {
        let (a, b) = (g.rng.below(90) + 10, g.rng.below(90) + 10);
        sum(g, a, b, 1);
        difference(g, a.max(b), a.min(b), 1);
    }
    (1..=100).for_each(|n| order(g, n));
    (0..=20).for_each(|n| spelt(g, n));
    (2..=20).for_each(|n| counted(g, n));
    stories(g);
    chains(g);
}

/// Asks what `a` and `b` make.
fn reckon(g: &mut Generator, times: usize, ways: &[&str], [a, b]: [usize; 2], say: &str) {
    let (a, b) = (a.to_string(), b.to_string());
    g.ways(times, ways, &[("a", &a), ("b", &b)], say);
}

fn sum(g: &mut Generator, a: usize, b: usize, times: usize) {
    reckon(g, times, &SUMS, [a, b], &format!("{a} plus {b} is {}.", a + b));
}

fn difference(g: &mut Generator, a: usize, b: usize, times: usize) {
    reckon(g, times, &DIFFERENCES, [a, b], &format!("{a} minus {b} is {}.", a - b));
}

fn product(g: &mut Generator, a: usize, b: usize, times: usize) {
    reckon(g, times, &PRODUCTS, [a, b], &format!("{a} times {b} is {}.", a * b));
    if a > 0 {
        let say = format!("{} divided by {a} is {b}.", a * b);
        reckon(g, 2, &QUOTIENTS, [a * b, a], &say);
    }
}

/// What comes before and after, odd and even, more and less, double and half.
fn order(g: &mut Generator, n: usize) {
    let number = n.to_string();
    let slots = [("n", number.as_str())];
    let after = [
        "What comes after {n}?",
        "Which number comes after {n}?",
        "What number comes after {n}?",
        "What is the next number after {n}?",
        "Which number is next after {n}?",
        "I count: {n}. What comes next?",
        "Tell me the number after {n}.",
        "After {n} comes which number?",
    ];
    g.ways(8, &after, &slots, &format!("After {n} comes {}.", n + 1));
    let before = [
        "What comes before {n}?",
        "Which number comes before {n}?",
        "Which number is just before {n}?",
        "Tell me the number before {n}.",
    ];
    g.ways(4, &before, &slots, &format!("Before {n} comes {}.", n - 1));
    let (is, other) = if n.is_multiple_of(2) { ("even", "odd") } else { ("odd", "even") };
    let parity = [
        "Is {n} even or odd?",
        "Is {n} odd or even?",
        "Is {n} an even or an odd number?",
        "{n}: even or odd?",
        "Tell me whether {n} is even or odd.",
        "Even or odd: {n}?",
    ];
    g.ways(8, &parity, &slots, &format!("{n} is {is}."));
    g.one(&format!("Is {n} {is}?"), &format!("Yes, {n} is {is}."));
    g.one(&format!("Is {n} {other}?"), &format!("No, {n} is {is}."));
    g.one(&format!("What is the double of {n}?"), &format!("The double of {n} is {}.", 2 * n));
    g.one(&format!("What is twice {n}?"), &format!("The double of {n} is {}.", 2 * n));
    g.one(&format!("What is half of {}?", 2 * n), &format!("Half of {} is {n}.", 2 * n));
    for _ in 0..10 {
        compared(g, n);
    }
}

/// Which of two numbers is more, and which less.
fn compared(g: &mut Generator, n: usize) {
    let m = g.rng.below(100) + 1;
    if m == n {
        return;
    }
    let (more, less) = (m.max(n), m.min(n));
    let (larger, smaller) = (
        [
            "Which is more, {a} or {b}?",
            "Which is larger, {a} or {b}?",
            "Which number is larger, {a} or {b}?",
            "What is bigger, {a} or {b}?",
            "{a} or {b}: which is larger?",
            "Which is greater: {a} or {b}?",
            "Of {a} and {b}, which is the larger number?",
        ],
        [
            "Which is less, {a} or {b}?",
            "Which is smaller, {a} or {b}?",
            "Which number is smaller, {a} or {b}?",
            "{a} or {b}: which is smaller?",
            "Of {a} and {b}, which is the smaller number?",
        ],
    );
    reckon(g, 2, &larger, [n, m], &format!("{more} is larger than {less}."));
    reckon(g, 1, &smaller, [n, m], &format!("{less} is smaller than {more}."));
}

/// Counting up to a number.
fn counted(g: &mut Generator, n: usize) {
    let (word, number) = (WORDS[n], n.to_string());
    let ways = [
        "Count to {n}.",
        "Count from one to {n}.",
        "Can you count to {n}?",
        "Count from 1 to {n}.",
        "Let us count to {n}.",
        "I want you to count to {n}.",
        "Start at one and count until {n}.",
        "Say the numbers from one to {n}.",
    ];
    let say = format!("{}.", upper_first(&WORDS[1..=n].join(", ")));
    for shown in [word, &number] {
        g.ways(10, &ways, &[("n", shown)], &say);
    }
}

fn spelt(g: &mut Generator, n: usize) {
    let (word, french) = (WORDS[n], FRENCH[n]);
    for _ in 0..3 {
        g.one(&format!("How do you write {n} in words?"), &format!("{}.", upper_first(word)));
        g.one(&format!("Write {word} in digits."), &format!("{n}."));
        g.one(
            &format!("What is {word} in French?"),
            &format!("{} is {french} in French.", upper_first(word)),
        );
        g.one(&format!("Comment écrit-on {n} en lettres ?"), &format!("{}.", upper_first(french)));
        if n > 1 {
            let say = format!("{}.", upper_first(&FRENCH[1..=n].join(", ")));
            g.one(&format!("Compte jusqu'à {french}."), &say);
        }
    }
    for m in 0..=20 - n {
        let (a, b) = (WORDS[n], WORDS[m]);
        let say = format!("{} plus {b} is {}.", upper_first(a), WORDS[n + m]);
        g.ways(2, &SUMS[10..], &[("a", a), ("b", b)], &say);
        g.one(&format!("What is {a} plus {b}?"), &say);
        let (a, b) = (FRENCH[n], FRENCH[m]);
        let say = format!("{} plus {b} font {}.", upper_first(a), FRENCH[n + m]);
        let ways = [
            "Combien font {a} plus {b} ?",
            "Combien font {a} et {b} ?",
            "{A} plus {b}, c'est combien ?",
            "Calcule {a} plus {b}.",
            "{A} et {b} font combien ?",
        ];
        g.ways(3, &ways, &[("a", a), ("A", &upper_first(a)), ("b", b)], &say);
        reckon(g, 1, &ways[..2], [n, m], &format!("{n} plus {m} font {}.", n + m));
    }
}

/// Sums in words.
fn stories(g: &mut Generator) {
    for name in ["Anna", "Ben", "Tom", "Mia", "Sam", "Zoe"] {
        for thing in THINGS {
            for _ in 0..6 {
                let (a, b) = (g.rng.below(12) + 2, g.rng.below(12) + 1);
                let ask = format!(
                    "{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?"
                );
                g.one(&ask, &format!("{name} has {a} plus {b}, that is {} {thing}.", a + b));
                let (a, b) = (a.max(b + 1), b.min(a));
                let ask = format!("{name} has {a} {thing} and gives {b} away. How many are left?");
                g.one(&ask, &format!("{name} has {a} minus {b}, that is {} {thing}.", a - b));
            }
        }
    }
}

/// Sums that go on from the last answer.
fn chains(g: &mut Generator) {
    const PLUS: [&str; 8] = [
        "And plus {b}?",
        "Plus {b}?",
        "Now add {b}.",
        "And {b} more?",
        "Add {b} to that.",
        "Then plus {b}?",
        "And if I add {b}?",
        "Plus {b} again?",
    ];
    const MINUS: [&str; 5] =
        ["And minus {b}?", "Minus {b}?", "Now take away {b}.", "And {b} less?", "Then minus {b}?"];
    for _ in 0..3000 {
        let (a, b) = (g.rng.below(15) + 1, g.rng.below(12) + 1);
        let first = super::fill(g.pick(&SUMS), &[("a", &a.to_string()), ("b", &b.to_string())]);
        let mut turns = vec![(first, format!("{a} plus {b} is {}.", a + b))];
        let mut total = a + b;
        for _ in 0..2 {
            let c = g.rng.below(10) + 1;
            let less = c <= total && g.chance(0.25);
            let ask = super::fill(
                g.pick(if less { &MINUS[..] } else { &PLUS[..] }),
                &[("b", &c.to_string())],
            );
            let (sign, next) = if less { ("minus", total - c) } else { ("plus", total + c) };
            turns.push((ask, format!("{total} {sign} {c} is {next}.")));
            total = next;
        }
        if g.chance(0.2) {
            turns[2] = ("Thank you!".to_owned(), "You're welcome!".to_owned());
        }
        let turns: Vec<(&str, &str)> =
            turns.iter().map(|(a, s)| (a.as_str(), s.as_str())).collect();
        g.turns(None, &turns);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every answer in digits is read again and reckoned anew; and no slot stays open.
    #[test]
    fn answers_are_right() {
        let mut g = Generator::new(5, std::iter::empty());
        make(&mut g);
        let mut checked = 0;
        for dialogue in g.finish() {
            for message in dialogue["messages"].as_array().into_iter().flatten() {
                let text = message["content"].as_str().unwrap_or_default();
                assert!(!text.contains(['{', '}']), "{text}");
                let words: Vec<&str> = text.trim_end_matches('.').split(' ').collect();
                let [a, sign, b, "is", c] = words[..] else { continue };
                let (Ok(a), Ok(b), Ok(c)) = (a.parse::<i64>(), b.parse::<i64>(), c.parse::<i64>())
                else {
                    continue;
                };
                let right: i64 = match sign {
                    "plus" => a + b,
                    "minus" => a - b,
                    "times" => a * b,
                    _ => continue,
                };
                assert_eq!(c, right, "{text}");
                checked += 1;
            }
        }
        assert!(checked > 10_000, "{checked}");
    }
}
