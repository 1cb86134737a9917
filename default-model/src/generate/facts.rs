//! What the corpus knows, without what is held out.

use super::documents;
use crate::Failure;
use crate::copies::HeldOut;
use crate::prepare::plain;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// What is taken from the corpus.
pub struct Facts {
    /// Countries and their capitals.
    pub capitals: Vec<(String, String)>,
    /// The states of the USA and their capitals.
    pub states: Vec<(String, String)>,
    /// What the World Factbook says.
    pub countries: Vec<Value>,
    /// Chemical elements: name, symbol, number.
    pub elements: Vec<(String, String, u64)>,
    /// Verbs: present and past.
    pub verbs: Vec<(String, String)>,
    /// Words that are worth explaining.
    pub common: Vec<String>,
    /// Words: part of speech and meaning.
    pub definitions: BTreeMap<String, (String, String)>,
    /// Things, by what one of them is called.
    pub lists: Vec<(&'static str, Vec<String>)>,
    /// Whole stories.
    pub stories: Vec<String>,
}

/// Lists, by what one of their things is called.
const LISTS: [(&str, &str); 9] = [
    ("foods/fruits", "fruit"),
    ("foods/vegetables", "vegetable"),
    ("animals/common", "animal"),
    ("plants/flowers", "flower"),
    ("music/instruments", "musical instrument"),
    ("humans/bodyParts", "part of the body"),
    ("foods/pizzaToppings", "pizza topping"),
    ("objects/clothing", "piece of clothing"),
    ("materials/metals", "metal"),
];

impl Facts {
    /// Reads them.
    ///
    /// # Errors
    /// If a file is missing or damaged.
    pub fn read(corpus: &Path, held: &HeldOut) -> Result<Self, Failure> {
        let free = |name: &str| -> Result<Vec<Value>, Failure> {
            let all = documents(corpus, name)?;
            Ok(all.into_iter().filter(|d| !held.has(&plain(d))).collect())
        };
        let lists = documents(corpus, "facts_lists_en")?;
        let items = |name: &str| -> Vec<Value> {
            let list = lists.iter().find(|l| l["list"] == name);
            list.and_then(|l| l["items"].as_array().cloned()).unwrap_or_default()
        };
        let pairs = |name: &str, a: &str, b: &str| -> Vec<(String, String)> {
            items(name).iter().filter_map(|i| Some((text(&i[a])?, text(&i[b])?))).collect()
        };
        let words = |name: &str| items(name).iter().filter_map(text).collect::<Vec<_>>();
        let mut common = words("words/common");
        common.extend(words("words/nouns"));
        common.extend(words("words/adjs"));
        let element = |i: &Value| {
            Some((text(&i["name"])?, text(&i["symbol"])?, i["atomic_number"].as_u64()?))
        };
        let definition = |d: &Value| {
            let sense = &d["senses"][0];
            Some((text(&d["word"])?, (text(&sense["pos"])?, text(&sense["definition"])?)))
        };
        let mut stories = Vec::new();
        for name in ["stories_tiny_en", "stories_simple_en"] {
            stories.extend(free(name)?.iter().filter_map(|d| text(&d["text"])));
        }
        Ok(Self {
            capitals: pairs("geography/countries_with_capitals", "name", "capital"),
            states: pairs("geography/us_state_capitals", "state", "capital"),
            countries: free("facts_countries_en")?,
            elements: items("science/elements").iter().filter_map(element).collect(),
            verbs: pairs("words/verbs", "present", "past"),
            common,
            definitions: free("facts_words_en")?.iter().filter_map(definition).collect(),
            lists: LISTS.iter().map(|(name, one)| (*one, words(name))).collect(),
            stories,
        })
    }
}

/// A string that is not empty.
pub fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|s| !s.is_empty()).map(str::to_owned)
}
