//! Questions about the facts of the corpus: countries, words, elements, lists, and stories.

use super::written::Written;
use super::{Generator, article, documents, upper_first};
use crate::Failure;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// What is taken from the corpus.
pub struct Facts {
    capitals: Vec<(String, String)>,
    states: Vec<(String, String)>,
    countries: Vec<Value>,
    elements: Vec<(String, String, u64)>,
    verbs: Vec<(String, String)>,
    common: Vec<String>,
    definitions: BTreeMap<String, (String, String)>,
    lists: Vec<(&'static str, Vec<String>)>,
    stories: Vec<String>,
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
    pub fn read(corpus: &Path) -> Result<Self, Failure> {
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
            stories.extend(documents(corpus, name)?.iter().filter_map(|d| text(&d["text"])));
        }
        Ok(Self {
            capitals: pairs("geography/countries_with_capitals", "name", "capital"),
            states: pairs("geography/us_state_capitals", "state", "capital"),
            countries: documents(corpus, "facts_countries_en")?,
            elements: items("science/elements").iter().filter_map(element).collect(),
            verbs: pairs("words/verbs", "present", "past"),
            common,
            definitions: documents(corpus, "facts_words_en")?
                .iter()
                .filter_map(definition)
                .collect(),
            lists: LISTS.iter().map(|(name, one)| (*one, words(name))).collect(),
            stories,
        })
    }
}

fn text(value: &Value) -> Option<String> {
    value.as_str().filter(|s| !s.is_empty()).map(str::to_owned)
}

/// Everything of this file.
pub fn make(g: &mut Generator, written: &Written, facts: &Facts) {
    g.begin("countries");
    capitals(g, &facts.capitals);
    french(g, written);
    states(g, &facts.states);
    countries(g, &facts.countries);
    g.begin("science");
    elements(g, &facts.elements);
    g.begin("words");
    definitions(g, facts);
    opposites(g, written);
    verbs(g, &facts.verbs);
    g.begin("lists");
    lists(g, &facts.lists);
    g.begin("stories");
    stories(g, written, &facts.stories);
}

fn capitals(g: &mut Generator, capitals: &[(String, String)]) {
    for (country, capital) in capitals {
        let say = format!("The capital of {country} is {capital}.");
        for _ in 0..4 {
            let asks = [
                format!("What is the capital of {country}?"),
                format!("Which city is the capital of {country}?"),
                format!("Name the capital of {country}."),
                format!("Do you know the capital of {country}?"),
                format!("{country}: what is the capital?"),
            ];
            let ask = g.pick(&asks).clone();
            let ask = g.typed(&ask);
            g.one(&ask, &say);
        }
        g.one(&format!("What is the capital of {country}?"), &say);
        let back = format!("{capital} is the capital of {country}.");
        g.one(&format!("Which country has the capital {capital}?"), &back);
        g.one(&format!("Of which country is {capital} the capital?"), &back);
        let ask = format!("What is the capital of {country}?");
        for system in ["Answer in one word.", "Answer with one word only."] {
            g.turns(Some(system), &[(&ask, &format!("{capital}."))]);
        }
        g.turns(Some("Be cheerful."), &[(&ask, &format!("Sure! {say} Have a lovely day!"))]);
        let (other, city) = g.pick(capitals).clone();
        let next = format!("And of {other}?");
        let and = format!("The capital of {other} is {city}.");
        g.turns(None, &[(&ask, &say), (&next, &and), ("Thank you!", "You're welcome!")]);
        let (third, last) = g.pick(capitals).clone();
        let more = format!("And the capital of {third}?");
        let answer = format!("The capital of {third} is {last}.");
        g.turns(None, &[(&ask, &say), (&next, &and), (&more, &answer)]);
    }
}

fn french(g: &mut Generator, written: &Written) {
    let english = [
        ("la France", "France"),
        ("l'Italie", "Italy"),
        ("l'Espagne", "Spain"),
        ("l'Allemagne", "Germany"),
        ("le Japon", "Japan"),
        ("la Chine", "China"),
        ("le Canada", "Canada"),
        ("la Grèce", "Greece"),
        ("la Suisse", "Switzerland"),
        ("l'Autriche", "Austria"),
        ("la Norvège", "Norway"),
        ("la Russie", "Russia"),
    ];
    for [name, of, capital] in written.french_countries() {
        let say = format!("La capitale {of} est {capital}.");
        for _ in 0..5 {
            let asks = [
                format!("Quelle est la capitale {of} ?"),
                format!("Quelle ville est la capitale {of} ?"),
                format!("Connais-tu la capitale {of} ?"),
                format!("Dis-moi la capitale {of}."),
            ];
            let ask = g.pick(&asks).clone();
            g.one(&ask, &say);
        }
        let back = format!("{capital} est la capitale {of}.");
        g.one(&format!("{capital} est la capitale de quel pays ?"), &back);
        if let Some((_, english)) = english.iter().find(|(french, _)| *french == name) {
            for order in ["Answer in French.", "Always answer in French.", "Speak French."] {
                g.turns(Some(order), &[(&format!("What is the capital of {english}?"), &say)]);
                g.turns(
                    Some(order),
                    &[(&format!("Which city is the capital of {english}?"), &say)],
                );
            }
        }
    }
}

fn states(g: &mut Generator, states: &[(String, String)]) {
    for (state, capital) in states {
        let say = format!("The capital of {state} is {capital}.");
        g.one(&format!("What is the capital of {state}?"), &say);
        g.one(&format!("Name the capital of the state of {state}."), &say);
    }
}

fn countries(g: &mut Generator, countries: &[Value]) {
    for country in countries {
        let facts = &country["facts"];
        let Some(name) = text(&facts["name"]) else { continue };
        if let Some(place) = text(&facts["location"]).filter(|p| p.len() < 160) {
            let say = format!("{name} is in {place}.");
            g.one(&format!("Where is {name}?"), &say);
            g.one(&format!("In which part of the world is {name}?"), &say);
            let ask = g.typed(&format!("Where is {name}?"));
            g.one(&ask, &say);
        }
        if let Some(borders) = facts["borders"].as_array().filter(|b| (1..6).contains(&b.len())) {
            let all: Vec<&str> = borders.iter().filter_map(Value::as_str).collect();
            let say = format!("{name} has a border with {}.", and(&all));
            g.one(&format!("Which countries border {name}?"), &say);
            g.one(&format!("What are the neighbours of {name}?"), &say);
        }
        if let Some(top) = text(&facts["highest_point"]).filter(|t| t.len() < 40) {
            let say = format!("The highest point of {name} is {top}.");
            g.one(&format!("What is the highest point of {name}?"), &say);
        }
        if let Some(text) = text(&country["text"])
            && let Some(language) = text.split("The main language is ").nth(1)
        {
            let language = language.split('.').next().unwrap_or_default();
            let say = format!("The main language of {name} is {language}.");
            g.one(&format!("Which language do they speak in {name}?"), &say);
            g.one(&format!("What is the main language of {name}?"), &say);
        }
    }
}

fn elements(g: &mut Generator, elements: &[(String, String, u64)]) {
    for (name, symbol, number) in elements {
        let say = format!("The symbol of {} is {symbol}.", name.to_lowercase());
        g.one(&format!("What is the chemical symbol of {}?", name.to_lowercase()), &say);
        g.one(&format!("What is the symbol for {}?", name.to_lowercase()), &say);
        g.one(
            &format!("Which element has the symbol {symbol}?"),
            &format!("{symbol} is {}.", name.to_lowercase()),
        );
        let say = format!("The atomic number of {} is {number}.", name.to_lowercase());
        g.one(&format!("What is the atomic number of {}?", name.to_lowercase()), &say);
    }
}

fn definitions(g: &mut Generator, facts: &Facts) {
    for word in &facts.common {
        let Some((pos, definition)) = facts.definitions.get(word) else { continue };
        if definition.len() > 140 || definition.starts_with('(') {
            continue;
        }
        let say = match pos.as_str() {
            "noun" => format!("{} is a noun: {definition}.", upper_first(word)),
            "verb" => format!("To {word} means: {definition}."),
            _ => format!("{} means: {definition}.", upper_first(word)),
        };
        let asks = [
            format!("What does “{word}” mean?"),
            format!("What does {word} mean?"),
            format!("What does the word {word} mean?"),
            format!("Define {word}."),
            format!("What is the meaning of {word}?"),
        ];
        for _ in 0..2 {
            let ask = g.pick(&asks).clone();
            g.one(&ask, &say);
        }
    }
}

fn opposites(g: &mut Generator, written: &Written) {
    for (a, b) in written.opposites() {
        for (word, other) in [(a, b), (b, a)] {
            let say = format!("The opposite of {word} is {other}.");
            let asks = [
                format!("What is the opposite of {word}?"),
                format!("What is the opposite of “{word}”?"),
                format!("Tell me the opposite of {word}."),
                format!("Which word means the opposite of {word}?"),
            ];
            for ask in &asks {
                g.one(ask, &say);
                let ask = g.typed(ask);
                g.one(&ask, &say);
            }
        }
    }
}

fn verbs(g: &mut Generator, verbs: &[(String, String)]) {
    for (present, past) in verbs {
        let say = format!("The past tense of {present} is {past}.");
        let asks = [
            format!("What is the past tense of {present}?"),
            format!("What is the past of {present}?"),
            format!("What is the past tense of “{present}”?"),
        ];
        let ask = g.pick(&asks).clone();
        g.one(&ask, &say);
    }
}

fn lists(g: &mut Generator, lists: &[(&'static str, Vec<String>)]) {
    for (one, all) in lists.iter().filter(|(_, all)| all.len() > 5) {
        let many = if *one == "part of the body" {
            "parts of the body".to_owned()
        } else if *one == "piece of clothing" {
            "pieces of clothing".to_owned()
        } else {
            format!("{one}s")
        };
        for _ in 0..60 {
            let few: Vec<&str> = (0..3).map(|_| g.pick(all).as_str()).collect();
            if few[0] == few[1] || few[1] == few[2] || few[0] == few[2] {
                continue;
            }
            let asks = [
                format!("Name three {many}."),
                format!("Tell me three {many}."),
                format!("Can you name three {many}?"),
                format!("Give me three {many}."),
            ];
            let ask = g.pick(&asks).clone();
            g.one(&ask, &format!("{}.", upper_first(&and(&few))));
            let ask = format!("Name {} {one}.", article(one));
            g.one(&ask, &format!("{}.", upper_first(few[0])));
        }
        // The other lists have things without a plural.
        let counted = ["fruit", "animal", "flower", "musical instrument"].contains(one);
        for thing in all.iter().take(120).filter(|_| counted) {
            let kind = article(one);
            g.one(
                &format!("What is {} {thing}?", article(thing)),
                &format!("{} {thing} is {kind} {one}.", upper_first(article(thing))),
            );
        }
    }
}

/// Stories that end within some 200 words, by what they are about.
fn stories(g: &mut Generator, written: &Written, stories: &[String]) {
    let subjects: Vec<&str> = written.subjects().collect();
    for story in stories {
        let whole = story.trim_end().ends_with(['.', '!', '?', '"', '”']);
        if !whole || story.len() > 1300 || story.len() < 250 {
            continue;
        }
        let words = super::plain(story);
        let counted = |s: &&str| words.split(' ').filter(|w| w == s).count();
        let Some(about) = subjects.iter().copied().filter(|s| counted(s) > 1).max_by_key(counted)
        else {
            continue;
        };
        let a = article(about);
        let asks = [
            format!("Tell me a short story about {a} {about}."),
            format!("Tell me a story about {a} {about}."),
            format!("Write a short story about {a} {about}."),
            format!("Write a story about {a} {about}."),
            format!("Can you tell me a story about {a} {about}?"),
            format!("I would like a story about {a} {about}."),
            format!("A story about {a} {about}, please."),
            "Tell me a story.".to_owned(),
            "Tell me a short story.".to_owned(),
        ];
        let ask = g.pick(&asks).clone();
        g.one(&ask, story.trim());
    }
}

/// "a, b and c".
fn and(all: &[&str]) -> String {
    match all {
        [] => String::new(),
        [one] => (*one).to_owned(),
        [first @ .., last] => format!("{} and {last}", first.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_joined() {
        assert_eq!(and(&["a", "b", "c"]), "a, b and c");
        assert_eq!(and(&["a"]), "a");
    }
}
