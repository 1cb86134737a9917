//! Files that appear whole or not at all: written beside their place, then renamed into it.

use std::fs::{self, File, OpenOptions};
use std::io::{BufWriter, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use crate::{FormatError, Result};

/// A file being written under a temporary name in its directory. [`AtomicFile::commit`] gives it
/// its name, replacing what was there; dropped before that, it leaves nothing behind.
pub struct AtomicFile {
    place: PathBuf,
    temporary: PathBuf,
    /// `None` once committed.
    file: Option<BufWriter<File>>,
    at: u64,
}

impl AtomicFile {
    /// Starts a file that is to be at `path`, with `len` zero bytes in it.
    pub fn create(path: &Path, len: u64) -> Result<AtomicFile> {
        let wrong = |problem: String| FormatError::new(path.display(), "", problem);
        let name = path.file_name().ok_or_else(|| wrong("is not a file name".into()))?;
        let (temporary, file) = open_beside(path, &name.to_string_lossy())
            .map_err(|e| wrong(format!("cannot be written: {e}")))?;
        let new = AtomicFile {
            place: path.to_owned(),
            temporary,
            file: Some(BufWriter::with_capacity(1 << 20, file)),
            at: 0,
        };
        if len > 0 {
            let file = new.file.as_ref().map(BufWriter::get_ref);
            file.map_or(Ok(()), |f| f.set_len(len)).map_err(|e| new.failed(e))?;
        }
        Ok(new)
    }

    /// Writes all of `bytes` at byte `at` of the file.
    pub fn write_at(&mut self, at: u64, bytes: &[u8]) -> Result<()> {
        let moved = at != self.at;
        let result = self.file.as_mut().map_or(Ok(()), |file| {
            if moved {
                file.seek(SeekFrom::Start(at))?;
            }
            file.write_all(bytes)
        });
        result.map_err(|e| self.failed(e))?;
        self.at = at + bytes.len() as u64;
        Ok(())
    }

    /// Makes sure that the bytes are on the disk, then gives the file its name.
    pub fn commit(mut self) -> Result<()> {
        if let Some(mut file) = self.file.take() {
            let done = file.flush().and_then(|()| file.get_ref().sync_all()).and_then(|()| {
                drop(file);
                fs::rename(&self.temporary, &self.place)
            });
            if let Err(e) = done {
                let _ = fs::remove_file(&self.temporary);
                return Err(self.failed(e));
            }
            sync_directory(&self.place);
        }
        Ok(())
    }

    fn failed(&self, error: std::io::Error) -> FormatError {
        FormatError::new(self.place.display(), "", format!("cannot be written: {error}"))
    }
}

impl Drop for AtomicFile {
    fn drop(&mut self) {
        if let Some(file) = self.file.take() {
            // Not through the buffer: what it still holds need not reach a file that goes away.
            drop(file.into_parts());
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Writes a whole file at once, atomically.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut file = AtomicFile::create(path, 0)?;
    file.write_at(0, bytes)?;
    file.commit()
}

/// A new file next to `path`, in the same directory so that the renaming moves no bytes.
fn open_beside(path: &Path, name: &str) -> std::io::Result<(PathBuf, File)> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let mut last = std::io::Error::from(std::io::ErrorKind::AlreadyExists);
    // A few tries: a killed process with our number may have left its file.
    for _ in 0..16 {
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let temporary = path.with_file_name(format!(".{name}.{}-{count}.part", std::process::id()));
        match OpenOptions::new().write(true).create_new(true).open(&temporary) {
            Ok(file) => return Ok((temporary, file)),
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => last = e,
            Err(e) => return Err(e),
        }
    }
    Err(last)
}

/// On Unix the new name is on the disk only once the directory is.
fn sync_directory(path: &Path) {
    if cfg!(unix) {
        let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
        if let Ok(directory) = File::open(parent.unwrap_or(Path::new("."))) {
            let _ = directory.sync_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;

    #[test]
    fn appears_whole_or_not_at_all() {
        let dir = Scratch::new("atomic");
        let path = dir.file("out.bin", b"old");
        let mut file = AtomicFile::create(&path, 6).unwrap();
        file.write_at(4, b"ef").unwrap();
        file.write_at(0, b"ab").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        file.commit().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"ab\0\0ef");

        let mut dropped = AtomicFile::create(&path, 0).unwrap();
        dropped.write_at(0, b"half").unwrap();
        drop(dropped);
        assert_eq!(fs::read(&path).unwrap(), b"ab\0\0ef");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "a temporary file was left");
    }

    #[test]
    fn errors_name_the_file_that_was_asked_for() {
        let dir = Scratch::new("atomic-missing");
        let error = write_file(&dir.path().join("no/where.bin"), b"x").unwrap_err();
        assert!(error.to_string().contains("where.bin: cannot be written"), "{error}");
        fs::create_dir(dir.path().join("taken")).unwrap();
        assert!(write_file(&dir.path().join("taken"), b"x").is_err());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
