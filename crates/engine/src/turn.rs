//! A model's turn as its tokens come: what it says, up to the first stop string, and what it thinks.

use crate::stop::StopStrings;
use lapidary_formats::chat::{Part, TurnParser};
use lapidary_formats::tokenizer::{Detokenizer, Tokenizer};

/// A turn under way. Control tokens show nothing.
pub struct Turn<'a> {
    words: Option<Words<'a>>,
    /// They end what is said, not what is thought.
    strings: StopStrings,
    text: String,
    thought: String,
}

/// How tokens are read.
enum Words<'a> {
    /// With the markers of a chat.
    Parsed(Box<TurnParser<'a>>),
    /// As text alone.
    Plain(Detokenizer<'a>),
}

/// The next piece of a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// Of what the model says.
    Text(String),
    /// Of what it thinks.
    Thought(String),
}

impl<'a> Turn<'a> {
    /// The beginning of a turn in a chat.
    pub fn new(tokenizer: &'a Tokenizer, strings: StopStrings) -> Self {
        Self::of(Words::Parsed(Box::new(TurnParser::new(tokenizer, false))), strings)
    }

    /// The beginning of what follows a plain text: nobody thinks there.
    pub fn plain(tokenizer: &'a Tokenizer, strings: StopStrings) -> Self {
        Self::of(Words::Plain(Detokenizer::new(tokenizer, true)), strings)
    }

    fn of(words: Words<'a>, strings: StopStrings) -> Self {
        Self { words: Some(words), strings, text: String::new(), thought: String::new() }
    }

    /// What is certain after token `id`; perhaps nothing yet. No piece is empty.
    pub fn push(&mut self, id: u32) -> Vec<Piece> {
        let parts = match &mut self.words {
            Some(Words::Parsed(parser)) => parser.push(id),
            Some(Words::Plain(words)) => vec![Part::Text(words.push(id))],
            None => vec![],
        };
        self.take(parts)
    }

    /// What is left when no more tokens come.
    pub fn finish(&mut self) -> Vec<Piece> {
        let parts = match self.words.take() {
            Some(Words::Parsed(parser)) => parser.finish(),
            Some(Words::Plain(mut words)) => vec![Part::Text(words.finish())],
            None => vec![],
        };
        let mut pieces = self.take(parts);
        let held = self.strings.finish();
        if !held.is_empty() {
            self.text.push_str(&held);
            pieces.push(Piece::Text(held));
        }
        pieces
    }

    /// Whether a thought is open: between its first marker and its last.
    pub fn thinking(&self) -> bool {
        matches!(&self.words, Some(Words::Parsed(parser)) if parser.thinking())
    }

    /// The stop string that ended it.
    pub fn stopped_by(&self) -> Option<&str> {
        self.strings.found()
    }

    /// All that was said so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// All that was thought so far.
    pub fn thought(&self) -> &str {
        &self.thought
    }

    fn take(&mut self, parts: Vec<Part>) -> Vec<Piece> {
        let mut pieces = Vec::new();
        for part in parts {
            match part {
                Part::Thought(thought) => {
                    self.thought.push_str(&thought);
                    pieces.push(Piece::Thought(thought));
                }
                other => {
                    let said = self.strings.push(&spelt(other));
                    if !said.is_empty() {
                        self.text.push_str(&said);
                        pieces.push(Piece::Text(said));
                    }
                }
            }
        }
        pieces
    }
}

/// What is said; calls of tools, which nobody has offered, as they were written.
fn spelt(part: Part) -> String {
    match part {
        Part::Thought(text) | Part::Text(text) | Part::BrokenCall(text) => text,
        Part::Call { name, arguments } => {
            format!("call:{name}{}", serde_json::Value::Object(arguments))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_formats::tokenizer::Encode;
    use std::path::Path;

    #[test]
    fn what_is_thought_stays_apart() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
        let found = [root.join("shared"), root.join("../shared")];
        let Some(shared) = found.into_iter().find(|p| p.is_dir()) else {
            eprintln!("skipped: ../shared is not there");
            return;
        };
        let tokenizer = Tokenizer::from_dir(&shared.join("fixtures/tokenizers/gemma4")).unwrap();
        let options = Encode { add_special: false, parse_special: true };
        let written = "<|channel>thought\nWell: stop.\n<channel|>Yes, stop. No.";
        let strings = StopStrings::new(["stop".to_owned()]);
        let (mut turn, mut open, mut pieces) = (Turn::new(&tokenizer, strings), 0, Vec::new());
        for id in tokenizer.encode(written, options) {
            pieces.extend(turn.push(id));
            open += usize::from(turn.thinking());
            if turn.stopped_by().is_some() {
                break;
            }
        }
        pieces.extend(turn.finish());
        assert_eq!((turn.thought(), turn.text()), ("Well: stop.", "Yes, "));
        assert_eq!(turn.stopped_by(), Some("stop"));
        assert!(open > 3 && !turn.thinking());
        let kind = |p: &Piece| matches!(p, Piece::Thought(_));
        assert!(pieces.is_sorted_by_key(|p| !kind(p)) && kind(&pieces[0]), "{pieces:?}");
        // As plain text, the markers are control tokens, which show nothing.
        let mut plain = Turn::plain(&tokenizer, StopStrings::new([]));
        tokenizer.encode(written, options).into_iter().for_each(|id| drop(plain.push(id)));
        plain.finish();
        assert_eq!(plain.text(), "thought\nWell: stop.\nYes, stop. No.");
    }
}
