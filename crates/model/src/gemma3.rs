//! Gemma 3, text: 270M, 1B, 4B, 12B, 27B (<https://arxiv.org/abs/2503.19786>), also the text part
//! of a multimodal checkpoint, and EmbeddingGemma (<https://arxiv.org/abs/2509.20354>). Reference:
//! transformers `models/gemma3/modeling_gemma3.py`.
//!
//! Sandwich norms, RMSNorm on queries and keys, five local layers for each global one, and two
//! RoPE bases.

use crate::load::{NormOffset, Weights};
use crate::settings::{self, Settings};
use crate::{Info, Model, place_media};
use lapidary_formats::Result;
use lapidary_ops::{
    Activation, AttentionSpec, KvCache, KvLayout, Linear, Ops, Rope, RopePairs, Rows, Tensor,
    Vector,
};

struct Gemma3 {
    info: Info,
    eps: f32,
    act: Activation,
    /// `[vocab, width]`, also the output projection.
    embedding: Linear,
    layers: Vec<Layer>,
    norm: Vector,
    local_rope: Rope,
    global_rope: Rope,
    softcap: Option<f32>,
}

struct Layer {
    attention: AttentionSpec,
    input_norm: Vector,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// `[head_dim]`
    q_norm: Vector,
    /// `[head_dim]`
    k_norm: Vector,
    post_attention_norm: Vector,
    pre_ffn_norm: Vector,
    gate: Linear,
    up: Linear,
    down: Linear,
    post_ffn_norm: Vector,
}

/// What transformers' `Gemma3TextConfig` assumes: the multimodal checkpoints' files say little.
pub(crate) const DEFAULTS: &[(&str, usize)] = &[
    ("vocab_size", 262_208),
    ("hidden_size", 2304),
    ("intermediate_size", 9216),
    ("num_hidden_layers", 26),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("head_dim", 256),
    ("sliding_window", 4096),
    ("max_position_embeddings", 131_072),
];

/// The model's figures, from its settings alone.
pub(crate) fn info(s: &Settings) -> Result<Info> {
    let width = s.count("hidden_size", "embedding_length", settings::WIDTH)?;
    let layers = s.count("num_hidden_layers", "block_count", settings::LAYERS)?;
    let (heads, kv_heads) = s.heads()?;
    let context = s.opt_count("max_position_embeddings", "context_length", settings::CONTEXT)?;
    Ok(Info {
        encoder: is_encoder(s)?,
        prefix: false,
        family: "gemma3",
        vocab: s.vocab()?,
        layers,
        width,
        context: context.unwrap_or(131_072),
        kv: KvLayout::new(kv_heads, s.head_dim(width, heads)?, &windows(s, layers)?),
    })
}

pub(crate) fn load(s: &Settings, w: &mut Weights) -> Result<Box<dyn Model>> {
    s.require_flag("attention_bias", false)?;
    let encoder = is_encoder(s)?;
    let info = info(s)?;
    let (width, count, vocab) = (info.width, info.layers, info.vocab);
    let ffn = s.count("intermediate_size", "feed_forward_length", settings::WIDTH)?;
    let (heads, kv_heads) = s.heads()?;
    let head_dim = s.head_dim(width, heads)?;
    let windows = windows(s, count)?;
    let (local_base, local_divisor) =
        s.rope(("rope_local_base_freq", "rope.freq_base_swa"), Some("sliding_attention"), 1e4)?;
    let (global_base, divisor) =
        s.rope(("rope_theta", "rope.freq_base"), Some("full_attention"), 1e6)?;
    // `rope_scaling` of transformers 4 is for the global layers; GGUF has one key, for them too.
    let scaled_kinds = s.hf().is_some_and(|c| c.has("rope_parameters"));
    let local_divisor = if scaled_kinds { local_divisor } else { 1.0 };
    let scale = match s.opt_positive("query_pre_attn_scalar", "")? {
        Some(scalar) => scalar.powf(-0.5),
        None if s.hf().is_some() => 256f32.powf(-0.5),
        // GGUF has no key for it; the 27B model alone differs (168 = width / heads).
        None if count == 62 => ((width / heads) as f32).powf(-0.5),
        None => (head_dim as f32).powf(-0.5),
    };

    w.set_prefix(
        &["model.", "language_model.model.", "model.language_model.", ""],
        "embed_tokens.weight",
    );
    w.ignore(&["vision_tower.", "multi_modal_projector.", "lm_head.weight", "dense_"]);
    let embedding = w.linear("embed_tokens", "token_embd", [vocab, width])?;
    let norm = w.norm("norm", "output_norm", width, NormOffset::OneInHf)?;
    let layers = (windows.iter().enumerate())
        .map(|(i, &window)| {
            let hf = |name: &str| format!("layers.{i}.{name}");
            let gguf = |name: &str| format!("blk.{i}.{name}");
            let mut norm =
                |h: &str, g: &str, len| w.norm(&hf(h), &gguf(g), len, NormOffset::OneInHf);
            let input_norm = norm("input_layernorm", "attn_norm", width)?;
            let q_norm = norm("self_attn.q_norm", "attn_q_norm", head_dim)?;
            let k_norm = norm("self_attn.k_norm", "attn_k_norm", head_dim)?;
            let post_attention_norm =
                norm("post_attention_layernorm", "post_attention_norm", width)?;
            let pre_ffn_norm = norm("pre_feedforward_layernorm", "ffn_norm", width)?;
            let post_ffn_norm = norm("post_feedforward_layernorm", "post_ffw_norm", width)?;
            let mut linear = |h: &str, g: &str, shape| w.linear(&hf(h), &gguf(g), shape);
            Ok(Layer {
                attention: AttentionSpec {
                    heads,
                    kv_heads,
                    head_dim,
                    scale,
                    window,
                    ahead: if encoder { window.map_or(usize::MAX, |w| w - 1) } else { usize::MAX },
                    softcap: None,
                },
                input_norm,
                q: linear("self_attn.q_proj", "attn_q", [heads * head_dim, width])?,
                k: linear("self_attn.k_proj", "attn_k", [kv_heads * head_dim, width])?,
                v: linear("self_attn.v_proj", "attn_v", [kv_heads * head_dim, width])?,
                o: linear("self_attn.o_proj", "attn_output", [width, heads * head_dim])?,
                q_norm,
                k_norm,
                post_attention_norm,
                pre_ffn_norm,
                gate: linear("mlp.gate_proj", "ffn_gate", [ffn, width])?,
                up: linear("mlp.up_proj", "ffn_up", [ffn, width])?,
                down: linear("mlp.down_proj", "ffn_down", [width, ffn])?,
                post_ffn_norm,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Box::new(Gemma3 {
        info,
        eps: s.opt_positive("rms_norm_eps", "attention.layer_norm_rms_epsilon")?.unwrap_or(1e-6),
        act: s.activation(&["hidden_activation", "hidden_act"], Activation::GeluTanh)?,
        embedding,
        layers,
        norm,
        local_rope: Rope::new(local_base, head_dim, local_divisor, RopePairs::Halves),
        global_rope: Rope::new(global_base, head_dim, divisor, RopePairs::Halves),
        softcap: s.opt_positive("final_logit_softcapping", "final_logit_softcapping")?,
    }))
}

/// Whether it is EmbeddingGemma: every row sees all others.
fn is_encoder(s: &Settings) -> Result<bool> {
    Ok(s.architecture() == "gemma-embedding" || s.flag("use_bidirectional_attention")?)
}

/// The window of each layer: `layer_types`, or every sixth layer global.
fn windows(s: &Settings, count: usize) -> Result<Vec<Option<usize>>> {
    let mut window = s.count("sliding_window", "attention.sliding_window", settings::CONTEXT)?;
    if is_encoder(s)? {
        // Half of it to each side, and the row itself.
        window = window / 2 + 1;
    }
    if let Some(kinds) = s.layer_types(count)? {
        return Ok(kinds.into_iter().map(|local| local.then_some(window)).collect());
    }
    let key = ("sliding_window_pattern", "attention.sliding_window_pattern");
    let pattern = s.opt_count(key.0, key.1, 1..=settings::LAYERS.into_inner().1)?.unwrap_or(6);
    Ok((1..=count).map(|i| (!i.is_multiple_of(pattern)).then_some(window)).collect())
}

impl Model for Gemma3 {
    fn info(&self) -> &Info {
        &self.info
    }

    fn embed(&self, ops: &mut dyn Ops, rows: &Rows) -> Tensor {
        let x = ops.embed(&self.embedding.weight, &rows.ids, (self.info.width as f32).sqrt());
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
        let (q, k, v) = (ops.linear(&h, &l.q), ops.linear(&h, &l.k), ops.linear(&h, &l.v));
        let (q, k) = (ops.rms_norm(&q, &l.q_norm, self.eps), ops.rms_norm(&k, &l.k_norm, self.eps));
        let (q, k) = (ops.rope(q, rope, rows), ops.rope(k, rope, rows));
        let h = ops.attend(&q, &k, &v, &l.attention, layer, rows, cache);
        let h = ops.linear(&h, &l.o);
        let h = ops.rms_norm(&h, &l.post_attention_norm, self.eps);
        let x = ops.add(x, &h);

        let h = ops.rms_norm(&x, &l.pre_ffn_norm, self.eps);
        let (gate, up) = (ops.linear(&h, &l.gate), ops.linear(&h, &l.up));
        let h = ops.gated(gate, &up, self.act);
        let h = ops.linear(&h, &l.down);
        let h = ops.rms_norm(&h, &l.post_ffn_norm, self.eps);
        ops.add(x, &h)
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
