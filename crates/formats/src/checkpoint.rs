//! A model on disk, whatever its form: a Hugging Face directory, a safetensors file with its
//! configuration beside it, or a GGUF file.

use std::collections::HashMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use crate::gguf::{self, Gguf, Metadata};
use crate::json::{self, Config, Strings};
use crate::mapped::Bytes;
use crate::names::{near_misses, quote, shorten};
use crate::safetensors::{self, Safetensors};
use crate::tensors::TensorView;
use crate::{FormatError, Result};

const WEIGHTS: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const CONFIG: &str = "config.json";
const GENERATION: &str = "generation_config.json";

/// The largest index that is read, in bytes; the largest published ones have some 10 MB.
const MAX_INDEX_BYTES: u64 = 100 << 20;

/// Where a checkpoint's settings come from.
#[derive(Debug)]
pub enum Source {
    /// Hugging Face files.
    Hf {
        /// `config.json`, an object.
        config: Value,
        /// `generation_config.json`, an object, where there is one.
        generation: Option<Value>,
        /// The directory, for the tokenizer's files.
        dir: PathBuf,
    },
    /// The keys of a GGUF file.
    Gguf(Metadata),
}

/// An opened checkpoint: its tensors, mapped, and its settings.
#[derive(Debug)]
pub struct Checkpoint {
    name: String,
    source: Source,
    /// The paths of the settings' files, for errors.
    config_file: String,
    generation_file: String,
    tensors: Vec<TensorView>,
    index: HashMap<Arc<str>, usize>,
    files: Vec<Arc<str>>,
    file_bytes: u64,
    license: Option<String>,
}

impl Checkpoint {
    /// Opens a Hugging Face directory, a `.safetensors` file with `config.json` beside it, a `.gguf`
    /// file (any part of a split one), or a directory with exactly one GGUF model.
    ///
    /// The tensors' bytes are mapped and not read: opening takes memory for names and settings only.
    pub fn open(path: &Path) -> Result<Checkpoint> {
        let wrong = |problem: String| FormatError::new(path.display(), "", problem);
        let kind = fs::metadata(path).map_err(|e| wrong(format!("cannot be opened: {e}")))?;
        if kind.is_dir() {
            return open_directory(path);
        }
        let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("");
        match extension.to_ascii_lowercase().as_str() {
            "gguf" => from_gguf(path, gguf::open(path)?),
            "safetensors" => {
                let directory = path.parent().filter(|p| !p.as_os_str().is_empty());
                open_hf(path, directory.unwrap_or(Path::new(".")), vec![path.to_owned()])
            }
            _ => Err(wrong(
                "expected a .gguf file, a .safetensors file or a directory that holds a model"
                    .into(),
            )),
        }
    }

    /// Reads a GGUF file that is part of the program; `name` is its name in errors.
    pub fn from_static_gguf(name: &str, bytes: &'static [u8]) -> Result<Checkpoint> {
        from_gguf(Path::new(name), gguf::read(name.into(), Bytes::from_static(bytes))?)
    }

    /// What was opened, as it was named.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where the settings come from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// `config.json` with typed access; `None` for a GGUF file.
    pub fn config(&self) -> Option<Result<Config<'_>>> {
        match &self.source {
            Source::Hf { config, .. } => Some(Config::new(&self.config_file, config)),
            Source::Gguf(_) => None,
        }
    }

    /// `generation_config.json` with typed access; `None` where there is none.
    pub fn generation(&self) -> Option<Result<Config<'_>>> {
        match &self.source {
            Source::Hf { generation, .. } => {
                generation.as_ref().map(|value| Config::new(&self.generation_file, value))
            }
            Source::Gguf(_) => None,
        }
    }

    /// The tensor of this name; the error says which names are near.
    pub fn tensor(&self, name: &str) -> Result<TensorView> {
        self.get(name).ok_or_else(|| {
            let near = near_misses(name, self.tensors.iter().map(|t| &*t.name));
            let mut problem = format!("is not among the {} tensors", self.tensors.len());
            if !near.is_empty() {
                let near: Vec<String> = near.into_iter().map(quote).collect();
                problem.push_str(&format!("; there is {}", near.join(", ")));
            }
            FormatError::new(&self.name, format!("tensor {}", quote(name)), problem)
        })
    }

    /// The tensor of this name, if there is one.
    pub fn get(&self, name: &str) -> Option<TensorView> {
        self.index.get(name).map(|i| self.tensors[*i].clone())
    }

    /// Every tensor, file by file, in file order.
    pub fn tensors(&self) -> impl ExactSizeIterator<Item = &TensorView> {
        self.tensors.iter()
    }

    /// The files of weights.
    pub fn files(&self) -> &[Arc<str>] {
        &self.files
    }

    /// Bytes of the files of weights, headers included.
    pub fn file_bytes(&self) -> u64 {
        self.file_bytes
    }

    /// Bytes of the tensors.
    pub fn tensor_bytes(&self) -> u64 {
        self.tensors.iter().map(|t| t.bytes.len() as u64).sum()
    }

    /// Values in the tensors: the number of parameters, plus buffers that the file stores.
    pub fn elements(&self) -> u64 {
        self.tensors.iter().map(|t| t.elements() as u64).sum()
    }

    /// What the checkpoint calls its licence: `general.license` of a GGUF file, `license` in the
    /// weights' metadata or in the head of the directory's README.md.
    pub fn license(&self) -> Option<&str> {
        self.license.as_deref()
    }

    fn new(path: &Path, source: Source, tensors: Vec<TensorView>) -> Result<Checkpoint> {
        let mut index = HashMap::with_capacity(tensors.len());
        for (i, tensor) in tensors.iter().enumerate() {
            if let Some(first) = index.insert(tensor.name.clone(), i) {
                let first: &TensorView = &tensors[first];
                return Err(tensor.wrong(format!("is also in {}", first.file)));
            }
        }
        let settings = |file: &str| match &source {
            Source::Hf { dir, .. } => dir.join(file).display().to_string(),
            Source::Gguf(metadata) => metadata.file().to_string(),
        };
        Ok(Checkpoint {
            name: path.display().to_string(),
            config_file: settings(CONFIG),
            generation_file: settings(GENERATION),
            source,
            tensors,
            index,
            files: Vec::new(),
            file_bytes: 0,
            license: None,
        })
    }
}

fn from_gguf(path: &Path, gguf: Gguf) -> Result<Checkpoint> {
    let license = gguf.metadata.opt_str("general.license")?.map(str::to_owned);
    let checkpoint = Checkpoint::new(path, Source::Gguf(gguf.metadata), gguf.tensors)?;
    Ok(Checkpoint { files: gguf.files, file_bytes: gguf.file_bytes, license, ..checkpoint })
}

/// Finds out what a directory holds: one file of weights, an index of several, or a GGUF model.
fn open_directory(directory: &Path) -> Result<Checkpoint> {
    let single = directory.join(WEIGHTS);
    if single.exists() {
        return open_hf(directory, directory, vec![single]);
    }
    if directory.join(INDEX).exists() {
        return open_index(directory);
    }
    let names = list(directory)?;
    let models: Vec<&PathBuf> = names.iter().filter(|p| is_gguf_model(p)).collect();
    let wrong = |problem: String| FormatError::new(directory.display(), "", problem);
    match models[..] {
        [one] => from_gguf(directory, gguf::open(one)?),
        [] if names.iter().any(|p| p.extension().is_some_and(|e| e == "bin" || e == "pth")) => {
            Err(wrong(format!(
                "has weights only as pickle files, which can run code and are not read; convert \
                 them to {WEIGHTS}"
            )))
        }
        [] => Err(wrong(format!("holds no model: expected {WEIGHTS}, {INDEX} or a .gguf file"))),
        _ => {
            let names: Vec<_> = models.iter().filter_map(|p| p.file_name()).take(8).collect();
            Err(wrong(format!("holds several GGUF models, name one of them: {names:?}")))
        }
    }
}

/// Whether a file is a vision tower beside a GGUF model, by the name that llama.cpp gives it.
pub fn is_projector(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
    name.contains("mmproj") && name.ends_with(".gguf")
}

/// Whether a file stands for a GGUF model: whole, or the first part of a split one.
fn is_gguf_model(path: &Path) -> bool {
    path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"))
        && !is_projector(path)
        && gguf::PartNames::of(path).is_none_or(|names| names.number == 1)
}

fn list(directory: &Path) -> Result<Vec<PathBuf>> {
    let unreadable = |e: std::io::Error| {
        FormatError::new(directory.display(), "", format!("cannot be read: {e}"))
    };
    let entries = fs::read_dir(directory).map_err(unreadable)?;
    let mut names = entries
        .map(|e| e.map(|e| e.path()))
        .collect::<std::io::Result<Vec<_>>>()
        .map_err(unreadable)?;
    names.sort();
    Ok(names)
}

/// `model.safetensors.index.json`: which file each tensor is in.
#[derive(Deserialize)]
struct Index {
    weight_map: Strings,
}

fn open_index(directory: &Path) -> Result<Checkpoint> {
    let path = directory.join(INDEX);
    let wrong = |field: &str, problem: String| FormatError::new(path.display(), field, problem);
    let bytes = json::read_bounded(&path, MAX_INDEX_BYTES)?;
    let index: Index =
        serde_json::from_slice(&bytes).map_err(|e| wrong("weight_map", shorten(e.to_string())))?;
    let map = index.weight_map.0;
    if map.is_empty() {
        return Err(wrong("weight_map", "is empty: the index names no tensor".into()));
    }
    let mut files: Vec<&str> = map.iter().map(|(_, file)| file.as_str()).collect();
    files.sort_unstable();
    files.dedup();
    if let Some(outside) = files.iter().find(|f| !is_plain_name(f)) {
        let problem = format!(
            "expected the name of a .safetensors file in this directory, found {}",
            quote(outside)
        );
        return Err(wrong("weight_map", problem));
    }
    let paths: Vec<PathBuf> = files.iter().map(|f| directory.join(f)).collect();
    let checkpoint = open_hf(directory, directory, paths)?;
    for (tensor, file) in &map {
        let expected = directory.join(file);
        let found = checkpoint.get(tensor);
        if found.is_none_or(|t| *t.file != *expected.display().to_string()) {
            let problem = format!("is not in {}, where the index has it", quote(file));
            return Err(wrong(&format!("weight_map {}", quote(tensor)), problem));
        }
    }
    Ok(checkpoint)
}

/// A file's name without any directory, on every system.
fn is_plain_name(name: &str) -> bool {
    let special = |c: char| c.is_control() || ['/', '\\', ':'].contains(&c);
    name.ends_with(".safetensors") && !name.starts_with('.') && !name.contains(special)
}

/// Opens Hugging Face files: the weights in `paths`, the settings in `directory`.
fn open_hf(path: &Path, directory: &Path, paths: Vec<PathBuf>) -> Result<Checkpoint> {
    let config = json::read_object(&directory.join(CONFIG))?;
    let generation = directory.join(GENERATION);
    let generation = if generation.exists() { Some(json::read_object(&generation)?) } else { None };
    let mut tensors = Vec::new();
    let mut license = None;
    let mut files = Vec::new();
    let mut file_bytes = 0;
    for path in paths {
        let file: Arc<str> = path.display().to_string().into();
        let bytes = Bytes::open(&path)?;
        file_bytes += bytes.len() as u64;
        let Safetensors { tensors: here, metadata } = safetensors::read(file.clone(), bytes)?;
        tensors.extend(here);
        files.push(file);
        license = license.or(metadata.into_iter().find(|(k, _)| k == "license").map(|(_, v)| v));
    }
    let license = license.or_else(|| readme_license(directory));
    let source = Source::Hf { config, generation, dir: directory.to_owned() };
    let checkpoint = Checkpoint::new(path, source, tensors)?;
    Ok(Checkpoint { files, file_bytes, license, ..checkpoint })
}

/// The line `license: NAME` in the settings that a model card starts with, between lines of `---`.
/// A card is for people: what cannot be read is no error.
fn readme_license(directory: &Path) -> Option<String> {
    const HEAD: u64 = 64 << 10;
    let path = directory.join("README.md");
    if !fs::metadata(&path).ok()?.is_file() {
        return None;
    }
    let mut head = Vec::new();
    fs::File::open(path).ok()?.take(HEAD).read_to_end(&mut head).ok()?;
    let head = String::from_utf8_lossy(&head);
    let mut lines = head.lines();
    if lines.next()?.trim_end() != "---" {
        return None;
    }
    let mut settings = lines.take_while(|line| line.trim_end() != "---");
    let name = settings.find_map(|line| line.strip_prefix("license:"))?;
    let name = name.trim().trim_matches(['"', '\'']);
    (!name.is_empty()).then(|| name.to_owned())
}
