//! What a server refuses, what it promises, and what malformed requests do to it.

mod common;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use common::{Folder, MODEL, app, app_on, ask, get, machine, no_keys, policy, post, send, server};
use lapidary_server::app::{Policy, router};
use lapidary_server::auth::Keys;
use lapidary_server::model::Machine;
use proptest::prelude::*;
use serde_json::{Value, json};
use std::time::Duration;

fn with_header(path: &str, name: &str, value: &str) -> Request<Body> {
    Request::get(path).header(name, value).body(Body::empty()).unwrap()
}

/// Keys, and what their lines say of them.
fn keys_file(name: &str, keys: &[(&str, &str)]) -> Keys {
    use sha2::{Digest, Sha256};
    let line = |(key, rights): &(&str, &str)| {
        format!("{key} {} {rights}\n", lapidary_server::model::hex(&Sha256::digest(key)))
    };
    let folder = Folder::new(name);
    let path = folder.0.join("keys");
    std::fs::write(&path, keys.iter().map(line).collect::<String>()).unwrap();
    Keys::new(&[], Some(path), None).unwrap()
}

#[tokio::test]
async fn keys_are_asked_for_in_every_dialect_with_its_own_words() {
    let keys = Keys::new(&["a-long-key".into()], None, None).unwrap();
    let server = router(app(policy(), keys));
    for path in ["/v1/models", "/v1beta/models", "/api/tags", "/metrics"] {
        let got = get(&server, path).await;
        assert_eq!(got.status, 401, "{path}");
        assert_eq!(got.header("www-authenticate"), "Bearer");
        assert!(got.json()["error"].is_object() || got.json()["error"].is_string());
        let wrong = send(&server, with_header(path, "authorization", "Bearer another-key")).await;
        assert_eq!(wrong.status, 401);
        let good = send(&server, with_header(path, "authorization", "Bearer a-long-key")).await;
        assert_eq!(good.status, 200, "{path}");
    }
    assert_eq!(
        post(&server, "/v1/messages", "{}").await.json()["error"]["type"],
        "authentication_error"
    );
    assert_eq!(
        send(&server, with_header("/v1beta/models", "x-goog-api-key", "a-long-key")).await.status,
        200
    );
    assert_eq!(get(&server, "/health/live").await.status, 200);
    assert_eq!(get(&server, "/openapi.json").await.status, 200);
}

#[tokio::test]
async fn scopes_and_rates_hold() {
    let keys = keys_file("scopes", &[("embed-only-key", "scopes=embed,read rate=2")]);
    let server = router(app(policy(), keys));
    let ask = async |path: &str| {
        let body = json!({"model": MODEL, "input": "x"}).to_string();
        let request = Request::post(path).header("x-api-key", "embed-only-key");
        send(&server, request.body(body.into()).unwrap()).await
    };
    let got = ask("/v1/responses").await;
    assert_eq!(got.status, 403);
    assert!(got.text.contains("generate"), "{}", got.text);
    assert_eq!(ask("/v1/embeddings").await.status, 200);
    assert_eq!(ask("/v1/embeddings").await.status, 200);
    let third = ask("/v1/embeddings").await;
    assert_eq!(third.status, 429);
    assert!(third.header("retry-after").parse::<u64>().unwrap() <= 31);
}

#[tokio::test]
async fn strange_pages_and_names_are_refused() {
    let server = router(app(Policy::default(), no_keys()));
    let ask = async |server: &Router, host: &str, origin: Option<&str>| {
        let mut request = Request::get("/v1/models").header("host", host);
        if let Some(origin) = origin {
            request = request.header("origin", origin);
        }
        send(server, request.body(Body::empty()).unwrap()).await
    };
    assert_eq!(ask(&server, "localhost:8080", None).await.status, 200);
    assert_eq!(ask(&server, "[::1]:8080", None).await.status, 200);
    assert_eq!(ask(&server, "evil.example:8080", None).await.status, 403);
    assert_eq!(ask(&server, "", None).await.status, 403);
    assert_eq!(ask(&server, "localhost:8080", Some("http://evil.example")).await.status, 403);
    assert_eq!(ask(&server, "localhost:8080", Some("null")).await.status, 403);
    let own = ask(&server, "localhost:8080", Some("http://localhost:8080")).await;
    assert_eq!(own.status, 200);
    let origins = vec!["https://good.example".to_owned()];
    let server = router(app(Policy { origins, ..Policy::default() }, no_keys()));
    let good = ask(&server, "localhost", Some("https://good.example")).await;
    assert_eq!(good.header("access-control-allow-origin"), "https://good.example");
    let preflight = Request::options("/v1/chat/completions").header("host", "localhost");
    let preflight = preflight.header("access-control-request-headers", "authorization");
    let preflight = preflight.header("origin", "https://good.example");
    let got = send(&server, preflight.body(Body::empty()).unwrap()).await;
    assert_eq!((got.status, got.header("access-control-allow-headers")), (204, "authorization"));
}

#[tokio::test]
async fn limits_hold() {
    let small = Policy { body: 200, body_time: Duration::from_millis(50), ..policy() };
    let server = router(app(small, no_keys()));
    let got = post(&server, "/v1/messages", "x".repeat(201)).await;
    assert_eq!(got.status, 413);
    assert_eq!(got.json()["error"]["type"], "request_too_large");
    // A stream that does not say how long it is.
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let slow = Request::post("/api/chat").body(Body::from_stream(Pieces(receiver))).unwrap();
    let (got, ()) = tokio::join!(send(&server, slow), async {
        sender.send(axum::body::Bytes::from("{")).await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
        drop(sender);
    });
    assert_eq!(got.status, 408, "{}", got.text);
    let (sender, receiver) = tokio::sync::mpsc::channel(9);
    for _ in 0..9 {
        sender.send(axum::body::Bytes::from("x".repeat(50))).await.unwrap();
    }
    drop(sender);
    let long = Request::post("/api/chat").body(Body::from_stream(Pieces(receiver))).unwrap();
    assert_eq!(send(&server, long).await.status, 413);

    let hasty = Policy { timeout: Duration::from_millis(1), ..policy() };
    let server = router(app(hasty, no_keys()));
    let body = json!({"model": MODEL, "prompt": "Once", "max_tokens": 500});
    let got = ask(&server, "/v1/completions", body).await;
    assert_eq!(got.status, 504, "{}", got.text);
}

struct Pieces(tokio::sync::mpsc::Receiver<axum::body::Bytes>);

impl futures_core::Stream for Pieces {
    type Item = Result<axum::body::Bytes, std::convert::Infallible>;

    fn poll_next(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|b| b.map(Ok))
    }
}

#[tokio::test]
async fn the_lenient_answer_and_say_what_they_ignored() {
    let server = router(app(Policy { lenient: true, ..policy() }, no_keys()));
    let body =
        json!({"model": MODEL, "prompt": "Once", "max_tokens": 2, "suffix": "x", "odd\nname": 1});
    let got = ask(&server, "/v1/completions", body).await;
    assert_eq!(got.status, 200, "{}", got.text);
    assert_eq!(got.header("x-lapidary-ignored"), "suffix, oddname");
}

/// Answers, without what differs between any two: ids and times.
fn timeless(mut value: Value) -> Value {
    for key in ["id", "created"] {
        value.as_object_mut().unwrap().remove(key);
    }
    // What was in the cache depends on what came before.
    value["usage"]["prompt_tokens_details"] = Value::Null;
    value
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_request_alone_and_among_others_gives_the_same_bytes() {
    let server = server();
    let words = ["cat", "dog", "sun", "tree"];
    let body = |i: usize| {
        json!({"model": MODEL, "temperature": 0.9, "seed": i, "max_completion_tokens": 10 + i,
            "logprobs": true, "top_logprobs": 2,
            "messages": [{"role": "user", "content": format!("Tell of the {} {}", words[i % 4], "very ".repeat(i * 3))}]})
    };
    let mut alone = Vec::new();
    for i in 0..33 {
        let got = ask(&server, "/v1/chat/completions", body(i)).await;
        assert_eq!(got.status, 200, "{}", got.text);
        alone.push(timeless(got.json()).to_string());
    }
    // The second time each finds its beginning in the cache.
    let mut tasks = tokio::task::JoinSet::new();
    for i in 0..33 {
        let (server, body) = (server.clone(), body(i));
        tasks.spawn(async move { (i, ask(&server, "/v1/chat/completions", body).await.json()) });
    }
    let mut found = 0;
    while let Some(done) = tasks.join_next().await {
        let (i, value) = done.unwrap();
        let cached = &value["usage"]["prompt_tokens_details"]["cached_tokens"];
        found += usize::from(cached.as_u64().is_some_and(|n| n > 0));
        assert_eq!(timeless(value).to_string(), alone[i], "request {i}");
    }
    assert!(found > 20, "{found} prefixes were found");
}

/// A completion for the owner of a key.
async fn complete(server: Router, key: &str, tokens: usize) -> Value {
    let body = json!({"model": MODEL, "prompt": "Once", "seed": 5, "max_tokens": tokens,
        "temperature": 1, "logit_bias": {"1": -100}, "logprobs": 1});
    let request = Request::post("/v1/completions").header("x-api-key", key);
    let got = send(&server, request.body(body.to_string().into()).unwrap()).await;
    assert_eq!(got.status, 200, "{}", got.text);
    timeless(got.json())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_of_higher_priority_goes_first_and_who_made_way_gets_the_same_bytes() {
    let keys = keys_file("priority", &[("the-low-key", ""), ("the-high-key", "priority=1")]);
    let app = app_on(Machine { max_sequences: 1, ..machine() }, policy(), keys);
    let server = router(app.clone());
    let alone = complete(server.clone(), "the-low-key", 400).await;
    let model = app.registry.get(MODEL).await.unwrap();
    let stats = || model.engine().unwrap().stats();
    let before = stats();
    let low = tokio::spawn(complete(server.clone(), "the-low-key", 400));
    while stats().decode_tokens < before.decode_tokens + 3 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    complete(server.clone(), "the-high-key", 4).await;
    // There is one place, and it was given up.
    assert_eq!(stats().preemptions, 1);
    assert_eq!(low.await.unwrap(), alone);
}

#[tokio::test]
async fn a_client_that_goes_away_frees_the_engine() {
    let app = app(policy(), no_keys());
    let server = router(app.clone());
    let model = app.registry.get(MODEL).await.unwrap();
    let stats = || model.engine().unwrap().stats();
    let body = json!({"model": MODEL, "prompt": "Once", "max_tokens": 500, "stream": true,
        "logit_bias": {"1": -100}, "temperature": 1, "n": 4});
    for stream in [true, false] {
        let before = stats();
        let mut body = body.clone();
        body["stream"] = stream.into();
        let request = Request::post("/v1/completions").body(Body::from(body.to_string())).unwrap();
        let answer = tower::ServiceExt::oneshot(server.clone(), request);
        if stream {
            // The head comes; the body is dropped unread.
            drop(answer.await.unwrap());
        } else {
            assert!(tokio::time::timeout(Duration::from_millis(30), answer).await.is_err());
        }
        for wait in 0.. {
            let now = stats();
            if now.finished == before.finished + 4 && now.running == 0 {
                assert!(now.cancelled > before.cancelled, "{now:?}");
                break;
            }
            assert!(wait < 300, "{now:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

const PATHS: [&str; 14] = [
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/embeddings",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1beta/models/tiny:generateContent",
    "/v1beta/models/tiny:countTokens",
    "/v1beta/models/tiny:batchEmbedContents",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/show",
    "/detokenize",
];

/// JSON with the names that requests have, and values that they should not.
fn body() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop_oneof![Just(1e39), Just(-1.0), Just(0.0), Just(0.5)].prop_map(Value::from),
        "[a-z<>\\PC]{0,12}".prop_map(Value::from),
        prop_oneof![Just("tiny"), Just("user"), Just("model"), Just("text")].prop_map(Value::from),
    ];
    let names = prop::sample::select(vec![
        "model",
        "messages",
        "prompt",
        "input",
        "contents",
        "content",
        "role",
        "parts",
        "text",
        "type",
        "options",
        "stream",
        "stop",
        "temperature",
        "top_p",
        "top_k",
        "seed",
        "n",
        "logprobs",
        "ids",
        "requests",
        "generationConfig",
        "max_tokens",
        "num_predict",
        "logit_bias",
        "system",
        "x",
    ]);
    leaf.prop_recursive(4, 24, 5, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(names.clone().prop_map(str::to_owned), inner, 0..6)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

/// A body that is nearly right: what is generated stands in for one of its fields.
fn nearly(path: &str, field: usize, odd: Value) -> Value {
    let mut good = json!({
        "model": MODEL, "max_tokens": 1, "messages": [{"role": "user", "content": "a"}],
        "prompt": "a", "input": "a", "contents": [{"parts": [{"text": "a"}]}],
        "options": {"num_predict": 1}, "generationConfig": {"maxOutputTokens": 1},
        "content": {"parts": [{"text": "a"}]}, "ids": [1], "max_output_tokens": 1,
        "requests": [{"content": {"parts": [{"text": "a"}]}}], "text": "a",
    });
    let wanted: &[&str] = match path {
        "/v1/chat/completions" => &["model", "messages", "max_tokens"],
        "/v1/completions" => &["model", "prompt", "max_tokens"],
        "/v1/responses" => &["model", "input", "max_output_tokens"],
        "/v1/messages" => &["model", "messages", "max_tokens"],
        "/v1/messages/count_tokens" => &["model", "messages"],
        "/v1beta/models/tiny:generateContent" => &["contents", "generationConfig"],
        "/v1beta/models/tiny:countTokens" => &["contents"],
        "/v1beta/models/tiny:batchEmbedContents" => &["requests"],
        "/api/chat" => &["model", "messages", "options"],
        "/api/generate" => &["model", "prompt", "options"],
        "/api/show" => &["model"],
        "/detokenize" => &["model", "ids"],
        _ => &["model", "input"],
    };
    good.as_object_mut().unwrap().retain(|k, _| wanted.contains(&k.as_str()));
    good[wanted[field % wanted.len()]] = odd;
    good
}

#[test]
fn malformed_requests_are_the_clients_fault() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    // Whatever passes must not run for long.
    let app = runtime.block_on(async { app(policy(), no_keys()) });
    let server = router(app);
    let config =
        ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(path in 0..PATHS.len(), odd in body(), field in 0usize..3, cut in 0usize..400, how in 0..3)| {
        let path = PATHS[path];
        let text = match how {
            0 => odd.to_string(),
            1 => nearly(path, field, odd).to_string(),
            _ => {
                let text = nearly(path, field, odd).to_string();
                let cut = text.char_indices().map(|c| c.0).take(cut).last().unwrap_or(0);
                text[..cut].to_owned()
            }
        };
        let got = runtime.block_on(post(&server, path, text.clone()));
        prop_assert!(got.status < 500, "{path} {text}: {}", got.text);
        if got.status != 200 {
            let error: Value = serde_json::from_str(&got.text).unwrap();
            prop_assert!(!error["error"].is_null(), "{}", got.text);
        }
    });
}
