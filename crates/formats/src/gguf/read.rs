//! Reading one GGUF file from its bytes.

use std::collections::HashSet;
use std::sync::Arc;

use super::metadata::{Array, Metadata, Value};
use super::{MAGIC, MAX_DEPTH, MAX_DIMS, MAX_NAME, alignment};
use crate::dtype::ggml_type_name;
use crate::mapped::Bytes;
use crate::names::quote;
use crate::tensors::{Ranges, TensorView};
use crate::{DType, FormatError, Result};

/// More keys than this are not a model's (published files have less than 100).
const MAX_KEYS: u64 = 1 << 16;
/// More tensors than this are not a model's (the largest have some 10 000).
const MAX_TENSORS: u64 = 1 << 20;

/// What a GGUF file, or all parts of a split one, holds.
#[derive(Debug)]
pub struct Gguf {
    /// 2 or 3.
    pub version: u32,
    /// The keys; of a split file, those of its first part.
    pub metadata: Metadata,
    /// The tensors in file order.
    pub tensors: Vec<TensorView>,
    /// The file or files, in order.
    pub files: Vec<Arc<str>>,
    /// Bytes of all files together.
    pub file_bytes: u64,
}

/// Checks bytes as one GGUF file; `file` is its name in errors. The parts of a split file are not
/// looked for: see [`super::open`].
pub fn read(file: Arc<str>, bytes: Bytes) -> Result<Gguf> {
    let mut cursor = Cursor { file: &file, bytes: &bytes, at: 0, field: "header".into() };
    let version = read_version(&mut cursor)?;
    let tensor_count = cursor.count("tensor count", 24, MAX_TENSORS)?;
    let key_count = cursor.count("key count", 13, MAX_KEYS)?;
    let mut metadata = Metadata::new(file.clone());
    for i in 0..key_count {
        cursor.field = format!("key {i} of {key_count}");
        let key = cursor.name("key")?;
        cursor.field = format!("key {}", quote(&key));
        let id = cursor.u32("value type")?;
        metadata.insert(&key, cursor.value(id)?)?;
    }
    let alignment = alignment(&metadata)?;
    let mut infos = Vec::new();
    let mut seen = HashSet::new();
    for i in 0..tensor_count {
        cursor.field = format!("tensor {i} of {tensor_count}");
        let info = cursor.tensor_info(alignment)?;
        if !seen.insert(info.name.clone()) {
            return Err(cursor.wrong("stands twice in the file"));
        }
        infos.push(info);
    }
    let data_start = (cursor.at as u64).next_multiple_of(alignment);
    let tensors = place(&file, &bytes, data_start, infos)?;
    let file_bytes = bytes.len() as u64;
    Ok(Gguf { version, metadata, tensors, files: vec![file], file_bytes })
}

/// Checks the magic and the version.
fn read_version(cursor: &mut Cursor<'_>) -> Result<u32> {
    cursor.field = "magic".into();
    let magic = cursor.take(4, "it")?;
    if [b"lmgg", b"fmgg", b"tjgg"].iter().any(|old| magic == *old) {
        let problem = "is that of a GGML file from before GGUF; convert it to GGUF";
        return Err(cursor.wrong(problem));
    }
    if magic != MAGIC {
        return Err(
            cursor.wrong(format!("expected GGUF, found {}: not a GGUF file", escape(magic)))
        );
    }
    cursor.field = "version".into();
    match cursor.u32("it")? {
        version @ (2 | 3) => {
            cursor.field = "header".into();
            Ok(version)
        }
        1 => Err(cursor.wrong("is 1, which had shorter counts; convert the model again (v3)")),
        // A number's bytes turned round: a small version of a big-endian file.
        big if big & 0xffff == 0 && big != 0 => {
            Err(cursor.wrong("is big-endian; only little-endian files can be read"))
        }
        other => Err(cursor.wrong(format!("is {other}; versions 2 and 3 can be read"))),
    }
}

fn escape(bytes: &[u8]) -> String {
    format!("\"{}\"", bytes.escape_ascii())
}

/// A tensor's description, checked on its own. `offset` and `size` are in bytes of the data.
struct TensorInfo {
    name: Arc<str>,
    dtype: DType,
    shape: Vec<usize>,
    offset: u64,
    size: u64,
}

/// Checks that the tensors lie inside the file and apart, and gives them their bytes.
fn place(
    file: &Arc<str>,
    bytes: &Bytes,
    data_start: u64,
    mut infos: Vec<TensorInfo>,
) -> Result<Vec<TensorView>> {
    infos.sort_by_key(|info| info.offset);
    let mut tensors = Vec::with_capacity(infos.len());
    for info in &infos {
        let end = data_start.checked_add(info.offset).and_then(|at| at.checked_add(info.size));
        let range = end
            .and_then(|end| usize::try_from(end).ok())
            .and_then(|end| bytes.slice(end - info.size as usize..end));
        let Some(part) = range else {
            let problem = format!(
                "its {} bytes at offset {} of the data (which starts at {data_start}) go beyond the \
                 file's {}; it is cut or damaged",
                info.size,
                info.offset,
                bytes.len()
            );
            return Err(FormatError::new(file, format!("tensor {}", quote(&info.name)), problem));
        };
        tensors.push(TensorView {
            name: info.name.clone(),
            dtype: info.dtype,
            shape: info.shape.clone(),
            bytes: part,
            file: file.clone(),
        });
    }
    let ranges = infos.iter().map(|i| (i.offset, i.offset + i.size, &*i.name)).collect();
    Ranges::new(file, ranges)?;
    Ok(tensors)
}

/// A place in the bytes, and what is being read there.
struct Cursor<'a> {
    file: &'a Arc<str>,
    bytes: &'a [u8],
    at: usize,
    field: String,
}

impl<'a> Cursor<'a> {
    fn wrong(&self, problem: impl std::fmt::Display) -> FormatError {
        FormatError::new(self.file, &self.field, problem)
    }

    fn left(&self) -> usize {
        self.bytes.len() - self.at
    }

    fn take(&mut self, len: usize, part: &str) -> Result<&'a [u8]> {
        let Some(taken) = self.at.checked_add(len).and_then(|end| self.bytes.get(self.at..end))
        else {
            let (at, end) = (self.at, self.bytes.len());
            let problem =
                format!("{part} needs {len} bytes at byte {at}, but the file ends at {end}");
            return Err(self.wrong(problem));
        };
        self.at += len;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, part: &str) -> Result<[u8; N]> {
        let mut out = [0; N];
        out.copy_from_slice(self.take(N, part)?);
        Ok(out)
    }

    fn u32(&mut self, part: &str) -> Result<u32> {
        self.array(part).map(u32::from_le_bytes)
    }

    fn u64(&mut self, part: &str) -> Result<u64> {
        self.array(part).map(u64::from_le_bytes)
    }

    /// A count of things that take at least `least` bytes each, and of which there are at most
    /// `most`: whatever is allocated for them is bounded by the file.
    fn count(&mut self, part: &str, least: usize, most: u64) -> Result<usize> {
        let count = self.u64(part)?;
        let fitting = (self.left() / least) as u64;
        if count > fitting || count > most {
            let most = most.min(fitting);
            let problem =
                format!("{part} is {count}, but at most {most} can follow; it is cut or damaged");
            return Err(self.wrong(problem));
        }
        // Not above `fitting`, which was a usize.
        Ok(count as usize)
    }

    fn string(&mut self, part: &str) -> Result<String> {
        let len = self.count(part, 1, u64::MAX)?;
        let at = self.at;
        let bytes = self.take(len, part)?;
        let text = std::str::from_utf8(bytes);
        text.map(str::to_owned)
            .map_err(|_| self.wrong(format!("{part} at byte {at} is not valid UTF-8")))
    }

    fn name(&mut self, part: &str) -> Result<String> {
        let name = self.string(&format!("{part} name length"))?;
        if name.is_empty() || name.len() > MAX_NAME {
            let len = name.len();
            return Err(self.wrong(format!("{part} name has {len} bytes, not 1 to {MAX_NAME}")));
        }
        Ok(name)
    }

    fn bool(&self, byte: u8) -> Result<bool> {
        match byte {
            0 | 1 => Ok(byte == 1),
            other => Err(self.wrong(format!("expected a bool of 0 or 1, found {other}"))),
        }
    }

    fn value(&mut self, id: u32) -> Result<Value> {
        Ok(match id {
            0 => Value::U8(u8::from_le_bytes(self.array("u8")?)),
            1 => Value::I8(i8::from_le_bytes(self.array("i8")?)),
            2 => Value::U16(u16::from_le_bytes(self.array("u16")?)),
            3 => Value::I16(i16::from_le_bytes(self.array("i16")?)),
            4 => Value::U32(self.u32("u32")?),
            5 => Value::I32(i32::from_le_bytes(self.array("i32")?)),
            6 => Value::F32(f32::from_le_bytes(self.array("f32")?)),
            7 => {
                let [byte] = self.array("bool")?;
                Value::Bool(self.bool(byte)?)
            }
            8 => Value::Str(self.string("string length")?),
            9 => Value::Array(self.array_value(1)?),
            10 => Value::U64(self.u64("u64")?),
            11 => Value::I64(i64::from_le_bytes(self.array("i64")?)),
            12 => Value::F64(f64::from_le_bytes(self.array("f64")?)),
            other => return Err(self.unknown_type("value type", other)),
        })
    }

    fn unknown_type(&self, part: &str, id: u32) -> FormatError {
        self.wrong(format!("{part} is {id}, which does not exist (0 to 12 do)"))
    }

    /// An array, nested `depth` deep, itself included.
    fn array_value(&mut self, depth: usize) -> Result<Array> {
        if depth > MAX_DEPTH {
            return Err(self.wrong(format!("arrays are nested deeper than {MAX_DEPTH}")));
        }
        let id = self.u32("element type")?;
        Ok(match id {
            0 => Array::U8(self.numbers(u8::from_le_bytes)?),
            1 => Array::I8(self.numbers(i8::from_le_bytes)?),
            2 => Array::U16(self.numbers(u16::from_le_bytes)?),
            3 => Array::I16(self.numbers(i16::from_le_bytes)?),
            4 => Array::U32(self.numbers(u32::from_le_bytes)?),
            5 => Array::I32(self.numbers(i32::from_le_bytes)?),
            6 => Array::F32(self.numbers(f32::from_le_bytes)?),
            7 => {
                let bytes = self.numbers(u8::from_le_bytes)?;
                Array::Bool(bytes.into_iter().map(|b| self.bool(b)).collect::<Result<_>>()?)
            }
            8 => {
                let count = self.count("array length", 8, u64::MAX)?;
                let strings = (0..count).map(|_| self.string("string length"));
                Array::Str(strings.collect::<Result<_>>()?)
            }
            9 => {
                let count = self.count("array length", 12, u64::MAX)?;
                let arrays = (0..count).map(|_| self.array_value(depth + 1));
                Array::Array(arrays.collect::<Result<_>>()?)
            }
            10 => Array::U64(self.numbers(u64::from_le_bytes)?),
            11 => Array::I64(self.numbers(i64::from_le_bytes)?),
            12 => Array::F64(self.numbers(f64::from_le_bytes)?),
            other => return Err(self.unknown_type("element type", other)),
        })
    }

    /// The count and the elements of an array of `N`-byte numbers.
    fn numbers<T, const N: usize>(&mut self, convert: fn([u8; N]) -> T) -> Result<Vec<T>> {
        let count = self.count("array length", N, u64::MAX)?;
        // `count` elements fit the file, so the product cannot overflow.
        let bytes = self.take(count * N, "array")?;
        Ok(bytes.as_chunks::<N>().0.iter().map(|chunk| convert(*chunk)).collect())
    }

    fn tensor_info(&mut self, alignment: u64) -> Result<TensorInfo> {
        let name = self.name("tensor")?;
        self.field = format!("tensor {}", quote(&name));
        let dims = self.u32("dimension count")? as usize;
        if dims > MAX_DIMS {
            return Err(self.wrong(format!("has {dims} dimensions; at most {MAX_DIMS} can be")));
        }
        let mut shape = Vec::with_capacity(dims);
        for _ in 0..dims {
            let dim = self.u64("dimension")?;
            let dim = usize::try_from(dim)
                .map_err(|_| self.wrong(format!("dimension {dim} is too large")))?;
            shape.push(dim);
        }
        // The file has the contiguous dimension first.
        shape.reverse();
        let id = self.u32("type")?;
        let dtype = DType::from_ggml_id(id).ok_or_else(|| {
            let name = ggml_type_name(id);
            self.wrong(format!("has type {id} ({name}), which Lapidary does not read"))
        })?;
        let size = dtype.bytes_for(&shape).map_err(|problem| self.wrong(problem))? as u64;
        let offset = self.u64("offset")?;
        if !offset.is_multiple_of(alignment) {
            let problem = format!("offset {offset} is not a multiple of the alignment {alignment}");
            return Err(self.wrong(problem));
        }
        Ok(TensorInfo { name: name.into(), dtype, shape, offset, size })
    }
}
