//! The endpoints of Gemini, Anthropic, Ollama, and our own, on the default model.

mod common;

use common::{MODEL, ask, get, good, post, server};
use serde_json::{Value, json};

const GENERATE: &str = "/v1beta/models/tiny:generateContent";
const STREAM: &str = "/v1beta/models/tiny:streamGenerateContent";

fn gemini() -> Value {
    json!({"contents": [{"role": "user", "parts": [{"text": "Once upon a time"}]}],
        "generationConfig": {"maxOutputTokens": 6, "temperature": 0, "topK": 40.0}})
}

fn candidate(answer: &Value) -> &str {
    answer["candidates"][0]["content"]["parts"][0]["text"].as_str().unwrap()
}

#[tokio::test]
async fn gemini_answers_whole_as_events_and_as_an_array() {
    let server = server();
    let whole = good(&server, GENERATE, gemini()).await;
    assert_eq!(whole["candidates"][0]["finishReason"], "MAX_TOKENS");
    assert_eq!(whole["usageMetadata"]["candidatesTokenCount"], 6);
    let text = candidate(&whole).to_owned();

    let events = ask(&server, &format!("{STREAM}?alt=sse"), gemini()).await.events();
    assert_eq!(events.iter().map(candidate).collect::<String>(), text);
    assert_eq!(events[events.len() - 1]["candidates"][0]["finishReason"], "MAX_TOKENS");
    assert_eq!(events[events.len() - 1]["usageMetadata"], whole["usageMetadata"]);
    let array = ask(&server, STREAM, gemini()).await.json();
    assert_eq!(array.as_array().unwrap().iter().map(candidate).collect::<String>(), text);

    // Names in snake_case are the same fields.
    let snake = json!({"contents": [{"parts": [{"text": "Once upon a time"}]}],
        "generation_config": {"max_output_tokens": 6, "temperature": 0}, "safety_settings":
        [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]});
    assert_eq!(candidate(&good(&server, GENERATE, snake).await), text);

    let count =
        good(&server, "/v1beta/models/tiny:countTokens", json!({"contents": gemini()["contents"]}))
            .await;
    assert_eq!(count["totalTokens"], whole["usageMetadata"]["promptTokenCount"]);
    let all = json!({"generateContentRequest": gemini()});
    assert_eq!(
        good(&server, "/v1beta/models/tiny:countTokens", all).await["totalTokens"],
        count["totalTokens"]
    );
}

#[tokio::test]
async fn gemini_lists_embeds_and_refuses() {
    let server = server();
    let list = get(&server, "/v1beta/models").await.json();
    assert_eq!(list["models"][0]["name"], "models/tiny");
    assert_eq!(get(&server, "/v1beta/models/tiny").await.json()["inputTokenLimit"], 512);
    let content = json!({"parts": [{"text": "The cat sat."}]});
    let one = good(&server, "/v1beta/models/tiny:embedContent", json!({"content": content})).await;
    let request = json!({"model": "models/tiny", "content": content, "outputDimensionality": 4});
    let batch = json!({"requests": [request, request]});
    let batch = good(&server, "/v1beta/models/tiny:batchEmbedContents", batch).await;
    assert_eq!(batch["embeddings"][1]["values"].as_array().unwrap().len(), 4);
    assert!(one["embedding"]["values"].as_array().unwrap().len() > 4);
    for (path, body, status, kind) in [
        ("/v1beta/models/none:generateContent", gemini(), 404, "NOT_FOUND"),
        ("/v1beta/models/tiny:predict", gemini(), 404, "NOT_FOUND"),
        (GENERATE, json!({"contents": []}), 400, "INVALID_ARGUMENT"),
        (
            GENERATE,
            json!({"contents": gemini()["contents"], "tools": [{}]}),
            400,
            "INVALID_ARGUMENT",
        ),
        (
            GENERATE,
            json!({"contents": gemini()["contents"], "model": "models/other"}),
            400,
            "INVALID_ARGUMENT",
        ),
    ] {
        let got = ask(&server, path, body).await;
        assert_eq!(got.status, status, "{}", got.text);
        assert_eq!(got.json()["error"]["status"], kind);
        assert_eq!(got.json()["error"]["code"], status);
    }
}

fn anthropic(extra: Value) -> Value {
    let mut body = json!({"model": MODEL, "max_tokens": 6, "temperature": 0,
        "messages": [{"role": "user", "content": "Once upon a time"}]});
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

#[tokio::test]
async fn anthropic_answers_whole_and_as_events() {
    let server = server();
    let whole = good(&server, "/v1/messages", anthropic(json!({}))).await;
    assert_eq!(
        (&whole["stop_reason"], &whole["role"]),
        (&json!("max_tokens"), &json!("assistant"))
    );
    let text = whole["content"][0]["text"].as_str().unwrap().to_owned();

    let got = ask(&server, "/v1/messages", anthropic(json!({"stream": true}))).await;
    let events = got.events();
    let kinds: Vec<_> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(kinds[..3], ["message_start", "content_block_start", "ping"]);
    assert_eq!(kinds[kinds.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    let deltas = events.iter().filter_map(|e| e["delta"]["text"].as_str());
    assert_eq!(deltas.collect::<String>(), text);
    let delta = &events[events.len() - 2];
    assert_eq!(delta["delta"]["stop_reason"], "max_tokens");
    assert_eq!(delta["usage"]["output_tokens"], 6);
    for line in got.text.lines().filter_map(|l| l.strip_prefix("event: ")) {
        assert!(kinds.contains(&line), "{line}");
    }

    // What the assistant has begun is continued.
    let (first, rest) = text.split_at(text.rfind(' ').unwrap());
    let begun = json!([{"role": "user", "content": "Once upon a time"},
        {"role": "assistant", "content": [{"type": "text", "text": first}]}]);
    let went_on = good(&server, "/v1/messages", anthropic(json!({"messages": begun}))).await;
    let went_on = went_on["content"][0]["text"].as_str().unwrap();
    assert!(went_on.starts_with(rest), "{first:?} {rest:?} {went_on:?}");
    let stop = json!({"messages": begun, "stop_sequences": [rest.trim_start()]});
    let stopped = good(&server, "/v1/messages", anthropic(stop)).await;
    assert_eq!(stopped["stop_reason"], "stop_sequence");
    assert_eq!(stopped["stop_sequence"], rest.trim_start());

    let count =
        json!({"model": MODEL, "messages": [{"role": "user", "content": "Once upon a time"}]});
    let count = good(&server, "/v1/messages/count_tokens", count).await;
    let usage = &whole["usage"];
    let prompt = usage["input_tokens"].as_u64().unwrap()
        + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(count["input_tokens"], prompt);
}

#[tokio::test]
async fn anthropic_refuses_and_lists() {
    let server = server();
    for (extra, status, kind, field) in [
        (json!({"model": "claude"}), 404, "not_found_error", "model"),
        (json!({"tools": [{}]}), 400, "invalid_request_error", "tools"),
        (json!({"max_tokens": 0}), 400, "invalid_request_error", "max_tokens"),
        (json!({"thinking": {"type": "enabled"}}), 400, "invalid_request_error", "thinking"),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]}),
            400,
            "invalid_request_error",
            "messages[0].content[0]: missing field `type`",
        ),
    ] {
        let got = ask(&server, "/v1/messages", anthropic(extra)).await;
        assert_eq!(got.status, status);
        let error = got.json();
        assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!(kind)));
        assert!(error["error"]["message"].as_str().unwrap().starts_with(field), "{error}");
        assert!(got.header("request-id").starts_with("req_"));
    }
    let list = axum::http::Request::get("/v1/models").header("anthropic-version", "2023-06-01");
    let list = common::send(&server, list.body(axum::body::Body::empty()).unwrap()).await.json();
    assert_eq!(list["data"][0]["type"], "model");
}

#[tokio::test]
async fn ollama_answers_in_lines_and_whole() {
    let server = server();
    let options = json!({"temperature": 0, "num_predict": 6});
    let chat = json!({"model": "tiny:latest", "options": options,
        "messages": [{"role": "user", "content": "Once upon a time"}]});
    let got = ask(&server, "/api/chat", chat.clone()).await;
    assert_eq!(got.header("content-type"), "application/x-ndjson");
    let lines = got.lines();
    let text: String = lines.iter().map(|l| l["message"]["content"].as_str().unwrap()).collect();
    let last = &lines[lines.len() - 1];
    assert_eq!(
        (&last["done"], &last["done_reason"], &last["eval_count"]),
        (&json!(true), &json!("length"), &json!(6))
    );
    assert!(last["total_duration"].as_u64().unwrap() > 0);
    assert!(lines[..lines.len() - 1].iter().all(|l| l["done"] == false));
    let mut whole = chat.clone();
    whole["stream"] = json!(false);
    assert_eq!(good(&server, "/api/chat", whole).await["message"]["content"], text);
    let generate =
        json!({"model": MODEL, "prompt": "Once upon a time", "stream": false, "options": options});
    assert_eq!(good(&server, "/api/generate", generate.clone()).await["response"], text);
    let mut raw = generate;
    raw["raw"] = json!(true);
    let raw = good(&server, "/api/generate", raw).await;
    assert!(raw["response"].as_str().unwrap().starts_with(", there was"), "{raw}");
    let load = good(&server, "/api/generate", json!({"model": MODEL})).await;
    assert_eq!(load["done_reason"], "load");
    let ctx = json!({"model": MODEL, "prompt": "a", "options": {"num_ctx": 100_000}});
    let got = ask(&server, "/api/generate", ctx).await;
    assert_eq!(got.status, 400);
    assert!(got.json()["error"].as_str().unwrap().starts_with("options.num_ctx: "));
    let got = ask(&server, "/api/chat", json!({"model": "llama3", "messages": []})).await;
    assert_eq!(got.status, 404);
}

#[tokio::test]
async fn ollama_tells_of_its_models() {
    let server = server();
    let tags = get(&server, "/api/tags").await.json();
    assert_eq!(tags["models"][0]["name"], MODEL);
    assert_eq!(tags["models"][0]["details"]["quantization_level"], "Q8_0");
    assert_eq!(get(&server, "/api/ps").await.json()["models"], json!([]));
    let embed = json!({"model": MODEL, "input": ["The cat sat.", "A dog ran."]});
    let embed = good(&server, "/api/embed", embed).await;
    assert_eq!(embed["embeddings"].as_array().unwrap().len(), 2);
    assert_eq!(get(&server, "/api/ps").await.json()["models"][0]["name"], MODEL);
    let show = good(&server, "/api/show", json!({"name": MODEL})).await;
    assert!(show["capabilities"].as_array().unwrap().contains(&json!("completion")));
    assert!(get(&server, "/api/version").await.json()["version"].is_string());
}

#[tokio::test]
async fn tokens_go_both_ways_and_health_is_told() {
    let server = server();
    let text = "Once upon a time";
    let taken =
        good(&server, "/tokenize", json!({"model": MODEL, "text": text, "add_special": true}))
            .await;
    assert_eq!(taken["ids"], json!([2, 1433, 848, 269, 599]));
    let back = json!({"model": MODEL, "ids": taken["ids"], "skip_special": true});
    assert_eq!(good(&server, "/detokenize", back).await["text"], text);
    let wrong = ask(&server, "/detokenize", json!({"model": MODEL, "ids": [1, 4_000_000]})).await;
    assert_eq!(wrong.json()["error"]["field"], "ids[1]");
    assert_eq!(get(&server, "/health/live").await.text, "ok\n");
    assert_eq!(get(&server, "/health/ready").await.text, "ready\n");
    ask(&server, "/v1/completions", json!({"model": MODEL, "prompt": text, "max_tokens": 3})).await;
    let metrics = get(&server, "/metrics").await.text;
    for line in [
        "lapidary_requests_total{dialect=\"openai\",status=\"200\"} 1",
        "lapidary_engine_decode_tokens_total{model=\"tiny\"} ",
        "lapidary_time_to_first_token_seconds_count 1",
        "lapidary_inter_token_seconds_count 2",
    ] {
        assert!(metrics.contains(line), "{line}\n{metrics}");
    }
    assert_eq!(post(&server, "/tokenize", "[]").await.status, 400);
}
