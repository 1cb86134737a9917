//! Gemma 3n, text: E2B, E4B, also the text part of a multimodal checkpoint. Reference: transformers
//! `models/gemma3n/modeling_gemma3n.py`.
//!
//! AltUp (<https://arxiv.org/abs/2301.13310>) keeps several residual streams, of which each block
//! computes one and predicts the others; here they lie side by side in a row. Each block adds a
//! low-rank residual (Laurel, <https://arxiv.org/abs/2411.07501>) and a per-layer embedding of each
//! token; the first ones keep only the largest activations; the last ones read the keys and values
//! of earlier ones.

use crate::load::{NormOffset, Slice, Weights};
use crate::settings::{self, Settings};
use crate::{Info, Model, Sliced};
use lapidary_formats::{Checkpoint, Result};
use lapidary_ops::{
    Activation, AttentionSpec, Coefs, KvCache, KvLayout, Linear, Ops, Rope, RopePairs, Rows,
    Tensor, Vector, Weight,
};

struct Gemma3n {
    info: Info,
    eps: f32,
    act: Activation,
    /// Width of a stream.
    width: usize,
    /// The stream that blocks compute, and how many there are.
    active: usize,
    streams: usize,
    /// `[vocab, width]`, also the output projection.
    embedding: Linear,
    /// Tokens of images and sounds that have tables of their own.
    hard: Vec<Hard>,
    /// `[width, width]` for each stream but the first, on the way in and out.
    stream_in: Vec<Linear>,
    stream_out: Vec<Linear>,
    /// `[ple]`
    ple_norm: Vector,
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
    /// `[width]`: divided by the width.
    router_norm: Vector,
    /// `[streams, width]`
    router: Linear,
    /// `[streams * streams, streams]`
    predict: Linear,
    /// `[streams, streams]`, plus 1.
    correct: Linear,
    /// `[width]`
    correct_scale: Vector,
    input_norm: Vector,
    laurel_left: Linear,
    laurel_right: Linear,
    laurel_norm: Vector,
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
    /// How many standard deviations above the mean an activation must be.
    cutoff: Option<f32>,
    post_ffn_norm: Vector,
    /// `[vocab, ple]`: columns of a table that stays in the file.
    ple_table: Weight,
    /// `[ple, width]`: of the embedding.
    ple_context: Linear,
    /// `[ple, width]`
    ple_gate: Linear,
    /// `[width, ple]`
    ple_projection: Linear,
    post_ple_norm: Vector,
}

struct Keys {
    k: Linear,
    v: Linear,
    /// `[head_dim]`
    k_norm: Vector,
    /// `[head_dim]` of ones: a norm without weight.
    v_norm: Vector,
}

/// The embedding of tokens `first ..` by a table that another tower shares.
struct Hard {
    first: u32,
    table: Weight,
    norm: Vector,
    projection: Linear,
    post_norm: Vector,
}

/// What transformers' `Gemma3nTextConfig` assumes.
pub(crate) const DEFAULTS: &[(&str, usize)] = &[
    ("vocab_size", 262_400),
    ("vocab_size_per_layer_input", 262_144),
    ("hidden_size", 2048),
    ("hidden_size_per_layer_input", 256),
    ("intermediate_size", 16_384),
    ("num_hidden_layers", 35),
    ("num_attention_heads", 8),
    ("num_key_value_heads", 2),
    ("head_dim", 256),
    ("sliding_window", 512),
    ("max_position_embeddings", 32_768),
    ("num_kv_shared_layers", 15),
    ("altup_num_inputs", 4),
    ("altup_active_idx", 0),
    ("laurel_rank", 64),
];

/// For each layer its window and the layer whose keys and values it reads.
fn layout(s: &Settings, count: usize) -> Result<Vec<(Option<usize>, usize)>> {
    let window = s.count("sliding_window", "attention.sliding_window", settings::CONTEXT)?;
    let local = (s.layer_types(count)?)
        .unwrap_or_else(|| (1..=count).map(|i| !i.is_multiple_of(5)).collect());
    let shared = ("num_kv_shared_layers", "attention.shared_kv_layers");
    let own = count - s.opt_count(shared.0, shared.1, 0..=count - 1)?.unwrap_or(0);
    (0..count)
        .map(|i| {
            let source =
                if i < own { Some(i) } else { (0..own).rev().find(|j| local[*j] == local[i]) };
            let missing = || {
                let problem = format!("layer {i} has no layer of its kind to read keys from");
                s.error("num_kv_shared_layers", problem)
            };
            Ok((local[i].then_some(window), source.ok_or_else(missing)?))
        })
        .collect()
}

/// The model's figures, from its settings alone.
pub(crate) fn info(s: &Settings) -> Result<Info> {
    let width = s.count("hidden_size", "embedding_length", settings::WIDTH)?;
    let layers = s.count("num_hidden_layers", "block_count", settings::LAYERS)?;
    let (heads, kv_heads) = s.heads()?;
    let head_dim = s.head_dim(width, heads)?;
    let streams = s.count("altup_num_inputs", "altup.num_inputs", 2..=16)?;
    let context = s.opt_count("max_position_embeddings", "context_length", settings::CONTEXT)?;
    let kept: Vec<_> = (layout(s, layers)?.iter().enumerate())
        .filter(|(i, l)| l.1 == *i)
        .map(|(_, l)| (kv_heads, head_dim, l.0))
        .collect();
    Ok(Info {
        encoder: false,
        prefix: false,
        family: "gemma3n",
        vocab: s.vocab()?,
        layers,
        width: streams * width,
        context: context.unwrap_or(32_768),
        kv: KvLayout::mixed(&kept).lent(kept.len() < layers),
    })
}

pub(crate) fn load(s: &Settings, w: &mut Weights) -> Result<Box<dyn Model>> {
    s.require_flag("attention_bias", false)?;
    let mut info = info(s)?;
    let (count, vocab) = (info.layers, info.vocab);
    let kept = kept(s, w.slice, count)?;
    info.layers = kept.len();
    let width = s.count("hidden_size", "embedding_length", settings::WIDTH)?;
    let streams = info.width / width;
    let active = s.count("altup_active_idx", "altup.active_idx", 0..=streams - 1)?;
    let (heads, _) = s.heads()?;
    let head_dim = s.head_dim(width, heads)?;
    let ple = ("hidden_size_per_layer_input", "embedding_length_per_layer_input");
    let ple = s.count(ple.0, ple.1, 1..=1 << 16)?;
    let (local_base, local_divisor) =
        s.rope(("rope_local_base_freq", "rope.freq_base_swa"), Some("sliding_attention"), 1e4)?;
    let (global_base, divisor) =
        s.rope(("rope_theta", "rope.freq_base"), Some("full_attention"), 1e6)?;

    w.set_prefix(&["model.", "model.language_model.", ""], "embed_tokens.weight");
    w.ignore(&["vision_tower.", "audio_tower.", "soft_embedding_norm", "lm_head.weight"]);
    // Layers that read another's keys may still have their own in the file; nothing reads them.
    w.ignore(&["self_attn.k_", "self_attn.v_", "attn_k", "attn_v"]);
    let embedding = w.linear("embed_tokens", "token_embd", [vocab, width])?;
    let norm = w.norm("norm", "output_norm", width, NormOffset::Zero)?;
    let name = ("embed_tokens_per_layer", "per_layer_token_embd");
    let rows = match s.hf() {
        Some(_) => s.count("vocab_size_per_layer_input", "", settings::VOCAB)?,
        None => w.rows(name.0, name.1).unwrap_or(vocab),
    };
    let tables = w.table_parts(name.0, name.1, [rows, ple], count)?;
    let name = ("per_layer_model_projection.weight", "per_layer_model_proj.weight");
    let contexts = w.linear_parts(name.0, name.1, count, [ple, width])?;
    let ple_norm =
        w.norm("per_layer_projection_norm", "per_layer_proj_norm", ple, NormOffset::Zero)?;
    let stream_in = between(w, "altup_projections", "altup_proj", streams - 1, width)?;
    let stream_out =
        between(w, "altup_unembed_projections", "altup_unembd_proj", streams - 1, width)?;
    let hard = hard(s, w, width)?;
    let mut ples: Vec<_> = tables.into_iter().zip(contexts).map(Some).collect();
    let layers = (kept.into_iter())
        .filter_map(|(i, ffn)| Some((i, ffn, ples[i].take()?)))
        .map(|(i, ffn, (table, context))| {
            layer(s, w, (i, ffn), (width, streams), (table, context, ple))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Box::new(Gemma3n {
        info,
        eps: s.opt_positive("rms_norm_eps", "attention.layer_norm_rms_epsilon")?.unwrap_or(1e-6),
        act: s.activation(&["hidden_activation", "hidden_act"], Activation::GeluTanh)?,
        width,
        active,
        streams,
        embedding,
        hard,
        stream_in,
        stream_out,
        ple_norm,
        layers,
        norm,
        local_rope: Rope::new(local_base, head_dim, local_divisor, RopePairs::Halves),
        global_rope: Rope::new(global_base, head_dim, divisor, RopePairs::Halves),
        softcap: s.opt_positive("final_logit_softcapping", "final_logit_softcapping")?,
    }))
}

/// The layers of the file that are wanted, and the widths of their feed-forward layers.
fn kept(s: &Settings, slice: Option<&Slice>, count: usize) -> Result<Vec<(usize, usize)>> {
    let all = s.counts("intermediate_size", "feed_forward_length", count, settings::WIDTH)?;
    let whole = all.into_iter().enumerate();
    let Some(slice) = slice else { return Ok(whole.collect()) };
    let wrong = |problem: String| s.error("matformer", problem);
    let layout = layout(s, count)?;
    if let Some(i) = slice.skip.iter().find(|i| layout.get(**i).is_none_or(|l| l.1 == **i)) {
        return Err(wrong(format!("layer {i} does not read an earlier one's keys: it must stay")));
    }
    let mut kept: Vec<_> = whole.filter(|(i, _)| !slice.skip.contains(i)).collect();
    if !(slice.ffn.len() <= 1 || slice.ffn.len() == kept.len()) {
        let (widths, layers) = (slice.ffn.len(), kept.len());
        return Err(wrong(format!("{widths} feed-forward widths for {layers} layers")));
    }
    for ((i, ffn), wanted) in kept.iter_mut().zip(slice.ffn.iter().cycle()) {
        if !(1..=*ffn).contains(wanted) {
            return Err(wrong(format!("a width of {wanted} where layer {i} has {ffn}")));
        }
        *ffn = *wanted;
    }
    Ok(kept)
}

/// The figures of a smaller model inside, and its parameters and bytes.
pub(crate) fn slice(s: &Settings, checkpoint: &Checkpoint, slice: &Slice) -> Result<Sliced> {
    let mut info = info(s)?;
    let count = info.layers;
    let ffn = s.counts("intermediate_size", "feed_forward_length", count, settings::WIDTH)?;
    let kept = kept(s, Some(slice), count)?;
    info.layers = kept.len();
    let mut sliced = Sliced { info, parameters: 0, bytes: 0 };
    for view in checkpoint.tensors() {
        let (part, whole) = share(&view.name, &kept, &ffn);
        sliced.parameters += (view.elements() * part / whole) as u64;
        sliced.bytes += (view.bytes.len() * part / whole) as u64;
    }
    Ok(sliced)
}

/// How much of a tensor is read when `kept` layers stay, of those whose feed-forward widths are `ffn`.
fn share(name: &str, kept: &[(usize, usize)], ffn: &[usize]) -> (usize, usize) {
    if ["tokens_per_layer", "per_layer_token", "per_layer_model"].iter().any(|n| name.contains(n)) {
        return (kept.len(), ffn.len());
    }
    let in_tower = ["vision", "audio"].iter().any(|t| name.contains(t));
    let layer = ["layers.", "blk."].iter().find_map(|mark| {
        let number = name.split_once(mark)?.1.split('.').next()?;
        number.parse::<usize>().ok().filter(|i| *i < ffn.len() && !in_tower)
    });
    let Some(i) = layer else { return (1, 1) };
    let Some((_, inner)) = kept.iter().find(|(k, _)| *k == i) else { return (0, 1) };
    let narrow = ["mlp.", "ffn_gate.", "ffn_up.", "ffn_down."];
    if narrow.iter().any(|n| name.contains(n)) { (*inner, ffn[i]) } else { (1, 1) }
}

/// Layer `i` of the file, with the first `inner` of its feed-forward layer.
fn layer(
    s: &Settings,
    w: &mut Weights,
    (i, inner): (usize, usize),
    (width, streams): (usize, usize),
    (ple_table, ple_context, ple): (Weight, Linear, usize),
) -> Result<Layer> {
    let count = s.count("num_hidden_layers", "block_count", settings::LAYERS)?;
    let layout = layout(s, count)?;
    let (window, source) = layout[i];
    let (heads, kv_heads) = s.heads()?;
    let head_dim = s.head_dim(width, heads)?;
    let ffn = s.counts("intermediate_size", "feed_forward_length", count, settings::WIDTH)?[i];
    let hf = |name: &str| format!("layers.{i}.{name}");
    let gguf = |name: &str| format!("blk.{i}.{name}");
    let rank = match s.hf() {
        Some(_) => s.count("laurel_rank", "", settings::WIDTH)?,
        None => w.rows("", &gguf("laurel_l")).unwrap_or(64),
    };
    let mut norm = |h: &str, g: &str, len| w.norm(&hf(h), &gguf(g), len, NormOffset::Zero);
    let router_norm = norm("altup.router_norm", "altup_router_norm", width)?;
    let input_norm = norm("input_layernorm", "attn_norm", width)?;
    let laurel_norm = norm("laurel.post_laurel_norm", "laurel_post_norm", width)?;
    let q_norm = norm("self_attn.q_norm", "attn_q_norm", head_dim)?;
    let post_attention_norm = norm("post_attention_layernorm", "post_attention_norm", width)?;
    let pre_ffn_norm = norm("pre_feedforward_layernorm", "ffn_norm", width)?;
    let post_ffn_norm = norm("post_feedforward_layernorm", "post_ffw_norm", width)?;
    let post_ple_norm = norm("post_per_layer_input_norm", "post_norm", width)?;
    let k_norm = match source == i {
        true => Some(norm("self_attn.k_norm", "attn_k_norm", head_dim)?),
        false => None,
    };
    let correct_scale =
        w.vector(&hf("altup.correct_output_scale"), &gguf("altup_correct_scale.weight"), width)?;
    let mut corner = |h: &str, g: &str, all, part| w.corner(&hf(h), &gguf(g), all, part);
    let gate = corner("mlp.gate_proj", "ffn_gate", [ffn, width], [inner, width])?;
    let up = corner("mlp.up_proj", "ffn_up", [ffn, width], [inner, width])?;
    let down = corner("mlp.down_proj", "ffn_down", [width, ffn], [width, inner])?;
    let mut linear = |h: &str, g: &str, shape| w.linear(&hf(h), &gguf(g), shape);
    let mut correct = linear("altup.correction_coefs", "altup_correct_coef", [streams, streams])?;
    correct.bias = Some(Vector::new(vec![1.0; streams]));
    let keys = k_norm
        .map(|k_norm| {
            let shape = [kv_heads * head_dim, width];
            Ok(Keys {
                k: linear("self_attn.k_proj", "attn_k", shape)?,
                v: linear("self_attn.v_proj", "attn_v", shape)?,
                k_norm,
                v_norm: Vector::new(vec![1.0; head_dim]),
            })
        })
        .transpose()?;
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
        kv: (0..source).filter(|j| layout[*j].1 == *j).count(),
        router_norm,
        router: linear("altup.modality_router", "altup_router", [streams, width])?,
        predict: linear(
            "altup.prediction_coefs",
            "altup_predict_coef",
            [streams * streams, streams],
        )?,
        correct,
        correct_scale,
        input_norm,
        laurel_left: linear("laurel.linear_left", "laurel_l", [rank, width])?,
        laurel_right: linear("laurel.linear_right", "laurel_r", [width, rank])?,
        laurel_norm,
        q: linear("self_attn.q_proj", "attn_q", [heads * head_dim, width])?,
        q_norm,
        keys,
        o: linear("self_attn.o_proj", "attn_output", [width, heads * head_dim])?,
        post_attention_norm,
        pre_ffn_norm,
        gate,
        up,
        down,
        cutoff: cutoff(s, i, count)?,
        post_ffn_norm,
        ple_table,
        ple_context,
        ple_gate: linear("per_layer_input_gate", "inp_gate", [ple, width])?,
        ple_projection: linear("per_layer_projection", "proj", [width, ple])?,
        post_ple_norm,
    })
}

/// Projections between streams: a tensor each in Hugging Face files, one for all in GGUF.
fn between(
    w: &mut Weights,
    hf: &str,
    gguf: &str,
    count: usize,
    width: usize,
) -> Result<Vec<Linear>> {
    if w.is_gguf() {
        return w.experts("", &format!("{gguf}.weight"), (count, count), [width, width]);
    }
    (0..count).map(|i| w.linear(&format!("{hf}.{i}"), "", [width, width])).collect()
}

/// The tables of image and audio tokens, where the checkpoint has them.
fn hard(s: &Settings, w: &mut Weights, width: usize) -> Result<Vec<Hard>> {
    let Some(root) = s.root() else { return Ok(Vec::new()) };
    let mut all = Vec::new();
    for (key, name) in
        [("vision_config", "model.embed_vision"), ("audio_config", "model.embed_audio")]
    {
        let Some(config) = root.opt_object(key)? else { continue };
        let (first, rows) = (config.u32("vocab_offset")?, config.usize("vocab_size")?);
        let inner = config.usize("hidden_size")?;
        all.push(w.at_root(|w| {
            let norm = format!("{name}.hard_embedding_norm");
            let projection = format!("{name}.embedding_projection");
            Ok(Hard {
                first,
                table: w.table(&format!("{name}.embedding"), "", [rows, inner])?,
                norm: w.norm(&norm, "", inner, NormOffset::Zero)?,
                projection: w.linear(&projection, "", [width, inner])?,
                post_norm: Vector::new(vec![1.0; width]),
            })
        })?);
    }
    Ok(all)
}

/// The cutoff of layer `i`: GGUF has the standard deviations, config.json the share of activations
/// that are below.
fn cutoff(s: &Settings, i: usize, count: usize) -> Result<Option<f32>> {
    let (key, values) = match s {
        Settings::Gguf { metadata, .. } => {
            let key = "gemma3n.activation_sparsity_scale";
            (key, metadata.opt_f32s(key)?.map(<[f32]>::to_vec))
        }
        Settings::Hf { text, .. } => {
            let key = "activation_sparsity_pattern";
            let shares = text.opt_f64s(key)?;
            if let Some(bad) = shares.iter().flatten().find(|s| !(0.0..1.0).contains(*s)) {
                return Err(s.error(key, format!("{bad} is no share below 1")));
            }
            let deviations = |p: f64| if p > 0.0 { quantile(p) } else { f64::NEG_INFINITY };
            (key, shares.map(|all| all.iter().map(|p| deviations(*p) as f32).collect()))
        }
    };
    match values {
        Some(all) if all.len() != count => {
            Err(s.error(key, format!("{} values for {count} layers", all.len())))
        }
        Some(all) if all[i].is_nan() => Err(s.error(key, format!("value {i} is no number"))),
        Some(all) => Ok(all[i].is_finite().then_some(all[i])),
        // As published: the first ten layers keep a twentieth.
        None => Ok((i < 10).then(|| quantile(0.95) as f32)),
    }
}

/// Below how many standard deviations a normal variable stays with probability `p`: the inverse of
/// its distribution function, by bisection.
fn quantile(p: f64) -> f64 {
    // 1/2 + density * (x + x^3/3 + x^5/(3*5) + ...)
    let below = |x: f64| {
        let (mut term, mut sum) = (x, x);
        for k in 1..200 {
            term *= x * x / f64::from(2 * k + 1);
            sum += term;
        }
        0.5 + (-0.5 * x * x).exp() / std::f64::consts::TAU.sqrt() * sum
    };
    let (mut low, mut high) = (-8.0, 8.0);
    for _ in 0..80 {
        let middle = 0.5 * (low + high);
        if below(middle) < p { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}

impl Model for Gemma3n {
    fn info(&self) -> &Info {
        &self.info
    }

    /// The embedding and its projections to the other streams, all as large as the first.
    fn embed(&self, ops: &mut dyn Ops, rows: &Rows) -> Tensor {
        let x = self.tokens(ops, rows);
        let mut all = ops.mix(&x, Coefs::Same(&self.unit(0)), self.width);
        for (i, projection) in self.stream_in.iter().enumerate() {
            let p = ops.linear(&x, projection);
            let p = ops.match_rms(p, &x);
            let p = ops.mix(&p, Coefs::Same(&self.unit(i + 1)), self.width);
            all = ops.add(all, &p);
        }
        all
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
        // Predict what each stream will be.
        let active = ops.mix(&x, Coefs::Same(&self.unit(self.active)), self.width);
        let coefs = self.modalities(ops, l, &active);
        let coefs = ops.linear(&coefs, &l.predict);
        let predicted = ops.mix(&x, Coefs::Each(&coefs), self.width);
        let predicted = ops.add(predicted, &x);
        let x = ops.mix(&predicted, Coefs::Same(&self.unit(self.active)), self.width);

        let h = ops.rms_norm(&x, &l.input_norm, self.eps);
        let low = ops.linear(&h, &l.laurel_left);
        let low = ops.linear(&low, &l.laurel_right);
        let low = ops.rms_norm(&low, &l.laurel_norm, self.eps);
        let q = ops.linear(&h, &l.q);
        let q = ops.rms_norm(&q, &l.q_norm, self.eps);
        let q = ops.rope(q, rope, rows);
        let a = match &l.keys {
            Some(keys) => {
                let (k, v) = (ops.linear(&h, &keys.k), ops.linear(&h, &keys.v));
                let k = ops.rms_norm(&k, &keys.k_norm, self.eps);
                let v = ops.rms_norm(&v, &keys.v_norm, self.eps);
                let k = ops.rope(k, rope, rows);
                ops.attend(&q, &k, &v, &l.attention, l.kv, rows, cache)
            }
            None => ops.attend_shared(&q, &l.attention, l.kv, rows, cache),
        };
        let a = ops.linear(&a, &l.o);
        let a = ops.rms_norm(&a, &l.post_attention_norm, self.eps);
        let laurel = ops.add(low, &h);
        let x = ops.add(x, &a);
        let x = ops.add(x, &laurel);
        let x = ops.scale(x, 0.5f32.sqrt());

        let h = ops.rms_norm(&x, &l.pre_ffn_norm, self.eps);
        let (mut gate, up) = (ops.linear(&h, &l.gate), ops.linear(&h, &l.up));
        if let Some(cutoff) = l.cutoff {
            gate = ops.sparsify(gate, cutoff);
        }
        let h = ops.gated(gate, &up, self.act);
        let h = ops.linear(&h, &l.down);
        let h = ops.rms_norm(&h, &l.post_ffn_norm, self.eps);
        let x = ops.add(x, &h);

        // Correct the predictions by how far off the computed stream was.
        let coefs = self.modalities(ops, l, &x);
        let coefs = ops.linear(&coefs, &l.correct);
        let minus: Vec<f32> = self.unit(self.active).iter().map(|u| -u).collect();
        let minus = ops.mix(&predicted, Coefs::Same(&minus), self.width);
        let off = ops.add(x, &minus);
        let off = ops.mix(&off, Coefs::Each(&coefs), self.width);
        let x = ops.add(predicted, &off);

        let first = ops.mix(&x, Coefs::Same(&self.unit(self.active)), self.width);
        let first = ops.affine(first, &l.correct_scale, None);
        let gate = ops.linear(&first, &l.ple_gate);
        let own = self.per_layer(ops, l, rows);
        let h = ops.gated(gate, &own, self.act);
        let h = ops.linear(&h, &l.ple_projection);
        let h = ops.rms_norm(&h, &l.post_ple_norm, self.eps);
        let others: Vec<f32> = (0..self.streams).map(|i| f32::from(i != 0)).collect();
        let h = ops.mix(&h, Coefs::Same(&others), self.width);
        ops.add(x, &h)
    }

    /// The mean of the streams, all as large as the first: `[rows, width]` of one stream.
    fn norm(&self, ops: &mut dyn Ops, x: &Tensor) -> Tensor {
        let first = ops.mix(x, Coefs::Same(&self.unit(0)), self.width);
        let mut sum = ops.mix(x, Coefs::Same(&self.unit(0)), self.width);
        for (i, projection) in self.stream_out.iter().enumerate() {
            let p = ops.mix(x, Coefs::Same(&self.unit(i + 1)), self.width);
            let p = ops.linear(&p, projection);
            let p = ops.match_rms(p, &first);
            sum = ops.add(sum, &p);
        }
        let x = ops.scale(sum, 1.0 / self.streams as f32);
        let x = ops.rms_norm(&x, &self.norm, self.eps);
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

impl Gemma3n {
    /// The embeddings of the tokens, `[rows, width]`.
    fn tokens(&self, ops: &mut dyn Ops, rows: &Rows) -> Tensor {
        let mut x = ops.embed(&self.embedding.weight, &rows.ids, (self.width as f32).sqrt());
        for t in &self.hard {
            let own = |id: &u32| (t.first..t.first + t.table.n() as u32).contains(id);
            let at: Vec<u32> =
                (0..).zip(&rows.ids).filter(|(_, id)| own(id)).map(|x| x.0).collect();
            if at.is_empty() {
                continue;
            }
            let ids: Vec<u32> = rows.ids.iter().filter(|id| own(id)).map(|i| i - t.first).collect();
            let h = ops.embed(&t.table, &ids, 1.0);
            let h = ops.rms_norm(&h, &t.norm, self.eps);
            let h = ops.linear(&h, &t.projection);
            let h = ops.rms_norm(&h, &t.post_norm, self.eps);
            x = ops.place(x, &h, &at);
        }
        x
    }

    /// Picks stream `i`, or puts one there.
    fn unit(&self, i: usize) -> Vec<f32> {
        (0..self.streams).map(|j| f32::from(i == j)).collect()
    }

    /// How AltUp sees a stream: `[rows, streams]`.
    fn modalities(&self, ops: &mut dyn Ops, l: &Layer, x: &Tensor) -> Tensor {
        let h = ops.rms_norm(x, &l.router_norm, self.eps);
        let h = ops.linear(&h, &l.router);
        // The reference divides before the product: the same bits, where the width is a power of two.
        let h = ops.scale(h, 1.0 / self.width as f32);
        ops.softcap(h, 1.0)
    }

    /// What layer `l` adds of the tokens themselves, `[rows, ple]`: see Gemma 4.
    fn per_layer(&self, ops: &mut dyn Ops, l: &Layer, rows: &Rows) -> Tensor {
        let x = self.tokens(ops, rows);
        let x = ops.linear(&x, &l.ple_context);
        let x = ops.scale(x, (self.width as f32).powf(-0.5));
        let x = ops.rms_norm(&x, &self.ple_norm, self.eps);
        let known = |id: u32| if (id as usize) < l.ple_table.n() { id } else { 0 };
        let ids: Vec<u32> = rows.ids.iter().map(|id| known(*id)).collect();
        let own = ops.embed(&l.ple_table, &ids, (l.ple_table.k() as f32).sqrt());
        let x = ops.add(x, &own);
        ops.scale(x, 0.5f32.sqrt())
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn quantiles_of_the_normal_distribution() {
        // Tables of the standard normal distribution.
        for (p, x) in [(0.5, 0.0), (0.8, 0.841_621_2), (0.95, 1.644_853_6), (0.999, 3.090_232_3)] {
            assert!((super::quantile(p) - x).abs() < 1e-6, "{p}");
        }
    }
}
