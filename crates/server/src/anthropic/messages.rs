//! `/v1/messages` and `/v1/messages/count_tokens`.

use super::stream::Stream;
use crate::answer::{self, End};
use crate::app::{Shared, Whole, json, signed};
use crate::auth::Caller;
use crate::failure::{Failure, Reply};
use crate::fields::{Decoded, Field, Reading, Table, decode, differs, no, yes};
use crate::job::{Job, OneOrMany, Prompt, Said, Settings, said, stops, token_limit};
use crate::pictures::{Conversation, Image, NO_FETCHING, NO_FILES, Piece};
use crate::stream;
use crate::think::{self, Asked};
use axum::extract::{Extension, State};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json as value};
use std::sync::Arc;
use utoipa::ToSchema;

const NO_TOOLS: &str = "the model can't call tools yet";

/// The fields of a request.
pub const TABLE: Table = &[
    yes("model"),
    yes("messages")
        .note("turns of the same role are joined; a last turn of the assistant is continued")
        .of(MESSAGE),
    yes("max_tokens"),
    yes("system").note("a string, or text blocks").of(TEXT_BLOCK),
    yes("stop_sequences"),
    yes("stream"),
    differs("temperature", "without it, what the checkpoint recommends, not 1; may be above 1"),
    yes("top_k"),
    differs("top_p", "without it, what the checkpoint recommends"),
    differs("metadata", "has no effect").of(&[differs("user_id", "has no effect")]),
    no("service_tier", "there is one tier").unless(&["\"auto\"", "\"standard_only\""]),
    yes("thinking").of(THINKING),
    no("tools", NO_TOOLS).unless(&["[]"]),
    no("tool_choice", NO_TOOLS).unless(&["{\"type\":\"none\"}", "{\"type\":\"auto\"}"]),
    no("mcp_servers", NO_TOOLS).unless(&["[]"]),
    no("container", "nothing is executed"),
    no("context_management", "a prompt is never cut"),
    no("output_format", "constrained output is not supported yet"),
    no("output_config", "constrained output is not supported yet").unless(&["{}"]),
    no("inference_geo", "answers are made on this machine"),
];

/// The fields of a request to count tokens.
pub const COUNT_TABLE: Table = &[
    yes("model"),
    yes("messages").note("counted exactly, template included").of(MESSAGE),
    yes("system").note("a string, or text blocks").of(TEXT_BLOCK),
    yes("thinking").of(THINKING),
    no("tools", NO_TOOLS).unless(&["[]"]),
    no("tool_choice", NO_TOOLS).unless(&["{\"type\":\"none\"}", "{\"type\":\"auto\"}"]),
    no("mcp_servers", NO_TOOLS).unless(&["[]"]),
    no("context_management", "a prompt is never cut"),
    no("output_format", "constrained output is not supported yet"),
    no("output_config", "constrained output is not supported yet").unless(&["{}"]),
];

const THINKING: Table = &[
    yes("type").note(
        "`enabled`, `adaptive` or `disabled`; without it, what `--think` or the template says",
    ),
    differs(
        "budget_tokens",
        "has no effect: the model thinks for as long as it wants, within `max_tokens`",
    ),
    differs("display", "`summarized`: thoughts come whole; `omitted`: their blocks are empty"),
];

const MESSAGE: Table = &[
    yes("role").note("`user` or `assistant`"),
    yes("content").note("a string, or blocks of text and pictures").of(BLOCK),
    differs("id", "has no effect"),
    differs("type", "has no effect"),
];

const BLOCK: Table = &block(
    yes("type").note("`text`, `image`, or `thinking` in a turn of the assistant"),
    yes("source").note("of an `image`, in a turn of the user").of(&[
        yes("type").note("`base64`"),
        yes("media_type").note("`image/png`, `image/jpeg` or `image/webp`"),
        yes("data"),
        no("url", NO_FETCHING),
        no("file_id", "files are not stored: send the picture itself, in base64"),
        no("content", NO_FILES),
    ]),
    differs("thinking", "templates leave out thoughts of earlier turns"),
    differs("signature", "has no effect"),
);

const TEXT_BLOCK: Table = &block(
    yes("type").note("`text`"),
    no("source", "instructions are text"),
    no("thinking", "instructions are text"),
    no("signature", "instructions are text"),
);

const fn block(kind: Field, source: Field, thinking: Field, signature: Field) -> [Field; 16] {
    [
        kind,
        yes("text"),
        source,
        differs("cache_control", "has no effect: prefixes are always reused"),
        no("citations", "nothing is cited").unless(&["[]", "{\"enabled\":false}"]),
        no("title", NO_FILES),
        no("context", NO_FILES),
        no("id", NO_TOOLS),
        no("name", NO_TOOLS),
        no("input", NO_TOOLS),
        no("tool_use_id", NO_TOOLS),
        no("content", NO_TOOLS),
        no("is_error", NO_TOOLS),
        thinking,
        signature,
        no("data", NO_FILES),
    ]
}

/// A request.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = MessagesRequest)]
pub struct Request {
    /// A name from `/v1/models`.
    pub model: String,
    /// The conversation.
    pub messages: Vec<Turn>,
    /// Tokens of the answer at most.
    pub max_tokens: u64,
    /// How the model should behave.
    pub system: Option<Said<SystemBlock>>,
    /// Strings that end the answer.
    pub stop_sequences: Option<Vec<String>>,
    /// Send the answer as it is made.
    pub stream: Option<bool>,
    /// 0 takes the likeliest token.
    pub temperature: Option<f32>,
    /// Only the likeliest so many tokens.
    pub top_k: Option<usize>,
    /// Only the likeliest tokens whose probabilities reach this sum.
    pub top_p: Option<f32>,
    /// Whether to think.
    pub thinking: Option<Thinking>,
    /// Accepted, without effect.
    pub metadata: Option<Metadata>,
}

/// Whether to think.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[schema(as = AnthropicThinking)]
pub struct Thinking {
    /// Whether.
    #[serde(rename = "type")]
    pub kind: ThinkingKind,
    /// Accepted, without effect.
    pub budget_tokens: Option<u64>,
    /// What is shown of it.
    pub display: Option<Display>,
}

/// Whether to think.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = AnthropicThinkingKind)]
pub enum ThinkingKind {
    /// Yes.
    Enabled,
    /// Yes: how long is the model's business anyway.
    Adaptive,
    /// No.
    Disabled,
}

/// What is shown of thoughts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = AnthropicThinkingDisplay)]
pub enum Display {
    /// All of them.
    Summarized,
    /// That there are some.
    Omitted,
}

impl Thinking {
    fn asked(self) -> Asked {
        Asked { on: self.kind != ThinkingKind::Disabled, field: "thinking" }
    }
}

/// A request to count tokens.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = CountTokensRequest)]
pub struct CountRequest {
    /// A name from `/v1/models`.
    pub model: String,
    /// The conversation.
    pub messages: Vec<Turn>,
    /// How the model should behave.
    pub system: Option<Said<SystemBlock>>,
    /// Whether to think.
    pub thinking: Option<Thinking>,
}

/// Accepted, without effect.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = AnthropicMetadata)]
pub struct Metadata {
    /// Accepted, without effect.
    pub user_id: Option<String>,
}

/// A turn.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = AnthropicMessage)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    #[serde(deserialize_with = "said")]
    pub content: Said<Block>,
    /// Accepted, without effect.
    pub id: Option<String>,
    /// Accepted, without effect.
    pub r#type: Option<String>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = AnthropicRole)]
pub enum Role {
    /// A person.
    User,
    /// The model.
    Assistant,
}

/// A block of a content.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
#[schema(as = AnthropicBlock)]
pub enum Block {
    /// Text.
    Text {
        /// The text.
        text: String,
        /// Accepted, without effect.
        #[schema(value_type = Option<Object>)]
        cache_control: Option<Value>,
    },
    /// What the model thought.
    Thinking {
        /// It.
        thinking: String,
        /// Accepted, without effect.
        signature: Option<String>,
    },
    /// A picture.
    Image {
        /// The picture.
        source: Source,
        /// Accepted, without effect.
        #[schema(value_type = Option<Object>)]
        cache_control: Option<Value>,
    },
}

/// A picture's file.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
#[schema(as = AnthropicSource)]
pub enum Source {
    /// The file itself.
    Base64 {
        /// `image/png`, `image/jpeg` or `image/webp`.
        media_type: String,
        /// In base64.
        data: String,
    },
}

/// A block of instructions.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase", deny_unknown_fields)]
#[schema(as = AnthropicSystemBlock)]
pub enum SystemBlock {
    /// Text.
    Text {
        /// The text.
        text: String,
        /// Accepted, without effect.
        #[schema(value_type = Option<Object>)]
        cache_control: Option<Value>,
    },
}

/// What is said in turn `i`.
fn pieces(content: &Said<Block>, i: usize) -> Result<Vec<Piece>, Failure> {
    let blocks = match content {
        Said::Text(text) => return Ok(vec![Piece::Text(text.clone())]),
        Said::Parts(blocks) => blocks,
    };
    let piece = |(j, block): (usize, &Block)| match block {
        Block::Text { text, .. } => Ok(Piece::Text(text.clone())),
        Block::Thinking { thinking, .. } => {
            let field = format!("messages[{i}].content[{j}].thinking");
            Ok(Piece::Thought { field, text: thinking.clone() })
        }
        Block::Image { source: Source::Base64 { media_type, data }, .. } => {
            let at = format!("messages[{i}].content[{j}].source");
            let (field, kind) = (format!("{at}.data"), format!("{at}.media_type"));
            Image::new(field, &kind, media_type, data.clone()).map(Piece::Image)
        }
    };
    blocks.iter().enumerate().map(piece).collect()
}

fn instructions(system: &Said<SystemBlock>) -> String {
    match system {
        Said::Text(text) => text.clone(),
        // Blocks of instructions are paragraphs.
        Said::Parts(blocks) => {
            let text = |SystemBlock::Text { text, .. }: &SystemBlock| text.clone();
            blocks.iter().map(text).collect::<Vec<_>>().join("\n\n")
        }
    }
}

/// Turns of the same role in a row are one turn, as Anthropic documents it.
fn conversation(
    turns: &[Turn],
    system: Option<&Said<SystemBlock>>,
    thinking: Option<Thinking>,
) -> Result<Conversation, Failure> {
    if turns.is_empty() {
        return Err(Failure::field("messages", "at least one message was expected"));
    }
    let mut joined: Vec<(Role, Vec<Piece>)> = Vec::new();
    for (i, turn) in turns.iter().enumerate() {
        let pieces = pieces(&turn.content, i)?;
        match joined.last_mut() {
            Some((role, before)) if *role == turn.role => {
                before.push(Piece::Text("\n\n".into()));
                before.extend(pieces);
            }
            _ => joined.push((turn.role, pieces)),
        }
    }
    let think = thinking.map(Thinking::asked);
    let mut out = Conversation { think, ..Conversation::default() };
    system.iter().for_each(|s| out.say("system", &instructions(s)));
    for (role, pieces) in joined {
        out.show(if role == Role::User { "user" } else { "assistant" }, pieces)?;
    }
    Ok(out)
}

impl Request {
    /// What is to be computed.
    ///
    /// # Errors
    /// If a value is out of its range.
    pub fn job(&self) -> Result<Job, Failure> {
        let sequences = self.stop_sequences.clone().map(OneOrMany::Many);
        let settings = Settings {
            temperature: self.temperature,
            top_k: self.top_k,
            top_p: self.top_p,
            ..Settings::default()
        };
        Ok(Job {
            max_tokens: token_limit("max_tokens", Some(self.max_tokens))?,
            settings,
            stop: stops("stop_sequences", sequences)?,
            ..Job::new(self.prompt()?)
        })
    }

    fn prompt(&self) -> Result<Prompt, Failure> {
        let system = self.system.as_ref();
        Ok(Prompt::Chat(conversation(&self.messages, system, self.thinking)?))
    }

    /// Whether thoughts come empty.
    fn omits(&self) -> bool {
        self.thinking.is_some_and(|t| t.display == Some(Display::Omitted))
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

/// Bytes to a request to count tokens, and its prompt.
///
/// # Errors
/// If the body is refused.
pub fn read_count(
    body: &[u8],
    reading: Reading,
) -> Result<(Decoded<CountRequest>, Prompt), Failure> {
    let decoded: Decoded<CountRequest> = decode(body, COUNT_TABLE, reading)?;
    let r = &decoded.request;
    let prompt = Prompt::Chat(conversation(&r.messages, r.system.as_ref(), r.thinking)?);
    Ok((decoded, prompt))
}

/// An answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = AnthropicResponse)]
pub struct Response {
    /// `msg_…`.
    pub id: String,
    /// `message`.
    pub r#type: &'static str,
    /// `assistant`.
    pub role: &'static str,
    /// The model that answered.
    pub model: String,
    /// One block of text, and before it what was thought.
    pub content: Vec<SaidBlock>,
    /// `end_turn`, `max_tokens` or `stop_sequence`.
    pub stop_reason: Option<&'static str>,
    /// The string that ended it.
    pub stop_sequence: Option<String>,
    /// Tokens.
    pub usage: Usage,
}

/// A block of an answer.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(tag = "type", rename_all = "lowercase")]
#[schema(as = AnthropicSaidBlock)]
pub enum SaidBlock {
    /// What was thought.
    Thinking {
        /// It.
        thinking: String,
        /// The fingerprint of the model that thought it.
        signature: String,
    },
    /// What is said.
    Text {
        /// The text.
        text: String,
        /// Always null.
        #[schema(value_type = Option<Object>)]
        citations: Value,
    },
}

/// Tokens.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = AnthropicUsage)]
pub struct Usage {
    /// Tokens of the prompt that were computed.
    pub input_tokens: usize,
    /// Tokens of the prompt that were in the cache.
    pub cache_read_input_tokens: usize,
    /// Always 0: keeping a prefix costs nothing.
    pub cache_creation_input_tokens: usize,
    /// Tokens of the answer, thoughts included.
    pub output_tokens: usize,
    /// Of those.
    pub output_tokens_details: OutputTokens,
    /// `standard`.
    pub service_tier: &'static str,
}

/// Of the answer's tokens.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = AnthropicOutputTokens)]
pub struct OutputTokens {
    /// Those that were thought, with the markers around them.
    pub thinking_tokens: usize,
}

impl Usage {
    /// From what the engine counted.
    pub fn new(usage: &answer::Usage) -> Self {
        Self {
            input_tokens: usage.prompt - usage.cached.min(usage.prompt),
            cache_read_input_tokens: usage.cached,
            cache_creation_input_tokens: 0,
            output_tokens: usage.completion,
            output_tokens_details: OutputTokens { thinking_tokens: usage.thought },
            service_tier: "standard",
        }
    }
}

/// Anthropic's name of an end, and the string that caused it.
pub fn stop_reason(end: &End) -> (&'static str, Option<String>) {
    match end {
        End::Stop => ("end_turn", None),
        End::StopString(string) => ("stop_sequence", Some(string.clone())),
        End::Length => ("max_tokens", None),
        End::Context => ("model_context_window_exceeded", None),
    }
}

/// Answers a conversation.
#[utoipa::path(post, operation_id = "createMessage", path = "/v1/messages", tag = "Anthropic", request_body = Request, responses(
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
    let mut response = Response {
        id: app.fresh_id("msg_"),
        r#type: "message",
        role: "assistant",
        model: model.name.clone(),
        content: vec![],
        stop_reason: None,
        stop_sequence: None,
        usage: Usage::new(&answers.usage()),
    };
    let reply = if request.stream.unwrap_or(false) {
        let signature = model.fingerprint.clone();
        stream::respond(answers, Stream::new(response, signature, request.omits()), stream::EVENTS)
    } else {
        let (choices, usage) = answers.collect().await?;
        response.usage = Usage::new(&usage);
        for choice in choices {
            let (reason, string) = stop_reason(&choice.end);
            (response.stop_reason, response.stop_sequence) = (Some(reason), string);
            if !choice.thought.is_empty() {
                let thinking = if request.omits() { String::new() } else { choice.thought };
                let signature = model.fingerprint.clone();
                response.content.push(SaidBlock::Thinking { thinking, signature });
            }
            response.content.push(SaidBlock::Text { text: choice.text, citations: Value::Null });
        }
        json(&response)
    };
    Ok(signed(reply, &model, seed, &ignored))
}

/// Counts the tokens of a conversation as the model would see it.
#[utoipa::path(post, operation_id = "countMessageTokens", path = "/v1/messages/count_tokens", tag = "Anthropic",
    request_body = CountRequest, responses(
    (status = 200, description = "The count", body = Object),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
    (status = "5XX", description = "Busy or broken", body = super::ErrorBody),
))]
pub async fn count(
    State(app): State<Shared>,
    Extension(caller): Extension<Arc<Caller>>,
    Whole(body): Whole,
) -> Reply {
    let (Decoded { request, mut ignored }, mut prompt) = read_count(&body, app.reading())?;
    let model = app.registry.get(&request.model).await?;
    think::settle(&mut prompt, &model, app.policy.lenient, &mut ignored)?;
    let prompts = answer::encode(&model, caller.client, vec![prompt]).await?;
    let n: usize = prompts.iter().map(|p| p.ids.len()).sum();
    Ok(signed(json(&value!({"input_tokens": n})), &model, None, &ignored))
}
