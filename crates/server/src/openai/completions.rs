//! `/v1/completions`: text to be continued, without a chat template.

use super::chat::{Head, StreamOptions, Usage, finish_reason};
use super::sampling::sampled;
use crate::answer::{Choice, Part, Token};
use crate::app::{Shared, Whole, json, signed};
use crate::auth::Caller;
use crate::failure::{Failure, Reply};
use crate::fields::{Decoded, Reading, Table, decode, differs, no, yes};
use crate::job::{Job, Prompt, token_limit, within};
use crate::stream::{self, Encoder, sse};
use axum::extract::{Extension, State};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json as value};
use std::sync::Arc;
use utoipa::ToSchema;

/// The fields of a request.
pub const TABLE: Table = &[
    yes("model"),
    differs(
        "prompt",
        "text, token ids, or arrays of either, at most 64; nothing in text is a control token",
    ),
    yes("stream"),
    yes("stream_options")
        .of(&[yes("include_usage"), differs("include_obfuscation", "has no effect")]),
    yes("max_tokens").note("16 where nothing is said, as with OpenAI"),
    differs("temperature", "without it, what the checkpoint recommends, not 1"),
    differs("top_p", "without it, what the checkpoint recommends, not 1"),
    yes("top_k").note("not OpenAI's; 0: all"),
    yes("min_p").note("not OpenAI's"),
    yes("typical_p").note("not OpenAI's"),
    yes("repetition_penalty").note("not OpenAI's"),
    yes("frequency_penalty"),
    yes("presence_penalty"),
    yes("logit_bias"),
    differs("seed", "promised, not best effort"),
    differs("stop", "up to 16 strings, not 4"),
    differs("n", "at most 16"),
    differs("logprobs", "alternatives of each token, at most 20; OpenAI gives 5"),
    differs("user", "has no effect"),
    no("echo", "the prompt is not repeated").unless(&["false"]),
    no("best_of", "answers are not ranked").unless(&["1"]),
    no("suffix", "models here don't fill in the middle").unless(&["\"\""]),
];

/// Prompts of a request at most.
const MOST_PROMPTS: usize = 64;

sampled! {
    /// A request.
    #[derive(Debug, Deserialize, ToSchema)]
    #[schema(as = CompletionRequest)]
    pub struct Request {
        /// A name from `/v1/models`.
        pub model: String,
        /// What to continue.
        pub prompt: Prompts,
        /// Send the answer as it is made.
        pub stream: Option<bool>,
        /// What a stream has.
        pub stream_options: Option<StreamOptions>,
        /// Tokens of an answer at most.
        pub max_tokens: Option<u64>,
        /// Alternatives of each token.
        pub logprobs: Option<u64>,
        /// Accepted, without effect.
        pub user: Option<String>,
    }
}

/// One text or many, as text or as token ids.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(
    untagged,
    expecting = "expected a string, an array of strings, token ids or arrays of them"
)]
#[schema(as = CompletionPrompts)]
pub enum Prompts {
    /// A text.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
    /// Texts.
    Texts(Vec<String>),
    /// Texts as token ids.
    ManyIds(Vec<Vec<u32>>),
}

impl Prompts {
    /// One by one.
    ///
    /// # Errors
    /// If there are none, too many, or one without tokens.
    pub fn all(&self, field: &str) -> Result<Vec<Prompt>, Failure> {
        let all: Vec<Prompt> = match self {
            Prompts::Text(text) => vec![Prompt::Text(text.clone())],
            Prompts::Ids(ids) => vec![Prompt::Ids(ids.clone())],
            Prompts::Texts(texts) => texts.iter().cloned().map(Prompt::Text).collect(),
            Prompts::ManyIds(many) => many.iter().cloned().map(Prompt::Ids).collect(),
        };
        if all.is_empty() || all.len() > MOST_PROMPTS {
            let message = format!("{} prompts; 1 to {MOST_PROMPTS} were expected", all.len());
            return Err(Failure::field(field, message));
        }
        if all.iter().any(|p| matches!(p, Prompt::Ids(ids) if ids.is_empty())) {
            return Err(Failure::field(field, "a prompt without tokens"));
        }
        Ok(all)
    }
}

/// Tokens of an answer where the request does not say, as with OpenAI.
const DEFAULT_TOKENS: usize = 16;

impl Request {
    /// What is to be computed.
    ///
    /// # Errors
    /// If a value is out of its range.
    pub fn jobs(&self) -> Result<Vec<Job>, Failure> {
        let job = Job {
            max_tokens: token_limit("max_tokens", self.max_tokens)?.or(Some(DEFAULT_TOKENS)),
            logprobs: within("logprobs", self.logprobs, 0, 20)?,
            ..self.sampled(Prompt::Text(String::new()))?
        };
        let prompts = self.prompt.all("prompt")?;
        Ok(prompts.into_iter().map(|prompt| Job { prompt, ..job.clone() }).collect())
    }
}

/// Bytes to a request and what it asks for.
///
/// # Errors
/// If the body is refused.
pub fn read(body: &[u8], reading: Reading) -> Result<(Decoded<Request>, Vec<Job>), Failure> {
    let decoded: Decoded<Request> = decode(body, TABLE, reading)?;
    let jobs = decoded.request.jobs()?;
    Ok((decoded, jobs))
}

/// An answer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Completion)]
pub struct Response {
    /// `cmpl-…`.
    pub id: String,
    /// `text_completion`.
    pub object: &'static str,
    /// Seconds since 1970.
    pub created: i64,
    /// The model that answered.
    pub model: String,
    /// The answers, those to the first prompt first.
    pub choices: Vec<TextChoice>,
    /// Tokens.
    pub usage: Usage,
    /// The same fingerprint, the same bytes.
    pub system_fingerprint: String,
}

/// One answer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = CompletionChoice)]
pub struct TextChoice {
    /// The text.
    pub text: String,
    /// Its number.
    pub index: usize,
    /// Probabilities.
    #[schema(value_type = Option<Object>)]
    pub logprobs: Option<Value>,
    /// `stop` or `length`.
    pub finish_reason: &'static str,
}

/// The probabilities of tokens; `offset`: characters before them, moved on.
fn logprobs(tokens: &[Token], offset: &mut usize) -> Value {
    let mut offsets = Vec::with_capacity(tokens.len());
    for t in tokens {
        offsets.push(*offset);
        *offset += t.text.chars().count();
    }
    let top = |t: &Token| -> serde_json::Map<String, Value> {
        t.top.iter().map(|a| (a.text.clone(), a.logprob.into())).collect()
    };
    value!({
        "tokens": tokens.iter().map(|t| t.text.as_str()).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|t| t.logprob).collect::<Vec<_>>(),
        "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

struct Stream {
    head: Head,
    include_usage: bool,
    /// Characters so far, of each answer.
    offsets: Vec<usize>,
}

impl Stream {
    fn chunk(&self, choices: Value, usage: Value) -> String {
        let mut chunk = value!({
            "id": self.head.id, "object": "text_completion", "created": self.head.created,
            "model": self.head.model, "system_fingerprint": self.head.fingerprint,
            "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = usage;
        }
        sse(None, &chunk)
    }
}

impl Encoder for Stream {
    fn part(&mut self, part: &Part) -> String {
        let choice = match part {
            Part::Text { choice, text, tokens } => {
                let offset = &mut self.offsets[*choice];
                let logprobs = tokens.as_ref().map(|t| logprobs(t, offset));
                value!({"text": text, "index": choice, "logprobs": logprobs, "finish_reason": null})
            }
            // Nobody thinks in a text that goes on.
            Part::Thought { .. } => return String::new(),
            Part::End { choice, end, .. } => {
                let reason = finish_reason(end);
                value!({"text": "", "index": choice, "logprobs": null, "finish_reason": reason})
            }
        };
        self.chunk(value!([choice]), Value::Null)
    }

    fn finish(&mut self, usage: &crate::answer::Usage) -> String {
        let mut out = String::new();
        if self.include_usage {
            out += &self.chunk(value!([]), value!(Usage::new(usage)));
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

/// Continues text.
#[utoipa::path(post, operation_id = "createCompletion", path = "/v1/completions", tag = "OpenAI", request_body = Request, responses(
    (status = 200, description = "The answers; server-sent events with `stream`", content(
        (Response = "application/json"), (String = "text/event-stream"))),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
    (status = "5XX", description = "Busy or broken", body = super::ErrorBody),
))]
pub async fn handle(
    State(app): State<Shared>,
    Extension(caller): Extension<Arc<Caller>>,
    Whole(body): Whole,
) -> Reply {
    let (Decoded { request, ignored }, jobs) = read(&body, app.reading())?;
    let model = app.registry.get(&request.model).await?;
    let answers = app.answers(&model, jobs, &caller).await?;
    let seed = Some(answers.seed);
    let head = Head::new(&app, &model, "cmpl-");
    let reply = if request.stream.unwrap_or(false) {
        let options = request.stream_options;
        let include_usage = options.and_then(|o| o.include_usage).unwrap_or(false);
        let offsets = vec![0; answers.choices];
        stream::respond(answers, Stream { head, include_usage, offsets }, stream::EVENTS)
    } else {
        let wanted = request.logprobs.is_some();
        let (choices, usage) = answers.collect().await?;
        let choice = |(index, c): (usize, Choice)| TextChoice {
            logprobs: wanted.then(|| logprobs(&c.tokens, &mut 0)),
            text: c.text,
            index,
            finish_reason: finish_reason(&c.end),
        };
        json(&Response {
            id: head.id,
            object: "text_completion",
            created: head.created,
            model: head.model,
            choices: choices.into_iter().enumerate().map(choice).collect(),
            usage: Usage::new(&usage),
            system_fingerprint: head.fingerprint,
        })
    };
    Ok(signed(reply, &model, seed, &ignored))
}
