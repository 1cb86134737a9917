//! Every family against the reference implementation: tiny checkpoints with stored logits, layer
//! states and greedy continuations. They lie beside the repository, in `shared/fixtures`.

mod shared;

use lapidary_engine::{Limits, Sampler, Sampling, Session, Stops, generate};
use lapidary_formats::{Checkpoint, safetensors};
use lapidary_model::{Loaded, load};
use lapidary_ops::{Cpu, Isa, KvType, Ops, Pool, Precision};
use shared::fixtures;
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

const HF: [&str; 18] = [
    "gemma",
    "gemma2",
    "vaultgemma",
    "gemma3",
    "gemma3_text",
    "gemma3_text_bf16",
    "gemma3n",
    "gemma3n_text",
    "gemma4_text",
    "gemma4_e2b",
    "gemma4_12b",
    "gemma4_26b_a4b",
    "gemma4_31b",
    "llama_mha",
    "llama_gqa",
    "gpt2",
    "gpt3",
    "gpt_neo",
];
const GGUF: [&str; 12] = [
    "gemma-q8_0",
    "gemma2-f32",
    "gemma2-q8_0",
    "gemma3_text-q8_0",
    "gemma3n_text-q8_0",
    "gemma4_text-q8_0",
    "gemma4_e2b-q8_0",
    "gemma4_12b-q8_0",
    "gemma4_26b_a4b-q8_0",
    "gemma4_31b-q8_0",
    "llama_gqa-q8_0",
    "gpt2-q8_0",
];

/// A stored tensor as f64 (ids and floats alike) with its shape.
struct Golden(HashMap<String, (Vec<usize>, Vec<f64>)>);

impl Golden {
    fn open(path: &Path) -> Self {
        let file = safetensors::open(path).unwrap_or_else(|e| panic!("{e}"));
        let tensors = file.tensors.iter().map(|t| {
            let bytes: &[u8] = &t.bytes;
            let values = match t.dtype.name() {
                "F32" => bytes
                    .chunks_exact(4)
                    .map(|c| f64::from(f32::from_le_bytes(c.try_into().unwrap())))
                    .collect(),
                "I64" => bytes
                    .chunks_exact(8)
                    .map(|c| i64::from_le_bytes(c.try_into().unwrap()) as f64)
                    .collect(),
                _ => Vec::new(),
            };
            (t.name.to_string(), (t.shape.clone(), values))
        });
        Self(tensors.collect())
    }

    fn values(&self, name: &str) -> &[f64] {
        &self.0.get(name).unwrap_or_else(|| panic!("no {name}")).1
    }

    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.values(name).iter().map(|x| *x as u32).collect()
    }
}

struct Run {
    loaded: Loaded,
    cpu: Cpu,
}

impl Run {
    fn open(path: &Path, isa: Isa, threads: usize, precision: Precision) -> Self {
        let checkpoint = Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"));
        let mut cpu = Cpu::new(isa, Arc::new(Pool::new(threads)), precision);
        let loaded = load(&checkpoint, &mut cpu).unwrap_or_else(|e| panic!("{e}"));
        Self { loaded, cpu }
    }

    fn session(&self, kv: KvType, chunk: usize) -> Session {
        let info = self.loaded.model.info();
        Session::new(&info.kv, Limits { context: info.context, chunk, kv })
    }

    /// Logits of every position.
    fn logits(&mut self, ids: &[u32], kv: KvType, chunk: usize) -> Vec<f32> {
        let mut session = self.session(kv, chunk);
        session
            .extend(&*self.loaded.model, &mut self.cpu, ids, true)
            .unwrap_or_else(|e| panic!("{e}"))
    }

    fn greedy(&mut self, ids: &[u32], kv: KvType, chunk: usize) -> Vec<u32> {
        let mut session = self.session(kv, chunk);
        let mut sampler = Sampler::new(Sampling::default()).unwrap_or_else(|e| panic!("{e}"));
        let stops = Stops { max_tokens: 32, ..Stops::default() };
        let model = &*self.loaded.model;
        generate(model, &mut self.cpu, &mut session, ids, &mut sampler, &stops, &mut |_| {
            ControlFlow::Continue(())
        })
        .unwrap_or_else(|e| panic!("{e}"))
        .ids
    }
}

/// The largest difference, as a share of the tolerance of 2e-4 absolute plus 2e-4 relative.
fn logit_error(got: &[f32], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    let share = |(g, w): (&f32, &f64)| (f64::from(*g) - w).abs() / (2e-4 + 2e-4 * w.abs());
    got.iter().zip(want).map(share).fold(0.0, f64::max)
}

/// Gemma 3n's streams are stored `[stream, token, width]`; in a row they lie side by side.
fn side_by_side(shape: &[usize], values: &[f64]) -> Vec<f64> {
    let &[streams, tokens, width] = shape else { return values.to_vec() };
    let at = |s: usize, t: usize| &values[(s * tokens + t) * width..(s * tokens + t + 1) * width];
    (0..tokens).flat_map(|t| (0..streams).flat_map(move |s| at(s, t)).copied()).collect()
}

#[test]
fn published_checkpoints_give_the_references_logits_states_and_tokens() {
    let Some(dir) = fixtures() else { return };
    for name in HF {
        let golden = Golden::open(&dir.join("models").join(name).join("golden.safetensors"));
        let mut run = Run::open(&dir.join("models").join(name), Isa::detect(), 2, Precision::Exact);
        let mut worst: f64 = 0.0;
        for i in 0..3 {
            let ids = golden.ids(&format!("prompt_{i}.input_ids"));
            let states = Arc::new(Mutex::new(HashMap::new()));
            let heard = states.clone();
            run.cpu.listen(Some(Box::new(move |name, _, x| {
                heard.lock().unwrap().insert(name.to_owned(), x.to_vec());
            })));
            let logits = run.logits(&ids, KvType::F32, 512);
            run.cpu.listen(None);
            let error = logit_error(&logits, golden.values(&format!("prompt_{i}.logits")));
            assert!(error <= 1.0, "{name} prompt {i}: logits off by {error} tolerances");
            worst = worst.max(error);
            let prefix = format!("prompt_{i}.hidden.");
            let mut checked = 0;
            for (key, (shape, want)) in golden.0.iter().filter(|(k, _)| k.starts_with(&prefix)) {
                let states = states.lock().unwrap();
                let got =
                    states.get(&key[prefix.len()..]).unwrap_or_else(|| panic!("{name}: no {key}"));
                let want = &side_by_side(shape, want);
                let top = want.iter().fold(0.0, |t: f64, w| t.max(w.abs()));
                let off = got
                    .iter()
                    .zip(want)
                    .map(|(g, w)| (f64::from(*g) - w).abs())
                    .fold(0.0, f64::max);
                assert!(
                    got.len() == want.len() && off <= 1e-4 * top,
                    "{name} {key}: off by {off} of {top}"
                );
                checked += 1;
            }
            assert!(
                i != 1 || checked == run.loaded.model.info().layers + 2,
                "{name}: {checked} states"
            );
            let want = golden.ids(&format!("prompt_{i}.greedy_ids"));
            for kv in [KvType::F32, KvType::F16] {
                assert_eq!(run.greedy(&ids, kv, 512), want, "{name} prompt {i} {kv:?}");
            }
        }
        // Tokens with an embedding of their own, as Gemma 3n has for images and sounds.
        if golden.has("hard.logits") {
            let logits = run.logits(&golden.ids("hard.input_ids"), KvType::F32, 512);
            let error = logit_error(&logits, golden.values("hard.logits"));
            assert!(error <= 1.0, "{name}: logits of hard tokens off by {error} tolerances");
        }
        println!(
            "{name}: logits within {worst:.3} of the tolerance, 3 x 32 greedy tokens identical"
        );
    }
}

/// Kullback-Leibler divergence in nats of `got` from `want`, for one row of logits.
fn divergence(got: &[f32], want: &[f64]) -> f64 {
    let log_softmax = |v: Vec<f64>| {
        let top = v.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum = v.iter().map(|x| (x - top).exp()).sum::<f64>().ln();
        v.into_iter().map(move |x| x - top - sum).collect::<Vec<_>>()
    };
    let (p, q) =
        (log_softmax(want.to_vec()), log_softmax(got.iter().map(|x| f64::from(*x)).collect()));
    p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
}

#[test]
fn gguf_files_give_the_references_logits() {
    let Some(dir) = fixtures() else { return };
    for name in GGUF {
        let (family, ty) = name.split_once('-').unwrap_or_else(|| panic!("{name}"));
        let golden = Golden::open(&dir.join("gguf").join(format!("{family}.golden.safetensors")));
        let file = dir.join("gguf").join(format!("{name}.gguf"));
        let mut exact = Run::open(&file, Isa::detect(), 2, Precision::Exact);
        let mut fast = Run::open(&file, Isa::detect(), 2, Precision::Fast);
        let vocab = exact.loaded.model.info().vocab;
        let (mut worst, mut kl, mut rows) = (0.0f64, 0.0f64, 0);
        for i in 0..3 {
            let ids = golden.ids(&format!("prompt_{i}.input_ids"));
            let all = format!("{ty}.prompt_{i}.logits");
            let (want, last) = if golden.has(&all) {
                (golden.values(&all), false)
            } else {
                (golden.values(&format!("{ty}.prompt_{i}.last_logits")), true)
            };
            let cut = |logits: Vec<f32>| {
                if last { logits[logits.len() - vocab..].to_vec() } else { logits }
            };
            let logits = cut(exact.logits(&ids, KvType::F32, 512));
            let error = logit_error(&logits, want);
            assert!(error <= 1.0, "{name} prompt {i}: logits off by {error} tolerances");
            worst = worst.max(error);
            let logits = cut(fast.logits(&ids, KvType::F16, 512));
            for (got, want) in logits.chunks(vocab).zip(want.chunks(vocab)) {
                kl += divergence(got, want);
                rows += 1;
                let order = |v: &[f64]| {
                    let mut ids: Vec<usize> = (0..v.len()).collect();
                    ids.sort_by(|a, b| v[*b].total_cmp(&v[*a]));
                    ids
                };
                let off = got
                    .iter()
                    .zip(want)
                    .map(|(g, w)| (f64::from(*g) - w).abs())
                    .fold(0.0, f64::max);
                let best = order(want);
                if want[best[0]] - want[best[1]] > 2.0 * off {
                    let got: Vec<f64> = got.iter().map(|x| f64::from(*x)).collect();
                    assert_eq!(order(&got)[0], best[0], "{name} prompt {i}: top token");
                }
            }
        }
        let mean = kl / f64::from(rows);
        // Scores without a scale take more of an error in a query or a key, and a row whose two
        // likeliest experts are close may go to another one.
        let most = match family {
            "gemma4_26b_a4b" => 0.1,
            _ if family.starts_with("gemma4") || family == "gemma3n_text" => 3e-2,
            _ => 5e-3,
        };
        assert!(mean < most, "{name}: 8-bit activations diverge by {mean} nats");
        println!(
            "{name}: exact within {worst:.3} of the tolerance; 8-bit activations KL {mean:.2e}"
        );
    }
}

#[test]
fn bits_do_not_depend_on_threads_chunks_or_instruction_set() {
    let Some(dir) = fixtures() else { return };
    let files = (HF.iter().map(|n| dir.join("models").join(n)))
        .chain(GGUF.iter().map(|n| dir.join("gguf").join(format!("{n}.gguf"))));
    for file in files {
        for precision in [Precision::Fast, Precision::Exact] {
            let mut first: Option<(Vec<u32>, Vec<u32>)> = None;
            for isa in Isa::available() {
                for (threads, chunk) in [(1, 512), (2, 512), (2, 7), (1, 1)] {
                    let mut run = Run::open(&file, isa, threads, precision);
                    let vocab = run.loaded.model.info().vocab as u32;
                    let ids: Vec<u32> = (0..40u32).map(|i| (i * 37 + 2) % vocab).collect();
                    let bits: Vec<u32> =
                        run.logits(&ids, KvType::F16, chunk).iter().map(|x| x.to_bits()).collect();
                    let tokens = run.greedy(&ids, KvType::F16, chunk);
                    match &first {
                        None => first = Some((bits, tokens)),
                        Some(f) => {
                            let same = f.0 == bits && f.1 == tokens;
                            assert!(
                                same,
                                "{}: {isa:?} {threads} threads, chunks of {chunk}",
                                file.display()
                            );
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_prefix_from_the_cache_gives_the_same_bits() {
    let Some(dir) = fixtures() else { return };
    for name in HF {
        let mut run = Run::open(&dir.join("models").join(name), Isa::detect(), 2, Precision::Fast);
        let ids: Vec<u32> = (0..60u32).map(|i| (i * 31 + 5) % 500).collect();
        let (model, cpu) = (&*run.loaded.model, &mut run.cpu as &mut dyn Ops);
        let info = model.info();
        let limits = Limits { context: info.context, chunk: 512, kv: KvType::F16 };
        let mut fresh = Session::new(&info.kv, limits);
        let want = fresh.extend(model, cpu, &ids, false).unwrap_or_else(|e| panic!("{e}"));
        let mut used = Session::new(&info.kv, limits);
        for shared in [0, 1, 30, 45, 59] {
            let mut other = ids[..shared].to_vec();
            other.extend((0..20).map(|i| (i * 17 + 3) % 500));
            used.reset();
            used.extend(model, cpu, &other, false).unwrap_or_else(|e| panic!("{e}"));
            let kept = used.keep_prefix(&ids);
            assert!(kept <= shared.max(1) || kept == 0, "{name}");
            let got =
                used.extend(model, cpu, &ids[kept..], false).unwrap_or_else(|e| panic!("{e}"));
            assert!(got == want, "{name}: {shared} shared, {kept} kept");
        }
    }
}
