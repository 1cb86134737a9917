//! EmbeddingGemma 2, text. Reference: transformers
//! `models/embedding_gemma2/modeling_embedding_gemma2.py`.
//!
//! Gemma 4's blocks where every row sees all rows (local layers: so many on both sides), heads of
//! two sizes, and per-layer embeddings that are a projection of the token's embedding alone. What
//! comes out of the last norm is projected to the width of the embeddings.

use crate::load::{NormOffset, Weights};
use crate::settings::{self, Settings};
use crate::{Info, Model};
use lapidary_formats::Result;
use lapidary_ops::{
    Activation, AttentionSpec, KvCache, KvLayout, Linear, Ops, Rope, RopePairs, Rows, Tensor,
    Vector,
};

struct EmbeddingGemma2 {
    info: Info,
    eps: f32,
    act: Activation,
    /// `[vocab, width]`
    embedding: Linear,
    /// `[ple]`
    ple_norm: Vector,
    layers: Vec<Layer>,
    norm: Vector,
    /// `[embedding, width]`
    projection: Linear,
    local_rope: Rope,
    global_rope: Rope,
}

struct Layer {
    attention: AttentionSpec,
    input_norm: Vector,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    /// `[head_dim]` each; the last one of ones.
    q_norm: Vector,
    k_norm: Vector,
    v_norm: Vector,
    post_attention_norm: Vector,
    pre_ffn_norm: Vector,
    gate: Linear,
    up: Linear,
    down: Linear,
    post_ffn_norm: Vector,
    /// `[ple, width]`: of the embedding.
    ple_context: Linear,
    /// `[ple, width]`
    ple_gate: Linear,
    /// `[width, ple]`
    ple_projection: Linear,
    post_ple_norm: Vector,
    scale: f32,
}

/// What transformers' `EmbeddingGemma2TextConfig` assumes.
pub(crate) const DEFAULTS: &[(&str, usize)] = &[
    ("vocab_size", 262_144),
    ("hidden_size", 512),
    ("intermediate_size", 2048),
    ("num_hidden_layers", 24),
    ("num_attention_heads", 4),
    ("num_key_value_heads", 2),
    ("num_global_key_value_heads", 1),
    ("head_dim", 256),
    ("global_head_dim", 512),
    ("sliding_window", 512),
    ("max_position_embeddings", 8192),
    ("hidden_size_per_layer_input", 512),
    ("embedding_dim", 768),
];

/// The window, KV heads and size of a head of each layer.
fn shapes(s: &Settings, count: usize) -> Result<Vec<(Option<usize>, usize, usize)>> {
    // Rows that are at most so far apart see each other.
    let reach = s.count("sliding_window", "attention.sliding_window", settings::CONTEXT)?;
    let local = (s.layer_types(count)?)
        .unwrap_or_else(|| (1..=count).map(|i| !i.is_multiple_of(6)).collect());
    let heads = s.count("num_attention_heads", "", settings::HEADS)?;
    (0..count)
        .map(|i| {
            let keys = match local[i] {
                true => ("num_key_value_heads", "head_dim"),
                false => ("num_global_key_value_heads", "global_head_dim"),
            };
            let mut kv_heads = s.count(keys.0, "", settings::HEADS)?;
            let mut head_dim = s.count(keys.1, "", settings::HEAD_DIM)?;
            if let Some(mine) = s.opt_layer_config(i)? {
                head_dim = mine.opt_usize("head_dim")?.unwrap_or(head_dim);
                kv_heads = mine.opt_usize("num_key_value_heads")?.unwrap_or(kv_heads);
            }
            if kv_heads == 0 || heads % kv_heads != 0 {
                return Err(s.error(keys.0, format!("{kv_heads} can't be shared by {heads} heads")));
            }
            if head_dim % 2 != 0 || !settings::HEAD_DIM.contains(&head_dim) {
                return Err(s.error(keys.1, format!("heads of {head_dim}: expected an even size")));
            }
            Ok((local[i].then_some(reach + 1), kv_heads, head_dim))
        })
        .collect()
}

/// The model's figures, from its settings alone.
pub(crate) fn info(s: &Settings) -> Result<Info> {
    let layers = s.count("num_hidden_layers", "", settings::LAYERS)?;
    let kept: Vec<_> = shapes(s, layers)?.into_iter().map(|(w, kv, dim)| (kv, dim, w)).collect();
    Ok(Info {
        encoder: true,
        prefix: false,
        family: "embedding_gemma2",
        vocab: s.vocab()?,
        layers,
        width: s.count("hidden_size", "", settings::WIDTH)?,
        context: s.count("max_position_embeddings", "", settings::CONTEXT)?,
        kv: KvLayout::mixed(&kept),
    })
}

pub(crate) fn load(s: &Settings, w: &mut Weights) -> Result<Box<dyn Model>> {
    s.require_flag("attention_bias", false)?;
    let info = info(s)?;
    let (width, count) = (info.width, info.layers);
    let shapes = shapes(s, count)?;
    let ple = s.count("hidden_size_per_layer_input", "", settings::WIDTH)?;
    let size = s.count("embedding_dim", "", settings::WIDTH)?;
    let dim_of = |local: bool| shapes.iter().find(|x| x.0.is_some() == local).map_or(2, |x| x.2);
    let rope = |kind: &str, base, dim| {
        let (base, divisor) = s.rope(("", ""), Some(kind), base)?;
        Ok(Rope::new(base, dim, divisor, RopePairs::Halves))
    };
    w.set_prefix(&["language_model.", "model.language_model.", ""], "embed_tokens.weight");
    w.ignore(&["vision", "audio"]);
    let context = ("ple.per_layer_model_projection.weight", "");
    let contexts = w.linear_parts(context.0, context.1, count, [ple, width])?;
    let layers = (contexts.into_iter().enumerate())
        .map(|(i, context)| layer(s, w, (i, shapes[i]), width, (context, ple)))
        .collect::<Result<Vec<_>>>()?;
    Ok(Box::new(EmbeddingGemma2 {
        eps: s.opt_positive("rms_norm_eps", "")?.unwrap_or(1e-6),
        act: s.activation(&["hidden_activation"], Activation::GeluTanh)?,
        embedding: w.linear("embed_tokens", "", [info.vocab, width])?,
        ple_norm: w.norm("ple.per_layer_projection_norm", "", ple, NormOffset::Zero)?,
        layers,
        norm: w.norm("norm", "", width, NormOffset::Zero)?,
        projection: w.linear("embedding_projection", "", [size, width])?,
        local_rope: rope("sliding_attention", 1e4, dim_of(true))?,
        global_rope: rope("full_attention", 1e6, dim_of(false))?,
        info,
    }))
}

fn layer(
    s: &Settings,
    w: &mut Weights,
    (i, (window, kv_heads, head_dim)): (usize, (Option<usize>, usize, usize)),
    width: usize,
    (ple_context, ple): (Linear, usize),
) -> Result<Layer> {
    let heads = s.count("num_attention_heads", "", settings::HEADS)?;
    let ffn = s.count("intermediate_size", "", settings::WIDTH)?;
    let name = |part: &str| format!("layers.{i}.{part}");
    let mut norm = |part: &str, len| w.norm(&name(part), "", len, NormOffset::Zero);
    let input_norm = norm("input_layernorm", width)?;
    let q_norm = norm("self_attn.q_norm", head_dim)?;
    let k_norm = norm("self_attn.k_norm", head_dim)?;
    let post_attention_norm = norm("post_attention_layernorm", width)?;
    let pre_ffn_norm = norm("pre_feedforward_layernorm", width)?;
    let post_ffn_norm = norm("post_feedforward_layernorm", width)?;
    let post_ple_norm = norm("ple_block.post_per_layer_input_norm", width)?;
    let scale = w.vector(&name("layer_scalar"), "", 1)?.values()[0];
    let mut linear = |part: &str, shape| w.linear(&name(part), "", shape);
    let ahead = window.map_or(usize::MAX, |w| w - 1);
    Ok(Layer {
        attention: AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            scale: 1.0,
            window,
            ahead,
            softcap: None,
        },
        input_norm,
        q: linear("self_attn.q_proj", [heads * head_dim, width])?,
        k: linear("self_attn.k_proj", [kv_heads * head_dim, width])?,
        v: linear("self_attn.v_proj", [kv_heads * head_dim, width])?,
        o: linear("self_attn.o_proj", [width, heads * head_dim])?,
        q_norm,
        k_norm,
        v_norm: Vector::new(vec![1.0; head_dim]),
        post_attention_norm,
        pre_ffn_norm,
        gate: linear("mlp.gate_proj", [ffn, width])?,
        up: linear("mlp.up_proj", [ffn, width])?,
        down: linear("mlp.down_proj", [width, ffn])?,
        post_ffn_norm,
        ple_context,
        ple_gate: linear("ple_block.per_layer_input_gate", [ple, width])?,
        ple_projection: linear("ple_block.per_layer_projection", [width, ple])?,
        post_ple_norm,
        scale,
    })
}

impl Model for EmbeddingGemma2 {
    fn info(&self) -> &Info {
        &self.info
    }

    fn embed(&self, ops: &mut dyn Ops, rows: &Rows) -> Tensor {
        ops.embed(&self.embedding.weight, &rows.ids, (self.info.width as f32).sqrt())
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
        let v = ops.rms_norm(&v, &l.v_norm, self.eps);
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
        let x = ops.add(x, &h);

        let own = self.embed(ops, rows);
        let own = ops.linear(&own, &l.ple_context);
        let own = ops.scale(own, (self.info.width as f32).powf(-0.5));
        let own = ops.rms_norm(&own, &self.ple_norm, self.eps);
        let gate = ops.linear(&x, &l.ple_gate);
        let h = ops.gated(gate, &own, self.act);
        let h = ops.linear(&h, &l.ple_projection);
        let h = ops.rms_norm(&h, &l.post_ple_norm, self.eps);
        let x = ops.add(x, &h);
        ops.scale(x, l.scale)
    }

    /// The last norm and the projection: `[rows, embedding]`.
    fn norm(&self, ops: &mut dyn Ops, x: &Tensor) -> Tensor {
        let x = ops.rms_norm(x, &self.norm, self.eps);
        ops.linear(&x, &self.projection)
    }

    /// An encoder has no logits of its own: the products with the embeddings of all tokens.
    fn head(&self, ops: &mut dyn Ops, x: &Tensor) -> Tensor {
        let x = ops.rms_norm(x, &self.norm, self.eps);
        ops.linear(&x, &self.embedding)
    }
}
