//! Everything that Lapidary reads from or writes to a file: checkpoints (safetensors, GGUF), their
//! configuration, tokenizers and chat templates. Bytes and text; no arithmetic.
//!
//! Every byte here is untrusted: lengths are checked before they are used, and an error names the
//! file and the field.
#![deny(unsafe_code)]

mod error;

pub use error::{FormatError, Result};
