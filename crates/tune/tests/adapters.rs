//! Adapters that PEFT 0.21 wrote, beside the weights: its logits. Adapters of our own in its layout.

use lapidary_formats::Checkpoint;
use lapidary_model::{Adapters, load_adapted};
use lapidary_ops::{Cpu, Isa, KvCache, KvType, Ops, Pool, Precision, Rows, Span};
use lapidary_tune::run::Learner;
use lapidary_tune::{
    Adapter, LoraOptions, Method, Options, Recipe, Sequence, TrainOptions, Trainer, merge, quantize,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A model of the shared fixtures.
fn fixture(model: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures/models");
    let path = path.join(model);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(path)
}

/// The logits after six tokens, in f32.
fn logits(checkpoint: &Checkpoint, adapters: &[Adapters]) -> Vec<f32> {
    let mut cpu = Cpu::new(Isa::detect(), Arc::new(Pool::new(2)), Precision::Exact);
    let loaded = load_adapted(checkpoint, &mut cpu, adapters).unwrap();
    let layout = &loaded.model.info().kv;
    let mut cache = KvCache::new(layout, KvType::F32);
    let groups = layout.groups.len();
    (0..groups).for_each(|g| cache.grow(g, 1).unwrap());
    let span = Span { rows: 0..6, position: 0, tables: vec![vec![0]; groups] };
    let rows = Rows { ids: vec![5, 17, 40, 9, 33, 21], spans: vec![span], ..Rows::default() };
    let logits = lapidary_model::forward(&*loaded.model, &mut cpu, &rows, &[5], &mut cache);
    cpu.read(&logits)
}

#[test]
fn peft_s_adapters_give_peft_s_logits() {
    for model in ["gemma3_text", "gpt2"] {
        let Some(base) = fixture(model) else { return };
        let data =
            |m: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/data/peft-{m}"));
        let want = std::fs::read(data(model).join("logits.json")).unwrap();
        let want: Vec<f32> = serde_json::from_slice(&want).unwrap();
        let adapters = [Adapter::open(&data(model)).unwrap().into_adapters()];
        let checkpoint = Checkpoint::open(&base).unwrap();
        for (got, want) in logits(&checkpoint, &adapters).iter().zip(&want) {
            assert!((got - want).abs() < 2e-4 + 2e-4 * want.abs(), "{model}: {got} {want}");
        }
        let other = if model == "gpt2" { "gemma3_text" } else { "gpt2" };
        let wrong = Adapter::open(&data(other)).unwrap().into_adapters();
        let mut cpu = Cpu::new(Isa::detect(), Arc::new(Pool::new(1)), Precision::Fast);
        let error = load_adapted(&checkpoint, &mut cpu, &[wrong]).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("the base has no such projection"), "{error}");
    }
}

/// GGUF has the rows of Llama's queries and keys in another order than PEFT's bases: an adapter that
/// was trained on a GGUF file is written in PEFT's order, and means the same on both.
#[test]
fn an_adapter_of_a_llama_in_gguf_fits_the_hugging_face_base() {
    let Some(hf) = fixture("llama_gqa") else { return };
    let hf = Checkpoint::open(&hf).unwrap();
    let run = std::env::temp_dir().join(format!("lapidary-adapters-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&run);
    std::fs::create_dir_all(&run).unwrap();
    let (gguf, pool) = (run.join("base.gguf"), Pool::new(2));
    let options = Options { recipe: Recipe::named("f32").unwrap(), importance: None };
    quantize(&hf, &gguf, &options, &pool, &mut |_, _| {}).unwrap();
    let gguf = Checkpoint::open(&gguf).unwrap();

    let targets = ["q_proj", "k_proj"].map(str::to_owned).to_vec();
    let options = TrainOptions { method: Method::Lora(lora(targets)), ..TrainOptions::default() };
    let mut trainer = Trainer::new(&gguf, options).unwrap();
    let batch = vec![vec![Sequence::whole((0..40).map(|i| 5 + (i * 7) % 90).collect())]];
    for _ in 0..5 {
        trainer.step(&batch, 2e-2).unwrap();
    }
    let adapter = Adapter::open(&trainer.write_result(&gguf, &run).unwrap()).unwrap();

    let merged = run.join("merged.gguf");
    merge(&gguf, &adapter, &merged, &pool).unwrap();
    let in_gguf = logits(&Checkpoint::open(&merged).unwrap(), &[]);
    let adapters = [adapter.into_adapters()];
    let in_hf = logits(&hf, &adapters);
    let moved = far(&in_hf, &logits(&hf, &[]));
    assert!(moved > 1e-2, "the adapter changes next to nothing: {moved}");
    // The trainer's own model is the third witness.
    let own = own_logits(&mut trainer);
    assert!(far(&in_hf, &own) < 1e-4, "{} of {moved}", far(&in_hf, &own));
    assert!(far(&in_gguf, &own) < 1e-4, "{} of {moved}", far(&in_gguf, &own));
    let mut cpu = Cpu::new(Isa::detect(), Arc::new(Pool::new(1)), Precision::Exact);
    let error = load_adapted(&gguf, &mut cpu, &adapters).map(|_| ()).unwrap_err();
    assert!(error.to_string().contains("lapidary merge"), "{error}");
    std::fs::remove_dir_all(&run).unwrap();
}

/// Gemma 3n and 4, whose last layers read the keys of earlier ones, or whose tokens go to experts: an
/// adapter learns, and means the same in the trainer, beside its base and after a merge. Some GGUF
/// files have a number of heads for each layer.
#[test]
fn adapters_of_the_later_gemmas() {
    let Some(models) = fixture("") else { return };
    // What is merged is rounded as its base is: to nothing, bfloat16, 8 bits.
    for (family, rounded) in
        [("gemma3n_text", 1e-4), ("gemma4_e2b", 1e-4), ("gemma4_26b_a4b", 0.05)]
    {
        learn_and_merge(&Checkpoint::open(&models.join(family)).unwrap(), "merged", rounded);
        let gguf = models.join(format!("../gguf/{family}-q8_0.gguf"));
        let gguf = Checkpoint::open(&gguf).unwrap();
        learn_and_merge(&gguf, "merged.gguf", 0.1);
    }
}

fn learn_and_merge(base: &Checkpoint, out: &str, rounded: f32) {
    let name = base.name();
    let run = std::env::temp_dir().join(format!("lapidary-{out}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&run);
    std::fs::create_dir_all(&run).unwrap();
    let method = Method::Lora(lora(Vec::new()));
    let options = TrainOptions { method, ..TrainOptions::default() };
    let mut trainer = Trainer::new(base, options).unwrap();
    let batch = vec![vec![Sequence::whole((0..40).map(|i| 5 + (i * 7) % 90).collect())]];
    let losses: Vec<f64> = (0..8).map(|_| trainer.step(&batch, 2e-2).unwrap().loss).collect();
    assert!(losses[7] < 0.8 * losses[0], "{name}: {losses:?}");

    let adapter = Adapter::open(&trainer.write_result(base, &run).unwrap()).unwrap();
    let merged = run.join(out);
    merge(base, &adapter, &merged, &Pool::new(2)).unwrap();
    let merged = logits(&Checkpoint::open(&merged).unwrap(), &[]);
    let beside = logits(base, &[adapter.into_adapters()]);
    let own = own_logits(&mut trainer);
    let moved = far(&own, &logits(base, &[]));
    assert!(moved > 1.0, "{name}: the adapter changes next to nothing: {moved}");
    for (what, other, most) in [("beside", beside, 1e-4), ("merged", merged, rounded)] {
        let error = far(&own, &other);
        assert!(error < most * moved, "{name}, {what}: {error} of {moved}");
    }
    std::fs::remove_dir_all(&run).unwrap();
}

/// What does not train says so before anything is computed.
#[test]
fn what_does_not_train_is_refused_by_name() {
    for (model, said) in [
        ("embeddinggemma", "makes embeddings and generates no text"),
        ("embeddinggemma2", "embedding_gemma2 can't be trained yet"),
        // They would have no file to go to.
        ("../gguf/gemma3n_text-q8_0.gguf", "are trained from Hugging Face files"),
    ] {
        let Some(path) = fixture(model) else { return };
        let checkpoint = Checkpoint::open(&path).unwrap();
        let adapters = (!model.ends_with("gguf")).then(|| Method::Lora(lora(Vec::new())));
        for method in [Some(Method::Full), adapters].into_iter().flatten() {
            let options = TrainOptions { method, ..TrainOptions::default() };
            let error = Trainer::new(&checkpoint, options).map(|_| ()).unwrap_err().to_string();
            assert!(error.contains(said), "{model}: {error}");
        }
    }
}

fn lora(targets: Vec<String>) -> LoraOptions {
    LoraOptions { rank: 4, alpha: 8.0, dropout: 0.0, targets, rslora: false }
}

/// The largest difference.
fn far(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// What the trainer's model says after the tokens of [`logits`].
fn own_logits(trainer: &mut Trainer) -> Vec<f32> {
    let (model, ops) = trainer.generator();
    let span = Span { rows: 0..6, position: 0, tables: Vec::new() };
    let rows = Rows { ids: vec![5, 17, 40, 9, 33, 21], spans: vec![span], ..Rows::default() };
    let mut cache = KvCache::new(&model.info().kv, KvType::F32);
    let own = lapidary_model::forward(model, ops, &rows, &[5], &mut cache);
    ops.read(&own)
}
