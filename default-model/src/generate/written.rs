//! `dialogues.toml`: what people have written for the generator.

use crate::Failure;
use serde::Deserialize;

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Written {
    pub about: Vec<Entry>,
    pub talk: Vec<Entry>,
    pub unknown: Vec<Entry>,
    pub french: Vec<Entry>,
    pub facts: Vec<Entry>,
    opposites: Pairs,
    french_countries: List,
    stories: Subjects,
}

/// Ways to ask, and ways to answer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    pub ask: Vec<String>,
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

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Subjects {
    subjects: Vec<String>,
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
        self.opposites.pairs.iter().filter_map(|p| p.split_once(' '))
    }

    /// Countries in French: the name, "of" the name, the capital.
    pub fn french_countries(&self) -> impl Iterator<Item = [&str; 3]> {
        self.french_countries.list.iter().filter_map(|line| {
            let mut parts = line.split('|');
            Some([parts.next()?, parts.next()?, parts.next()?])
        })
    }

    /// What stories are about.
    pub fn subjects(&self) -> impl Iterator<Item = &str> {
        self.stories.subjects.iter().map(String::as_str)
    }
}
