//! What llama.cpp's converter makes of a Hugging Face checkpoint: the names of tensors and of
//! metadata, and the few tensors whose values it changes.

use crate::gguf_gemma4;
use lapidary_formats::gguf::Metadata;
use lapidary_formats::{Checkpoint, Config, FormatError, Result};
use lapidary_model::describe;

/// What becomes of a tensor's values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Nothing.
    None,
    /// 1 is added: Gemma's norm weights.
    PlusOne,
    /// Rows are reordered so that rotating pairs are neighbours: Llama's queries and keys, of so
    /// many heads.
    PairRows(usize),
    /// Rows and columns change places: GPT-2's Conv1D.
    Transpose,
}

/// Prefixes of Hugging Face names before the part that a family defines.
const PREFIXES: [&str; 5] =
    ["model.language_model.", "language_model.model.", "model.", "transformer.", ""];

/// Layer tensors: Hugging Face's name within a layer, GGUF's.
const GEMMA: &[(&str, &str)] = &[
    ("input_layernorm", "attn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("pre_feedforward_layernorm", "ffn_norm"),
    ("post_feedforward_layernorm", "post_ffw_norm"),
];
const GPT2: &[(&str, &str)] = &[
    ("ln_1", "attn_norm"),
    ("attn.c_attn", "attn_qkv"),
    ("attn.c_proj", "attn_output"),
    ("ln_2", "ffn_norm"),
    ("mlp.c_fc", "ffn_up"),
    ("mlp.c_proj", "ffn_down"),
];

/// The GGUF architecture of a Hugging Face `model_type`.
pub fn architecture(model_type: &str) -> Option<&'static str> {
    Some(match model_type {
        "gemma" => "gemma",
        "gemma2" => "gemma2",
        "gemma3" | "gemma3_text" => "gemma3",
        "gemma4" | "gemma4_text" | "gemma4_unified" | "gemma4_unified_text" => "gemma4",
        "llama" => "llama",
        "gpt2" => "gpt2",
        _ => return None,
    })
}

/// Query and key heads of a Llama in GGUF, whose rows are reordered by them; `None` for every other family.
///
/// # Errors
/// If a key is missing or of another type.
pub fn paired_heads(metadata: &Metadata) -> Result<Option<(usize, usize)>> {
    if metadata.str("general.architecture")? != "llama" {
        return Ok(None);
    }
    let count = |key: &str| metadata.opt_u32(&format!("llama.attention.{key}"));
    let query = count("head_count")?.unwrap_or(1);
    Ok(Some((query as usize, count("head_count_kv")?.unwrap_or(query) as usize)))
}

/// The GGUF name of a tensor and what becomes of it; `None` for what is left out.
pub fn rename(architecture: &str, name: &str, heads: (usize, usize)) -> Option<(String, Change)> {
    let rest = PREFIXES.iter().find_map(|p| name.strip_prefix(p)).unwrap_or(name);
    if architecture == "gemma4"
        && let Some(gguf) = of_gemma4(rest)
    {
        return Some((gguf, Change::None));
    }
    let (stem, end) = rest.rsplit_once('.')?;
    let minus_one = matches!(architecture, "gemma" | "gemma2" | "gemma3");
    let plus_one = |change| if minus_one { change } else { Change::None };
    let top = match stem {
        "embed_tokens" | "wte" => Some(("token_embd", Change::None)),
        "wpe" => Some(("position_embd", Change::None)),
        "norm" => Some(("output_norm", plus_one(Change::PlusOne))),
        "ln_f" => Some(("output_norm", Change::None)),
        "lm_head" if architecture == "llama" => Some(("output", Change::None)),
        _ => None,
    };
    if let Some((gguf, change)) = top {
        return Some((format!("{gguf}.{end}"), change));
    }
    let (layer, part) =
        stem.strip_prefix("layers.").or(stem.strip_prefix("h."))?.split_once('.')?;
    layer.parse::<usize>().ok()?;
    let table = if architecture == "gpt2" { GPT2 } else { GEMMA };
    let gguf = match (part, architecture) {
        ("post_attention_layernorm", "gemma" | "llama") => "ffn_norm",
        ("post_attention_layernorm", _) => "post_attention_norm",
        _ => table.iter().find(|(hf, _)| *hf == part)?.1,
    };
    let change = match (architecture, gguf, end) {
        ("llama", "attn_q", "weight") => Change::PairRows(heads.0),
        ("llama", "attn_k", "weight") => Change::PairRows(heads.1),
        ("gpt2", "attn_qkv" | "attn_output" | "ffn_up" | "ffn_down", "weight") => Change::Transpose,
        _ if gguf.ends_with("norm") => plus_one(Change::PlusOne),
        _ => Change::None,
    };
    Some((format!("blk.{layer}.{gguf}.{end}"), change))
}

/// Names that Gemma 4 alone has.
fn of_gemma4(name: &str) -> Option<String> {
    if let Some((_, gguf)) = gguf_gemma4::TOP.iter().find(|(hf, _)| *hf == name) {
        return Some((*gguf).to_owned());
    }
    let (layer, part) = name.strip_prefix("layers.")?.split_once('.')?;
    let (_, gguf) = gguf_gemma4::LAYER.iter().find(|(hf, _)| *hf == part)?;
    Some(format!("blk.{layer}.{gguf}"))
}

/// The settings of a Hugging Face checkpoint as GGUF metadata.
///
/// # Errors
/// If a setting is missing, or has no form in GGUF.
pub fn metadata(
    checkpoint: &Checkpoint,
    config: &Config,
    architecture: &str,
    out: &mut Metadata,
) -> Result<()> {
    let info = describe(checkpoint)?;
    let text = config.opt_object("text_config")?.unwrap_or_else(|| config.clone());
    let count = |keys: &[&str]| -> Result<Option<usize>> {
        for key in keys {
            if let Some(n) = text.opt_usize(key)? {
                return Ok(Some(n));
            }
        }
        Ok(None)
    };
    out.insert("general.architecture", architecture.to_owned())?;
    out.insert("general.type", "model".to_owned())?;
    out.insert("general.quantization_version", 2u32)?;
    if architecture == "gemma4" {
        return gguf_gemma4::metadata(&info, &text, out);
    }
    let missing = |key: &str| FormatError::new(text.file(), key, "missing");
    let heads = count(&["num_attention_heads", "n_head"])?.ok_or_else(|| missing("heads"))?;
    let ffn = count(&["intermediate_size", "n_inner"])?.unwrap_or(4 * info.width);
    let attention = info.kv.layers[0];
    let mut put = |key: &str, n: usize| out.insert(&format!("{architecture}.{key}"), n as u32);
    put("block_count", info.layers)?;
    put("context_length", info.context)?;
    put("embedding_length", info.width)?;
    put("feed_forward_length", ffn)?;
    put("attention.head_count", heads)?;
    if architecture != "gpt2" {
        put("attention.head_count_kv", attention.heads)?;
        put("attention.key_length", attention.head_dim)?;
        put("attention.value_length", attention.head_dim)?;
        put("rope.dimension_count", attention.head_dim)?;
    }
    put("vocab_size", info.vocab)?;
    if let Some(window) = info.kv.groups.iter().flatten().next() {
        put("attention.sliding_window", *window)?;
    }
    let mut float = |key: &str, x: f64| out.insert(&format!("{architecture}.{key}"), x as f32);
    match architecture {
        "gpt2" => {
            float(
                "attention.layer_norm_epsilon",
                text.opt_f64("layer_norm_epsilon")?.unwrap_or(1e-5),
            )?;
            if text.has("attention_layers") {
                return Err(text.wrong("attention_layers", "local layers have no form in GGUF"));
            }
        }
        _ => float(
            "attention.layer_norm_rms_epsilon",
            text.opt_f64("rms_norm_eps")?.unwrap_or(1e-6),
        )?,
    }
    for key in ["attn_logit_softcapping", "final_logit_softcapping"] {
        if let Some(cap) = text.opt_f64(key)? {
            float(key, cap)?;
        }
    }
    if architecture != "gpt2" {
        rope(&text, architecture, out)?;
    }
    if architecture == "gemma3" {
        pattern(&text, &info, out)?;
    }
    query_scale(&text, architecture, &info, heads)
}

/// Bases and linear scaling.
fn rope(text: &Config, architecture: &str, out: &mut Metadata) -> Result<()> {
    let new = text.opt_object("rope_parameters")?;
    let global = match &new {
        Some(p) => Some(p.opt_object("full_attention")?.unwrap_or_else(|| p.clone())),
        None => text.opt_object("rope_scaling")?,
    };
    let base = match &global {
        Some(g) => g.opt_f64("rope_theta")?,
        None => None,
    };
    let default = if architecture == "gemma3" { 1e6 } else { 1e4 };
    let base = base.or(text.opt_f64("rope_theta")?).unwrap_or(default);
    out.insert(&format!("{architecture}.rope.freq_base"), base as f32)?;
    if architecture == "gemma3" {
        let local = match &new {
            Some(p) => p.opt_object("sliding_attention")?,
            None => None,
        };
        let base = match &local {
            Some(l) => l.opt_f64("rope_theta")?,
            None => text.opt_f64("rope_local_base_freq")?,
        };
        out.insert("gemma3.rope.freq_base_swa", base.unwrap_or(1e4) as f32)?;
    }
    if let Some(factor) = global.map(|g| g.opt_f64("factor")).transpose()?.flatten() {
        out.insert(&format!("{architecture}.rope.scaling.type"), "linear".to_owned())?;
        out.insert(&format!("{architecture}.rope.scaling.factor"), factor as f32)?;
    }
    Ok(())
}

/// Gemma 3's pattern: GGUF readers take every sixth layer as global unless a key says otherwise.
fn pattern(text: &Config, info: &lapidary_model::Info, out: &mut Metadata) -> Result<()> {
    let local: Vec<bool> =
        info.kv.layers.iter().map(|l| info.kv.groups[l.group].is_some()).collect();
    let fits = |n: usize| local.iter().enumerate().all(|(i, l)| *l != (i + 1).is_multiple_of(n));
    match (1..=local.len() + 1).find(|n| fits(*n)) {
        Some(6) => Ok(()),
        Some(n) => out.insert("gemma3.attention.sliding_window_pattern", n as u32),
        None => Err(text.wrong("layer_types", "local and global layers do not follow a period")),
    }
}

/// GGUF can't say what the scores are scaled by: readers take the head's size, but for the 27B
/// models.
fn query_scale(
    text: &Config,
    architecture: &str,
    info: &lapidary_model::Info,
    heads: usize,
) -> Result<()> {
    let Some(scalar) = text.opt_f64("query_pre_attn_scalar")? else { return Ok(()) };
    let large = matches!((architecture, info.layers), ("gemma2", 46) | ("gemma3", 62));
    let assumed = if large { info.width / heads } else { info.kv.layers[0].head_dim };
    if scalar == assumed as f64 {
        return Ok(());
    }
    let problem = format!("{scalar} has no form in GGUF, whose readers assume {assumed}");
    Err(text.wrong("query_pre_attn_scalar", problem))
}
