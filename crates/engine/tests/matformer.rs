//! Gemma 3n, a smaller model inside: cut out by hand and cut out by option.

mod shared;

use lapidary_engine::{Limits, Session};
use lapidary_formats::{Checkpoint, DType, TensorSpec, safetensors};
use lapidary_model::{Loaded, Slice, describe_slice, load, load_slice};
use lapidary_ops::{Cpu, Isa, KvType, Pool, Precision};
use serde_json::{Value, json};
use shared::{Folder, fixtures};
use std::path::Path;
use std::sync::Arc;

/// Layer 5 of seven reads layer 2's keys and values.
const SKIP: usize = 5;
const FFN: [usize; 6] = [32, 64, 16, 32, 32, 48];

/// Columns `range` of rows of `width` values of `size` bytes.
fn columns(bytes: &[u8], width: usize, size: usize, range: std::ops::Range<usize>) -> Vec<u8> {
    let row = |r: &[u8]| r[range.start * size..range.end * size].to_vec();
    bytes.chunks_exact(width * size).flat_map(row).collect()
}

/// The checkpoint without layer [`SKIP`], and with narrower feed-forward layers.
fn by_hand(from: &Path, to: &Path) {
    let checkpoint = Checkpoint::open(from).unwrap();
    let config = std::fs::read(from.join("config.json")).unwrap();
    let mut config: Value = serde_json::from_slice(&config).unwrap();
    for key in ["layer_types", "activation_sparsity_pattern"] {
        config[key].as_array_mut().unwrap().remove(SKIP);
    }
    config["intermediate_size"] = json!(FFN);
    config["num_hidden_layers"] = json!(6);
    config["num_kv_shared_layers"] = json!(2);
    let ple = config["hidden_size_per_layer_input"].as_u64().unwrap() as usize;
    std::fs::write(to.join("config.json"), config.to_string()).unwrap();
    let mut tensors = Vec::new();
    for view in checkpoint.tensors() {
        let (mut name, mut shape) = (view.name.to_string(), view.shape.clone());
        let (mut bytes, size) = (view.bytes.to_vec(), view.bytes.len() / view.elements());
        let mut place = None;
        if let Some((head, rest)) = name.clone().split_once("layers.") {
            let (layer, rest) = rest.split_once('.').unwrap();
            let layer: usize = layer.parse().unwrap();
            if layer == SKIP {
                continue;
            }
            let at = layer - usize::from(layer > SKIP);
            name = format!("{head}layers.{at}.{rest}");
            place = Some(at);
        }
        let (first, gone) = (shape[0], SKIP * ple..(SKIP + 1) * ple);
        if name.ends_with("gate_proj.weight") || name.ends_with("up_proj.weight") {
            shape[0] = FFN[place.unwrap()];
            bytes.truncate(shape[0] * shape[1] * size);
        } else if name.ends_with("down_proj.weight") {
            let width = FFN[place.unwrap()];
            bytes = columns(&bytes, shape[1], size, 0..width);
            shape[1] = width;
        } else if name.ends_with("embed_tokens_per_layer.weight") {
            let width = shape[1];
            let parts = [0..gone.start, gone.end..width].map(|r| columns(&bytes, width, size, r));
            let rows = |i: usize| parts[i].chunks_exact(parts[i].len() / first);
            bytes = rows(0).zip(rows(1)).flat_map(|(a, b)| [a, b].concat()).collect();
            shape[1] -= ple;
        } else if name.ends_with("per_layer_model_projection.weight") {
            bytes.drain(gone.start * shape[1] * size..gone.end * shape[1] * size);
            shape[0] -= ple;
        }
        let dtype = if size == 2 { DType::BF16 } else { DType::F32 };
        assert_eq!(view.dtype, dtype);
        tensors.push((TensorSpec::new(name, dtype, shape), bytes));
    }
    let specs: Vec<TensorSpec> = tensors.iter().map(|t| t.0.clone()).collect();
    let path = to.join("model.safetensors");
    let mut writer = safetensors::create(&path, &specs, &Default::default()).unwrap();
    tensors.iter().for_each(|(spec, bytes)| writer.write(&spec.name, bytes).unwrap());
    writer.finish().unwrap();
}

fn logits(loaded: &Loaded, cpu: &mut Cpu) -> Vec<u32> {
    let limits = Limits { context: 64, chunk: 7, kv: KvType::F32 };
    let mut session = Session::new(&loaded.model.info().kv, limits);
    let ids: Vec<u32> = (0..30).map(|i| 60 + i * 11 % 400).collect();
    let logits = session.extend(&*loaded.model, cpu, &ids, true).unwrap();
    logits.iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_slice_by_option_is_the_slice_by_hand() {
    let Some(dir) = fixtures() else { return };
    let from = dir.join("models/gemma3n_text");
    let folder = Folder::new("matformer");
    by_hand(&from, &folder.0);
    let mut cpu = Cpu::new(Isa::detect(), Arc::new(Pool::new(2)), Precision::Exact);
    let whole = Checkpoint::open(&from).unwrap();
    let small = Checkpoint::open(&folder.0).unwrap();
    let want = load(&small, &mut cpu).unwrap_or_else(|e| panic!("{e}"));
    let slice = Slice { skip: vec![SKIP], ffn: FFN.to_vec() };
    let got = load_slice(&whole, &mut cpu, &slice).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(got.model.info().layers, 6);
    let told = describe_slice(&whole, &slice).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(
        (told.info.layers, told.parameters, told.bytes),
        (6, small.elements(), small.tensor_bytes())
    );
    let want = logits(&want, &mut cpu);
    assert_eq!(logits(&got, &mut cpu), want);
    assert_ne!(logits(&load(&whole, &mut cpu).unwrap(), &mut cpu), want);
    // From GGUF, blocks are cut whole.
    let gguf = Checkpoint::open(&dir.join("gguf/gemma3n_text-q8_0.gguf")).unwrap();
    let half = Slice { skip: vec![SKIP], ffn: vec![32] };
    assert_eq!(load_slice(&gguf, &mut cpu, &half).unwrap().model.info().layers, 6);

    let mut refused = |checkpoint: &Checkpoint, skip: &[usize], ffn: &[usize], words: &str| {
        let slice = Slice { skip: skip.to_vec(), ffn: ffn.to_vec() };
        let e = load_slice(checkpoint, &mut cpu, &slice).err().unwrap().to_string();
        assert!(e.contains(words), "{e}");
        // Headers tell all but how blocks can be cut.
        let told = describe_slice(checkpoint, &slice).err().map(|e| e.to_string());
        assert!(told == Some(e) || words == "can't be cut", "{told:?}");
    };
    refused(&whole, &[2], &[], "layer 2 does not read");
    refused(&whole, &[7], &[], "layer 7 does not read");
    refused(&whole, &[5], &[32, 32], "2 feed-forward widths for 6 layers");
    refused(&whole, &[], &[65], "a width of 65");
    refused(&whole, &[], &[0], "a width of 0");
    refused(&gguf, &[5], &[20], "can't be cut");
    let llama = Checkpoint::open(&dir.join("models/llama_gqa")).unwrap();
    refused(&llama, &[], &[8], "only Gemma 3n");
}
