//! `/v1/chat/completions`.

use super::content::{ChatMessage, Effort, MESSAGE, logprobs, messages};
use super::sampling::sampled;
use crate::answer::{Choice, End, Part, Token};
use crate::app::{App, Shared, Whole, json, signed};
use crate::auth::Caller;
use crate::failure::{Failure, Reply};
use crate::fields::{Decoded, Reading, Table, decode, differs, no, yes};
use crate::job::{Job, Prompt, token_limit};
use crate::model::Model;
use crate::pictures::Conversation;
use crate::stream::{self, Encoder, sse};
use crate::think;
use axum::extract::{Extension, State};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json as value};
use std::collections::HashMap;
use std::sync::Arc;
use utoipa::ToSchema;

/// What becomes of an effort.
pub const EFFORT: &str = "`none`: no thoughts; any other: the model thinks, for as long as it wants; \
                      without it, what `--think` or the template says";

/// The fields of a request.
pub const TABLE: Table = &[
    yes("model"),
    differs("messages", "a last turn of the assistant is continued").of(MESSAGE),
    yes("stream"),
    yes("stream_options").of(STREAM_OPTIONS),
    yes("max_completion_tokens"),
    yes("max_tokens").note("the older name of `max_completion_tokens`"),
    differs("temperature", "without it, what the checkpoint recommends, not 1"),
    differs("top_p", "without it, what the checkpoint recommends, not 1"),
    yes("top_k").note("not OpenAI's; 0: all"),
    yes("min_p").note("not OpenAI's"),
    yes("typical_p").note("not OpenAI's"),
    yes("repetition_penalty")
        .note("not OpenAI's; above 1: tokens that occurred become less likely"),
    yes("frequency_penalty"),
    yes("presence_penalty"),
    yes("logit_bias"),
    differs("reasoning_effort", EFFORT),
    differs("seed", "promised, not best effort: the same request gives the same bytes"),
    differs("stop", "up to 16 strings, not 4"),
    differs("n", "at most 16"),
    yes("logprobs"),
    yes("top_logprobs"),
    differs("user", "has no effect"),
    differs("metadata", "has no effect"),
    differs("safety_identifier", "has no effect"),
    differs("prompt_cache_key", "has no effect: prefixes are always reused"),
    differs("prompt_cache_retention", "has no effect: prefixes are always reused"),
    differs("parallel_tool_calls", "has no effect without tools"),
    no("modalities", "answers are text").unless(&["[\"text\"]"]),
    no("service_tier", "there is one tier").unless(&["\"auto\"", "\"default\""]),
    no("store", "chat completions are not stored").unless(&["false"]),
    no("response_format", "constrained output is not supported yet")
        .unless(&["{\"type\":\"text\"}"]),
    no("tools", "the model can't call tools yet").unless(&["[]"]),
    no("tool_choice", "the model can't call tools yet").unless(&["\"none\"", "\"auto\""]),
    no("functions", "the model can't call tools yet").unless(&["[]"]),
    no("function_call", "the model can't call tools yet").unless(&["\"none\"", "\"auto\""]),
    no("verbosity", "models here have no such setting").unless(&["\"medium\""]),
    no("prediction", "predicted outputs are not supported"),
    no("audio", "answers are text"),
    no("web_search_options", "nothing is searched"),
];

const STREAM_OPTIONS: Table =
    &[yes("include_usage"), differs("include_obfuscation", "has no effect: nothing is padded")];

sampled! {
    /// A request.
    #[derive(Debug, Deserialize, ToSchema)]
    #[schema(as = ChatCompletionRequest)]
    pub struct Request {
        /// A name from `/v1/models`.
        pub model: String,
        /// The conversation.
        pub messages: Vec<ChatMessage>,
        /// Send the answer as it is made.
        pub stream: Option<bool>,
        /// What a stream has.
        pub stream_options: Option<StreamOptions>,
        /// Tokens of an answer at most.
        pub max_completion_tokens: Option<u64>,
        /// Tokens of an answer at most.
        pub max_tokens: Option<u64>,
        /// Give the tokens with their probabilities.
        pub logprobs: Option<bool>,
        /// Alternatives of each token.
        pub top_logprobs: Option<u64>,
        /// Whether to think.
        pub reasoning_effort: Option<Effort>,
        /// Accepted, without effect.
        pub user: Option<String>,
        /// Accepted, without effect.
        pub metadata: Option<HashMap<String, String>>,
        /// Accepted, without effect.
        pub safety_identifier: Option<String>,
        /// Accepted, without effect.
        pub prompt_cache_key: Option<String>,
        /// Accepted, without effect.
        pub prompt_cache_retention: Option<String>,
        /// Accepted, without effect.
        pub parallel_tool_calls: Option<bool>,
    }
}

/// What a stream has.
#[derive(Debug, Deserialize, ToSchema)]
pub struct StreamOptions {
    /// A last chunk with the usage.
    pub include_usage: Option<bool>,
    /// Accepted, without effect.
    pub include_obfuscation: Option<bool>,
}

impl Request {
    /// What is to be computed.
    ///
    /// # Errors
    /// If a value is out of its range.
    pub fn job(&self) -> Result<Job, Failure> {
        let limit = token_limit("max_completion_tokens", self.max_completion_tokens)?;
        Ok(Job {
            max_tokens: limit.or(token_limit("max_tokens", self.max_tokens)?),
            logprobs: logprobs(self.logprobs, self.top_logprobs)?,
            ..self.sampled(Prompt::Chat(self.conversation()?))?
        })
    }

    fn conversation(&self) -> Result<Conversation, Failure> {
        let think = self.reasoning_effort.map(|e| e.asked("reasoning_effort"));
        Ok(Conversation { think, ..messages(&self.messages)? })
    }
}

/// Bytes to a request and what it asks for.
///
/// # Errors
/// If the body is refused.
pub fn read(body: &[u8], reading: Reading) -> Result<(Decoded<Request>, Job), Failure> {
    let decoded: Decoded<Request> = decode(body, TABLE, reading)?;
    let job = decoded.request.job()?;
    Ok((decoded, job))
}

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ChatCompletion)]
pub struct Response {
    /// `chatcmpl-…`.
    pub id: String,
    /// `chat.completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: i64,
    /// The model that answered.
    pub model: String,
    /// The answers.
    pub choices: Vec<ChatChoice>,
    /// Tokens.
    pub usage: Usage,
    /// Names weights, precision and version: the same fingerprint, the same bytes.
    pub system_fingerprint: String,
    /// `default`.
    pub service_tier: &'static str,
}

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
pub struct ChatChoice {
    /// Its number.
    pub index: usize,
    /// The message.
    pub message: AssistantMessage,
    /// Probabilities.
    #[schema(value_type = Option<Object>)]
    pub logprobs: Option<Value>,
    /// `stop` or `length`.
    pub finish_reason: &'static str,
}

/// What the model said.
#[derive(Debug, Serialize, ToSchema)]
pub struct AssistantMessage {
    /// `assistant`.
    pub role: &'static str,
    /// What the model thought before, if it did. Not OpenAI's, whose chats hide it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<String>,
    /// The text.
    pub content: String,
    /// Always null.
    pub refusal: Option<String>,
    /// Always empty.
    #[schema(value_type = Vec<Object>)]
    pub annotations: Vec<Value>,
}

/// Tokens of a request.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the answers.
    pub completion_tokens: usize,
    /// Both.
    pub total_tokens: usize,
    /// Of the prompt's tokens.
    pub prompt_tokens_details: PromptTokens,
    /// Of the answers' tokens.
    pub completion_tokens_details: CompletionTokens,
}

/// Of the prompt's tokens.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct PromptTokens {
    /// Those that were still in the cache.
    pub cached_tokens: usize,
}

/// Of the answers' tokens.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct CompletionTokens {
    /// Those that were thought, with the markers around them.
    pub reasoning_tokens: usize,
}

impl Usage {
    /// From what the engine counted.
    pub fn new(usage: &crate::answer::Usage) -> Self {
        Self {
            prompt_tokens: usage.prompt,
            completion_tokens: usage.completion,
            total_tokens: usage.prompt + usage.completion,
            prompt_tokens_details: PromptTokens { cached_tokens: usage.cached },
            completion_tokens_details: CompletionTokens { reasoning_tokens: usage.thought },
        }
    }
}

/// OpenAI's name of an end.
pub fn finish_reason(end: &End) -> &'static str {
    match end {
        End::Stop | End::StopString(_) => "stop",
        End::Length | End::Context => "length",
    }
}

/// What all chunks of an answer share.
#[derive(Debug, Clone)]
pub struct Head {
    /// Id of the answer.
    pub id: String,
    /// Seconds since 1970.
    pub created: i64,
    /// The model that answers.
    pub model: String,
    /// See [`Response::system_fingerprint`].
    pub fingerprint: String,
}

/// The answer as a whole.
pub fn response(
    head: Head,
    choices: Vec<Choice>,
    logprobs: bool,
    usage: &crate::answer::Usage,
) -> Response {
    let choice = |(index, c): (usize, Choice)| ChatChoice {
        index,
        logprobs: logprobs.then(|| value!({"content": tokens(&c.tokens), "refusal": null})),
        finish_reason: finish_reason(&c.end),
        message: AssistantMessage {
            role: "assistant",
            reasoning_content: Some(c.thought).filter(|t| !t.is_empty()),
            content: c.text,
            refusal: None,
            annotations: vec![],
        },
    };
    Response {
        id: head.id,
        object: "chat.completion",
        created: head.created,
        model: head.model,
        choices: choices.into_iter().enumerate().map(choice).collect(),
        usage: Usage::new(usage),
        system_fingerprint: head.fingerprint,
        service_tier: "default",
    }
}

/// Tokens with their probabilities.
pub fn tokens(tokens: &[Token]) -> Vec<Value> {
    let one = |text: &str, bytes: &[u8], logprob: f32| value!({"token": text, "bytes": bytes, "logprob": logprob});
    (tokens.iter())
        .map(|t| {
            let mut out = one(&t.text, &t.bytes, t.logprob);
            out["top_logprobs"] =
                t.top.iter().map(|a| one(&a.text, &a.bytes, a.logprob)).collect::<Vec<_>>().into();
            out
        })
        .collect()
}

/// The answer as server-sent events.
pub struct Stream {
    /// What all chunks share.
    pub head: Head,
    /// A last chunk with the usage.
    pub include_usage: bool,
    /// Which answers have begun.
    pub begun: Vec<bool>,
}

impl Stream {
    fn chunk(&self, choices: Value, usage: Value) -> Value {
        let mut chunk = value!({
            "id": self.head.id, "object": "chat.completion.chunk", "created": self.head.created,
            "model": self.head.model, "system_fingerprint": self.head.fingerprint,
            "service_tier": "default", "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = usage;
        }
        chunk
    }

    fn choice(&self, index: usize, delta: Value, logprobs: Value, finish: Value) -> String {
        let choice =
            value!({"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish});
        sse(None, &self.chunk(value!([choice]), Value::Null))
    }

    fn begin(&mut self, index: usize) -> String {
        if std::mem::replace(&mut self.begun[index], true) {
            return String::new();
        }
        let delta = value!({"role": "assistant", "content": "", "refusal": null});
        self.choice(index, delta, Value::Null, Value::Null)
    }
}

impl Encoder for Stream {
    fn part(&mut self, part: &Part) -> String {
        match part {
            Part::Text { choice, text, tokens: t } => {
                let logprobs = match t {
                    Some(t) => value!({"content": tokens(t), "refusal": null}),
                    None => Value::Null,
                };
                let begin = self.begin(*choice);
                begin + &self.choice(*choice, value!({"content": text}), logprobs, Value::Null)
            }
            Part::Thought { choice, text } => {
                let (begin, delta) = (self.begin(*choice), value!({"reasoning_content": text}));
                begin + &self.choice(*choice, delta, Value::Null, Value::Null)
            }
            Part::End { choice, end, .. } => {
                let begin = self.begin(*choice);
                begin + &self.choice(*choice, value!({}), Value::Null, finish_reason(end).into())
            }
        }
    }

    fn finish(&mut self, usage: &crate::answer::Usage) -> String {
        let mut out = String::new();
        if self.include_usage {
            out += &sse(None, &self.chunk(value!([]), value!(Usage::new(usage))));
        }
        out + "data: [DONE]\n\n"
    }

    fn failed(&mut self, failure: &Failure) -> String {
        sse(None, &value!(super::ErrorBody::new(failure)))
    }

    fn ping(&mut self) -> &'static str {
        ": waiting\n\n"
    }
}

/// Answers a conversation.
#[utoipa::path(post, operation_id = "createChatCompletion", path = "/v1/chat/completions", tag = "OpenAI", request_body = Request, responses(
    (status = 200, description = "The answer; server-sent events with `stream`", content(
        (Response = "application/json"), (String = "text/event-stream"))),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
    (status = "5XX", description = "Busy or broken", body = super::ErrorBody),
))]
pub async fn handle(
    State(app): State<Shared>,
    Extension(caller): Extension<Arc<Caller>>,
    Whole(body): Whole,
) -> Reply {
    let (Decoded { request, mut ignored }, mut job) = read(&body, app.reading())?;
    let model = app.registry.get(&request.model).await?;
    think::settle(&mut job.prompt, &model, app.policy.lenient, &mut ignored)?;
    let answers = app.answers(&model, vec![job], &caller).await?;
    let seed = Some(answers.seed);
    let head = Head::new(&app, &model, "chatcmpl-");
    let reply = if request.stream.unwrap_or(false) {
        let options = request.stream_options;
        let include_usage = options.and_then(|o| o.include_usage).unwrap_or(false);
        let begun = vec![false; answers.choices];
        stream::respond(answers, Stream { head, include_usage, begun }, stream::EVENTS)
    } else {
        let logprobs = request.logprobs.unwrap_or(false);
        let (choices, usage) = answers.collect().await?;
        json(&response(head, choices, logprobs, &usage))
    };
    Ok(signed(reply, &model, seed, &ignored))
}

impl Head {
    /// The head of a new answer of `model`.
    pub fn new(app: &App, model: &Model, prefix: &str) -> Self {
        Self {
            id: app.fresh_id(prefix),
            created: crate::clock::seconds(),
            model: model.name.clone(),
            fingerprint: model.fingerprint.clone(),
        }
    }
}
