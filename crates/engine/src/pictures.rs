//! Pictures in prompts: files and data URLs to rows, and the tokens that stand for them.

use crate::session::Picture;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapidary_formats::chat::Rendered;
use lapidary_formats::tokenizer::Tokenizer;
use lapidary_formats::{Checkpoint, FormatError, Result, Rgb};
use lapidary_model::{Eyes, load_projector, load_vision};
use lapidary_ops::Ops;
use std::io::Read;
use std::sync::Arc;

/// Why a prompt with pictures can't be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PictureError {
    /// The prompt speaks of another number of pictures than were given.
    Count {
        /// Places for pictures in the prompt.
        places: usize,
        /// Pictures.
        pictures: usize,
    },
    /// The tokenizer does not know the tokens that stand for pictures.
    Tokens,
}

impl std::fmt::Display for PictureError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            PictureError::Count { places, pictures } => write!(
                f,
                "the prompt has places for {places} pictures and {pictures} were given \
                 (does the model's chat template know pictures?)"
            ),
            PictureError::Tokens => {
                f.write_str("the tokenizer does not know the tokens that stand for a picture")
            }
        }
    }
}

impl std::error::Error for PictureError {}

/// A model's vision tower, and how its prompts speak of pictures.
pub struct Gallery {
    eyes: Eyes,
}

impl Gallery {
    /// The vision tower of `checkpoint`; `None` if it has none.
    ///
    /// # Errors
    /// If it is damaged or unsupported.
    pub fn open(checkpoint: &Checkpoint, ops: &mut dyn Ops) -> Result<Option<Self>> {
        Ok(load_vision(checkpoint, ops)?.map(|eyes| Self { eyes }))
    }

    /// The vision tower in `projector`, an "mmproj" file, for the GGUF file `text`.
    ///
    /// # Errors
    /// If it is damaged or unsupported, or not for this text model.
    pub fn with_projector(
        text: &Checkpoint,
        projector: &Checkpoint,
        ops: &mut dyn Ops,
    ) -> Result<Self> {
        Ok(Self { eyes: load_projector(text, projector, ops)? })
    }

    /// The embeddings of a picture, row by row.
    pub fn encode(&self, ops: &mut dyn Ops, image: &Rgb) -> Arc<Vec<f32>> {
        let patches = self.eyes.vision.prepare(image);
        Arc::new(self.eyes.vision.encode(ops, &patches))
    }

    /// Puts the tokens of each picture in the place that the template marked for it. Marks that
    /// people spelt stay text.
    ///
    /// # Errors
    /// [`PictureError`].
    pub fn hang(
        &self,
        rendered: &Rendered,
        pictures: &[Arc<Vec<f32>>],
        tokenizer: &Tokenizer,
    ) -> std::result::Result<Rendered, PictureError> {
        let spelling =
            |id| tokenizer.piece(id).filter(|p| !p.is_empty()).ok_or(PictureError::Tokens);
        let one = spelling(self.eyes.placeholder)?;
        let begin = self.eyes.begin.map(spelling).transpose()?.unwrap_or_default();
        let end = self.eyes.end.map(spelling).transpose()?.unwrap_or_default();
        // Gemma 3's templates write the token before a picture, Gemma 4's the placeholder.
        let (mark, around) = if self.eyes.marked_by_begin { (begin, "\n\n") } else { (one, "") };
        let mut out = Rendered { text: String::new(), literal: Vec::new() };
        let (mut from, mut places) = (0, 0);
        for (at, _) in rendered.text.match_indices(mark) {
            if rendered.literal.iter().any(|r| r.contains(&at)) {
                continue;
            }
            if let Some(features) = pictures.get(places) {
                copy(rendered, from..at, &mut out);
                let rows = one.repeat(features.len() / self.eyes.width);
                out.text.push_str(&format!("{around}{begin}{rows}{end}{around}"));
                from = at + mark.len();
            }
            places += 1;
        }
        copy(rendered, from..rendered.text.len(), &mut out);
        if places != pictures.len() {
            return Err(PictureError::Count { places, pictures: pictures.len() });
        }
        Ok(out)
    }

    /// Where the pictures are among the tokens of a prompt made by [`Gallery::hang`].
    ///
    /// # Errors
    /// [`PictureError`], if the tokens are not such a prompt.
    pub fn places(
        &self,
        ids: &[u32],
        pictures: &[Arc<Vec<f32>>],
    ) -> std::result::Result<Vec<Picture>, PictureError> {
        let mut out = Vec::new();
        let mut next = 0;
        for features in pictures {
            let rows = features.len() / self.eyes.width;
            let here = ids[next..].iter().position(|id| *id == self.eyes.placeholder);
            let start = next + here.unwrap_or(ids.len() - next);
            let whole = ids
                .get(start..start + rows)
                .is_some_and(|all| all.iter().all(|id| *id == self.eyes.placeholder));
            if !whole {
                return Err(PictureError::Count { places: out.len(), pictures: pictures.len() });
            }
            out.push(Picture::new(start..start + rows, features.clone()));
            next = start + rows;
        }
        Ok(out)
    }
}

/// Appends a part of a prompt, with the ranges of what people spelt.
fn copy(from: &Rendered, part: std::ops::Range<usize>, to: &mut Rendered) {
    let at = to.text.len();
    to.text.push_str(&from.text[part.clone()]);
    let inside = from.literal.iter().filter(|r| part.start <= r.start && r.end <= part.end);
    to.literal.extend(inside.map(|r| r.start - part.start + at..r.end - part.start + at));
}

/// A picture from a file, from standard input (`-`), or from a `data:` URL.
///
/// # Errors
/// If it can't be read or is no picture.
pub fn read_picture(source: &str) -> Result<Rgb> {
    if let Some(url) = source.strip_prefix("data:") {
        let name = "the data URL of a picture";
        let wrong = |problem: &str| FormatError::new(name, "", problem);
        let (head, data) = url.split_once(',').ok_or_else(|| wrong("has no comma"))?;
        if !head.ends_with(";base64") {
            return Err(wrong("is not base64"));
        }
        let bytes = STANDARD.decode(data.trim()).map_err(|e| wrong(&format!("is damaged: {e}")))?;
        return Rgb::decode(&bytes, name);
    }
    if source.starts_with("http://") || source.starts_with("https://") {
        return Err(FormatError::new(source, "", "pictures are not fetched from the network"));
    }
    let most = lapidary_formats::MOST_IMAGE_BYTES as u64;
    let mut bytes = Vec::new();
    let (name, read) = if source == "-" {
        let mut input = std::io::stdin().lock().take(most + 1);
        ("standard input", input.read_to_end(&mut bytes))
    } else {
        let read = std::fs::File::open(source)
            .and_then(|file| file.take(most + 1).read_to_end(&mut bytes));
        (source, read)
    };
    read.map_err(|e| FormatError::new(name, "", e))?;
    Rgb::decode(&bytes, name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_picture_is_refused() {
        let bad = [
            "data:image/png,abc",
            "data:image/png;base64",
            "data:;base64,AAAA",
            "data:;base64,Zg!=",
            "/no/such",
            "https://example.org/a.png",
        ];
        for bad in bad {
            assert!(read_picture(bad).is_err(), "{bad}");
        }
    }
}
