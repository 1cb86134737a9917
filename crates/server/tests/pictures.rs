//! Pictures in every dialect: the answers are those of `lapidary run --image`.

mod common;
#[path = "../../engine/tests/shared/projector.rs"]
mod projector;

use axum::http::Request;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use common::{Got, ask, get, good, no_keys, policy, send};
use lapidary_engine::{
    Gallery, Limits, Sampler, Sampling, Session, StopStrings, Stops, Text, Turn, generate,
    read_picture,
};
use lapidary_formats::Checkpoint;
use lapidary_formats::chat::Message;
use lapidary_ops::{Cpu, KvType, Pool, Precision};
use lapidary_server::app::{App, Shared, router};
use lapidary_server::model::{Machine, Origin};
use lapidary_server::registry::Registry;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Fixtures whose templates know pictures.
const SEEING: [&str; 3] = ["gemma3", "gemma4_e2b", "paligemma"];
const QUESTION: &str = "What is in this picture, and what is not?";
const TOKENS: usize = 20;

fn fixture(name: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let found = [root.join("shared/fixtures"), root.join("../shared/fixtures")];
    let found = found.into_iter().find(|p| p.is_dir()).map(|p| p.join("models").join(name));
    if found.is_none() {
        eprintln!("skipped: ../shared/fixtures is not there");
    }
    found
}

/// A fixture whose tokenizer knows the token for pictures: PaliGemma's was made for ids alone.
fn seeing(name: &str, folder: &common::Folder) -> Option<PathBuf> {
    let dir = fixture(name)?;
    if name != "paligemma" {
        return Some(dir);
    }
    for file in std::fs::read_dir(&dir).unwrap() {
        let path = file.unwrap().path();
        std::fs::copy(&path, folder.0.join(path.file_name().unwrap())).unwrap();
    }
    let path = folder.0.join("tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let token = json!({"id": 512, "content": "<image>", "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true});
    tokenizer["added_tokens"].as_array_mut().unwrap().push(token);
    std::fs::write(&path, tokenizer.to_string()).unwrap();
    Some(folder.0.clone())
}

fn machine() -> Machine {
    Machine { precision: Precision::Exact, kv: KvType::F32, chunk: 16, ..common::machine() }
}

fn app(dir: &Path) -> Shared {
    served(Origin::path(dir))
}

fn served(origin: Origin) -> Shared {
    let models = vec![("eyes".to_owned(), origin)];
    let registry = Registry::new(models, vec![], machine(), 1 << 30);
    App::new(registry.unwrap_or_else(|e| panic!("{e}")), no_keys(), policy())
}

fn file(dir: &Path) -> Vec<u8> {
    std::fs::read(dir.join("image.png")).unwrap()
}

/// What the plain loop, which `lapidary run` uses, answers to a turn of parts.
fn alone(dir: &Path, picture: &str, parts: Value) -> String {
    alone_with(dir, None, picture, parts)
}

/// The same, of a GGUF model that sees with a projector.
fn alone_with(model: &Path, projector: Option<&Path>, picture: &str, parts: Value) -> String {
    let checkpoint = Checkpoint::open(model).unwrap_or_else(|e| panic!("{e}"));
    let m = machine();
    let mut cpu = Cpu::new(m.isa, Arc::new(Pool::new(2)), m.precision);
    let model = lapidary_model::load(&checkpoint, &mut cpu).unwrap_or_else(|e| panic!("{e}")).model;
    let text = Text::open(&checkpoint).unwrap_or_else(|e| panic!("{e}"));
    let gallery = match projector {
        Some(path) => Checkpoint::open(path)
            .and_then(|p| Gallery::with_projector(&checkpoint, &p, &mut cpu).map(Some)),
        None => Gallery::open(&checkpoint, &mut cpu),
    };
    let gallery = gallery.unwrap_or_else(|e| panic!("{e}")).unwrap();
    let seen = [gallery.encode(&mut cpu, &read_picture(picture).unwrap_or_else(|e| panic!("{e}")))];
    let message = Message { content: parts, ..Message::new("user", "") };
    let rendered = text.render(&[message], true, 0).unwrap_or_else(|e| panic!("{e}"));
    let rendered = gallery.hang(&rendered, &seen, &text.tokenizer).unwrap();
    let ids = text.encode_rendered(&rendered);
    let limits = Limits { context: model.info().context.min(512), chunk: 512, kv: m.kv };
    let mut session = Session::new(&model.info().kv, limits);
    session.show(gallery.places(&ids, &seen).unwrap());
    let mut sampler = Sampler::new(Sampling::default()).unwrap();
    let stops = Stops { max_tokens: TOKENS, ids: text.stops.clone(), ..Stops::default() };
    let mut answer = Turn::new(&text.tokenizer, StopStrings::new([]));
    let done =
        generate(&*model, &mut cpu, &mut session, &ids, &mut sampler, &stops, &mut |event| {
            if let lapidary_engine::Event::Token(id) = event {
                answer.push(id);
            }
            ControlFlow::Continue(())
        });
    done.unwrap_or_else(|e| panic!("{e}"));
    answer.finish();
    answer.text().to_owned()
}

fn shown_first() -> Value {
    json!([{"type": "image"}, {"type": "text", "text": QUESTION}])
}

/// A request about a picture in each dialect, and where its answer is.
fn dialects(png: &[u8]) -> [(&'static str, Value, &'static str); 7] {
    let data = STANDARD.encode(png);
    let url = format!("data:image/png;base64,{data}");
    [
        (
            "/v1/chat/completions",
            json!({"model": "eyes", "temperature": 0, "max_tokens": TOKENS, "messages": [
                {"role": "user", "content": [
                    {"type": "image_url", "image_url": {"url": url, "detail": "high"}},
                    {"type": "text", "text": QUESTION}]}]}),
            "/choices/0/message/content",
        ),
        (
            "/v1/responses",
            json!({"model": "eyes", "temperature": 0, "max_output_tokens": TOKENS, "input": [
                {"role": "user", "content": [
                    {"type": "input_image", "image_url": url, "detail": "auto"},
                    {"type": "input_text", "text": QUESTION}]}]}),
            "/output/0/content/0/text",
        ),
        (
            "/v1beta/models/eyes:generateContent",
            json!({"generationConfig": {"temperature": 0, "maxOutputTokens": TOKENS},
                "contents": [{"role": "user", "parts": [
                    {"inlineData": {"mimeType": "image/png", "data": URL_SAFE_NO_PAD.encode(png)}},
                    {"text": QUESTION}]}]}),
            "/candidates/0/content/parts/0/text",
        ),
        (
            "/v1beta/models/eyes:generateContent",
            json!({"generation_config": {"temperature": 0, "max_output_tokens": TOKENS},
                "contents": [{"parts": [
                    {"inline_data": {"mime_type": "image/png", "data": data}}, {"text": QUESTION}]}]}),
            "/candidates/0/content/parts/0/text",
        ),
        (
            "/v1/messages",
            json!({"model": "eyes", "temperature": 0, "max_tokens": TOKENS, "messages": [
                {"role": "user", "content": [
                    {"type": "image", "source":
                        {"type": "base64", "media_type": "image/png", "data": data}},
                    {"type": "text", "text": QUESTION, "cache_control": {"type": "ephemeral"}}]}]}),
            "/content/0/text",
        ),
        (
            "/api/chat",
            json!({"model": "eyes", "stream": false,
                "options": {"temperature": 0, "num_predict": TOKENS},
                "messages": [{"role": "user", "content": QUESTION, "images": [data]}]}),
            "/message/content",
        ),
        (
            "/api/generate",
            json!({"model": "eyes", "stream": false, "prompt": QUESTION, "images": [data],
                "options": {"temperature": 0, "num_predict": TOKENS}}),
            "/response",
        ),
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_dialect_answers_as_the_plain_loop_does() {
    let folder = common::Folder::new("server-pictures");
    for name in SEEING {
        let Some(dir) = seeing(name, &folder) else { return };
        let path = dir.join("image.png").display().to_string();
        let want = alone(&dir, &path, shown_first());
        assert!(want.len() > 10, "{want:?}");
        let server = router(app(&dir));
        let asked = dialects(&file(&dir)).map(|(path, body, at)| {
            let server = server.clone();
            // At once: the same picture, seen once.
            tokio::spawn(async move { (path, at, good(&server, path, body).await) })
        });
        for asked in asked {
            let (path, at, got) = asked.await.unwrap();
            let text = got.pointer(at).and_then(Value::as_str).unwrap_or_default();
            assert_eq!(text, want, "{name} {path}: {got}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gguf_models_see_with_their_projectors_in_every_dialect() {
    let Some(models) = fixture("") else { return };
    let folder = common::Folder::new("server-mmproj");
    for (name, kind, text) in
        [("gemma3", "gemma3", "gemma3_text"), ("gemma4_e2b", "gemma4v", "gemma4_e2b")]
    {
        let dir = models.join(name);
        let path = dir.join("image.png").display().to_string();
        let projector = folder.0.join(format!("mmproj-{name}.gguf"));
        projector::write_projector(&Checkpoint::open(&dir).unwrap(), kind, &projector);
        let gguf = models.join(format!("../gguf/{text}-q8_0.gguf"));
        let want = alone_with(&gguf, Some(&projector), &path, shown_first());
        assert!(want.len() > 10, "{want:?}");
        let origin = Origin { projector: Some(projector.clone()), ..Origin::path(&gguf) };
        let shared = served(origin);
        let server = router(shared.clone());
        for (path, body, at) in dialects(&file(&dir)) {
            let got = good(&server, path, body).await;
            let said = got.pointer(at).and_then(Value::as_str).unwrap_or_default();
            assert_eq!(said, want, "{name} {path}: {got}");
        }
        let list = get(&server, "/v1/models").await.json();
        assert_eq!(list["data"][0]["vision"], true);
        // The plan knows of the tower, and so does what names the weights.
        let card = |shared: &Shared| shared.registry.bases().next().unwrap().card.clone();
        let (with, without) = (card(&shared), card(&served(Origin::path(&gguf))));
        let tower = Checkpoint::open(&projector).unwrap();
        assert_eq!(with.weight_bytes, without.weight_bytes + tower.tensor_bytes());
        assert_eq!(with.parameters, without.parameters + tower.elements());
        assert!(with.digest != without.digest && with.sees() && !without.sees());
        assert!(with.memory() > without.memory() + tower.tensor_bytes());
        let most = if name == "gemma3" { 9 } else { 280 };
        assert_eq!((with.picture_rows, without.picture_rows), (most, 0));
    }
    // What does not belong together does not start.
    let refused = |model: PathBuf, projector: &str, words: &str| {
        let projector = Some(folder.0.join(projector));
        let models = vec![("m".to_owned(), Origin { projector, ..Origin::path(model) })];
        let error = Registry::new(models, vec![], machine(), 1 << 30).err().unwrap().to_string();
        assert!(error.contains(words), "{error}");
    };
    let gguf = |name: &str| models.join(format!("../gguf/{name}-q8_0.gguf"));
    refused(gguf("gemma4_e2b"), "mmproj-gemma3.gguf", "is for gemma3");
    refused(gguf("gemma4_26b_a4b"), "mmproj-gemma4_e2b.gguf", "mm.input_projection.weight");
    refused(models.join("gemma3"), "mmproj-gemma3.gguf", "has its own vision tower");
    refused(gguf("gemma4_e2b"), "mmproj-none.gguf", "mmproj-none.gguf");
}

/// Another picture of the same size: the colours of the first one turned around.
fn other(dir: &Path) -> String {
    let rgb = read_picture(&dir.join("image.png").display().to_string()).unwrap();
    let turned: Vec<u8> = rgb.data.iter().map(|b| !b).collect();
    let png = encode_png(&turned, rgb.width);
    format!("data:image/png;base64,{}", STANDARD.encode(png))
}

/// The checksum of PNG's chunks.
fn crc(bytes: &[u8]) -> [u8; 4] {
    let crc = bytes.iter().fold(!0, |crc: u32, byte| {
        let step = |c: u32, _| (c >> 1) ^ (0xedb8_8320 & (c & 1).wrapping_neg());
        (0..8).fold(crc ^ u32::from(*byte), step)
    });
    (!crc).to_be_bytes()
}

fn encode_png(rgb: &[u8], width: usize) -> Vec<u8> {
    let rows = rgb.chunks(3 * width);
    let (w, h) = (width as u32, rows.len() as u32);
    let raw: Vec<u8> = rows.flat_map(|row| [&[0], row].concat()).collect();
    let head = [&w.to_be_bytes()[..], &h.to_be_bytes(), &[8, 2, 0, 0, 0]].concat();
    let data = miniz_oxide::deflate::compress_to_vec_zlib(&raw, 6);
    let mut out = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", head), (b"IDAT", data), (b"IEND", vec![])] {
        let body = [&kind[..], &data].concat();
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(&body);
        out.extend(crc(&body));
    }
    out
}

fn chat(urls: &[&str], text: &str) -> Value {
    let image = |url: &&str| json!({"type": "image_url", "image_url": {"url": url}});
    let mut parts: Vec<Value> = urls.iter().map(image).collect();
    parts.push(json!({"type": "text", "text": text}));
    json!({"model": "eyes", "temperature": 0, "max_tokens": TOKENS,
        "messages": [{"role": "user", "content": parts}]})
}

#[tokio::test]
async fn the_same_text_with_another_picture_shares_nothing_and_the_same_picture_does() {
    let Some(dir) = fixture("gemma3") else { return };
    let server = router(app(&dir));
    let one = format!("data:image/png;base64,{}", STANDARD.encode(file(&dir)));
    let two = other(&dir);
    let text = QUESTION.repeat(6);
    let ask = async |urls: &[&str]| -> (String, u64) {
        let got = good(&server, "/v1/chat/completions", chat(urls, &text)).await;
        let cached = &got["usage"]["prompt_tokens_details"]["cached_tokens"];
        (got["choices"][0]["message"]["content"].to_string(), cached.as_u64().unwrap())
    };
    let first = ask(&[&one]).await;
    assert_eq!(first.1, 0);
    let second = ask(&[&two]).await;
    assert_eq!(second.1, 0, "another picture stands in the first block");
    assert_ne!(first.0, second.0);
    let again = ask(&[&one]).await;
    assert!(again.1 > 64 && again.0 == first.0, "{again:?} {first:?}");
    let again = ask(&[&two]).await;
    assert!(again.1 > 64 && again.0 == second.0, "{again:?} {second:?}");
    // Both, in either order.
    let (both, turned) = (ask(&[&one, &two]).await, ask(&[&two, &one]).await);
    assert!(both.1 <= 32 && turned.1 <= 32 && both.0 != turned.0, "{both:?} {turned:?}");
}

#[tokio::test]
async fn a_picture_in_the_middle_of_a_turn_stays_there_and_stored_ones_come_back() {
    let Some(dir) = fixture("gemma4_e2b") else { return };
    let server = router(app(&dir));
    let path = dir.join("image.png").display().to_string();
    let url = format!("data:image/png;base64,{}", STANDARD.encode(file(&dir)));
    let parts = json!([{"type": "text", "text": "Before"}, {"type": "image"},
        {"type": "text", "text": "behind it"}]);
    let want = alone(&dir, &path, parts);
    let body = json!({"model": "eyes", "temperature": 0, "max_output_tokens": TOKENS, "input": [
        {"role": "user", "content": [
            {"type": "input_text", "text": "Before"}, {"type": "input_image", "image_url": url},
            {"type": "input_text", "text": "be"}, {"type": "input_text", "text": "hind it"}]}]});
    let first = good(&server, "/v1/responses", body).await;
    assert_eq!(first["output"][0]["content"][0]["text"], want);
    let id = first["id"].as_str().unwrap();
    let items = get(&server, &format!("/v1/responses/{id}/input_items")).await.json();
    let shown = json!([{"type": "input_text", "text": "Before"},
        {"type": "input_image", "detail": "auto", "image_url": url},
        {"type": "input_text", "text": "behind it"}]);
    assert_eq!(items["data"][0]["content"], shown);
    // What follows sees it still: the prompt has its rows.
    let next = json!({"model": "eyes", "temperature": 0, "max_output_tokens": 4,
        "previous_response_id": id, "input": "And now?"});
    let next = good(&server, "/v1/responses", next).await;
    let tokens = |r: &Value| r["usage"]["input_tokens"].as_u64().unwrap();
    assert!(tokens(&next) > tokens(&first) + TOKENS as u64, "{next}");
}

#[tokio::test]
async fn a_model_that_answers_one_question_refuses_turns_and_shares_nothing() {
    let folder = common::Folder::new("server-one-question");
    let Some(dir) = seeing("paligemma", &folder) else { return };
    let server = router(app(&dir));
    let url = format!("data:image/png;base64,{}", STANDARD.encode(file(&dir)));
    let body = chat(&[&url], QUESTION);
    let first = good(&server, "/v1/chat/completions", body.clone()).await;
    let again = good(&server, "/v1/chat/completions", body.clone()).await;
    assert_eq!(again["usage"]["prompt_tokens_details"]["cached_tokens"], 0);
    assert_eq!(again["choices"][0]["message"], first["choices"][0]["message"]);
    let question = &body["messages"][0];
    for (turns, words) in [
        (json!([question, {"role": "assistant", "content": "A "}]), "can't be gone on with"),
        (
            json!([{"role": "system", "content": "Be brief."}, question]),
            "neither turns nor a system",
        ),
        (
            json!([question, {"role": "assistant", "content": "A"}, {"role": "user", "content": "b"}]),
            "neither turns nor a system",
        ),
    ] {
        let mut more = body.clone();
        more["messages"] = turns;
        let said = refused("/v1/x", &ask(&server, "/v1/chat/completions", more).await);
        assert!(said.contains(words), "{said}");
    }
}

#[tokio::test]
async fn tokens_are_counted_with_those_of_pictures() {
    let Some(dir) = fixture("gemma3") else { return };
    let server = router(app(&dir));
    let asked = dialects(&file(&dir));
    let prompt =
        good(&server, asked[0].0, asked[0].1.clone()).await["usage"]["prompt_tokens"].clone();
    let mut body = asked[4].1.clone();
    for field in ["temperature", "max_tokens"] {
        body.as_object_mut().unwrap().remove(field);
    }
    let counted = good(&server, "/v1/messages/count_tokens", body).await;
    assert_eq!(counted["input_tokens"], prompt);
    let body = json!({"contents": asked[2].1["contents"]});
    let counted = good(&server, "/v1beta/models/eyes:countTokens", body).await;
    assert_eq!(counted["totalTokens"], prompt);
    let seen = json!({"modality": "IMAGE", "tokenCount": 9});
    assert_eq!(counted["promptTokensDetails"][1], seen);
    let list = get(&server, "/v1/models").await.json();
    assert_eq!(list["data"][0]["vision"], true);
    let shown = good(&server, "/api/show", json!({"model": "eyes"})).await;
    assert_eq!(shown["capabilities"], json!(["completion", "vision", "embedding"]));
}

/// Refused with the words of the dialect; what it says.
fn refused(path: &str, got: &Got) -> String {
    assert_eq!(got.status, 400, "{path}: {}", got.text);
    let error = got.json()["error"].clone();
    let message = if path.starts_with("/api") { &error } else { &error["message"] };
    match path {
        p if p.starts_with("/v1beta") => assert_eq!(error["status"], "INVALID_ARGUMENT"),
        "/v1/messages" => assert_eq!(error["type"], "invalid_request_error"),
        p if p.starts_with("/v1/") => assert_eq!(error["type"], "invalid_request_error"),
        _ => {}
    }
    message.as_str().unwrap_or_else(|| panic!("{path}: {}", got.text)).to_owned()
}

/// Every string of a request that is the picture, changed.
fn change(value: &mut Value, from: &str, to: &str) {
    match value {
        Value::String(s) => {
            *s = s.replace(from, to).replace(&from.replace('+', "-").replace('/', "_"), to);
        }
        Value::Array(a) => a.iter_mut().for_each(|v| change(v, from, to)),
        Value::Object(o) => o.values_mut().for_each(|v| change(v, from, to)),
        _ => {}
    }
}

#[tokio::test]
async fn what_is_no_picture_is_refused_by_name_in_every_dialect() {
    let Some(dir) = fixture("gemma3") else { return };
    let server = router(app(&dir));
    let png = file(&dir);
    let mut huge = png.clone();
    huge[16..24].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    let sum = crc(&huge[12..29]);
    huge[29..33].copy_from_slice(&sum);
    let bad = [
        ("&&&&".to_owned(), "is not base64"),
        (STANDARD.encode("GIF89a is no longer read"), "no picture that can be read"),
        (STANDARD.encode(&png[..png.len() / 2]), "no picture that can be read"),
        (STANDARD.encode(huge), "65536 x 65536 pixels"),
        (String::new(), "no picture that can be read"),
    ];
    for (data, what) in bad {
        for (path, mut body, _) in dialects(&png) {
            let plain = STANDARD.encode(&png);
            change(&mut body, &plain, &data);
            change(&mut body, plain.trim_end_matches('='), &data);
            let said = refused(path, &ask(&server, path, body).await);
            let field = ["url", "data", "images[0]"].iter().any(|f| said.contains(f));
            assert!(said.contains(what) && field, "{path}: {said}");
        }
    }
    for (path, mut body, _) in dialects(&png).into_iter().take(5) {
        change(&mut body, "image/png", "application/pdf");
        let said = refused(path, &ask(&server, path, body).await);
        assert!(said.contains("\"application/pdf\" is not image/png"), "{path}: {said}");
    }
    for url in ["https://example.org/a.png", "http://169.254.169.254/", "file:///etc/passwd"] {
        let said = refused("/v1/x", &ask(&server, "/v1/chat/completions", chat(&[url], "x")).await);
        let want = if url.starts_with("http") { "not fetched" } else { "a data URL was expected" };
        assert!(said.starts_with("messages[0].content[0].image_url.url: ") && said.contains(want));
    }
    let url = format!("data:image/png;base64,{}", STANDARD.encode(&png));
    let many = vec![&url[..]; 33];
    let said = refused("/v1/x", &ask(&server, "/v1/chat/completions", chat(&many, "x")).await);
    assert!(said.contains("at most 32 pictures"), "{said}");
    let mut body = chat(&[&url], "x");
    body["messages"][0]["role"] = "assistant".into();
    let said = refused("/v1/x", &ask(&server, "/v1/chat/completions", body).await);
    assert!(said.contains("only users show pictures"), "{said}");
    let body = json!({"model": "eyes", "prompt": "x", "raw": true, "images": ["Zg=="]});
    assert!(refused("/api", &ask(&server, "/api/generate", body).await).contains("no place"));
    // A part that says one thing and holds another is not guessed at.
    let mut body = chat(&[&url], "x");
    body["messages"][0]["content"][0]["text"] = "y".into();
    assert_eq!(ask(&server, "/v1/chat/completions", body).await.status, 400);
}

#[tokio::test]
async fn a_model_without_eyes_says_so() {
    let png = encode_png(&[9; 48], 4);
    let server = common::server();
    for (path, mut body, _) in dialects(&png) {
        if body["model"] == "eyes" {
            body["model"] = common::MODEL.into();
        }
        let path = path.replace("eyes", common::MODEL);
        let said = refused(&path, &ask(&server, &path, body).await);
        assert!(said.contains("tiny reads text alone"), "{path}: {said}");
    }
    let list = get(&server, "/v1/models").await.json();
    assert_eq!(list["data"][0]["vision"], false);
}

#[tokio::test]
async fn bodies_with_pictures_have_a_limit_and_it_is_named() {
    let server = common::server();
    let (path, body, _) = dialects(&vec![0; 13 << 20]).into_iter().next().unwrap();
    let request = Request::post(path).body(body.to_string().into()).unwrap();
    let got = send(&server, request).await;
    assert_eq!(got.status, 413, "{}", got.text);
    assert!(got.text.contains("--max-body"), "{}", got.text);
}
