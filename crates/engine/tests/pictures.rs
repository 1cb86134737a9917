//! Vision towers against the reference, and prompts with pictures: logits and greedy tokens.

#[path = "shared/projector.rs"]
mod projector;
mod shared;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapidary_engine::request::{Event, Refusal, Request, Ticket};
use lapidary_engine::{
    Engine, EngineOptions, Limits, LogProbabilities, Parts, Picture, Sampler, Sampling, Session,
    Stops, generate, read_picture,
};
use lapidary_formats::gguf::{self, Array, Metadata, Value};
use lapidary_formats::{Checkpoint, Source, TensorSpec, TensorView, safetensors};
use lapidary_model::{
    Eyes, Patches, describe, load, load_projector, load_vision, picture_rows, projector_rows,
};
use lapidary_ops::{Cpu, Isa, KvType, Pool, Precision};
use projector::{by_colour, write_projector};
use shared::{Folder, fixtures};
use std::collections::HashMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

struct Golden(HashMap<String, (Vec<usize>, Vec<f64>)>);

impl Golden {
    fn open(path: &Path) -> Self {
        let file = safetensors::open(path).unwrap_or_else(|e| panic!("{e}"));
        let values = |t: &lapidary_formats::TensorView| -> Vec<f64> {
            let bytes: &[u8] = &t.bytes;
            match t.dtype.name() {
                "F32" => bytes
                    .chunks(4)
                    .map(|c| f32::from_le_bytes(c.try_into().unwrap()).into())
                    .collect(),
                "U8" => bytes.iter().map(|b| f64::from(*b)).collect(),
                _ => bytes
                    .chunks_exact(8)
                    .map(|c| i64::from_le_bytes(c.try_into().unwrap()) as f64)
                    .collect(),
            }
        };
        Self(
            file.tensors
                .iter()
                .map(|t| (t.name.to_string(), (t.shape.clone(), values(t))))
                .collect(),
        )
    }

    fn values(&self, name: &str) -> &[f64] {
        &self.0.get(name).unwrap_or_else(|| panic!("no {name}")).1
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        self.values(name).iter().map(|x| *x as f32).collect()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        self.values(name).iter().map(|x| *x as u32).collect()
    }
}

/// Panics if a value is further off than 1e-4 of the largest; returns by how much of it.
fn close(what: &str, got: &[f32], want: &[f64]) -> f64 {
    let top = want.iter().fold(0.0, |t: f64, w| t.max(w.abs()));
    let off = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).abs()).fold(0.0, f64::max);
    assert!(got.len() == want.len() && off <= 1e-4 * top, "{what}: off by {off} of {top}");
    off / top
}

/// The patches of the golden's pictures: planes of pixels, or patches with positions and padding.
fn patches(golden: &Golden, of: &str, patch: usize) -> Vec<Patches> {
    let name = format!("{of}.pixel_values");
    let (shape, values) = (&golden.0[&name].0, golden.floats(&name));
    if let &[_, 3, height, width] = &shape[..] {
        return values
            .chunks(3 * height * width)
            .map(|planes| {
                let (columns, rows) = (width / patch, height / patch);
                let mut values = Vec::new();
                for at in 0..columns * rows {
                    let (y0, x0) = (at / columns * patch, at % columns * patch);
                    for c in 0..3 {
                        for y in 0..patch {
                            let from = (c * height + y0 + y) * width + x0;
                            values.extend(&planes[from..from + patch]);
                        }
                    }
                }
                Patches { columns, rows, values }
            })
            .collect();
    }
    let &[_, count, len] = &shape[..] else { panic!("{shape:?}") };
    let places = golden.values(&format!("{of}.position_ids"));
    values
        .chunks(count * len)
        .zip(places.chunks(count * 2))
        .map(|(values, places)| {
            let real = places.chunks(2).filter(|p| p[0] >= 0.0).count();
            let columns = places.chunks(2).map(|p| p[0] as i64).max().unwrap() as usize + 1;
            Patches { columns, rows: real / columns, values: values[..real * len].to_vec() }
        })
        .collect()
}

/// The folder of a checkpoint: a fixture, or one of our own beside this file.
fn folder(fixtures: &Path, name: &str) -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name);
    if own.is_dir() { own } else { fixtures.join("models").join(name) }
}

/// A number of a checkpoint's tower.
fn tower_setting(dir: &Path, key: &str) -> usize {
    let config = std::fs::read(dir.join("config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    config["vision_config"][key].as_u64().unwrap() as usize
}

fn patch_side(dir: &Path) -> usize {
    tower_setting(dir, "patch_size")
}

/// The settings of a GGUF file, some of them changed.
fn changed(file: &Checkpoint, change: impl Fn(&str) -> Option<Value>) -> Metadata {
    let Source::Gguf(old) = file.source() else { panic!("a GGUF file was expected") };
    let mut settings = Metadata::new("changed");
    for (key, value) in old.iter() {
        settings.insert(key, change(key).unwrap_or_else(|| value.clone())).unwrap();
    }
    settings
}

#[test]
fn towers_see_what_the_references_see() {
    let Some(dir) = fixtures() else { return };
    let names = [
        "gemma3",
        "gemma4_e2b",
        "gemma4_12b",
        "gemma4_26b_a4b",
        "gemma4_31b",
        "paligemma",
        "paligemma2",
    ];
    for name in names {
        let dir = folder(&dir, name);
        let golden = Golden::open(&dir.join("golden.safetensors"));
        let checkpoint = Checkpoint::open(&dir).unwrap_or_else(|e| panic!("{e}"));
        let mut worst: f64 = 0.0;
        let mut bits: Option<Vec<u32>> = None;
        for (isa, threads) in Isa::available().into_iter().zip([1, 2, 2, 2, 2, 2]) {
            let mut cpu = Cpu::new(isa, Arc::new(Pool::new(threads)), Precision::Exact);
            let eyes =
                load_vision(&checkpoint, &mut cpu).unwrap_or_else(|e| panic!("{e}")).unwrap();
            let last = Arc::new(Mutex::new(Vec::new()));
            let heard = last.clone();
            cpu.listen(Some(Box::new(move |name, _, x| {
                if name == "vision_last_hidden" {
                    heard.lock().unwrap().extend(x);
                }
            })));
            let mut features = Vec::new();
            for p in patches(&golden, "image", patch_side(&dir)) {
                let got = eyes.vision.encode(&mut cpu, &p);
                let most = picture_rows(&checkpoint).unwrap_or_else(|e| panic!("{e}"));
                assert!(
                    most.is_some_and(|most| got.len() <= most * eyes.width),
                    "{name}: {most:?}"
                );
                features.extend(got);
            }
            if golden.0.contains_key("image.vision_last_hidden") {
                let want = golden.values("image.vision_last_hidden");
                worst = worst.max(close(&format!("{name} last"), &last.lock().unwrap(), want));
            }
            worst = worst.max(close(name, &features, golden.values("image.features")));
            let got = features.iter().map(|x| x.to_bits()).collect::<Vec<u32>>();
            assert_eq!(bits.get_or_insert_with(|| got.clone()), &got, "{name} {isa:?}");
        }
        println!("{name}: features within {worst:.1e} of the largest value");
    }
}

/// Runs of the placeholder among the ids, with their part of the features.
fn pictures(ids: &[u32], placeholder: u32, features: &[f32], width: usize) -> Vec<Picture> {
    let mut out: Vec<Picture> = Vec::new();
    let mut used = 0;
    let mut at = 0;
    while at < ids.len() {
        let rows = ids[at..].iter().take_while(|id| **id == placeholder).count();
        if rows > 0 {
            let part = features[used * width..(used + rows) * width].to_vec();
            out.push(Picture::new(at..at + rows, Arc::new(part)));
            used += rows;
        }
        at += rows.max(1);
    }
    assert_eq!(used * width, features.len());
    out
}

#[test]
fn prompts_with_pictures_give_the_references_logits_and_tokens() {
    let Some(dir) = fixtures() else { return };
    // Whose pictures, and the names of pictures and prompt.
    let cases = [
        ("gemma3", "image", "image"),
        ("gemma3", "two_images", "two_images"),
        ("gemma4_e2b", "image", "image"),
        ("gemma4_12b", "image", "image"),
        ("gemma4_26b_a4b", "image", "image"),
        ("gemma4_31b", "image", "image"),
        ("paligemma", "image", "prompt_0"),
        ("paligemma", "image", "prompt_1"),
        ("paligemma2", "image", "prompt_0"),
        // Its prompt is longer than its window.
        ("paligemma2_narrow", "image", "prompt_0"),
    ];
    for (name, shown, of) in cases {
        let dir = folder(&dir, name);
        let golden = Golden::open(&dir.join("golden.safetensors"));
        let checkpoint = Checkpoint::open(&dir).unwrap_or_else(|e| panic!("{e}"));
        let mut cpu = Cpu::new(Isa::detect(), Arc::new(Pool::new(2)), Precision::Exact);
        let model = load(&checkpoint, &mut cpu).unwrap_or_else(|e| panic!("{e}")).model;
        let eyes = load_vision(&checkpoint, &mut cpu).unwrap_or_else(|e| panic!("{e}")).unwrap();
        let mut features = Vec::new();
        for p in patches(&golden, shown, patch_side(&dir)) {
            features.extend(eyes.vision.encode(&mut cpu, &p));
        }
        let ids = golden.ids(&format!("{of}.input_ids"));
        let states = Arc::new(Mutex::new(HashMap::new()));
        let heard = states.clone();
        cpu.listen(Some(Box::new(move |name, _, x| {
            heard.lock().unwrap().entry(name.to_owned()).or_insert_with(|| x.to_vec());
        })));
        let shown = pictures(&ids, eyes.placeholder, &features, eyes.width);
        let mut first: Option<Vec<f32>> = None;
        for chunk in [512, 7, 1] {
            let info = model.info();
            let limits = Limits { context: info.context, chunk, kv: KvType::F32 };
            let mut session = Session::new(&info.kv, limits);
            session.show(shown.clone());
            let logits =
                session.extend(&*model, &mut cpu, &ids, true).unwrap_or_else(|e| panic!("{e}"));
            let share = |(g, w): (&f32, &f64)| (f64::from(*g) - w).abs() / (2e-4 + 2e-4 * w.abs());
            let want = golden.values(&format!("{of}.logits"));
            assert_eq!(logits.len(), want.len());
            let error = logits.iter().zip(want).map(share).fold(0.0, f64::max);
            assert!(error <= 1.0, "{name} {of}: logits off by {error} tolerances");
            // Where the reference's states are stored, those of the first pass equal them.
            for (state, got) in states.lock().unwrap().drain().filter(|_| first.is_none()) {
                let key = format!("{of}.hidden.{state}");
                if golden.0.contains_key(&key) {
                    close(&format!("{name} {key}"), &got, golden.values(&key));
                }
            }
            match &first {
                None => println!("{name} {of}: logits within {error:.3} of the tolerance"),
                Some(f) => assert!(f == &logits, "{name} {of}: chunks of {chunk}"),
            }
            first.get_or_insert(logits);
            // The same prompt again: what is kept is kept, and pictures are not cut.
            let kept = session.keep_prefix(&ids[..ids.len() - 9]);
            assert!(
                kept < ids.len() - 9
                    && !shown.iter().any(|p| p.rows.start < kept && kept < p.rows.end)
            );
            let mut sampler = Sampler::new(Sampling::default()).unwrap_or_else(|e| panic!("{e}"));
            let want = golden.ids(&format!("{of}.greedy_ids"));
            let stops = Stops { max_tokens: want.len(), ..Stops::default() };
            let greedy =
                generate(&*model, &mut cpu, &mut session, &ids, &mut sampler, &stops, &mut |_| {
                    ControlFlow::Continue(())
                })
                .unwrap_or_else(|e| panic!("{e}"))
                .ids;
            assert_eq!(greedy, want, "{name} {of} {chunk}");
            // Another picture in the same place: nothing of the first one is taken over.
            let other: Vec<Picture> = (shown.iter().cloned())
                .map(|p| {
                    let negated = p.features.iter().map(|x| -x).collect();
                    Picture::new(p.rows, Arc::new(negated))
                })
                .collect();
            session.show(other);
            assert!(session.tokens().len() <= shown[0].rows.start);
        }
    }
}

#[test]
fn pictures_are_prepared_as_the_references_do() {
    let Some(dir) = fixtures() else { return };
    // PaliGemma's picture is one of those that shrink in height first.
    for (name, of) in [("gemma3", "image"), ("gemma4_e2b", "preprocess"), ("paligemma", "image")] {
        let dir = dir.join("models").join(name);
        let golden = Golden::open(&dir.join("golden.safetensors"));
        let checkpoint = Checkpoint::open(&dir).unwrap_or_else(|e| panic!("{e}"));
        let mut cpu = Cpu::new(Isa::detect(), Arc::new(Pool::new(1)), Precision::Exact);
        let eyes = load_vision(&checkpoint, &mut cpu).unwrap_or_else(|e| panic!("{e}")).unwrap();
        let path = dir.join("image.png");
        let image = read_picture(path.to_str().unwrap()).unwrap_or_else(|e| panic!("{e}"));
        let shape = &golden.0[&format!("{of}.rgb")].0;
        assert_eq!(shape, &[image.height, image.width, 3]);
        assert!(
            image
                .data
                .iter()
                .zip(golden.values(&format!("{of}.rgb")))
                .all(|(g, w)| f64::from(*g) == *w)
        );
        let got = eyes.vision.prepare(&image);
        let want = match of {
            "preprocess" => golden.floats("preprocess.pixel_values"),
            _ => patches(&golden, of, patch_side(&dir)).remove(0).values,
        };
        assert_eq!(got.values.len(), want.len(), "{name}");
        // In steps of a byte; Gemma 3's values span -1 to 1.
        let step = if name == "gemma4_e2b" { 1.0 / 255.0 } else { 2.0 / 255.0 };
        let off: Vec<f32> =
            got.values.iter().zip(&want).map(|(g, w)| (g - w).abs() / step).collect();
        let exact = off.iter().filter(|o| **o < 0.01).count() as f64 / off.len() as f64;
        let worst = off.iter().fold(0.0f32, |a, b| a.max(*b));
        println!(
            "{name}: {:.2} % of the values equal, none off by more than {worst:.2} steps",
            exact * 100.0
        );
        assert!(exact == 1.0, "{name}: {exact} {worst}");
        // The same file in a data URL.
        let bytes = std::fs::read(&path).unwrap();
        let url = format!("data:image/png;base64,{}", STANDARD.encode(&bytes));
        assert_eq!(read_picture(&url).unwrap(), image);
        let cut = &url[..url.len() / 2];
        assert!(read_picture(cut).is_err());
    }
}

/// Tokens with the bits of their log-probabilities.
type Shown = Vec<(u32, u32)>;

/// A fixture as the plain loop and the engine run it.
struct Sighted {
    checkpoint: Checkpoint,
    golden: Golden,
    ids: Vec<u32>,
    pictures: Vec<Picture>,
    rows: usize,
    /// Of the engine.
    context: usize,
}

const KV: KvType = KvType::F32;

impl Sighted {
    fn open(dir: &Path, of: &str) -> Self {
        Self::open_as(dir, of, of)
    }

    /// With the pictures of one name in the golden and the prompt of another.
    fn open_as(dir: &Path, shown: &str, of: &str) -> Self {
        let golden = Golden::open(&dir.join("golden.safetensors"));
        let checkpoint = Checkpoint::open(dir).unwrap_or_else(|e| panic!("{e}"));
        let mut cpu = device();
        let eyes = load_vision(&checkpoint, &mut cpu).unwrap_or_else(|e| panic!("{e}")).unwrap();
        let mut features = Vec::new();
        for p in patches(&golden, shown, patch_side(dir)) {
            features.extend(eyes.vision.encode(&mut cpu, &p));
        }
        let ids = golden.ids(&format!("{of}.input_ids"));
        let pictures = pictures(&ids, eyes.placeholder, &features, eyes.width);
        let rows = picture_rows(&checkpoint).unwrap_or_else(|e| panic!("{e}")).unwrap();
        let context = describe(&checkpoint).unwrap_or_else(|e| panic!("{e}")).context.min(160);
        Self { checkpoint, golden, ids, pictures, rows, context }
    }

    /// The golden's prompt between other tokens, with what it shows multiplied by `factor`.
    fn long(&self, factor: f32) -> Request {
        let small = self.context < 160;
        let text =
            |n: u32| (0..n).map(move |i| if small { 8 + i * 7 % 30 } else { 100 + i * 7 % 90 });
        let (before, behind) = if small { (8, 12) } else { (40, 50) };
        let prompt = text(before).chain(self.ids.iter().copied()).chain(text(behind)).collect();
        let before = before as usize;
        let moved = self.pictures.iter().map(|p| {
            let features = p.features.iter().map(|x| x * factor).collect();
            Picture::new(p.rows.start + before..p.rows.end + before, Arc::new(features))
        });
        Request { pictures: moved.collect(), ..request(prompt, 12) }
    }

    fn plain(&self, request: &Request) -> Shown {
        let mut cpu = device();
        let model = load(&self.checkpoint, &mut cpu).unwrap_or_else(|e| panic!("{e}")).model;
        let info = model.info();
        let limits = Limits { context: info.context, chunk: 512, kv: KV };
        let mut session = Session::new(&info.kv, limits);
        session.show(request.pictures.clone());
        let mut ids = request.prompt.clone();
        let mut shown = Vec::new();
        while shown.len() < request.max_tokens {
            let logits = session.extend(&*model, &mut cpu, &ids, false);
            let logits = logits.unwrap_or_else(|e| panic!("{e}"));
            let log = LogProbabilities::new(&logits);
            let (id, _) = log.top(1)[0];
            shown.push((id, log.of(id).to_bits()));
            ids = vec![id];
        }
        shown
    }

    fn engine(&self, budget: usize, spare: usize) -> Engine {
        let mut cpu = device();
        let model = load(&self.checkpoint, &mut cpu).unwrap_or_else(|e| panic!("{e}")).model;
        let info = model.info();
        let options = EngineOptions {
            token_budget: budget,
            kv: KV,
            context: self.context,
            picture_rows: self.rows,
            ..EngineOptions::default()
        };
        let chunk = if info.prefix { options.context } else { options.chunk() };
        let memory = info.kv.bytes(options.context, chunk, KV) + spare;
        let parts = Parts { model, ops: Box::new(cpu), weight_bytes: 0, adapters: 0 };
        let engine = Engine::start(parts, EngineOptions { memory, ..options });
        engine.unwrap_or_else(|e| panic!("{e}"))
    }
}

fn device() -> Cpu {
    Cpu::new(Isa::detect(), Arc::new(Pool::new(2)), Precision::Exact)
}

fn request(prompt: Vec<u32>, max_tokens: usize) -> Request {
    Request { logprobs: Some(0), ..Request::new(prompt, max_tokens) }
}

fn submit(engine: &Engine, request: &Request) -> Ticket {
    engine.submit(request.clone()).unwrap_or_else(|e| panic!("{e}"))
}

/// What a request gave, and how much of its prompt was found in the cache.
fn heard(ticket: &Ticket) -> (Shown, usize) {
    let mut shown = Vec::new();
    loop {
        match ticket.recv().unwrap() {
            Event::Token { id, logprob, .. } => shown.push((id, logprob.unwrap().to_bits())),
            Event::Done(summary) => return (shown, summary.reused),
            Event::Failed(e) => panic!("{e}"),
            _ => {}
        }
    }
}

#[test]
fn the_engine_sees_what_the_plain_loop_sees_whatever_else_it_does() {
    let Some(dir) = fixtures() else { return };
    for (name, of) in [("gemma3", "two_images"), ("gemma4_e2b", "image"), ("gemma4_31b", "image")] {
        let sighted = Sighted::open(&dir.join("models").join(name), of);
        let golden =
            Request { pictures: sighted.pictures.clone(), ..request(sighted.ids.clone(), 32) };
        let (first, other) = (sighted.long(1.0), sighted.long(-1.0));
        let blind = Request { pictures: vec![], ..first.clone() };
        let requests = [golden, first, other, blind];
        let want: Vec<Shown> = requests.iter().map(|r| sighted.plain(r)).collect();
        let ids: Vec<u32> = want[0].iter().map(|(id, _)| *id).collect();
        assert_eq!(ids, sighted.golden.ids(&format!("{of}.greedy_ids")), "{name}");
        assert!(want[1] != want[2] && want[2] != want[3] && want[1] != want[3], "{name}");
        // Together, in small and large passes, with room for all of them and for hardly one.
        for (budget, spare) in [(256, 1 << 24), (7, 1 << 24), (16, 0)] {
            let engine = sighted.engine(budget, spare);
            let tickets: Vec<Ticket> =
                (0..8).map(|i| submit(&engine, &requests[i * 3 % 4])).collect();
            for (i, ticket) in tickets.iter().enumerate() {
                assert_eq!(heard(ticket).0, want[i * 3 % 4], "{name} {budget} {i}");
            }
        }
        // One after another: the text before the first picture is the same, and then all that
        // follows only behind the same pictures.
        let engine = sighted.engine(64, 1 << 24);
        for (i, reused) in [(1, 0), (2, 32), (3, 32), (1, 96), (2, 96), (3, 96)] {
            assert_eq!(heard(&submit(&engine, &requests[i])), (want[i].clone(), reused), "{name}");
        }
    }
}

#[test]
fn prompts_that_see_themselves_are_answered_in_batches_as_alone() {
    let Some(dir) = fixtures() else { return };
    for name in ["paligemma", "paligemma2", "paligemma2_narrow"] {
        let dir = folder(&dir, name);
        let golden = Golden::open(&dir.join("golden.safetensors"));
        let sighted = Sighted::open_as(&dir, "image", "prompt_0");
        let short =
            Request { pictures: sighted.pictures.clone(), ..request(sighted.ids.clone(), 32) };
        let (long, other) = (sighted.long(1.0), sighted.long(-1.0));
        let blind = Request { pictures: vec![], ..long.clone() };
        let requests = [short, long, other, blind];
        let want: Vec<Shown> = requests.iter().map(|r| sighted.plain(r)).collect();
        let ids: Vec<u32> = want[0].iter().map(|(id, _)| *id).collect();
        let greedy = golden.ids("prompt_0.greedy_ids");
        let known = ids.len().min(greedy.len());
        assert_eq!(ids[..known], greedy[..known], "{name}");
        assert!(want[1] != want[2] && want[2] != want[3] && want[1] != want[3], "{name}");
        // In passes smaller than the prompts, and with room for hardly one: those that lose their
        // place compute prompt and answer again.
        for (budget, spare) in [(256, 1 << 24), (7, 1 << 24), (16, 0)] {
            let engine = sighted.engine(budget, spare);
            for _ in 0..2 {
                let tickets: Vec<Ticket> =
                    (0..8).map(|i| submit(&engine, &requests[i * 3 % 4])).collect();
                for (i, ticket) in tickets.iter().enumerate() {
                    // Nothing of a prompt is the beginning of another.
                    assert_eq!(heard(ticket), (want[i * 3 % 4].clone(), 0), "{name} {budget} {i}");
                }
            }
        }
    }
}

#[test]
fn pictures_out_of_place_are_refused() {
    let Some(dir) = fixtures() else { return };
    let sighted = Sighted::open(&dir.join("models/gemma3"), "image");
    let engine = sighted.engine(64, 0);
    let good = sighted.long(1.0);
    let picture = &good.pictures[0];
    let moved = |rows| Picture::new(rows, picture.features.clone());
    let (start, len) = (picture.rows.start, picture.rows.len());
    let none = Picture::new(5..5, Arc::default());
    let large = Arc::new(picture.features.repeat(2));
    for pictures in [
        vec![moved(start..start + len - 1)],
        vec![moved(good.prompt.len() - 3..good.prompt.len() - 3 + len)],
        vec![moved(9..9 + len), moved(8 + len..8 + 2 * len)],
        vec![none],
        vec![Picture::new(start..start + 2 * len, large)],
    ] {
        let bad = Request { pictures, ..good.clone() };
        assert!(matches!(engine.submit(bad), Err(Refusal::Picture { .. })));
    }
    assert!(engine.submit(good).is_ok());
}

/// Mean KL divergence of `got` from `want`, rows of logits.
fn divergence(want: &[f64], got: &[f32], vocab: usize) -> f64 {
    let weights = |row: Vec<f64>| -> Vec<f64> {
        let top = row.iter().fold(f64::MIN, |a, b| a.max(*b));
        let sum: f64 = row.iter().map(|x| (x - top).exp()).sum();
        row.iter().map(|x| x - top - sum.ln()).collect()
    };
    let rows = want.chunks(vocab).zip(got.chunks(vocab)).map(|(w, g)| {
        let (w, g) = (weights(w.to_vec()), weights(g.iter().map(|x| f64::from(*x)).collect()));
        w.iter().zip(&g).map(|(w, g)| w.exp() * (w - g)).sum::<f64>()
    });
    rows.sum::<f64>() / (want.len() / vocab) as f64
}

#[test]
fn towers_in_mmproj_files_see_the_same() {
    let Some(dir) = fixtures() else { return };
    let folder = Folder::new("mmproj");
    let cases = [
        ("gemma3", "gemma3", "gemma3_text"),
        ("gemma4_e2b", "gemma4v", "gemma4_e2b"),
        ("gemma4_26b_a4b", "gemma4v", "gemma4_26b_a4b"),
        ("gemma4_31b", "gemma4v", "gemma4_31b"),
        ("gemma4_12b", "gemma4uv", "gemma4_12b"),
    ];
    for (name, kind, text) in cases {
        let from = dir.join("models").join(name);
        let golden = Golden::open(&from.join("golden.safetensors"));
        let path = folder.0.join(format!("mmproj-{name}.gguf"));
        let whole = Checkpoint::open(&from).unwrap_or_else(|e| panic!("{e}"));
        write_projector(&whole, kind, &path);
        let projector = Checkpoint::open(&path).unwrap_or_else(|e| panic!("{e}"));
        let text = Checkpoint::open(&dir.join("gguf").join(format!("{text}-q8_0.gguf"))).unwrap();
        let mut cpu = Cpu::new(Isa::detect(), Arc::new(Pool::new(2)), Precision::Exact);
        let eyes =
            load_projector(&text, &projector, &mut cpu).unwrap_or_else(|e| panic!("{name}: {e}"));
        let own = load_vision(&whole, &mut cpu).unwrap().unwrap();
        let tokens = |e: &Eyes| (e.begin, e.end, e.marked_by_begin, e.width);
        assert_eq!(tokens(&eyes), tokens(&own), "{name}");
        let mut features = Vec::new();
        for mut p in patches(&golden, "image", patch_side(&from)) {
            if name != "gemma3" {
                p.values = by_colour(&p.values, p.values.len() / p.count());
            }
            features.extend(eyes.vision.encode(&mut cpu, &p));
        }
        let worst = close(name, &features, golden.values("image.features"));
        let most = if name == "gemma3" { features.len() / eyes.width } else { 280 };
        assert_eq!(projector_rows(&text, &projector), Ok(most), "{name}");
        println!("{name}: features within {worst:.1e} of the largest value");
        if name == "gemma3" {
            // A text model of its own: the fixtures have no GGUF file of this one's text.
            continue;
        }
        let model = load(&text, &mut cpu).unwrap_or_else(|e| panic!("{e}")).model;
        let ids = golden.ids("image.input_ids");
        let limits = Limits { context: 64, chunk: 512, kv: KvType::F32 };
        let mut session = Session::new(&model.info().kv, limits);
        session.show(pictures(&ids, eyes.placeholder, &features, eyes.width));
        let logits = session.extend(&*model, &mut cpu, &ids, true).unwrap();
        let kl = divergence(golden.values("image.logits"), &logits, model.info().vocab);
        println!("{name}: text in Q8_0, KL divergence {kl:.2e}");
        // 12B differs from 31B in its mask alone, and a GGUF file tells them apart by their layers
        // (see below).
        assert!(kl < 0.02 || name == "gemma4_12b", "{name}: {kl}");
    }
    let open = |path: PathBuf| Checkpoint::open(&path).unwrap();
    let (gemma3, e2b) = ("mmproj-gemma3.gguf", "mmproj-gemma4_e2b.gguf");
    let text = |name: &str| open(dir.join("gguf").join(format!("{name}-q8_0.gguf")));
    let mut cpu = Cpu::new(Isa::detect(), Arc::new(Pool::new(1)), Precision::Exact);
    let mut refused = |text: &Checkpoint, projector: &Checkpoint, words: &str| {
        let e = load_projector(text, projector, &mut cpu).err().unwrap().to_string();
        assert!(e.contains(words), "{e}");
        // Headers tell as much.
        assert_eq!(projector_rows(text, projector).map_err(|e| e.to_string()), Err(e));
    };
    refused(&text("gemma4_e2b"), &open(folder.0.join(gemma3)), "is for gemma3");
    refused(&text("gemma4_26b_a4b"), &open(folder.0.join(e2b)), "mm.input_projection.weight");
    refused(&text("gemma4_e2b"), &text("gemma4_e2b"), "no mmproj file");
    refused(&text("gemma4_e2b"), &open(dir.join("models/gemma4_e2b")), "a GGUF file was expected");
    // The tower's own width is no one's business: SigLIP's is that of Gemma 3 1B, which sees nothing.
    let own = tower_setting(&dir.join("models/gemma3"), "hidden_size") as u32;
    let settings = changed(&open(dir.join("gguf/gemma3_text-q8_0.gguf")), |key| {
        (key == "gemma3.embedding_length").then(|| own.into())
    });
    let wide = Folder::new("as-wide-as-the-tower");
    let path = wide.0.join("text.gguf");
    gguf::create(&path, &settings, &[]).unwrap().finish().unwrap();
    let e = projector_rows(&open(path), &open(folder.0.join(gemma3))).unwrap_err().to_string();
    assert!(e.contains("another model's tower"), "{e}");
    // A folder with a model and its tower holds one model.
    std::fs::copy(dir.join("gguf/gemma4_e2b-q8_0.gguf"), folder.0.join("model.gguf")).unwrap();
    assert_eq!(describe(&open(folder.0.clone())).unwrap().family, "gemma4");
}

/// A Gemma 4 of nothing but copies of a global layer of `text`.
fn global_layers(text: &Checkpoint, count: usize, path: &Path) -> Checkpoint {
    let metadata = changed(text, |key| match key {
        "gemma4.block_count" => Some((count as u32).into()),
        "gemma4.attention.head_count_kv" => Some(Value::Array(Array::I32(vec![1; count]))),
        "gemma4.attention.sliding_window_pattern" => {
            Some(Value::Array(Array::Bool(vec![false; count])))
        }
        _ => None,
    });
    let mut tensors = Vec::new();
    for view in text.tensors() {
        if let Some(part) = view.name.strip_prefix("blk.2.") {
            tensors.extend((0..count).map(|i| (format!("blk.{i}.{part}"), view)));
        } else if !view.name.starts_with("blk.") {
            tensors.push((view.name.to_string(), view));
        }
    }
    let spec = |(name, view): &(String, &TensorView)| {
        TensorSpec::new(name, view.dtype, view.shape.clone())
    };
    let specs: Vec<_> = tensors.iter().map(spec).collect();
    let mut file = gguf::create(path, &metadata, &specs).unwrap();
    for (name, view) in &tensors {
        file.write(name, &view.bytes).unwrap();
    }
    file.finish().unwrap();
    Checkpoint::open(path).unwrap_or_else(|e| panic!("{e}"))
}

/// The reference's 12B lets a picture's rows see each other in global layers too, and no other size
/// does; a GGUF file tells it by its 48 layers.
#[test]
fn pictures_see_themselves_in_global_layers_of_12b_alone() {
    let Some(dir) = fixtures() else { return };
    let folder = Folder::new("global");
    let text = Checkpoint::open(&dir.join("gguf/gemma4_12b-q8_0.gguf")).unwrap();
    for (count, ahead) in [(47, false), (48, true)] {
        let copies = global_layers(&text, count, &folder.0.join(format!("{count}.gguf")));
        let mut cpu = Cpu::new(Isa::detect(), Arc::new(Pool::new(2)), Precision::Exact);
        let model = load(&copies, &mut cpu).unwrap_or_else(|e| panic!("{e}")).model;
        let (width, vocab) = (model.info().width, model.info().vocab);
        let mut first_row = |last: f32| {
            let features = [vec![0.5; 3 * width], vec![last; width]].concat();
            let limits = Limits { context: 64, chunk: 512, kv: KvType::F32 };
            let mut session = Session::new(&model.info().kv, limits);
            session.show(vec![Picture::new(1..5, Arc::new(features))]);
            let logits = session.extend(&*model, &mut cpu, &[2, 9, 9, 9, 9, 7], true).unwrap();
            logits[vocab..2 * vocab].to_vec()
        };
        assert_eq!(first_row(1.0) != first_row(-1.0), ahead, "{count} layers");
    }
}
