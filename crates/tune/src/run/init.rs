//! Fresh weights: a Hugging Face directory of random values, as the reference implementation
//! initialises them, which is then trained like any other checkpoint.

use super::config::InitConfig;
use crate::data::{Rng, stable_hash};
use lapidary_formats::atomic::write_file;
use lapidary_formats::tokenizer::Tokenizer;
use lapidary_formats::{DType, FormatError, Result, TensorSpec, safetensors};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Files of a tokenizer that go with the weights, where they are there.
pub(crate) const TEXT_FILES: [&str; 9] = [
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "merges.txt",
];

/// How a tensor begins.
#[derive(Clone, Copy, PartialEq)]
enum Fill {
    Constant(f32),
    /// Normal with this spread.
    Normal(f64),
    /// The same, but for the row of the padding token, which is 0.
    Embedding(f64),
}

/// A tensor to be made.
struct Fresh {
    name: String,
    shape: Vec<usize>,
    fill: Fill,
}

/// Writes the checkpoint into `dir`, which must be there.
///
/// # Errors
/// If the shape makes no model, the tokenizer can't be read, or a file can't be written.
pub(super) fn write(init: &InitConfig, seed: u64, dir: &Path) -> Result<()> {
    let tokenizer = Tokenizer::from_dir(&init.tokenizer)?;
    let (config, tensors) = match init.family.as_str() {
        "gemma3" => (gemma3_config(init, &tokenizer), gemma3(init, tokenizer.vocab_size())),
        "llama" => (llama_config(init, &tokenizer), llama(init, tokenizer.vocab_size())),
        "gpt2" => (gpt2_config(init, &tokenizer), gpt2(init, tokenizer.vocab_size())),
        other => {
            let problem = format!("\"{other}\": gemma3, llama or gpt2 was expected");
            return Err(FormatError::new("the configuration", "model.init.family", problem));
        }
    };
    check(init)?;
    for name in TEXT_FILES.map(|f| init.tokenizer.join(f)).iter().filter(|p| p.is_file()) {
        let bytes = std::fs::read(name).map_err(|e| FormatError::new(name.display(), "", e))?;
        write_file(&dir.join(name.file_name().unwrap_or_default()), &bytes)?;
    }
    write_json(&dir.join("config.json"), &config)?;
    write_json(&dir.join("generation_config.json"), &generation(&tokenizer))?;
    let specs: Vec<TensorSpec> =
        tensors.iter().map(|t| TensorSpec::new(&t.name, DType::F32, t.shape.clone())).collect();
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut file = safetensors::create(&dir.join("model.safetensors"), &specs, &metadata)?;
    for t in &tensors {
        file.write(&t.name, &values(t, seed, tokenizer.pad()))?;
    }
    file.finish()
}

fn write_json(path: &Path, value: &Value) -> Result<()> {
    write_file(path, &serde_json::to_vec_pretty(value).unwrap_or_default())
}

fn check(init: &InitConfig) -> Result<()> {
    let bad = |key: &str, problem: String| {
        Err(FormatError::new("the configuration", format!("model.init.{key}"), problem))
    };
    for (key, n) in [
        ("width", init.width),
        ("layers", init.layers),
        ("heads", init.heads),
        ("ffn", init.ffn),
        ("context", init.context),
        ("window", init.window),
        ("global_every", init.global_every),
    ] {
        if n == 0 {
            return bad(key, "at least 1 was expected".into());
        }
    }
    if !(init.std > 0.0 && init.std.is_finite()) {
        return bad("std", "a number above 0 was expected".into());
    }
    let kv = init.kv_heads.unwrap_or(init.heads);
    if kv == 0 || !init.heads.is_multiple_of(kv) {
        return bad("kv_heads", format!("{} heads can't share {kv}", init.heads));
    }
    if init.family == "gpt2" && (init.kv_heads.is_some() || init.head_dim.is_some()) {
        return bad("kv_heads", "GPT-2 has neither kv_heads nor head_dim".into());
    }
    if init.head_dim.is_none() && !init.width.is_multiple_of(init.heads) {
        return bad(
            "heads",
            format!("{} heads don't divide a width of {}", init.heads, init.width),
        );
    }
    Ok(())
}

/// The values of a tensor: each has random numbers of its own, so that they don't depend on what
/// else is made.
fn values(t: &Fresh, seed: u64, pad: Option<u32>) -> Vec<u8> {
    let count: usize = t.shape.iter().product();
    let mut rng = Rng::new(seed, stable_hash(t.name.as_bytes()));
    let mut values: Vec<f32> = match t.fill {
        Fill::Constant(x) => vec![x; count],
        Fill::Normal(std) | Fill::Embedding(std) => {
            (0..count).map(|_| (std * rng.normal()) as f32).collect()
        }
    };
    if let (Fill::Embedding(_), Some(pad), [_, width]) = (t.fill, pad, &t.shape[..]) {
        values[pad as usize * width..][..*width].fill(0.0);
    }
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn fresh(name: String, shape: &[usize], fill: Fill) -> Fresh {
    Fresh { name, shape: shape.to_vec(), fill }
}

/// Sizes that the families share.
struct Sizes {
    q: usize,
    kv: usize,
    head: usize,
}

fn sizes(init: &InitConfig) -> Sizes {
    let head = init.head_dim.unwrap_or(init.width / init.heads.max(1));
    let kv = init.kv_heads.unwrap_or(init.heads);
    Sizes { q: init.heads * head, kv: kv * head, head }
}

/// The projections of a block with gated feed-forward layers.
fn gated_block(init: &InitConfig, at: &str, s: &Sizes, out: &mut Vec<Fresh>) {
    let (width, ffn) = (init.width, init.ffn);
    for (name, shape) in [
        ("self_attn.q_proj", [s.q, width]),
        ("self_attn.k_proj", [s.kv, width]),
        ("self_attn.v_proj", [s.kv, width]),
        ("self_attn.o_proj", [width, s.q]),
        ("mlp.gate_proj", [ffn, width]),
        ("mlp.up_proj", [ffn, width]),
        ("mlp.down_proj", [width, ffn]),
    ] {
        out.push(fresh(format!("{at}.{name}.weight"), &shape, Fill::Normal(init.std)));
    }
}

/// Gemma's norms multiply by 1 + w: their weights begin at 0.
fn gemma3(init: &InitConfig, vocab: usize) -> Vec<Fresh> {
    let s = sizes(init);
    let shape = [vocab, init.width];
    let mut all =
        vec![fresh("model.embed_tokens.weight".into(), &shape, Fill::Embedding(init.std))];
    for i in 0..init.layers {
        let at = format!("model.layers.{i}");
        for (name, size) in [
            ("input_layernorm", init.width),
            ("self_attn.q_norm", s.head),
            ("self_attn.k_norm", s.head),
            ("post_attention_layernorm", init.width),
            ("pre_feedforward_layernorm", init.width),
            ("post_feedforward_layernorm", init.width),
        ] {
            all.push(fresh(format!("{at}.{name}.weight"), &[size], Fill::Constant(0.0)));
        }
        gated_block(init, &at, &s, &mut all);
    }
    all.push(fresh("model.norm.weight".into(), &[init.width], Fill::Constant(0.0)));
    all
}

fn llama(init: &InitConfig, vocab: usize) -> Vec<Fresh> {
    let s = sizes(init);
    let shape = [vocab, init.width];
    let mut all =
        vec![fresh("model.embed_tokens.weight".into(), &shape, Fill::Embedding(init.std))];
    for i in 0..init.layers {
        let at = format!("model.layers.{i}");
        for name in ["input_layernorm", "post_attention_layernorm"] {
            all.push(fresh(format!("{at}.{name}.weight"), &[init.width], Fill::Constant(1.0)));
        }
        gated_block(init, &at, &s, &mut all);
    }
    all.push(fresh("model.norm.weight".into(), &[init.width], Fill::Constant(1.0)));
    all.push(fresh("lm_head.weight".into(), &shape, Fill::Normal(init.std)));
    all
}

/// GPT-2 scales the projections that end in the residual stream by 1 / sqrt(2 * layers); its
/// matrices are stored as `[in, out]`.
fn gpt2(init: &InitConfig, vocab: usize) -> Vec<Fresh> {
    let (width, ffn, normal) = (init.width, init.ffn, Fill::Normal(init.std));
    let residual = Fill::Normal(init.std / (2.0 * init.layers as f64).sqrt());
    let mut all = vec![
        fresh("transformer.wte.weight".into(), &[vocab, width], normal),
        fresh("transformer.wpe.weight".into(), &[init.context, width], normal),
    ];
    let norm = |at: String, all: &mut Vec<Fresh>| {
        all.push(fresh(format!("{at}.weight"), &[width], Fill::Constant(1.0)));
        all.push(fresh(format!("{at}.bias"), &[width], Fill::Constant(0.0)));
    };
    for i in 0..init.layers {
        let at = format!("transformer.h.{i}");
        norm(format!("{at}.ln_1"), &mut all);
        norm(format!("{at}.ln_2"), &mut all);
        for (name, shape, fill) in [
            ("attn.c_attn", [width, 3 * width], normal),
            ("attn.c_proj", [width, width], residual),
            ("mlp.c_fc", [width, ffn], normal),
            ("mlp.c_proj", [ffn, width], residual),
        ] {
            all.push(fresh(format!("{at}.{name}.weight"), &shape, fill));
            all.push(fresh(format!("{at}.{name}.bias"), &shape[1..], Fill::Constant(0.0)));
        }
    }
    norm("transformer.ln_f".into(), &mut all);
    all
}

/// What all configurations say of the tokenizer.
fn with_tokens(mut config: Value, tokenizer: &Tokenizer) -> Value {
    for (key, id) in [
        ("bos_token_id", tokenizer.bos()),
        ("eos_token_id", tokenizer.eos()),
        ("pad_token_id", tokenizer.pad()),
    ] {
        config[key] = json!(id);
    }
    config["vocab_size"] = json!(tokenizer.vocab_size());
    config
}

fn gemma3_config(init: &InitConfig, tokenizer: &Tokenizer) -> Value {
    let s = sizes(init);
    let kind = |i: usize| match i.is_multiple_of(init.global_every.max(1)) {
        true => "full_attention",
        false => "sliding_attention",
    };
    let config = json!({
        "architectures": ["Gemma3ForCausalLM"],
        "model_type": "gemma3_text",
        "hidden_size": init.width,
        "intermediate_size": init.ffn,
        "num_hidden_layers": init.layers,
        "num_attention_heads": init.heads,
        "num_key_value_heads": s.kv / s.head.max(1),
        "head_dim": s.head,
        "query_pre_attn_scalar": s.head,
        "max_position_embeddings": init.context,
        "sliding_window": init.window,
        "layer_types": (1..=init.layers).map(kind).collect::<Vec<_>>(),
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
        "rms_norm_eps": 1e-6,
        "hidden_activation": "gelu_pytorch_tanh",
        "attention_bias": false,
        "attention_dropout": 0.0,
        "tie_word_embeddings": true,
        "initializer_range": init.std,
        "torch_dtype": "float32",
    });
    with_tokens(config, tokenizer)
}

fn llama_config(init: &InitConfig, tokenizer: &Tokenizer) -> Value {
    let s = sizes(init);
    let config = json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": init.width,
        "intermediate_size": init.ffn,
        "num_hidden_layers": init.layers,
        "num_attention_heads": init.heads,
        "num_key_value_heads": s.kv / s.head.max(1),
        "head_dim": s.head,
        "max_position_embeddings": init.context,
        "rope_theta": 10_000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "tie_word_embeddings": false,
        "initializer_range": init.std,
        "torch_dtype": "float32",
    });
    with_tokens(config, tokenizer)
}

fn gpt2_config(init: &InitConfig, tokenizer: &Tokenizer) -> Value {
    let config = json!({
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_embd": init.width,
        "n_layer": init.layers,
        "n_head": init.heads,
        "n_inner": init.ffn,
        "n_positions": init.context,
        "n_ctx": init.context,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "tie_word_embeddings": true,
        "initializer_range": init.std,
        "torch_dtype": "float32",
    });
    with_tokens(config, tokenizer)
}

/// Answers end at the end of a text or of a turn.
fn generation(tokenizer: &Tokenizer) -> Value {
    let ends: Vec<u32> =
        tokenizer.eos().into_iter().chain(tokenizer.id_of("<end_of_turn>")).collect();
    json!({
        "bos_token_id": tokenizer.bos(),
        "eos_token_id": ends,
        "pad_token_id": tokenizer.pad(),
        "do_sample": true,
        "temperature": 0.7,
        "top_k": 40,
        "top_p": 0.95,
    })
}
