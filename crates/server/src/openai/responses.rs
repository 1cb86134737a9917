//! `/v1/responses`, stateless and stored.

use super::chat::{EFFORT, Head};
use super::content::{DETAIL, Effort, Role};
use super::responses_stream::Stream;
use super::store::Kept;
use crate::answer::End;
use crate::app::{Shared, Whole, json, signed};
use crate::auth::Caller;
use crate::failure::{Failure, Reply};
use crate::fields::{Decoded, Reading, Table, decode, differs, no, yes};
use crate::job::{Job, MOST_LOGPROBS, Prompt, Said, Settings, said, token_limit, within};
use crate::pictures::{Conversation, Image, NO_FILES, Piece};
use crate::stream;
use crate::think::{self, THOUGHT, thought_of};
use axum::extract::{Extension, Path, State};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json as value};
use std::collections::HashMap;
use std::sync::Arc;
use utoipa::ToSchema;

/// The fields of a request.
pub const TABLE: Table = &[
    yes("model"),
    yes("input").note("a string, or an array of messages").of(ITEM),
    yes("instructions"),
    yes("previous_response_id").note("of a stored response, made with the same key"),
    differs("store", "true by default, in memory: the last 1000, until the server ends"),
    yes("stream"),
    differs("stream_options", "has no effect: nothing is padded").of(&[yes("include_obfuscation")]),
    yes("max_output_tokens"),
    differs("temperature", "without it, what the checkpoint recommends, not 1"),
    differs("top_p", "without it, what the checkpoint recommends, not 1"),
    yes("seed").note("not OpenAI's"),
    yes("top_logprobs"),
    yes("reasoning").of(&[
        differs("effort", EFFORT),
        differs("summary", "has no effect: thoughts are shown whole, in a `reasoning` item"),
        differs("generate_summary", "has no effect, as `summary`"),
        no("context", "templates leave out thoughts of earlier turns").unless(&["\"auto\""]),
        no("mode", "there is one").unless(&["\"standard\""]),
    ]),
    differs("include", "only `message.output_text.logprobs`"),
    yes("metadata").note("given back"),
    differs("user", "has no effect"),
    differs("safety_identifier", "has no effect"),
    differs("prompt_cache_key", "has no effect: prefixes are always reused"),
    differs("prompt_cache_retention", "has no effect: prefixes are always reused"),
    differs("parallel_tool_calls", "has no effect without tools"),
    no("tools", "the model can't call tools yet").unless(&["[]"]),
    no("tool_choice", "the model can't call tools yet").unless(&["\"none\"", "\"auto\""]),
    no("max_tool_calls", "the model can't call tools yet"),
    no("text", "constrained output is not supported yet")
        .unless(&["{}", "{\"format\":{\"type\":\"text\"}}"]),
    no("truncation", "a prompt is never cut").unless(&["\"disabled\""]),
    no("background", "answers are made while the client waits").unless(&["false"]),
    no("service_tier", "there is one tier").unless(&["\"auto\"", "\"default\""]),
    no("conversation", "conversations are not stored; use previous_response_id"),
    no("prompt", "there are no stored prompts"),
    no("context_management", "a prompt is never cut"),
    no("moderation", "no filter runs"),
];

/// An item of the input.
const ITEM: Table = &[
    yes("type").note("`message`, or `reasoning` before an assistant's"),
    yes("role").note("`system`, `developer`, `user`, `assistant`"),
    yes("content").note("a string, or an array of parts").of(&[
        yes("type").note("`input_text`, `output_text`, `text`, `input_image` or `reasoning_text`"),
        yes("text"),
        differs("image_url", "a data URL of a PNG, JPEG or WebP file; nothing is fetched"),
        differs("detail", DETAIL),
        differs("annotations", "has no effect"),
        differs("logprobs", "has no effect"),
        no("file_id", "files are not stored: send the picture itself in `image_url`"),
        no("file_data", NO_FILES),
        no("file_url", NO_FILES),
        no("filename", NO_FILES),
        no("input_audio", NO_FILES),
        no("refusal", "there are no refusals beside the content"),
    ]),
    differs("summary", "has no effect: of a `reasoning` item, `content` is read"),
    no("encrypted_content", "thoughts are not encrypted").unless(&["\"\""]),
    differs("id", "has no effect"),
    differs("status", "has no effect"),
    differs("phase", "has no effect"),
];

/// A request.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ResponseRequest)]
pub struct Request {
    /// A name from `/v1/models`.
    pub model: String,
    /// What is new in the conversation.
    pub input: Input,
    /// How the model should behave; not carried over to later responses.
    pub instructions: Option<String>,
    /// Go on after this response.
    pub previous_response_id: Option<String>,
    /// Keep the response.
    pub store: Option<bool>,
    /// Send the answer as it is made.
    pub stream: Option<bool>,
    /// Accepted, without effect.
    #[schema(value_type = Option<Object>)]
    pub stream_options: Option<Value>,
    /// Tokens of the answer at most.
    pub max_output_tokens: Option<u64>,
    /// 0 takes the likeliest token.
    pub temperature: Option<f32>,
    /// Only the likeliest tokens whose probabilities reach this sum.
    pub top_p: Option<f32>,
    /// The same seed, the same answer.
    pub seed: Option<i64>,
    /// Alternatives of each token.
    pub top_logprobs: Option<u64>,
    /// Whether to think.
    pub reasoning: Option<Reasoning>,
    /// What else is wanted.
    pub include: Option<Vec<Include>>,
    /// Given back.
    pub metadata: Option<HashMap<String, String>>,
    /// Accepted, without effect.
    pub user: Option<String>,
    /// Accepted, without effect.
    pub safety_identifier: Option<String>,
    /// Accepted, without effect.
    pub prompt_cache_key: Option<String>,
    /// Accepted, without effect.
    pub prompt_cache_retention: Option<String>,
    /// Accepted, without effect.
    pub parallel_tool_calls: Option<bool>,
}

/// Whether to think.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
#[schema(as = ResponseReasoning)]
pub struct Reasoning {
    /// How much; anything but `none` is: as much as the model wants.
    pub effort: Option<Effort>,
    /// Accepted, without effect.
    pub summary: Option<String>,
    /// Accepted, without effect.
    pub generate_summary: Option<String>,
}

/// What else can be wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
pub enum Include {
    /// The tokens with their probabilities.
    #[serde(rename = "message.output_text.logprobs")]
    Logprobs,
}

/// A text, or messages.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of messages")]
#[schema(as = ResponseInput)]
pub enum Input {
    /// What the user says.
    Text(String),
    /// Messages.
    Items(Vec<Item>),
}

/// A message, or what was thought before it.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = ResponseItem)]
pub struct Item {
    /// `message` or `reasoning`.
    #[serde(rename = "type")]
    pub kind: Option<ItemKind>,
    /// Who speaks, in a message.
    pub role: Option<Role>,
    /// What is said.
    #[serde(deserialize_with = "said", default = "nothing")]
    pub content: Said<ItemPart>,
    /// Accepted, without effect.
    #[schema(value_type = Option<Object>)]
    pub summary: Option<Value>,
    /// Accepted, without effect.
    pub id: Option<String>,
    /// Accepted, without effect.
    pub status: Option<String>,
    /// Accepted, without effect.
    pub phase: Option<String>,
}

fn nothing() -> Said<ItemPart> {
    Said::Parts(vec![])
}

/// The kinds of items.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = ResponseItemKind)]
pub enum ItemKind {
    /// A message.
    Message,
    /// What the model thought.
    Reasoning,
}

/// A part of a content.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[schema(as = ResponsePart)]
pub enum ItemPart {
    /// Said to the model.
    InputText {
        /// The text.
        text: String,
    },
    /// Said by the model.
    OutputText {
        /// The text.
        text: String,
        /// Accepted, without effect.
        #[schema(value_type = Option<Object>)]
        annotations: Option<Value>,
        /// Accepted, without effect.
        #[schema(value_type = Option<Object>)]
        logprobs: Option<Value>,
    },
    /// Either.
    Text {
        /// The text.
        text: String,
    },
    /// Thought by the model.
    ReasoningText {
        /// The text.
        text: String,
    },
    /// A picture.
    InputImage {
        /// A data URL.
        image_url: String,
        /// Accepted, without effect.
        detail: Option<String>,
    },
}

impl Request {
    /// What is new, as templates take it.
    ///
    /// # Errors
    /// If there is nothing.
    pub fn messages(&self) -> Result<Conversation, Failure> {
        let mut out = Conversation::default();
        match &self.input {
            Input::Text(text) => out.say("user", text),
            Input::Items(items) if items.is_empty() => {
                return Err(Failure::field("input", "at least one message was expected"));
            }
            Input::Items(items) => {
                let mut thought = Vec::new();
                for (i, item) in items.iter().enumerate() {
                    thought.extend(pieces(&item.content, i)?);
                    if item.kind == Some(ItemKind::Reasoning) {
                        continue;
                    }
                    let role = item.role.ok_or_else(|| {
                        Failure::field(format!("input[{i}].role"), "missing field `role`")
                    })?;
                    out.show(role.name(), std::mem::take(&mut thought))?;
                }
                if !thought.is_empty() {
                    let at = format!("input[{}]", items.len() - 1);
                    let message = "the message that followed the thought was expected after it";
                    return Err(Failure::field(at, message));
                }
            }
        }
        Ok(out)
    }

    /// What is to be computed after the conversation `before`.
    ///
    /// # Errors
    /// If a value is out of its range.
    pub fn job(&self, before: &Conversation) -> Result<Job, Failure> {
        let mut conversation = Conversation::default();
        self.instructions.iter().for_each(|i| conversation.say("system", i));
        let mut conversation = conversation.then(before.clone())?.then(self.messages()?)?;
        let effort = self.reasoning.as_ref().and_then(|r| r.effort);
        conversation.think = effort.map(|e| e.asked("reasoning.effort"));
        let top = within("top_logprobs", self.top_logprobs, 0, MOST_LOGPROBS as u64)?;
        let included = self.include.iter().flatten().any(|i| *i == Include::Logprobs);
        let settings = Settings {
            temperature: self.temperature,
            top_p: self.top_p,
            seed: self.seed,
            ..Settings::default()
        };
        Ok(Job {
            max_tokens: token_limit("max_output_tokens", self.max_output_tokens)?,
            settings,
            logprobs: top.or(included.then_some(0)),
            ..Job::new(Prompt::Chat(conversation))
        })
    }
}

/// The content of item `i`.
fn pieces(content: &Said<ItemPart>, i: usize) -> Result<Vec<Piece>, Failure> {
    let parts = match content {
        Said::Text(text) => return Ok(vec![Piece::Text(text.clone())]),
        Said::Parts(parts) => parts,
    };
    let piece = |(j, part): (usize, &ItemPart)| match part {
        ItemPart::InputText { text }
        | ItemPart::OutputText { text, .. }
        | ItemPart::Text { text } => Ok(Piece::Text(text.clone())),
        ItemPart::ReasoningText { text } => {
            let field = format!("input[{i}].content[{j}]");
            Ok(Piece::Thought { field, text: text.clone() })
        }
        ItemPart::InputImage { image_url, .. } => {
            let field = format!("input[{i}].content[{j}].image_url");
            Image::from_url(field, image_url).map(Piece::Image)
        }
    };
    parts.iter().enumerate().map(piece).collect()
}

/// Bytes to a request and what it asks for, if nothing came before.
///
/// # Errors
/// If the body is refused.
pub fn read(body: &[u8], reading: Reading) -> Result<(Decoded<Request>, Job), Failure> {
    let decoded: Decoded<Request> = decode(body, TABLE, reading)?;
    let job = decoded.request.job(&Conversation::default())?;
    Ok((decoded, job))
}

/// A response.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Response {
    /// `resp_…`.
    pub id: String,
    /// `response`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created_at: i64,
    /// `in_progress`, `completed` or `incomplete`.
    pub status: &'static str,
    /// Always false.
    pub background: bool,
    /// Always null: errors come as such.
    #[schema(value_type = Option<Object>)]
    pub error: Value,
    /// Why it is incomplete.
    #[schema(value_type = Option<Object>)]
    pub incomplete_details: Value,
    /// As asked.
    pub instructions: Option<String>,
    /// As asked.
    pub max_output_tokens: Option<u64>,
    /// The model that answered.
    pub model: String,
    /// The answer: one message, and before it what was thought.
    #[schema(value_type = Vec<Object>)]
    pub output: Vec<Value>,
    /// Always true, without effect.
    pub parallel_tool_calls: bool,
    /// As asked.
    pub previous_response_id: Option<String>,
    /// As asked.
    #[schema(value_type = Object)]
    pub reasoning: Value,
    /// Whether it is kept.
    pub store: bool,
    /// What was sampled with.
    pub temperature: f64,
    /// Always text.
    #[schema(value_type = Object)]
    pub text: Value,
    /// `auto`.
    pub tool_choice: &'static str,
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    pub tools: Vec<Value>,
    /// What was sampled with.
    pub top_p: f64,
    /// As asked.
    pub top_logprobs: u64,
    /// `disabled`.
    pub truncation: &'static str,
    /// `default`.
    pub service_tier: &'static str,
    /// Tokens, once it is complete.
    #[schema(value_type = Option<Object>)]
    pub usage: Value,
    /// As asked.
    pub user: Option<String>,
    /// As asked.
    pub metadata: HashMap<String, String>,
    /// The same fingerprint, the same bytes. Not OpenAI's.
    pub system_fingerprint: String,
}

impl Response {
    fn begun(request: &Request, head: Head, defaults: &lapidary_engine::Sampling) -> Self {
        let reasoning = request.reasoning.clone().unwrap_or_default();
        Self {
            id: head.id,
            object: "response",
            created_at: head.created,
            status: "in_progress",
            background: false,
            error: Value::Null,
            incomplete_details: Value::Null,
            instructions: request.instructions.clone(),
            max_output_tokens: request.max_output_tokens,
            model: head.model,
            output: vec![],
            parallel_tool_calls: true,
            previous_response_id: request.previous_response_id.clone(),
            reasoning: value!({"effort": reasoning.effort, "summary": reasoning.summary}),
            store: request.store.unwrap_or(true),
            temperature: decimal(request.temperature.unwrap_or(defaults.temperature)),
            text: value!({"format": {"type": "text"}}),
            tool_choice: "auto",
            tools: vec![],
            top_p: decimal(request.top_p.unwrap_or(defaults.top_p)),
            top_logprobs: request.top_logprobs.unwrap_or(0),
            truncation: "disabled",
            service_tier: "default",
            usage: Value::Null,
            user: request.user.clone(),
            metadata: request.metadata.clone().unwrap_or_default(),
            system_fingerprint: head.fingerprint,
        }
    }

    /// The answer is complete.
    pub fn end(&mut self, output: Vec<Value>, end: &End, usage: &crate::answer::Usage) {
        self.output = output;
        self.status = status(end);
        if self.status == "incomplete" {
            self.incomplete_details = value!({"reason": "max_output_tokens"});
        }
        self.usage = value!({
            "input_tokens": usage.prompt,
            "input_tokens_details": {"cached_tokens": usage.cached},
            "output_tokens": usage.completion,
            "output_tokens_details": {"reasoning_tokens": usage.thought},
            "total_tokens": usage.prompt + usage.completion,
        });
    }
}

/// 0.95 for the f32 nearest to it, not 0.949999988.
fn decimal(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

/// The status of a message or response that ended so.
pub fn status(end: &End) -> &'static str {
    match end {
        End::Stop | End::StopString(_) => "completed",
        End::Length | End::Context => "incomplete",
    }
}

/// The message of an answer, or its beginning.
pub fn message(id: &str, status: &str, content: Vec<Value>) -> Value {
    value!({"id": id, "type": "message", "status": status, "role": "assistant", "content": content})
}

/// What was thought, or its beginning.
pub fn reasoning(id: &str, status: &str, content: Vec<Value>) -> Value {
    value!({"id": id, "type": "reasoning", "status": status, "summary": [], "content": content})
}

/// A part of what was thought.
pub fn reasoning_text(text: &str) -> Value {
    value!({"type": "reasoning_text", "text": text})
}

/// A part of a message.
pub fn output_text(text: &str, logprobs: Vec<Value>) -> Value {
    value!({"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs})
}

/// What is to be kept when the response is complete.
pub struct Keep {
    app: Shared,
    client: u64,
    conversation: Conversation,
    input: Vec<Value>,
}

impl Keep {
    /// Keeps the complete response, if that was asked for.
    pub fn keep(&mut self, response: &Response, thought: &str, text: &str) {
        if !response.store {
            return;
        }
        let mut conversation = std::mem::take(&mut self.conversation);
        conversation.say("assistant", text);
        if let (Some(turn), false) = (conversation.messages.last_mut(), thought.is_empty()) {
            turn.extra.insert(THOUGHT.to_owned(), thought.into());
        }
        let input = std::mem::take(&mut self.input);
        let kept = Kept { client: self.client, conversation, input, body: value!(response) };
        self.app.store.put(response.id.clone(), kept);
    }
}

/// Answers, and remembers the conversation unless told not to.
#[utoipa::path(post, operation_id = "createResponse", path = "/v1/responses", tag = "OpenAI", request_body = Request, responses(
    (status = 200, description = "The response; server-sent events with `stream`", content(
        (Response = "application/json"), (String = "text/event-stream"))),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
    (status = "5XX", description = "Busy or broken", body = super::ErrorBody),
))]
pub async fn handle(
    State(app): State<Shared>,
    Extension(caller): Extension<Arc<Caller>>,
    Whole(body): Whole,
) -> Reply {
    let (Decoded { request, mut ignored }, _) = read(&body, app.reading())?;
    let before = match &request.previous_response_id {
        Some(id) => app.store.get(id, caller.client)?.conversation,
        None => Conversation::default(),
    };
    let new = request.messages()?;
    let mut job = request.job(&before)?;
    let model = app.registry.get(&request.model).await?;
    think::settle(&mut job.prompt, &model, app.policy.lenient, &mut ignored)?;
    let answers = app.answers(&model, vec![job], &caller).await?;
    let seed = Some(answers.seed);
    let head = Head::new(&app, &model, "resp_");
    let mut response = Response::begun(&request, head, &model.text.defaults);
    let ids = (app.fresh_id("rs_"), app.fresh_id("msg_"));
    let input = items(&app, &new);
    let conversation = before.then(new)?;
    let mut keep = Keep { app: app.clone(), client: caller.client, conversation, input };
    let reply = if request.stream.unwrap_or(false) {
        let stream = Stream::new(response, ids, keep);
        stream::respond(answers, stream, stream::EVENTS)
    } else {
        let (choices, usage) = answers.collect().await?;
        for choice in choices {
            let part = output_text(&choice.text, super::chat::tokens(&choice.tokens));
            let mut output = vec![message(&ids.1, status(&choice.end), vec![part])];
            if !choice.thought.is_empty() {
                let thought = vec![reasoning_text(&choice.thought)];
                output.insert(0, reasoning(&ids.0, "completed", thought));
            }
            response.end(output, &choice.end, &usage);
            keep.keep(&response, &choice.thought, &choice.text);
        }
        json(&response)
    };
    Ok(signed(reply, &model, seed, &ignored))
}

/// Messages as items of the input.
fn items(app: &Shared, conversation: &Conversation) -> Vec<Value> {
    let mut images = conversation.images.iter();
    let items = conversation.messages.iter().flat_map(|message| {
        let kind = if message.role == "assistant" { "output_text" } else { "input_text" };
        let content: Vec<Value> = match message.content.as_array() {
            None => vec![value!({"type": kind, "text": message.content})],
            Some(parts) => (parts.iter())
                .map(|part| match part["text"].as_str() {
                    Some(text) => value!({"type": kind, "text": text}),
                    None => {
                        let url = images.next().map(Image::url);
                        value!({"type": "input_image", "detail": "auto", "image_url": url})
                    }
                })
                .collect(),
        };
        let thought = Some(thought_of(message)).filter(|t| !t.is_empty());
        let before =
            thought.map(|t| reasoning(&app.fresh_id("rs_"), "completed", vec![reasoning_text(t)]));
        let said = value!({
            "id": app.fresh_id("msg_"), "type": "message", "status": "completed",
            "role": message.role, "content": content,
        });
        before.into_iter().chain([said])
    });
    items.collect()
}

/// A stored response.
#[utoipa::path(get, operation_id = "getResponse", path = "/v1/responses/{id}", tag = "OpenAI",
    params(("id" = String, Path, description = "Of a stored response")), responses(
    (status = 200, description = "The response", body = Response),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
))]
pub async fn get(
    State(app): State<Shared>,
    Extension(caller): Extension<Arc<Caller>>,
    Path(id): Path<String>,
) -> Reply {
    Ok(json(&app.store.get(&id, caller.client)?.body))
}

/// What was new in the request of a stored response.
#[utoipa::path(get, operation_id = "listInputItems", path = "/v1/responses/{id}/input_items", tag = "OpenAI",
    params(("id" = String, Path, description = "Of a stored response")), responses(
    (status = 200, description = "A list of items", body = Object),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
))]
pub async fn input_items(
    State(app): State<Shared>,
    Extension(caller): Extension<Arc<Caller>>,
    Path(id): Path<String>,
) -> Reply {
    let mut items = app.store.get(&id, caller.client)?.input;
    // The newest first, as OpenAI lists them.
    items.reverse();
    let id = |i: Option<&Value>| i.map(|i| i["id"].clone());
    let (first, last) = (id(items.first()), id(items.last()));
    let list = value!({
        "object": "list", "data": items, "has_more": false, "first_id": first, "last_id": last,
    });
    Ok(json(&list))
}

/// Forgets a stored response.
#[utoipa::path(delete, operation_id = "deleteResponse", path = "/v1/responses/{id}", tag = "OpenAI",
    params(("id" = String, Path, description = "Of a stored response")), responses(
    (status = 200, description = "It is forgotten", body = Object),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
))]
pub async fn delete(
    State(app): State<Shared>,
    Extension(caller): Extension<Arc<Caller>>,
    Path(id): Path<String>,
) -> Reply {
    app.store.delete(&id, caller.client)?;
    Ok(json(&value!({"id": id, "object": "response", "deleted": true})))
}
