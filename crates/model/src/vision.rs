//! Vision towers: pictures to rows that stand among a text's embeddings.

use crate::load::Weights;
use crate::pixels::Patches;
use crate::settings::Settings;
use crate::{gemma4_vision, siglip};
use lapidary_formats::{Checkpoint, Result, Rgb};
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
