//! Vision towers: pictures to rows that stand among a text's embeddings.

use crate::load::Weights;
use crate::pixels::Patches;
use crate::settings::Settings;
use crate::{gemma4_vision, siglip};
use lapidary_formats::gguf::Metadata;
use lapidary_formats::{Checkpoint, FormatError, Result, Rgb, Source};
use lapidary_ops::Ops;

/// The part of a model that sees.
pub trait Vision: Send + Sync {
    /// What the tower reads of a picture: its patches.
    fn prepare(&self, image: &Rgb) -> Patches;
    /// The embeddings of a picture, row by row of the text model's width.
    fn encode(&self, ops: &mut dyn Ops, patches: &Patches) -> Vec<f32>;
}

/// A tower, and how a prompt speaks of a picture.
pub struct Eyes {
    /// The tower.
    pub vision: Box<dyn Vision>,
    /// The token that stands for each row of a picture.
    pub placeholder: u32,
    /// The token before the rows, where there is one.
    pub begin: Option<u32>,
    /// The token behind them.
    pub end: Option<u32>,
    /// Whether templates mark a picture by `begin` (Gemma 3), not by the placeholder (Gemma 4).
    pub marked_by_begin: bool,
    /// Width of a row.
    pub width: usize,
}

/// Rows of a picture at most, from the settings alone; `None` if [`load_vision`] finds no tower.
///
/// # Errors
/// If a setting is missing or of the wrong type.
pub fn picture_rows(checkpoint: &Checkpoint) -> Result<Option<usize>> {
    let settings = Settings::new(checkpoint)?;
    let Some(root) = settings.root().cloned() else { return Ok(None) };
    let Some(vision) = root.opt_object("vision_config")? else { return Ok(None) };
    let architecture = settings.architecture();
    Ok(match architecture {
        "gemma3" => Some(root.opt_usize("mm_tokens_per_image")?.unwrap_or(siglip::TOKENS)),
        "paligemma" => {
            let s = Settings::Hf { text: vision, root, architecture, defaults: siglip::DEFAULTS };
            let side = s.count("image_size", "", 1..=4096)?;
            Some((side / s.count("patch_size", "", 1..=256)?).pow(2))
        }
        "gemma4" | "gemma4_unified" => Some(gemma4_vision::most_rows(checkpoint, &root)?),
        _ => None,
    })
}

/// Loads the vision tower of `checkpoint`; `None` if it has none.
///
/// # Errors
/// As [`crate::load`].
pub fn load_vision(checkpoint: &Checkpoint, ops: &mut dyn Ops) -> Result<Option<Eyes>> {
    let settings = Settings::new(checkpoint)?;
    let Some(root) = settings.root().cloned() else { return Ok(None) };
    let Some(vision) = root.opt_object("vision_config")? else { return Ok(None) };
    let Some(width) = settings.opt_count("hidden_size", "", crate::settings::WIDTH)? else {
        return Ok(None);
    };
    let id = |keys: [&str; 2]| -> Result<Option<u32>> {
        Ok(settings.token_ids(&keys)?.first().copied())
    };
    let Some(placeholder) = id(["image_token_id", "image_token_index"])? else { return Ok(None) };
    let (begin, end) =
        (id(["boi_token_id", "boi_token_index"])?, id(["eoi_token_id", "eoi_token_index"])?);
    let architecture = settings.architecture();
    let s = Settings::Hf { text: vision, root, architecture, defaults: &[] };
    let mut w = Weights::new(checkpoint, ops, &[]);
    let vision: Box<dyn Vision> = match architecture {
        "gemma3" => siglip::gemma3(&s.with_defaults(siglip::DEFAULTS), &mut w, width)?,
        "paligemma" => siglip::paligemma(&s.with_defaults(siglip::DEFAULTS), &mut w, width)?,
        "gemma4" => gemma4_vision::tower(&s.with_defaults(gemma4_vision::DEFAULTS), &mut w, width)?,
        "gemma4_unified" => {
            gemma4_vision::unified(&s.with_defaults(gemma4_vision::DEFAULTS), &mut w, width)?
        }
        _ => return Ok(None),
    };
    let marked_by_begin = architecture == "gemma3";
    Ok(Some(Eyes { vision, placeholder, begin, end, marked_by_begin, width }))
}

/// An "mmproj" file of llama.cpp, as its settings describe it.
struct Projector {
    /// Settings of the text model.
    words: Metadata,
    metadata: Metadata,
    kind: Kind,
    family: &'static str,
    /// Width of the text model's embeddings.
    width: usize,
}

/// Towers that such files hold.
#[derive(Clone, Copy)]
enum Kind {
    Gemma3,
    Gemma4,
    /// Gemma 4 12B's.
    Unified,
}

impl Projector {
    /// Where every projector's last matrix stands.
    const LAST: &str = "mm.input_projection.weight";

    fn new(text: &Checkpoint, projector: &Checkpoint) -> Result<Self> {
        let gguf = |checkpoint: &Checkpoint| match checkpoint.source() {
            Source::Gguf(metadata) => Ok(metadata.clone()),
            Source::Hf { .. } => {
                let problem =
                    "a GGUF file was expected: a Hugging Face directory has its own vision tower";
                Err(FormatError::new(checkpoint.name(), "", problem))
            }
        };
        let (words, metadata) = (gguf(text)?, gguf(projector)?);
        let architecture = "general.architecture";
        if metadata.str(architecture)? != "clip" {
            let problem = "\"clip\" was expected: this is no mmproj file";
            return Err(metadata.wrong(architecture, problem));
        }
        let keys = ["clip.vision.projector_type", "clip.projector_type"];
        let key = keys.into_iter().find(|k| metadata.get(k).is_some()).unwrap_or(keys[1]);
        let name = metadata.str(key)?;
        let (kind, family, mean) = match name {
            "gemma3" => (Kind::Gemma3, "gemma3", 0.5),
            "gemma4v" => (Kind::Gemma4, "gemma4", 0.0),
            "gemma4uv" => (Kind::Unified, "gemma4", 0.0),
            _ => {
                let problem = format!("\"{name}\": gemma3, gemma4v or gemma4uv was expected");
                return Err(metadata.wrong(key, problem));
            }
        };
        let found = words.str(architecture)?;
        if found != family {
            let problem = format!("\"{name}\" is for {family}, and {} is {found}", text.name());
            return Err(metadata.wrong(key, problem));
        }
        expect_all(&metadata, "clip.vision.image_mean", mean)?;
        expect_all(&metadata, "clip.vision.image_std", if mean == 0.0 { 1.0 } else { mean })?;
        let width = crate::describe(text)?.width;
        let shape = projector.tensor(Self::LAST)?.shape;
        // Gemma 3's stands transposed.
        let side = if matches!(kind, Kind::Gemma3) { shape.last() } else { shape.first() };
        if side != Some(&width) {
            let problem = format!(
                "{shape:?}: rows of {width} were expected, the width of {}: this is another \
                 model's tower",
                text.name()
            );
            return Err(FormatError::new(projector.name(), Self::LAST, problem));
        }
        Ok(Self { words, metadata, kind, family, width })
    }

    fn settings(&self) -> Settings<'_> {
        Settings::Gguf { metadata: &self.metadata, architecture: "clip.vision" }
    }
}

/// Rows of a picture at most that the vision tower in `projector`, an "mmproj" file, makes for the text
/// model in `text`, a GGUF file: from the settings alone.
///
/// # Errors
/// As [`load_projector`], as far as headers tell.
pub fn projector_rows(text: &Checkpoint, projector: &Checkpoint) -> Result<usize> {
    let p = Projector::new(text, projector)?;
    match p.kind {
        Kind::Gemma3 => siglip::projector_rows(&p.settings()),
        Kind::Gemma4 | Kind::Unified => Ok(gemma4_vision::BUDGET),
    }
}

/// Loads the vision tower in `projector`, an "mmproj" file of llama.cpp, for the text model in `text`,
/// a GGUF file.
///
/// # Errors
/// As [`crate::load`]; and if either is no such file, or they do not belong together.
pub fn load_projector(
    text: &Checkpoint,
    projector: &Checkpoint,
    ops: &mut dyn Ops,
) -> Result<Eyes> {
    let p = Projector::new(text, projector)?;
    let (s, width) = (p.settings(), p.width);
    let mut w = Weights::new(projector, ops, &[]);
    let vision = match p.kind {
        Kind::Gemma3 => siglip::gemma3(&s, &mut w, width)?,
        Kind::Gemma4 => gemma4_vision::tower(&s, &mut w, width)?,
        Kind::Unified => gemma4_vision::unified(&s, &mut w, width)?,
    };
    let (placeholder, begin, end) = tokens(&p.words, p.family)?;
    let marked_by_begin = p.family == "gemma3";
    let (begin, end) = (Some(begin), Some(end));
    Ok(Eyes { vision, placeholder, begin, end, marked_by_begin, width })
}

/// The colours' mean or spread is a constant here.
fn expect_all(metadata: &Metadata, key: &str, expected: f32) -> Result<()> {
    match metadata.opt_f32s(key)? {
        Some(found) if found.iter().any(|x| *x != expected) => {
            Err(metadata.wrong(key, format!("{found:?}: {expected} was expected of each colour")))
        }
        _ => Ok(()),
    }
}

/// The tokens that stand for a row of a picture, before and behind it.
fn tokens(words: &Metadata, family: &str) -> Result<(u32, u32, u32)> {
    let key = "tokenizer.ggml.tokens";
    let all = words.strs(key)?;
    let id = |piece: &str| all.iter().position(|t| t == piece).map(|i| i as u32);
    let known = |piece: &str| {
        id(piece).ok_or_else(|| words.wrong(key, format!("{piece}, for pictures, is missing")))
    };
    if family != "gemma3" {
        return Ok((known("<|image|>")?, known("<|image>")?, known("<image|>")?));
    }
    // Gemma 3's own is beyond the vocabulary that files keep; any other does, for the rows replace it.
    let placeholder = id("<image_soft_token>").map_or_else(|| known("<pad>"), Ok)?;
    Ok((placeholder, known("<start_of_image>")?, known("<end_of_image>")?))
}
