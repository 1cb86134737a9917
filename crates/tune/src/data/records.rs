//! Files of examples, one record after the other: JSON lines, plain text and Parquet, the first two
//! also compressed with gzip or zstd.

use super::document::Document;
use super::{compressed, parquet};
use lapidary_formats::{FormatError, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// A JSON object on each line.
    Jsonl,
    /// Plain text, cut into documents.
    Text,
    /// Parquet, a row for each example.
    Parquet,
}

/// Bytes of one line at most: a file without line ends must not fill the memory.
const MAX_LINE: u64 = 64 << 20;

/// Plain text is cut at the first empty line after so many bytes, or at the first line's end after
/// [`LONGEST_PAGE`].
const PAGE: usize = 4 << 10;
const LONGEST_PAGE: usize = 1 << 20;

impl Format {
    /// The format that a file's name says, with or without `.gz` or `.zst` behind it.
    pub fn of(path: &Path) -> Option<Self> {
        let name = path.file_name()?.to_str()?.to_ascii_lowercase();
        let name = name.strip_suffix(".gz").or(name.strip_suffix(".zst")).unwrap_or(&name);
        match name.rsplit_once('.')?.1 {
            "jsonl" | "ndjson" | "json" => Some(Format::Jsonl),
            "txt" | "text" | "md" => Some(Format::Text),
            "parquet" => Some(Format::Parquet),
            _ => None,
        }
    }
}

/// A record before it is understood: skipping costs no parsing.
pub(crate) enum Raw {
    Line(Vec<u8>),
    Page(String),
    Row(Value),
}

impl Raw {
    /// The example in it.
    pub(crate) fn parse(self) -> std::result::Result<Document, String> {
        match self {
            Raw::Page(text) => Ok(Document::Text(text)),
            Raw::Row(row) => Document::from_json(row),
            Raw::Line(bytes) => {
                let value = serde_json::from_slice(&bytes).map_err(|e| {
                    let array = bytes.trim_ascii_start().starts_with(b"[");
                    let hint =
                        if array { "; one object a line is expected, not an array" } else { "" };
                    format!("not JSON: {e}{hint}")
                })?;
                Document::from_json(value)
            }
        }
    }
}

enum Kind {
    Lines(Box<dyn BufRead + Send>),
    Pages(Box<dyn BufRead + Send>, Option<String>),
    Rows(parquet::Rows),
}

/// An open file.
pub(crate) struct Records {
    kind: Kind,
    file: String,
    /// Lines (or rows) read so far.
    line: u64,
}

impl Records {
    /// Opens a file. `separator`: the line that ends a document of plain text.
    ///
    /// # Errors
    /// If it can't be opened, or its name doesn't say what it holds.
    pub(crate) fn open(
        path: &Path,
        format: Option<Format>,
        separator: Option<&str>,
    ) -> Result<Self> {
        let file = path.display().to_string();
        let format = format.or_else(|| Format::of(path)).ok_or_else(|| {
            let known = "jsonl, txt, md or parquet was expected, or a format beside the path";
            FormatError::new(&file, "", format!("what does it hold? {known}"))
        })?;
        let lines = || compressed::open(path);
        let kind = match format {
            Format::Jsonl => Kind::Lines(lines()?),
            Format::Text => Kind::Pages(lines()?, separator.map(str::to_owned)),
            Format::Parquet => Kind::Rows(parquet::Rows::open(path)?),
        };
        Ok(Self { kind, file, line: 0 })
    }

    /// The next record and the number of its line or row, counted from 1.
    ///
    /// # Errors
    /// If the file can't be read on.
    pub(crate) fn next(&mut self) -> Result<Option<(u64, Raw)>> {
        match &mut self.kind {
            Kind::Rows(rows) => {
                self.line += 1;
                Ok(rows.next(self.line)?.map(|row| (self.line, Raw::Row(row))))
            }
            Kind::Lines(from) => loop {
                let Some(line) = read_line(from, &self.file, self.line + 1)? else {
                    return Ok(None);
                };
                self.line += 1;
                if !line.trim_ascii().is_empty() {
                    return Ok(Some((self.line, Raw::Line(line))));
                }
            },
            Kind::Pages(from, separator) => {
                let first = self.line + 1;
                let page = page(from, separator.as_deref(), &self.file, &mut self.line)?;
                Ok(page.map(|text| (first, Raw::Page(text))))
            }
        }
    }
}

/// A line without its end; a mark of byte order before the first one is left out.
fn read_line(from: &mut dyn BufRead, file: &str, number: u64) -> Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    let wrong = |problem: String| FormatError::new(file, format!("line {number}"), problem);
    let read = from.take(MAX_LINE).read_until(b'\n', &mut line);
    let read = read.map_err(|e| wrong(format!("cannot be read: {e}")))?;
    if read as u64 == MAX_LINE {
        return Err(wrong(format!("longer than {MAX_LINE} bytes; is this a text file?")));
    }
    if read == 0 {
        return Ok(None);
    }
    while line.last().is_some_and(|b| *b == b'\n' || *b == b'\r') {
        line.pop();
    }
    if number == 1 && line.starts_with(&[0xef, 0xbb, 0xbf]) {
        line.drain(..3);
    }
    Ok(Some(line))
}

/// The next document of a plain text that is not empty.
fn page(
    from: &mut dyn BufRead,
    separator: Option<&str>,
    file: &str,
    count: &mut u64,
) -> Result<Option<String>> {
    let mut text = String::new();
    while let Some(line) = read_line(from, file, *count + 1)? {
        *count += 1;
        let line = String::from_utf8(line)
            .map_err(|_| FormatError::new(file, format!("line {count}"), "is not UTF-8"))?;
        let ends = match separator {
            Some(separator) => line == separator,
            None => line.trim().is_empty() && text.len() >= PAGE,
        };
        if !ends {
            text.push_str(&line);
            text.push('\n');
        }
        if (ends || text.len() >= LONGEST_PAGE) && !text.trim().is_empty() {
            break;
        }
    }
    let text = text.trim_matches('\n');
    Ok((!text.trim().is_empty()).then(|| text.to_owned()))
}

/// The files that a path names: itself, or those in a folder that have a known ending, by name.
///
/// # Errors
/// If there are none.
pub(crate) fn files(path: &Path) -> Result<Vec<PathBuf>> {
    let wrong = |problem: String| FormatError::new(path.display(), "", problem);
    if !path.is_dir() {
        let found = std::fs::metadata(path);
        found.map_err(|e| wrong(format!("cannot be opened: {e}")))?;
        return Ok(vec![path.to_owned()]);
    }
    let entries = std::fs::read_dir(path).and_then(|all| all.collect::<std::io::Result<Vec<_>>>());
    let entries = entries.map_err(|e| wrong(format!("cannot be read: {e}")))?;
    let mut found: Vec<PathBuf> = entries.iter().map(|e| e.path()).collect();
    found.retain(|p| p.is_file() && Format::of(p).is_some());
    found.sort();
    if found.is_empty() {
        return Err(wrong("holds no .jsonl, .txt, .md or .parquet file".into()));
    }
    Ok(found)
}

/// A reader with a buffer of its own.
pub(crate) fn buffered(from: impl Read + Send + 'static) -> Box<dyn BufRead + Send> {
    Box::new(BufReader::with_capacity(1 << 16, from))
}
