//! The trainer: it learns, the same bits come out however it is run, and it goes on where it stopped.

use lapidary_formats::Checkpoint;
use lapidary_tune::{
    LoraOptions, Method, Muon, Pair, ProductPrecision, Sequence, StatePrecision, TrainOptions,
    Trainer,
};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> Option<Checkpoint> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures").join(name);
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return None;
    }
    Some(Checkpoint::open(&path).unwrap())
}

fn lora(dropout: f32) -> Method {
    let targets = Vec::new();
    Method::Lora(LoraOptions { rank: 4, alpha: 8.0, dropout, targets, rslora: false })
}

/// Micro-batches that can be learnt: every step the same two.
fn batches() -> Vec<Vec<Sequence>> {
    let sequence = |n: u32, len: u32| Sequence::whole((0..len).map(|i| 5 + (i * n) % 90).collect());
    vec![vec![sequence(7, 30), sequence(11, 12)], vec![sequence(13, 41)]]
}

/// All that was trained, as bits.
fn bits(t: &Trainer) -> Vec<u32> {
    let full = t.weights().flat_map(|w| w.values);
    full.map(f32::to_bits).collect()
}

fn scratch(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("lapidary-trainer-{name}-{}", std::process::id()))
}

#[test]
fn every_method_and_state_learns() {
    let cases = [
        ("models/gemma3_text", Method::Full, StatePrecision::F32),
        ("models/gpt2", Method::Full, StatePrecision::Bits8),
        ("models/llama_gqa", Method::Full, StatePrecision::Factored),
        ("models/gemma2", lora(0.1), StatePrecision::F32),
        ("models/gpt2", lora(0.0), StatePrecision::F32),
        ("gguf/gemma2-q8_0.gguf", lora(0.0), StatePrecision::Bits8),
    ];
    for (model, method, state) in cases {
        let Some(checkpoint) = fixture(model) else { return };
        let options = TrainOptions { method, state, threads: 2, ..TrainOptions::default() };
        let mut trainer = Trainer::new(&checkpoint, options).unwrap();
        let held: Vec<Sequence> = batches().concat();
        let (before, count) = trainer.evaluate(&held).unwrap();
        assert_eq!(count, 29 + 11 + 40);
        let first = trainer.step(&batches(), 5e-3).unwrap();
        assert!(first.grad_norm > 0.0 && first.tokens == count, "{model}: {first:?}");
        for _ in 0..14 {
            trainer.step(&batches(), 5e-3).unwrap();
        }
        let (after, _) = trainer.evaluate(&held).unwrap();
        println!("{model} {state:?}: {:.3} to {:.3}", before / 80.0, after / 80.0);
        assert!(after < 0.9 * before, "{model}: {before} {after}");
    }
}

#[test]
fn threads_and_interruptions_leave_no_trace() {
    let Some(checkpoint) = fixture("models/gemma3_text") else { return };
    let (f32, bf16) = (ProductPrecision::F32, ProductPrecision::Bf16);
    for (method, state, ema, muon, precision) in [
        (Method::Full, StatePrecision::F32, Some(0.9), None, f32),
        (Method::Full, StatePrecision::Factored, None, None, bf16),
        (Method::Full, StatePrecision::Bits8, None, Some(Muon { momentum: 0.95 }), bf16),
        (lora(0.2), StatePrecision::Bits8, None, None, f32),
    ] {
        let options = |threads, activation_memory| TrainOptions {
            method: method.clone(),
            state,
            muon,
            precision,
            ema,
            threads,
            activation_memory,
            ..TrainOptions::default()
        };
        let run = |threads, memory, pause: Option<usize>| {
            let mut t = Trainer::new(&checkpoint, options(threads, memory)).unwrap();
            let path = scratch(&format!("{state:?}"));
            for step in 0..6 {
                t.step(&batches(), 1e-3).unwrap();
                if pause == Some(step) {
                    t.save_state(&path).unwrap();
                    t = Trainer::new(&checkpoint, options(threads, memory)).unwrap();
                    t.load_state(&path).unwrap();
                    std::fs::remove_file(&path).unwrap();
                }
            }
            let adapters = t.adapters().flat_map(|a| [a.a.values, a.b.values]).flatten();
            let averages = t.ema_weights().into_iter().flatten().flat_map(|w| w.values);
            let mut all = bits(&t);
            all.extend(adapters.chain(averages).map(f32::to_bits));
            all
        };
        let plain = run(1, 0, None);
        assert!(plain == run(3, 0, None), "{state:?}: threads");
        // All blocks recorded; some; as many as fit once their size is known.
        for memory in [usize::MAX, 100 << 10, 1 << 30] {
            assert!(plain == run(2, memory, None), "{state:?}: {memory} bytes");
        }
        assert!(plain == run(1, 0, Some(2)), "{state:?}: resumed");
    }
}

/// Fifteen steps with Muon and with bfloat16 products, beside AdamW in f32.
#[test]
fn muon_and_bfloat16_learn() {
    let Some(checkpoint) = fixture("models/gemma3_text") else { return };
    let loss = |muon, precision, steps| {
        let options = TrainOptions { muon, precision, threads: 2, ..TrainOptions::default() };
        let mut trainer = Trainer::new(&checkpoint, options).unwrap();
        for _ in 0..steps {
            trainer.step(&batches(), 5e-3).unwrap();
        }
        trainer.evaluate(&batches().concat()).unwrap().0 / 80.0
    };
    let before = loss(None, ProductPrecision::F32, 0);
    let plain = loss(None, ProductPrecision::F32, 15);
    let rounded = loss(None, ProductPrecision::Bf16, 15);
    let muon = loss(Some(Muon { momentum: 0.95 }), ProductPrecision::F32, 15);
    println!("nats: {before:.4}; adamw {plain:.4}, in bfloat16 {rounded:.4}, muon {muon:.4}");
    assert!((rounded - plain).abs() < 0.01 * before, "{rounded} beside {plain}");
    assert!(muon < 0.1 * before, "{muon} after {before}");
}

#[test]
fn muon_is_refused_for_adapters() {
    let Some(checkpoint) = fixture("models/gemma3_text") else { return };
    let muon = Some(Muon { momentum: 0.95 });
    let options = TrainOptions { method: lora(0.0), muon, ..TrainOptions::default() };
    let error = Trainer::new(&checkpoint, options).err().unwrap().to_string();
    assert!(error.contains("optimizer.kind"), "{error}");
}

#[test]
fn a_state_of_another_run_is_refused() {
    let Some(checkpoint) = fixture("models/gemma3_text") else { return };
    let path = scratch("other");
    let mut t = Trainer::new(&checkpoint, TrainOptions::default()).unwrap();
    t.save_state(&path).unwrap();
    let other = TrainOptions { seed: 1, ..TrainOptions::default() };
    let error = Trainer::new(&checkpoint, other).unwrap().load_state(&path).unwrap_err();
    assert!(error.to_string().contains("seed: is 0, and this run has 1"), "{error}");
    std::fs::remove_file(&path).unwrap();
}

#[test]
fn preferences_are_learnt() {
    let Some(checkpoint) = fixture("models/llama_mha") else { return };
    let options = TrainOptions { method: lora(0.0), threads: 2, ..TrainOptions::default() };
    let mut trainer = Trainer::new(&checkpoint, options).unwrap();
    let pair = |better: u32, worse: u32| {
        let make = |word| Sequence {
            ids: vec![5, 6, 7, word, word + 1],
            learn: vec![false, false, false, true, true],
        };
        Pair { chosen: make(better), rejected: make(worse) }
    };
    let micro = vec![vec![pair(20, 30), pair(40, 50)], vec![pair(60, 70)]];
    let first = trainer.step_dpo(&micro, 1e-2).unwrap();
    // A fresh adapter changes nothing: -ln 1/2.
    assert!((first.loss - 2f64.ln()).abs() < 1e-6, "{first:?}");
    let mut last = first;
    for _ in 0..20 {
        last = trainer.step_dpo(&micro, 1e-2).unwrap();
    }
    assert!(last.loss < 0.5 * first.loss && last.preferred == Some(1.0), "{last:?}");
    let full = TrainOptions::default();
    let error = Trainer::new(&checkpoint, full).unwrap().step_dpo(&micro, 1e-2).unwrap_err();
    assert!(error.to_string().contains("adapters"), "{error}");
}

#[test]
fn sequences_that_do_not_fit_are_refused() {
    let Some(checkpoint) = fixture("models/gemma") else { return };
    let mut trainer = Trainer::new(&checkpoint, TrainOptions::default()).unwrap();
    let mut check = |s: Sequence, want: &str| {
        let error = trainer.step(&[vec![s]], 1e-3).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    };
    check(Sequence::whole(vec![1, 1_000_000]), "is not below the vocabulary");
    check(Sequence { ids: vec![1, 2], learn: vec![true] }, "2 tokens and 1 marks");
    check(Sequence::whole(vec![1]), "no token to learn");
}
