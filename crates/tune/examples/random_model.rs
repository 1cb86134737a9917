//! Writes a GGUF file of a published shape with random weights, to measure speed and memory:
//!
//!     cargo run --release -p lapidary-tune --example random_model -- gemma-2b q4_0 /tmp/g2b.gguf

use lapidary_formats::gguf::{self, Metadata};
use lapidary_formats::{DType, TensorSpec};
use lapidary_ops::{BlockType, Pool, blocks};
use std::path::Path;
use std::sync::Mutex;

/// A shape from the model card.
struct Shape {
    name: &'static str,
    architecture: &'static str,
    layers: usize,
    width: usize,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    ffn: usize,
    vocab: usize,
    context: usize,
    window: Option<usize>,
}

const SHAPES: &[Shape] = &[
    Shape {
        name: "gemma-2b",
        architecture: "gemma",
        layers: 18,
        width: 2048,
        heads: 8,
        kv_heads: 1,
        head_dim: 256,
        ffn: 16384,
        vocab: 256_000,
        context: 8192,
        window: None,
    },
    Shape {
        name: "gemma-3-270m",
        architecture: "gemma3",
        layers: 18,
        width: 640,
        heads: 4,
        kv_heads: 1,
        head_dim: 256,
        ffn: 2048,
        vocab: 262_144,
        context: 32_768,
        window: Some(512),
    },
    Shape {
        name: "gemma-3-1b",
        architecture: "gemma3",
        layers: 26,
        width: 1152,
        heads: 4,
        kv_heads: 1,
        head_dim: 256,
        ffn: 6912,
        vocab: 262_144,
        context: 32_768,
        window: Some(512),
    },
];

impl Shape {
    fn metadata(&self, file: &str) -> lapidary_formats::Result<Metadata> {
        let mut m = Metadata::new(file.to_owned());
        m.insert("general.architecture", self.architecture.to_owned())?;
        m.insert("general.name", format!("{} (random weights)", self.name))?;
        m.insert("general.alignment", 64u32)?;
        let a = self.architecture;
        let counts = [
            ("block_count", self.layers),
            ("context_length", self.context),
            ("embedding_length", self.width),
            ("feed_forward_length", self.ffn),
            ("attention.head_count", self.heads),
            ("attention.head_count_kv", self.kv_heads),
            ("attention.key_length", self.head_dim),
            ("attention.value_length", self.head_dim),
            ("vocab_size", self.vocab),
        ];
        for (key, n) in counts {
            m.insert(&format!("{a}.{key}"), n as u32)?;
        }
        m.insert(&format!("{a}.attention.layer_norm_rms_epsilon"), 1e-6f32)?;
        if let Some(window) = self.window {
            m.insert(&format!("{a}.attention.sliding_window"), window as u32)?;
        }
        Ok(m)
    }

    /// Names and shapes: matrices `[n, k]` and norms `[k]`.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, q, kv) = (self.width, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = vec![
            ("token_embd".to_owned(), vec![self.vocab, d]),
            ("output_norm".to_owned(), vec![d]),
        ];
        for i in 0..self.layers {
            let mut add =
                |name: &str, shape: &[usize]| all.push((format!("blk.{i}.{name}"), shape.to_vec()));
            add("attn_norm", &[d]);
            add("attn_q", &[q, d]);
            add("attn_k", &[kv, d]);
            add("attn_v", &[kv, d]);
            add("attn_output", &[d, q]);
            add("ffn_norm", &[d]);
            add("ffn_gate", &[self.ffn, d]);
            add("ffn_up", &[self.ffn, d]);
            add("ffn_down", &[d, self.ffn]);
            if self.architecture == "gemma3" {
                add("attn_q_norm", &[self.head_dim]);
                add("attn_k_norm", &[self.head_dim]);
                add("post_attention_norm", &[d]);
                add("post_ffw_norm", &[d]);
            }
        }
        all
    }
}

/// Random blocks of `ty`, rows of `k`.
fn random(ty: BlockType, seed: u64, rows: usize, k: usize, pool: &Pool) -> Vec<u8> {
    let row_bytes = k / ty.block_len() * ty.block_bytes();
    let mut bytes = vec![0; rows * row_bytes];
    let parts: Vec<_> = bytes.chunks_mut(64 * row_bytes).map(Mutex::new).collect();
    pool.run(parts.len(), &|i| {
        let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
        let mut state = seed ^ (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let values: Vec<f32> = (0..part.len() / row_bytes * k)
            .map(|_| {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.1
            })
            .collect();
        blocks::quantize(ty, &values, &mut part);
    });
    drop(parts);
    bytes
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let usage = "random_model gemma-2b|gemma-3-270m|gemma-3-1b TYPE FILE.gguf";
    let [name, ty, file] = &args[..] else { return Err(usage.into()) };
    let shape = SHAPES.iter().find(|s| s.name == name).ok_or(usage)?;
    let ty = BlockType::ALL.into_iter().find(|t| t.name().eq_ignore_ascii_case(ty)).ok_or(usage)?;
    let dtype = |ty: BlockType| DType::from_name(ty.name()).ok_or("no such type");
    let tensors = shape.tensors();
    let specs = tensors.iter().map(|(name, shape)| {
        let ty = if shape.len() == 1 { BlockType::F32 } else { ty };
        Ok(TensorSpec::new(format!("{name}.weight"), dtype(ty)?, shape.clone()))
    });
    let specs = specs.collect::<Result<Vec<_>, &str>>()?;
    let mut out = gguf::create(Path::new(file), &shape.metadata(file)?, &specs)?;
    let pool = Pool::new(std::thread::available_parallelism().map_or(1, usize::from));
    for (i, (name, dims)) in tensors.iter().enumerate() {
        let bytes = match dims[..] {
            [n, k] => random(ty, i as u64, n, k, &pool),
            _ => (0..dims[0]).flat_map(|_| 1.0f32.to_le_bytes()).collect(),
        };
        out.write(&format!("{name}.weight"), &bytes)?;
    }
    out.finish()?;
    Ok(())
}
