//! `/api/chat` and `/api/generate`.

use super::options::{self, Options};
use super::stream::Stream;
use crate::answer::{Answers, End, Token, Usage};
use crate::app::{Shared, Whole, json, signed};
use crate::auth::Caller;
use crate::failure::{Failure, Reply};
use crate::fields::{Decoded, Reading, Table, decode, differs, no, yes};
use crate::job::{Job, MOST_LOGPROBS, Prompt, within};
use crate::pictures::{Conversation, Image, Piece};
use crate::stream;
use crate::think::{self, Asked};
use axum::extract::{Extension, State};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json as value};
use std::sync::Arc;
use std::time::{Instant, SystemTime};
use utoipa::ToSchema;

const NO_TOOLS: &str = "the model can't call tools yet";
const IMAGES: &str = "PNG, JPEG or WebP files in base64";
const NO_FORMAT: &str = "constrained output is not supported yet";
const THINK: &str = "a level is as good as true: the model thinks, for as long as it wants; without \
                     it, what `--think` or the template says";
const KEEP: &str = "has no effect: --idle says when models are unloaded";

/// The fields of a request to `/api/chat`.
pub const CHAT_TABLE: Table = &[
    yes("model").note("`:latest` may be left out"),
    yes("messages")
        .note("a last turn of the assistant is continued; none: the model is loaded")
        .of(&[
            yes("role").note("`system`, `user`, `assistant`"),
            yes("content"),
            yes("images").note(IMAGES),
            no("tool_calls", NO_TOOLS).unless(&["[]"]),
            no("tool_name", NO_TOOLS),
            no("tool_call_id", NO_TOOLS),
            differs(
                "thinking",
                "of a turn of the assistant; templates leave out thoughts of earlier turns",
            ),
        ]),
    yes("stream").note("true by default"),
    yes("options").of(options::TABLE),
    differs("keep_alive", KEEP),
    yes("logprobs"),
    yes("top_logprobs"),
    no("tools", NO_TOOLS).unless(&["[]"]),
    no("format", NO_FORMAT).unless(&["\"\""]),
    differs("think", THINK),
    no("truncate", "a prompt is never cut").unless(&["false"]),
    no("shift", "a full context ends the answer").unless(&["false"]),
];

/// The fields of a request to `/api/generate`.
pub const GENERATE_TABLE: Table = &[
    yes("model").note("`:latest` may be left out"),
    yes("prompt").note("none: the model is loaded"),
    yes("system"),
    yes("raw").note("the prompt as it is, without the chat template"),
    yes("stream").note("true by default"),
    yes("options").of(options::TABLE),
    differs("keep_alive", KEEP),
    yes("logprobs"),
    yes("top_logprobs"),
    no("suffix", "models here don't fill in the middle").unless(&["\"\""]),
    yes("images").note(IMAGES),
    no("template", "the checkpoint's own is used").unless(&["\"\""]),
    no("context", "send the conversation to /api/chat instead").unless(&["[]"]),
    no("format", NO_FORMAT).unless(&["\"\""]),
    differs("think", THINK),
    no("truncate", "a prompt is never cut").unless(&["false"]),
    no("shift", "a full context ends the answer").unless(&["false"]),
];

/// A request to `/api/chat`.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaChatRequest)]
pub struct ChatRequest {
    /// A name from `/api/tags`.
    pub model: String,
    /// The conversation.
    #[serde(default)]
    pub messages: Vec<Turn>,
    /// Send the answer as it is made.
    pub stream: Option<bool>,
    /// Whether to think.
    pub think: Option<Think>,
    /// How the model answers.
    pub options: Option<Options>,
    /// Accepted, without effect.
    #[schema(value_type = Option<Object>)]
    pub keep_alive: Option<Value>,
    /// Give the tokens with their probabilities.
    pub logprobs: Option<bool>,
    /// Alternatives of each token.
    pub top_logprobs: Option<u64>,
}

/// A turn.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaMessage)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: String,
    /// What the model thought before it said it.
    pub thinking: Option<String>,
    /// Pictures in base64, which are shown before it.
    pub images: Option<Vec<String>>,
}

/// Whether to think.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(untagged, expecting = "true, false, \"low\", \"medium\", \"high\" or \"max\" was expected")]
#[schema(as = OllamaThink)]
pub enum Think {
    /// Whether.
    Whether(bool),
    /// How much: as much as the model wants.
    Level(Level),
}

/// How much to think.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = OllamaThinkLevel)]
pub enum Level {
    /// As the others.
    Low,
    /// As the others.
    Medium,
    /// As the others.
    High,
    /// As the others.
    Max,
}

impl Think {
    fn asked(self) -> Asked {
        Asked { on: self != Think::Whether(false), field: "think" }
    }
}

/// Who speaks.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = OllamaRole)]
pub enum Role {
    /// Instructions.
    System,
    /// A person.
    User,
    /// The model.
    Assistant,
}

/// A request to `/api/generate`.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaGenerateRequest)]
pub struct GenerateRequest {
    /// A name from `/api/tags`.
    pub model: String,
    /// What to answer.
    #[serde(default)]
    pub prompt: String,
    /// Pictures in base64, which are shown before it.
    pub images: Option<Vec<String>>,
    /// How the model should behave.
    pub system: Option<String>,
    /// Continue the prompt as it is, without the chat template.
    pub raw: Option<bool>,
    /// Send the answer as it is made.
    pub stream: Option<bool>,
    /// Whether to think.
    pub think: Option<Think>,
    /// How the model answers.
    pub options: Option<Options>,
    /// Accepted, without effect.
    #[schema(value_type = Option<Object>)]
    pub keep_alive: Option<Value>,
    /// Give the tokens with their probabilities.
    pub logprobs: Option<bool>,
    /// Alternatives of each token.
    pub top_logprobs: Option<u64>,
}

fn logprobs(wanted: Option<bool>, top: Option<u64>) -> Result<Option<usize>, Failure> {
    let top = within("top_logprobs", top, 0, MOST_LOGPROBS as u64)?;
    match (wanted.unwrap_or(false), top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(Failure::field("top_logprobs", "needs logprobs to be true")),
    }
}

/// Pictures, and then what is said of them.
fn pieces(at: &str, images: Option<&Vec<String>>, text: &str) -> Vec<Piece> {
    let image = |(i, data): (usize, &String)| Image::untyped(format!("{at}[{i}]"), data);
    let images = images.into_iter().flatten().enumerate().map(image);
    images.map(Piece::Image).chain([Piece::Text(text.to_owned())]).collect()
}

impl ChatRequest {
    /// What is to be computed; nothing if the model is only to be loaded.
    ///
    /// # Errors
    /// If a value is out of its range.
    pub fn job(&self) -> Result<Option<Job>, Failure> {
        let think = self.think.map(Think::asked);
        let mut conversation = Conversation { think, ..Conversation::default() };
        for (i, m) in self.messages.iter().enumerate() {
            let role = match m.role {
                Role::System => "system",
                Role::User => "user",
                Role::Assistant => "assistant",
            };
            let at = format!("messages[{i}].images");
            let mut said = pieces(&at, m.images.as_ref(), &m.content);
            if let Some(text) = m.thinking.clone().filter(|t| !t.is_empty()) {
                said.push(Piece::Thought { field: format!("messages[{i}].thinking"), text });
            }
            conversation.show(role, said)?;
        }
        let prompt = Prompt::Chat(conversation);
        let job = self.options.clone().unwrap_or_default().job(prompt)?;
        let logprobs = logprobs(self.logprobs, self.top_logprobs)?;
        Ok((!self.messages.is_empty()).then_some(Job { logprobs, ..job }))
    }
}

impl GenerateRequest {
    /// What is to be computed; nothing if the model is only to be loaded.
    ///
    /// # Errors
    /// If a value is out of its range.
    pub fn job(&self) -> Result<Option<Job>, Failure> {
        let raw = self.raw.unwrap_or(false);
        if raw && self.system.as_deref().is_some_and(|s| !s.is_empty()) {
            return Err(Failure::field("system", "a raw prompt has no place for it"));
        }
        if raw && self.images.as_ref().is_some_and(|i| !i.is_empty()) {
            return Err(Failure::field("images", "a raw prompt has no place for them"));
        }
        if raw && self.think.is_some_and(|t| t.asked().on) {
            return Err(Failure::field("think", "a raw prompt has no place for it"));
        }
        let prompt = if raw {
            Prompt::Text(self.prompt.clone())
        } else {
            let think = self.think.map(Think::asked);
            let mut conversation = Conversation { think, ..Conversation::default() };
            let system = self.system.as_deref().filter(|s| !s.is_empty());
            system.iter().for_each(|s| conversation.say("system", s));
            conversation.show("user", pieces("images", self.images.as_ref(), &self.prompt))?;
            Prompt::Chat(conversation)
        };
        let job = self.options.clone().unwrap_or_default().job(prompt)?;
        let logprobs = logprobs(self.logprobs, self.top_logprobs)?;
        Ok((!self.prompt.is_empty()).then_some(Job { logprobs, ..job }))
    }
}

/// Bytes to a request to `/api/chat` and what it asks for.
///
/// # Errors
/// If the body is refused.
pub fn read_chat(
    body: &[u8],
    reading: Reading,
) -> Result<(Decoded<ChatRequest>, Option<Job>), Failure> {
    let decoded: Decoded<ChatRequest> = decode(body, CHAT_TABLE, reading)?;
    let job = decoded.request.job()?;
    Ok((decoded, job))
}

/// Bytes to a request to `/api/generate` and what it asks for.
///
/// # Errors
/// If the body is refused.
pub fn read_generate(
    body: &[u8],
    reading: Reading,
) -> Result<(Decoded<GenerateRequest>, Option<Job>), Failure> {
    let decoded: Decoded<GenerateRequest> = decode(body, GENERATE_TABLE, reading)?;
    let job = decoded.request.job()?;
    Ok((decoded, job))
}

/// An answer, or the last line of one.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaResponse)]
pub struct Response {
    /// The model that answered.
    pub model: String,
    /// When, RFC 3339.
    pub created_at: String,
    /// The message (`/api/chat`).
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    pub message: Option<Value>,
    /// The text (`/api/generate`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response: Option<String>,
    /// What the model thought before (`/api/generate`).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<String>,
    /// Whether it is complete.
    pub done: bool,
    /// `stop`, `length` or `load`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub done_reason: Option<&'static str>,
    /// Probabilities.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<Object>>)]
    pub logprobs: Option<Vec<Value>>,
    /// Of a complete answer.
    #[serde(flatten)]
    pub figures: Figures,
}

/// Counts, and times in nanoseconds: all of a complete answer, and none before.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = OllamaFigures)]
pub struct Figures {
    /// From the request to the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total_duration: Option<u64>,
    /// Until the model was loaded.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub load_duration: Option<u64>,
    /// Tokens of the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_eval_count: Option<usize>,
    /// Computing the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_eval_duration: Option<u64>,
    /// Tokens of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_count: Option<usize>,
    /// Computing the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_duration: Option<u64>,
    /// Names weights, precision and version: the same, the same bytes. Not Ollama's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_fingerprint: Option<String>,
}

/// What all lines of an answer share.
pub struct Head {
    /// The model that answers.
    pub model: String,
    /// See [`Figures::system_fingerprint`].
    pub fingerprint: String,
    /// Whether it is a chat.
    pub chat: bool,
    /// When the request came.
    pub start: Instant,
    /// When the model was loaded.
    pub loaded: Instant,
}

impl Head {
    /// A line with a piece of the answer, and of what was thought before it.
    pub fn line(&self, thought: &str, text: &str, tokens: Option<&[Token]>) -> Response {
        let thinking = Some(thought.to_owned()).filter(|t| !t.is_empty());
        let mut message = value!({"role": "assistant", "content": text});
        if let Some(thinking) = &thinking {
            message["thinking"] = thinking.as_str().into();
        }
        Response {
            model: self.model.clone(),
            created_at: crate::clock::rfc3339(SystemTime::now()),
            message: self.chat.then_some(message),
            response: (!self.chat).then(|| text.to_owned()),
            thinking: thinking.filter(|_| !self.chat),
            done: false,
            done_reason: None,
            logprobs: tokens.map(probabilities),
            figures: Figures::default(),
        }
    }

    /// The last line, or the line of a whole answer.
    pub fn last(&self, line: Response, end: &End, usage: &Usage) -> Response {
        let nanoseconds = |d: std::time::Duration| Some(d.as_nanos() as u64);
        let figures = Figures {
            total_duration: nanoseconds(self.start.elapsed()),
            load_duration: nanoseconds(self.loaded - self.start),
            prompt_eval_count: Some(usage.prompt),
            prompt_eval_duration: nanoseconds(usage.timings.prefill),
            eval_count: Some(usage.completion),
            eval_duration: nanoseconds(usage.timings.decode),
            system_fingerprint: Some(self.fingerprint.clone()),
        };
        let reason = match end {
            End::Stop | End::StopString(_) => "stop",
            End::Length | End::Context => "length",
        };
        Response { done: true, done_reason: Some(reason), figures, ..line }
    }
}

/// Tokens with their probabilities.
fn probabilities(tokens: &[Token]) -> Vec<Value> {
    let one = |t: &Token| value!({"token": t.text, "logprob": t.logprob, "bytes": t.bytes});
    let all = tokens.iter().map(|t| {
        let mut out = one(t);
        if !t.top.is_empty() {
            out["top_logprobs"] = t.top.iter().map(one).collect::<Vec<_>>().into();
        }
        out
    });
    all.collect()
}

/// Answers a conversation.
#[utoipa::path(post, operation_id = "ollamaChat", path = "/api/chat", tag = "Ollama", request_body = ChatRequest, responses(
    (status = 200, description = "Lines of JSON, or one object without `stream`", content(
        (Response = "application/x-ndjson"), (Response = "application/json"))),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
    (status = "5XX", description = "Busy or broken", body = super::ErrorBody),
))]
pub async fn chat(
    State(app): State<Shared>,
    Extension(caller): Extension<Arc<Caller>>,
    Whole(body): Whole,
) -> Reply {
    let start = Instant::now();
    let (Decoded { request, ignored }, job) = read_chat(&body, app.reading())?;
    let ChatRequest { model, options, stream, .. } = request;
    let asked = Wanted { model, options, stream, chat: true, start, job, ignored };
    answer(&app, &caller, asked).await
}

/// Answers a prompt.
#[utoipa::path(post, operation_id = "ollamaGenerate", path = "/api/generate", tag = "Ollama", request_body = GenerateRequest, responses(
    (status = 200, description = "Lines of JSON, or one object without `stream`", content(
        (Response = "application/x-ndjson"), (Response = "application/json"))),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
    (status = "5XX", description = "Busy or broken", body = super::ErrorBody),
))]
pub async fn generate(
    State(app): State<Shared>,
    Extension(caller): Extension<Arc<Caller>>,
    Whole(body): Whole,
) -> Reply {
    let start = Instant::now();
    let (Decoded { request, ignored }, job) = read_generate(&body, app.reading())?;
    let GenerateRequest { model, options, stream, .. } = request;
    let asked = Wanted { model, options, stream, chat: false, start, job, ignored };
    answer(&app, &caller, asked).await
}

/// What both endpoints were asked for.
struct Wanted {
    model: String,
    options: Option<Options>,
    stream: Option<bool>,
    chat: bool,
    /// When the request came.
    start: Instant,
    job: Option<Job>,
    ignored: Vec<String>,
}

async fn answer(app: &Shared, caller: &Caller, asked: Wanted) -> Reply {
    let Wanted { model, options, stream, chat, start, job, mut ignored } = asked;
    let model = app.registry.get(&model).await?;
    options.unwrap_or_default().check(model.card.context)?;
    let (name, fingerprint) = (model.name.clone(), model.fingerprint.clone());
    let head = Head { model: name, fingerprint, chat, start, loaded: Instant::now() };
    let Some(mut job) = job else {
        // An empty request loads the model.
        let loaded = Response { done: true, done_reason: Some("load"), ..head.line("", "", None) };
        return Ok(signed(json(&loaded), &model, None, &ignored));
    };
    think::settle(&mut job.prompt, &model, app.policy.lenient, &mut ignored)?;
    let wanted = job.logprobs.is_some();
    let answers: Answers = app.answers(&model, vec![job], caller).await?;
    let seed = Some(answers.seed);
    let reply = if stream.unwrap_or(true) {
        stream::respond(answers, Stream::new(head), stream::LINES)
    } else {
        let (choices, usage) = answers.collect().await?;
        let choice = choices.into_iter().next().unwrap_or_default();
        let tokens = wanted.then_some(&choice.tokens[..]);
        json(&head.last(head.line(&choice.thought, &choice.text, tokens), &choice.end, &usage))
    };
    Ok(signed(reply, &model, seed, &ignored))
}
