//! GGUF files, versions 2 and 3, whole or split into parts.
//!
//! Layout (little-endian): magic `GGUF`, u32 version, u64 tensor count, u64 key count, the keys with
//! their values, the tensors' descriptions, padding to `general.alignment`, the tensors' bytes.

mod metadata;
mod read;
mod split;
mod write;

pub use metadata::{Array, Metadata, Value};
pub use read::{Gguf, read};
pub(crate) use split::PartNames;
pub use split::open;
pub use write::create;

/// What every file starts with.
const MAGIC: &[u8; 4] = b"GGUF";

/// The alignment of tensors where `general.alignment` does not say.
const DEFAULT_ALIGNMENT: u64 = 32;

/// The largest alignment that is accepted; files use 32.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// The longest key or tensor name that is read, in bytes: the specification's bound for keys.
const MAX_NAME: usize = 65535;

/// How deep arrays of arrays may be nested; published files nest none.
const MAX_DEPTH: usize = 8;

/// ggml's bound on dimensions.
const MAX_DIMS: usize = 4;

const ALIGNMENT_KEY: &str = "general.alignment";

/// The alignment that the metadata asks for.
fn alignment(metadata: &Metadata) -> crate::Result<u64> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else { return Ok(DEFAULT_ALIGNMENT) };
    match value {
        Value::U32(n) if n.is_power_of_two() && u64::from(*n) <= MAX_ALIGNMENT => Ok((*n).into()),
        other => Err(metadata.wrong(
            ALIGNMENT_KEY,
            format!("expected a u32 power of two of at most {MAX_ALIGNMENT}, found {other}"),
        )),
    }
}
