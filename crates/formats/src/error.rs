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
    /// An error about `field` of `file`. Control characters, which a file's own words may hold, are
    /// escaped: a message is one line and leaves the terminal alone.
    pub fn new(
        file: impl fmt::Display,
        field: impl fmt::Display,
        problem: impl fmt::Display,
    ) -> Self {
        Self { file: line(&file), field: line(&field), problem: line(&problem) }
    }
}

fn line(text: &dyn fmt::Display) -> String {
    let text = text.to_string();
    if !text.contains(char::is_control) {
        return text;
    }
    let escaped = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    text.chars().map(escaped).collect()
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
