//! Adapters that PEFT 0.21 wrote, beside the weights: its logits.

use lapidary_formats::Checkpoint;
use lapidary_model::load_adapted;
use lapidary_ops::{Cpu, Isa, KvCache, KvType, Ops, Pool, Precision, Rows, Span};
use lapidary_tune::Adapter;
use std::path::Path;
use std::sync::Arc;

#[test]
fn peft_s_adapters_give_peft_s_logits() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    for model in ["gemma3_text", "gpt2"] {
        let base = here.join("../../../shared/fixtures/models").join(model);
        if !base.is_dir() {
            println!("skipped: {} is not there", base.display());
            return;
        }
        let folder = here.join(format!("tests/data/peft-{model}"));
        let want: Vec<f32> =
            serde_json::from_slice(&std::fs::read(folder.join("logits.json")).unwrap()).unwrap();
        let adapters = Adapter::open(&folder).unwrap().into_adapters();
        let checkpoint = Checkpoint::open(&base).unwrap();
        let mut cpu = Cpu::new(Isa::detect(), Arc::new(Pool::new(2)), Precision::Fast);
        let loaded = load_adapted(&checkpoint, &mut cpu, &[adapters]).unwrap();
        let layout = &loaded.model.info().kv;
        let mut cache = KvCache::new(layout, KvType::F32);
        let groups = layout.groups.len();
        (0..groups).for_each(|g| cache.grow(g, 1).unwrap());
        let span = Span { rows: 0..6, position: 0, tables: vec![vec![0]; groups] };
        let rows = Rows { ids: vec![5, 17, 40, 9, 33, 21], spans: vec![span], ..Rows::default() };
        let logits = lapidary_model::forward(&*loaded.model, &mut cpu, &rows, &[5], &mut cache);
        for (got, want) in cpu.read(&logits).iter().zip(&want) {
            assert!((got - want).abs() < 2e-4 + 2e-4 * want.abs(), "{model}: {got} {want}");
        }
        let other = if model == "gpt2" { "gemma3_text" } else { "gpt2" };
        let wrong = here.join(format!("tests/data/peft-{other}"));
        let wrong = Adapter::open(&wrong).unwrap().into_adapters();
        let error = load_adapted(&checkpoint, &mut cpu, &[wrong]).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("the base has no such projection"), "{error}");
    }
}
