//! Files that `quantize` writes: types, sizes and errors, the same bytes for any number of threads.

use lapidary_formats::gguf::{self, Metadata};
use lapidary_formats::{Checkpoint, DType, Source, TensorSpec};
use lapidary_ops::Pool;
use lapidary_tune::{Options, Recipe, Report, quantize};
use std::path::{Path, PathBuf};

/// A folder that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir =
            std::env::temp_dir().join(format!("lapidary-quantize-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const SHAPES: [(&str, &[usize]); 6] = [
    ("token_embd.weight", &[96, 512]),
    ("output_norm.weight", &[512]),
    ("blk.0.attn_v.weight", &[70, 512]),
    ("blk.0.attn_q.weight", &[130, 512]),
    ("blk.0.ffn_down.weight", &[512, 96]),
    ("blk.0.ffn_norm.weight", &[512]),
];

/// A file of f32 matrices; `value` gives each element.
fn source(path: &Path, value: &mut dyn FnMut() -> f32) -> Checkpoint {
    let mut metadata = Metadata::new(path.display().to_string());
    metadata.insert("general.architecture", "gemma".to_owned()).unwrap();
    metadata.insert("gemma.attention.head_count", 8u32).unwrap();
    metadata.insert("gemma.attention.head_count_kv", 1u32).unwrap();
    let specs: Vec<TensorSpec> =
        SHAPES.iter().map(|(n, s)| TensorSpec::new(*n, DType::F32, s.to_vec())).collect();
    let mut file = gguf::create(path, &metadata, &specs).unwrap();
    for (name, shape) in SHAPES {
        let count = shape.iter().product::<usize>();
        let bytes: Vec<u8> = (0..count).flat_map(|_| value().to_le_bytes()).collect();
        file.write(name, &bytes).unwrap();
    }
    file.finish().unwrap();
    Checkpoint::open(path).unwrap()
}

fn noise() -> impl FnMut() -> f32 {
    let mut state = 7u64;
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((state >> 40) as f32 / (1 << 24) as f32 - 0.5) * 0.1
    }
}

fn run(from: &Checkpoint, to: &Path, ty: &str, pure: bool, threads: usize) -> Report {
    let recipe = Recipe { pure, ..Recipe::named(ty).unwrap() };
    let options = Options { recipe, importance: None };
    quantize(from, to, &options, &Pool::new(threads), &mut |_, _| ()).unwrap()
}

#[test]
fn every_recipe_keeps_its_promise_on_any_number_of_threads() {
    let dir = Scratch::new("recipes");
    let from = source(&dir.0.join("in.gguf"), &mut noise());
    for ty in Recipe::names() {
        let (one, three) = (dir.0.join("one.gguf"), dir.0.join("three.gguf"));
        let report = run(&from, &one, ty, false, 1);
        run(&from, &three, ty, false, 3);
        assert_eq!(std::fs::read(&one).unwrap(), std::fs::read(&three).unwrap(), "{ty}");
        let written = Checkpoint::open(&one).unwrap();
        for m in &report.matrices {
            let view = written.tensor(&m.name).unwrap();
            assert_eq!(view.dtype.name(), m.ty.name(), "{ty} {}", m.name);
            // Of even noise, a step of 2^-bits is lost in the mean over the square root of 12 of
            // it, and the noise's own size is the square root of 12 of its width.
            let bits = 8.0 * m.ty.block_bytes() as f64 / m.ty.block_len() as f64;
            let most = 2.2 * 2f64.powf(-bits.floor().min(10.0));
            assert!(m.error <= most, "{ty} {} {}: {} > {most}", m.name, m.ty.name(), m.error);
        }
        assert_eq!(written.tensor("output_norm.weight").unwrap().dtype, DType::F32);
        let bytes: usize = written.tensors().map(|t| t.bytes.len()).sum();
        assert_eq!(report.bytes.1, bytes as u64, "{ty}");
    }
}

#[test]
fn rows_that_fit_no_block_are_named() {
    let dir = Scratch::new("fallback");
    let from = source(&dir.0.join("in.gguf"), &mut noise());
    let report = run(&from, &dir.0.join("out.gguf"), "q4_k_m", false, 2);
    let fallen: Vec<_> = report.fallen_back.iter().map(|(n, t)| (&**n, t.name())).collect();
    assert_eq!(fallen, [("blk.0.ffn_down.weight", "Q8_0")]);
    let ty = |name: &str| report.matrices.iter().find(|m| m.name == name).unwrap().ty.name();
    assert_eq!(ty("token_embd.weight"), "Q6_K");
    assert_eq!(ty("blk.0.attn_v.weight"), "Q6_K");
    assert_eq!(ty("blk.0.attn_q.weight"), "Q4_K");
}

/// Weights that were trained to be `d (q - 8)`, the extremum of each block at -8 d.
#[test]
fn quantisation_aware_weights_are_imported_exactly() {
    let dir = Scratch::new("qat");
    let mut next = noise();
    let mut i = 0;
    let mut d = 1.0;
    let from = source(&dir.0.join("in.gguf"), &mut || {
        let q = if i % 32 == 5 { 0.0 } else { (160.0 * (next() + 0.05)).floor().clamp(0.0, 15.0) };
        if i % 32 == 0 {
            d = 0.0078125 * (1.0 + (i / 32 % 13) as f32 / 16.0);
        }
        i += 1;
        d * (q - 8.0)
    });
    let report = run(&from, &dir.0.join("out.gguf"), "q4_0", true, 2);
    assert!(report.matrices.iter().all(|m| m.error == 0.0 && m.ty.name() == "Q4_0"), "{report:?}");
}

/// Gemma 4's settings, vocabulary, names and values against the files of llama.cpp's converter.
#[test]
fn gemma_4_is_written_as_llama_cpp_s_converter_does() {
    let shared = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/fixtures");
    if !shared.is_dir() {
        println!("skipped: {} is not there", shared.display());
        return;
    }
    let dir = Scratch::new("gemma4");
    for model in ["gemma4_text", "gemma4_e2b", "gemma4_12b", "gemma4_26b_a4b", "gemma4_31b"] {
        let from = Checkpoint::open(&shared.join("models").join(model)).unwrap();
        let theirs = Checkpoint::open(&shared.join(format!("gguf/{model}-q8_0.gguf"))).unwrap();
        let path = dir.0.join("out.gguf");
        run(&from, &path, "f32", false, 2);
        let ours = Checkpoint::open(&path).unwrap();
        let (Source::Gguf(a), Source::Gguf(b)) = (ours.source(), theirs.source()) else {
            panic!("{model}: GGUF files")
        };
        for (key, want) in b.iter().filter(|(key, _)| !SKIPPED.contains(key)) {
            let got = a.get(key).unwrap_or_else(|| panic!("{model}: no {key}"));
            assert_eq!(got, want, "{model}: {key}");
        }
        // The converter takes the mark of a film for plain text.
        let types = |m: &Metadata| m.get("tokenizer.ggml.token_type").map(|v| format!("{v:?}"));
        let (got, want) = (types(a).unwrap(), types(b).unwrap());
        let apart = got.split(',').zip(want.split(',')).filter(|(a, b)| a != b).count();
        assert!(
            got.split(',').count() == want.split(',').count() && apart <= 1,
            "{model}: {apart}"
        );
        let names = |c: &Checkpoint| {
            let mut all: Vec<_> =
                c.tensors().map(|t| (t.name.to_string(), t.shape.clone())).collect();
            all.sort();
            all
        };
        assert_eq!(names(&ours), names(&theirs), "{model}");
        for t in theirs.tensors().filter(|t| t.dtype == DType::F32) {
            let same = ours.tensor(&t.name).unwrap().bytes[..] == t.bytes[..];
            assert!(same, "{model}: {}", t.name);
        }
    }
}

/// What describes the file, or is a matter of taste.
const SKIPPED: [&str; 8] = [
    "general.name",
    "general.size_label",
    "general.file_type",
    "tokenizer.ggml.token_type",
    "tokenizer.ggml.mask_token_id",
    "tokenizer.ggml.add_sep_token",
    "general.sampling.top_k",
    "general.sampling.top_p",
];
