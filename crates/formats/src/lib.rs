//! Everything that Lapidary reads from or writes to a file: checkpoints (safetensors, GGUF), their
//! configuration, tokenizers and chat templates. Bytes and text; no arithmetic.
//!
//! Every byte here is untrusted: lengths are checked before they are used, and an error names the
//! file and the field.
#![deny(unsafe_code)]

pub mod atomic;
pub mod chat;
mod checkpoint;
mod dtype;
mod error;
pub mod gguf;
mod image;
pub mod json;
mod mapped;
mod names;
pub mod safetensors;
#[cfg(test)]
mod scratch;
mod tensors;
pub mod tokenizer;

pub use crate::image::{MOST_IMAGE_BYTES, Rgb};
pub use checkpoint::{Checkpoint, Source, is_projector};
pub use dtype::{DType, ggml_type_name};
pub use error::{FormatError, Result};
pub use json::Config;
pub use mapped::{Bytes, Mapped};
pub use tensors::{TensorSpec, TensorView, TensorWriter};
