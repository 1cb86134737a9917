//! A small model with random weights, as a checkpoint in a folder of this process.

use lapidary_formats::{Checkpoint, DType, TensorSpec, safetensors};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Width, heads, KV heads, head size, feed-forward, layers.
const D: usize = 64;
const H: usize = 4;
const KV: usize = 2;
const HD: usize = 16;
const F: usize = 96;
const L: usize = 4;
/// Entries of the vocabulary.
pub const VOCAB: usize = 96;

/// Random values with a mean of 0 and a spread of about `scale`.
fn random(name: &str, count: usize, scale: f32) -> Vec<u8> {
    let mut state = name.bytes().fold(17u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b)));
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 23) as f32 - 1.0) * scale
    };
    (0..count).flat_map(|_| next().to_le_bytes()).collect()
}

/// Gemma 3 with every second layer global and a window of 40, or Llama.
fn tensors(family: &str) -> Vec<(String, Vec<usize>)> {
    let mut t = vec![
        ("model.embed_tokens.weight".to_owned(), vec![VOCAB, D]),
        ("model.norm.weight".to_owned(), vec![D]),
    ];
    for i in 0..L {
        let mut add = |name: &str, shape: &[usize]| {
            t.push((format!("model.layers.{i}.{name}.weight"), shape.to_vec()));
        };
        add("input_layernorm", &[D]);
        add("post_attention_layernorm", &[D]);
        add("self_attn.q_proj", &[H * HD, D]);
        add("self_attn.k_proj", &[KV * HD, D]);
        add("self_attn.v_proj", &[KV * HD, D]);
        add("self_attn.o_proj", &[D, H * HD]);
        add("mlp.gate_proj", &[F, D]);
        add("mlp.up_proj", &[F, D]);
        add("mlp.down_proj", &[D, F]);
        if family == "gemma3_text" {
            add("pre_feedforward_layernorm", &[D]);
            add("post_feedforward_layernorm", &[D]);
            add("self_attn.q_norm", &[HD]);
            add("self_attn.k_norm", &[HD]);
        }
    }
    t
}

fn config(family: &str) -> Value {
    let gemma = family == "gemma3_text";
    json!({
        "model_type": family, "hidden_size": D, "num_hidden_layers": L, "intermediate_size": F,
        "num_attention_heads": H, "num_key_value_heads": KV, "head_dim": HD, "vocab_size": VOCAB,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": true,
        "hidden_activation": if gemma { "gelu_pytorch_tanh" } else { "silu" },
        "hidden_act": if gemma { "gelu_pytorch_tanh" } else { "silu" },
        "query_pre_attn_scalar": HD, "sliding_window": 40, "sliding_window_pattern": 2,
        "rope_local_base_freq": 10000.0,
    })
}

/// The checkpoint of a family.
pub fn checkpoint(family: &str) -> Checkpoint {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("lapidary-engine-{family}-{}-{count}", std::process::id());
    let dir: PathBuf = std::env::temp_dir().join(name);
    std::fs::create_dir_all(&dir).unwrap();
    std::fs::write(dir.join("config.json"), config(family).to_string()).unwrap();
    let tensors = tensors(family);
    let spec = |(name, shape): &(String, Vec<usize>)| TensorSpec::new(name, DType::F32, &shape[..]);
    let specs: Vec<TensorSpec> = tensors.iter().map(spec).collect();
    let path = dir.join("model.safetensors");
    let mut file = safetensors::create(&path, &specs, &Default::default()).unwrap();
    for (name, shape) in &tensors {
        // Sharp enough that the likeliest token changes from place to place.
        let scale = if shape.len() == 2 { 0.35 } else { 0.5 };
        file.write(name, &random(name, shape.iter().product(), scale)).unwrap();
    }
    file.finish().unwrap();
    let checkpoint = Checkpoint::open(&dir).unwrap_or_else(|e| panic!("{e}"));
    // The mapping outlives the name.
    let _ = std::fs::remove_dir_all(&dir);
    checkpoint
}

/// A low-rank adapter with random values: of other projections for each seed.
pub fn adapters(seed: u32) -> lapidary_model::Adapters {
    let rank = 2 + seed as usize;
    let mut modules = std::collections::BTreeMap::new();
    for i in 0..L {
        let mut add = |name: &str, out: usize, inner: usize| {
            let name = format!("model.layers.{i}.{name}");
            let values = |side: &str, count| {
                let bytes = random(&format!("{seed}{name}{side}"), count, 0.4);
                let floats = bytes.as_chunks().0;
                floats.iter().map(|b| f32::from_le_bytes(*b)).collect::<Vec<f32>>()
            };
            let (a, b) = (values("a", rank * inner), values("b", out * rank));
            modules.insert(name, lapidary_model::AdapterFactors { a, b, rank });
        };
        add("self_attn.v_proj", KV * HD, D);
        match seed {
            0 => add("mlp.down_proj", D, F),
            1 => add("self_attn.q_proj", H * HD, D),
            _ => {}
        }
    }
    lapidary_model::Adapters { file: format!("adapter {seed}"), modules, factor: 1.5 }
}
