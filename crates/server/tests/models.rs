//! Several models and adapters in one process: which one answers, and what is in memory.

mod common;

use axum::Router;
use common::{ask, get, good, machine, model_file, no_keys, policy};
use lapidary_engine::{
    Event, Limits, Sampler, Sampling, Session, StopStrings, Stops, Text, Turn, generate,
};
use lapidary_model::{AdapterFactors, Adapters, Slice};
use lapidary_ops::{Cpu, Isa, Pool, Precision};
use lapidary_server::app::{App, Shared, router};
use lapidary_server::model::{AdapterOrigin, Machine, Origin};
use lapidary_server::registry::Registry;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// An adapter made of the name of its folder.
fn open(path: &Path) -> Result<Adapters, Box<dyn std::error::Error + Send + Sync>> {
    let name = path.display().to_string();
    let checkpoint = lapidary_formats::Checkpoint::open(&model_file())?;
    let width = lapidary_model::describe(&checkpoint)?.width;
    let value = |i: usize| ((i * 37 + name.len() * 11) % 23) as f32 / 23.0 - 0.5;
    let values = |count| (0..count).map(value).collect::<Vec<f32>>();
    // Of all shapes of a projection the one that is found: out of the attention, back to the width.
    let o = checkpoint.tensor("blk.0.attn_output.weight")?.shape[1];
    let factors = AdapterFactors { a: values(2 * o), b: values(width * 2), rank: 2 };
    let module = "model.layers.0.self_attn.o_proj".to_owned();
    Ok(Adapters { file: name, modules: BTreeMap::from([(module, factors)]), factor: 0.7 })
}

fn adapter(name: &str) -> AdapterOrigin {
    AdapterOrigin { model: "a".into(), name: name.into(), path: name.into(), open }
}

fn app(models: &[&str], adapters: &[&str], machine: Machine, memory: u64) -> Shared {
    let models = models.iter().map(|m| ((*m).to_owned(), Origin::path(model_file()))).collect();
    let adapters = adapters.iter().map(|a| adapter(a)).collect();
    let registry = Registry::new(models, adapters, machine, memory);
    App::new(registry.unwrap_or_else(|e| panic!("{e}")), no_keys(), policy())
}

async fn text(server: &Router, model: &str) -> String {
    let body = json!({"model": model, "prompt": "Once upon a time, in a forest far away from all the towns, there lived a little", "max_tokens": 12, "temperature": 0});
    let answer = good(server, "/v1/completions", body).await;
    assert_eq!(answer["model"], model);
    format!("{} {}", answer["system_fingerprint"], answer["choices"][0]["text"])
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_of_one_batch_name_adapters_of_their_own() {
    let names = ["a", "a+poet", "a+scribbler", "b"];
    let mut alone = Vec::new();
    for name in names {
        let server = router(app(&["a", "b"], &["poet", "scribbler"], machine(), 2 << 30));
        alone.push(text(&server, name).await);
    }
    assert!(alone[0] != alone[1] && alone[1] != alone[2] && alone[0] != alone[2], "{alone:?}");
    assert_eq!(alone[0], alone[3], "the same weights by another name");
    let server = router(app(&["a", "b"], &["poet", "scribbler"], machine(), 2 << 30));
    for _ in 0..2 {
        let all = (0..12).map(|i| {
            let server = server.clone();
            tokio::spawn(async move { text(&server, names[i % 4]).await })
        });
        for (i, got) in all.collect::<Vec<_>>().into_iter().enumerate() {
            assert_eq!(got.await.unwrap(), alone[i % 4], "{}", names[i % 4]);
        }
    }
    let list = get(&server, "/v1/models").await.json();
    let listed: Vec<_> = list["data"].as_array().unwrap().iter().map(|m| &m["id"]).collect();
    assert_eq!(listed, names);
    let none = ask(&server, "/v1/completions", json!({"model": "b+poet", "prompt": "a"})).await;
    assert_eq!(none.status, 404, "{}", none.text);
    // Chats and vectors are the adapter's too.
    let vector = |model: &str| {
        let (server, body) = (server.clone(), json!({"model": model, "input": "a cat"}));
        async move { good(&server, "/v1/embeddings", body).await["data"][0]["embedding"].clone() }
    };
    assert_ne!(vector("a").await, vector("a+poet").await);
    assert_eq!(vector("a").await, vector("b").await);
}

#[tokio::test]
async fn an_adapter_without_its_model_does_not_start() {
    let models = || vec![("b".to_owned(), Origin::path(model_file()))];
    let error = Registry::new(models(), vec![adapter("poet")], machine(), 1 << 30).err();
    assert!(error.is_some_and(|e| e.to_string().contains("there is no model \"a\"")));
}

fn loaded(app: &Shared) -> Vec<&str> {
    let loaded = app.registry.entries().filter(|e| e.loaded().is_some());
    loaded.map(|e| e.name.as_str()).collect()
}

#[tokio::test]
async fn models_that_nobody_asks_for_are_unloaded_and_come_back() {
    let machine = Machine { idle: Some(Duration::from_secs(2)), ..machine() };
    let app = app(&["a", "b"], &["poet"], machine, 2 << 30);
    let server = router(app.clone());
    let first = text(&server, "a+poet").await;
    text(&server, "b").await;
    assert_eq!(loaded(&app), ["a", "a+poet", "b"]);
    let held = app.registry.get("b").await.unwrap();
    drop(app.registry.get("a").await.unwrap());
    app.registry.unload_idle();
    assert_eq!(loaded(&app), ["a", "a+poet", "b"], "it is too early");
    tokio::time::sleep(Duration::from_millis(2100)).await;
    app.registry.unload_idle();
    assert_eq!(loaded(&app), ["b"], "what is in use stays");
    drop(held);
    app.registry.unload_idle();
    assert_eq!(loaded(&app), [""; 0]);
    assert_eq!(text(&server, "a+poet").await, first);
}

#[tokio::test]
async fn the_longest_unused_makes_room_within_the_plan_and_what_answers_stays() {
    let one = app(&["a"], &[], machine(), 2 << 30);
    let bytes = one.registry.bases().next().unwrap().card.memory();
    let app = app(&["a", "b", "c"], &[], machine(), 2 * bytes + bytes / 2);
    let server = router(app.clone());
    for (model, then) in
        [("a", vec!["a"]), ("b", vec!["a", "b"]), ("c", vec!["b", "c"]), ("a", vec!["a", "c"])]
    {
        // Turns are told apart by milliseconds.
        tokio::time::sleep(Duration::from_millis(5)).await;
        text(&server, model).await;
        assert_eq!(loaded(&app), then, "after {model}");
    }
    let (a, c) = (app.registry.get("a").await.unwrap(), app.registry.get("c").await.unwrap());
    let body = json!({"model": "b", "prompt": "Once", "max_tokens": 1});
    let refused = ask(&server, "/v1/completions", body).await;
    assert_eq!(refused.status, 503, "{}", refused.text);
    assert!(refused.text.contains("are used by models that are answering"), "{}", refused.text);
    assert_eq!(refused.header("retry-after"), "1");
    drop((a, c));
    text(&server, "b").await;
    assert_eq!(loaded(&app).len(), 2);
}

#[test]
fn keys_and_values_get_a_part_of_the_servers_memory_and_no_more_than_is_of_use() {
    let planned = |gib: u64, max_sequences| {
        let app = app(&["a"], &[], Machine { max_sequences, ..machine() }, gib << 30);
        app.registry.bases().next().unwrap().card.kv_bytes
    };
    assert_eq!([planned(1, 4096), planned(16, 4096)], [256 << 20, 2 << 30]);
    let all = planned(16, 64);
    assert!(planned(16, 32) == all / 2 && all < 256 << 20, "{all}");
    assert_eq!(planned(64, 64), all);
}

fn fixture(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let found = [root.join("shared/fixtures/models"), root.join("../shared/fixtures/models")];
    let found = found.into_iter().map(|p| p.join(name)).find(|p| p.is_dir());
    if found.is_none() {
        eprintln!("skipped: ../shared/fixtures is not there");
    }
    found
}

#[tokio::test]
async fn a_slice_is_served_with_its_own_figures_and_answers() {
    let Some(dir) = fixture("gemma3n_text") else { return };
    let slice = Slice { skip: vec![5], ffn: vec![32] };
    let whole = Origin::path(&dir);
    let small = Origin { slice: Some(slice.clone()), ..whole.clone() };
    let machine = || Machine { precision: Precision::Exact, context: None, ..machine() };
    let models = vec![("whole".to_owned(), whole), ("small".to_owned(), small.clone())];
    let registry = Registry::new(models, vec![], machine(), 1 << 30);
    let shared = App::new(registry.unwrap_or_else(|e| panic!("{e}")), no_keys(), policy());
    let card = |name: &str| shared.registry.entry(name).unwrap().card.clone();
    let told = lapidary_formats::Checkpoint::open(&dir)
        .and_then(|c| lapidary_model::describe_slice(&c, &slice))
        .unwrap_or_else(|e| panic!("{e}"));
    let (all, part) = (card("whole"), card("small"));
    assert_eq!((all.layers, part.layers), (7, 6));
    assert_eq!((part.weight_bytes, part.parameters), (told.bytes, told.parameters));
    assert!(part.weight_bytes < all.weight_bytes && part.digest != all.digest);
    // What the plain loop makes of the slice.
    let checkpoint = lapidary_formats::Checkpoint::open(&dir).unwrap();
    let mut cpu = Cpu::new(Isa::detect(), Arc::new(Pool::new(1)), Precision::Exact);
    let loaded = lapidary_model::load_slice(&checkpoint, &mut cpu, &slice).unwrap();
    let ids: Vec<u32> = (0..20).map(|i| 60 + i * 11 % 400).collect();
    let limits = Limits { context: 64, chunk: 64, kv: machine().kv };
    let mut session = Session::new(&loaded.model.info().kv, limits);
    let mut sampler = Sampler::new(Sampling::default()).unwrap();
    let stops = Stops { max_tokens: 12, ..Stops::default() };
    let mut want = Vec::new();
    let mut heard = |event| {
        if let Event::Token(id) = event {
            want.push(id);
        }
        ControlFlow::Continue(())
    };
    generate(&*loaded.model, &mut cpu, &mut session, &ids, &mut sampler, &stops, &mut heard)
        .unwrap_or_else(|e| panic!("{e}"));
    let server = router(shared);
    let body =
        |model: &str| json!({"model": model, "prompt": ids, "max_tokens": 12, "temperature": 0});
    let said = |answer: Value| answer["choices"][0]["text"].as_str().unwrap().to_owned();
    let small_said = said(good(&server, "/v1/completions", body("small")).await);
    let text = Text::open(&checkpoint).unwrap();
    let mut answer = Turn::plain(&text.tokenizer, StopStrings::new([]));
    want.iter().for_each(|id| drop(answer.push(*id)));
    answer.finish();
    assert_eq!(small_said, answer.text());
    assert_ne!(said(good(&server, "/v1/completions", body("whole")).await), small_said);
    // Refused: a family without slices, and adapters of a part.
    let refused = |origin: Origin, adapters: Vec<AdapterOrigin>, words: &str| {
        let models = vec![("a".to_owned(), origin)];
        let error = Registry::new(models, adapters, machine(), 1 << 30).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    };
    let llama = fixture("llama_gqa").unwrap();
    refused(Origin { slice: Some(slice), ..Origin::path(llama) }, vec![], "only Gemma 3n");
    refused(small, vec![adapter("poet")], "takes no adapters");
}

/// The reference's vectors of the texts, by their names.
fn vectors(dir: &Path) -> BTreeMap<String, Vec<f32>> {
    let file = lapidary_formats::safetensors::open(&dir.join("golden.safetensors")).unwrap();
    let values =
        |bytes: &[u8]| bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    let named = |t: &lapidary_formats::TensorView| {
        Some((t.name.strip_suffix(".embedding")?.to_owned(), values(&t.bytes)))
    };
    file.tensors.iter().filter_map(named).collect()
}

fn close(got: &Value, want: &[f32], what: &str) {
    let got: Vec<f32> = serde_json::from_value(got.clone()).unwrap();
    let off = got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max);
    assert!(got.len() == want.len() && off < 2e-4, "{what}: off by {off}");
}

/// A server of the fixture, and the reference's vectors.
fn embedding_model(name: &str) -> Option<(Router, BTreeMap<String, Vec<f32>>)> {
    let dir = fixture(name)?;
    let want = vectors(&dir);
    let machine = Machine { precision: Precision::Exact, context: None, ..machine() };
    let models = vec![("e".to_owned(), Origin::path(dir))];
    let registry = Registry::new(models, vec![], machine, 1 << 30);
    let registry = registry.unwrap_or_else(|e| panic!("{e}"));
    Some((router(App::new(registry, no_keys(), policy())), want))
}

const DOOR: &str = "Nobody in the village remembered who had painted it.";
const ONE: &str = "/v1beta/models/e:embedContent";

#[tokio::test]
async fn embedding_models_give_the_references_vectors_in_every_dialect() {
    for name in ["embeddinggemma", "embeddinggemma2"] {
        let Some((server, want)) = embedding_model(name) else { return };
        let texts = [
            ("text_0", "the kettle", None),
            ("text_1", "who painted the blue door?", Some("RETRIEVAL_QUERY")),
            ("text_2", DOOR, Some("RETRIEVAL_DOCUMENT")),
            ("text_3", "小船 and Żółta łódka", Some("SEMANTIC_SIMILARITY")),
        ];
        let request =
            |text, task| json!({"content": {"parts": [{"text": text}]}, "taskType": task});
        for (key, text, task) in texts {
            let got = good(&server, ONE, request(text, task)).await;
            close(&got["embedding"]["values"], &want[key], &format!("{name} {key}"));
        }
        let all: Vec<Value> = texts.iter().map(|t| request(t.1, t.2)).collect();
        let path = "/v1beta/models/e:batchEmbedContents";
        let got = good(&server, path, json!({"requests": all})).await;
        for (i, (key, ..)) in texts.iter().enumerate() {
            close(&got["embeddings"][i]["values"], &want[*key], key);
        }
        // Plain text is taken as it is; fewer dimensions are the first, of length 1.
        let input = ["the kettle", "task: search result | query: who painted the blue door?"];
        let got = good(&server, "/v1/embeddings", json!({"model": "e", "input": input})).await;
        close(&got["data"][0]["embedding"], &want["text_0"], "openai");
        close(&got["data"][1]["embedding"], &want["text_1"], "openai");
        assert!(got["usage"]["prompt_tokens"].as_u64() > Some(10));
        let short = json!({"model": "e", "input": "the kettle", "dimensions": 16});
        let length = want["text_0"][..16].iter().map(|x| x * x).sum::<f32>().sqrt();
        let shorter: Vec<f32> = want["text_0"][..16].iter().map(|x| x / length).collect();
        let got = good(&server, "/v1/embeddings", short.clone()).await;
        close(&got["data"][0]["embedding"], &shorter, "dimensions");
        close(&good(&server, "/api/embed", short).await["embeddings"][0], &shorter, "ollama");
    }
}

#[tokio::test]
async fn what_an_embedding_model_can_not_do_is_refused() {
    let Some((server, want)) = embedding_model("embeddinggemma") else { return };
    let content = json!({"parts": [{"text": DOOR}]});
    let titled = |task: &str| json!({"content": content, "taskType": task, "title": "The door"});
    let with_title = good(&server, ONE, titled("RETRIEVAL_DOCUMENT")).await;
    assert_ne!(with_title["embedding"]["values"][0].as_f64(), Some(f64::from(want["text_2"][0])));
    for (path, body, field) in [
        ("/v1/embeddings", json!({"model": "e", "input": "a", "dimensions": 9999}), "dimensions"),
        ("/v1/embeddings", json!({"model": "e", "input": "a ".repeat(5000)}), "nothing was cut"),
        ("/v1/embeddings", json!({"model": "e", "input": [99_999_999]}), "vocabulary"),
        (ONE, json!({"content": content, "taskType": "NONSENSE"}), "taskType"),
        (ONE, titled("CLUSTERING"), "title"),
        ("/v1/completions", json!({"model": "e", "prompt": "a"}), "generates no text"),
    ] {
        let got = ask(&server, path, body).await;
        assert!(got.status == 400 && got.text.contains(field), "{path}: {}", got.text);
    }
}
