//! How Gemma 4 sees. Reference: transformers `models/gemma4/modeling_gemma4.py` and
//! `models/gemma4_unified/modeling_gemma4_unified.py`.
//!
//! Pictures keep their aspect and fill a budget of tokens. E2B, E4B, 26B-A4B and 31B have a tower,
//! whose heads turn by columns and by rows, and which pools squares of patches. 12B has none: each
//! patch is projected as it is.

use crate::load::{NormOffset, Weights, image_tokens};
use crate::pixels::{Filter, Patches, fill, patches, resize};
use crate::settings::{self, Settings};
use crate::siglip::squares;
use crate::vision::Vision;
use lapidary_formats::{Checkpoint, Config, Result, Rgb};
use lapidary_ops::{
    Activation, AttentionSpec, KvLayout, Linear, Ops, Rope, RopePairs, Rows, Tensor, Vector, Weight,
};

/// What the published configurations say.
pub(crate) const DEFAULTS: &[(&str, usize)] = &[
    ("hidden_size", 768),
    ("intermediate_size", 3072),
    ("num_hidden_layers", 16),
    ("num_attention_heads", 12),
    ("num_key_value_heads", 12),
    ("patch_size", 16),
    ("pooling_kernel_size", 3),
    ("position_embedding_size", 10_240),
    ("mm_embed_dim", 3840),
    ("mm_posemb_size", 1120),
];

/// Rows of a picture at most, unless the checkpoint says otherwise.
pub(crate) const BUDGET: usize = 280;

struct Tower {
    eps: f32,
    patch: usize,
    /// Whether a patch is colour after colour (GGUF), not pixel after pixel.
    planes: bool,
    pool: usize,
    budget: usize,
    /// Squares of a line that there are positions for.
    longest: usize,
    /// `[width, 3 * patch * patch]`
    patches: Linear,
    /// `[2 * places, width]`: of columns, then of rows.
    positions: Weight,
    attention: AttentionSpec,
    /// Over half a head: columns turn the first half, rows the second.
    rope: Rope,
    layers: Vec<Layer>,
    /// The factor and the shift that standardise what comes out.
    standard: Option<(Vector, Vector)>,
    out: Out,
}

/// To the text model's width: a norm without weight and a product.
struct Out {
    ones: Vector,
    linear: Linear,
}

struct Layer {
    input_norm: Vector,
    q: Clipped,
    k: Clipped,
    v: Clipped,
    o: Clipped,
    /// `[head_dim]` each; the last one of ones.
    q_norm: Vector,
    k_norm: Vector,
    v_norm: Vector,
    post_attention_norm: Vector,
    pre_ffn_norm: Vector,
    gate: Clipped,
    up: Clipped,
    down: Clipped,
    post_ffn_norm: Vector,
}

/// A projection whose input and output keep within bounds.
struct Clipped {
    linear: Linear,
    input: (f32, f32),
    output: (f32, f32),
}

/// Rows of a picture at most: the processor's word goes before the model's.
pub(crate) fn most_rows(checkpoint: &Checkpoint, root: &Config) -> Result<usize> {
    let key = "vision_soft_tokens_per_image";
    let tokens = image_tokens(checkpoint)?.or(root.opt_usize(key)?).unwrap_or(BUDGET);
    match tokens {
        1..=1120 => Ok(tokens),
        _ => Err(root.wrong(key, format!("{tokens} is not between 1 and 1120"))),
    }
}

fn budget(s: &Settings, w: &Weights) -> Result<usize> {
    s.root().map_or(Ok(BUDGET), |root| most_rows(w.checkpoint, root))
}

/// Patches a side of what becomes one row.
fn pool(s: &Settings) -> Result<usize> {
    Ok(s.opt_count("pooling_kernel_size", "projector.scale_factor", 1..=16)?.unwrap_or(3))
}

fn eps(s: &Settings) -> Result<f32> {
    Ok(s.opt_positive("rms_norm_eps", "attention.layer_norm_epsilon")?.unwrap_or(1e-6))
}

/// Positions of each axis: `key` in config.json, the table's shape in GGUF.
fn places_known(s: &Settings, w: &Weights, key: &str) -> Result<usize> {
    if s.hf().is_some() {
        return s.count(key, "", 1..=1 << 20);
    }
    let name = "v.position_embd.weight";
    match w.shape("", name).as_deref() {
        Some([2, places, _]) if *places > 0 => Ok(*places),
        _ => Err(w.wrong("", name, "positions of two axes were expected")),
    }
}

/// The tower of E2B, E4B, 26B-A4B and 31B.
pub(crate) fn tower(s: &Settings, w: &mut Weights, text: usize) -> Result<Box<dyn Vision>> {
    s.require_flag("attention_bias", false)?;
    let width = s.count("hidden_size", "embedding_length", settings::WIDTH)?;
    let (heads, kv_heads) = s.heads()?;
    let head_dim = s.head_dim(width, heads)?;
    if !head_dim.is_multiple_of(4) {
        return Err(s.error("head_dim", format!("{head_dim}: a multiple of 4 was expected")));
    }
    let patch = s.count("patch_size", "patch_size", 1..=256)?;
    let pool = pool(s)?;
    let places = places_known(s, w, "position_embedding_size")?;
    let count = s.count("num_hidden_layers", "block_count", settings::LAYERS)?;
    let rope = s.hf().map(|c| c.opt_object("rope_parameters")).transpose()?.flatten();
    let base = rope.map(|r| r.opt_f64("rope_theta")).transpose()?.flatten().unwrap_or(100.0);
    w.set_prefix(&["model.vision_tower.", "vision_tower."], "patch_embedder.input_proj.weight");
    let layers = (0..count)
        .map(|i| layer(s, w, i, (width, heads, kv_heads, head_dim)))
        .collect::<Result<Vec<_>>>()?;
    let standard = s.flag("standardize")? || s.hf().is_none() && w.has("", "v.std_scale");
    let standard = standard
        .then(|| {
            let bias = w.vector("std_bias", "v.std_bias", width)?;
            let scale = w.vector("std_scale", "v.std_scale", width)?;
            let shift = bias.values().iter().zip(scale.values()).map(|(b, s)| -b * s).collect();
            Ok((scale, Vector::new(shift)))
        })
        .transpose()?;
    let positions = ("patch_embedder.position_embedding_table", "v.position_embd.weight");
    let name = ("patch_embedder.input_proj", "v.patch_embd");
    let (hf, gguf) = (vec![width, 3 * patch * patch], vec![width, 3, patch, patch]);
    let planes = w.is_gguf();
    let shape = if planes { gguf } else { hf };
    Ok(Box::new(Tower {
        eps: eps(s)?,
        patch,
        planes,
        pool,
        budget: budget(s, w)?,
        longest: (places / pool).max(1),
        patches: w.reshaped(name.0, name.1, &shape, [width, 3 * patch * patch])?,
        positions: w.reshaped_table(
            positions.0,
            positions.1,
            &[2, places, width],
            [2 * places, width],
        )?,
        attention: AttentionSpec {
            heads,
            kv_heads,
            head_dim,
            scale: 1.0,
            window: None,
            ahead: usize::MAX,
            softcap: None,
        },
        rope: Rope::new(base as f32, head_dim / 2, 1.0, RopePairs::Halves),
        layers,
        standard,
        out: out(w, width, text)?,
    }))
}

fn out(w: &mut Weights, width: usize, text: usize) -> Result<Out> {
    w.set_prefix(&["model.embed_vision.", "embed_vision."], "embedding_projection.weight");
    let linear = w.linear("embedding_projection", "mm.input_projection", [text, width])?;
    Ok(Out { ones: Vector::new(vec![1.0; width]), linear })
}

fn layer(
    s: &Settings,
    w: &mut Weights,
    i: usize,
    (width, heads, kv_heads, head_dim): (usize, usize, usize, usize),
) -> Result<Layer> {
    let ffn = s.count("intermediate_size", "feed_forward_length", settings::WIDTH)?;
    let hf = |part: &str| format!("encoder.layers.{i}.{part}");
    let gguf = |part: &str| format!("v.blk.{i}.{part}");
    let clips =
        s.flag("use_clipped_linears")? || w.is_gguf() && w.has("", &gguf("attn_q.input_max"));
    let mut norm = |h: &str, g: &str, len| w.norm(&hf(h), &gguf(g), len, NormOffset::Zero);
    let input_norm = norm("input_layernorm", "ln1", width)?;
    let q_norm = norm("self_attn.q_norm", "attn_q_norm", head_dim)?;
    let k_norm = norm("self_attn.k_norm", "attn_k_norm", head_dim)?;
    let post_attention_norm = norm("post_attention_layernorm", "attn_post_norm", width)?;
    let pre_ffn_norm = norm("pre_feedforward_layernorm", "ln2", width)?;
    let post_ffn_norm = norm("post_feedforward_layernorm", "ffn_post_norm", width)?;
    let mut linear = |h: &str, g: &str, shape| -> Result<Clipped> {
        let mut bound = |end: &str, none: f32| match clips {
            true => w.scalar(&hf(&format!("{h}.{end}")), &gguf(&format!("{g}.{end}"))),
            false => Ok(none),
        };
        let all = (f32::NEG_INFINITY, f32::INFINITY);
        let input = (bound("input_min", all.0)?, bound("input_max", all.1)?);
        let output = (bound("output_min", all.0)?, bound("output_max", all.1)?);
        let linear = w.linear(&hf(&format!("{h}.linear")), &gguf(g), shape)?;
        Ok(Clipped { linear, input, output })
    };
    Ok(Layer {
        input_norm,
        q: linear("self_attn.q_proj", "attn_q", [heads * head_dim, width])?,
        k: linear("self_attn.k_proj", "attn_k", [kv_heads * head_dim, width])?,
        v: linear("self_attn.v_proj", "attn_v", [kv_heads * head_dim, width])?,
        o: linear("self_attn.o_proj", "attn_out", [width, heads * head_dim])?,
        q_norm,
        k_norm,
        v_norm: Vector::new(vec![1.0; head_dim]),
        post_attention_norm,
        pre_ffn_norm,
        gate: linear("mlp.gate_proj", "ffn_gate", [ffn, width])?,
        up: linear("mlp.up_proj", "ffn_up", [ffn, width])?,
        down: linear("mlp.down_proj", "ffn_down", [width, ffn])?,
        post_ffn_norm,
    })
}

impl Clipped {
    fn of(&self, ops: &mut dyn Ops, x: &Tensor) -> Tensor {
        let all = (f32::NEG_INFINITY, f32::INFINITY);
        let y = if self.input == all {
            ops.linear(x, &self.linear)
        } else {
            let rows: Vec<u32> = (0..x.rows() as u32).collect();
            let x = ops.gather(x, &rows);
            let x = ops.clamp(x, self.input.0, self.input.1);
            ops.linear(&x, &self.linear)
        };
        if self.output == all { y } else { ops.clamp(y, self.output.0, self.output.1) }
    }
}

impl Out {
    fn of(&self, ops: &mut dyn Ops, x: &Tensor, eps: f32) -> Vec<f32> {
        let x = ops.rms_norm(x, &self.ones, eps);
        let x = ops.linear(&x, &self.linear);
        ops.read(&x)
    }
}

/// Column and row of each patch.
fn places(patches: &Patches) -> [Vec<usize>; 2] {
    let count = patches.count();
    let columns = (0..count).map(|i| i % patches.columns).collect();
    [columns, (0..count).map(|i| i / patches.columns).collect()]
}

impl Vision for Tower {
    fn prepare(&self, image: &Rgb) -> Patches {
        let side = self.patch * self.pool;
        let (width, height) = fill((image.width, image.height), side, self.budget, self.longest);
        let image = resize(image, width, height, Filter::Bicubic);
        patches(&image, self.patch, self.planes, (1.0, 0.0))
    }

    fn encode(&self, ops: &mut dyn Ops, patches: &Patches) -> Vec<f32> {
        let [columns, lines] = places(patches);
        let centred: Vec<f32> = patches.values.iter().map(|x| 2.0 * (x - 0.5)).collect();
        let x = ops.tensor(&centred, centred.len() / columns.len());
        let x = ops.linear(&x, &self.patches);
        let half = self.positions.n() / 2;
        let ids = |first: usize, at: &[usize]| -> Vec<u32> {
            at.iter().map(|p| (first + p) as u32).collect()
        };
        let by_column = ops.embed(&self.positions, &ids(0, &columns), 1.0);
        let by_row = ops.embed(&self.positions, &ids(half, &lines), 1.0);
        let by_both = ops.add(by_column, &by_row);
        let mut x = ops.add(x, &by_both);
        let layout = KvLayout::new(self.attention.kv_heads, self.attention.head_dim, &[None]);
        let (rows, mut cache) =
            Rows::whole(&[vec![0; columns.len()]], &layout).unwrap_or_else(|e| panic!("{e}"));
        let axes = [columns, lines];
        for l in &self.layers {
            let h = ops.rms_norm(&x, &l.input_norm, self.eps);
            let (q, k, v) = (l.q.of(ops, &h), l.k.of(ops, &h), l.v.of(ops, &h));
            let q = ops.rms_norm(&q, &l.q_norm, self.eps);
            let k = ops.rms_norm(&k, &l.k_norm, self.eps);
            let v = ops.rms_norm(&v, &l.v_norm, self.eps);
            let q = ops.rope_axes(q, &self.rope, &axes);
            let k = ops.rope_axes(k, &self.rope, &axes);
            let h = ops.attend(&q, &k, &v, &self.attention, 0, &rows, &mut cache);
            let h = l.o.of(ops, &h);
            let h = ops.rms_norm(&h, &l.post_attention_norm, self.eps);
            x = ops.add(x, &h);
            let h = ops.rms_norm(&x, &l.pre_ffn_norm, self.eps);
            let (gate, up) = (l.gate.of(ops, &h), l.up.of(ops, &h));
            let h = ops.gated(gate, &up, Activation::GeluTanh);
            let h = l.down.of(ops, &h);
            let h = ops.rms_norm(&h, &l.post_ffn_norm, self.eps);
            x = ops.add(x, &h);
        }
        let x = ops.mean_rows(&x, &squares(patches.columns, patches.rows, self.pool));
        let mut x = ops.scale(x, (self.patches.weight.n() as f32).sqrt());
        if let Some((scale, shift)) = &self.standard {
            x = ops.affine(x, scale, Some(shift));
        }
        ops.probe("vision_last_hidden", &x);
        self.out.of(ops, &x, self.eps)
    }
}

struct Unified {
    eps: f32,
    /// Pixels of a patch's side.
    patch: usize,
    /// As in [`Tower`].
    planes: bool,
    budget: usize,
    /// Patches of a line that there are positions for.
    longest: usize,
    norm1: (Vector, Vector),
    /// `[width, 3 * patch * patch]`
    dense: Linear,
    norm2: (Vector, Vector),
    /// `[2 * places, width]`
    positions: Weight,
    /// From a column's row of them to that of the same row, and to the next one.
    step: (usize, usize),
    norm3: (Vector, Vector),
    out: Out,
}

/// 12B's: no tower.
pub(crate) fn unified(s: &Settings, w: &mut Weights, text: usize) -> Result<Box<dyn Vision>> {
    let patch = s.count("patch_size", "patch_size", 1..=256)? * pool(s)?;
    let patch = match s.hf() {
        Some(_) => s.opt_count("model_patch_size", "", 1..=4096)?.unwrap_or(patch),
        None => patch,
    };
    let width = s.count("mm_embed_dim", "embedding_length", settings::WIDTH)?;
    let places = places_known(s, w, "mm_posemb_size")?;
    w.set_prefix(&["model.vision_embedder.", "vision_embedder."], "patch_dense.weight");
    let pixels = 3 * patch * patch;
    let mut norm = |h: &str, g: &str, len| w.layer_norm(h, &format!("v.patch_norm.{g}"), len);
    let norm1 = norm("patch_ln1", "1", pixels)?;
    let norm2 = norm("patch_ln2", "2", width)?;
    let norm3 = norm("pos_norm", "3", width)?;
    let name = ("patch_dense", "v.patch_embd");
    // A file has positions of columns, then of rows, or both in turn.
    let axes_first = w.is_gguf();
    let positions = ("pos_embedding", "v.position_embd.weight");
    let shape = if axes_first { [2, places, width] } else { [places, 2, width] };
    let table = w.reshaped_table(positions.0, positions.1, &shape, [2 * places, width])?;
    let dense = match w.shape("patch_dense.weight", "v.patch_embd.weight") {
        // Files may have the shape of a convolution.
        Some(shape) if shape.len() == 4 => {
            w.reshaped(name.0, name.1, &[width, 3, patch, patch], [width, pixels])?
        }
        _ => w.linear_bias(name.0, name.1, [width, pixels])?,
    };
    Ok(Box::new(Unified {
        eps: eps(s)?,
        patch,
        planes: w.is_gguf(),
        budget: budget(s, w)?,
        longest: places,
        norm1,
        dense,
        norm2,
        positions: table,
        step: if axes_first { (places, 1) } else { (1, 2) },
        norm3,
        out: out(w, width, text)?,
    }))
}

impl Vision for Unified {
    fn prepare(&self, image: &Rgb) -> Patches {
        let (width, height) =
            fill((image.width, image.height), self.patch, self.budget, self.longest);
        let image = resize(image, width, height, Filter::Bicubic);
        patches(&image, self.patch, self.planes, (1.0, 0.0))
    }

    fn encode(&self, ops: &mut dyn Ops, patches: &Patches) -> Vec<f32> {
        // What torch's LayerNorm assumes.
        let eps = 1e-5;
        let [columns, lines] = places(patches);
        let x = ops.tensor(&patches.values, patches.values.len() / columns.len());
        let x = ops.layer_norm(&x, &self.norm1.0, &self.norm1.1, eps);
        let x = ops.linear(&x, &self.dense);
        let x = ops.layer_norm(&x, &self.norm2.0, &self.norm2.1, eps);
        let ids = |axis: usize, at: &[usize]| -> Vec<u32> {
            at.iter().map(|p| (self.step.1 * p + self.step.0 * axis) as u32).collect()
        };
        let by_column = ops.embed(&self.positions, &ids(0, &columns), 1.0);
        let by_row = ops.embed(&self.positions, &ids(1, &lines), 1.0);
        let by_both = ops.add(by_column, &by_row);
        let x = ops.add(x, &by_both);
        let x = ops.layer_norm(&x, &self.norm3.0, &self.norm3.1, eps);
        self.out.of(ops, &x, self.eps)
    }
}
