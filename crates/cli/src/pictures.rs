//! Pictures in the prompts of `run` and `chat`.

use crate::model::{self, Ready, Weights};
use crate::show;
use lapidary_engine::{Gallery, Picture, read_picture};
use lapidary_formats::chat::Message;
use lapidary_formats::{Checkpoint, Source, is_projector};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The vision tower, loaded when the first picture comes, and what it saw: each picture is read once.
#[derive(Default)]
pub struct Pictures {
    /// `--mmproj`.
    projector: Option<PathBuf>,
    gallery: Option<Gallery>,
    seen: HashMap<String, Arc<Vec<f32>>>,
}

/// The content of a turn that shows `pictures` (files, data URLs or `-`) before its words.
pub fn content(pictures: &[String], text: &str) -> Value {
    let part = |source: &String| json!({"type": "image", "url": source});
    let mut parts: Vec<Value> = pictures.iter().map(part).collect();
    parts.push(json!({"type": "text", "text": text}));
    parts.into()
}

fn is_picture(part: &Value) -> bool {
    matches!(part["type"].as_str(), Some("image" | "image_url"))
}

/// The files and data URLs that a conversation shows, in their order.
fn sources(messages: &[Message]) -> Result<Vec<&str>> {
    let parts = messages.iter().filter_map(|m| m.content.as_array()).flatten();
    parts.filter(|p| is_picture(p)).map(source).collect()
}

fn source(part: &Value) -> Result<&str> {
    let url = part["url"].as_str().or(part["image_url"]["url"].as_str());
    url.ok_or_else(|| format!("a picture without \"url\": {part}").into())
}

impl Pictures {
    /// Nothing seen yet; `projector`: the file of `--mmproj`.
    pub fn new(projector: Option<PathBuf>) -> Self {
        Self { projector, ..Self::default() }
    }

    /// Forgets all pictures; the tower stays.
    pub fn forget(&mut self) {
        self.seen.clear();
    }

    /// The rows that stand for a picture.
    ///
    /// # Errors
    /// If the model can't see, or the picture can't be read.
    pub fn look(&mut self, weights: &mut Weights, source: &str) -> Result<Arc<Vec<f32>>> {
        if let Some(seen) = self.seen.get(source) {
            return Ok(seen.clone());
        }
        let gallery = match self.gallery.take() {
            Some(gallery) => gallery,
            None => open(weights, self.projector.as_deref())?,
        };
        let gallery = self.gallery.insert(gallery);
        let rows = gallery.encode(&mut weights.cpu, &read_picture(source)?);
        self.seen.insert(source.to_owned(), rows.clone());
        Ok(rows)
    }

    /// The token ids of a conversation, ready for an answer, and the pictures among them.
    ///
    /// # Errors
    /// As [`Pictures::look`]; or if the template refuses the conversation.
    pub fn prompt(
        &mut self,
        ready: &mut Ready,
        messages: &[Message],
    ) -> Result<(Vec<u32>, Vec<Picture>)> {
        let mut shown = Vec::new();
        for source in sources(messages)? {
            shown.push(self.look(&mut ready.weights, source)?);
        }
        let text = &ready.text;
        let Some(gallery) = self.gallery.as_ref().filter(|_| !shown.is_empty()) else {
            let rendered = text.render_with(messages, true, model::now(), ready.template())?;
            return Ok((text.encode_rendered(&rendered), vec![]));
        };
        // Where a picture came from is not the template's business.
        let mut bare = messages.to_vec();
        let parts = bare.iter_mut().filter_map(|m| m.content.as_array_mut()).flatten();
        parts.filter(|p| is_picture(p)).for_each(|p| *p = json!({"type": "image"}));
        let rendered = text.render_with(&bare, true, model::now(), ready.template())?;
        let rendered = gallery.hang(&rendered, &shown, &text.tokenizer)?;
        let ids = text.encode_rendered(&rendered);
        let places = gallery.places(&ids, &shown)?;
        Ok((ids, places))
    }
}

fn open(weights: &mut Weights, projector: Option<&Path>) -> Result<Gallery> {
    let checkpoint = &weights.checkpoint;
    if let Source::Hf { .. } = checkpoint.source() {
        if projector.is_some() {
            return Err("--mmproj: a Hugging Face directory has its own vision tower".into());
        }
        let family = weights.loaded.model.info().family;
        return Gallery::open(checkpoint, &mut weights.cpu)?.ok_or_else(|| {
            format!("pictures: this {family} checkpoint has no vision tower that Lapidary runs")
                .into()
        });
    }
    let found = match projector {
        Some(path) => path.to_owned(),
        None => beside(checkpoint)?,
    };
    if projector.is_none() {
        show::note(&format!("note: pictures are seen by {}", found.display()));
    }
    let projector = Checkpoint::open(&found)?;
    Ok(Gallery::with_projector(checkpoint, &projector, &mut weights.cpu)?)
}

/// The mmproj files in the folder of `file`, by name.
pub fn all_beside(file: &Path) -> Vec<PathBuf> {
    let folder = file.parent().filter(|p| !p.as_os_str().is_empty());
    let files = std::fs::read_dir(folder.unwrap_or(Path::new("."))).into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> = files.map(|f| f.path()).filter(|p| is_projector(p)).collect();
    found.sort();
    found
}

/// The one mmproj file in the folder of a GGUF file.
fn beside(checkpoint: &Checkpoint) -> Result<PathBuf> {
    let mut found = all_beside(checkpoint.files().first().map_or("", |f| &**f).as_ref());
    match found.len() {
        1 => Ok(found.remove(0)),
        0 => Err("pictures: a GGUF model sees with its mmproj file, and none lies beside it: say \
                  --mmproj FILE, or give --model a Hugging Face directory"
            .into()),
        _ => {
            let names: Vec<String> = found.iter().map(|p| p.display().to_string()).collect();
            let all = names.join(", ");
            Err(format!(
                "pictures: several mmproj files lie beside the model ({all}): say --mmproj"
            )
            .into())
        }
    }
}
