//! Model families: a published checkpoint's weights to logits, one file for each family, read from
//! top to bottom, and a registry that finds the family of a checkpoint.
#![forbid(unsafe_code)]

mod embedding_gemma2;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma3n;
mod gemma4;
mod gemma4_vision;
mod gpt2;
mod gpt_neo;
mod llama;
mod load;
mod pixels;
mod settings;
mod siglip;
mod vision;

use lapidary_formats::{Checkpoint, Result};
use lapidary_ops::{BlockType, KvCache, KvLayout, Ops, Rows, Tensor, Weight};
use load::Weights;
pub use load::{AdapterFactors, Adapters, Slice, block_type};
pub use pixels::Patches;
pub use settings::Settings;
pub use vision::{Eyes, Vision, load_projector, load_vision, picture_rows, projector_rows};

/// What the rest of the program needs to know of a loaded model.
#[derive(Debug, Clone)]
pub struct Info {
    /// The family's name, as the registry has it.
    pub family: &'static str,
    /// Entries of the vocabulary: the width of the logits.
    pub vocab: usize,
    /// Blocks.
    pub layers: usize,
    /// Width of the residual stream.
    pub width: usize,
    /// Positions that the model was made for.
    pub context: usize,
    /// What it keeps for each token.
    pub kv: KvLayout,
    /// Whether rows see what comes after them: a model for embeddings, not for generation.
    pub encoder: bool,
    /// Whether the rows of a prompt, text and pictures, all see each other, and those of the answer
    /// what comes before them (PaliGemma).
    pub prefix: bool,
}

/// A model in memory. `embed`, `block` (for each layer in turn) and `head` make a forward pass;
/// they are separate so that a trainer can keep block inputs alone and run a block again.
pub trait Model: Send + Sync {
    /// Its figures.
    fn info(&self) -> &Info;
    /// The residual stream that enters layer 0: `[rows, width]`.
    fn embed(&self, ops: &mut dyn Ops, rows: &Rows) -> Tensor;
    /// Layer `layer`, residual included: `[rows, width]` to `[rows, width]`.
    fn block(
        &self,
        layer: usize,
        ops: &mut dyn Ops,
        x: Tensor,
        rows: &Rows,
        cache: &mut KvCache,
    ) -> Tensor;
    /// The last norm: `[rows, width]` to final hidden states `[rows, width]`.
    fn norm(&self, ops: &mut dyn Ops, x: &Tensor) -> Tensor;
    /// The last norm and the output projection: `[rows, width]` to logits `[rows, vocab]`.
    fn head(&self, ops: &mut dyn Ops, x: &Tensor) -> Tensor;
}

/// A model with what was found while loading it.
pub struct Loaded {
    /// The model.
    pub model: Box<dyn Model>,
    /// Bytes of weights that one decoding step reads.
    pub step_bytes: usize,
    /// How many weights of each type take part in the products of one token.
    pub weights: Vec<(BlockType, usize)>,
    /// Things that the user should know: tensors that the family has no use for, slower paths.
    pub notes: Vec<String>,
    /// Matrices that products read, by the names of their tensors: a tensor that is cut into parts
    /// comes several times.
    pub matrices: Vec<(String, Weight)>,
}

/// A family: the names that files know it by, and its loader.
struct Family {
    /// `model_type` in config.json, and `general.architecture` in GGUF.
    names: &'static [&'static str],
    /// Counts that the reference assumes where config.json is silent.
    defaults: &'static [(&'static str, usize)],
    info: fn(&Settings) -> Result<Info>,
    load: fn(&Settings, &mut Weights) -> Result<Box<dyn Model>>,
}

/// All families.
const FAMILIES: &[Family] = &[
    Family { names: &["gemma"], defaults: gemma::DEFAULTS, info: gemma::info, load: gemma::load },
    Family {
        names: &["gemma2", "vaultgemma"],
        defaults: gemma2::DEFAULTS,
        info: gemma2::info,
        load: gemma2::load,
    },
    Family {
        names: &["gemma3", "gemma3_text", "gemma-embedding"],
        defaults: gemma3::DEFAULTS,
        info: gemma3::info,
        load: gemma3::load,
    },
    Family {
        names: &["gemma3n", "gemma3n_text"],
        defaults: gemma3n::DEFAULTS,
        info: gemma3n::info,
        load: gemma3n::load,
    },
    Family {
        names: &["gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"],
        defaults: gemma4::DEFAULTS,
        info: gemma4::info,
        load: gemma4::load,
    },
    Family {
        names: &["embedding_gemma2", "embedding_gemma2_text"],
        defaults: embedding_gemma2::DEFAULTS,
        info: embedding_gemma2::info,
        load: embedding_gemma2::load,
    },
    Family { names: &["llama"], defaults: &[], info: llama::info, load: llama::load },
    Family { names: &["gpt2"], defaults: &[], info: gpt2::info, load: gpt2::load },
    Family { names: &["gpt_neo"], defaults: &[], info: gpt_neo::info, load: gpt_neo::load },
];

/// The family of a checkpoint, and its settings with that family's defaults.
fn find(settings: Settings) -> Result<(Settings, &'static Family)> {
    let found = settings.family()?;
    let Some(family) = FAMILIES.iter().find(|f| f.names.contains(&found)) else {
        let known: Vec<&str> = FAMILIES.iter().flat_map(|f| f.names.iter().copied()).collect();
        let problem =
            format!("\"{found}\" is not a family that Lapidary runs; it runs {}", known.join(", "));
        return Err(settings.error(settings.architecture_key(), problem));
    };
    Ok((settings.with_defaults(family.defaults), family))
}

/// A checkpoint's figures, from its settings alone.
///
/// # Errors
/// If the family is unknown, or a setting is missing, absurd or unsupported.
pub fn describe(checkpoint: &Checkpoint) -> Result<Info> {
    let (settings, family) = find(Settings::new(checkpoint)?)?;
    (family.info)(&settings)
}

/// What [`describe_slice`] tells.
#[derive(Debug, Clone)]
pub struct Sliced {
    /// The smaller model's figures.
    pub info: Info,
    /// Its parameters.
    pub parameters: u64,
    /// Bytes of the file that it reads.
    pub bytes: u64,
}

/// The figures of a smaller model inside that of the checkpoint, from headers alone.
///
/// # Errors
/// As [`load_slice`], as far as headers tell.
pub fn describe_slice(checkpoint: &Checkpoint, slice: &Slice) -> Result<Sliced> {
    let (settings, family) = find(Settings::new(checkpoint)?)?;
    takes_slices(&settings, family)?;
    gemma3n::slice(&settings, checkpoint, slice)
}

/// Only one family has smaller models inside.
fn takes_slices(settings: &Settings, family: &Family) -> Result<()> {
    if !family.names.contains(&"gemma3n") {
        let problem = "only Gemma 3n has smaller models inside (MatFormer)";
        return Err(settings.error(settings.architecture_key(), problem));
    }
    Ok(())
}

/// Loads the model of `checkpoint` onto the device of `ops`.
///
/// # Errors
/// If the family is unknown, a setting is missing, absurd or unsupported, or a tensor is missing,
/// of the wrong shape, or not finite; the error names the file and the field.
pub fn load(checkpoint: &Checkpoint, ops: &mut dyn Ops) -> Result<Loaded> {
    load_adapted(checkpoint, ops, &[])
}

/// As [`load`], with low-rank adapters beside the projections that they name. Rows have the first
/// one until [`Ops::adapt`] says otherwise.
///
/// # Errors
/// Also if an adapter fits no projection, or the base is a GGUF file of Llama, whose converter
/// reorders the rows of queries and keys: merge the adapter into it instead.
pub fn load_adapted(
    checkpoint: &Checkpoint,
    ops: &mut dyn Ops,
    adapters: &[Adapters],
) -> Result<Loaded> {
    generates(checkpoint, load_any(checkpoint, ops, adapters, None)?)
}

/// As [`load`], a smaller model inside that of the checkpoint.
///
/// # Errors
/// Also if it is no Gemma 3n, or the slice does not fit it.
pub fn load_slice(checkpoint: &Checkpoint, ops: &mut dyn Ops, slice: &Slice) -> Result<Loaded> {
    load_any(checkpoint, ops, &[], Some(slice))
}

fn generates(checkpoint: &Checkpoint, loaded: Loaded) -> Result<Loaded> {
    if loaded.model.info().encoder {
        let settings = Settings::new(checkpoint)?;
        let problem = "this model makes embeddings and generates no text (lapidary embed)";
        return Err(settings.error(settings.architecture_key(), problem));
    }
    Ok(loaded)
}

/// Loads a model for embeddings.
///
/// # Errors
/// As [`load`]; and if it is a model that generates.
pub fn load_encoder(checkpoint: &Checkpoint, ops: &mut dyn Ops) -> Result<Loaded> {
    let loaded = load_any(checkpoint, ops, &[], None)?;
    if !loaded.model.info().encoder {
        let settings = Settings::new(checkpoint)?;
        let problem = "this model generates text and makes no embeddings";
        return Err(settings.error(settings.architecture_key(), problem));
    }
    Ok(loaded)
}

fn load_any(
    checkpoint: &Checkpoint,
    ops: &mut dyn Ops,
    adapters: &[Adapters],
    slice: Option<&Slice>,
) -> Result<Loaded> {
    let (settings, family) = find(Settings::new(checkpoint)?)?;
    if slice.is_some() {
        takes_slices(&settings, family)?;
    }
    let mut weights = Weights::new(checkpoint, ops, adapters);
    weights.slice = slice;
    if let Some(a) =
        adapters.first().filter(|_| weights.is_gguf() && family.names.contains(&"llama"))
    {
        let problem = "a GGUF file of Llama takes adapters only merged: lapidary merge";
        return Err(lapidary_formats::FormatError::new(&a.file, "", problem));
    }
    let model = (family.load)(&settings, &mut weights)?;
    weights.check_adapters()?;
    let matrices = std::mem::take(&mut weights.matrices);
    let (step_bytes, weights, notes) = weights.finish();
    Ok(Loaded { model, step_bytes, weights, notes, matrices })
}

/// Writes the embeddings of media into the rows that stand for them.
pub(crate) fn place_media(ops: &mut dyn Ops, mut x: Tensor, rows: &Rows) -> Tensor {
    for m in &rows.media {
        let width = x.cols();
        let from = m.first * width..(m.first + m.rows.len()) * width;
        let features = ops.tensor(&m.features[from], width);
        let at: Vec<u32> = m.rows.clone().map(|r| r as u32).collect();
        x = ops.place(x, &features, &at);
    }
    x
}

/// Runs all layers over `rows`: `[rows, width]`, before the last norm.
pub fn layers(model: &dyn Model, ops: &mut dyn Ops, rows: &Rows, cache: &mut KvCache) -> Tensor {
    let mut x = model.embed(ops, rows);
    ops.probe("embed", &x);
    for layer in 0..model.info().layers {
        x = model.block(layer, ops, x, rows, cache);
        ops.probe(&format!("layer_{layer}"), &x);
    }
    x
}

/// Runs all layers over `rows` and returns the logits of the rows `wanted`: `[wanted, vocab]`.
pub fn forward(
    model: &dyn Model,
    ops: &mut dyn Ops,
    rows: &Rows,
    wanted: &[u32],
    cache: &mut KvCache,
) -> Tensor {
    let mut x = layers(model, ops, rows, cache);
    // The vocabulary is wide: only rows whose logits are wanted go through the head.
    if wanted.len() != rows.ids.len() {
        x = ops.gather(&x, wanted);
    }
    model.head(ops, &x)
}
