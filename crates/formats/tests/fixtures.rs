//! Every reference checkpoint opens, and holds what its configuration says.

use std::fs;
use std::path::{Path, PathBuf};

use lapidary_formats::{Checkpoint, DType, Source, json, safetensors};
use serde_json::Value;

/// `../shared/fixtures` beside the repository, or beside the folder of its worktrees.
fn fixtures() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let found = ["../shared/fixtures", "../../shared/fixtures"]
        .iter()
        .map(|p| root.join(p))
        .find(|p| p.join("manifest.json").exists());
    if found.is_none() {
        println!("SKIPPED: no ../shared/fixtures beside the repository");
    }
    found
}

fn entries(dir: &Path) -> Vec<PathBuf> {
    let mut paths: Vec<PathBuf> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

/// Width and vocabulary wherever a family's configuration has them.
fn sizes(config: &Value) -> (Option<u64>, Option<u64>) {
    let at = |path: &str| config.pointer(path).and_then(Value::as_u64);
    let first = |paths: &[&str]| paths.iter().find_map(|p| at(p));
    let width = [
        "/hidden_size",
        "/n_embd",
        "/text_config/hidden_size",
        "/decoder/hidden_size",
        "/decoder/text_config/hidden_size",
    ];
    let vocabulary = [
        "/vocab_size",
        "/text_config/vocab_size",
        "/decoder/vocab_size",
        "/decoder/text_config/vocab_size",
    ];
    (first(&width), first(&vocabulary))
}

#[test]
fn hugging_face_fixtures_open() {
    let Some(root) = fixtures() else { return };
    let manifest: Value =
        serde_json::from_slice(&fs::read(root.join("manifest.json")).unwrap()).unwrap();
    let mut opened = 0;
    for dir in entries(&root.join("models")) {
        let name = dir.file_name().unwrap().to_str().unwrap().to_owned();
        let model = Checkpoint::open(&dir).unwrap();
        let facts = &manifest["fixtures"][&name];
        // Stored buffers (a scale for each layer, an ordering of tokens) are not parameters.
        let parameters = facts["parameters"].as_u64().unwrap();
        let extra = model.elements() - parameters;
        assert!(extra <= parameters / 100, "{name}: {extra} more than {parameters}");
        let dtype = match facts["weights_dtype"].as_str().unwrap() {
            "float32" => DType::F32,
            "float16" => DType::F16,
            "bfloat16" => DType::BF16,
            other => panic!("{name}: {other}"),
        };
        let odd: Vec<_> = model.tensors().filter(|t| t.dtype != dtype).collect();
        assert!(odd.iter().all(|t| t.dtype == DType::I64), "{name}: {odd:?}");

        let Source::Hf { config, .. } = model.source() else { panic!("{name}") };
        let (width, vocabulary) = sizes(config);
        let shape = [vocabulary.unwrap() as usize, width.unwrap() as usize];
        let embedding = ["embed_tokens.weight", "wte.weight"];
        let table = model
            .tensors()
            .find(|t| embedding.iter().any(|e| t.name.ends_with(e)) && t.shape == shape);
        assert!(table.is_some(), "{name}: no embedding of shape {shape:?}");
        assert_eq!(model.tensor_bytes() % dtype.block_bytes() as u64, 0);
        opened += 1;
    }
    assert_eq!(opened, manifest["fixtures"].as_object().unwrap().len());
    println!("{opened} Hugging Face fixtures");
}

#[test]
fn golden_tensors_and_second_configurations_open() {
    let Some(root) = fixtures() else { return };
    let (mut tensors, mut files) = (0, 0);
    for dir in entries(&root.join("models")).into_iter().chain([root.join("gguf")]) {
        for path in entries(&dir) {
            let name = path.file_name().unwrap().to_str().unwrap();
            if name.ends_with("safetensors") {
                tensors += safetensors::open(&path).unwrap().tensors.len();
                files += 1;
            } else if name.starts_with("config") {
                json::read_object(&path).unwrap();
                files += 1;
            }
        }
    }
    assert!(files > 80 && tensors > 1000, "{files} files, {tensors} tensors");
    println!("{files} files, {tensors} tensors");
}

#[test]
fn gguf_fixtures_open() {
    let Some(root) = fixtures() else { return };
    let mut opened = 0;
    for path in entries(&root.join("gguf")) {
        if path.extension().is_none_or(|e| e != "gguf") {
            continue;
        }
        let model = Checkpoint::open(&path).unwrap();
        let Source::Gguf(metadata) = model.source() else { panic!() };
        let architecture = metadata.str("general.architecture").unwrap();
        let key = |k: &str| format!("{architecture}.{k}");
        let width = metadata.u32(&key("embedding_length")).unwrap() as usize;
        let layers = metadata.u32(&key("block_count")).unwrap() as usize;
        let vocabulary = metadata.strs("tokenizer.ggml.tokens").unwrap().len();
        let table = model.tensor("token_embd.weight").unwrap();
        table.expect_shape(&[vocabulary, width]).unwrap();
        let dtype = if path.to_str().unwrap().contains("q8_0") { DType::Q8_0 } else { DType::F32 };
        assert_eq!(table.dtype, dtype);
        for layer in 0..layers {
            model
                .tensor(&format!("blk.{layer}.attn_norm.weight"))
                .unwrap()
                .expect_shape(&[width])
                .unwrap();
        }
        assert!(model.get(&format!("blk.{layers}.attn_norm.weight")).is_none());
        let heads = metadata.u32_per_layer(&key("attention.head_count"), layers).unwrap();
        assert_eq!(heads.len(), layers);
        assert_eq!(model.file_bytes(), fs::metadata(&path).unwrap().len());
        opened += 1;
    }
    assert_eq!(opened, 12);
    println!("{opened} GGUF fixtures");
}
