//! Gradients of whole models against the reference implementation's (tools/make_gradient_fixtures.py).

use lapidary_formats::Checkpoint;
use lapidary_tune::{Sequence, TrainOptions, Trainer};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn models() -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures/models");
    if !dir.is_dir() {
        println!("skipped: {} is not there", dir.display());
        return None;
    }
    Some(dir)
}

fn floats(v: &Value) -> Vec<f64> {
    v.as_array().unwrap().iter().map(|x| x.as_f64().unwrap()).collect()
}

fn sequence(v: &Value) -> Sequence {
    let ids = v["ids"].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect();
    let learn = v["learn"].as_array().unwrap().iter().map(|x| x.as_bool().unwrap()).collect();
    Sequence { ids, learn }
}

/// The largest error of a value, relative to the gradient's root mean square, and of a length.
fn compare(family: &str, activation_memory: usize, micro: usize) -> Option<(f64, f64)> {
    let checkpoint = Checkpoint::open(&models()?.join(family)).unwrap();
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/{family}.json"));
    let golden: Value = serde_json::from_slice(&std::fs::read(data).unwrap()).unwrap();
    let options = TrainOptions { activation_memory, threads: 2, ..TrainOptions::default() };
    let mut trainer = Trainer::new(&checkpoint, options).unwrap();
    let sequences: Vec<Sequence> =
        golden["sequences"].as_array().unwrap().iter().map(sequence).collect();
    let batches: Vec<Vec<Sequence>> = sequences.chunks(micro).map(<[_]>::to_vec).collect();
    let (loss, all) = trainer.gradients(&batches).unwrap();
    let want = golden["loss"].as_f64().unwrap();
    assert!((loss - want).abs() < 1e-5 * want, "{family}: loss {loss}, {want}");
    let (mut worst, mut length) = (0.0f64, 0.0f64);
    for p in golden["parameters"].as_array().unwrap() {
        let name = p["name"].as_str().unwrap();
        let got = all.iter().find(|g| g.name == name || name.ends_with(&format!(".{}", g.name)));
        let got = got.unwrap_or_else(|| panic!("{family}: no gradient of {name}"));
        let norm = got.values.iter().map(|g| f64::from(*g).powi(2)).sum::<f64>().sqrt();
        let want = p["norm"].as_f64().unwrap();
        // What is zero by its mathematics is rounding on both sides: a key's bias.
        let size = want.max(1e-5);
        length = length.max((norm - want).abs() / size);
        let typical = size / (got.values.len() as f64).sqrt();
        for (at, want) in floats(&p["at"]).iter().zip(floats(&p["values"])) {
            let error = (f64::from(got.values[*at as usize]) - want).abs();
            worst = worst.max(error / want.abs().max(typical));
        }
    }
    assert_eq!(all.len(), golden["parameters"].as_array().unwrap().len(), "{family}");
    Some((worst, length))
}

#[test]
fn every_family_has_the_reference_s_gradients() {
    for family in [
        "gemma",
        "gemma2",
        "gemma3_text",
        "gemma3n_text",
        "gemma4_text",
        "gemma4_12b",
        "gemma4_31b",
        "gemma4_26b_a4b",
        "gemma4_e2b",
        "llama_gqa",
        "llama_mha",
        "gpt2",
        "gpt3",
        "gpt_neo",
    ] {
        let mut seen = Vec::new();
        for (memory, micro) in [(0, 2), (usize::MAX, 2), (0, 1)] {
            let Some((worst, length)) = compare(family, memory, micro) else { return };
            if seen.is_empty() {
                println!("{family}: values {worst:.1e}, lengths {length:.1e}");
            }
            assert!(worst < 5e-4 && length < 1e-4, "{family}: {worst:.1e} {length:.1e}");
            seen.push((worst, length));
        }
        assert_eq!(seen[0], seen[1], "{family}: computing blocks again must change nothing");
    }
}
