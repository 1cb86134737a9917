//! What a run writes down: a line for each step, as JSON and as CSV, measurements and samples.

use lapidary_formats::atomic::write_file;
use lapidary_formats::{FormatError, Result};
use serde::{Deserialize, Serialize};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// One line of `log.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "lowercase")]
pub enum Entry {
    /// A step.
    Step {
        /// Steps done, this one included.
        step: u64,
        /// Mean loss: nats for each learnt token, or the preference loss.
        loss: f64,
        /// The learning rate.
        lr: f64,
        /// The gradient's length before it was shortened.
        grad_norm: f64,
        /// Tokens computed in the step.
        tokens: usize,
        /// Tokens computed since the run began.
        tokens_seen: u64,
        /// Seconds that the step took.
        seconds: f64,
        /// DPO: the share of pairs whose better answer gained on the worse one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        preferred: Option<f64>,
    },
    /// A held-out loss.
    Evaluation {
        /// Steps done.
        step: u64,
        /// The source.
        source: String,
        /// Nats for each learnt token.
        loss: f64,
        /// Bits for each byte of text, which models with different tokenizers share.
        bits_per_byte: f64,
        /// Tokens measured.
        tokens: usize,
    },
    /// What the model said.
    Sample {
        /// Steps done.
        step: u64,
        /// What it was given.
        prompt: String,
        /// What it answered.
        text: String,
    },
}

impl Entry {
    /// Steps done when it was written.
    pub fn step(&self) -> u64 {
        match self {
            Entry::Step { step, .. }
            | Entry::Evaluation { step, .. }
            | Entry::Sample { step, .. } => *step,
        }
    }
}

const JSONL: &str = "log.jsonl";
const CSV: &str = "log.csv";
const HEAD: &str = "step,loss,lr,grad_norm,tokens,tokens_seen,seconds\n";

/// The log of a run.
pub(super) struct Log {
    folder: PathBuf,
    jsonl: File,
    csv: File,
    entries: Vec<Entry>,
}

impl Log {
    /// Whether the folder of a run has a log with steps.
    pub(super) fn holds_steps(run: &Path) -> bool {
        std::fs::metadata(run.join(CSV)).is_ok_and(|f| f.len() > HEAD.len() as u64)
    }

    /// The log in `folder` as it was after `steps` steps: what came later is dropped, because those
    /// steps are done again. `None`: an empty log.
    pub(super) fn open(folder: &Path, steps: Option<u64>) -> Result<Self> {
        // Lines are kept as they were written: numbers that are read and written again may differ
        // in their last digit.
        let kept = |step: Option<u64>| step.zip(steps).is_some_and(|(step, most)| step <= most);
        let path = folder.join(JSONL);
        let (mut entries, mut lines) = (Vec::new(), String::new());
        for line in old_lines(&path)? {
            // A line that a kill cut short is the last one, and of a later step.
            let Ok(entry) = serde_json::from_str::<Entry>(&line) else { continue };
            if kept(Some(entry.step())) {
                entries.push(entry);
                lines += &line;
                lines.push('\n');
            }
        }
        write_file(&path, lines.as_bytes())?;
        let path = folder.join(CSV);
        let mut table = HEAD.to_owned();
        for line in old_lines(&path)? {
            let step = line.split(',').next().and_then(|step| step.parse().ok());
            if kept(step) {
                table += &line;
                table.push('\n');
            }
        }
        write_file(&path, table.as_bytes())?;
        let append = |name: &str| {
            let path = folder.join(name);
            OpenOptions::new().append(true).open(&path).map_err(|e| wrong(&path, &e))
        };
        let (jsonl, csv) = (append(JSONL)?, append(CSV)?);
        Ok(Self { folder: folder.to_owned(), jsonl, csv, entries })
    }

    /// Writes one entry down.
    pub(super) fn add(&mut self, entry: Entry) -> Result<()> {
        let path = self.folder.join(JSONL);
        self.jsonl.write_all(json_line(&entry).as_bytes()).map_err(|e| wrong(&path, &e))?;
        if let Some(line) = csv_line(&entry) {
            let path = self.folder.join(CSV);
            self.csv.write_all(line.as_bytes()).map_err(|e| wrong(&path, &e))?;
        }
        self.entries.push(entry);
        Ok(())
    }

    /// All entries so far.
    pub(super) fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// Tokens computed so far.
    pub(super) fn tokens_seen(&self) -> u64 {
        let seen = |e: &Entry| match e {
            Entry::Step { tokens_seen, .. } => Some(*tokens_seen),
            _ => None,
        };
        self.entries.iter().rev().find_map(seen).unwrap_or(0)
    }
}

/// The entries of a finished or running run.
///
/// # Errors
/// If there is no log.
pub fn read_log(folder: &Path) -> Result<Vec<Entry>> {
    let path = folder.join(JSONL);
    let text = std::fs::read_to_string(&path).map_err(|e| wrong(&path, &e))?;
    Ok(text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect())
}

/// The lines of a file; none if it isn't there.
fn old_lines(path: &Path) -> Result<Vec<String>> {
    if !path.is_file() {
        return Ok(Vec::new());
    }
    let file = File::open(path).map_err(|e| wrong(path, &e))?;
    let lines = BufReader::new(file).lines().collect::<std::io::Result<_>>();
    lines.map_err(|e| wrong(path, &e))
}

fn wrong(path: &Path, e: &std::io::Error) -> FormatError {
    FormatError::new(path.display(), "", e)
}

fn json_line(entry: &Entry) -> String {
    serde_json::to_string(entry).unwrap_or_default() + "\n"
}

fn csv_line(entry: &Entry) -> Option<String> {
    let Entry::Step { step, loss, lr, grad_norm, tokens, tokens_seen, seconds, .. } = entry else {
        return None;
    };
    Some(format!("{step},{loss},{lr},{grad_norm},{tokens},{tokens_seen},{seconds}\n"))
}
