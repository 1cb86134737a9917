//! EmbeddingGemma 1 and 2 against the reference, step by step.

mod shared;

use lapidary_engine::{EmbedError, Embedder};
use lapidary_formats::{Checkpoint, safetensors};
use lapidary_ops::{Cpu, Isa, Pool, Precision};
use shared::fixtures;
use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex};

fn golden(path: &Path) -> HashMap<String, Vec<f64>> {
    let file = safetensors::open(path).unwrap_or_else(|e| panic!("{e}"));
    let values = |t: &lapidary_formats::TensorView| -> Vec<f64> {
        let bytes: &[u8] = &t.bytes;
        match t.dtype.name() {
            "F32" => {
                bytes.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap()).into()).collect()
            }
            _ => {
                bytes.chunks(8).map(|c| i64::from_le_bytes(c.try_into().unwrap()) as f64).collect()
            }
        }
    };
    file.tensors.iter().map(|t| (t.name.to_string(), values(t))).collect()
}

fn close(what: &str, got: &[f32], want: &[f64]) -> f64 {
    let top = want.iter().fold(0.0, |t: f64, w| t.max(w.abs()));
    let off = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
    assert!(got.len() == want.len() && off <= 1e-4 * top, "{what}: off by {off} of {top}");
    off / top
}

#[test]
fn embeddings_are_the_references_whatever_else_is_embedded() {
    let Some(dir) = fixtures() else { return };
    for name in ["embeddinggemma", "embeddinggemma2"] {
        let dir = dir.join("models").join(name);
        let golden = golden(&dir.join("golden.safetensors"));
        let about: serde_json::Value =
            serde_json::from_slice(&std::fs::read(dir.join("golden.json")).unwrap()).unwrap();
        let checkpoint = Checkpoint::open(&dir).unwrap_or_else(|e| panic!("{e}"));
        let mut worst: f64 = 0.0;
        let mut first: Option<Vec<Vec<u32>>> = None;
        for isa in Isa::available() {
            let mut cpu = Cpu::new(isa, Arc::new(Pool::new(2)), Precision::Exact);
            let embedder = Embedder::open(&checkpoint, &mut cpu).unwrap_or_else(|e| panic!("{e}"));
            let texts = about["texts"].as_array().unwrap();
            let mut bits = Vec::new();
            for t in texts {
                let (key, text) = (t["name"].as_str().unwrap(), t["text"].as_str().unwrap());
                let task = t["prompt"].as_str().unwrap();
                let task =
                    if task == "STS" && name == "embeddinggemma2" { "similarity" } else { task };
                let prompt = if task.is_empty() { "" } else { embedder.prompt(task).unwrap() };
                let ids: Vec<f64> =
                    embedder.tokens(prompt, text).iter().map(|i| (*i).into()).collect();
                assert_eq!(ids, golden[&format!("{key}.input_ids")], "{name} {key}");
                let states = Arc::new(Mutex::new(HashMap::new()));
                let heard = states.clone();
                cpu.listen(Some(Box::new(move |name, _, x| {
                    heard.lock().unwrap().insert(name.to_owned(), x.to_vec());
                })));
                let got = embedder.embed(&mut cpu, prompt, &[text], None).unwrap();
                cpu.listen(None);
                for (state, got) in states.lock().unwrap().iter() {
                    for form in [format!("{key}.{state}"), format!("{key}.hidden.{state}")] {
                        if let Some(want) = golden.get(&form) {
                            worst = worst.max(close(&format!("{name} {form}"), got, want));
                        }
                    }
                }
                worst = worst.max(close(key, &got[0].vector, &golden[&format!("{key}.embedding")]));
                assert_eq!(got[0].tokens, ids.len());
                bits.push(got[0].vector.iter().map(|x| x.to_bits()).collect::<Vec<u32>>());
            }
            assert_eq!(first.get_or_insert_with(|| bits.clone()), &bits, "{name} {isa:?}");
            // Many texts at once, on another number of threads.
            let mut other = Cpu::new(isa, Arc::new(Pool::new(1)), Precision::Exact);
            let all: Vec<&str> = texts.iter().map(|t| t["text"].as_str().unwrap()).collect();
            let together = embedder.embed(&mut other, "", &all, None).unwrap();
            for (text, vector) in all.iter().zip(&together) {
                let alone = embedder.embed(&mut cpu, "", &[text], None).unwrap();
                assert_eq!(&alone[0], vector, "{name}: {text}");
            }
            // Fewer dimensions: the first ones, as long as 1.
            let short = embedder.embed(&mut cpu, "", &["the kettle"], Some(16)).unwrap();
            let length: f32 = short[0].vector.iter().map(|x| x * x).sum();
            assert!(short[0].vector.len() == 16 && (length - 1.0).abs() < 1e-5);
            let ratio = short[0].vector[0] / together[0].vector[0];
            assert!((short[0].vector[15] / together[0].vector[15] - ratio).abs() < 1e-4);
        }
        println!("{name}: within {worst:.1e} of the largest value");
    }
}

#[test]
fn what_can_not_be_embedded_is_refused() {
    let Some(dir) = fixtures() else { return };
    let mut cpu = Cpu::new(Isa::detect(), Arc::new(Pool::new(1)), Precision::Exact);
    let checkpoint = Checkpoint::open(&dir.join("models/embeddinggemma")).unwrap();
    let embedder = Embedder::open(&checkpoint, &mut cpu).unwrap_or_else(|e| panic!("{e}"));
    let long = "the kettle ".repeat(2000);
    let error = embedder.embed(&mut cpu, "", &["a", &long], None).unwrap_err();
    assert!(matches!(error, EmbedError::TooLong { index: 1, context: 2048, .. }), "{error}");
    let error = embedder.embed(&mut cpu, "", &["a"], Some(1000)).unwrap_err();
    assert_eq!(error, EmbedError::Dimensions { wanted: 1000, size: 64 });
    assert!(matches!(embedder.prompt("nonsense"), Err(EmbedError::UnknownTask { .. })));
    assert!(embedder.embed(&mut cpu, "", &[], None).unwrap().is_empty());
    let error = lapidary_model::load(&checkpoint, &mut cpu).err().map(|e| e.to_string());
    assert!(error.is_some_and(|e| e.contains("lapidary embed")));
    let chat = Checkpoint::open(&dir.join("models/gemma3_text")).unwrap();
    let error = Embedder::open(&chat, &mut cpu).err().map(|e| e.to_string());
    assert!(error.is_some_and(|e| e.contains("generates text")));
}
