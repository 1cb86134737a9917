//! SigLIP (<https://arxiv.org/abs/2303.15343>), the vision tower of Gemma 3 and PaliGemma. Reference:
//! transformers `models/siglip/modeling_siglip.py`, `models/gemma3`, `models/paligemma`.
//!
//! The picture is squeezed to a square, cut in patches, and every patch sees every other.

use crate::load::{NormOffset, Weights};
use crate::pixels::{Filter, Patches, patches, resize};
use crate::settings::{self, Settings};
use crate::vision::Vision;
use lapidary_formats::{Result, Rgb};
use lapidary_ops::{Activation, AttentionSpec, KvLayout, Linear, Ops, Rows, Vector, Weight};

struct Siglip {
    eps: f32,
    /// Pixels of the picture's side, and of a patch's.
    side: usize,
    patch: usize,
    filter: Filter,
    /// `[width, 3 * patch * patch]`
    patches: Linear,
    /// `[patches, width]`
    positions: Weight,
    attention: AttentionSpec,
    layers: Vec<Layer>,
    post_norm: Norm,
    projector: Projector,
}

/// To the text model's width.
enum Projector {
    /// Gemma 3: means of squares of `pool` patches a side, a norm, a product.
    Pooled { pool: usize, norm: Vector, linear: Linear },
    /// PaliGemma: a product.
    Plain(Linear),
}

type Norm = (Vector, Vector);

struct Layer {
    norm1: Norm,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    norm2: Norm,
    up: Linear,
    down: Linear,
}

/// What transformers' `SiglipVisionConfig` and `Gemma3Config` assume, as published.
pub(crate) const DEFAULTS: &[(&str, usize)] = &[
    ("hidden_size", 1152),
    ("intermediate_size", 4304),
    ("num_hidden_layers", 27),
    ("num_attention_heads", 16),
    ("image_size", 224),
    ("patch_size", 14),
];

/// Gemma 3's tower.
pub(crate) fn gemma3(s: &Settings, w: &mut Weights, text: usize) -> Result<Box<dyn Vision>> {
    tower(s, w, Filter::Bilinear, |w, width, grid| {
        let pool = pool(s, grid)?;
        let prefixes = ["multi_modal_projector.", "model.multi_modal_projector."];
        w.set_prefix(&prefixes, "mm_soft_emb_norm.weight");
        let norm = w.norm("mm_soft_emb_norm", "mm.soft_emb_norm", width, NormOffset::OneInHf)?;
        let names = ("mm_input_projection_weight", "mm.input_projection.weight");
        let linear = w.transposed(names.0, names.1, [text, width])?;
        Ok(Projector::Pooled { pool, norm, linear })
    })
}

/// PaliGemma's.
pub(crate) fn paligemma(s: &Settings, w: &mut Weights, text: usize) -> Result<Box<dyn Vision>> {
    tower(s, w, Filter::Bicubic, |w, width, _| {
        let prefixes = ["multi_modal_projector.", "model.multi_modal_projector."];
        w.set_prefix(&prefixes, "linear.weight");
        Ok(Projector::Plain(w.linear_bias("linear", "", [text, width])?))
    })
}

/// A tower whose width and patches a side `project` gets.
fn tower(
    s: &Settings,
    w: &mut Weights,
    filter: Filter,
    project: impl FnOnce(&mut Weights, usize, usize) -> Result<Projector>,
) -> Result<Box<dyn Vision>> {
    let width = s.count("hidden_size", "embedding_length", settings::WIDTH)?;
    let heads = s.count("num_attention_heads", "attention.head_count", settings::HEADS)?;
    let count = s.count("num_hidden_layers", "block_count", settings::LAYERS)?;
    let side = s.count("image_size", "image_size", 1..=4096)?;
    let patch = s.count("patch_size", "patch_size", 1..=side)?;
    if !width.is_multiple_of(heads) {
        return Err(s.error("num_attention_heads", format!("{heads} heads of a width of {width}")));
    }
    let head_dim = width / heads;
    let grid = side / patch;
    w.set_prefix(
        &[
            "vision_tower.vision_model.",
            "model.vision_tower.vision_model.",
            "vision_tower.",
            "model.vision_tower.",
        ],
        "embeddings.patch_embedding.weight",
    );
    let (name, flat) = ("embeddings.patch_embedding", [width, 3 * patch * patch]);
    let patches = w.reshaped(name, "v.patch_embd", &[width, 3, patch, patch], flat)?;
    let shape = [grid * grid, width];
    let positions = w.table("embeddings.position_embedding", "v.position_embd", shape)?;
    let layers = (0..count).map(|i| layer(s, w, i, width)).collect::<Result<Vec<_>>>()?;
    Ok(Box::new(Siglip {
        eps: s.opt_positive("layer_norm_eps", "attention.layer_norm_epsilon")?.unwrap_or(1e-6),
        side,
        patch,
        filter,
        patches,
        positions,
        attention: AttentionSpec {
            heads,
            kv_heads: heads,
            head_dim,
            scale: (head_dim as f32).powf(-0.5),
            window: None,
            ahead: usize::MAX,
            softcap: None,
        },
        layers,
        post_norm: w.layer_norm("post_layernorm", "v.post_ln", width)?,
        projector: project(w, width, grid)?,
    }))
}

/// Rows of a picture, unless the checkpoint says otherwise.
pub(crate) const TOKENS: usize = 256;

/// Rows of a picture that Gemma 3's tower in an "mmproj" file makes.
pub(crate) fn projector_rows(s: &Settings) -> Result<usize> {
    let side = s.count("image_size", "image_size", 1..=4096)?;
    let grid = side / s.count("patch_size", "patch_size", 1..=side)?;
    Ok((grid / pool(s, grid)?).pow(2))
}

/// Patches a side of what becomes one row: `mm_tokens_per_image` rows of `grid` x `grid` patches.
fn pool(s: &Settings, grid: usize) -> Result<usize> {
    if s.hf().is_none() {
        let key = "projector.scale_factor";
        let pool = s.opt_count("", key, 1..=grid)?.unwrap_or(4);
        if !grid.is_multiple_of(pool) {
            return Err(s.error(key, format!("squares of {pool} of {grid} x {grid} patches")));
        }
        return Ok(pool);
    }
    let key = "mm_tokens_per_image";
    let tokens = s.root().map(|r| r.opt_usize(key)).transpose()?.flatten().unwrap_or(TOKENS);
    let side = tokens.isqrt();
    if side == 0 || side * side != tokens || !grid.is_multiple_of(side) {
        return Err(s.error(key, format!("{tokens} tokens of {grid} x {grid} patches")));
    }
    Ok(grid / side)
}

fn layer(s: &Settings, w: &mut Weights, i: usize, width: usize) -> Result<Layer> {
    let ffn = s.count("intermediate_size", "feed_forward_length", settings::WIDTH)?;
    let hf = |part: &str| format!("encoder.layers.{i}.{part}");
    let gguf = |part: &str| format!("v.blk.{i}.{part}");
    let norm1 = w.layer_norm(&hf("layer_norm1"), &gguf("ln1"), width)?;
    let norm2 = w.layer_norm(&hf("layer_norm2"), &gguf("ln2"), width)?;
    // Early files call the first matrix "down".
    let swapped = w.is_gguf() && ffn != width && w.rows("", &gguf("ffn_down")) == Some(ffn);
    let (up, down) = if swapped { ("ffn_down", "ffn_up") } else { ("ffn_up", "ffn_down") };
    let mut linear = |h: &str, g: &str, shape| w.linear_bias(&hf(h), &gguf(g), shape);
    Ok(Layer {
        norm1,
        q: linear("self_attn.q_proj", "attn_q", [width, width])?,
        k: linear("self_attn.k_proj", "attn_k", [width, width])?,
        v: linear("self_attn.v_proj", "attn_v", [width, width])?,
        o: linear("self_attn.out_proj", "attn_out", [width, width])?,
        norm2,
        up: linear("mlp.fc1", up, [ffn, width])?,
        down: linear("mlp.fc2", down, [width, ffn])?,
    })
}

impl Vision for Siglip {
    fn prepare(&self, image: &Rgb) -> Patches {
        let square = resize(image, self.side, self.side, self.filter);
        patches(&square, self.patch, true, (2.0, -1.0))
    }

    fn encode(&self, ops: &mut dyn Ops, patches: &Patches) -> Vec<f32> {
        let count = patches.count();
        let x = ops.tensor(&patches.values, patches.values.len() / count);
        let x = ops.linear(&x, &self.patches);
        let ids: Vec<u32> = (0..count as u32).collect();
        let positions = ops.embed(&self.positions, &ids, 1.0);
        let mut x = ops.add(x, &positions);
        let layout = KvLayout::new(self.attention.heads, self.attention.head_dim, &[None]);
        let (rows, mut cache) = Rows::whole(&[ids], &layout).unwrap_or_else(|e| panic!("{e}"));
        for l in &self.layers {
            let h = ops.layer_norm(&x, &l.norm1.0, &l.norm1.1, self.eps);
            let (q, k, v) = (ops.linear(&h, &l.q), ops.linear(&h, &l.k), ops.linear(&h, &l.v));
            let h = ops.attend(&q, &k, &v, &self.attention, 0, &rows, &mut cache);
            let h = ops.linear(&h, &l.o);
            x = ops.add(x, &h);
            let h = ops.layer_norm(&x, &l.norm2.0, &l.norm2.1, self.eps);
            let h = ops.linear(&h, &l.up);
            let h = ops.activation(h, Activation::GeluTanh);
            let h = ops.linear(&h, &l.down);
            x = ops.add(x, &h);
        }
        let x = ops.layer_norm(&x, &self.post_norm.0, &self.post_norm.1, self.eps);
        ops.probe("vision_last_hidden", &x);
        let x = match &self.projector {
            Projector::Plain(linear) => ops.linear(&x, linear),
            Projector::Pooled { pool, norm, linear } => {
                let x = ops.mean_rows(&x, &squares(patches.columns, patches.rows, *pool));
                let x = ops.rms_norm(&x, norm, self.eps);
                ops.linear(&x, linear)
            }
        };
        ops.read(&x)
    }
}

/// The patches of each square of `pool` patches a side.
pub(crate) fn squares(columns: usize, rows: usize, pool: usize) -> Vec<Vec<u32>> {
    let corners = (0..rows / pool).flat_map(|r| (0..columns / pool).map(move |c| (r, c)));
    corners
        .map(|(r, c)| {
            let inside =
                (0..pool).flat_map(|y| (0..pool).map(move |x| (r * pool + y, c * pool + x)));
            inside.map(|(y, x)| (y * columns + x) as u32).collect()
        })
        .collect()
}
