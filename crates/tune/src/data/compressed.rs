//! Files that may be compressed: found out by their first bytes, not by their names.

use super::records::buffered;
use flate2::bufread::MultiGzDecoder;
use lapidary_formats::{FormatError, Result};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];

/// Opens a file and decompresses it where it is compressed.
///
/// # Errors
/// If it can't be opened.
pub(crate) fn open(path: &Path) -> Result<Box<dyn BufRead + Send>> {
    let wrong =
        |e: io::Error| FormatError::new(path.display(), "", format!("cannot be opened: {e}"));
    let mut file = BufReader::with_capacity(1 << 16, File::open(path).map_err(wrong)?);
    let head = file.fill_buf().map_err(wrong)?;
    if head.starts_with(&GZIP) {
        return Ok(buffered(MultiGzDecoder::new(file)));
    }
    if head.starts_with(&ZSTD) {
        return Ok(buffered(Frames { frame: Frame::Next(file) }));
    }
    Ok(Box::new(file))
}

/// The frames of a zstd file, one after the other.
struct Frames {
    frame: Frame,
}

enum Frame {
    /// Inside a frame.
    Open(Box<StreamingDecoder<BufReader<File>, FrameDecoder>>),
    /// Between frames.
    Next(BufReader<File>),
    /// An error was told.
    Broken,
}

impl Read for Frames {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        loop {
            match std::mem::replace(&mut self.frame, Frame::Broken) {
                Frame::Broken => return Err(damaged("an earlier part could not be read")),
                Frame::Next(mut file) => {
                    if file.fill_buf()?.is_empty() {
                        self.frame = Frame::Next(file);
                        return Ok(0);
                    }
                    let frame = StreamingDecoder::new(file).map_err(|e| damaged(&e.to_string()))?;
                    self.frame = Frame::Open(Box::new(frame));
                }
                Frame::Open(mut frame) => {
                    let n = frame.read(out)?;
                    if n > 0 || out.is_empty() {
                        self.frame = Frame::Open(frame);
                        return Ok(n);
                    }
                    let (file, decoder) = frame.into_parts();
                    let stored = decoder.get_checksum_from_data();
                    if stored.is_some() && stored != decoder.get_calculated_checksum() {
                        return Err(damaged("the checksum of a frame is wrong"));
                    }
                    self.frame = Frame::Next(file);
                }
            }
        }
    }
}

fn damaged(problem: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("damaged zstd data: {problem}"))
}
