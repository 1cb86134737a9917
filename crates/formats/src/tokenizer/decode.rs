//! Token ids to text, a token at a time, never splitting a character.

use super::{Kind, MARKERS, Scheme, Tokenizer, bytelevel};

/// How byte tokens that are no UTF-8 come out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bytes {
    /// A run that is not UTF-8 as a whole gives a replacement character for each of its bytes
    /// (the `ByteFallback` decoder of Hugging Face).
    InRuns,
    /// Each byte that fits nowhere gives one (SentencePiece).
    Singly,
}

/// Turns tokens into text as they come: the pieces of text, put together, are what
/// [`Tokenizer::decode`] gives for all tokens.
pub struct Detokenizer<'a> {
    tokenizer: &'a Tokenizer,
    skip_special: bool,
    /// Bytes that are not yet a character, or not yet known to be UTF-8.
    pending: Vec<u8>,
    /// Whether the space that encoding put before the text is still to come.
    at_start: bool,
}

impl<'a> Detokenizer<'a> {
    /// For a text from its beginning. With `skip_special`, control tokens give nothing.
    pub fn new(tokenizer: &'a Tokenizer, skip_special: bool) -> Self {
        let at_start = matches!(tokenizer.scheme, Scheme::Spaces { prefix: true, .. });
        Self { tokenizer, skip_special, pending: Vec::new(), at_start }
    }

    /// Text that is certain after token `id`; perhaps none yet.
    pub fn push(&mut self, id: u32) -> String {
        let mut out = String::new();
        self.push_to(id, &mut out);
        out
    }

    /// What is left when no more tokens come.
    pub fn finish(&mut self) -> String {
        let mut out = String::new();
        self.flush(&mut out);
        out
    }

    pub(crate) fn push_to(&mut self, id: u32, out: &mut String) {
        let Some(piece) = self.tokenizer.pieces.get(id as usize) else { return };
        let control = matches!(piece.kind, Kind::Control | Kind::Unknown);
        match &self.tokenizer.scheme {
            Scheme::Spaces { bytes, .. } => {
                // SentencePiece shows no control pieces; turn markers are user-defined to it.
                let silent = *bytes == Bytes::Singly
                    && piece.kind == Kind::Control
                    && !MARKERS.contains(&&*piece.text);
                if silent || control && self.skip_special {
                    return;
                }
                if let Kind::Byte(b) = piece.kind {
                    self.pending.push(b);
                    if *bytes == Bytes::Singly {
                        self.drain(false, out);
                    }
                    return;
                }
                self.flush(out);
                if *bytes == Bytes::Singly && piece.kind == Kind::Unknown {
                    // What SentencePiece shows for the unknown.
                    return self.emit(" ⁇ ", out);
                }
                let text = piece.text.replace('▁', " ");
                self.emit(&text, out);
            }
            Scheme::ByteLevel { .. } => {
                if control && self.skip_special {
                    return;
                }
                match piece.kind {
                    Kind::Normal | Kind::Unused | Kind::Byte(_) => {
                        self.pending.extend(bytelevel::to_bytes(&piece.text));
                    }
                    _ => self.pending.extend(piece.text.as_bytes()),
                }
                self.drain(false, out);
            }
        }
    }

    /// Appends text, less the space that encoding put before it.
    fn emit(&mut self, text: &str, out: &mut String) {
        if text.is_empty() {
            return;
        }
        let text = if self.at_start { text.strip_prefix(' ').unwrap_or(text) } else { text };
        self.at_start = false;
        out.push_str(text);
    }

    /// The end of a run of bytes.
    fn flush(&mut self, out: &mut String) {
        if self.pending.is_empty() {
            return;
        }
        match &self.tokenizer.scheme {
            Scheme::Spaces { bytes: Bytes::InRuns, .. } => {
                let run = std::mem::take(&mut self.pending);
                match std::str::from_utf8(&run) {
                    Ok(text) => self.emit(text, out),
                    Err(_) => self.emit(&"\u{fffd}".repeat(run.len()), out),
                }
            }
            _ => self.drain(true, out),
        }
    }

    /// Takes whole characters from the front; what fits nowhere gives a replacement character.
    fn drain(&mut self, end: bool, out: &mut String) {
        let singly = matches!(self.tokenizer.scheme, Scheme::Spaces { .. });
        loop {
            let (good, bad) = match std::str::from_utf8(&self.pending) {
                Ok(text) => (text.len(), None),
                // No length: the last character may still be completed.
                Err(e) => (e.valid_up_to(), Some(e.error_len())),
            };
            let text = String::from_utf8_lossy(&self.pending[..good]).into_owned();
            self.emit(&text, out);
            self.pending.drain(..good);
            let broken = match bad {
                None => return,
                Some(None) if !end => return,
                Some(None) => self.pending.len(),
                Some(Some(len)) => len,
            };
            // SentencePiece counts bytes; Python and Rust count broken sequences.
            let marks = if singly { broken } else { 1 };
            self.emit(&"\u{fffd}".repeat(marks), out);
            self.pending.drain(..broken);
        }
    }
}
