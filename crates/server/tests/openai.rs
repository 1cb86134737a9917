//! OpenAI's endpoints on the default model.

mod common;

use common::{MODEL, ask, get, good, post, server};
use serde_json::{Value, json};

fn story(extra: Value) -> Value {
    let mut body = json!({
        "model": MODEL, "max_completion_tokens": 6, "temperature": 0,
        "messages": [{"role": "user", "content": "Once upon a time"}],
    });
    for (key, value) in extra.as_object().unwrap() {
        body[key] = value.clone();
    }
    body
}

fn content(answer: &Value) -> &str {
    answer["choices"][0]["message"]["content"].as_str().unwrap()
}

#[tokio::test]
async fn a_chat_is_answered_and_streamed_with_the_same_text() {
    let server = server();
    let got = ask(&server, "/v1/chat/completions", story(json!({}))).await;
    let whole = got.json();
    assert_eq!(whole["object"], "chat.completion");
    assert_eq!(whole["usage"]["completion_tokens"], 6);
    assert_eq!(whole["choices"][0]["finish_reason"], "length");
    assert!(!content(&whole).is_empty());
    assert_eq!(got.header("x-lapidary-fingerprint"), whole["system_fingerprint"]);
    assert!(whole["system_fingerprint"].as_str().unwrap().starts_with("fp_"));

    let options = json!({"stream": true, "stream_options": {"include_usage": true}});
    let got = ask(&server, "/v1/chat/completions", story(options)).await;
    assert!(got.header("content-type").starts_with("text/event-stream"));
    assert!(got.text.ends_with("data: [DONE]\n\n"));
    let events = got.events();
    let deltas = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str());
    assert_eq!(deltas.collect::<String>(), content(&whole));
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    let (last, usage) = (&events[events.len() - 2], &events[events.len() - 1]);
    assert_eq!(last["choices"][0]["finish_reason"], "length");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["prompt_tokens"], whole["usage"]["prompt_tokens"]);
    assert_eq!(usage["usage"]["completion_tokens"], 6);
}

#[tokio::test]
async fn a_completion_continues_as_the_reference_does() {
    let server = server();
    let body =
        json!({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 20, "temperature": 0});
    let text = good(&server, "/v1/completions", body.clone()).await;
    let text = text["choices"][0]["text"].as_str().unwrap().to_owned();
    assert!(text.starts_with(", there was a little girl named Lily."), "{text}");
    // The same from ids, and as the second of two prompts.
    let mut ids = body.clone();
    ids["prompt"] = json!([2, 1433, 848, 269, 599]);
    assert_eq!(good(&server, "/v1/completions", ids).await["choices"][0]["text"], text);
    let mut two = body.clone();
    two["prompt"] = json!(["The cat", "Once upon a time"]);
    two["n"] = json!(2);
    let two = good(&server, "/v1/completions", two).await;
    let texts: Vec<_> = two["choices"].as_array().unwrap().iter().map(|c| &c["text"]).collect();
    assert_eq!(texts.len(), 4);
    assert!(texts[2] == &text && texts[3] == &text && texts[0] == texts[1] && texts[0] != &text);
    // Where nothing is said, 16 tokens.
    let short = json!({"model": MODEL, "prompt": "Once upon a time", "temperature": 0});
    let short = good(&server, "/v1/completions", short).await;
    assert_eq!(short["usage"]["completion_tokens"], 16);
    // A stop string ends the answer and is not in it.
    let mut stopped = body.clone();
    stopped["stop"] = json!("girl");
    let stopped = good(&server, "/v1/completions", stopped).await;
    assert_eq!(stopped["choices"][0]["text"], ", there was a little ");
    assert_eq!(stopped["choices"][0]["finish_reason"], "stop");
}

#[tokio::test]
async fn probabilities_are_those_of_the_tokens_shown() {
    let server = server();
    let body = json!({"model": MODEL, "prompt": "Once upon a time", "max_tokens": 6,
        "temperature": 0, "logprobs": 3});
    let whole = good(&server, "/v1/completions", body.clone()).await;
    let probabilities = &whole["choices"][0]["logprobs"];
    let tokens = probabilities["tokens"].as_array().unwrap();
    let joined: String = tokens.iter().map(|t| t.as_str().unwrap()).collect();
    assert_eq!(whole["choices"][0]["text"], joined);
    for (i, p) in probabilities["token_logprobs"].as_array().unwrap().iter().enumerate() {
        let top = probabilities["top_logprobs"][i].as_object().unwrap();
        let best = top.values().map(|v| v.as_f64().unwrap()).fold(f64::NEG_INFINITY, f64::max);
        // Greedy: the token is the likeliest, and a probability is at most 1.
        assert_eq!(p.as_f64().unwrap(), best);
        assert!(best <= 0.0 && top.len() <= 3);
    }
    let chat = story(json!({"logprobs": true, "top_logprobs": 2}));
    let chat = good(&server, "/v1/chat/completions", chat).await;
    let tokens = chat["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.len(), 6);
    assert_eq!(tokens[0]["top_logprobs"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn seeds_repeat_and_answers_of_one_request_differ() {
    let server = server();
    let ask = async |seed: Value| {
        let body = story(json!({"temperature": 1.0, "seed": seed, "n": 3}));
        let got = common::ask(&server, "/v1/chat/completions", body).await;
        let seed = got.header("x-lapidary-seed").to_owned();
        (got.json()["choices"].to_string(), seed)
    };
    let (a, b, c) = (ask(json!(7)).await, ask(json!(7)).await, ask(json!(8)).await);
    assert_eq!(a, b);
    assert_ne!(a.0, c.0);
    assert_eq!(a.1, "7");
    // A seed that was drawn is told, and repeats the answer.
    let drawn = ask(Value::Null).await;
    let again = ask(json!(drawn.1.parse::<i64>().unwrap())).await;
    assert_eq!(drawn, again);
}

#[tokio::test]
async fn responses_remember_the_conversation() {
    let server = server();
    let body = json!({"model": MODEL, "input": "Tell me a story", "max_output_tokens": 5,
        "temperature": 0, "metadata": {"a": "b"}});
    let first = good(&server, "/v1/responses", body.clone()).await;
    assert_eq!(first["status"], "incomplete");
    assert_eq!(first["incomplete_details"]["reason"], "max_output_tokens");
    assert_eq!(first["metadata"]["a"], "b");
    let text = first["output"][0]["content"][0]["text"].clone();
    let id = first["id"].as_str().unwrap();
    assert_eq!(get(&server, &format!("/v1/responses/{id}")).await.json(), first);
    let items = get(&server, &format!("/v1/responses/{id}/input_items")).await.json();
    assert_eq!(items["data"][0]["content"][0]["text"], "Tell me a story");

    // Going on from what is stored is the same as sending it all.
    let next = json!({"model": MODEL, "input": "And then?", "previous_response_id": id,
        "max_output_tokens": 5, "temperature": 0});
    let stored = good(&server, "/v1/responses", next).await;
    let all = json!({"model": MODEL, "max_output_tokens": 5, "temperature": 0, "store": false, "input": [
        {"role": "user", "content": "Tell me a story"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": text, "annotations": []}]},
        {"role": "user", "content": [{"type": "input_text", "text": "And then?"}]}]});
    let sent = good(&server, "/v1/responses", all).await;
    assert_eq!(stored["output"][0]["content"], sent["output"][0]["content"]);
    assert_eq!(stored["usage"]["input_tokens"], sent["usage"]["input_tokens"]);
    let unstored = sent["id"].as_str().unwrap();
    assert_eq!(get(&server, &format!("/v1/responses/{unstored}")).await.status, 404);

    let delete = axum::http::Request::delete(format!("/v1/responses/{id}"));
    let delete = delete.body(axum::body::Body::empty()).unwrap();
    assert_eq!(common::send(&server, delete).await.json()["deleted"], true);
    assert_eq!(get(&server, &format!("/v1/responses/{id}")).await.status, 404);

    // The stream ends with the same response as the whole.
    let mut body = body;
    body["stream"] = json!(true);
    let got = ask(&server, "/v1/responses", body).await;
    let events = got.events();
    let kinds: Vec<_> = events.iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(
        kinds[..4],
        [
            "response.created",
            "response.in_progress",
            "response.output_item.added",
            "response.content_part.added"
        ]
    );
    assert_eq!(
        kinds[kinds.len() - 4..],
        [
            "response.output_text.done",
            "response.content_part.done",
            "response.output_item.done",
            "response.incomplete"
        ]
    );
    for (i, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], i);
    }
    let last = &events[events.len() - 1]["response"];
    assert_eq!(last["output"][0]["content"], first["output"][0]["content"]);
    assert_eq!(last["usage"]["output_tokens"], first["usage"]["output_tokens"]);
}

#[tokio::test]
async fn vectors_have_length_one_in_both_forms() {
    use base64::Engine;
    let server = server();
    let body = json!({"model": MODEL, "input": ["The cat sat.", "A dog ran.", "The cat sat."]});
    let plain = good(&server, "/v1/embeddings", body.clone()).await;
    let vector = |i: usize| -> Vec<f32> {
        serde_json::from_value(plain["data"][i]["embedding"].clone()).unwrap()
    };
    let length: f32 = vector(0).iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5, "{length}");
    assert_eq!(vector(0), vector(2));
    assert_ne!(vector(0), vector(1));
    let mut encoded = body.clone();
    encoded["encoding_format"] = json!("base64");
    let encoded = good(&server, "/v1/embeddings", encoded).await;
    let bytes = encoded["data"][1]["embedding"].as_str().unwrap();
    let bytes = base64::engine::general_purpose::STANDARD.decode(bytes).unwrap();
    let decoded: Vec<f32> =
        bytes.chunks(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
    assert_eq!(decoded, vector(1));
    let mut fewer = body;
    fewer["dimensions"] = json!(8);
    let fewer = good(&server, "/v1/embeddings", fewer).await;
    assert_eq!(fewer["data"][0]["embedding"].as_array().unwrap().len(), 8);
}

#[tokio::test]
async fn models_are_listed() {
    let server = server();
    let list = get(&server, "/v1/models").await.json();
    assert_eq!(list["data"][0]["id"], MODEL);
    assert_eq!(list["data"][0]["loaded"], false);
    assert_eq!(get(&server, "/v1/models/tiny").await.json()["context_length"], 512);
    let missing = get(&server, "/v1/models/..%2f..%2fetc%2fpasswd").await;
    assert_eq!(missing.status, 404);
    assert_eq!(missing.json()["error"]["code"], "model_not_found");
}

#[tokio::test]
async fn errors_name_the_field() {
    let server = server();
    for (change, param, code) in [
        (json!({"model": "gpt-4"}), "model", json!("model_not_found")),
        (json!({"tools": [{"type": "function"}]}), "tools", json!("unsupported_parameter")),
        (
            json!({"response_format": {"type": "json_object"}}),
            "response_format",
            json!("unsupported_parameter"),
        ),
        (json!({"nonsense": 1}), "nonsense", json!("unknown_parameter")),
        (json!({"temperature": "hot"}), "temperature", json!(null)),
        (json!({"temperature": -1}), "temperature", json!(null)),
        (json!({"n": 1000}), "n", json!(null)),
        (json!({"stop": [""]}), "stop[0]", json!(null)),
        (json!({"messages": []}), "messages", json!(null)),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}),
            "messages[0].content[0]",
            json!(null),
        ),
        (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].role", json!(null)),
        (json!({"logit_bias": {"x": 1}}), "logit_bias.x", json!(null)),
        (json!({"top_logprobs": 2}), "top_logprobs", json!(null)),
    ] {
        let got = ask(&server, "/v1/chat/completions", story(change.clone())).await;
        let status = if param == "model" { 404 } else { 400 };
        assert_eq!(got.status, status, "{change}: {}", got.text);
        let error = &got.json()["error"];
        assert_eq!((&error["param"], &error["code"]), (&json!(param), &code), "{error}");
        assert_eq!(error["type"], "invalid_request_error");
    }
    let long = "word ".repeat(1000);
    let long = story(json!({"messages": [{"role": "user", "content": long}]}));
    let got = ask(&server, "/v1/chat/completions", long).await;
    assert_eq!(got.status, 400);
    assert_eq!(got.json()["error"]["code"], "context_length_exceeded", "{}", got.text);
    assert_eq!(post(&server, "/v1/chat/completions", "{").await.status, 400);
    assert_eq!(post(&server, "/v1/nothing", "{}").await.status, 404);
    assert_eq!(get(&server, "/v1/chat/completions").await.status, 405);
}
