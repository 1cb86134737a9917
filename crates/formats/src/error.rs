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
    /// An error about `field` of `file`.
    pub fn new(
        file: impl fmt::Display,
        field: impl fmt::Display,
        problem: impl fmt::Display,
    ) -> Self {
        Self { file: file.to_string(), field: field.to_string(), problem: problem.to_string() }
    }
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
