//! `dialogues.toml`: what people have written for the generator.

use crate::Failure;
use serde::Deserialize;
use std::collections::BTreeMap;

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    pub about: Vec<Entry>,
    pub talk: Vec<Entry>,
    pub unknown: Vec<Entry>,
    pub french: Vec<Entry>,
    pub facts: Vec<Entry>,
    colours: List,
    amounts: List,
    makers: List,
    /// What follows what, by what they are called.
    pub rings: BTreeMap<String, Vec<String>>,
    opposites: Pairs,
    verbs: Pairs,
    plurals: Pairs,
    french_countries: List,
    continents: BTreeMap<String, Vec<String>>,
    known: List,
}

/// Ways to ask, things that one may want to do, and ways to answer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub ask: Vec<String>,
    #[serde(default, rename = "do")]
    pub tasks: Vec<String>,
    pub say: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pairs {
    pairs: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    list: Vec<String>,
}

impl Pairs {
    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.pairs.iter().filter_map(|p| p.split_once(' '))
    }
}

impl List {
    /// The lines that have `N` parts.
    fn parts<const N: usize>(&self) -> impl Iterator<Item = [&str; N]> {
        self.list.iter().filter_map(|line| {
            let parts: Vec<&str> = line.split('|').collect();
            parts.try_into().ok()
        })
    }
}

impl Written {
    /// Reads the file that was compiled in.
    ///
    /// # Errors
    /// If it is not as expected.
    pub fn read() -> Result<Self, Failure> {
        toml::from_str(include_str!("../../dialogues.toml"))
            .map_err(|e| Failure(format!("dialogues.toml: {e}")))
    }

    /// Words that mean the opposite of each other.
    pub fn opposites(&self) -> impl Iterator<Item = (&str, &str)> {
        self.opposites.iter()
    }

    /// Common verbs: present and past.
    pub fn verbs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.verbs.iter()
    }

    /// Nouns: one and many.
    pub fn plurals(&self) -> impl Iterator<Item = (&str, &str)> {
        self.plurals.iter()
    }

    /// Countries in French: the name, "of" the name, the capital, the English name.
    pub fn french_countries(&self) -> impl Iterator<Item = [&str; 4]> {
        self.french_countries.parts()
    }

    /// Things: the name, the colour, both in French.
    pub fn colours(&self) -> impl Iterator<Item = [&str; 4]> {
        self.colours.parts()
    }

    /// What has how many of something: the whole, the parts, the number.
    pub fn amounts(&self) -> impl Iterator<Item = [&str; 3]> {
        self.amounts.parts()
    }

    /// Who makes something: who, the verb, what.
    pub fn makers(&self) -> impl Iterator<Item = [&str; 3]> {
        self.makers.parts()
    }

    /// Countries with their continents.
    pub fn continents(&self) -> impl Iterator<Item = (&str, &str)> {
        self.continents
            .iter()
            .flat_map(|(continent, all)| all.iter().map(|c| (c.as_str(), continent.as_str())))
    }

    /// Whether many people ask for the country.
    pub fn known(&self, country: &str) -> bool {
        self.known.list.iter().any(|c| c == country)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// No line of the lists is lost because a part is missing.
    #[test]
    fn lists_are_whole() {
        let w = Written::read().unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(w.colours().count(), w.colours.list.len());
        assert_eq!(w.amounts().count(), w.amounts.list.len());
        assert_eq!(w.makers().count(), w.makers.list.len());
        assert_eq!(w.french_countries().count(), w.french_countries.list.len());
        for pairs in [&w.opposites, &w.verbs, &w.plurals] {
            assert_eq!(pairs.iter().count(), pairs.pairs.len());
        }
        assert!(w.continents().any(|(c, o)| (c, o) == ("France", "Europe")));
        assert!(w.known("France"));
    }
}
