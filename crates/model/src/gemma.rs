//! Gemma 1: 2B, 7B, 1.1, CodeGemma (<https://arxiv.org/abs/2403.08295>), and the text of PaliGemma
//! (<https://arxiv.org/abs/2407.07726>). Reference: transformers `models/gemma/modeling_gemma.py`,
//! `models/paligemma`.
//!
//! Norms before attention and feed-forward alone, GeGLU, tied embeddings, all layers global.

use crate::load::{NormOffset, Weights};
use crate::settings::{self, Settings};
use crate::{Info, Model, place_media};
use lapidary_formats::Result;
use lapidary_ops::{
    Activation, AttentionSpec, KvCache, KvLayout, Linear, Ops, Rope, RopePairs, Rows, Tensor,
    Vector,
};

struct Gemma {
    info: Info,
    eps: f32,
    act: Activation,
    attention: AttentionSpec,
    rope: Rope,
    /// `[vocab, width]`, also the output projection.
    embedding: Linear,
    layers: Vec<Layer>,
    norm: Vector,
}

struct Layer {
    input_norm: Vector,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    post_attention_norm: Vector,
    gate: Linear,
    up: Linear,
    down: Linear,
}

/// What transformers' `GemmaConfig` assumes and PaliGemma's file leaves out.
pub(crate) const DEFAULTS: &[(&str, usize)] = &[("head_dim", 256)];

/// The model's figures, from its settings alone.
pub(crate) fn info(s: &Settings) -> Result<Info> {
    let width = s.count("hidden_size", "embedding_length", settings::WIDTH)?;
    let layers = s.count("num_hidden_layers", "block_count", settings::LAYERS)?;
    let (heads, kv_heads) = s.heads()?;
    let context = s.opt_count("max_position_embeddings", "context_length", settings::CONTEXT)?;
    Ok(Info {
        encoder: false,
        prefix: s.architecture() == "paligemma",
        family: "gemma",
        vocab: s.vocab()?,
        layers,
        width,
        context: context.unwrap_or(8192),
        kv: KvLayout::new(kv_heads, s.head_dim(width, heads)?, &vec![None; layers]),
    })
}

pub(crate) fn load(s: &Settings, w: &mut Weights) -> Result<Box<dyn Model>> {
    s.require_flag("attention_bias", false)?;
    let info = info(s)?;
    let (width, count, vocab) = (info.width, info.layers, info.vocab);
    let ffn = s.count("intermediate_size", "feed_forward_length", settings::WIDTH)?;
    let (heads, kv_heads) = s.heads()?;
    let head_dim = s.head_dim(width, heads)?;
    let (base, divisor) = s.rope(("rope_theta", "rope.freq_base"), None, 1e4)?;
    let scale = (head_dim as f32).powf(-0.5);
    let ahead = if info.prefix { usize::MAX } else { 0 };

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
    let layers = (0..count)
        .map(|i| {
            let hf = |name: &str| format!("layers.{i}.{name}");
            let gguf = |name: &str| format!("blk.{i}.{name}");
            let mut norm = |h: &str, g: &str| w.norm(&hf(h), &gguf(g), width, NormOffset::OneInHf);
            let input_norm = norm("input_layernorm", "attn_norm")?;
            let post_attention_norm = norm("post_attention_layernorm", "ffn_norm")?;
            let mut linear = |h: &str, g: &str, shape| w.linear(&hf(h), &gguf(g), shape);
            Ok(Layer {
                input_norm,
                q: linear("self_attn.q_proj", "attn_q", [heads * head_dim, width])?,
                k: linear("self_attn.k_proj", "attn_k", [kv_heads * head_dim, width])?,
                v: linear("self_attn.v_proj", "attn_v", [kv_heads * head_dim, width])?,
                o: linear("self_attn.o_proj", "attn_output", [width, heads * head_dim])?,
                post_attention_norm,
                gate: linear("mlp.gate_proj", "ffn_gate", [ffn, width])?,
                up: linear("mlp.up_proj", "ffn_up", [ffn, width])?,
                down: linear("mlp.down_proj", "ffn_down", [width, ffn])?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Box::new(Gemma {
        info,
        eps: s.opt_positive("rms_norm_eps", "attention.layer_norm_rms_epsilon")?.unwrap_or(1e-6),
        act: s.activation(&["hidden_activation", "hidden_act"], Activation::GeluTanh)?,
        attention: AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            scale,
            window: None,
            ahead,
            softcap: None,
        },
        rope: Rope::new(base, head_dim, divisor, RopePairs::Halves),
        embedding,
        layers,
        norm,
    }))
}

impl Model for Gemma {
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
        let h = ops.attend(&q, &k, &v, &self.attention, layer, rows, cache);
        let h = ops.linear(&h, &l.o);
        let x = ops.add(x, &h);

        let h = ops.rms_norm(&x, &l.post_attention_norm, self.eps);
        let (gate, up) = (ops.linear(&h, &l.gate), ops.linear(&h, &l.up));
        let h = ops.gated(gate, &up, self.act);
        let h = ops.linear(&h, &l.down);
        ops.add(x, &h)
    }

    fn norm(&self, ops: &mut dyn Ops, x: &Tensor) -> Tensor {
        let x = ops.rms_norm(x, &self.norm, self.eps);
        ops.probe("final", &x);
        x
    }

    fn head(&self, ops: &mut dyn Ops, x: &Tensor) -> Tensor {
        let x = self.norm(ops, x);
        ops.linear(&x, &self.embedding)
    }
}
