//! The strings that end an answer.

/// Looks for strings in a text that comes in pieces, and holds back what may be the beginning of
/// one. The result does not depend on how the text is cut into pieces.
#[derive(Debug, Clone, Default)]
pub struct StopStrings {
    strings: Vec<String>,
    held: String,
    found: Option<usize>,
}

impl StopStrings {
    /// Ends at the first of `strings` to be complete; empty ones are left out.
    pub fn new(strings: impl IntoIterator<Item = String>) -> Self {
        let strings = strings.into_iter().filter(|s| !s.is_empty()).collect();
        Self { strings, held: String::new(), found: None }
    }

    /// Takes the next piece, and gives the text that is certain to come before any of the strings.
    pub fn push(&mut self, piece: &str) -> String {
        if self.found.is_some() {
            return String::new();
        }
        if self.strings.is_empty() {
            return piece.to_owned();
        }
        self.held.push_str(piece);
        let ends = (self.strings.iter().enumerate())
            .filter_map(|(i, s)| self.held.find(s.as_str()).map(|at| (at + s.len(), at, i)));
        if let Some((_, at, index)) = ends.min() {
            self.found = Some(index);
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = (self.strings.iter()).map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Which of the strings ended the text.
    pub fn found(&self) -> Option<&str> {
        self.found.map(|i| self.strings[i].as_str())
    }

    /// What was held back, when no more text comes.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest beginning of `string`, not the whole, that `text` ends with.
fn overlap(text: &str, string: &str) -> usize {
    let starts = string.char_indices().map(|(i, _)| i).skip(1);
    starts.filter(|&len| text.ends_with(&string[..len])).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The text before the first stop string to be complete, by looking at every end in turn.
    fn oracle(text: &str, strings: &[String]) -> String {
        for end in text.char_indices().map(|(i, c)| i + c.len_utf8()) {
            let ending = strings.iter().filter(|s| !s.is_empty() && text[..end].ends_with(*s));
            if let Some(longest) = ending.map(String::len).max() {
                return text[..end - longest].to_owned();
            }
        }
        text.to_owned()
    }

    proptest! {
        #[test]
        fn pieces_do_not_matter(
            text in "[abé]{0,40}",
            strings in proptest::collection::vec("[abé]{0,5}", 0..4),
            cuts in proptest::collection::vec(1usize..6, 1..40),
        ) {
            let mut stops = StopStrings::new(strings.clone());
            let (mut out, mut rest) = (String::new(), text.chars());
            for cut in cuts.iter().cycle() {
                let piece: String = rest.by_ref().take(*cut).collect();
                if piece.is_empty() {
                    break;
                }
                out += &stops.push(&piece);
            }
            let found = stops.found().is_some();
            out += &stops.finish();
            prop_assert_eq!(&out, &oracle(&text, &strings));
            prop_assert_eq!(found, out.len() < text.len());
        }
    }
}
