//! Thoughts in every dialect: asked for, told apart, counted, refused.

mod common;

use axum::Router;
use common::{Folder, ask, get, good, no_keys, policy};
use lapidary_engine::{
    Event, Limits, Sampler, Sampling, Session, StopStrings, Stops, Text, Turn, generate,
};
use lapidary_formats::chat::{Message, THINKING};
use lapidary_formats::tokenizer::Encode;
use lapidary_formats::{Checkpoint, DType, TensorSpec, safetensors};
use lapidary_ops::{Cpu, KvType, Pool, Precision};
use lapidary_server::app::{App, Policy, router};
use lapidary_server::model::{Machine, Origin};
use lapidary_server::registry::Registry;
use serde_json::{Value, json};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const TOKENS: usize = 40;
/// The markers around a thought.
const MARKERS: [u32; 2] = [18, 19];

fn fixture() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let found = [root.join("shared/fixtures/models"), root.join("../shared/fixtures/models")];
    let found = found.into_iter().map(|p| p.join("gemma4_e2b")).find(|p| p.is_dir());
    if found.is_none() {
        eprintln!("skipped: ../shared/fixtures is not there");
    }
    found
}

/// The reference's tiny Gemma 4, made to like the markers of thoughts and line ends: their rows of the
/// embedding, which is the output's too, are longer, and turned around where that is what they need to come
/// first. What it recommends keeps it from repeating itself.
fn thinker(folder: &Folder) -> Option<PathBuf> {
    let from = fixture()?;
    for file in std::fs::read_dir(&from).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|e| e == "json" || e == "jinja") {
            std::fs::copy(&path, folder.0.join(path.file_name().unwrap())).unwrap();
        }
    }
    let recommended = json!({"eos_token_id": [1, 21], "repetition_penalty": 3.0});
    std::fs::write(folder.0.join("generation_config.json"), recommended.to_string()).unwrap();
    let checkpoint = Checkpoint::open(&from).unwrap();
    let text = Text::open(&checkpoint).unwrap();
    let line = text.tokenizer.encode("\n", Encode { add_special: false, parse_special: false })[0];
    let specs: Vec<TensorSpec> = (checkpoint.tensors())
        .map(|t| TensorSpec::new(t.name.to_string(), t.dtype, t.shape.clone()))
        .collect();
    let path = folder.0.join("model.safetensors");
    let mut writer = safetensors::create(&path, &specs, &Default::default()).unwrap();
    for view in checkpoint.tensors() {
        let mut bytes = view.bytes.to_vec();
        if view.name.ends_with("embed_tokens.weight") {
            assert_eq!(view.dtype, DType::F32);
            for (id, factor) in MARKERS.into_iter().chain([line]).zip([-5.0, 5.0, -5.0]) {
                let row = id as usize * view.shape[1] * 4;
                for value in bytes[row..row + view.shape[1] * 4].as_chunks_mut::<4>().0 {
                    *value = (f32::from_le_bytes(*value) * factor).to_le_bytes();
                }
            }
        }
        writer.write(&view.name, &bytes).unwrap();
    }
    writer.finish().unwrap();
    Some(folder.0.clone())
}

fn machine(think: Option<bool>) -> Machine {
    Machine { precision: Precision::Exact, kv: KvType::F32, think, ..common::machine() }
}

fn serve(dir: &Path, think: Option<bool>, policy: Policy) -> Router {
    let models = vec![("m".to_owned(), Origin::path(dir))];
    let registry = Registry::new(models, vec![], machine(think), 1 << 30);
    router(App::new(registry.unwrap_or_else(|e| panic!("{e}")), no_keys(), policy))
}

/// What is thought and said, of how many tokens each.
#[derive(Debug, Clone, PartialEq, Default)]
struct Said {
    thought: String,
    text: String,
    prompt: usize,
    all: usize,
    thought_tokens: usize,
}

/// The plain loop.
struct Alone {
    model: lapidary_model::Loaded,
    cpu: Cpu,
    text: Text,
}

impl Alone {
    fn open(dir: &Path) -> Self {
        let checkpoint = Checkpoint::open(dir).unwrap();
        let m = machine(None);
        let mut cpu = Cpu::new(m.isa, Arc::new(Pool::new(1)), m.precision);
        let model = lapidary_model::load(&checkpoint, &mut cpu).unwrap_or_else(|e| panic!("{e}"));
        Self { model, cpu, text: Text::open(&checkpoint).unwrap() }
    }

    /// What `lapidary run` writes before the answer.
    fn prompt(&self, question: &str, think: bool) -> String {
        let extra = [(THINKING.to_owned(), think.into())].into_iter().collect();
        let messages = [Message::new("user", question)];
        self.text.render_with(&messages, true, 0, extra).unwrap().text
    }

    /// What the dialects take when a request says no more than that the temperature is 0.
    fn sampling(&self) -> Sampling {
        Sampling { temperature: 0.0, ..self.text.defaults.clone() }
    }

    fn answer(&mut self, prompt: &str) -> Said {
        self.made(prompt).0
    }

    /// What it answers, and the tokens of it.
    fn made(&mut self, prompt: &str) -> (Said, Vec<u32>) {
        let ids =
            self.text.tokenizer.encode(prompt, Encode { add_special: false, parse_special: true });
        let model = &*self.model.model;
        let limits = Limits { context: 512, chunk: 64, kv: KvType::F32 };
        let mut session = Session::new(&model.info().kv, limits);
        let mut sampler = Sampler::new(self.sampling()).unwrap();
        let stops = Stops { max_tokens: TOKENS, ids: self.text.stops.clone(), ..Stops::default() };
        let mut turn = Turn::new(&self.text.tokenizer, StopStrings::new([]));
        let mut made = Vec::new();
        let mut heard = |event| {
            if let Event::Token(id) = event {
                turn.push(id);
                made.push(id);
            }
            ControlFlow::Continue(())
        };
        generate(model, &mut self.cpu, &mut session, &ids, &mut sampler, &stops, &mut heard)
            .unwrap_or_else(|e| panic!("{e}"));
        turn.finish();
        // The markers and what lies between them.
        let mut open = false;
        let thought_tokens = made.iter().filter(|id| {
            let inside = open;
            open = **id == MARKERS[0] || open && **id != MARKERS[1];
            inside || open
        });
        let thought_tokens = thought_tokens.count();
        let (thought, text) = (turn.thought().to_owned(), turn.text().to_owned());
        (Said { thought, text, prompt: ids.len(), all: made.len(), thought_tokens }, made)
    }

    /// A question that makes it think once, and then say something; and what it answers.
    fn question(&mut self) -> (String, Said) {
        (0..200)
            .find_map(|i| {
                let question = format!("Why {i}?");
                let (said, made) = self.made(&self.prompt(&question, true));
                let thoughts = made.iter().filter(|id| **id == MARKERS[0]).count();
                let good = made[0] == MARKERS[0] && thoughts == 1;
                let good = good && said.thought.trim().len() > 3 && said.text.trim().len() > 3;
                good.then_some((question, said))
            })
            .expect("a question that makes it think and speak")
    }
}

/// The request of each dialect, and how what it gives is read, whole.
type Read = fn(&Value) -> Said;
fn dialects(question: &str) -> [(&'static str, Value, Read); 6] {
    let messages = json!([{"role": "user", "content": question}]);
    let options = json!({"temperature": 0, "num_predict": TOKENS});
    [
        (
            "/v1/chat/completions",
            json!({"model": "m", "temperature": 0, "max_tokens": TOKENS, "messages": messages,
                "reasoning_effort": "low"}),
            chat,
        ),
        (
            "/v1/responses",
            json!({"model": "m", "temperature": 0, "max_output_tokens": TOKENS, "input": question,
                "reasoning": {"effort": "high", "summary": "auto"}}),
            responses,
        ),
        (
            "/v1/messages",
            json!({"model": "m", "temperature": 0, "max_tokens": TOKENS, "messages": messages,
                "thinking": {"type": "enabled", "budget_tokens": 1024}}),
            anthropic,
        ),
        (
            "/v1beta/models/m:generateContent",
            json!({"contents": [{"parts": [{"text": question}]}], "generationConfig": {
                "temperature": 0, "maxOutputTokens": TOKENS,
                "thinkingConfig": {"includeThoughts": true, "thinkingBudget": -1}}}),
            gemini,
        ),
        (
            "/api/chat",
            json!({"model": "m", "stream": false, "messages": messages, "options": options,
                "think": true}),
            |v| ollama(v, "/message/content", "/message/thinking"),
        ),
        (
            "/api/generate",
            json!({"model": "m", "stream": false, "prompt": question, "options": options,
                "think": "high"}),
            |v| ollama(v, "/response", "/thinking"),
        ),
    ]
}

fn string(value: &Value, at: &str) -> String {
    value.pointer(at).and_then(Value::as_str).unwrap_or_default().to_owned()
}

fn number(value: &Value, at: &str) -> usize {
    value.pointer(at).and_then(Value::as_u64).unwrap_or_else(|| panic!("{at}: {value}")) as usize
}

fn chat(v: &Value) -> Said {
    let message = &v["choices"][0]["message"];
    assert!(message.get("reasoning_content").is_none_or(|t| t != ""), "{v}");
    Said {
        thought: string(message, "/reasoning_content"),
        text: string(message, "/content"),
        prompt: number(v, "/usage/prompt_tokens"),
        all: number(v, "/usage/completion_tokens"),
        thought_tokens: number(v, "/usage/completion_tokens_details/reasoning_tokens"),
    }
}

fn responses(v: &Value) -> Said {
    let output = v["output"].as_array().unwrap();
    let (thought, message) = match &output[..] {
        [thought, message] => (string(thought, "/content/0/text"), message),
        [message] => (String::new(), message),
        _ => panic!("{v}"),
    };
    assert_eq!(message["type"], "message");
    Said {
        thought,
        text: string(message, "/content/0/text"),
        prompt: number(v, "/usage/input_tokens"),
        all: number(v, "/usage/output_tokens"),
        thought_tokens: number(v, "/usage/output_tokens_details/reasoning_tokens"),
    }
}

fn anthropic(v: &Value) -> Said {
    let (thought, text) = match &v["content"].as_array().unwrap()[..] {
        [thought, text] => {
            assert!(string(thought, "/signature").starts_with("fp_"), "{v}");
            (string(thought, "/thinking"), text)
        }
        [text] => (String::new(), text),
        _ => panic!("{v}"),
    };
    let cached = number(v, "/usage/cache_read_input_tokens");
    Said {
        thought,
        text: string(text, "/text"),
        prompt: number(v, "/usage/input_tokens") + cached,
        all: number(v, "/usage/output_tokens"),
        thought_tokens: number(v, "/usage/output_tokens_details/thinking_tokens"),
    }
}

fn gemini(v: &Value) -> Said {
    let mut said = Said::default();
    for part in v["candidates"][0]["content"]["parts"].as_array().unwrap() {
        let to = if part["thought"] == true { &mut said.thought } else { &mut said.text };
        *to += part["text"].as_str().unwrap();
    }
    let usage = &v["usageMetadata"];
    said.prompt = number(usage, "/promptTokenCount");
    said.thought_tokens = number(usage, "/thoughtsTokenCount");
    said.all = number(usage, "/candidatesTokenCount") + said.thought_tokens;
    assert_eq!(number(usage, "/totalTokenCount"), said.prompt + said.all);
    said
}

fn ollama(v: &Value, text: &str, thought: &str) -> Said {
    Said {
        thought: string(v, thought),
        text: string(v, text),
        prompt: number(v, "/prompt_eval_count"),
        all: number(v, "/eval_count"),
        thought_tokens: 0,
    }
}

#[tokio::test]
async fn every_dialect_tells_thoughts_from_answers() {
    let folder = Folder::new("server-thoughts");
    let Some(dir) = thinker(&folder) else { return };
    let mut alone = Alone::open(&dir);
    let (question, want) = alone.question();
    let server = serve(&dir, None, policy());
    for (path, body, read) in dialects(&question) {
        let mut got = read(&good(&server, path, body).await);
        if path.starts_with("/api") {
            // Ollama counts no thoughts.
            got.thought_tokens = want.thought_tokens;
        }
        assert_eq!(got, want, "{path}");
    }
    // Without a word the template decides, which says no here; and the server may say yes.
    let silent = alone.answer(&alone.prompt(&question, false));
    let thinks = serve(&dir, Some(true), policy());
    let never = serve(&dir, Some(false), policy());
    assert_ne!(silent.prompt, want.prompt);
    for (path, mut body, read) in dialects(&question) {
        for field in ["reasoning_effort", "reasoning", "thinking", "think"] {
            body.as_object_mut().unwrap().remove(field);
        }
        if let Some(config) = body.pointer_mut("/generationConfig/thinkingConfig") {
            *config = json!({"includeThoughts": true});
        }
        for (server, want) in [(&server, &silent), (&never, &silent), (&thinks, &want)] {
            let got = read(&good(server, path, body.clone()).await);
            assert_eq!(
                (got.prompt, &got.text, &got.thought),
                (want.prompt, &want.text, &want.thought)
            );
        }
    }
    // A request goes before the server.
    let off = [
        ("reasoning_effort", json!("none")),
        ("reasoning", json!({"effort": "none"})),
        ("thinking", json!({"type": "disabled"})),
        (
            "generationConfig",
            json!({"temperature": 0, "maxOutputTokens": TOKENS,
            "thinkingConfig": {"thinkingBudget": 0}}),
        ),
        ("think", json!(false)),
        ("think", json!(false)),
    ];
    for ((path, mut body, read), (field, value)) in dialects(&question).into_iter().zip(off) {
        body[field] = value;
        let got = read(&good(&thinks, path, body).await);
        assert_eq!((got.prompt, got.text), (silent.prompt, silent.text.clone()), "{path}");
    }
    // The same weights, but not the same words to the same request.
    let fingerprint = async |server: &Router| {
        let body = json!({"model": "m", "prompt": "a", "max_tokens": 1});
        good(server, "/v1/completions", body).await["system_fingerprint"].clone()
    };
    let names = [fingerprint(&server).await, fingerprint(&thinks).await, fingerprint(&never).await];
    assert!(names[0] != names[1] && names[1] != names[2] && names[0] != names[2], "{names:?}");
}

#[tokio::test]
async fn streams_bring_thoughts_apart_and_first() {
    let folder = Folder::new("server-thought-streams");
    let Some(dir) = thinker(&folder) else { return };
    let (question, want) = Alone::open(&dir).question();
    let server = serve(&dir, None, policy());
    let asked = dialects(&question);
    let streamed = async |i: usize| {
        let (path, mut body, _) = asked[i].clone();
        if !path.contains("Content") {
            body["stream"] = true.into();
        }
        ask(
            &server,
            &path.replace(":generate", ":streamGenerate").replace("Content", "Content?alt=sse"),
            body,
        )
        .await
    };
    let joined =
        |events: &[Value], at: &str| -> String { events.iter().map(|e| string(e, at)).collect() };
    let chat = streamed(0).await.events();
    assert_eq!(joined(&chat, "/choices/0/delta/reasoning_content"), want.thought);
    assert_eq!(joined(&chat, "/choices/0/delta/content"), want.text);

    let events = streamed(1).await.events();
    let of = |kind: &str| -> Vec<Value> {
        events.iter().filter(|e| e["type"] == kind).cloned().collect()
    };
    assert_eq!(joined(&of("response.reasoning_text.delta"), "/delta"), want.thought);
    assert_eq!(joined(&of("response.output_text.delta"), "/delta"), want.text);
    assert_eq!(of("response.reasoning_text.done")[0]["text"], want.thought);
    let places = |kind: &str| -> Vec<u64> {
        of(kind).iter().map(|e| e["output_index"].as_u64().unwrap()).collect()
    };
    assert_eq!(places("response.output_item.added"), [0, 1]);
    assert_eq!(places("response.output_item.done"), [0, 1]);
    let last = events.last().unwrap();
    let mut whole = last["response"].clone();
    assert_eq!(responses(&whole), want);
    let items: Vec<Value> =
        of("response.output_item.done").iter().map(|e| e["item"].clone()).collect();
    assert_eq!(whole["output"].take(), json!(items));

    let events = streamed(2).await.events();
    let deltas = |kind: &str, at: &str| -> String {
        let of = events.iter().filter(|e| e["delta"]["type"] == kind);
        of.map(|e| string(e, at)).collect()
    };
    assert_eq!(deltas("thinking_delta", "/delta/thinking"), want.thought);
    assert_eq!(deltas("text_delta", "/delta/text"), want.text);
    assert!(deltas("signature_delta", "/delta/signature").starts_with("fp_"));
    let blocks: Vec<&Value> =
        events.iter().filter(|e| e["type"] == "content_block_start").collect();
    assert_eq!(blocks[0]["content_block"]["type"], "thinking");
    assert_eq!((blocks.len(), &blocks[1]["index"]), (2, &json!(1)));

    let events = streamed(3).await.events();
    let parts = |thought: bool| -> String {
        let all = events.iter().map(|e| &e["candidates"][0]["content"]["parts"][0]);
        all.filter(|p| (p["thought"] == true) == thought).map(|p| string(p, "/text")).collect()
    };
    assert_eq!((parts(true), parts(false)), (want.thought.clone(), want.text.clone()));
    let usage = &events.last().unwrap()["usageMetadata"];
    assert_eq!(number(usage, "/thoughtsTokenCount"), want.thought_tokens);

    for (i, text, thought) in
        [(4, "/message/content", "/message/thinking"), (5, "/response", "/thinking")]
    {
        let lines = streamed(i).await.lines();
        assert_eq!(
            (joined(&lines, thought), joined(&lines, text)),
            (want.thought.clone(), want.text.clone())
        );
    }
}

#[tokio::test]
async fn thoughts_are_hidden_where_a_dialect_says_so() {
    let folder = Folder::new("server-thoughts-hidden");
    let Some(dir) = thinker(&folder) else { return };
    let (question, want) = Alone::open(&dir).question();
    let server = serve(&dir, Some(true), policy());
    let [_, _, (_, mut body, _), (path, mut google, _), ..] = dialects(&question);
    google["generationConfig"]["thinkingConfig"] = json!({});
    let got = gemini(&good(&server, path, google.clone()).await);
    assert_eq!(
        (got.thought.as_str(), got.text, got.thought_tokens),
        ("", want.text.clone(), want.thought_tokens)
    );
    let stream = path.replace("generateContent", "streamGenerateContent?alt=sse");
    let streamed = ask(&server, &stream, google).await;
    assert!(!streamed.text.contains("\"thought\""), "{}", streamed.text);
    body["thinking"] = json!({"type": "adaptive", "display": "omitted"});
    let got = good(&server, "/v1/messages", body.clone()).await;
    assert_eq!(got["content"][0]["type"], "thinking");
    assert_eq!(
        (string(&got, "/content/0/thinking"), string(&got, "/content/1/text")),
        (String::new(), want.text.clone())
    );
    body["stream"] = true.into();
    let streamed = ask(&server, "/v1/messages", body).await;
    assert!(!streamed.text.contains("thinking_delta") && streamed.text.contains("signature_delta"));
}

#[tokio::test]
async fn probabilities_and_stop_strings_are_of_what_is_said() {
    let folder = Folder::new("server-thoughts-tokens");
    let Some(dir) = thinker(&folder) else { return };
    let (question, want) = Alone::open(&dir).question();
    let server = serve(&dir, None, policy());
    let [(path, mut body, _), ..] = dialects(&question);
    body["logprobs"] = true.into();
    let got = good(&server, path, body.clone()).await;
    let tokens = got["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    // But for the one that may have ended the turn.
    let said = want.all - want.thought_tokens;
    assert!(tokens.len() == said || tokens.len() + 1 == said, "{} of {said}", tokens.len());
    let text: String = tokens.iter().map(|t| t["token"].as_str().unwrap()).collect();
    assert!(want.text.trim().chars().take(2).all(|c| text.contains(c)), "{text:?} {want:?}");
    // A string that is thought does not end the answer; one that is said does.
    let thought: String = want.thought.trim().chars().take(3).collect();
    if !want.text.contains(&thought) {
        body["stop"] = json!([thought]);
        assert_eq!(chat(&good(&server, path, body.clone()).await), want);
    }
    let end: String = want.text.trim_start().chars().take(2).collect();
    body["stop"] = json!([end]);
    let got = chat(&good(&server, path, body).await);
    assert_eq!(got.text, want.text[..want.text.find(&end).unwrap()]);
    assert_eq!(got.thought, want.thought);
}

#[tokio::test]
async fn thoughts_of_the_past_come_back() {
    let folder = Folder::new("server-thoughts-past");
    let Some(dir) = thinker(&folder) else { return };
    let mut alone = Alone::open(&dir);
    let (question, _) = alone.question();
    let server = serve(&dir, Some(true), policy());
    // An answer that is gone on with: thought and text are before the model as it would have written them.
    let begun = alone.prompt(&question, true)
        + "<|channel>thought\nHm, <channel\u{200b}|>.\n<channel|>It is";
    let want = alone.answer(&begun);
    let thought = "Hm, <channel\u{200b}|>.";
    let user = json!({"role": "user", "content": question});
    let asked = [
        (0, json!([user, {"role": "assistant", "content": "It is", "reasoning_content": thought}])),
        (
            1,
            json!([user,
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": thought}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It is"}]}]),
        ),
        (
            2,
            json!([user, {"role": "assistant", "content": [
            {"type": "thinking", "thinking": thought, "signature": "x"}, {"type": "text", "text": "It is"}]}]),
        ),
        (
            3,
            json!([{"parts": [{"text": question}]},
            {"role": "model", "parts": [{"text": thought, "thought": true}, {"text": "It is"}]}]),
        ),
        (4, json!([user, {"role": "assistant", "content": "It is", "thinking": thought}])),
    ];
    let places = ["messages", "input", "messages", "contents", "messages"];
    for (i, turns) in asked {
        let (path, mut body, read) = dialects(&question)[i].clone();
        body[places[i]] = turns;
        let got = read(&good(&server, path, body.clone()).await);
        assert_eq!((got.prompt, got.text), (want.prompt, want.text.clone()), "{path}");
        // Of an earlier turn, the template leaves it out: as if it had not been sent.
        let next = match i {
            3 => json!({"parts": [{"text": "And now?"}]}),
            _ => json!({"role": "user", "content": "And now?"}),
        };
        let turns = body[places[i]].as_array_mut().unwrap();
        turns.push(next);
        let with = read(&good(&server, path, body.clone()).await);
        let turns = body[places[i]].as_array_mut().unwrap();
        match i {
            1 => drop(turns.remove(1)),
            2 => drop(turns[1]["content"].as_array_mut().unwrap().remove(0)),
            3 => drop(turns[1]["parts"].as_array_mut().unwrap().remove(0)),
            _ => {
                let turn = turns[1].as_object_mut().unwrap();
                turn.retain(|k, _| k == "role" || k == "content");
            }
        }
        let without = read(&good(&server, path, body).await);
        assert_eq!(with, without, "{path}");
    }
    // Stored responses keep theirs.
    let (path, body, _) = dialects(&question)[1].clone();
    let first = good(&server, path, body).await;
    let next = json!({"model": "m", "previous_response_id": first["id"], "input": "And now?",
        "temperature": 0, "max_output_tokens": 4});
    good(&server, path, next.clone()).await;
    let mut items = next.clone();
    items.as_object_mut().unwrap().remove("previous_response_id");
    items["input"] = json!([user, first["output"][0], first["output"][1], {"role": "user", "content": "And now?"}]);
    let by_id = responses(&good(&server, path, next).await);
    assert_eq!(responses(&good(&server, path, items).await), by_id);
    // A thought belongs to the model, and to a message.
    for (path, body, words) in [
        (
            "/v1/chat/completions",
            json!({"model": "m", "messages": [{"role": "user", "content": "a", "reasoning_content": "b"}]}),
            "messages[0].reasoning_content: the turn is the user's",
        ),
        (
            "/v1/responses",
            json!({"model": "m", "input": [user, {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "b"}]}]}),
            "input[1]: the message that followed",
        ),
        (
            "/v1beta/models/m:generateContent",
            json!({"contents": [{"parts": [{"text": "a", "thought": true}]}]}),
            "contents[0].parts[0].thought",
        ),
        (
            "/api/generate",
            json!({"model": "m", "prompt": "a", "raw": true, "think": true}),
            "think: a raw prompt",
        ),
        (
            "/api/chat",
            json!({"model": "m", "messages": [user], "think": "much"}),
            "think: true, false",
        ),
        (
            "/v1/messages",
            json!({"model": "m", "max_tokens": 4, "messages": [user], "thinking": {"type": "perhaps"}}),
            "thinking.type",
        ),
        (
            "/v1beta/models/m:generateContent",
            json!({"contents": [{"parts": [{"text": "a"}]}],
            "generationConfig": {"thinkingConfig": {"thinkingBudget": 5, "thinkingLevel": "LOW"}}}),
            "not both",
        ),
    ] {
        let got = ask(&server, path, body).await;
        assert!(got.status == 400 && got.text.contains(words), "{path}: {}", got.text);
    }
}

#[tokio::test]
async fn counted_prompts_are_those_that_are_computed() {
    let folder = Folder::new("server-thoughts-counted");
    let Some(dir) = thinker(&folder) else { return };
    let (question, want) = Alone::open(&dir).question();
    let server = serve(&dir, None, policy());
    let messages = json!([{"role": "user", "content": question}]);
    let body = json!({"model": "m", "messages": messages, "thinking": {"type": "adaptive"}});
    let got = good(&server, "/v1/messages/count_tokens", body).await;
    assert_eq!(got["input_tokens"], want.prompt);
    let body = json!({"contents": [{"parts": [{"text": question}]}],
        "generationConfig": {"thinkingConfig": {"thinkingLevel": "HIGH"}}});
    let got = good(&server, "/v1beta/models/m:countTokens", body).await;
    assert_eq!(got["totalTokens"], want.prompt);
    let shown = good(&server, "/api/show", json!({"model": "m"})).await;
    assert!(shown["capabilities"].as_array().unwrap().contains(&json!("thinking")));
    assert_eq!(get(&server, "/v1/models").await.json()["data"][0]["thinking"], true);
}

#[tokio::test]
async fn a_model_that_can_not_think_says_so_by_the_name_of_the_field() {
    let fields = [
        "reasoning_effort",
        "reasoning.effort",
        "thinking",
        "generationConfig.thinkingConfig.thinkingBudget",
        "think",
        "think",
    ];
    let strict = common::server();
    let lenient = router(common::app(Policy { lenient: true, ..policy() }, no_keys()));
    for ((path, mut body, _), field) in dialects("Who are you?").into_iter().zip(fields) {
        let path = path.replace("models/m:", "models/tiny:");
        if body["model"] == "m" {
            body["model"] = common::MODEL.into();
        }
        let got = ask(&strict, &path, body.clone()).await;
        let words = format!("{field}: tiny can't think");
        assert!(got.status == 400 && got.text.contains(&words), "{path}: {}", got.text);
        let got = ask(&lenient, &path, body).await;
        assert_eq!(
            (got.status, got.header("x-lapidary-ignored")),
            (200, field),
            "{path}: {}",
            got.text
        );
    }
    let list = get(&strict, "/v1/models").await.json();
    assert_eq!(list["data"][0]["thinking"], false);
    let models = vec![("m".to_owned(), Origin::path(common::model_file()))];
    let error = Registry::new(models, vec![], machine(Some(false)), 1 << 30).err().unwrap();
    assert!(error.to_string().contains("no model here can think"), "{error}");
}
