//! Stories about what was asked for: made by the grammar in `stories.toml`, and short ones of the corpus.

use super::written::Written;
use super::{Generator, article, fill, upper_first};
use crate::Failure;
use serde::Deserialize;

/// Stories that the grammar makes.
const MADE: usize = 8_000;
/// Words that a story of the corpus has at most.
const LONGEST: usize = 120;
/// Share of them that is taken: a model that reads as many as the grammar makes tells theirs, in circles.
const TAKEN: f64 = 0.25;

/// `stories.toml`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Grammar {
    words: Words,
    #[serde(rename = "plot")]
    plots: Vec<Plot>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Words {
    animals: Vec<String>,
    she: Vec<String>,
    he: Vec<String>,
    people: Vec<String>,
    things: Vec<String>,
    nature: Vec<String>,
    sky: Vec<String>,
    sites: Vec<String>,
    girls: Vec<String>,
    boys: Vec<String>,
    friends: Vec<String>,
    children: Vec<String>,
    places: Vec<String>,
    foods: Vec<String>,
    objects: Vec<String>,
    adjectives: Vec<String>,
    looks: Vec<String>,
}

/// A row of steps, what it can be about, and the adjectives that go with it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Plot {
    of: Vec<String>,
    suits: Vec<String>,
    steps: Vec<Vec<String>>,
}

/// What a story is about.
struct Subject {
    noun: String,
    adjective: Option<String>,
    /// As the plots name it.
    kind: &'static str,
    female: bool,
}

impl Grammar {
    /// Reads the file that was compiled in.
    ///
    /// # Errors
    /// If it is not as expected.
    pub fn read() -> Result<Self, Failure> {
        toml::from_str(include_str!("../../stories.toml"))
            .map_err(|e| Failure(format!("stories.toml: {e}")))
    }

    /// Every noun that a story can be about.
    fn nouns(&self) -> impl Iterator<Item = &str> {
        let w = &self.words;
        let lists = [&w.animals, &w.she, &w.he, &w.people, &w.things, &w.nature, &w.sky, &w.sites];
        lists.into_iter().flatten().map(String::as_str)
    }

    /// A subject: an animal as often as all others together, and with an adjective half the time.
    fn subject(&self, g: &mut Generator) -> Subject {
        let w = &self.words;
        let (list, kind, female) = match g.rng.below(20) {
            0..=9 => (&w.animals, "animal", g.chance(0.5)),
            10 => (&w.she, "person", true),
            11 => (&w.he, "person", false),
            12 | 13 => (&w.people, "person", g.chance(0.5)),
            14 | 15 => (&w.things, "thing", false),
            16 | 17 => (&w.nature, "nature", false),
            18 => (&w.sky, "sky", false),
            _ => (&w.sites, "site", false),
        };
        let noun = g.pick(list).clone();
        let looks = matches!(kind, "thing" | "nature" | "sky" | "site");
        let adjectives = if looks { &w.looks } else { &w.adjectives };
        let adjective = g.chance(0.5).then(|| g.pick(adjectives).clone());
        Subject { noun, adjective, kind, female }
    }

    /// A story about it, of a plot that goes with the adjective where there is one.
    fn tell(&self, g: &mut Generator, about: &Subject) -> String {
        let of: Vec<&Plot> =
            self.plots.iter().filter(|p| p.of.iter().any(|k| k == about.kind)).collect();
        let suited: Vec<&Plot> = of
            .iter()
            .copied()
            .filter(|p| about.adjective.as_ref().is_some_and(|a| p.suits.contains(a)))
            .collect();
        let plot = if suited.is_empty() { *g.pick(&of) } else { *g.pick(&suited) };
        let slots = self.slots(g, about);
        let slots: Vec<(&str, &str)> = slots.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let steps: Vec<String> =
            plot.steps.iter().map(|ways| upper_first(&fill(g.pick(ways), &slots))).collect();
        steps.join(" ")
    }

    fn slots(&self, g: &mut Generator, about: &Subject) -> Vec<(&'static str, String)> {
        let w = &self.words;
        let full = about.full();
        let names = if about.female { &w.girls } else { &w.boys };
        let (he, his, him) =
            if about.female { ("she", "her", "her") } else { ("he", "his", "him") };
        let others: Vec<&String> = w.friends.iter().filter(|f| **f != about.noun).collect();
        let other = *g.pick(&others);
        let second = *g.pick(&others);
        let a = |noun: &str| format!("{} {noun}", article(noun));
        let child = g.pick(&w.children).clone();
        vec![
            ("a", full.clone()),
            ("A", upper_first(&full)),
            ("the", format!("the {}", about.noun)),
            ("The", format!("The {}", about.noun)),
            ("s", about.noun.clone()),
            ("name", g.pick(names).clone()),
            ("he", he.to_owned()),
            ("He", upper_first(he)),
            ("his", his.to_owned()),
            ("His", upper_first(his)),
            ("him", him.to_owned()),
            ("himself", format!("{him}self")),
            ("friend", a(other)),
            ("Friend", upper_first(&a(other))),
            ("friend2", a(second)),
            ("friend3", format!("the {other}")),
            ("other", format!("the {other}")),
            ("Other", format!("The {other}")),
            ("child", child.clone()),
            ("Child", upper_first(&child)),
            ("place", g.pick(&w.places).clone()),
            ("food", g.pick(&w.foods).clone()),
            ("object", g.pick(&w.objects).clone()),
        ]
    }
}

impl Subject {
    /// With its article and its adjective.
    fn full(&self) -> String {
        let words = match &self.adjective {
            Some(adjective) => format!("{adjective} {}", self.noun),
            None => self.noun.clone(),
        };
        format!("{} {words}", article(&words))
    }
}

/// Ways to ask for a story about {a}.
const ASKS: [&str; 24] = [
    "Tell me a short story about {a}.",
    "Tell me a story about {a}.",
    "Tell me a story about {a}",
    "Tell me a bedtime story about {a}.",
    "Tell us a story about {a}.",
    "Write a short story about {a}.",
    "Write a story about {a}.",
    "Write me a story about {a}, please.",
    "Write a tale about {a}.",
    "Can you tell me a story about {a}?",
    "Could you write a short story about {a}?",
    "Would you tell me a little story about {a}?",
    "I would like a story about {a}.",
    "I want to hear a story about {a}.",
    "A story about {a}, please.",
    "Story about {a}",
    "Make up a story about {a}.",
    "Invent a short story about {a}.",
    "Do you know a story about {a}?",
    "Let me hear a story about {a}.",
    "Give me a short story with {a} in it.",
    "My daughter wants a story about {a}.",
    "How about a story of {a}?",
    "Please tell the story of {a}.",
];
const OPEN: [&str; 6] = [
    "Tell me a story.",
    "Tell me a short story.",
    "Write a story.",
    "Can you tell a story?",
    "I would like to hear a story.",
    "Tell me a bedtime story, please.",
];

/// Everything of this file: `told` are the corpus's stories.
pub fn make(g: &mut Generator, written: &Written, grammar: &Grammar, told: &[String]) {
    g.begin("stories");
    for _ in 0..MADE {
        let about = grammar.subject(g);
        let story = grammar.tell(g, &about);
        let ask = if g.chance(0.03) { *g.pick(&OPEN) } else { *g.pick(&ASKS) };
        let ask = fill(ask, &[("a", &about.full())]);
        let ask = if g.chance(0.3) { g.typed(&ask) } else { ask };
        if g.chance(0.06) {
            let greeting = g.pick(&written.talk[0].ask).clone();
            let hello = "Hello! What can I do for you?";
            g.turns(None, &[(&greeting, hello), (&ask, &story)]);
        } else {
            g.one(&ask, &story);
        }
    }
    corpus(g, grammar, told);
}

/// Whole stories of the corpus that are short, by what they name most often.
fn corpus(g: &mut Generator, grammar: &Grammar, told: &[String]) {
    for story in told {
        let story = story.split_whitespace().collect::<Vec<_>>().join(" ");
        let whole = story.ends_with(['.', '!', '?', '"', '”']);
        let words = super::plain(&story);
        let long = words.split(' ').count();
        if !whole || !(40..=LONGEST).contains(&long) || !g.chance(TAKEN) {
            continue;
        }
        let counted = |s: &&str| words.split(' ').filter(|w| w == s).count();
        let Some(about) = grammar.nouns().filter(|s| counted(s) > 1).max_by_key(counted) else {
            continue;
        };
        let about = format!("{} {about}", article(about));
        let ask = fill(g.pick(&ASKS[..]), &[("a", &about)]);
        g.one(&ask, &story);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grammar() -> Grammar {
        Grammar::read().unwrap_or_else(|e| panic!("{e}"))
    }

    /// Each story names what it is about, has no open slot, and is of a length that fits a sequence.
    #[test]
    fn stories_are_about_their_subject() {
        let (grammar, mut g) = (grammar(), Generator::new(3, std::iter::empty()));
        for _ in 0..2000 {
            let about = grammar.subject(&mut g);
            let story = grammar.tell(&mut g, &about);
            assert!(story.to_lowercase().contains(&about.noun), "{}: {story}", about.noun);
            assert!(!story.contains(['{', '}']), "{story}");
            let words = story.split(' ').count();
            assert!((50..200).contains(&words), "{words}: {story}");
        }
    }

    /// Every kind of subject has plots, and each adjective that a plot asks for can be chosen.
    #[test]
    fn plots_can_be_reached() {
        let grammar = grammar();
        for plot in &grammar.plots {
            assert!(plot.steps.iter().all(|s| !s.is_empty()));
            let living = plot.of.iter().any(|k| k == "animal");
            let adjectives = if living { &grammar.words.adjectives } else { &grammar.words.looks };
            assert!(plot.suits.iter().any(|s| adjectives.contains(s)), "{:?}", plot.suits);
        }
        for kind in ["animal", "person", "thing", "nature", "sky", "site"] {
            assert!(grammar.plots.iter().any(|p| p.of.iter().any(|k| k == kind)), "{kind}");
        }
    }
}
