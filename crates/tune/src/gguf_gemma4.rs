//! Gemma 4 in GGUF, as llama.cpp's converter writes it: settings, the names that it alone has, and the
//! factors of the global rotation, which Hugging Face files don't hold.

use lapidary_formats::gguf::{Metadata, Value};
use lapidary_formats::{Config, DType, Result, TensorView};
use lapidary_model::Info;

/// Layer tensors beside those that all Gemmas have: Hugging Face's name within a layer, GGUF's. Those
/// that are no weight of a module stand with their whole name.
pub(crate) const LAYER: [(&str, &str); 12] = [
    ("layer_scalar", "layer_output_scale.weight"),
    ("per_layer_input_gate.weight", "inp_gate.weight"),
    ("per_layer_projection.weight", "proj.weight"),
    ("post_per_layer_input_norm.weight", "post_norm.weight"),
    ("router.proj.weight", "ffn_gate_inp.weight"),
    ("router.scale", "ffn_gate_inp.scale"),
    ("router.per_expert_scale", "ffn_down_exps.scale"),
    ("experts.gate_up_proj", "ffn_gate_up_exps.weight"),
    ("experts.down_proj", "ffn_down_exps.weight"),
    ("post_feedforward_layernorm_1.weight", "post_ffw_norm_1.weight"),
    ("pre_feedforward_layernorm_2.weight", "pre_ffw_norm_2.weight"),
    ("post_feedforward_layernorm_2.weight", "post_ffw_norm_2.weight"),
];

/// The same outside of layers.
pub(crate) const TOP: [(&str, &str); 3] = [
    ("embed_tokens_per_layer.weight", "per_layer_token_embd.weight"),
    ("per_layer_model_projection.weight", "per_layer_model_proj.weight"),
    ("per_layer_projection_norm.weight", "per_layer_proj_norm.weight"),
];

/// A frequency divided by it stands still.
const STILL: f32 = 1e30;

/// What each layer's attention is like.
struct Layer {
    local: bool,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
}

fn layers(info: &Info, text: &Config) -> Result<Vec<Layer>> {
    let count = info.layers;
    let mut local: Vec<bool> = match text.get("layer_types").and_then(|v| v.as_array()) {
        Some(all) => all.iter().map(|v| v.as_str() == Some("sliding_attention")).collect(),
        None => (1..=count).map(|i| !i.is_multiple_of(6)).collect(),
    };
    local.resize(count, false);
    local[count - 1] = false;
    let kept = &info.kv.layers;
    let wide = text.opt_bool("use_double_wide_mlp")?.unwrap_or(false);
    let ffn = match text.get("intermediate_size").is_some_and(|v| v.is_array()) {
        true => text.usizes("intermediate_size")?,
        false => vec![text.usize("intermediate_size")?; count],
    };
    (0..count)
        .map(|i| {
            // A layer without keys of its own reads those of the last of its kind.
            let source = (0..kept.len().min(i + 1)).rev().find(|j| local[*j] == local[i]);
            let source = source.ok_or_else(|| text.wrong("layer_types", "no layer has keys"))?;
            let ffn = ffn.get(i).copied().unwrap_or_default();
            let ffn = if wide && source != i { 2 * ffn } else { ffn };
            let shape = &kept[source];
            Ok(Layer { local: local[i], kv_heads: shape.heads, head_dim: shape.head_dim, ffn })
        })
        .collect()
}

/// One number where all layers agree, else one for each.
fn each(values: Vec<usize>) -> Value {
    match values.iter().all(|v| *v == values[0]) {
        true => Value::from(values[0] as u32),
        false => Value::from(values.iter().map(|v| *v as i32).collect::<Vec<_>>()),
    }
}

/// The settings under `gemma4.`.
///
/// # Errors
/// If a setting is missing or of another type.
pub(crate) fn metadata(info: &Info, text: &Config, out: &mut Metadata) -> Result<()> {
    let layers = layers(info, text)?;
    let global = layers[info.layers - 1].head_dim;
    let local = layers.iter().find(|l| l.local).map_or(global, |l| l.head_dim);
    let heads = text.usize("num_attention_heads")?;
    let shared = info.layers - info.kv.layers.len();
    let mut put = |key: &str, value: Value| out.insert(&format!("gemma4.{key}"), value);
    let all = |of: fn(&Layer) -> usize| each(layers.iter().map(of).collect());
    put("feed_forward_length", all(|l| l.ffn))?;
    put("attention.head_count_kv", all(|l| l.kv_heads))?;
    let pattern: Vec<bool> = layers.iter().map(|l| l.local).collect();
    put("attention.sliding_window_pattern", pattern.into())?;
    let ple = text.opt_usize("hidden_size_per_layer_input")?.unwrap_or(0);
    let window = info.kv.groups.iter().flatten().next().copied();
    let numbers = [
        ("block_count", info.layers),
        ("context_length", info.context),
        ("embedding_length", info.width),
        ("embedding_length_per_layer_input", ple),
        ("attention.head_count", heads),
        ("attention.shared_kv_layers", shared),
        ("attention.key_length", global),
        ("attention.value_length", global),
        ("attention.key_length_swa", local),
        ("attention.value_length_swa", local),
        ("rope.dimension_count", global),
        ("rope.dimension_count_swa", local),
    ];
    let window = window.map(|w| ("attention.sliding_window", w));
    for (key, n) in numbers.into_iter().chain(window) {
        put(key, (n as u32).into())?;
    }
    if text.opt_bool("enable_moe_block")?.unwrap_or(false) {
        for (key, hf) in [
            ("expert_count", "num_experts"),
            ("expert_used_count", "top_k_experts"),
            ("expert_feed_forward_length", "moe_intermediate_size"),
        ] {
            put(key, (text.usize(hf)? as u32).into())?;
        }
    }
    let base = |kind: &str| -> Result<Option<f64>> {
        let all = text.opt_object("rope_parameters")?;
        let mine = all.map(|a| a.opt_object(kind)).transpose()?.flatten();
        Ok(mine.map(|m| m.opt_f64("rope_theta")).transpose()?.flatten())
    };
    put("rope.freq_base", (base("full_attention")?.unwrap_or(1e6) as f32).into())?;
    put("rope.freq_base_swa", (base("sliding_attention")?.unwrap_or(1e4) as f32).into())?;
    let eps = text.opt_f64("rms_norm_eps")?.unwrap_or(1e-6);
    put("attention.layer_norm_rms_epsilon", (eps as f32).into())?;
    if let Some(cap) = text.opt_f64("final_logit_softcapping")? {
        put("final_logit_softcapping", (cap as f32).into())?;
    }
    Ok(())
}

/// `rope_freqs.weight`: what the frequencies of global layers are divided by. 1 for the pairs that
/// turn, the first `partial_rotary_factor` of them.
///
/// # Errors
/// If a setting is of another type.
pub(crate) fn rope_freqs(info: &Info, text: &Config) -> Result<TensorView> {
    let head_dim = layers(info, text)?[info.layers - 1].head_dim;
    let all = text.opt_object("rope_parameters")?;
    let mine = all.map(|a| a.opt_object("full_attention")).transpose()?.flatten();
    let part = match mine {
        None => 0.25,
        Some(mine) => mine.opt_f64("partial_rotary_factor")?.unwrap_or(1.0),
    };
    let turning = (part * head_dim as f64) as usize / 2;
    let factor = |i: usize| if i < turning { 1.0f32 } else { STILL };
    let bytes: Vec<u8> = (0..head_dim / 2).flat_map(|i| factor(i).to_le_bytes()).collect();
    Ok(TensorView {
        name: "rope_freqs.weight".into(),
        dtype: DType::F32,
        shape: vec![head_dim / 2],
        bytes: bytes.into(),
        file: text.file().into(),
    })
}
