//! A model's turn as a person sees it: what it says on standard output, what it thinks on standard
//! error, dimmed.

use crate::show::{self, Style};
use lapidary_engine::Piece;
use std::io::{self, Write};

/// Shows pieces of a turn.
#[derive(Default)]
pub struct Screen {
    /// Whether the last piece shown was a thought.
    thinking: bool,
}

impl Screen {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thoughts_are_not_on_standard_output() {
        let (mut screen, mut out) = (Screen::default(), Vec::new());
        let thought = |t: &str| Piece::Thought(t.into());
        let text = |t: &str| Piece::Text(t.into());
        screen.show(&[thought("Well"), thought("."), text("Yes")], &mut out).unwrap();
        screen.show(&[text(", ")], &mut out).unwrap();
        assert_eq!(out, b"Yes, ");
    }
}
