//! Checkpoints of a run: folders that appear whole or not at all.

use crate::data::StreamState;
use lapidary_formats::atomic::write_file;
use lapidary_formats::{FormatError, Result};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Where a run stands, beside the trainer's own state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct RunState {
    /// Steps done.
    pub step: u64,
    /// Where the data stands.
    pub stream: StreamState,
}

const STATE: &str = "run.json";
/// The trainer's state in a checkpoint's folder.
pub(super) const TRAINER: &str = "trainer.safetensors";

/// The folder of checkpoints.
pub(super) struct Checkpoints {
    folder: PathBuf,
    keep: usize,
}

impl Checkpoints {
    /// The checkpoints in `run`. What a killed process left half written is removed.
    pub(super) fn open(run: &Path, keep: usize) -> Result<Self> {
        let folder = run.join("checkpoints");
        fs::create_dir_all(&folder).map_err(|e| wrong(&folder, "cannot be made", &e))?;
        let new = Self { folder, keep };
        for path in new.list()? {
            if name(&path).starts_with('.') {
                fs::remove_dir_all(&path).map_err(|e| wrong(&path, "cannot be removed", &e))?;
            }
        }
        Ok(new)
    }

    fn list(&self) -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(&self.folder).map_err(|e| wrong(&self.folder, "", &e))?;
        let mut all: Vec<PathBuf> = entries.filter_map(|e| Some(e.ok()?.path())).collect();
        all.sort();
        Ok(all)
    }

    /// The whole checkpoints, oldest first.
    fn whole(&self) -> Result<Vec<PathBuf>> {
        let mut all = self.list()?;
        all.retain(|p| step_of(p).is_some());
        Ok(all)
    }

    /// The last checkpoint, if there is one: its folder and what it holds of the run.
    pub(super) fn last(&self) -> Result<Option<(PathBuf, RunState)>> {
        let Some(folder) = self.whole()?.pop() else { return Ok(None) };
        let path = folder.join(STATE);
        let bytes = fs::read(&path).map_err(|e| wrong(&path, "cannot be read", &e))?;
        let state = serde_json::from_slice(&bytes)
            .map_err(|e| FormatError::new(path.display(), "", format!("damaged: {e}")))?;
        Ok(Some((folder, state)))
    }

    /// Writes a checkpoint: `trainer` writes the trainer's part at the path that it is given.
    ///
    /// # Errors
    /// If something can't be written, a full disk for example; older checkpoints stay as they are.
    pub(super) fn save(
        &self,
        state: &RunState,
        trainer: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<PathBuf> {
        let name = format!("step-{:09}", state.step);
        let (part, place) = (self.folder.join(format!(".{name}.part")), self.folder.join(&name));
        let written = self.write(&part, state, trainer).and_then(|()| {
            if place.exists() {
                // The same step again: a stop right after a checkpoint.
                self.remove(&place)?;
            }
            fs::rename(&part, &place).map_err(|e| wrong(&place, "cannot be written", &e))
        });
        if let Err(e) = written {
            let _ = fs::remove_dir_all(&part);
            return Err(e);
        }
        sync(&self.folder);
        let whole = self.whole()?;
        for old in &whole[..whole.len().saturating_sub(self.keep)] {
            self.remove(old)?;
        }
        Ok(place)
    }

    fn write(
        &self,
        part: &Path,
        state: &RunState,
        trainer: impl FnOnce(&Path) -> Result<()>,
    ) -> Result<()> {
        let _ = fs::remove_dir_all(part);
        fs::create_dir(part).map_err(|e| wrong(part, "cannot be made", &e))?;
        trainer(&part.join(TRAINER))?;
        let json =
            serde_json::to_vec(state).map_err(|e| FormatError::new(part.display(), STATE, e))?;
        write_file(&part.join(STATE), &json)?;
        // Files first, then the folder, then its name: after a power cut a whole name is a whole
        // checkpoint.
        for entry in fs::read_dir(part).map_err(|e| wrong(part, "", &e))?.flatten() {
            let path = entry.path();
            let synced = File::open(&path).and_then(|f| f.sync_all());
            synced.map_err(|e| wrong(&path, "cannot be written", &e))?;
        }
        sync(part);
        Ok(())
    }

    /// Takes a checkpoint's name away before its files, so that no half of it can be found.
    fn remove(&self, folder: &Path) -> Result<()> {
        let hidden = self.folder.join(format!(".{}.old", name(folder)));
        fs::rename(folder, &hidden)
            .and_then(|()| fs::remove_dir_all(&hidden))
            .map_err(|e| wrong(folder, "cannot be removed", &e))
    }
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn step_of(path: &Path) -> Option<u64> {
    name(path).strip_prefix("step-")?.parse().ok()
}

fn wrong(path: &Path, what: &str, e: &std::io::Error) -> FormatError {
    let what = if what.is_empty() { String::new() } else { format!("{what}: ") };
    FormatError::new(path.display(), "", format!("{what}{e}"))
}

/// Makes sure that a folder's names are on the disk.
fn sync(folder: &Path) {
    if cfg!(unix)
        && let Ok(folder) = File::open(folder)
    {
        let _ = folder.sync_all();
    }
}
