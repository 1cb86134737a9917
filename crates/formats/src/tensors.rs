//! Tensors as files hold them: named, typed, shaped ranges of bytes; and the writing of many.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::atomic::AtomicFile;
use crate::mapped::Bytes;
use crate::names::quote;
use crate::{DType, FormatError, Result};

/// A tensor in a checkpoint. Its bytes are a part of the mapped file: nothing is copied.
#[derive(Clone, Debug)]
pub struct TensorView {
    /// The tensor's name in the file.
    pub name: Arc<str>,
    /// How its values are stored.
    pub dtype: DType,
    /// Dimensions, outermost first: a weight matrix is `[rows, columns]` in every format. Values of
    /// the last dimension lie next to each other.
    pub shape: Vec<usize>,
    /// Exactly `dtype.bytes_for(&shape)` bytes, little-endian, at any alignment.
    pub bytes: Bytes,
    /// The file it is in.
    pub file: Arc<str>,
}

impl TensorView {
    /// How many values it holds. Cannot overflow: the product was checked when the file was read.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// An error about this tensor, naming its file.
    pub fn wrong(&self, problem: impl std::fmt::Display) -> FormatError {
        FormatError::new(&self.file, format!("tensor {}", quote(&self.name)), problem)
    }

    /// Checks the shape; the error gives both.
    pub fn expect_shape(&self, shape: &[usize]) -> Result<()> {
        if self.shape == shape {
            return Ok(());
        }
        Err(self.wrong(format!("expected shape {shape:?}, found {:?}", self.shape)))
    }
}

/// A tensor that is to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Its name in the file.
    pub name: String,
    /// How its values are stored.
    pub dtype: DType,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor to write.
    pub fn new(name: impl Into<String>, dtype: DType, shape: impl Into<Vec<usize>>) -> TensorSpec {
        TensorSpec { name: name.into(), dtype, shape: shape.into() }
    }

    /// Its bytes; an error naming `file` and the tensor if the shape does not fit the type.
    pub(crate) fn bytes(&self, file: &str) -> Result<usize> {
        self.dtype.bytes_for(&self.shape).map_err(|problem| {
            FormatError::new(file, format!("tensor {}", quote(&self.name)), problem)
        })
    }
}

/// Where a tensor's bytes go in a file that is being written.
pub(crate) struct Place {
    pub name: String,
    pub start: u64,
    pub len: u64,
}

/// A checkpoint being written, tensor by tensor, in any order. Made by
/// [`crate::safetensors::create`] and [`crate::gguf::create`]. The file appears under its name only
/// when [`TensorWriter::finish`] succeeds; memory stays at one buffer, however large the file.
pub struct TensorWriter {
    file: AtomicFile,
    name: String,
    places: Vec<(Place, u64)>,
    by_name: HashMap<String, usize>,
}

impl TensorWriter {
    /// A file of `len` bytes that starts with `header`; the places must be inside it.
    pub(crate) fn create(
        path: &Path,
        header: &[u8],
        places: Vec<Place>,
        len: u64,
    ) -> Result<TensorWriter> {
        let mut file = AtomicFile::create(path, len)?;
        file.write_at(0, header)?;
        let by_name = places.iter().enumerate().map(|(i, p)| (p.name.clone(), i)).collect();
        let places = places.into_iter().map(|p| (p, 0)).collect();
        Ok(TensorWriter { file, name: path.display().to_string(), places, by_name })
    }

    /// Appends bytes to tensor `name`; a large one may come in several pieces.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        let wrong = |problem: String| {
            FormatError::new(&self.name, format!("tensor {}", quote(name)), problem)
        };
        let Some(index) = self.by_name.get(name) else {
            return Err(wrong("was not declared when the file was created".into()));
        };
        let (place, written) = &mut self.places[*index];
        if bytes.len() as u64 > place.len - *written {
            let given = *written + bytes.len() as u64;
            return Err(wrong(format!("has {} bytes and was given {given}", place.len)));
        }
        self.file.write_at(place.start + *written, bytes)?;
        *written += bytes.len() as u64;
        Ok(())
    }

    /// Checks that every tensor is complete, then puts the file in its place.
    pub fn finish(self) -> Result<()> {
        if let Some((place, written)) = self.places.iter().find(|(p, written)| *written != p.len) {
            let problem = format!("has {} bytes and was given only {written}", place.len);
            return Err(FormatError::new(
                &self.name,
                format!("tensor {}", quote(&place.name)),
                problem,
            ));
        }
        self.file.commit()
    }
}

/// Tensors of one file with their ranges in its data section, sorted by where they lie.
pub(crate) struct Ranges<'a> {
    pub file: &'a str,
    pub sorted: Vec<(u64, u64, &'a str)>,
}

impl<'a> Ranges<'a> {
    /// Sorts `(start, end, name)` and refuses tensors that share bytes.
    pub fn new(file: &'a str, mut ranges: Vec<(u64, u64, &'a str)>) -> Result<Ranges<'a>> {
        ranges.sort_by_key(|r| (r.0, r.1));
        for pair in ranges.windows(2) {
            let ((_, end, before), (start, _, name)) = (pair[0], pair[1]);
            if start < end {
                let problem = format!("overlaps tensor {} by {} bytes", quote(before), end - start);
                return Err(FormatError::new(file, format!("tensor {}", quote(name)), problem));
            }
        }
        Ok(Ranges { file, sorted: ranges })
    }
}
