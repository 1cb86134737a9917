//! The one error of this crate: which file, which field of it, what is wrong.

use std::fmt;

/// What is wrong with a file that came from outside.
///
/// Prints as `FILE: FIELD: PROBLEM`, one line, for a person to act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FormatError {
    /// The file (or a name such as "the prompt" for text that is in no file).
    pub file: String,
    /// The field, tensor, key or byte offset inside the file; empty for the file as a whole.
    pub field: String,
    /// What was found and what was expected.
    pub problem: String,
}

/// The result of reading anything in this crate.
pub type Result<T> = std::result::Result<T, FormatError>;

impl FormatError {
    /// An error about `field` of `file`. A file's own words may be long and may hold control
    /// characters: these are escaped and what is too long is cut, so that a message is one line, fits
    /// on a screen and leaves the terminal alone.
    pub fn new(
        file: impl fmt::Display,
        field: impl fmt::Display,
        problem: impl fmt::Display,
    ) -> Self {
        let problem = line(&problem, LONGEST_PROBLEM);
        // The file's name is the user's own: they need the whole of it.
        Self { file: line(&file, usize::MAX), field: line(&field, LONGEST_FIELD), problem }
    }
}

/// Characters of a field's name that a message shows.
const LONGEST_FIELD: usize = 200;
/// Characters of what is said about it.
const LONGEST_PROBLEM: usize = 600;

fn line(text: &dyn fmt::Display, most: usize) -> String {
    let text = text.to_string();
    if !text.contains(char::is_control) && text.len() <= most {
        return text;
    }
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    let mut out: String = text.chars().map(escaped).collect();
    if let Some((end, _)) = out.char_indices().nth(most) {
        out.truncate(end);
        out.push('…');
    }
    out
}

impl fmt::Display for FormatError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.file)?;
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.problem)
    }
}

impl std::error::Error for FormatError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_fits_on_a_screen_whatever_the_file_says() {
        // Found by fuzzing: a pre_tokenizer of 500 backslashes, shown as JSON.
        let e = FormatError::new("f", "\u{1b}".repeat(500), format!("{:?}", "\\".repeat(500)));
        assert!(e.to_string().chars().count() < 1000, "{e}");
        assert!(!e.to_string().contains(char::is_control));
        assert_eq!(FormatError::new("f", "a", "é".repeat(600)).problem, "é".repeat(600));
    }
}
