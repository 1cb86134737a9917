//! Fresh checkpoints load and run; adapters merge as their definition says.

use lapidary_formats::{Checkpoint, DType, TensorSpec, safetensors};
use lapidary_ops::{Pool, blocks};
use lapidary_tune::data::Rng;
use lapidary_tune::{Adapter, Options, Recipe, merge, quantize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path =
            std::env::temp_dir().join(format!("lapidary-merge-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn shared(part: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let found = [root.join("shared"), root.join("../shared")];
    let found = found.into_iter().map(|p| p.join(part)).find(|p| p.exists());
    if found.is_none() {
        eprintln!("skipped: ../shared/{part} is not there");
    }
    found
}

fn values(c: &Checkpoint, name: &str) -> Vec<f32> {
    let t = c.tensor(name).unwrap();
    let mut out = vec![0.0; t.elements()];
    blocks::dequantize(lapidary_model::block_type(t.dtype).unwrap(), &t.bytes, &mut out);
    out
}

const RANK: usize = 3;

/// An adapter for some projections, with random factors, in PEFT's layout.
fn write_adapter(base: &Checkpoint, modules: &[&str], folder: &Path, transposed: bool) {
    fs::create_dir_all(folder).unwrap();
    let config = r#"{"peft_type": "LORA", "r": 3, "lora_alpha": 6, "use_rslora": false,
        "bias": "none", "modules_to_save": null, "rank_pattern": {}, "target_modules": ["q_proj"]}"#;
    fs::write(folder.join("adapter_config.json"), config).unwrap();
    let mut rng = Rng::new(4, 0);
    let mut specs = Vec::new();
    for module in modules {
        let shape = base.tensor(&format!("{module}.weight")).unwrap().shape;
        let (out, inner) = if transposed { (shape[1], shape[0]) } else { (shape[0], shape[1]) };
        let name = |side| format!("base_model.model.{module}.lora_{side}.weight");
        specs.push(TensorSpec::new(name("A"), DType::F32, vec![RANK, inner]));
        specs.push(TensorSpec::new(name("B"), DType::F32, vec![out, RANK]));
    }
    let path = folder.join("adapter_model.safetensors");
    let mut file = safetensors::create(&path, &specs, &BTreeMap::new()).unwrap();
    for spec in &specs {
        let n: usize = spec.shape.iter().product();
        let bytes: Vec<u8> =
            (0..n).flat_map(|_| ((0.1 * rng.normal()) as f32).to_le_bytes()).collect();
        file.write(&spec.name, &bytes).unwrap();
    }
    file.finish().unwrap();
}

/// `W + 2 B A` in f64.
fn expected(base: &Checkpoint, adapter: &Path, module: &str, transposed: bool) -> Vec<f64> {
    let file = safetensors::open(&adapter.join("adapter_model.safetensors")).unwrap();
    let read = |side: &str| -> (Vec<usize>, Vec<f32>) {
        let name = format!("base_model.model.{module}.lora_{side}.weight");
        let t = file.tensors.iter().find(|t| *t.name == *name).unwrap();
        let (words, _) = t.bytes.as_chunks::<4>();
        (t.shape.clone(), words.iter().map(|b| f32::from_le_bytes(*b)).collect())
    };
    let ((_, a), (shape, b)) = (read("A"), read("B"));
    let out = shape[0];
    let inner = a.len() / RANK;
    let w = values(base, &format!("{module}.weight"));
    let mut all = vec![0.0; w.len()];
    for o in 0..out {
        for i in 0..inner {
            let delta: f64 =
                (0..RANK).map(|r| f64::from(b[o * RANK + r]) * f64::from(a[r * inner + i])).sum();
            let at = if transposed { i * out + o } else { o * inner + i };
            all[at] = f64::from(w[at]) + 2.0 * delta;
        }
    }
    all
}

#[test]
fn merged_weights_are_base_plus_factors() {
    let Some(dir) = shared("fixtures/models") else { return };
    let pool = Pool::new(2);
    for (name, modules, transposed) in [
        ("gemma3_text", ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"], false),
        ("gemma", ["model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj"], false),
        ("llama_gqa", ["model.layers.0.self_attn.k_proj", "model.layers.1.mlp.up_proj"], false),
        ("gpt2", ["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_proj"], true),
    ] {
        let folder = Folder::new(name);
        let base = Checkpoint::open(&dir.join(name)).unwrap();
        let adapter = folder.0.join("adapter");
        let modules = match base.get(&format!("{}.weight", modules[0])) {
            Some(_) => modules.map(str::to_owned),
            // GPT-2's files leave the prefix out.
            None => modules.map(|m| m.trim_start_matches("transformer.").to_owned()),
        };
        let names: Vec<&str> = modules.iter().map(String::as_str).collect();
        write_adapter(&base, &names, &adapter, transposed);
        let out = folder.0.join("merged");
        let read = Adapter::open(&adapter).unwrap();
        let merged = merge(&base, &read, &out, &pool).unwrap();
        assert_eq!((merged.changed, merged.tensors), (2, base.tensors().len()));
        let result = Checkpoint::open(&out).unwrap();
        for module in &modules {
            let want = expected(&base, &adapter, module, transposed);
            let got = values(&result, &format!("{module}.weight"));
            let worst =
                want.iter().zip(&got).map(|(w, g)| (w - f64::from(*g)).abs()).fold(0.0, f64::max);
            assert!(worst < 1e-6, "{name} {module}: {worst}");
        }
        for t in
            base.tensors().filter(|t| !modules.contains(&t.name.trim_end_matches(".weight").into()))
        {
            assert_eq!(*t.bytes, *result.tensor(&t.name).unwrap().bytes, "{}", t.name);
        }
        if name == "gemma3_text" {
            continue; // Its query scale has no form in GGUF.
        }
        // The same through GGUF: converting the merged one, or merging into the converted one.
        let recipe = Recipe::named("f32").unwrap();
        let options = Options { recipe, importance: None };
        let (a, b) = (folder.0.join("a.gguf"), folder.0.join("b.gguf"));
        quantize(&result, &a, &options, &pool, &mut |_, _| {}).unwrap();
        quantize(&base, &b, &options, &pool, &mut |_, _| {}).unwrap();
        let c = folder.0.join("c.gguf");
        merge(&Checkpoint::open(&b).unwrap(), &read, &c, &pool).unwrap();
        let (a, c) = (Checkpoint::open(&a).unwrap(), Checkpoint::open(&c).unwrap());
        for t in a.tensors() {
            let (want, got) = (values(&a, &t.name), values(&c, &t.name));
            let worst = want.iter().zip(&got).map(|(w, g)| (w - g).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-6, "{name} {}: {worst}", t.name);
        }
    }
}

#[test]
fn adapters_for_other_models_are_refused() {
    let Some(dir) = shared("fixtures/models") else { return };
    let folder = Folder::new("refused");
    let base = Checkpoint::open(&dir.join("gemma3_text")).unwrap();
    let adapter = folder.0.join("adapter");
    write_adapter(&base, &["model.layers.0.self_attn.q_proj"], &adapter, false);
    let into = |base: &str| {
        let base = Checkpoint::open(&dir.join(base)).unwrap();
        let adapter = Adapter::open(&adapter).unwrap();
        merge(&base, &adapter, &folder.0.join("out"), &Pool::new(1)).unwrap_err().to_string()
    };
    assert!(into("gpt2").contains("no such projection"), "{}", into("gpt2"));
    let config = adapter.join("adapter_config.json");
    let good = fs::read_to_string(&config).unwrap();
    for (from, to, said) in [
        ("\"use_rslora\"", "\"use_dora\": true, \"use_rslora\"", "use_dora"),
        ("\"rank_pattern\": {}", "\"rank_pattern\": {\"q_proj\": 9}", "rank_pattern"),
        ("\"r\": 3", "\"r\": 4", "ranks of 3 and 3"),
        ("\"none\"", "\"all\"", "bias"),
    ] {
        fs::write(&config, good.replace(from, to)).unwrap();
        let error = Adapter::open(&adapter).err().unwrap().to_string();
        assert!(error.contains(said), "{error}");
    }
}
