//! A model's turn as its tokens come: what it says on standard output, what it thinks on standard
//! error, dimmed.

use crate::show::{self, Style};
use lapidary_engine::StopStrings;
use lapidary_formats::chat::{Part, TurnParser};
use lapidary_formats::tokenizer::Tokenizer;
use std::io::{self, Write};

/// A turn under way.
pub struct Turn<'a> {
    parser: Option<TurnParser<'a>>,
    /// They end what is said, not what is thought.
    strings: StopStrings,
    text: String,
    thought: String,
    /// Whether the last piece shown was a thought.
    thinking: bool,
}

/// The next piece of a turn.
pub enum Piece {
    /// Of what the model says.
    Text(String),
    /// Of what it thinks.
    Thought(String),
}

impl<'a> Turn<'a> {
    /// The beginning of a turn.
    pub fn new(tokenizer: &'a Tokenizer, strings: StopStrings) -> Self {
        Self {
            parser: Some(TurnParser::new(tokenizer, false)),
            strings,
            text: String::new(),
            thought: String::new(),
            thinking: false,
        }
    }

    /// What is certain after token `id`; perhaps nothing yet.
    pub fn push(&mut self, id: u32) -> Vec<Piece> {
        let parts = self.parser.as_mut().map(|p| p.push(id)).unwrap_or_default();
        self.take(parts)
    }

    /// What is left when no more tokens come.
    pub fn finish(&mut self) -> Vec<Piece> {
        let parts = self.parser.take().map(TurnParser::finish).unwrap_or_default();
        let mut pieces = self.take(parts);
        let held = self.strings.finish();
        self.text.push_str(&held);
        pieces.push(Piece::Text(held));
        pieces
    }

    /// Whether a stop string has come.
    pub fn stopped(&self) -> bool {
        self.strings.found().is_some()
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
        let piece = |part| match part {
            Part::Thought(thought) => {
                self.thought.push_str(&thought);
                Piece::Thought(thought)
            }
            other => {
                let said = self.strings.push(&spelt(other));
                self.text.push_str(&said);
                Piece::Text(said)
            }
        };
        parts.into_iter().map(piece).collect()
    }

    /// Shows pieces to a person.
    ///
    /// # Errors
    /// If `out` is closed.
    pub fn show(&mut self, pieces: &[Piece], out: &mut impl Write) -> io::Result<()> {
        let mut aside = io::stderr();
        for piece in pieces {
            // What can't be shown beside the answer does not end it.
            match piece {
                Piece::Thought(thought) => {
                    let _ = write!(aside, "{}", show::style(thought, Style::Dim));
                    self.thinking = true;
                }
                Piece::Text(text) if text.is_empty() => {}
                Piece::Text(text) => {
                    if std::mem::take(&mut self.thinking) {
                        let _ = writeln!(aside);
                    }
                    out.write_all(text.as_bytes())?;
                }
            }
        }
        out.flush()
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
        let mut turn = Turn::new(&tokenizer, strings);
        let (mut out, mut pieces) = (Vec::new(), Vec::new());
        for id in tokenizer.encode(written, options) {
            pieces.extend(turn.push(id));
            if turn.stopped() {
                break;
            }
        }
        pieces.extend(turn.finish());
        turn.show(&pieces, &mut out).unwrap();
        assert_eq!((turn.thought(), turn.text()), ("Well: stop.", "Yes, "));
        assert_eq!(out, b"Yes, ");
    }
}
