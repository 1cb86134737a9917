//! Safetensors files: an 8-byte little-endian length, a JSON header of that length, the data.
//!
//! Header: `{"__metadata__": {string: string}, NAME: {"dtype", "shape", "data_offsets"}, ...}`,
//! offsets relative to the end of the header. The data is covered without holes or overlaps.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::Path;
use std::sync::Arc;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::json::Strings;
use crate::mapped::Bytes;
use crate::names::{quote, shorten};
use crate::tensors::{Place, Ranges, TensorSpec, TensorView, TensorWriter};
use crate::{DType, FormatError, Result};

/// The longest header that is read or written, in bytes: the reference implementation's bound.
pub const MAX_HEADER_BYTES: u64 = 100_000_000;

/// More dimensions than any published tensor has.
const MAX_DIMS: usize = 16;

const METADATA: &str = "__metadata__";

/// What a safetensors file holds.
#[derive(Debug)]
pub struct Safetensors {
    /// The tensors in file order.
    pub tensors: Vec<TensorView>,
    /// The strings of `__metadata__`, in file order.
    pub metadata: Vec<(String, String)>,
}

/// Maps and checks a file.
pub fn open(path: &Path) -> Result<Safetensors> {
    read(path.display().to_string().into(), Bytes::open(path)?)
}

/// Checks bytes as a whole safetensors file; `file` is its name in errors.
pub fn read(file: Arc<str>, bytes: Bytes) -> Result<Safetensors> {
    let wrong = |field: &str, problem: String| FormatError::new(&file, field, problem);
    let len = bytes.len() as u64;
    let Some(first) = bytes.first_chunk::<8>() else {
        let problem =
            format!("needs 8 bytes, but the file has {len}; it is cut or not safetensors");
        return Err(wrong("header length", problem));
    };
    let header_len = u64::from_le_bytes(*first);
    if header_len > MAX_HEADER_BYTES || header_len > len - 8 {
        let most = MAX_HEADER_BYTES.min(len - 8);
        let problem = format!(
            "is {header_len}, but at most {most} is possible here; it is cut or not safetensors"
        );
        return Err(wrong("header length", problem));
    }
    // Cannot overflow or lose bits: header_len is below the length of a slice.
    let data_start = 8 + header_len as usize;
    let header = parse_header(&file, &bytes[8..data_start])?;
    let tensors = header
        .tensors
        .iter()
        .map(|raw| check_tensor(&file, raw, len - data_start as u64))
        .collect::<Result<Vec<_>>>()?;
    check_coverage(&file, &header.tensors, len - data_start as u64)?;

    let mut views = Vec::with_capacity(tensors.len());
    for (raw, (dtype, shape)) in header.tensors.into_iter().zip(tensors) {
        let [start, end] = raw.offsets.map(|o| data_start + o as usize);
        let bytes = bytes
            .slice(start..end)
            .ok_or_else(|| wrong(&field(&raw.name, "data_offsets"), "outside the file".into()))?;
        views.push((
            raw.offsets,
            TensorView { name: raw.name.into(), dtype, shape, bytes, file: file.clone() },
        ));
    }
    views.sort_by_key(|(offsets, _)| *offsets);
    Ok(Safetensors {
        tensors: views.into_iter().map(|(_, view)| view).collect(),
        metadata: header.metadata,
    })
}

fn field(tensor: &str, part: &str) -> String {
    format!("tensor {} {part}", quote(tensor)).trim_end().to_string()
}

/// Checks one tensor on its own: type, shape, size and that its bytes are inside the data.
fn check_tensor(file: &str, raw: &RawTensor, data_len: u64) -> Result<(DType, Vec<usize>)> {
    let wrong =
        |part: &str, problem: String| FormatError::new(file, field(&raw.name, part), problem);
    let dtype = DType::from_safetensors(&raw.dtype).ok_or_else(|| {
        wrong("dtype", format!("{} is not a type that Lapidary reads", quote(&raw.dtype)))
    })?;
    let shape = raw
        .shape
        .iter()
        .map(|d| usize::try_from(*d).ok())
        .collect::<Option<Vec<usize>>>()
        .ok_or_else(|| wrong("shape", format!("{:?} is too large", raw.shape)))?;
    let size = dtype.bytes_for(&shape).map_err(|problem| wrong("shape", problem))?;
    let [start, end] = raw.offsets;
    if start > end {
        return Err(wrong("data_offsets", format!("end at {end} before they start at {start}")));
    }
    if end > data_len {
        let problem = format!("end at byte {end} of the data, but the file has {data_len}");
        return Err(wrong("data_offsets", problem));
    }
    if end - start != size as u64 {
        let found = end - start;
        let problem = format!("span {found} bytes, but {dtype} {shape:?} takes {size}");
        return Err(wrong("data_offsets", problem));
    }
    Ok((dtype, shape))
}

/// The format's rule that the tensors cover the data: no overlap, no hole, nothing after the end.
fn check_coverage(file: &str, tensors: &[RawTensor], data_len: u64) -> Result<()> {
    let ranges =
        tensors.iter().map(|t| (t.offsets[0], t.offsets[1], t.name.as_str())).collect::<Vec<_>>();
    let ranges = Ranges::new(file, ranges)?;
    let mut at = 0;
    for (start, end, name) in ranges.sorted {
        if start != at {
            let problem = format!("start at {start}, which leaves a hole after byte {at}");
            return Err(FormatError::new(ranges.file, field(name, "data_offsets"), problem));
        }
        at = end;
    }
    if at != data_len {
        let problem = format!("the tensors end at byte {at}, but the file has {data_len}");
        return Err(FormatError::new(ranges.file, "data", problem));
    }
    Ok(())
}

/// The header as it stands, before any check of the values.
#[derive(Default)]
struct Header {
    tensors: Vec<RawTensor>,
    metadata: Vec<(String, String)>,
}

struct RawTensor {
    name: String,
    dtype: String,
    shape: Vec<u64>,
    offsets: [u64; 2],
}

fn parse_header(file: &str, json: &[u8]) -> Result<Header> {
    // Which part was being read when the parser stopped: its own errors do not say.
    let mut at = String::from("header");
    if json.first() != Some(&b'{') {
        return Err(FormatError::new(file, at, "is not a JSON object; not a safetensors file"));
    }
    let mut parser = serde_json::Deserializer::from_slice(json);
    let header = HeaderSeed { at: &mut at }.deserialize(&mut parser);
    let header = header.and_then(|header| parser.end().map(|()| header));
    header.map_err(|e| FormatError::new(file, &at, shorten(e.to_string())))
}

struct HeaderSeed<'a> {
    at: &'a mut String,
}

impl<'de> DeserializeSeed<'de> for HeaderSeed<'_> {
    type Value = Header;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> std::result::Result<Header, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for HeaderSeed<'_> {
    type Value = Header;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Header, A::Error> {
        let mut header = Header::default();
        let mut seen = HashSet::new();
        while let Some(name) = map.next_key::<String>()? {
            *self.at = if name == METADATA { METADATA.into() } else { field(&name, "") };
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom("stands twice in the header"));
            }
            if name == METADATA {
                header.metadata = map.next_value::<Option<Strings>>()?.map_or(vec![], |s| s.0);
            } else {
                header.tensors.push(map.next_value_seed(TensorSeed { name, at: self.at })?);
            }
            *self.at = "header".into();
        }
        Ok(header)
    }
}

struct TensorSeed<'a> {
    name: String,
    at: &'a mut String,
}

impl<'de> DeserializeSeed<'de> for TensorSeed<'_> {
    type Value = RawTensor;

    fn deserialize<D: Deserializer<'de>>(
        self,
        from: D,
    ) -> std::result::Result<RawTensor, D::Error> {
        from.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TensorSeed<'_> {
    type Value = RawTensor;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object with dtype, shape and data_offsets")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<RawTensor, A::Error> {
        let (mut dtype, mut shape, mut offsets) = (None::<String>, None, None);
        while let Some(key) = map.next_key::<String>()? {
            let known = ["dtype", "shape", "data_offsets"].contains(&key.as_str());
            *self.at = field(&self.name, if known { &key } else { "" });
            let twice = match key.as_str() {
                "dtype" => dtype.replace(map.next_value()?).is_some(),
                "shape" => shape.replace(map.next_value_seed(Dims { most: MAX_DIMS })?).is_some(),
                "data_offsets" => offsets.replace(map.next_value_seed(Dims { most: 2 })?).is_some(),
                // Unknown keys are ignored, as the reference implementation does.
                _ => map.next_value::<IgnoredAny>().map(|_| false)?,
            };
            if twice {
                return Err(A::Error::custom("stands twice"));
            }
        }
        *self.at = field(&self.name, "");
        let missing = |key: &str| A::Error::custom(format!("{key} is missing"));
        let offsets = offsets.ok_or_else(|| missing("data_offsets"))?;
        let [start, end] = offsets[..] else {
            return Err(A::Error::custom("data_offsets must be two numbers"));
        };
        Ok(RawTensor {
            name: self.name,
            dtype: dtype.ok_or_else(|| missing("dtype"))?,
            shape: shape.ok_or_else(|| missing("shape"))?,
            offsets: [start, end],
        })
    }
}

/// An array of at most `most` non-negative integers.
struct Dims {
    most: usize,
}

impl<'de> DeserializeSeed<'de> for Dims {
    type Value = Vec<u64>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> std::result::Result<Vec<u64>, D::Error> {
        from.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Dims {
    type Value = Vec<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "an array of at most {} non-negative integers", self.most)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Vec<u64>, A::Error> {
        let mut dims = Vec::new();
        while let Some(dim) = seq.next_element()? {
            if dims.len() == self.most {
                return Err(A::Error::invalid_length(self.most + 1, &self));
            }
            dims.push(dim);
        }
        Ok(dims)
    }
}

/// Starts a file of these tensors; their bytes follow through [`TensorWriter::write`].
///
/// In the file the tensors lie by falling size of their type, so that each is aligned to its values,
/// as the reference implementation's readers expect. Quantised types have no name in this format.
pub fn create(
    path: &Path,
    tensors: &[TensorSpec],
    metadata: &BTreeMap<String, String>,
) -> Result<TensorWriter> {
    let file = path.display().to_string();
    let mut sorted: Vec<&TensorSpec> = tensors.iter().collect();
    sorted.sort_by_key(|t| std::cmp::Reverse(t.dtype.block_bytes()));
    let (header, mut places, data_len) = header(&file, &sorted, metadata)?;
    for place in &mut places {
        place.start += header.len() as u64;
    }
    let len = header.len() as u64 + data_len;
    TensorWriter::create(path, &header, places, len)
}

/// The bytes before the data, and where each tensor lies in it.
fn header(
    file: &str,
    tensors: &[&TensorSpec],
    metadata: &BTreeMap<String, String>,
) -> Result<(Vec<u8>, Vec<Place>, u64)> {
    let mut json = format!("{{{}:{}", string(METADATA), serde_json::json!(metadata));
    let mut places = Vec::new();
    let mut seen = HashSet::new();
    let mut at = 0u64;
    for t in tensors {
        let wrong = |problem: &str| FormatError::new(file, field(&t.name, ""), problem);
        if t.name == METADATA || !seen.insert(&t.name) {
            return Err(wrong("is declared twice or has a name that the format keeps"));
        }
        if t.dtype.is_quantised() {
            return Err(wrong("is quantised, which safetensors cannot hold; write a GGUF file"));
        }
        let len = t.bytes(file)? as u64;
        let end = at.checked_add(len).ok_or_else(|| wrong("makes the file too large"))?;
        let (name, dtype, shape) = (string(&t.name), t.dtype, serde_json::json!(t.shape));
        json.push_str(&format!(
            ",{name}:{{\"dtype\":\"{dtype}\",\"shape\":{shape},\"data_offsets\":[{at},{end}]}}"
        ));
        places.push(Place { name: t.name.clone(), start: at, len });
        at = end;
    }
    json.push('}');
    // Spaces up to a multiple of 8, so that the data is aligned.
    json.extend(std::iter::repeat_n(' ', json.len().next_multiple_of(8) - json.len()));
    if json.len() as u64 > MAX_HEADER_BYTES {
        return Err(FormatError::new(file, "header", "is longer than the format allows"));
    }
    let mut header = (json.len() as u64).to_le_bytes().to_vec();
    header.extend_from_slice(json.as_bytes());
    Ok((header, places, at))
}

fn string(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
