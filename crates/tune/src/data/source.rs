//! One source of examples: its files, read in epochs, shuffled in a bounded buffer, without the
//! held-out part (or with nothing but it).

use super::document::Document;
use super::records::{self, Format, Raw, Records};
use super::rng::Rng;
use lapidary_formats::{FormatError, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// What a source reads and how.
#[derive(Debug, Clone)]
pub struct SourceSpec {
    /// Files, and folders that stand for the files in them.
    pub paths: Vec<PathBuf>,
    /// What they hold, where their names don't say it.
    pub format: Option<Format>,
    /// The line that ends a document of plain text.
    pub separator: Option<String>,
    /// How often everything is read; `None`: without end.
    pub epochs: Option<u32>,
    /// Documents in the buffer from which the next one is drawn; 1 keeps the files' order.
    pub shuffle: usize,
    /// The share of the documents that is held out.
    pub held_out: f64,
    /// Only the held-out documents instead of all others.
    pub only_held_out: bool,
    /// A broken record ends the reading.
    pub strict: bool,
}

/// A record that was left out, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// How many there have been in this source, this one included.
    pub count: u64,
    /// File, line and problem.
    pub error: FormatError,
}

/// Where a source stands. Documents in the buffer are kept by the place of their records alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SourceState {
    epoch: u32,
    /// Records read in this epoch.
    read: u64,
    /// Of each document in the buffer, the number of its record in this epoch.
    buffer: Vec<u64>,
    rng: Rng,
    broken: u64,
    /// Bytes of each file: a changed file can't be continued.
    sizes: Vec<u64>,
}

/// Reads the examples of one source.
pub struct Source {
    spec: SourceSpec,
    files: Vec<PathBuf>,
    sizes: Vec<u64>,
    seed: (u64, u64),
    /// The files of this epoch in their order, the next one last.
    order: Vec<usize>,
    open: Option<(usize, Records)>,
    epoch: u32,
    read: u64,
    buffer: Vec<(u64, Document)>,
    rng: Rng,
    broken: u64,
    news: Vec<Broken>,
}

impl Source {
    /// A source at its beginning. The order depends on `seed` and `index` alone.
    ///
    /// # Errors
    /// If a path names no file that can be read.
    pub fn new(spec: SourceSpec, seed: u64, index: u64) -> Result<Self> {
        let mut files = Vec::new();
        for path in &spec.paths {
            files.extend(records::files(path)?);
        }
        let sizes = files.iter().map(|f| size(f)).collect::<Result<_>>()?;
        // Each file is opened once, so that a wrong name or format shows before the training.
        for file in &files {
            Records::open(file, spec.format, spec.separator.as_deref())?;
        }
        let mut new = Self {
            files,
            sizes,
            seed: (seed, index),
            order: Vec::new(),
            open: None,
            epoch: 0,
            read: 0,
            buffer: Vec::new(),
            rng: Rng::new(seed, 2 * index),
            broken: 0,
            news: Vec::new(),
            spec,
        };
        new.begin_epoch(0);
        Ok(new)
    }

    /// The next document; `None` when all epochs are over.
    ///
    /// # Errors
    /// If a file can't be read, or, where the source is strict, at the first broken record.
    pub fn next_document(&mut self) -> Result<Option<Document>> {
        let mut fresh = false;
        while self.spec.epochs.is_none_or(|most| self.epoch < most) {
            self.fill()?;
            if !self.buffer.is_empty() {
                let drawn = self.rng.below(self.buffer.len());
                return Ok(Some(self.buffer.swap_remove(drawn).1));
            }
            if fresh {
                // All files were read through and gave nothing.
                return Err(self.nothing());
            }
            self.begin_epoch(self.epoch + 1);
            fresh = true;
        }
        Ok(None)
    }

    /// What was left out since this was last asked.
    pub fn take_broken(&mut self) -> Vec<Broken> {
        std::mem::take(&mut self.news)
    }

    /// Epochs that are over.
    pub fn epoch(&self) -> u32 {
        self.epoch
    }

    /// Where it stands.
    pub fn state(&self) -> SourceState {
        SourceState {
            epoch: self.epoch,
            read: self.read,
            buffer: self.buffer.iter().map(|(record, _)| *record).collect(),
            rng: self.rng.clone(),
            broken: self.broken,
            sizes: self.sizes.clone(),
        }
    }

    /// Goes to where a source of the same files stood.
    ///
    /// # Errors
    /// If the files are not the same, or can't be read.
    pub fn restore(&mut self, state: &SourceState) -> Result<()> {
        if state.sizes != self.sizes {
            let changed = self.sizes.iter().zip(&state.sizes).position(|(a, b)| a != b);
            let file = changed.and_then(|i| self.files.get(i)).or(self.files.first());
            let name = file.map(|f| f.display().to_string()).unwrap_or_default();
            let problem = "changed since the checkpoint was written: the data can't be continued \
                           where it stopped; restore it, or start a new run from the weights";
            return Err(FormatError::new(name, "", problem));
        }
        self.begin_epoch(state.epoch);
        let mut found = std::collections::HashMap::new();
        let wanted: std::collections::HashSet<u64> = state.buffer.iter().copied().collect();
        while self.read < state.read {
            let number = self.read;
            let Some((file, line, raw)) = self.next_raw()? else { break };
            if wanted.contains(&number) {
                let document = raw.parse().map_err(|e| at(&self.files[file], line, e))?;
                found.insert(number, document);
            }
        }
        for number in &state.buffer {
            let document = found.remove(number).ok_or_else(|| self.nothing())?;
            self.buffer.push((*number, document));
        }
        self.rng = state.rng.clone();
        self.broken = state.broken;
        Ok(())
    }

    fn begin_epoch(&mut self, epoch: u32) {
        self.epoch = epoch;
        self.read = 0;
        self.open = None;
        self.buffer.clear();
        self.order = (0..self.files.len()).collect();
        if self.spec.shuffle > 1 {
            let stream = 2 * self.seed.1 + 1;
            let seed = self.seed.0.wrapping_add(u64::from(epoch).wrapping_mul(0x9e37_79b9));
            Rng::new(seed, stream).shuffle(&mut self.order);
        }
        self.order.reverse();
    }

    /// Reads until the buffer is full or the epoch's files are.
    fn fill(&mut self) -> Result<()> {
        while self.buffer.len() < self.spec.shuffle.max(1) {
            let number = self.read;
            let Some((file, line, raw)) = self.next_raw()? else { return Ok(()) };
            match raw.parse() {
                Ok(document) => {
                    let held_out = document.is_held_out(self.spec.held_out);
                    if held_out == self.spec.only_held_out {
                        self.buffer.push((number, document));
                    }
                }
                Err(problem) => {
                    let error = at(&self.files[file], line, problem);
                    if self.spec.strict {
                        return Err(error);
                    }
                    // Each broken record is counted and told once, not once an epoch.
                    if self.epoch == 0 {
                        self.broken += 1;
                        self.news.push(Broken { count: self.broken, error });
                    }
                }
            }
        }
        Ok(())
    }

    /// The next record of this epoch: its file's index, its line, itself.
    fn next_raw(&mut self) -> Result<Option<(usize, u64, Raw)>> {
        loop {
            if self.open.is_none() {
                let Some(file) = self.order.pop() else { return Ok(None) };
                let separator = self.spec.separator.as_deref();
                let records = Records::open(&self.files[file], self.spec.format, separator)?;
                self.open = Some((file, records));
            }
            let Some((file, records)) = &mut self.open else { return Ok(None) };
            match records.next()? {
                Some((line, raw)) => {
                    self.read += 1;
                    return Ok(Some((*file, line, raw)));
                }
                None => self.open = None,
            }
        }
    }

    fn nothing(&self) -> FormatError {
        let first = self.files.first().map(|f| f.display().to_string()).unwrap_or_default();
        let kind = if self.spec.only_held_out { "held-out example" } else { "example" };
        let more = if self.files.len() > 1 { ", nor have the other files" } else { "" };
        let broken = match self.broken {
            0 => String::new(),
            n => format!(" ({n} broken records were left out)"),
        };
        FormatError::new(first, "", format!("has no {kind}{more}{broken}"))
    }
}

fn at(file: &Path, line: u64, problem: String) -> FormatError {
    FormatError::new(file.display(), format!("line {line}"), problem)
}

fn size(file: &Path) -> Result<u64> {
    let wrong = |e| FormatError::new(file.display(), "", format!("cannot be opened: {e}"));
    Ok(std::fs::metadata(file).map_err(wrong)?.len())
}
