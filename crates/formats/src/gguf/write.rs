//! Writing GGUF files, version 3.

use std::collections::HashSet;
use std::path::Path;

use super::metadata::{Array, Metadata, Value};
use super::{MAGIC, MAX_DIMS, alignment};
use crate::names::quote;
use crate::tensors::{Place, TensorSpec, TensorWriter};
use crate::{FormatError, Result};

/// The longest tensor name that is written, in bytes: ggml keeps 64 with the closing zero.
const MAX_WRITTEN_NAME: usize = 63;

/// Starts a file of these keys and tensors; the tensors' bytes follow through
/// [`TensorWriter::write`], and lie in the file in the order given here.
pub fn create(path: &Path, metadata: &Metadata, tensors: &[TensorSpec]) -> Result<TensorWriter> {
    let file = path.display().to_string();
    let alignment = alignment(metadata)?;
    let mut header = MAGIC.to_vec();
    header.extend(3u32.to_le_bytes());
    header.extend((tensors.len() as u64).to_le_bytes());
    header.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata.iter() {
        put_str(&mut header, key);
        header.extend(value.id().to_le_bytes());
        put_value(&mut header, value);
    }
    let mut places = Vec::with_capacity(tensors.len());
    let mut seen = HashSet::new();
    let mut at = 0u64;
    for tensor in tensors {
        let len = put_tensor(&mut header, &file, tensor, at)?;
        let wrong = |problem: &str| {
            FormatError::new(&file, format!("tensor {}", quote(&tensor.name)), problem)
        };
        if !seen.insert(&tensor.name) {
            return Err(wrong("is declared twice"));
        }
        places.push(Place { name: tensor.name.clone(), start: at, len });
        at = at
            .checked_add(len)
            .and_then(|end| end.checked_next_multiple_of(alignment))
            .ok_or_else(|| wrong("makes the file too large"))?;
    }
    header.resize(header.len().next_multiple_of(alignment as usize), 0);
    let data_start = header.len() as u64;
    for place in &mut places {
        place.start += data_start;
    }
    TensorWriter::create(path, &header, places, data_start + at)
}

/// Describes a tensor whose bytes start at `offset` of the data; gives how many they are.
fn put_tensor(out: &mut Vec<u8>, file: &str, tensor: &TensorSpec, offset: u64) -> Result<u64> {
    let wrong = |problem: String| {
        FormatError::new(file, format!("tensor {}", quote(&tensor.name)), problem)
    };
    if tensor.name.is_empty() || tensor.name.len() > MAX_WRITTEN_NAME {
        let problem = format!("a name in a GGUF file has 1 to {MAX_WRITTEN_NAME} bytes");
        return Err(wrong(problem));
    }
    if tensor.shape.len() > MAX_DIMS {
        return Err(wrong(format!(
            "has {} dimensions, not at most {MAX_DIMS}",
            tensor.shape.len()
        )));
    }
    let dtype = tensor.dtype;
    let id = dtype.ggml_id().ok_or_else(|| wrong(format!("{dtype} has no place in GGUF")))?;
    let len = tensor.bytes(file)? as u64;
    put_str(out, &tensor.name);
    out.extend((tensor.shape.len() as u32).to_le_bytes());
    for dim in tensor.shape.iter().rev() {
        out.extend((*dim as u64).to_le_bytes());
    }
    out.extend(id.to_le_bytes());
    out.extend(offset.to_le_bytes());
    Ok(len)
}

fn put_str(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put_value(out: &mut Vec<u8>, value: &Value) {
    match value {
        Value::U8(n) => out.extend(n.to_le_bytes()),
        Value::I8(n) => out.extend(n.to_le_bytes()),
        Value::U16(n) => out.extend(n.to_le_bytes()),
        Value::I16(n) => out.extend(n.to_le_bytes()),
        Value::U32(n) => out.extend(n.to_le_bytes()),
        Value::I32(n) => out.extend(n.to_le_bytes()),
        Value::F32(x) => out.extend(x.to_le_bytes()),
        Value::Bool(b) => out.push((*b).into()),
        Value::Str(s) => put_str(out, s),
        Value::Array(a) => put_array(out, a),
        Value::U64(n) => out.extend(n.to_le_bytes()),
        Value::I64(n) => out.extend(n.to_le_bytes()),
        Value::F64(x) => out.extend(x.to_le_bytes()),
    }
}

/// Recursion is bounded: [`Metadata::insert`] refuses deep nesting.
fn put_array(out: &mut Vec<u8>, array: &Array) {
    out.extend(array.id().to_le_bytes());
    out.extend((array.len() as u64).to_le_bytes());
    match array {
        Array::U8(v) => out.extend(v),
        Array::I8(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
        Array::U16(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
        Array::I16(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
        Array::U32(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
        Array::I32(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
        Array::F32(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
        Array::Bool(v) => out.extend(v.iter().map(|b| u8::from(*b))),
        Array::Str(v) => v.iter().for_each(|s| put_str(out, s)),
        Array::Array(v) => v.iter().for_each(|a| put_array(out, a)),
        Array::U64(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
        Array::I64(v) => out.extend(v.iter().flat_map(|n| n.to_le_bytes())),
        Array::F64(v) => out.extend(v.iter().flat_map(|x| x.to_le_bytes())),
    }
}
