//! Gemma 4, text: E2B, E4B, 12B, 26B-A4B, 31B, also the text part of a multimodal checkpoint.
//! Reference: transformers `models/gemma4/modeling_gemma4.py`, `models/gemma4_unified`.
//!
//! Sandwich norms, RMSNorm on queries, keys and (without a weight) values, scores unscaled, a
//! learned factor for each block. Local and global layers have heads of different sizes; the global
//! ones turn a quarter of their pairs. Small models add a per-layer embedding of each token and let
//! their last layers read the keys and values of earlier ones; large ones take the global values
//! from the keys; 26B-A4B has experts beside its feed-forward layers.

use crate::load::{NormOffset, Weights};
use crate::settings::{self, Settings};
use crate::{Info, Model, place_media};
use lapidary_formats::Result;
use lapidary_ops::{
    Activation, AttentionSpec, KvCache, KvLayout, Linear, Ops, Rope, RopePairs, Rows, Tensor,
    Vector, Weight,
};

struct Gemma4 {
    info: Info,
    eps: f32,
    act: Activation,
    /// `[vocab, width]`, also the output projection.
    embedding: Linear,
    /// Placeholders of images, sounds and films; embedded as token 0.
    media: Vec<u32>,
    /// `[ple]`: the norm of the projected per-layer embeddings.
    ple_norm: Option<Vector>,
    layers: Vec<Layer>,
    norm: Vector,
    local_rope: Rope,
    global_rope: Rope,
    softcap: Option<f32>,
}

struct Layer {
    attention: AttentionSpec,
    /// Its place in the cache, or that of the layer whose keys and values it reads.
    kv: usize,
    input_norm: Vector,
    q: Linear,
    /// `[head_dim]`
    q_norm: Vector,
    /// Absent where another layer's keys and values are read.
    keys: Option<Keys>,
    o: Linear,
    post_attention_norm: Vector,
    pre_ffn_norm: Vector,
    gate: Linear,
    up: Linear,
    down: Linear,
    experts: Option<Experts>,
    post_ffn_norm: Vector,
    ple: Option<PerLayer>,
    scale: f32,
}

struct Keys {
    k: Linear,
    /// Absent where the values are the keys before their norm.
    v: Option<Linear>,
    /// `[head_dim]`
    k_norm: Vector,
    /// `[head_dim]` of ones: a norm without weight.
    v_norm: Vector,
}

struct Experts {
    active: usize,
    /// `[width]`
    router_norm: Vector,
    /// `[experts, width]`
    router: Linear,
    /// `[experts]`
    scale: Vector,
    post_dense_norm: Vector,
    pre_norm: Vector,
    /// `[2 * ffn, width]` each
    gate_up: Vec<Linear>,
    /// `[width, ffn]` each
    down: Vec<Linear>,
    post_norm: Vector,
}

/// What a layer adds of each token's own embedding for that layer.
struct PerLayer {
    /// `[vocab, ple]`: columns of a table that stays in the file.
    table: Weight,
    /// `[ple, width]`: of the embedding.
    context: Linear,
    /// `[ple, width]`
    gate: Linear,
    /// `[width, ple]`
    projection: Linear,
    norm: Vector,
}

/// What transformers' `Gemma4TextConfig` assumes.
pub(crate) const DEFAULTS: &[(&str, usize)] = &[
    ("vocab_size", 262_144),
    ("hidden_size", 2304),
    ("intermediate_size", 9216),
    ("num_hidden_layers", 30),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("head_dim", 256),
    ("global_head_dim", 512),
    ("sliding_window", 512),
    ("max_position_embeddings", 131_072),
    ("hidden_size_per_layer_input", 256),
    ("vocab_size_per_layer_input", 262_144),
    ("num_kv_shared_layers", 0),
];

/// The shape of one layer's attention.
#[derive(Clone, Copy, PartialEq)]
struct Shape {
    window: Option<usize>,
    kv_heads: usize,
    head_dim: usize,
    /// The layer whose keys and values it reads: its own, or an earlier one's.
    source: usize,
}

fn shapes(s: &Settings, count: usize) -> Result<Vec<Shape>> {
    let window = s.count("sliding_window", "attention.sliding_window", settings::CONTEXT)?;
    let mut local = (s.layer_types(count)?)
        .unwrap_or_else(|| (1..=count).map(|i| !i.is_multiple_of(6)).collect());
    // As the reference does, whatever the pattern says.
    local[count - 1] = false;
    let heads = s.count("num_attention_heads", "attention.head_count", settings::HEADS)?;
    let kv_heads =
        s.counts("num_key_value_heads", "attention.head_count_kv", count, settings::HEADS)?;
    let head_dim = s.count("head_dim", "attention.key_length_swa", settings::HEAD_DIM)?;
    let global_dim = s.count("global_head_dim", "attention.key_length", settings::HEAD_DIM)?;
    let k_is_v = s.flag("attention_k_eq_v")?;
    let global_heads = s.opt_count("num_global_key_value_heads", "", settings::HEADS)?;
    let shared = ("num_kv_shared_layers", "attention.shared_kv_layers");
    let shared = s.opt_count(shared.0, shared.1, 0..=count)?.unwrap_or(0);
    (0..count)
        .map(|i| {
            let (mut kv_heads, mut head_dim) =
                (kv_heads[i], if local[i] { head_dim } else { global_dim });
            if let (false, true, Some(n)) = (local[i], k_is_v, global_heads) {
                kv_heads = n;
            }
            // What transformers 5 writes: the layers that differ.
            if let Some(mine) = s.opt_layer_config(i)? {
                head_dim = mine.opt_usize("head_dim")?.unwrap_or(head_dim);
                kv_heads = mine.opt_usize("num_key_value_heads")?.unwrap_or(kv_heads);
            }
            if kv_heads == 0 || heads % kv_heads != 0 {
                let problem = format!("layer {i}: {kv_heads} can't be shared by {heads} heads");
                return Err(s.error("num_key_value_heads", problem));
            }
            if head_dim % 2 != 0 || !settings::HEAD_DIM.contains(&head_dim) {
                let problem = format!("layer {i}: heads of {head_dim}: an even size was expected");
                return Err(s.error("head_dim", problem));
            }
            // The last layer of its kind that has keys of its own.
            let source = if i < count - shared {
                i
            } else {
                (0..count - shared).rev().find(|j| local[*j] == local[i]).ok_or_else(|| {
                    let problem = format!("layer {i} has no layer of its kind to read keys from");
                    s.error(shared_key(s), problem)
                })?
            };
            Ok(Shape { window: local[i].then_some(window), kv_heads, head_dim, source })
        })
        .collect()
}

fn shared_key(s: &Settings) -> &'static str {
    if s.hf().is_some() { "num_kv_shared_layers" } else { "gemma4.attention.shared_kv_layers" }
}

/// The model's figures, from its settings alone.
pub(crate) fn info(s: &Settings) -> Result<Info> {
    let width = s.count("hidden_size", "embedding_length", settings::WIDTH)?;
    let layers = s.count("num_hidden_layers", "block_count", settings::LAYERS)?;
    let context = s.opt_count("max_position_embeddings", "context_length", settings::CONTEXT)?;
    let shapes = shapes(s, layers)?;
    let kept: Vec<_> = (shapes.iter().enumerate())
        .filter(|(i, l)| l.source == *i)
        .map(|(_, l)| (l.kv_heads, l.head_dim, l.window))
        .collect();
    Ok(Info {
        encoder: false,
        prefix: false,
        family: "gemma4",
        vocab: s.vocab()?,
        layers,
        width,
        context: context.unwrap_or(131_072),
        kv: KvLayout::mixed(&kept).lent(kept.len() < layers),
    })
}

pub(crate) fn load(s: &Settings, w: &mut Weights) -> Result<Box<dyn Model>> {
    s.require_flag("attention_bias", false)?;
    if s.hf().is_some_and(|c| c.opt_str("use_bidirectional_attention") == Ok(Some("all"))) {
        return Err(s.error("use_bidirectional_attention", "\"all\": this is no causal model"));
    }
    let info = info(s)?;
    let (width, count, vocab) = (info.width, info.layers, info.vocab);
    let shapes = shapes(s, count)?;
    let ple = ("hidden_size_per_layer_input", "embedding_length_per_layer_input");
    let ple = s.opt_count(ple.0, ple.1, 0..=1 << 16)?.unwrap_or(0);
    let global_dim = shapes[count - 1].head_dim;
    let local_dim = shapes.iter().find(|l| l.window.is_some()).map_or(global_dim, |l| l.head_dim);
    let (local_base, divisor) =
        s.rope(("rope_local_base_freq", "rope.freq_base_swa"), Some("sliding_attention"), 1e4)?;

    w.set_prefix(&["model.", "model.language_model.", ""], "embed_tokens.weight");
    w.ignore(&["vision_tower.", "embed_vision.", "vision_embedder.", "lm_head.weight"]);
    w.ignore(&["audio_tower.", "embed_audio."]);
    let embedding = w.linear("embed_tokens", "token_embd", [vocab, width])?;
    let global_rope = global_rope(s, w, global_dim)?;
    let norm = w.norm("norm", "output_norm", width, NormOffset::Zero)?;
    let (mut tables, mut contexts) = (Vec::new(), Vec::new());
    let mut ple_norm = None;
    if ple > 0 {
        let name = ("embed_tokens_per_layer", "per_layer_token_embd");
        let rows = match s.hf() {
            Some(_) => s.count("vocab_size_per_layer_input", "", settings::VOCAB)?,
            None => w.rows(name.0, name.1).unwrap_or(vocab),
        };
        tables = w.table_parts(name.0, name.1, [rows, ple], count)?;
        let name = ("per_layer_model_projection.weight", "per_layer_model_proj.weight");
        contexts = w.linear_parts(name.0, name.1, count, [ple, width])?;
        let name = ("per_layer_projection_norm", "per_layer_proj_norm");
        ple_norm = Some(w.norm(name.0, name.1, ple, NormOffset::Zero)?);
    }
    let mut ples = tables.into_iter().zip(contexts);
    let layers = (0..count)
        .map(|i| layer(s, w, i, &shapes, width, ples.next().map(|(t, c)| (t, c, ple))))
        .collect::<Result<Vec<_>>>()?;
    Ok(Box::new(Gemma4 {
        info,
        eps: s.opt_positive("rms_norm_eps", "attention.layer_norm_rms_epsilon")?.unwrap_or(1e-6),
        act: s.activation(&["hidden_activation", "hidden_act"], Activation::GeluTanh)?,
        embedding,
        media: s.token_ids(&["image_token_id", "audio_token_id", "video_token_id"])?,
        ple_norm,
        layers,
        norm,
        local_rope: Rope::new(local_base, local_dim, divisor, RopePairs::Halves),
        global_rope,
        softcap: s.opt_positive("final_logit_softcapping", "final_logit_softcapping")?,
    }))
}

/// Layer `i`; `ple`: its table, its part of the projection, and its width.
fn layer(
    s: &Settings,
    w: &mut Weights,
    i: usize,
    shapes: &[Shape],
    width: usize,
    ple: Option<(Weight, Linear, usize)>,
) -> Result<Layer> {
    let Shape { window, kv_heads, head_dim, source } = shapes[i];
    let heads = s.count("num_attention_heads", "attention.head_count", settings::HEADS)?;
    let ffn =
        s.counts("intermediate_size", "feed_forward_length", shapes.len(), settings::WIDTH)?[i];
    let wide = source != i && s.flag("use_double_wide_mlp")?;
    let ffn = if wide { 2 * ffn } else { ffn };
    let hf = |name: &str| format!("layers.{i}.{name}");
    let gguf = |name: &str| format!("blk.{i}.{name}");
    let mut norm = |h: &str, g: &str, len| w.norm(&hf(h), &gguf(g), len, NormOffset::Zero);
    let input_norm = norm("input_layernorm", "attn_norm", width)?;
    let q_norm = norm("self_attn.q_norm", "attn_q_norm", head_dim)?;
    let post_attention_norm = norm("post_attention_layernorm", "post_attention_norm", width)?;
    let pre_ffn_norm = norm("pre_feedforward_layernorm", "ffn_norm", width)?;
    let post_ffn_norm = norm("post_feedforward_layernorm", "post_ffw_norm", width)?;
    let mut linear = |h: &str, g: &str, shape| w.linear(&hf(h), &gguf(g), shape);
    let q = linear("self_attn.q_proj", "attn_q", [heads * head_dim, width])?;
    let o = linear("self_attn.o_proj", "attn_output", [width, heads * head_dim])?;
    let gate = linear("mlp.gate_proj", "ffn_gate", [ffn, width])?;
    let up = linear("mlp.up_proj", "ffn_up", [ffn, width])?;
    let down = linear("mlp.down_proj", "ffn_down", [width, ffn])?;
    let keys = (source == i)
        .then(|| {
            let shape = [kv_heads * head_dim, width];
            let v = w.has(&hf("self_attn.v_proj.weight"), &gguf("attn_v.weight"));
            let k_is_v = window.is_none() && (s.flag("attention_k_eq_v")? || s.hf().is_none());
            let mut linear = |h: &str, g: &str| w.linear(&hf(h), &gguf(g), shape);
            let k = linear("self_attn.k_proj", "attn_k")?;
            let v = (v || !k_is_v).then(|| linear("self_attn.v_proj", "attn_v")).transpose()?;
            let k_norm = (hf("self_attn.k_norm"), gguf("attn_k_norm"));
            let k_norm = w.norm(&k_norm.0, &k_norm.1, head_dim, NormOffset::Zero)?;
            Ok(Keys { k, v, k_norm, v_norm: Vector::new(vec![1.0; head_dim]) })
        })
        .transpose()?;
    let experts = has_experts(s)?.then(|| experts(s, w, i, width)).transpose()?;
    let ple = ple
        .map(|(table, context, ple)| {
            let mut linear = |h: &str, g: &str, shape| w.linear(&hf(h), &gguf(g), shape);
            let gate = linear("per_layer_input_gate", "inp_gate", [ple, width])?;
            let projection = linear("per_layer_projection", "proj", [width, ple])?;
            let norm = (hf("post_per_layer_input_norm"), gguf("post_norm"));
            let norm = w.norm(&norm.0, &norm.1, width, NormOffset::Zero)?;
            Ok(PerLayer { table, context, gate, projection, norm })
        })
        .transpose()?;
    // A constant, which is not trained.
    let scale = w.floats(&hf("layer_scalar"), &gguf("layer_output_scale.weight"), 1)?[0];
    // The large models let the parts of an image see each other, in local layers alone; the
    // reference's 12B does it in all of them. GGUF does not tell; the small ones have per-layer
    // embeddings, and 12B alone has 48 layers.
    let sees_images = match s.hf() {
        Some(c) => c.opt_str("use_bidirectional_attention")? == Some("vision"),
        None => ple.is_none(),
    };
    let everywhere = match s.hf() {
        Some(_) => s.architecture().starts_with("gemma4_unified"),
        None => shapes.len() == 48,
    };
    let ahead = if sees_images && (window.is_some() || everywhere) { usize::MAX } else { 0 };
    let kv = (0..source).filter(|j| shapes[*j].source == *j).count();
    let attention =
        AttentionSpec { heads, kv_heads, head_dim, scale: 1.0, window, ahead, softcap: None };
    Ok(Layer {
        attention,
        kv,
        input_norm,
        q,
        q_norm,
        keys,
        o,
        post_attention_norm,
        pre_ffn_norm,
        gate,
        up,
        down,
        experts,
        post_ffn_norm,
        ple,
        scale,
    })
}

fn has_experts(s: &Settings) -> Result<bool> {
    match s.hf() {
        Some(_) => s.flag("enable_moe_block"),
        None => Ok(s.opt_count("", "expert_count", 0..=4096)?.unwrap_or(0) > 0),
    }
}

fn experts(s: &Settings, w: &mut Weights, i: usize, width: usize) -> Result<Experts> {
    let count = s.count("num_experts", "expert_count", 1..=4096)?;
    let active = s.count("top_k_experts", "expert_used_count", 1..=count)?;
    let ffn = s.count("moe_intermediate_size", "expert_feed_forward_length", settings::WIDTH)?;
    let hf = |name: &str| format!("layers.{i}.{name}");
    let gguf = |name: &str| format!("blk.{i}.{name}");
    let router_norm = w.vector(&hf("router.scale"), &gguf("ffn_gate_inp.scale"), width)?;
    let mut norm = |h: &str, g: &str| w.norm(&hf(h), &gguf(g), width, NormOffset::Zero);
    let post_dense_norm = norm("post_feedforward_layernorm_1", "post_ffw_norm_1")?;
    let pre_norm = norm("pre_feedforward_layernorm_2", "pre_ffw_norm_2")?;
    let post_norm = norm("post_feedforward_layernorm_2", "post_ffw_norm_2")?;
    let mut all = |h: &str, g: &str, shape| w.experts(&hf(h), &gguf(g), (count, active), shape);
    Ok(Experts {
        active,
        router_norm,
        gate_up: all("experts.gate_up_proj", "ffn_gate_up_exps.weight", [2 * ffn, width])?,
        down: all("experts.down_proj", "ffn_down_exps.weight", [width, ffn])?,
        router: w.linear(&hf("router.proj"), &gguf("ffn_gate_inp"), [count, width])?,
        scale: w.vector(&hf("router.per_expert_scale"), &gguf("ffn_down_exps.scale"), count)?,
        post_dense_norm,
        pre_norm,
        post_norm,
    })
}

/// RoPE of the global layers: `partial_rotary_factor` of the pairs turn. GGUF divides the
/// frequencies by `rope_freqs`: 1, or 1e30 for a pair that stands still.
fn global_rope(s: &Settings, w: &mut Weights, head_dim: usize) -> Result<Rope> {
    let half = head_dim / 2;
    let (base, turning) = match s.hf() {
        None => {
            let base = s.opt_positive("", "rope.freq_base")?.unwrap_or(1e6);
            let factors = w.floats("", "rope_freqs.weight", half)?;
            let turning = factors.iter().take_while(|f| **f == 1.0).count();
            if factors[turning..].iter().any(|f| *f < 1e29) {
                let problem = "expected 1 for the pairs that turn, then 1e30 for the others";
                return Err(w.wrong("", "rope_freqs.weight", problem));
            }
            (base, turning)
        }
        Some(config) => {
            let all = config.opt_object("rope_parameters")?;
            let mine = all.map(|a| a.opt_object("full_attention")).transpose()?.flatten();
            let Some(mine) = mine else { return Ok(proportional(1e6, head_dim, half / 4)) };
            let base = mine.opt_f64("rope_theta")?.unwrap_or(1e6);
            let part = mine.opt_f64("partial_rotary_factor")?.unwrap_or(1.0);
            let kind = mine.opt_str("rope_type")?.unwrap_or("default");
            let known = kind == "proportional" || (kind == "default" && part == 1.0);
            if !(known && (0.0..=1.0).contains(&part) && base.is_finite() && base > 0.0) {
                let problem = format!(
                    "\"{kind}\" with base {base} and factor {part}: \"proportional\" was expected"
                );
                return Err(mine.wrong("rope_type", problem));
            }
            (base as f32, (part * head_dim as f64) as usize / 2)
        }
    };
    Ok(proportional(base, head_dim, turning))
}

fn proportional(base: f32, head_dim: usize, turning: usize) -> Rope {
    Rope::proportional(base, head_dim, turning, RopePairs::Halves)
}

impl Model for Gemma4 {
    fn info(&self) -> &Info {
        &self.info
    }

    fn embed(&self, ops: &mut dyn Ops, rows: &Rows) -> Tensor {
        let ids = self.without_media(rows);
        let x = ops.embed(&self.embedding.weight, &ids, (self.info.width as f32).sqrt());
        place_media(ops, x, rows)
    }

    fn block(
        &self,
        layer: usize,
        ops: &mut dyn Ops,
        x: Tensor,
        rows: &Rows,
        cache: &mut KvCache,
    ) -> Tensor {
        let l = &self.layers[layer];
        let rope = if l.attention.window.is_some() { &self.local_rope } else { &self.global_rope };
        let h = ops.rms_norm(&x, &l.input_norm, self.eps);
        let q = ops.linear(&h, &l.q);
        let q = ops.rms_norm(&q, &l.q_norm, self.eps);
        let q = ops.rope(q, rope, rows);
        let h = match &l.keys {
            Some(keys) => {
                let k = ops.linear(&h, &keys.k);
                let v = keys.v.as_ref().map(|v| ops.linear(&h, v));
                let v = ops.rms_norm(v.as_ref().unwrap_or(&k), &keys.v_norm, self.eps);
                let k = ops.rms_norm(&k, &keys.k_norm, self.eps);
                let k = ops.rope(k, rope, rows);
                ops.attend(&q, &k, &v, &l.attention, l.kv, rows, cache)
            }
            None => ops.attend_shared(&q, &l.attention, l.kv, rows, cache),
        };
        let h = ops.linear(&h, &l.o);
        let h = ops.rms_norm(&h, &l.post_attention_norm, self.eps);
        let x = ops.add(x, &h);

        let h = ops.rms_norm(&x, &l.pre_ffn_norm, self.eps);
        let (gate, up) = (ops.linear(&h, &l.gate), ops.linear(&h, &l.up));
        let h = ops.gated(gate, &up, self.act);
        let mut h = ops.linear(&h, &l.down);
        if let Some(e) = &l.experts {
            let r = ops.rms_norm(&x, &e.router_norm, self.eps);
            let r = ops.scale(r, (self.info.width as f32).powf(-0.5));
            let scores = ops.linear(&r, &e.router);
            let routes = ops.route(&scores, e.active, &e.scale);
            let m = ops.rms_norm(&x, &e.pre_norm, self.eps);
            let m = ops.experts(&m, &routes, &e.gate_up, &e.down, self.act);
            let m = ops.rms_norm(&m, &e.post_norm, self.eps);
            let dense = ops.rms_norm(&h, &e.post_dense_norm, self.eps);
            h = ops.add(dense, &m);
        }
        let h = ops.rms_norm(&h, &l.post_ffn_norm, self.eps);
        let mut x = ops.add(x, &h);

        if let Some(p) = &l.ple {
            let gate = ops.linear(&x, &p.gate);
            let own = self.per_layer(ops, p, rows);
            let h = ops.gated(gate, &own, self.act);
            let h = ops.linear(&h, &p.projection);
            let h = ops.rms_norm(&h, &p.norm, self.eps);
            x = ops.add(x, &h);
        }
        ops.scale(x, l.scale)
    }

    fn norm(&self, ops: &mut dyn Ops, x: &Tensor) -> Tensor {
        let x = ops.rms_norm(x, &self.norm, self.eps);
        ops.probe("final", &x);
        x
    }

    fn head(&self, ops: &mut dyn Ops, x: &Tensor) -> Tensor {
        let x = self.norm(ops, x);
        let logits = ops.linear(&x, &self.embedding);
        match self.softcap {
            Some(cap) => ops.softcap(logits, cap),
            None => logits,
        }
    }
}

impl Gemma4 {
    fn without_media(&self, rows: &Rows) -> Vec<u32> {
        let mut ids = rows.ids.clone();
        ids.iter_mut().filter(|id| self.media.contains(id)).for_each(|id| *id = 0);
        rows.media.iter().for_each(|m| ids[m.rows.clone()].fill(0));
        ids
    }

    /// What layer `p` adds of the tokens themselves, `[rows, ple]`: their rows of its table and a
    /// projection of their embeddings. A block computes it for itself, so that it depends on its
    /// input and the tokens alone.
    fn per_layer(&self, ops: &mut dyn Ops, p: &PerLayer, rows: &Rows) -> Tensor {
        let Some(norm) = &self.ple_norm else { unreachable!("loaded together") };
        let x = self.embed(ops, rows);
        let x = ops.linear(&x, &p.context);
        let x = ops.scale(x, (self.info.width as f32).powf(-0.5));
        let x = ops.rms_norm(&x, norm, self.eps);
        let known = p.table.n() as u32;
        let mut ids = self.without_media(rows);
        ids.iter_mut().filter(|id| **id >= known).for_each(|id| *id = 0);
        let own = ops.embed(&p.table, &ids, (p.table.k() as f32).sqrt());
        let x = ops.add(x, &own);
        ops.scale(x, 0.5f32.sqrt())
    }
}
