//! GPT-2, and the published shape of GPT-3: GPT-2 whose layers are dense and locally banded in
//! turn (<https://arxiv.org/abs/2005.14165>, section 2.1). No file format exists for the latter;
//! it is a GPT-2 checkpoint with GPT-Neo's keys `attention_layers` and `window_size`. Reference:
//! transformers `models/gpt2/modeling_gpt2.py`.

use crate::load::Weights;
use crate::settings::{self, Settings};
use crate::{Info, Model};
use lapidary_formats::Result;
use lapidary_ops::{
    Activation, AttentionSpec, KvCache, KvLayout, Linear, Ops, Rows, Tensor, Vector, Weight,
};

struct Gpt2 {
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
    let width = s.count("n_embd", "embedding_length", settings::WIDTH)?;
    let layers = s.count("n_layer", "block_count", settings::LAYERS)?;
    let heads = s.count("n_head", "attention.head_count", settings::HEADS)?;
    if !width.is_multiple_of(heads) {
        return Err(s.error("n_head", format!("{heads} heads do not divide a width of {width}")));
    }
    Ok(Info {
        encoder: false,
        prefix: false,
        family: "gpt2",
        vocab: s.vocab()?,
        layers,
        width,
        context: s.count("n_positions", "context_length", settings::CONTEXT)?,
        kv: KvLayout::new(heads, width / heads, &s.attention_layers(layers)?),
    })
}

pub(crate) fn load(s: &Settings, w: &mut Weights) -> Result<Box<dyn Model>> {
    s.require_flag("scale_attn_weights", true)?;
    s.require_flag("scale_attn_by_inverse_layer_idx", false)?;
    let info = info(s)?;
    let (width, count, vocab) = (info.width, info.layers, info.vocab);
    let heads = s.count("n_head", "attention.head_count", settings::HEADS)?;
    let ffn = s.opt_count("n_inner", "feed_forward_length", settings::WIDTH)?.unwrap_or(4 * width);
    let head_dim = width / heads;
    let scale = (head_dim as f32).powf(-0.5);
    let windows = s.attention_layers(count)?;

    w.set_prefix(&["transformer.", ""], "wte.weight");
    // Masks that old files carry along; the tied matrix a second time.
    w.ignore(&["lm_head.weight", "output.weight", "attn.bias", "attn.masked_bias"]);
    let tokens = w.linear("wte", "token_embd", [vocab, width])?;
    let positions = w.table("wpe", "position_embd", [info.context, width])?;
    let norm = w.layer_norm("ln_f", "output_norm", width)?;
    let layers = (windows.iter().enumerate())
        .map(|(i, &window)| {
            let hf = |name: &str| format!("h.{i}.{name}");
            let gguf = |name: &str| format!("blk.{i}.{name}");
            let mut conv = |h: &str, g: &str, shape, part| w.conv1d(&hf(h), &gguf(g), shape, part);
            let mut qkv = |part| conv("attn.c_attn", "attn_qkv", [width, width], (part, 3));
            let (q, k, v) = (qkv(0)?, qkv(1)?, qkv(2)?);
            let kv_heads = heads;
            Ok(Layer {
                attention: AttentionSpec {
                    heads,
                    kv_heads,
                    head_dim,
                    scale,
                    window,
                    ahead: 0,
                    softcap: None,
                },
                q,
                k,
                v,
                o: conv("attn.c_proj", "attn_output", [width, width], (0, 1))?,
                up: conv("mlp.c_fc", "ffn_up", [ffn, width], (0, 1))?,
                down: conv("mlp.c_proj", "ffn_down", [width, ffn], (0, 1))?,
                norm_1: w.layer_norm(&hf("ln_1"), &gguf("attn_norm"), width)?,
                norm_2: w.layer_norm(&hf("ln_2"), &gguf("ffn_norm"), width)?,
            })
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Box::new(Gpt2 {
        info,
        eps: s.opt_positive("layer_norm_epsilon", "attention.layer_norm_epsilon")?.unwrap_or(1e-5),
        act: s.activation(&["activation_function"], Activation::GeluTanh)?,
        tokens,
        positions,
        layers,
        norm,
    }))
}

impl Model for Gpt2 {
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
