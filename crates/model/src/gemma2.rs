//! Gemma 2: 2B, 9B, 27B, ShieldGemma (<https://arxiv.org/abs/2408.00118>), the text of PaliGemma 2
//! (<https://arxiv.org/abs/2412.03555>), and VaultGemma, which has no norms behind attention and
//! feed-forward. Reference: transformers `models/gemma2/modeling_gemma2.py`, `models/paligemma`,
//! `models/vaultgemma`.
//!
//! Sandwich norms, local and global layers in turn, soft caps on scores and logits.

use crate::load::{NormOffset, Weights};
use crate::settings::{self, Settings};
use crate::{Info, Model, place_media};
use lapidary_formats::Result;
use lapidary_ops::{
    Activation, AttentionSpec, KvCache, KvLayout, Linear, Ops, Rope, RopePairs, Rows, Tensor,
    Vector,
};

struct Gemma2 {
    info: Info,
    eps: f32,
    act: Activation,
    rope: Rope,
    /// `[vocab, width]`, also the output projection.
    embedding: Linear,
    layers: Vec<Layer>,
    norm: Vector,
    softcap: Option<f32>,
}

struct Layer {
    attention: AttentionSpec,
    input_norm: Vector,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    post_attention_norm: Option<Vector>,
    pre_ffn_norm: Vector,
    gate: Linear,
    up: Linear,
    down: Linear,
    post_ffn_norm: Option<Vector>,
}

/// What transformers' `Gemma2Config` assumes and PaliGemma 2's file leaves out.
pub(crate) const DEFAULTS: &[(&str, usize)] = &[
    ("num_attention_heads", 8),
    ("num_key_value_heads", 4),
    ("head_dim", 256),
    ("sliding_window", 4096),
];

/// The model's figures, from its settings alone.
pub(crate) fn info(s: &Settings) -> Result<Info> {
    let width = s.count("hidden_size", "embedding_length", settings::WIDTH)?;
    let layers = s.count("num_hidden_layers", "block_count", settings::LAYERS)?;
    let (heads, kv_heads) = s.heads()?;
    let context = s.opt_count("max_position_embeddings", "context_length", settings::CONTEXT)?;
    let context = context.unwrap_or(8192);
    let windows = windows(s, layers)?;
    Ok(Info {
        encoder: false,
        prefix: s.architecture() == "paligemma",
        family: "gemma2",
        vocab: s.vocab()?,
        layers,
        width,
        context,
        kv: KvLayout::new(kv_heads, s.head_dim(width, heads)?, &windows),
    })
}

/// The window of each layer: even layers are local, where the file doesn't say otherwise.
fn windows(s: &Settings, count: usize) -> Result<Vec<Option<usize>>> {
    let window = s.count("sliding_window", "attention.sliding_window", settings::CONTEXT)?;
    let local = s.layer_types(count)?.unwrap_or_else(|| (0..count).map(|i| i % 2 == 0).collect());
    Ok(local.into_iter().map(|l| l.then_some(window)).collect())
}

pub(crate) fn load(s: &Settings, w: &mut Weights) -> Result<Box<dyn Model>> {
    s.require_flag("attention_bias", false)?;
    let info = info(s)?;
    let (width, count, vocab) = (info.width, info.layers, info.vocab);
    let ffn = s.count("intermediate_size", "feed_forward_length", settings::WIDTH)?;
    let (heads, kv_heads) = s.heads()?;
    let head_dim = s.head_dim(width, heads)?;
    let (base, divisor) = s.rope(("rope_theta", "rope.freq_base"), None, 1e4)?;
    let softcap = cap(s, "attn_logit_softcapping", 50.0)?;
    let scale = match s.opt_positive("query_pre_attn_scalar", "")? {
        Some(scalar) => scalar.powf(-0.5),
        // GGUF has no key for it; the 27B model alone differs (144 = width / heads).
        None if count == 46 => ((width / heads) as f32).powf(-0.5),
        None => (head_dim as f32).powf(-0.5),
    };
    let windows = windows(s, count)?;
    let ahead = if info.prefix { usize::MAX } else { 0 };
    let vault = s.architecture() == "vaultgemma";

    w.set_prefix(
        &["model.", "language_model.model.", "model.language_model.", ""],
        "embed_tokens.weight",
    );
    w.ignore(&["lm_head.weight", "rotary_emb.inv_freq"]);
    if info.prefix {
        w.ignore(&["vision_tower.", "multi_modal_projector."]);
    }
    let embedding = w.linear("embed_tokens", "token_embd", [vocab, width])?;
    let norm = w.norm("norm", "output_norm", width, NormOffset::OneInHf)?;
    let layers = (windows.iter().enumerate())
        .map(|(i, &window)| {
            let hf = |name: &str| format!("layers.{i}.{name}");
            let gguf = |name: &str| format!("blk.{i}.{name}");
            let mut norm = |h: &str, g: &str| w.norm(&hf(h), &gguf(g), width, NormOffset::OneInHf);
            let input_norm = norm("input_layernorm", "attn_norm")?;
            let pre_ffn_norm = norm("pre_feedforward_layernorm", "ffn_norm")?;
            let mut post = |h: &str, g: &str| (!vault).then(|| norm(h, g)).transpose();
            let post_attention_norm = post("post_attention_layernorm", "post_attention_norm")?;
            let post_ffn_norm = post("post_feedforward_layernorm", "post_ffw_norm")?;
            let mut linear = |h: &str, g: &str, shape| w.linear(&hf(h), &gguf(g), shape);
            Ok(Layer {
                attention: AttentionSpec {
                    heads,
                    kv_heads,
                    head_dim,
                    scale,
                    window,
                    ahead,
                    softcap,
                },
                input_norm,
                q: linear("self_attn.q_proj", "attn_q", [heads * head_dim, width])?,
                k: linear("self_attn.k_proj", "attn_k", [kv_heads * head_dim, width])?,
                v: linear("self_attn.v_proj", "attn_v", [kv_heads * head_dim, width])?,
                o: linear("self_attn.o_proj", "attn_output", [width, heads * head_dim])?,
                post_attention_norm,
                pre_ffn_norm,
                gate: linear("mlp.gate_proj", "ffn_gate", [ffn, width])?,
                up: linear("mlp.up_proj", "ffn_up", [ffn, width])?,
                down: linear("mlp.down_proj", "ffn_down", [width, ffn])?,
                post_ffn_norm,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Box::new(Gemma2 {
        info,
        eps: s.opt_positive("rms_norm_eps", "attention.layer_norm_rms_epsilon")?.unwrap_or(1e-6),
        act: s.activation(&["hidden_activation", "hidden_act"], Activation::GeluTanh)?,
        rope: Rope::new(base, head_dim, divisor, RopePairs::Halves),
        embedding,
        layers,
        norm,
        softcap: cap(s, "final_logit_softcapping", 30.0)?,
    }))
}

/// A soft cap; a config.json that is silent means what the reference assumes.
fn cap(s: &Settings, key: &str, assumed: f32) -> Result<Option<f32>> {
    match s.opt_positive(key, key)? {
        None if s.hf().is_some_and(|c| !c.entries().any(|e| e.0 == key)) => Ok(Some(assumed)),
        found => Ok(found),
    }
}

impl Model for Gemma2 {
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
        let h = ops.rms_norm(&x, &l.input_norm, self.eps);
        let (q, k, v) = (ops.linear(&h, &l.q), ops.linear(&h, &l.k), ops.linear(&h, &l.v));
        let (q, k) = (ops.rope(q, &self.rope, rows), ops.rope(k, &self.rope, rows));
        let h = ops.attend(&q, &k, &v, &l.attention, layer, rows, cache);
        let h = ops.linear(&h, &l.o);
        let h = self.post_norm(ops, h, l.post_attention_norm.as_ref());
        let x = ops.add(x, &h);

        let h = ops.rms_norm(&x, &l.pre_ffn_norm, self.eps);
        let (gate, up) = (ops.linear(&h, &l.gate), ops.linear(&h, &l.up));
        let h = ops.gated(gate, &up, self.act);
        let h = ops.linear(&h, &l.down);
        let h = self.post_norm(ops, h, l.post_ffn_norm.as_ref());
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

impl Gemma2 {
    fn post_norm(&self, ops: &mut dyn Ops, x: Tensor, norm: Option<&Vector>) -> Tensor {
        match norm {
            Some(norm) => ops.rms_norm(&x, norm, self.eps),
            None => x,
        }
    }
}
