//! The corpus's files: zstd-compressed JSON lines, with their hashes.

use crate::Failure;
use serde_json::Value;
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

/// A file of the corpus, read whole.
pub struct File {
    /// Its name up to the first point.
    pub name: String,
    /// The file's own name.
    pub file: String,
    /// Of its bytes as they stand on disk.
    pub sha256: String,
    /// Its documents in order.
    pub documents: Vec<Value>,
}

/// The names of the files that a model under Apache-2.0 may learn from: all that are not
/// share-alike (`sa_`), in order.
///
/// # Errors
/// If the folder can't be read or holds none.
pub fn files(folder: &Path) -> Result<Vec<PathBuf>, Failure> {
    let wrong = |e| Failure::new(folder, format!("cannot be read: {e}"));
    let mut found: Vec<PathBuf> = fs::read_dir(folder)
        .map_err(wrong)?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.ends_with(".jsonl.zst") && !name.starts_with("sa_")
        })
        .collect();
    found.sort();
    if found.is_empty() {
        return Err(Failure::new(folder, "holds no .jsonl.zst files".into()));
    }
    Ok(found)
}

impl File {
    /// Reads a file.
    ///
    /// # Errors
    /// If it can't be read, or a line is no JSON.
    pub fn open(path: &Path) -> Result<Self, Failure> {
        let bytes =
            fs::read(path).map_err(|e| Failure::new(path, format!("cannot be read: {e}")))?;
        let mut text = String::new();
        ruzstd::decoding::StreamingDecoder::new(&bytes[..])
            .map_err(|e| Failure::new(path, format!("is no zstd file: {e}")))?
            .read_to_string(&mut text)
            .map_err(|e| Failure::new(path, format!("is damaged: {e}")))?;
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self {
            name: file.split('.').next().unwrap_or_default().to_owned(),
            file,
            sha256: hash(&bytes),
            documents: lines(path, &text)?,
        })
    }
}

/// The JSON values of a text, one a line.
///
/// # Errors
/// The first line that is none.
pub fn lines(path: &Path, text: &str) -> Result<Vec<Value>, Failure> {
    let parse = |(i, line): (usize, &str)| {
        serde_json::from_str(line)
            .map_err(|e| Failure::new(path, format!("line {} is no JSON: {e}", i + 1)))
    };
    text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).map(parse).collect()
}

/// SHA-256 in hexadecimal digits.
pub fn hash(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect()
}
