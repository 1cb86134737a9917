//! Countries: capitals both ways, continents, neighbours, languages; in French; states of the USA.

use super::facts::{Facts, text};
use super::turns::ONE_WORD;
use super::written::Written;
use super::{Generator, and, upper_first};
use serde_json::Value;
use std::collections::HashMap;

/// How often each capital is asked for, and how often that of a country that many people ask for.
const TIMES: [usize; 2] = [14, 36];

const CAPITALS: [&str; 24] = [
    "What is the capital of {c}?",
    "What is the capital of {c}?",
    "What's the capital of {c}?",
    "Which city is the capital of {c}?",
    "Name the capital of {c}.",
    "Do you know the capital of {c}?",
    "{C}: what is the capital?",
    "What is {c}'s capital?",
    "What is {c}'s capital called?",
    "What is the name of {c}'s capital?",
    "Name {c}'s capital city.",
    "Tell me {c}'s capital.",
    "Tell me the capital of {c}.",
    "Give me the capital of {c}.",
    "The capital of {c} is which city?",
    "Can you tell me what the capital of {c} is?",
    "Do you know what {c}'s capital is called?",
    "I want to know the capital of {c}.",
    "Capital of {c}?",
    "{C}'s capital?",
    "Which is the capital city of {c}?",
    "I am going to {c}. What is its capital?",
    "From which city is {c} governed?",
    "How is the capital of {c} called?",
];
const BACK: [&str; 9] = [
    "Which country has the capital {city}?",
    "Of which country is {city} the capital?",
    "{city} is the capital of which country?",
    "What country is {city} the capital of?",
    "In which country is {city}?",
    "Where is {city}?",
    "{city}: which country's capital is it?",
    "Which country is governed from {city}?",
    "Tell me which country has {city} as its capital.",
];
const WHERE: [&str; 13] = [
    "Where is {c}?",
    "Where is {c}?",
    "Where's {c}?",
    "Where in the world is {c}?",
    "In which part of the world is {c}?",
    "On which continent is {c}?",
    "Which continent is {c} on?",
    "Which continent does {c} belong to?",
    "Where does {c} lie?",
    "Where can I find {c} on a map?",
    "{C}: where is that?",
    "Can you tell me where {c} is?",
    "Tell me where {c} is.",
];
const FRENCH: [&str; 10] = [
    "Quelle est la capitale {de} ?",
    "Quelle est la capitale {de} ?",
    "Quelle ville est la capitale {de} ?",
    "Connais-tu la capitale {de} ?",
    "Connaissez-vous la capitale {de} ?",
    "Dis-moi la capitale {de}.",
    "Donne-moi la capitale {de}.",
    "Comment s'appelle la capitale {de} ?",
    "La capitale {de}, c'est quelle ville ?",
    "Capitale {de} ?",
];

/// A country as sentences name it, with its capital and its continent.
struct Country {
    name: String,
    capital: String,
    continent: Option<String>,
    known: bool,
}

/// Everything of this file.
pub fn make(g: &mut Generator, written: &Written, facts: &Facts) {
    g.begin("countries");
    let continents: HashMap<&str, &str> = written.continents().collect();
    let countries: Vec<Country> = facts
        .capitals
        .iter()
        .map(|(name, capital)| Country {
            continent: continents.get(name.as_str()).map(|c| (*c).to_owned()),
            known: written.known(name),
            name: named(name),
            capital: capital.clone(),
        })
        .collect();
    for country in &countries {
        capital(g, country);
        continent(g, country, &countries);
        followed(g, country, &countries);
    }
    french(g, written);
    states(g, &facts.states);
    factbook(g, &facts.countries);
}

/// A name as it stands inside a sentence.
fn named(name: &str) -> String {
    let name = name.replace(" & ", " and ").replace(" Of ", " of ").replace("And The", "and the");
    let plural = ["Bahamas", "Maldives", "Gambia", "Seychelles", "Comoros", "Dominican Republic"];
    let with = name.starts_with("United") || plural.contains(&name.as_str());
    let with = with || name.ends_with("Islands") || name.starts_with("Central African");
    match name.strip_prefix("The ") {
        Some(rest) => format!("the {rest}"),
        None if with => format!("the {name}"),
        None => name,
    }
}

fn capital(g: &mut Generator, country: &Country) {
    let Country { name, capital, known, .. } = country;
    let upper = upper_first(name);
    let slots = [("c", name.as_str()), ("C", &upper), ("city", capital)];
    let say = format!("The capital of {name} is {capital}.");
    g.ways(TIMES[usize::from(*known)], &CAPITALS, &slots, &say);
    g.ways(5, &BACK, &slots, &format!("{capital} is the capital of {name}."));
    for _ in 0..1 + usize::from(*known) {
        let ask = super::fill(g.pick(&CAPITALS), &slots);
        let order = *g.pick(&ONE_WORD);
        g.turns(Some(order), &[(&ask, &format!("{capital}."))]);
        let ask = super::fill(g.pick(&CAPITALS), &slots);
        super::turns::toned(g, &ask, &say);
    }
}

fn continent(g: &mut Generator, country: &Country, all: &[Country]) {
    let Some(continent) = &country.continent else { return };
    let (name, upper) = (&country.name, upper_first(&country.name));
    let slots = [("c", name.as_str()), ("C", &upper)];
    let say = format!("{upper} is in {continent}.");
    g.ways(if country.known { 16 } else { 8 }, &WHERE, &slots, &say);
    g.one(&format!("Is {name} in {continent}?"), &format!("Yes, {name} is in {continent}."));
    let elsewhere = g.pick(all).continent.clone();
    if let Some(other) = elsewhere.filter(|o| o != continent) {
        let say = format!("No, {name} is in {continent}.");
        g.one(&format!("Is {name} in {other}?"), &say);
    }
    let sheet = format!("{upper} is a country in {continent}. Its capital is {}.", country.capital);
    let asks =
        ["Tell me about {c}.", "What do you know about {c}?", "Tell me something about {c}."];
    g.ways(3, &asks, &slots, &sheet);
    let ask = ["Name a country in {o}.", "Which country is in {o}?", "Tell me a country in {o}."];
    g.ways(1, &ask, &[("o", continent)], &format!("{upper} is in {continent}."));
}

/// Questions that go on from the last: and of another country?
fn followed(g: &mut Generator, country: &Country, all: &[Country]) {
    const NEXT: [&str; 9] = [
        "And of {c}?",
        "And {c}?",
        "And the capital of {c}?",
        "And {c}'s capital?",
        "How about {c}?",
        "Now {c}.",
        "And that of {c}?",
        "The same for {c}, please.",
        "And what is it in {c}?",
    ];
    for round in 0..if country.known { 6 } else { 2 } {
        let mut turns = Vec::new();
        for time in 0..3 {
            let next = if time == 0 {
                country
            } else {
                // Half of those that follow are countries that many ask for.
                let known: Vec<&Country> = all.iter().filter(|c| c.known || round == 0).collect();
                *g.pick(&known)
            };
            let pattern = *g.pick(if time == 0 { &CAPITALS[..] } else { &NEXT[..] });
            let upper = upper_first(&next.name);
            let ask = super::fill(pattern, &[("c", &next.name), ("C", &upper)]);
            turns.push((ask, format!("The capital of {} is {}.", next.name, next.capital)));
        }
        if g.chance(0.25) {
            turns[2] = ("Thank you!".into(), "You're welcome!".into());
        }
        let turns: Vec<(&str, &str)> =
            turns.iter().map(|(a, s)| (a.as_str(), s.as_str())).collect();
        g.turns(None, &turns);
    }
}

fn french(g: &mut Generator, written: &Written) {
    for [_, de, capital, english] in written.french_countries() {
        let say = format!("La capitale {de} est {capital}.");
        g.ways(24, &FRENCH, &[("de", de)], &say);
        let back = format!("{capital} est la capitale {de}.");
        g.one(&format!("{capital} est la capitale de quel pays ?"), &back);
        g.one(&format!("De quel pays {capital} est-elle la capitale ?"), &back);
        for _ in 0..8 {
            let order = *g.pick(&super::turns::IN_FRENCH);
            let pattern = *g.pick(&CAPITALS);
            let ask = super::fill(pattern, &[("c", english), ("C", &upper_first(english))]);
            g.turns(Some(order), &[(&ask, &say)]);
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

/// What the World Factbook says of places, neighbours, mountains and languages.
fn factbook(g: &mut Generator, countries: &[Value]) {
    for country in countries {
        let facts = &country["facts"];
        let Some(name) = text(&facts["name"]) else { continue };
        if let Some(place) = text(&facts["location"]).filter(|p| p.len() < 160) {
            let say = format!("{name} is in {place}.");
            g.one(&format!("Where exactly is {name}?"), &say);
            g.one(&format!("Describe where {name} is."), &say);
        }
        if let Some(borders) = facts["borders"].as_array().filter(|b| (1..6).contains(&b.len())) {
            let all: Vec<&str> = borders.iter().filter_map(Value::as_str).collect();
            let say = format!("{name} has a border with {}.", and(&all));
            g.one(&format!("Which countries border {name}?"), &say);
            g.one(&format!("What are the neighbours of {name}?"), &say);
            g.one(&format!("Which countries are next to {name}?"), &say);
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
            let asks = [
                "Which language do they speak in {c}?",
                "What is the main language of {c}?",
                "What language do people speak in {c}?",
                "Which language is spoken in {c}?",
            ];
            g.ways(4, &asks, &[("c", &name)], &say);
        }
    }
}
