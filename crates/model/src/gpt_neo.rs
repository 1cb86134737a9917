//! GPT-Neo: GPT-3's shape as EleutherAI published it, dense and local layers in turn, attention
//! scores without a scale. Reference: transformers `models/gpt_neo/modeling_gpt_neo.py`.

use crate::load::Weights;
use crate::settings::{self, Settings};
use crate::{Info, Model};
use lapidary_formats::Result;
use lapidary_ops::{
    Activation, AttentionSpec, KvCache, KvLayout, Linear, Ops, Rows, Tensor, Vector, Weight,
};

struct GptNeo {
    info: Info,
    eps: f32,
    act: Activation,
    /// `[vocab, width]`, also the output projection.
    tokens: Linear,
    /// `[info.context, width]`
    positions: Weight,
    layers: Vec<Layer>,
    norm: (Vector, Vector),
}

struct Layer {
    attention: AttentionSpec,
    norm_1: (Vector, Vector),
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    norm_2: (Vector, Vector),
    up: Linear,
    down: Linear,
}

/// The model's figures, from its settings alone.
pub(crate) fn info(s: &Settings) -> Result<Info> {
    let width = s.count("hidden_size", "embedding_length", settings::WIDTH)?;
    let layers = s.count("num_layers", "block_count", settings::LAYERS)?;
    let heads = s.count("num_heads", "attention.head_count", settings::HEADS)?;
    if !width.is_multiple_of(heads) {
        return Err(s.error("num_heads", format!("{heads} heads do not divide a width of {width}")));
    }
    Ok(Info {
        encoder: false,
        prefix: false,
        family: "gpt_neo",
        vocab: s.vocab()?,
        layers,
        width,
        context: s.count("max_position_embeddings", "context_length", settings::CONTEXT)?,
        kv: KvLayout::new(heads, width / heads, &s.attention_layers(layers)?),
    })
}

pub(crate) fn load(s: &Settings, w: &mut Weights) -> Result<Box<dyn Model>> {
    let info = info(s)?;
    let (width, count, vocab) = (info.width, info.layers, info.vocab);
    let heads = s.count("num_heads", "attention.head_count", settings::HEADS)?;
    let ffn = s.opt_count("intermediate_size", "feed_forward_length", settings::WIDTH)?;
    let ffn = ffn.unwrap_or(4 * width);
    let (kv_heads, head_dim) = (heads, width / heads);
    let windows = s.attention_layers(count)?;

    w.set_prefix(&["transformer.", ""], "wte.weight");
    // Masks that old files carry along.
    w.ignore(&["lm_head.weight", "attention.bias", "attention.masked_bias"]);
    let tokens = w.linear("wte", "token_embd", [vocab, width])?;
    let positions = w.table("wpe", "position_embd", [info.context, width])?;
    let norm = w.layer_norm("ln_f", "output_norm", width)?;
    let layers = (windows.iter().enumerate())
        .map(|(i, &window)| {
            let hf = |name: &str| format!("h.{i}.{name}");
            let gguf = |name: &str| format!("blk.{i}.{name}");
            let mut linear = |h: &str, g: &str, shape| w.linear_bias(&hf(h), &gguf(g), shape);
            Ok(Layer {
                attention: AttentionSpec {
                    heads,
                    kv_heads,
                    head_dim,
                    scale: 1.0,
                    window,
                    ahead: 0,
                    softcap: None,
                },
                q: linear("attn.attention.q_proj", "attn_q", [width, width])?,
                k: linear("attn.attention.k_proj", "attn_k", [width, width])?,
                v: linear("attn.attention.v_proj", "attn_v", [width, width])?,
                o: linear("attn.attention.out_proj", "attn_output", [width, width])?,
                up: linear("mlp.c_fc", "ffn_up", [ffn, width])?,
                down: linear("mlp.c_proj", "ffn_down", [width, ffn])?,
                norm_1: w.layer_norm(&hf("ln_1"), &gguf("attn_norm"), width)?,
                norm_2: w.layer_norm(&hf("ln_2"), &gguf("ffn_norm"), width)?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Box::new(GptNeo {
        info,
        eps: s.opt_positive("layer_norm_epsilon", "attention.layer_norm_epsilon")?.unwrap_or(1e-5),
        act: s.activation(&["activation_function"], Activation::GeluTanh)?,
        tokens,
        positions,
        layers,
        norm,
    }))
}

impl Model for GptNeo {
    fn info(&self) -> &Info {
        &self.info
    }

    fn embed(&self, ops: &mut dyn Ops, rows: &Rows) -> Tensor {
        let positions: Vec<u32> = rows.positions().map(|p| p as u32).collect();
        let x = ops.embed(&self.tokens.weight, &rows.ids, 1.0);
        let p = ops.embed(&self.positions, &positions, 1.0);
        ops.add(x, &p)
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
        let h = ops.layer_norm(&x, &l.norm_1.0, &l.norm_1.1, self.eps);
        let (q, k, v) = (ops.linear(&h, &l.q), ops.linear(&h, &l.k), ops.linear(&h, &l.v));
        let h = ops.attend(&q, &k, &v, &l.attention, layer, rows, cache);
        let h = ops.linear(&h, &l.o);
        let x = ops.add(x, &h);

        let h = ops.layer_norm(&x, &l.norm_2.0, &l.norm_2.1, self.eps);
        let h = ops.linear(&h, &l.up);
        let h = ops.activation(h, self.act);
        let h = ops.linear(&h, &l.down);
        ops.add(x, &h)
    }

    fn norm(&self, ops: &mut dyn Ops, x: &Tensor) -> Tensor {
        let x = ops.layer_norm(x, &self.norm.0, &self.norm.1, self.eps);
        ops.probe("final", &x);
        x
    }

    fn head(&self, ops: &mut dyn Ops, x: &Tensor) -> Tensor {
        let x = self.norm(ops, x);
        ops.linear(&x, &self.tokens)
    }
}
