//! Writes a GGUF file of Gemma 4's published shapes with random weights, to measure speed and
//! memory:
//!
//!     cargo run --release -p lapidary-tune --example random_gemma4 -- e2b q4_0 /tmp/e2b.gguf
//!
//! Rows repeat after a while, so that 26B are written in the time of the disk.

#[path = "shared/random.rs"]
mod random;

use lapidary_formats::gguf::{self, Metadata};
use lapidary_formats::{DType, TensorSpec};
use lapidary_ops::{BlockType, blocks};
use std::path::Path;

/// A shape from the model card; local then global where two are given.
struct Shape {
    name: &'static str,
    layers: usize,
    width: usize,
    heads: usize,
    kv_heads: [usize; 2],
    ffn: usize,
    /// Every so many layers are global.
    every: usize,
    window: usize,
    /// The last so many layers read others' keys; their feed-forward layers are twice as wide.
    shared: usize,
    ple: usize,
    /// Experts, active ones, their feed-forward width.
    experts: Option<[usize; 3]>,
}

const VOCAB: usize = 262_144;
const HEAD_DIM: [usize; 2] = [256, 512];

const SHAPES: [Shape; 2] = [
    Shape {
        name: "e2b",
        layers: 35,
        width: 1536,
        heads: 8,
        kv_heads: [1, 1],
        ffn: 6144,
        every: 5,
        window: 512,
        shared: 20,
        ple: 256,
        experts: None,
    },
    Shape {
        name: "26b-a4b",
        layers: 30,
        width: 2816,
        heads: 16,
        kv_heads: [8, 2],
        ffn: 2112,
        every: 6,
        window: 1024,
        shared: 0,
        ple: 0,
        experts: Some([128, 8, 704]),
    },
];

impl Shape {
    fn global(&self, layer: usize) -> bool {
        (layer + 1).is_multiple_of(self.every)
    }

    fn shares(&self, layer: usize) -> bool {
        layer >= self.layers - self.shared
    }

    fn ffn(&self, layer: usize) -> usize {
        if self.shares(layer) { 2 * self.ffn } else { self.ffn }
    }

    fn metadata(&self, file: &str) -> lapidary_formats::Result<Metadata> {
        let mut m = Metadata::new(file.to_owned());
        m.insert("general.architecture", "gemma4")?;
        m.insert("general.name", format!("gemma-4-{} (random weights)", self.name))?;
        m.insert("general.alignment", 64u32)?;
        let mut counts = vec![
            ("block_count", self.layers),
            ("context_length", 131_072),
            ("embedding_length", self.width),
            ("attention.head_count", self.heads),
            ("attention.key_length", HEAD_DIM[1]),
            ("attention.value_length", HEAD_DIM[1]),
            ("attention.key_length_swa", HEAD_DIM[0]),
            ("attention.value_length_swa", HEAD_DIM[0]),
            ("attention.sliding_window", self.window),
            ("attention.shared_kv_layers", self.shared),
            ("embedding_length_per_layer_input", self.ple),
            ("vocab_size", VOCAB),
        ];
        if let Some([count, active, ffn]) = self.experts {
            counts.push(("expert_count", count));
            counts.push(("expert_used_count", active));
            counts.push(("expert_feed_forward_length", ffn));
        }
        for (key, n) in counts {
            m.insert(&format!("gemma4.{key}"), n as u32)?;
        }
        let each = |f: &dyn Fn(usize) -> usize| -> Vec<u32> {
            (0..self.layers).map(|i| f(i) as u32).collect()
        };
        m.insert("gemma4.feed_forward_length", each(&|i| self.ffn(i)))?;
        let kv = each(&|i| self.kv_heads[usize::from(self.global(i))]);
        m.insert("gemma4.attention.head_count_kv", kv)?;
        let local: Vec<bool> = (0..self.layers).map(|i| !self.global(i)).collect();
        m.insert("gemma4.attention.sliding_window_pattern", local)?;
        m.insert("gemma4.attention.layer_norm_rms_epsilon", 1e-6f32)?;
        m.insert("gemma4.final_logit_softcapping", 30.0f32)?;
        Ok(m)
    }

    /// Names and shapes of matrices, and of vectors.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let d = self.width;
        let mut all: Vec<(String, Vec<usize>)> = vec![
            ("token_embd.weight".into(), vec![VOCAB, d]),
            ("output_norm.weight".into(), vec![d]),
            ("rope_freqs.weight".into(), vec![HEAD_DIM[1] / 2]),
        ];
        if self.ple > 0 {
            let width = self.layers * self.ple;
            all.push(("per_layer_token_embd.weight".into(), vec![VOCAB, width]));
            all.push(("per_layer_model_proj.weight".into(), vec![width, d]));
            all.push(("per_layer_proj_norm.weight".into(), vec![self.ple]));
        }
        for i in 0..self.layers {
            self.layer(i, &mut |name, shape| all.push((format!("blk.{i}.{name}"), shape.to_vec())));
        }
        all
    }

    fn layer(&self, i: usize, add: &mut dyn FnMut(&str, &[usize])) {
        let (d, ffn, global) = (self.width, self.ffn(i), usize::from(self.global(i)));
        let dim = HEAD_DIM[global];
        let (q, kv) = (self.heads * dim, self.kv_heads[global] * dim);
        for norm in ["attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"] {
            add(&format!("{norm}.weight"), &[d]);
        }
        add("attn_q_norm.weight", &[dim]);
        add("attn_q.weight", &[q, d]);
        if !self.shares(i) {
            add("attn_k_norm.weight", &[dim]);
            add("attn_k.weight", &[kv, d]);
            if global == 0 || self.ple > 0 {
                add("attn_v.weight", &[kv, d]);
            }
        }
        add("attn_output.weight", &[d, q]);
        add("ffn_gate.weight", &[ffn, d]);
        add("ffn_up.weight", &[ffn, d]);
        add("ffn_down.weight", &[d, ffn]);
        add("layer_output_scale.weight", &[1]);
        if self.ple > 0 {
            add("inp_gate.weight", &[self.ple, d]);
            add("proj.weight", &[d, self.ple]);
            add("post_norm.weight", &[d]);
        }
        if let Some([count, _, ffn]) = self.experts {
            for norm in ["post_ffw_norm_1", "post_ffw_norm_2", "pre_ffw_norm_2"] {
                add(&format!("{norm}.weight"), &[d]);
            }
            add("ffn_gate_inp.weight", &[count, d]);
            add("ffn_gate_inp.scale", &[d]);
            add("ffn_down_exps.scale", &[count]);
            add("ffn_gate_up_exps.weight", &[count, 2 * ffn, d]);
            add("ffn_down_exps.weight", &[count, d, ffn]);
        }
    }
}

/// 97 random rows of `k`.
fn rows(ty: BlockType, seed: u64, k: usize) -> Vec<u8> {
    let values: Vec<f32> = random::weights(seed).take(97 * k).collect();
    let mut bytes = vec![0; values.len() / ty.block_len() * ty.block_bytes()];
    blocks::quantize(ty, &values, &mut bytes);
    bytes
}

fn vector(name: &str, len: usize) -> Vec<u8> {
    // A quarter of the pairs of a global head turn.
    let value = |i: usize| if name == "rope_freqs.weight" && i >= len / 4 { 1e30f32 } else { 1.0 };
    (0..len).flat_map(|i| value(i).to_le_bytes()).collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let usage = "random_gemma4 e2b|26b-a4b TYPE FILE.gguf";
    let [name, ty, file] = &args[..] else { return Err(usage.into()) };
    let shape = SHAPES.iter().find(|s| s.name == name).ok_or(usage)?;
    let ty = BlockType::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(ty)).ok_or(usage)?;
    let tensors = shape.tensors();
    let plain = |name: &str, dims: &[usize]| dims.len() == 1 || name.ends_with("gate_inp.weight");
    let specs = tensors.iter().map(|(name, dims)| {
        let ty = if plain(name, dims) { BlockType::F32 } else { ty };
        let dtype = DType::from_name(ty.name()).ok_or("no such type")?;
        Ok(TensorSpec::new(name.clone(), dtype, dims.clone()))
    });
    let specs = specs.collect::<Result<Vec<_>, &str>>()?;
    let mut out = gguf::create(Path::new(file), &shape.metadata(file)?, &specs)?;
    for (i, (name, dims)) in tensors.iter().enumerate() {
        if dims.len() == 1 {
            out.write(name, &vector(name, dims[0]))?;
            continue;
        }
        let ty = if plain(name, dims) { BlockType::F32 } else { ty };
        let k = dims[dims.len() - 1];
        let some = rows(ty, i as u64, k);
        let mut left = dims.iter().product::<usize>() / k * (some.len() / 97);
        while left > 0 {
            let part = left.min(some.len());
            out.write(name, &some[..part])?;
            left -= part;
        }
    }
    out.finish()?;
    Ok(())
}
