//! GPT-2's way with bytes and words (<https://github.com/openai/gpt-2>, `src/encoder.py`).

use unicode_properties::{GeneralCategoryGroup, UnicodeGeneralCategory};

/// The printable character that stands for a byte: itself where it is one, else from 256 on.
pub(crate) fn to_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|b| !printable(*b)).count() as u32;
    char::from_u32(256 + before).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The byte that a character stands for.
pub(crate) fn to_byte(c: char) -> Option<u8> {
    (0..=255).find(|b| to_char(*b) == c)
}

/// The bytes of a piece; characters that stand for none are taken as they are.
pub(crate) fn to_bytes(piece: &str) -> Vec<u8> {
    let mut out = Vec::with_capacity(piece.len());
    for c in piece.chars() {
        // The common case without a search.
        match c {
            'Ġ' => out.push(b' '),
            '!'..='~' => out.push(c as u8),
            _ => match to_byte(c) {
                Some(b) => out.push(b),
                None => out.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
            },
        }
    }
    out
}

#[derive(PartialEq, Eq, Clone, Copy)]
enum Class {
    Letter,
    Number,
    Space,
    Other,
}

fn class(c: char) -> Class {
    if c.is_ascii_alphabetic() {
        return Class::Letter;
    }
    if c.is_whitespace() {
        return Class::Space;
    }
    match c.general_category_group() {
        GeneralCategoryGroup::Letter => Class::Letter,
        GeneralCategoryGroup::Number => Class::Number,
        _ => Class::Other,
    }
}

/// Splits `text` into words, by GPT-2's pattern and, before it, at each digit if asked for. The
/// pattern: contractions, an optional space and a run of letters, of numbers, or of other things,
/// and white space, whose last space goes to the word behind it.
pub(crate) fn split(text: &str, words: bool, digits: bool, mut word: impl FnMut(&str)) {
    if !digits {
        return split_words(text, &mut word);
    }
    let mut start = 0;
    for (at, c) in text.char_indices() {
        if class(c) == Class::Number {
            let part = [&text[start..at], &text[at..at + c.len_utf8()]];
            for p in part.into_iter().filter(|p| !p.is_empty()) {
                if words { split_words(p, &mut word) } else { word(p) }
            }
            start = at + c.len_utf8();
        }
    }
    if start < text.len() {
        if words { split_words(&text[start..], &mut word) } else { word(&text[start..]) }
    }
}

fn split_words(text: &str, word: &mut impl FnMut(&str)) {
    let mut rest = text;
    while !rest.is_empty() {
        let len = first_word(rest);
        word(&rest[..len]);
        rest = &rest[len..];
    }
}

/// Bytes of the first word of `text`, which is not empty.
fn first_word(text: &str) -> usize {
    for tail in ["'s", "'t", "'re", "'ve", "'m", "'ll", "'d"] {
        if text.starts_with(tail) {
            return tail.len();
        }
    }
    let lead = usize::from(text.starts_with(' '));
    if let Some(kind) = text[lead..].chars().next().map(class).filter(|k| *k != Class::Space) {
        let run = text[lead..].find(|c| class(c) != kind);
        return run.map_or(text.len(), |end| lead + end);
    }
    let Some(end) = text.find(|c| class(c) != Class::Space) else { return text.len() };
    // The last of several goes with the word behind.
    let last = text[..end].chars().next_back().map_or(0, char::len_utf8);
    if end > last { end - last } else { end }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_256_characters() {
        let all: std::collections::HashSet<char> = (0..=255).map(to_char).collect();
        assert_eq!(all.len(), 256);
        assert_eq!(to_char(b' '), 'Ġ');
        assert!((0..=255).all(|b| to_byte(to_char(b)) == Some(b)));
    }

    #[test]
    fn words_are_those_of_the_pattern() {
        let words = |text: &str| {
            let mut out = Vec::new();
            split(text, true, false, |w| out.push(w.to_owned()));
            out
        };
        assert_eq!(
            words("I'm 42,  ok?\n\n x"),
            ["I", "'m", " 42", ",", " ", " ok", "?", "\n\n", " x"]
        );
        assert_eq!(words("a\nb  "), ["a", "\n", "b", "  "]);
        assert_eq!(words("été²½ Ⅷ"), ["été", "²½", " Ⅷ"]);
    }
}
