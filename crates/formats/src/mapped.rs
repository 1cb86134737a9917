//! Files as bytes: read-only memory maps, shared and sliced without copying.
//!
//! The only `unsafe` of this crate is here: mapping a file, and telling the system that mapped
//! pages are no longer needed.

use std::fmt;
use std::fs::{self, File};
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use memmap2::Mmap;

use crate::{FormatError, Result};

/// A file, mapped read-only for as long as this lives.
pub struct Mapped {
    map: Mmap,
}

impl Mapped {
    /// Maps a regular file. Anything else (a directory, a pipe, a device) is an error.
    pub fn open(path: &Path) -> Result<Mapped> {
        let wrong = |problem: String| FormatError::new(path.display(), "", problem);
        // Looked at before it is opened, since opening a pipe waits for a writer.
        let kind = fs::metadata(path).map_err(|e| wrong(format!("cannot be read: {e}")))?;
        if !kind.is_file() {
            return Err(wrong("is not a file".into()));
        }
        let file = File::open(path).map_err(|e| wrong(format!("cannot be opened: {e}")))?;
        let map = map(&file).map_err(|e| wrong(format!("cannot be mapped: {e}")))?;
        Ok(Mapped { map })
    }

    /// Lets the system take back the memory of this range of the file. The bytes stay readable:
    /// the next access reads them from the file again. Does nothing where there is no such call.
    pub fn advise_dontneed(&self, range: Range<usize>) {
        if range.start < range.end && range.end <= self.map.len() {
            dont_need(&self.map, range);
        }
    }
}

#[allow(unsafe_code)]
fn map(file: &File) -> std::io::Result<Mmap> {
    // SAFETY: the map is read-only and shared, so nothing in this process writes to it. What can
    // not be ruled out is another process that changes or cuts the file while it is mapped: changed
    // bytes are only ever read as plain numbers, and cut pages end the process with SIGBUS rather
    // than reading foreign memory. Lapidary itself replaces files by renaming (see `atomic`), which
    // leaves existing maps whole.
    unsafe { Mmap::map(file) }
}

#[cfg(target_os = "linux")]
#[allow(unsafe_code)]
fn dont_need(map: &Mmap, range: Range<usize>) {
    // SAFETY: for a read-only shared map of a file MADV_DONTNEED discards no data: the pages are
    // clean, and are read from the file again when they are touched. The caller has checked the
    // range. A refusal costs memory only, so it is no error.
    let _ = unsafe {
        map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
    };
}

#[cfg(not(target_os = "linux"))]
fn dont_need(_: &Mmap, _: Range<usize>) {}

/// A range of bytes that keeps its owner alive: a mapped file, memory, or the program itself.
/// Cloning and slicing copy nothing.
#[derive(Clone)]
pub struct Bytes {
    owner: Owner,
    range: Range<usize>,
}

#[derive(Clone)]
enum Owner {
    Mapped(Arc<Mapped>),
    Memory(Arc<Vec<u8>>),
    Static(&'static [u8]),
}

impl Bytes {
    /// A whole file, mapped.
    pub fn open(path: &Path) -> Result<Bytes> {
        let mapped = Mapped::open(path)?;
        let range = 0..mapped.map.len();
        Ok(Bytes { owner: Owner::Mapped(Arc::new(mapped)), range })
    }

    /// Bytes that are part of the program.
    pub fn from_static(bytes: &'static [u8]) -> Bytes {
        Bytes { owner: Owner::Static(bytes), range: 0..bytes.len() }
    }

    /// The part `range` of these bytes; `None` if it is not inside them.
    pub fn slice(&self, range: Range<usize>) -> Option<Bytes> {
        if range.start > range.end || range.end > self.range.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Bytes { owner: self.owner.clone(), range: start..start + range.len() })
    }

    /// Lets mapped memory go until it is read again (see [`Mapped::advise_dontneed`]); for weights
    /// that have been copied into another layout. Other owners are left as they are.
    pub fn advise_dontneed(&self) {
        if let Owner::Mapped(mapped) = &self.owner {
            mapped.advise_dontneed(self.range.clone());
        }
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let all: &[u8] = match &self.owner {
            Owner::Mapped(mapped) => &mapped.map,
            Owner::Memory(bytes) => bytes,
            Owner::Static(bytes) => bytes,
        };
        &all[self.range.clone()]
    }
}

impl AsRef<[u8]> for Bytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Bytes {
        let range = 0..bytes.len();
        Bytes { owner: Owner::Memory(Arc::new(bytes)), range }
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn maps_slices_and_reads_again_after_letting_go() {
        let dir = Scratch::new("mapped");
        let path = dir.file("a.bin", &(0..=255).cycle().take(20_000).collect::<Vec<u8>>());
        let all = Bytes::open(&path).unwrap();
        let part = all.slice(5000..15_000).unwrap();
        let inner = part.slice(10..20).unwrap();
        drop(all);
        part.advise_dontneed();
        assert_eq!(part.len(), 10_000);
        assert!(part.iter().enumerate().all(|(i, b)| *b == ((i + 5000) % 256) as u8));
        assert_eq!(inner[0], (5010 % 256) as u8);
        assert!(inner.slice(0..11).is_none() && inner.slice(usize::MAX..usize::MAX).is_none());
        assert_eq!(inner.slice(10..10).unwrap().len(), 0);
    }

    /// The pages leave resident memory: as /proc/self/smaps reports it for this file.
    #[cfg(target_os = "linux")]
    #[test]
    fn letting_go_lowers_resident_memory() {
        let dir = Scratch::new("resident");
        let path = dir.file("weights.bin", &vec![1; 4 << 20]);
        let bytes = Bytes::open(&path).unwrap();
        let resident = || {
            let maps = fs::read_to_string("/proc/self/smaps").unwrap();
            let name = path.to_str().unwrap();
            let rss =
                maps.lines().skip_while(|l| !l.ends_with(name)).find(|l| l.starts_with("Rss"));
            rss.unwrap().split_whitespace().nth(1).unwrap().parse::<usize>().unwrap()
        };
        assert_eq!(bytes.iter().map(|b| *b as usize).sum::<usize>(), 4 << 20);
        assert!(resident() >= 4096, "{} KiB", resident());
        bytes.advise_dontneed();
        assert_eq!(resident(), 0);
    }

    #[test]
    fn what_is_no_file_is_an_error_and_an_empty_file_is_empty() {
        let dir = Scratch::new("nofile");
        assert!(Bytes::open(dir.path()).unwrap_err().to_string().contains("is not a file"));
        let missing = dir.path().join("missing.bin");
        assert!(Bytes::open(&missing).unwrap_err().to_string().contains("missing.bin"));
        assert_eq!(Bytes::open(&dir.file("empty", b"")).unwrap().len(), 0);
    }
}
