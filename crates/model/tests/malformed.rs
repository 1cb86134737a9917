//! Checkpoints that are well-formed files and no models: each is refused by file and field.

use lapidary_formats::gguf::{self, Metadata};
use lapidary_formats::{Checkpoint, DType, TensorSpec, safetensors};
use lapidary_model::{forward, load};
use lapidary_ops::{Cpu, Isa, KvCache, KvType, Ops, Pool, Precision, Rows, Span};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FAMILIES: [&str; 7] =
    ["gemma", "gemma2", "gemma3_text", "gemma4_text", "llama", "gpt2", "gpt_neo"];
/// Width, heads, KV heads, head size, feed-forward, vocabulary, layers.
const D: usize = 32;
const H: usize = 4;
const KV: usize = 2;
const HD: usize = 8;
const F: usize = 48;
const V: usize = 64;
const L: usize = 2;

/// A tensor: name, shape, type, bytes.
#[derive(Clone)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    dtype: DType,
    bytes: Vec<u8>,
}

fn random(name: &str, shape: &[usize]) -> Tensor {
    let mut state = name.bytes().fold(17u32, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b)));
    let count: usize = shape.iter().product();
    let values = (0..count).flat_map(|_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 8) as f32 / (1 << 23) as f32 - 1.0).to_le_bytes()
    });
    Tensor { name: name.into(), shape: shape.to_vec(), dtype: DType::F32, bytes: values.collect() }
}

/// config.json and tensors of a tiny valid checkpoint.
fn valid(family: &str) -> (Value, Vec<Tensor>) {
    if family.starts_with("gpt") {
        return valid_gpt(family);
    }
    if family == "gemma4_text" {
        return valid_gemma4();
    }
    let mut config = json!({
        "model_type": family, "hidden_size": D, "num_hidden_layers": L, "intermediate_size": F,
        "num_attention_heads": H, "num_key_value_heads": KV, "head_dim": HD, "vocab_size": V,
        "max_position_embeddings": 64, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "hidden_activation": "gelu_pytorch_tanh",
    });
    let more = match family {
        "gemma2" => {
            json!({"query_pre_attn_scalar": 8, "sliding_window": 8, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0})
        }
        "gemma3_text" => {
            json!({"query_pre_attn_scalar": 8, "sliding_window": 8, "sliding_window_pattern": 2, "rope_local_base_freq": 10000.0})
        }
        "llama" => json!({"hidden_act": "silu", "hidden_activation": null}),
        _ => json!({}),
    };
    for (k, v) in more.as_object().unwrap() {
        config[k] = v.clone();
    }
    let mut t =
        vec![random("model.embed_tokens.weight", &[V, D]), random("model.norm.weight", &[D])];
    for i in 0..L {
        let mut add = |name: &str, shape: &[usize]| {
            t.push(random(&format!("model.layers.{i}.{name}.weight"), shape))
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
        if matches!(family, "gemma2" | "gemma3_text") {
            add("pre_feedforward_layernorm", &[D]);
            add("post_feedforward_layernorm", &[D]);
        }
        if family == "gemma3_text" {
            add("self_attn.q_norm", &[HD]);
            add("self_attn.k_norm", &[HD]);
        }
    }
    (config, t)
}

/// With experts, per-layer embeddings, and a last layer that reads the first one's keys.
fn valid_gemma4() -> (Value, Vec<Tensor>) {
    let (experts, ple) = (4, 8);
    let config = json!({
        "model_type": "gemma4_text", "hidden_size": D, "num_hidden_layers": L,
        "intermediate_size": F, "num_attention_heads": H, "num_key_value_heads": KV,
        "head_dim": HD, "global_head_dim": HD, "vocab_size": V, "max_position_embeddings": 64,
        "sliding_window": 8, "layer_types": ["full_attention", "full_attention"],
        "num_kv_shared_layers": 1, "hidden_size_per_layer_input": ple,
        "vocab_size_per_layer_input": V, "enable_moe_block": true, "num_experts": experts,
        "top_k_experts": 2, "moe_intermediate_size": F, "final_logit_softcapping": 30.0,
    });
    let mut t =
        vec![random("model.embed_tokens.weight", &[V, D]), random("model.norm.weight", &[D])];
    t.push(random("model.embed_tokens_per_layer.weight", &[V, L * ple]));
    t.push(random("model.per_layer_model_projection.weight", &[L * ple, D]));
    t.push(random("model.per_layer_projection_norm.weight", &[ple]));
    for i in 0..L {
        let mut add = |name: &str, shape: &[usize]| {
            t.push(random(&format!("model.layers.{i}.{name}"), shape));
        };
        for norm in ["input_layernorm", "post_attention_layernorm", "pre_feedforward_layernorm"] {
            add(&format!("{norm}.weight"), &[D]);
        }
        for norm in ["post_feedforward_layernorm", "post_feedforward_layernorm_1"] {
            add(&format!("{norm}.weight"), &[D]);
        }
        for norm in ["post_feedforward_layernorm_2", "pre_feedforward_layernorm_2"] {
            add(&format!("{norm}.weight"), &[D]);
        }
        add("post_per_layer_input_norm.weight", &[D]);
        add("self_attn.q_proj.weight", &[H * HD, D]);
        add("self_attn.q_norm.weight", &[HD]);
        if i == 0 {
            add("self_attn.k_proj.weight", &[KV * HD, D]);
            add("self_attn.v_proj.weight", &[KV * HD, D]);
            add("self_attn.k_norm.weight", &[HD]);
        }
        add("self_attn.o_proj.weight", &[D, H * HD]);
        add("mlp.gate_proj.weight", &[F, D]);
        add("mlp.up_proj.weight", &[F, D]);
        add("mlp.down_proj.weight", &[D, F]);
        add("router.proj.weight", &[experts, D]);
        add("router.scale", &[D]);
        add("router.per_expert_scale", &[experts]);
        add("experts.gate_up_proj", &[experts, 2 * F, D]);
        add("experts.down_proj", &[experts, D, F]);
        add("per_layer_input_gate.weight", &[ple, D]);
        add("per_layer_projection.weight", &[D, ple]);
        add("layer_scalar", &[1]);
    }
    (config, t)
}

fn valid_gpt(family: &str) -> (Value, Vec<Tensor>) {
    let config = match family {
        "gpt2" => {
            json!({"model_type": "gpt2", "n_embd": D, "n_layer": L, "n_head": H, "n_positions": 64,
            "vocab_size": V, "activation_function": "gelu_new", "attention_layers": ["global", "local"], "window_size": 4})
        }
        _ => json!({"model_type": "gpt_neo", "hidden_size": D, "num_layers": L, "num_heads": H,
            "max_position_embeddings": 64, "vocab_size": V, "attention_layers": ["global", "local"], "window_size": 4}),
    };
    let mut t = vec![random("wte.weight", &[V, D]), random("wpe.weight", &[64, D])];
    t.extend([random("ln_f.weight", &[D]), random("ln_f.bias", &[D])]);
    for i in 0..L {
        let mut add = |name: &str, shape: &[usize]| t.push(random(&format!("h.{i}.{name}"), shape));
        for norm in ["ln_1", "ln_2"] {
            add(&format!("{norm}.weight"), &[D]);
            add(&format!("{norm}.bias"), &[D]);
        }
        if family == "gpt2" {
            for (name, k, n) in [
                ("attn.c_attn", D, 3 * D),
                ("attn.c_proj", D, D),
                ("mlp.c_fc", D, 4 * D),
                ("mlp.c_proj", 4 * D, D),
            ] {
                add(&format!("{name}.weight"), &[k, n]);
                add(&format!("{name}.bias"), &[n]);
            }
        } else {
            for name in ["q_proj", "k_proj", "v_proj", "out_proj"] {
                add(&format!("attn.attention.{name}.weight"), &[D, D]);
            }
            add("attn.attention.out_proj.bias", &[D]);
            for (name, n, k) in [("mlp.c_fc", 4 * D, D), ("mlp.c_proj", D, 4 * D)] {
                add(&format!("{name}.weight"), &[n, k]);
                add(&format!("{name}.bias"), &[n]);
            }
        }
    }
    (config, t)
}

/// A folder of this process that goes away with the value.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let dir =
            std::env::temp_dir().join(format!("lapidary-model-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn write(dir: &Path, config: &Value, tensors: &[Tensor]) {
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let specs: Vec<TensorSpec> =
        tensors.iter().map(|t| TensorSpec::new(&t.name, t.dtype, t.shape.clone())).collect();
    let mut file =
        safetensors::create(&dir.join("model.safetensors"), &specs, &Default::default()).unwrap();
    for t in tensors {
        file.write(&t.name, &t.bytes).unwrap();
    }
    file.finish().unwrap();
}

/// Loads, and computes three tokens.
fn open(path: &Path) -> Result<Vec<f32>, String> {
    let checkpoint = Checkpoint::open(path).map_err(|e| e.to_string())?;
    let mut cpu = Cpu::new(Isa::detect(), Arc::new(Pool::new(1)), Precision::Fast);
    let model = load(&checkpoint, &mut cpu).map_err(|e| e.to_string())?.model;
    let info = model.info().clone();
    let mut cache = KvCache::new(&info.kv, KvType::F32);
    let tables: Vec<Vec<u32>> = info.kv.groups.iter().map(|_| vec![0]).collect();
    for group in 0..tables.len() {
        cache.grow(group, 1).unwrap();
    }
    let span = Span { rows: 0..3, position: 0, tables };
    let rows = Rows::new(vec![1, 5, 9], vec![span]);
    let logits = forward(&*model, &mut cpu, &rows, &[0, 1, 2], &mut cache);
    Ok(cpu.read(&logits))
}

/// Asserts that the checkpoint in `dir` is refused, by a message that holds all of `parts`.
fn refused(case: &str, dir: &Path, parts: &[&str]) {
    let error = open(dir).err().unwrap_or_else(|| panic!("{case}: was loaded"));
    for part in parts {
        assert!(error.contains(part), "{case}: {part:?} is not in {error:?}");
    }
    assert!(error.len() < 1000, "{case}: {error}");
}

#[test]
fn valid_checkpoints_load() {
    for family in FAMILIES {
        let dir = Folder::new(&format!("valid-{family}"));
        let (config, tensors) = valid(family);
        write(&dir.0, &config, &tensors);
        let logits = open(&dir.0).unwrap_or_else(|e| panic!("{family}: {e}"));
        assert!(logits.len() == 3 * V && logits.iter().all(|l| l.is_finite()), "{family}");
    }
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let mut cases = 0;
    for family in FAMILIES {
        let dir = Folder::new(&format!("tensors-{family}"));
        let (config, tensors) = valid(family);
        // A bias of GPT-Neo's projections may be absent: some have none.
        let optional =
            |name: &str| family == "gpt_neo" && name.ends_with(".bias") && !name.contains("ln_");
        for i in 0..tensors.len() {
            let name = tensors[i].name.clone();
            let mut change = |what: &str, f: &dyn Fn(&mut Vec<Tensor>)| {
                let mut changed = tensors.clone();
                f(&mut changed);
                write(&dir.0, &config, &changed);
                refused(
                    &format!("{family} {name} {what}"),
                    &dir.0,
                    &["model.safetensors", &name][usize::from(what == "missing")..],
                );
                cases += 1;
            };
            if !optional(&name) {
                change("missing", &|t| {
                    t.remove(i);
                });
            }
            change("one row more", &|t| {
                let mut shape = t[i].shape.clone();
                shape[0] += 1;
                t[i] = random(&name, &shape);
            });
            change("another rank", &|t| {
                t[i].shape.insert(0, 1);
            });
            change("integers", &|t| t[i].dtype = DType::I32);
            for bits in [f32::NAN, f32::INFINITY] {
                // Tables of rows are gathered as they are, and checked when rows are read.
                if !name.ends_with("wpe.weight") && !name.contains("tokens_per_layer") {
                    change("not finite", &|t| {
                        let end = t[i].bytes.len();
                        t[i].bytes[end - 4..].copy_from_slice(&bits.to_le_bytes());
                    });
                }
            }
        }
    }
    println!("{cases} damaged tensors refused");
    assert!(cases > 500, "{cases}");
}

#[test]
fn settings_that_make_no_sense_are_named() {
    let absurd = [
        json!(0),
        json!(-1),
        json!(1u64 << 40),
        json!(u64::MAX),
        json!(1.5),
        json!("8"),
        json!([8]),
        json!({}),
        json!(true),
        json!(1e300),
    ];
    let mut cases = 0;
    for family in FAMILIES {
        let dir = Folder::new(&format!("settings-{family}"));
        let (config, tensors) = valid(family);
        write(&dir.0, &config, &tensors);
        let mut check = |config: &Value, case: &str, key: &str| {
            std::fs::write(dir.0.join("config.json"), config.to_string()).unwrap();
            refused(&format!("{family} {case}"), &dir.0, &["config.json", key]);
            cases += 1;
        };
        let counts = [
            "hidden_size",
            "num_hidden_layers",
            "intermediate_size",
            "num_attention_heads",
            "num_key_value_heads",
            "head_dim",
            "vocab_size",
            "max_position_embeddings",
            "sliding_window",
            "global_head_dim",
            "vocab_size_per_layer_input",
            "num_experts",
            "top_k_experts",
            "moe_intermediate_size",
            "n_embd",
            "n_layer",
            "n_head",
            "n_positions",
            "num_layers",
            "num_heads",
            "window_size",
        ];
        for key in counts.into_iter().filter(|k| config.get(k).is_some()) {
            for value in &absurd {
                let mut c = config.clone();
                c[key] = value.clone();
                check(&c, &format!("{key} = {value}"), key);
            }
        }
        let one = |key: &str, value: Value| {
            let mut c = config.clone();
            c[key] = value;
            c
        };
        check(&one("model_type", json!("mamba")), "unknown family", "model_type");
        check(&one("model_type", json!(3)), "family by number", "model_type");
        if family.starts_with("gpt") {
            check(&one("activation_function", json!("relu")), "activation", "activation_function");
            check(&one("attention_layers", json!(["global"])), "layers", "attention_layers");
            check(
                &one("attention_layers", json!(["global", "banded"])),
                "layers",
                "attention_layers",
            );
            check(&one("layer_norm_epsilon", json!(-1.0)), "epsilon", "layer_norm_epsilon");
            continue;
        }
        check(&one("num_key_value_heads", json!(3)), "heads", "num_key_value_heads");
        if family == "gemma4_text" {
            check(&one("global_head_dim", json!(7)), "odd head", "head_dim");
            check(&one("num_kv_shared_layers", json!(2)), "shared", "num_kv_shared_layers");
            check(&one("num_kv_shared_layers", json!(3)), "shared", "num_kv_shared_layers");
            check(&one("top_k_experts", json!(5)), "experts", "top_k_experts");
            check(&one("per_layer_config", json!({"1": {"head_dim": 9}})), "layer", "head_dim");
            let rope = |r: Value| one("rope_parameters", json!({"full_attention": r}));
            check(&rope(json!({"rope_type": "yarn"})), "rope", "rope_type");
            check(&rope(json!({"partial_rotary_factor": 0.5})), "rope", "rope_type");
            let all = one("use_bidirectional_attention", json!("all"));
            check(&all, "bidirectional", "use_bidirectional_attention");
            continue;
        }
        check(&one("head_dim", json!(7)), "odd head", "head_dim");
        check(&one("rms_norm_eps", json!(0)), "epsilon", "rms_norm_eps");
        check(&one("rope_theta", json!(-1)), "base", "rope_theta");
        check(&one("rope_scaling", json!({"rope_type": "yarn"})), "rope", "rope_type");
        check(&one("rope_scaling", json!({"type": "linear"})), "rope", "factor");
        check(&one("rope_parameters", json!({"rope_type": "longrope"})), "rope", "rope_type");
        check(&one("attention_bias", json!(true)), "bias", "attention_bias");
        let act = if family == "llama" { "hidden_act" } else { "hidden_activation" };
        check(&one(act, json!("relu")), "activation", act);
        if matches!(family, "gemma2" | "gemma3_text") {
            check(&one("layer_types", json!(["full_attention"])), "layers", "layer_types");
            check(
                &one("layer_types", json!(["full_attention", "linear"])),
                "layers",
                "layer_types",
            );
            check(&one("query_pre_attn_scalar", json!(0)), "scalar", "query_pre_attn_scalar");
        }
    }
    println!("{cases} settings refused");
    assert!(cases > 400, "{cases}");
}

#[test]
fn gguf_settings_and_scales_are_checked() {
    let dir = Folder::new("gguf");
    let path = dir.0.join("m.gguf");
    let counts = [
        ("block_count", L),
        ("context_length", 64),
        ("embedding_length", D),
        ("feed_forward_length", F),
        ("attention.head_count", H),
        ("attention.head_count_kv", KV),
        ("attention.key_length", HD),
        ("attention.value_length", HD),
        ("vocab_size", V),
    ];
    let names = [
        ("model.embed_tokens", "token_embd"),
        ("model.norm", "output_norm"),
        ("model.layers", "blk"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
    ];
    let write = |skip: &str, replace: Option<(&str, gguf::Value)>, q8: Option<usize>| {
        let mut m = Metadata::new("m");
        m.insert("general.architecture", "gemma").unwrap();
        for (key, n) in counts.into_iter().filter(|(k, _)| *k != skip) {
            let new = replace.as_ref().filter(|(k, _)| *k == key).map(|(_, v)| v.clone());
            m.insert(&format!("gemma.{key}"), new.unwrap_or((n as u32).into())).unwrap();
        }
        let tensors: Vec<Tensor> = valid("gemma")
            .1
            .into_iter()
            .enumerate()
            .map(|(i, mut t)| {
                names.iter().for_each(|(hf, gguf)| t.name = t.name.replace(hf, gguf));
                if q8 == Some(i) {
                    // Blocks of ones, the last one's scale a NaN.
                    t.dtype = DType::Q8_0;
                    t.bytes = vec![1; t.shape.iter().product::<usize>() / 32 * 34];
                    let end = t.bytes.len();
                    t.bytes[end - 34..end - 32].copy_from_slice(&[0xff, 0x7f]);
                }
                t
            })
            .collect();
        let specs: Vec<TensorSpec> =
            tensors.iter().map(|t| TensorSpec::new(&t.name, t.dtype, t.shape.clone())).collect();
        let mut file = gguf::create(&path, &m, &specs).unwrap();
        tensors.iter().for_each(|t| file.write(&t.name, &t.bytes).unwrap());
        file.finish().unwrap();
        tensors
    };
    write("", None, None);
    assert!(open(&path).is_ok(), "{:?}", open(&path));
    let mut cases = 0;
    let bad: [gguf::Value; 6] =
        [0u32.into(), u64::MAX.into(), (-4i32).into(), 1.5f32.into(), true.into(), "8".into()];
    for (key, _) in counts {
        for value in &bad {
            write("", Some((key, value.clone())), None);
            refused(&format!("{key} = {value}"), &path, &["m.gguf", key]);
            cases += 1;
        }
        if !matches!(
            key,
            "vocab_size"
                | "context_length"
                | "attention.head_count_kv"
                | "attention.key_length"
                | "attention.value_length"
        ) {
            write(key, None, None);
            refused(&format!("no {key}"), &path, &["m.gguf", key]);
            cases += 1;
        }
    }
    for (i, t) in valid("gemma")
        .1
        .iter()
        .enumerate()
        .filter(|(_, t)| t.shape.len() == 2 && t.shape[1].is_multiple_of(32))
    {
        let tensors = write("", None, Some(i));
        refused(
            &format!("{} with a NaN scale", t.name),
            &path,
            &["m.gguf", &tensors[i].name, "row"],
        );
        cases += 1;
    }
    println!("{cases} GGUF models refused");
}
