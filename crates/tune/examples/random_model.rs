//! Writes a GGUF file of a published shape with random weights, to measure speed and memory:
//!
//!     cargo run --release -p lapidary-tune --example random_model -- gemma-2b q4_k_m g2b.gguf
//!
//! Types follow the recipe of `lapidary quantize --type`; the vocabulary is as long as the real one,
//! so that other programs load the file and starting costs what it costs.

use lapidary_formats::gguf::{self, Metadata};
use lapidary_formats::tokenizer::GgufVocab;
use lapidary_formats::{DType, TensorSpec};
use lapidary_ops::{BlockType, Pool, blocks};
use lapidary_tune::{Place, Recipe};
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
    /// What positions are divided by in global layers.
    divisor: Option<f32>,
    tied: bool,
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
        divisor: None,
        tied: true,
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
        divisor: None,
        tied: true,
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
        divisor: None,
        tied: true,
    },
    Shape {
        name: "gemma-3-4b",
        architecture: "gemma3",
        layers: 34,
        width: 2560,
        heads: 8,
        kv_heads: 4,
        head_dim: 256,
        ffn: 10_240,
        vocab: 262_208,
        context: 131_072,
        window: Some(1024),
        divisor: Some(8.0),
        tied: true,
    },
    Shape {
        name: "gemma-7b",
        architecture: "gemma",
        layers: 28,
        width: 3072,
        heads: 16,
        kv_heads: 16,
        head_dim: 256,
        ffn: 24576,
        vocab: 256_000,
        context: 8192,
        window: None,
        divisor: None,
        tied: true,
    },
    Shape {
        name: "llama-2-7b",
        architecture: "llama",
        layers: 32,
        width: 4096,
        heads: 32,
        kv_heads: 32,
        head_dim: 128,
        ffn: 11008,
        vocab: 32_000,
        context: 4096,
        window: None,
        divisor: None,
        tied: false,
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
        m.insert(&format!("{a}.rope.dimension_count"), self.head_dim as u32)?;
        m.insert("general.quantization_version", 2u32)?;
        if let Some(window) = self.window {
            m.insert("gemma3.rope.freq_base", 1e6f32)?;
            m.insert("gemma3.rope.freq_base_swa", 1e4f32)?;
            m.insert(&format!("{a}.attention.sliding_window"), window as u32)?;
        }
        if let Some(divisor) = self.divisor {
            m.insert(&format!("{a}.rope.scaling.type"), "linear")?;
            m.insert(&format!("{a}.rope.scaling.factor"), divisor)?;
        }
        Ok(m)
    }

    /// Names and shapes: matrices `[n, k]` and norms `[k]`.
    fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (d, q, kv) = (self.width, self.heads * self.head_dim, self.kv_heads * self.head_dim);
        let mut all = vec![
            ("token_embd.weight".to_owned(), vec![self.vocab, d]),
            ("output_norm.weight".to_owned(), vec![d]),
        ];
        if !self.tied {
            all.push(("output.weight".to_owned(), vec![self.vocab, d]));
        }
        for i in 0..self.layers {
            let mut add = |name: &str, shape: &[usize]| {
                all.push((format!("blk.{i}.{name}.weight"), shape.to_vec()))
            };
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

/// A SentencePiece vocabulary of `size` pieces: markers, bytes, printable ASCII and made-up words.
fn vocabulary(size: usize) -> GgufVocab {
    let mut pieces: Vec<(String, i32)> = vec![
        ("<pad>".into(), 3),
        ("<eos>".into(), 3),
        ("<bos>".into(), 3),
        ("<unk>".into(), 2),
        ("<start_of_turn>".into(), 3),
        ("<end_of_turn>".into(), 3),
        ("<start_of_image>".into(), 3),
        ("<end_of_image>".into(), 3),
        ("\n".into(), 4),
    ];
    pieces.extend((0..=255u8).map(|b| (format!("<0x{b:02X}>"), 6)));
    pieces.push(("\u{2581}".into(), 1));
    pieces.extend((b'!'..=b'~').map(|b| (char::from(b).to_string(), 1)));
    // Base-26 words, each made from the one before its last letter, so that merges reach them.
    let mut queue: std::collections::VecDeque<String> =
        (b'a'..=b'z').map(|b| format!("\u{2581}{}", char::from(b))).collect();
    while pieces.len() < size {
        let Some(word) = queue.pop_front() else { break };
        queue.extend((b'a'..=b'z').map(|b| format!("{word}{}", char::from(b))));
        pieces.push((word, 1));
    }
    GgufVocab {
        model: "llama".into(),
        pre: Some("default".into()),
        scores: Some((0..pieces.len()).map(|i| -(i as f32)).collect()),
        token_types: Some(pieces.iter().map(|p| p.1).collect()),
        tokens: pieces.into_iter().map(|p| p.0).collect(),
        bos: Some(2),
        eos: Some(1),
        unk: Some(3),
        pad: Some(0),
        add_bos: Some(true),
        add_eos: Some(false),
        add_space_prefix: Some(false),
        ..GgufVocab::default()
    }
}

/// A generator of 64-bit numbers (PCG's multiplier and increment).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        self.0
    }

    /// Between -0.05 and 0.05.
    fn weight(&mut self) -> f32 {
        ((self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.1
    }
}

/// Where the half-precision numbers of a block stand, and what they are made, for weights that are
/// small whatever the other bytes.
fn halves(ty: BlockType) -> &'static [(usize, f32)] {
    use BlockType::*;
    match ty {
        Q8_0 => &[(0, 0.05 / 127.0)],
        Q4_0 => &[(0, 0.05 / 8.0)],
        Q5_0 => &[(0, 0.05 / 16.0)],
        Q4_1 => &[(0, 0.1 / 15.0), (2, -0.05)],
        Q5_1 => &[(0, 0.1 / 31.0), (2, -0.05)],
        IQ4_NL => &[(0, 0.05 / 127.0)],
        IQ4_XS => &[(0, 0.05 / 127.0 / 32.0)],
        Q2_K => &[(80, 0.1 / 15.0 / 3.0), (82, 0.1 / 15.0)],
        Q3_K => &[(108, 0.05 / 32.0 / 4.0)],
        Q4_K => &[(0, 0.1 / 63.0 / 15.0), (2, 0.05 / 63.0)],
        Q5_K => &[(0, 0.1 / 63.0 / 31.0), (2, 0.05 / 63.0)],
        Q6_K => &[(208, 0.05 / 128.0 / 32.0)],
        F32 | F16 | BF16 | MXFP4 => &[],
    }
}

/// Fills `out` with random blocks: speed does not depend on what they hold, and drawing bits is much
/// faster than quantising.
fn fill(ty: BlockType, seed: u64, out: &mut [u8]) {
    let mut random = Random(seed);
    if ty.block_len() == 1 {
        let size = ty.block_bytes();
        return out.chunks_mut(size).for_each(|b| blocks::quantize(ty, &[random.weight()], b));
    }
    for bytes in out.chunks_mut(4) {
        bytes.copy_from_slice(&random.next().to_be_bytes()[..bytes.len()]);
    }
    for block in out.chunks_exact_mut(ty.block_bytes()) {
        for &(at, x) in halves(ty) {
            block[at..at + 2].copy_from_slice(&blocks::f32_to_f16(x).to_le_bytes());
        }
        if ty == BlockType::MXFP4 {
            block[0] = 120;
        }
    }
}

fn random(ty: BlockType, seed: u64, rows: usize, k: usize, pool: &Pool) -> Vec<u8> {
    let row_bytes = k / ty.block_len() * ty.block_bytes();
    let mut bytes = vec![0; rows * row_bytes];
    let parts: Vec<_> = bytes.chunks_mut(64 * row_bytes).map(Mutex::new).collect();
    pool.run(parts.len(), &|i| {
        let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
        fill(ty, seed ^ (i as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15), &mut part);
    });
    drop(parts);
    bytes
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let names: Vec<&str> = SHAPES.iter().map(|s| s.name).collect();
    let usage = format!("random_model {} TYPE FILE.gguf", names.join("|"));
    let [name, ty, file] = &args[..] else { return Err(usage.into()) };
    let shape = SHAPES.iter().find(|s| s.name == name).ok_or_else(|| usage.clone())?;
    let recipe = Recipe::named(ty).ok_or(usage)?;
    let tensors = shape.tensors();
    let (layers, shared) = (shape.layers, shape.heads / shape.kv_heads);
    let types = tensors.iter().map(|(name, dims)| match dims[..] {
        [_, k] => recipe.ty(Place { name, k, layers, shared, tied: shape.tied }).0,
        _ => BlockType::F32,
    });
    let types: Vec<BlockType> = types.collect();
    let specs = tensors.iter().zip(&types).map(|((name, dims), ty)| {
        let dtype = DType::from_name(ty.name()).ok_or("no such type")?;
        Ok(TensorSpec::new(name, dtype, dims.clone()))
    });
    let specs = specs.collect::<Result<Vec<_>, &str>>()?;
    let mut metadata = shape.metadata(file)?;
    metadata.insert("general.file_type", recipe.file_type)?;
    vocabulary(shape.vocab).write(&mut metadata)?;
    let mut out = gguf::create(Path::new(file), &metadata, &specs)?;
    let pool = Pool::new(std::thread::available_parallelism().map_or(1, usize::from));
    for (i, ((name, dims), ty)) in tensors.iter().zip(types).enumerate() {
        let bytes = match dims[..] {
            [n, k] => random(ty, i as u64 + 1, n, k, &pool),
            _ => (0..dims[0]).flat_map(|_| 1.0f32.to_le_bytes()).collect(),
        };
        out.write(name, &bytes)?;
    }
    out.finish()?;
    Ok(())
}
