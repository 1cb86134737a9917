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

/// Everything of this file.
pub fn make(g: &mut Generator) {
    g.begin("numbers");
    for a in 0..=20 {
        for b in 0..=20 {
            sum(g, a, b);
            if b <= a {
                difference(g, a, b);
            }
            if a <= 12 && b <= 12 {
                product(g, a, b);
            }
        }
    }
    for _ in 0..1500 {
        let (a, b) = (g.rng.below(90) + 10, g.rng.below(90) + 10);
        sum(g, a, b);
        difference(g, a.max(b), a.min(b));
    }
    (1..=100).for_each(|n| order(g, n));
    (0..=20).for_each(|n| spelt(g, n));
    stories(g);
    chains(g);
}

fn sum(g: &mut Generator, a: usize, b: usize) {
    let total = a + b;
    let ask = match g.rng.below(6) {
        0 => format!("{a} + {b} = ?"),
        1 => format!("How much is {a} plus {b}?"),
        2 => format!("What is {a} + {b}?"),
        3 => format!("Add {a} and {b}."),
        _ => format!("What is {a} plus {b}?"),
    };
    g.one(&ask, &format!("{a} plus {b} is {total}."));
}

fn difference(g: &mut Generator, a: usize, b: usize) {
    let ask = match g.rng.below(6) {
        0 => format!("{a} - {b} = ?"),
        1 => format!("How much is {a} minus {b}?"),
        2 => format!("What is {a} - {b}?"),
        3 => format!("Take {b} from {a}."),
        _ => format!("What is {a} minus {b}?"),
    };
    g.one(&ask, &format!("{a} minus {b} is {}.", a - b));
}

fn product(g: &mut Generator, a: usize, b: usize) {
    let ask = match g.rng.below(5) {
        0 => format!("How much is {a} times {b}?"),
        1 => format!("What is {a} x {b}?"),
        2 => format!("Multiply {a} by {b}."),
        _ => format!("What is {a} times {b}?"),
    };
    g.one(&ask, &format!("{a} times {b} is {}.", a * b));
    if a > 0 {
        let ask = format!("What is {} divided by {a}?", a * b);
        g.one(&ask, &format!("{} divided by {a} is {b}.", a * b));
    }
}

/// What comes before and after, odd and even, more and less, double and half.
fn order(g: &mut Generator, n: usize) {
    g.one(&format!("What comes after {n}?"), &format!("After {n} comes {}.", n + 1));
    g.one(&format!("Which number comes after {n}?"), &format!("After {n} comes {}.", n + 1));
    g.one(&format!("What comes before {n}?"), &format!("Before {n} comes {}.", n - 1));
    let (is, other) = if n.is_multiple_of(2) { ("even", "odd") } else { ("odd", "even") };
    g.one(&format!("Is {n} even or odd?"), &format!("{n} is {is}."));
    g.one(&format!("Is {n} {is}?"), &format!("Yes, {n} is {is}."));
    g.one(&format!("Is {n} {other}?"), &format!("No, {n} is {is}."));
    g.one(&format!("What is the double of {n}?"), &format!("The double of {n} is {}.", 2 * n));
    g.one(&format!("What is half of {}?", 2 * n), &format!("Half of {} is {n}.", 2 * n));
    for _ in 0..3 {
        let m = g.rng.below(100) + 1;
        if m != n {
            let (more, less) = (m.max(n), m.min(n));
            g.one(&format!("Which is more, {n} or {m}?"), &format!("{more} is more than {less}."));
            g.one(
                &format!("Which is larger, {n} or {m}?"),
                &format!("{more} is larger than {less}."),
            );
            g.one(&format!("Which is less, {n} or {m}?"), &format!("{less} is less than {more}."));
        }
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
            let list = |words: &[&str]| words[1..=n].join(", ");
            g.one(&format!("Count to {word}."), &format!("{}.", upper_first(&list(&WORDS))));
            g.one(&format!("Count to {n}."), &format!("{}.", upper_first(&list(&WORDS))));
            g.one(
                &format!("Compte jusqu'à {french}."),
                &format!("{}.", upper_first(&list(&FRENCH))),
            );
        }
    }
    for m in 0..=20 - n {
        let (a, b) = (WORDS[n], WORDS[m]);
        g.one(
            &format!("What is {a} plus {b}?"),
            &format!("{} plus {b} is {}.", upper_first(a), WORDS[n + m]),
        );
        let (a, b) = (FRENCH[n], FRENCH[m]);
        let say = format!("{} plus {b} font {}.", upper_first(a), FRENCH[n + m]);
        g.one(&format!("Combien font {a} plus {b} ?"), &say);
        g.one(&format!("Combien font {n} plus {m} ?"), &format!("{n} plus {m} font {}.", n + m));
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
    for _ in 0..400 {
        let (a, b, c) = (g.rng.below(20) + 1, g.rng.below(20) + 1, g.rng.below(10) + 1);
        let first = (format!("What is {a} plus {b}?"), format!("{a} plus {b} is {}.", a + b));
        let second = (format!("And plus {c}?"), format!("{} plus {c} is {}.", a + b, a + b + c));
        let third = ("Thank you!", "You're welcome!");
        g.turns(None, &[(&first.0, &first.1), (&second.0, &second.1), third]);
    }
}
