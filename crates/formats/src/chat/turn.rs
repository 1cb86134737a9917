//! A model's turn as its tokens come: thought, text, tool calls (Gemma 4's markers).
//!
//! Only control tokens count as markers: the same characters written by the model as plain text
//! stay text.

use crate::tokenizer::{Detokenizer, Tokenizer};
use serde_json::{Map, Number, Value};

/// A part of a turn.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// The next piece of what the model thinks.
    Thought(String),
    /// The next piece of what it says.
    Text(String),
    /// A tool that it calls, with all arguments.
    Call {
        /// The tool.
        name: String,
        /// The arguments by name.
        arguments: Map<String, Value>,
    },
    /// A call that can't be read, as it was written.
    BrokenCall(String),
}

/// Splits a turn into its parts, a token at a time.
pub struct TurnParser<'a> {
    tokenizer: &'a Tokenizer,
    words: Detokenizer<'a>,
    markers: Markers,
    state: State,
}

#[derive(Clone, Copy)]
struct Markers {
    thought: Option<u32>,
    thought_end: Option<u32>,
    call: Option<u32>,
    call_end: Option<u32>,
    quote: Option<u32>,
}

enum State {
    Text,
    /// The channel's name, up to the end of its line.
    Channel(String),
    /// A thought; a line's end is held back, for the last one is not part of it.
    Thought(String),
    /// A call: words, with the places of quotes.
    Call(Vec<Word>),
}

#[derive(Debug, Clone, PartialEq)]
enum Word {
    Text(String),
    Quote,
}

/// The longest call that is gathered, in pieces.
const MOST: usize = 1 << 16;

impl<'a> TurnParser<'a> {
    /// For a turn from its beginning, or, with `in_thought`, from inside a thought that the prompt
    /// has begun. Models without these markers speak plain text.
    pub fn new(tokenizer: &'a Tokenizer, in_thought: bool) -> Self {
        let id = |piece| tokenizer.id_of(piece).filter(|id| tokenizer.is_control(*id));
        let markers = Markers {
            thought: id("<|channel>"),
            thought_end: id("<channel|>"),
            call: id("<|tool_call>"),
            call_end: id("<tool_call|>"),
            quote: id("<|\"|>"),
        };
        let state = if in_thought { State::Thought(String::new()) } else { State::Text };
        Self { tokenizer, words: Detokenizer::new(tokenizer, true), markers, state }
    }

    /// Whether a thought is open: between its first marker and its last.
    pub fn thinking(&self) -> bool {
        matches!(self.state, State::Channel(_) | State::Thought(_))
    }

    /// What token `id` adds.
    pub fn push(&mut self, id: u32) -> Vec<Part> {
        let m = self.markers;
        let marker = [m.thought, m.thought_end, m.call, m.call_end, m.quote].contains(&Some(id));
        let in_call = matches!(self.state, State::Call(_));
        if !marker || (!in_call && Some(id) == m.quote) {
            let text = self.words.push(id);
            return self.text(text);
        }
        let rest = self.words.finish();
        let mut parts = self.text(rest);
        if let (State::Call(words), true) = (&mut self.state, Some(id) == m.quote) {
            words.push(Word::Quote);
            return parts;
        }
        // Whatever was open ends here.
        parts.extend(self.close(Some(id) == m.call_end));
        self.words = Detokenizer::new(self.tokenizer, true);
        if Some(id) == m.thought {
            self.state = State::Channel(String::new());
        } else if Some(id) == m.call {
            self.state = State::Call(Vec::new());
        }
        parts
    }

    /// What is left when no more tokens come.
    pub fn finish(mut self) -> Vec<Part> {
        let rest = self.words.finish();
        let mut parts = self.text(rest);
        parts.extend(self.close(false));
        parts
    }

    fn text(&mut self, text: String) -> Vec<Part> {
        if text.is_empty() {
            return vec![];
        }
        match &mut self.state {
            State::Text => vec![Part::Text(text)],
            State::Channel(name) => {
                name.push_str(&text);
                let Some((_, rest)) = name.split_once('\n') else { return vec![] };
                let rest = rest.to_owned();
                self.state = State::Thought(String::new());
                self.text(rest)
            }
            State::Thought(held) => {
                let all = std::mem::take(held) + &text;
                let shown = all.strip_suffix('\n').unwrap_or(&all);
                *held = all[shown.len()..].to_owned();
                if shown.is_empty() { vec![] } else { vec![Part::Thought(shown.to_owned())] }
            }
            State::Call(words) => {
                if words.len() < MOST {
                    words.push(Word::Text(text));
                }
                vec![]
            }
        }
    }

    /// Leaves the present state; `whole`: a call has come to its end.
    fn close(&mut self, whole: bool) -> Option<Part> {
        match std::mem::replace(&mut self.state, State::Text) {
            State::Text | State::Channel(_) | State::Thought(_) => None,
            State::Call(words) => Some(match parse(&words).filter(|_| whole) {
                Some((name, arguments)) => Part::Call { name, arguments },
                None => Part::BrokenCall(spelt(&words)),
            }),
        }
    }
}

fn spelt(words: &[Word]) -> String {
    let spell = |w: &Word| match w {
        Word::Text(t) => t.clone(),
        Word::Quote => "<|\"|>".to_owned(),
    };
    words.iter().map(spell).collect()
}

/// One character of a call, or a quote.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Symbol {
    Char(char),
    Quote,
}

/// `call:NAME{key:value,...}`
fn parse(words: &[Word]) -> Option<(String, Map<String, Value>)> {
    let symbols: Vec<Symbol> = words
        .iter()
        .flat_map(|w| match w {
            Word::Text(t) => t.chars().map(Symbol::Char).collect(),
            Word::Quote => vec![Symbol::Quote],
        })
        .collect();
    let mut p = Parser { symbols: &symbols, depth: 0 };
    p.space();
    for c in "call:".chars() {
        p.expect(c)?;
    }
    let name = p.bare("{")?;
    p.expect('{')?;
    let arguments = p.fields()?;
    p.space();
    (p.symbols.is_empty() && !name.is_empty()).then_some((name, arguments))
}

struct Parser<'a> {
    symbols: &'a [Symbol],
    depth: usize,
}

impl Parser<'_> {
    fn space(&mut self) {
        while let [Symbol::Char(c), rest @ ..] = self.symbols {
            if !c.is_whitespace() {
                break;
            }
            self.symbols = rest;
        }
    }

    fn take(&mut self, c: char) -> bool {
        self.space();
        let found = self.symbols.first() == Some(&Symbol::Char(c));
        if found {
            self.symbols = &self.symbols[1..];
        }
        found
    }

    fn expect(&mut self, c: char) -> Option<()> {
        self.take(c).then_some(())
    }

    /// Characters up to one of `ends`, trimmed.
    fn bare(&mut self, ends: &str) -> Option<String> {
        let mut out = String::new();
        while let [Symbol::Char(c), rest @ ..] = self.symbols {
            if ends.contains(*c) {
                return Some(out.trim().to_owned());
            }
            out.push(*c);
            self.symbols = rest;
        }
        None
    }

    /// The rest of a quoted string.
    fn quoted(&mut self) -> Option<String> {
        let mut out = String::new();
        while let [s, rest @ ..] = self.symbols {
            self.symbols = rest;
            match s {
                Symbol::Quote => return Some(out),
                Symbol::Char(c) => out.push(*c),
            }
        }
        None
    }

    fn quote(&mut self) -> bool {
        self.space();
        let found = self.symbols.first() == Some(&Symbol::Quote);
        if found {
            self.symbols = &self.symbols[1..];
        }
        found
    }

    /// `key:value,...}`
    fn fields(&mut self) -> Option<Map<String, Value>> {
        let mut out = Map::new();
        if self.take('}') {
            return Some(out);
        }
        loop {
            let key = if self.quote() { self.quoted()? } else { self.bare(":")? };
            self.expect(':')?;
            out.insert(key, self.value()?);
            if self.take('}') {
                return Some(out);
            }
            self.expect(',')?;
        }
    }

    fn value(&mut self) -> Option<Value> {
        self.depth += 1;
        if self.depth > 64 {
            return None;
        }
        let value = if self.quote() {
            Value::String(self.quoted()?)
        } else if self.take('{') {
            Value::Object(self.fields()?)
        } else if self.take('[') {
            Value::Array(self.items()?)
        } else {
            match self.bare(",}]")?.as_str() {
                "null" => Value::Null,
                "true" => Value::Bool(true),
                "false" => Value::Bool(false),
                number => Value::Number(number.parse::<Number>().ok()?),
            }
        };
        self.depth -= 1;
        Some(value)
    }

    /// `value,...]`
    fn items(&mut self) -> Option<Vec<Value>> {
        let mut out = Vec::new();
        if self.take(']') {
            return Some(out);
        }
        loop {
            out.push(self.value()?);
            if self.take(']') {
                return Some(out);
            }
            self.expect(',')?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn words(text: &str) -> Vec<Word> {
        let mut out = Vec::new();
        for (i, part) in text.split('~').enumerate() {
            if i > 0 {
                out.push(Word::Quote);
            }
            if !part.is_empty() {
                out.push(Word::Text(part.to_owned()));
            }
        }
        out
    }

    #[test]
    fn calls_are_read() {
        let args = |text: &str| parse(&words(text)).map(|(n, a)| (n, Value::Object(a)));
        let ok = |text, name: &str, want: Value| assert_eq!(args(text), Some((name.into(), want)));
        ok("call:clock{}", "clock", json!({}));
        ok(
            "call:set_lamp{Colour:{b:0,g:0.5,r:1},level:null,on:true,room:~hall~,tags:[~a~,~b~]}",
            "set_lamp",
            json!({"Colour": {"b": 0, "g": 0.5, "r": 1}, "level": null, "on": true,
                "room": "hall", "tags": ["a", "b"]}),
        );
        ok("call:f{x: -1e3 , y:[] }", "f", json!({"x": -1e3, "y": []}));
        ok("call:f{~a b~:~},{:\"~}", "f", json!({"a b": "},{:\""}));
        for broken in [
            "",
            "call:f",
            "call:f{x}",
            "call:f{x:}",
            "call:f{x:~a}",
            "call:f{x:1}y",
            "call:{}",
            "call:f{x:yes}",
            "f{}",
        ] {
            assert_eq!(args(broken), None, "{broken}");
        }
        assert_eq!(args(&format!("call:f{{x:{}", "[".repeat(10_000))), None);
    }
}
