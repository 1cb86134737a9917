//! `:generateContent`, `:streamGenerateContent`, `:countTokens`.

use super::content::{CONTENT, Content, TEXT_CONTENT, conversation};
use super::reading;
use super::stream::Stream;
use crate::answer::{self, Choice, End, Token};
use crate::app::{Shared, json, signed};
use crate::auth::Caller;
use crate::failure::{Failure, Reply};
use crate::fields::{Decoded, Reading, Table, decode, differs, no, yes};
use crate::job::{
    Job, MOST_CHOICES, MOST_LOGPROBS, OneOrMany, Prompt, Settings, stops, token_limit, within,
};
use crate::pictures::Conversation;
use crate::stream;
use crate::think::{self, Asked};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json as value};
use std::sync::Arc;
use utoipa::ToSchema;

/// The fields of a request.
pub const TABLE: Table = &[
    yes("contents").note("a last turn of the model is continued").of(CONTENT),
    yes("systemInstruction").of(TEXT_CONTENT),
    yes("generationConfig").of(CONFIG),
    differs(
        "safetySettings",
        "accepted, and no filter runs: nothing is blocked, and no ratings are claimed",
    )
    .of(&[yes("category"), yes("threshold"), yes("method")]),
    differs("labels", "has no effect"),
    differs("model", "must be the one of the path, if it is there"),
    no("tools", "the model can't call tools yet").unless(&["[]"]),
    no("toolConfig", "the model can't call tools yet").unless(&["{}"]),
    no("cachedContent", "there are no named caches: prefixes are always reused"),
    no("serviceTier", "there is one tier"),
    no("store", "contents are not stored").unless(&["false"]),
];

const CONFIG: Table = &[
    yes("stopSequences"),
    differs("candidateCount", "at most 16"),
    yes("maxOutputTokens"),
    differs("temperature", "without it, what the checkpoint recommends"),
    differs("topP", "without it, what the checkpoint recommends"),
    differs("topK", "without it, what the checkpoint recommends"),
    yes("seed").note("the same seed, the same bytes"),
    yes("presencePenalty"),
    yes("frequencyPenalty"),
    yes("responseLogprobs"),
    yes("logprobs"),
    no("responseMimeType", "constrained output is not supported yet")
        .unless(&["\"text/plain\"", "\"\""]),
    no("responseSchema", "constrained output is not supported yet"),
    no("responseJsonSchema", "constrained output is not supported yet"),
    no("_responseJsonSchema", "constrained output is not supported yet"),
    no("responseFormat", "constrained output is not supported yet"),
    no("responseModalities", "answers are text").unless(&["[\"TEXT\"]", "[]"]),
    yes("thinkingConfig").of(THINKING),
    no("speechConfig", "answers are text"),
    no("imageConfig", "answers are text"),
    no("mediaResolution", "pictures are seen as the model was made to see them")
        .unless(&["\"MEDIA_RESOLUTION_UNSPECIFIED\""]),
    no("enableEnhancedCivicAnswers", "there is no such thing here").unless(&["false"]),
    no("routingConfig", "there is one model for a name"),
    no("modelSelectionConfig", "there is one model for a name"),
    no("audioTimestamp", "only text and pictures can be shown to a model yet").unless(&["false"]),
];

const THINKING: Table = &[
    yes("includeThoughts").note("without it, thoughts are not shown"),
    differs("thinkingBudget", BUDGET),
    differs("thinkingLevel", "the model thinks, for as long as it wants"),
];

const BUDGET: &str = "0: no thoughts; any other: the model thinks, for as long as it wants; without \
                      it, what `--think` or the template says";

/// The fields of a request to count tokens.
pub const COUNT_TABLE: Table = &[
    yes("contents").note("counted exactly, template included").of(CONTENT),
    yes("systemInstruction").of(TEXT_CONTENT),
    yes("generateContentRequest").of(TABLE),
    differs("generationConfig", "but for `thinkingConfig`, has no effect").of(CONFIG),
    differs("model", "must be the one of the path, if it is there"),
    no("tools", "the model can't call tools yet").unless(&["[]"]),
];

/// A request.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = GenerateContentRequest)]
pub struct Request {
    /// The conversation.
    pub contents: Vec<Content>,
    /// How the model should behave.
    pub system_instruction: Option<Content>,
    /// How it answers.
    pub generation_config: Option<Config>,
    /// Accepted; nothing is blocked and no ratings are claimed.
    #[schema(value_type = Option<Vec<Object>>)]
    pub safety_settings: Option<Vec<Value>>,
    /// Accepted, without effect.
    #[schema(value_type = Option<Object>)]
    pub labels: Option<Value>,
    /// The model of the path.
    pub model: Option<String>,
}

/// How the model answers.
#[derive(Debug, Default, Clone, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = GenerationConfig)]
pub struct Config {
    /// Strings that end the answer.
    pub stop_sequences: Option<Vec<String>>,
    /// Answers.
    pub candidate_count: Option<u64>,
    /// Tokens of an answer at most.
    pub max_output_tokens: Option<u64>,
    /// 0 takes the likeliest token.
    pub temperature: Option<f32>,
    /// Only the likeliest tokens whose probabilities reach this sum.
    pub top_p: Option<f32>,
    /// Only the likeliest so many tokens.
    pub top_k: Option<f64>,
    /// The same seed, the same answer.
    pub seed: Option<i64>,
    /// Taken from logits whose token occurred in the answer.
    pub presence_penalty: Option<f32>,
    /// Taken from logits as often as their token occurred in the answer.
    pub frequency_penalty: Option<f32>,
    /// Give the tokens with their probabilities.
    pub response_logprobs: Option<bool>,
    /// Alternatives of each token.
    pub logprobs: Option<u64>,
    /// Whether to think.
    pub thinking_config: Option<ThinkingConfig>,
}

/// Whether to think.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = GeminiThinkingConfig)]
pub struct ThinkingConfig {
    /// Show what was thought.
    pub include_thoughts: Option<bool>,
    /// 0: not at all; anything else is: as much as the model wants.
    pub thinking_budget: Option<i64>,
    /// As much as the model wants.
    pub thinking_level: Option<Level>,
}

/// How much to think.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[schema(as = GeminiThinkingLevel)]
pub enum Level {
    /// Nothing is said.
    #[serde(alias = "thinking_level_unspecified")]
    ThinkingLevelUnspecified,
    /// As the others.
    #[serde(alias = "minimal")]
    Minimal,
    /// As the others.
    #[serde(alias = "low")]
    Low,
    /// As the others.
    #[serde(alias = "medium")]
    Medium,
    /// As the others.
    #[serde(alias = "high")]
    High,
}

/// A request to count tokens.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = GeminiCountTokensRequest)]
pub struct CountRequest {
    /// The conversation.
    pub contents: Option<Vec<Content>>,
    /// How the model should behave.
    pub system_instruction: Option<Content>,
    /// A whole request, instead.
    pub generate_content_request: Option<Request>,
    /// Accepted; but for `thinkingConfig`, without effect.
    pub generation_config: Option<Config>,
    /// The model of the path.
    pub model: Option<String>,
}

fn at(name: &str) -> String {
    format!("generationConfig.{name}")
}

impl Config {
    fn logprobs(&self) -> Result<Option<usize>, Failure> {
        let top = within(&at("logprobs"), self.logprobs, 0, MOST_LOGPROBS as u64)?;
        match (self.response_logprobs.unwrap_or(false), top) {
            (true, top) => Ok(Some(top.unwrap_or(0))),
            (false, None) => Ok(None),
            (false, Some(_)) => {
                Err(Failure::field(at("logprobs"), "needs responseLogprobs to be true"))
            }
        }
    }

    fn think(&self) -> Result<Option<Asked>, Failure> {
        let Some(config) = &self.thinking_config else { return Ok(None) };
        let level = config.thinking_level.filter(|l| *l != Level::ThinkingLevelUnspecified);
        let asked = |on, field| Some(Asked { on, field });
        match (config.thinking_budget, level) {
            (Some(_), Some(_)) => {
                let message = "either a level or a budget was expected, not both";
                Err(Failure::field(at("thinkingConfig.thinkingLevel"), message))
            }
            (Some(n), _) => Ok(asked(n != 0, "generationConfig.thinkingConfig.thinkingBudget")),
            (_, Some(_)) => Ok(asked(true, "generationConfig.thinkingConfig.thinkingLevel")),
            _ => Ok(None),
        }
    }

    /// Whether thoughts are shown.
    fn shows(&self) -> bool {
        self.thinking_config.as_ref().and_then(|c| c.include_thoughts).unwrap_or(false)
    }

    fn top_k(&self) -> Result<Option<usize>, Failure> {
        // Google's clients send a floating-point number.
        match self.top_k {
            Some(k) if !(0.0..=1e9).contains(&k) || k.fract() != 0.0 => {
                Err(Failure::field(at("topK"), format!("{k} is not a count of tokens")))
            }
            k => Ok(k.map(|k| k as usize)),
        }
    }
}

impl Request {
    /// What is to be computed.
    ///
    /// # Errors
    /// If a value is out of its range.
    pub fn job(&self) -> Result<Job, Failure> {
        let config = self.generation_config.clone().unwrap_or_default();
        let count = within(&at("candidateCount"), config.candidate_count, 1, MOST_CHOICES as u64)?;
        Ok(Job {
            max_tokens: token_limit(&at("maxOutputTokens"), config.max_output_tokens)?,
            settings: Settings {
                temperature: config.temperature,
                top_k: config.top_k()?,
                top_p: config.top_p,
                presence_penalty: config.presence_penalty,
                frequency_penalty: config.frequency_penalty,
                seed: config.seed,
                ..Settings::default()
            },
            choices: count.unwrap_or(1),
            logprobs: config.logprobs()?,
            stop: stops(&at("stopSequences"), config.stop_sequences.map(OneOrMany::Many))?,
            ..Job::new(self.prompt()?)
        })
    }

    fn prompt(&self) -> Result<Prompt, Failure> {
        prompt(&self.contents, self.system_instruction.as_ref(), self.generation_config.as_ref())
    }

    /// Whether thoughts are shown.
    fn shows(&self) -> bool {
        self.generation_config.as_ref().is_some_and(Config::shows)
    }
}

fn prompt(
    contents: &[Content],
    system: Option<&Content>,
    config: Option<&Config>,
) -> Result<Prompt, Failure> {
    let think = config.map(Config::think).transpose()?.flatten();
    Ok(Prompt::Chat(Conversation { think, ..conversation(contents, system)? }))
}

impl CountRequest {
    fn prompt(&self) -> Result<Prompt, Failure> {
        match (&self.generate_content_request, &self.contents) {
            (Some(request), None) => request.prompt(),
            (None, Some(contents)) => {
                let config = self.generation_config.as_ref();
                prompt(contents, self.system_instruction.as_ref(), config)
            }
            _ => Err(Failure::invalid("either contents or generateContentRequest was expected")),
        }
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
    let prompt = decoded.request.prompt()?;
    Ok((decoded, prompt))
}

/// A body may repeat the model of the path, and nothing else.
pub fn check_model(path: &str, body: Option<&str>) -> Result<(), Failure> {
    match body.map(|b| b.strip_prefix("models/").unwrap_or(b)) {
        Some(name) if name != path => {
            let message = format!("{name:?} is not {path:?}, the model of the path");
            Err(Failure::field("model", message))
        }
        _ => Ok(()),
    }
}

/// An answer, or a part of one.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = GenerateContentResponse)]
pub struct Response {
    /// The answers.
    #[schema(value_type = Vec<Object>)]
    pub candidates: Vec<Value>,
    /// Tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage_metadata: Option<UsageMetadata>,
    /// The model that answered, and its fingerprint: the same, the same bytes.
    pub model_version: String,
    /// A name for the answer.
    pub response_id: String,
}

/// Tokens.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct UsageMetadata {
    /// Of the prompt.
    pub prompt_token_count: usize,
    /// Of the answers.
    pub candidates_token_count: usize,
    /// Of what was thought before them, with the markers around it.
    pub thoughts_token_count: usize,
    /// Of all three.
    pub total_token_count: usize,
    /// Of the prompt, those that were in the cache.
    pub cached_content_token_count: usize,
}

impl UsageMetadata {
    /// From what the engine counted.
    pub fn new(usage: &answer::Usage) -> Self {
        Self {
            prompt_token_count: usage.prompt,
            candidates_token_count: usage.completion - usage.thought,
            thoughts_token_count: usage.thought,
            total_token_count: usage.prompt + usage.completion,
            cached_content_token_count: usage.cached,
        }
    }
}

/// Google's name of an end.
pub fn finish_reason(end: &End) -> &'static str {
    match end {
        End::Stop | End::StopString(_) => "STOP",
        End::Length | End::Context => "MAX_TOKENS",
    }
}

/// One answer, or a part of it.
pub fn candidate(index: usize, text: &str) -> Value {
    value!({"content": {"parts": [{"text": text}], "role": "model"}, "index": index})
}

/// A part of what was thought before an answer.
pub fn thought(text: &str) -> Value {
    value!({"text": text, "thought": true})
}

/// The probabilities of tokens.
pub fn logprobs(tokens: &[Token]) -> Value {
    let one = |t: &Token| value!({"token": t.text, "tokenId": t.id, "logProbability": t.logprob});
    value!({
        "chosenCandidates": tokens.iter().map(one).collect::<Vec<_>>(),
        "topCandidates": tokens.iter().map(|t| {
            value!({"candidates": t.top.iter().map(one).collect::<Vec<_>>()})
        }).collect::<Vec<_>>(),
    })
}

/// Answers a conversation.
#[utoipa::path(post, operation_id = "geminiGenerateContent", path = "/v1beta/models/{model}:generateContent", tag = "Gemini",
    params(("model" = String, Path, description = "A name from `/v1/models`")),
    request_body = Request, responses(
    (status = 200, description = "The answer", body = Response),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
    (status = "5XX", description = "Busy or broken", body = super::ErrorBody),
))]
pub async fn generate(app: Shared, caller: Arc<Caller>, name: &str, body: &[u8]) -> Reply {
    let (Decoded { request, mut ignored }, mut job) = read(body, reading(&app))?;
    check_model(name, request.model.as_deref())?;
    let model = app.registry.get(name).await?;
    think::settle(&mut job.prompt, &model, app.policy.lenient, &mut ignored)?;
    let wanted = job.logprobs.is_some();
    let answers = app.answers(&model, vec![job], &caller).await?;
    let seed = Some(answers.seed);
    let (choices, usage) = answers.collect().await?;
    let one = |(index, c): (usize, Choice)| {
        let mut out = candidate(index, &c.text);
        if request.shows() && !c.thought.is_empty() {
            out["content"]["parts"] = value!([thought(&c.thought), {"text": c.text}]);
        }
        out["finishReason"] = finish_reason(&c.end).into();
        out["tokenCount"] = (c.completion - c.thought_tokens).into();
        if wanted {
            out["logprobsResult"] = logprobs(&c.tokens);
            let sum: f32 = c.tokens.iter().map(|t| t.logprob).sum();
            out["avgLogprobs"] = (sum / c.tokens.len().max(1) as f32).into();
        }
        out
    };
    let reply = json(&Response {
        candidates: choices.into_iter().enumerate().map(one).collect(),
        usage_metadata: Some(UsageMetadata::new(&usage)),
        model_version: format!("{}@{}", model.name, model.fingerprint),
        response_id: app.fresh_id(""),
    });
    Ok(signed(reply, &model, seed, &ignored))
}

/// Answers a conversation as the answer is made: a JSON array, or server-sent events with `alt=sse`.
#[utoipa::path(post, operation_id = "geminiStreamGenerateContent", path = "/v1beta/models/{model}:streamGenerateContent", tag = "Gemini",
    params(("model" = String, Path, description = "A name from `/v1/models`"),
        ("alt" = Option<String>, Query, description = "`sse` for server-sent events")),
    request_body = Request, responses(
    (status = 200, description = "The answer in parts", content(
        (Vec<Response> = "application/json"), (String = "text/event-stream"))),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
    (status = "5XX", description = "Busy or broken", body = super::ErrorBody),
))]
pub async fn stream(app: Shared, caller: Arc<Caller>, name: &str, body: &[u8], sse: bool) -> Reply {
    let (Decoded { request, mut ignored }, mut job) = read(body, reading(&app))?;
    check_model(name, request.model.as_deref())?;
    let model = app.registry.get(name).await?;
    think::settle(&mut job.prompt, &model, app.policy.lenient, &mut ignored)?;
    let answers = app.answers(&model, vec![job], &caller).await?;
    let seed = Some(answers.seed);
    let version = format!("{}@{}", model.name, model.fingerprint);
    let shows = request.shows();
    let form = Stream::new(version, app.fresh_id(""), sse, shows, answers.usage());
    let kind = if sse { stream::EVENTS } else { stream::JSON };
    Ok(signed(stream::respond(answers, form, kind), &model, seed, &ignored))
}

/// Counts the tokens of a conversation as the model would see it.
#[utoipa::path(post, operation_id = "geminiCountTokens", path = "/v1beta/models/{model}:countTokens", tag = "Gemini",
    params(("model" = String, Path, description = "A name from `/v1/models`")),
    request_body = CountRequest, responses(
    (status = 200, description = "The count", body = Object),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
    (status = "5XX", description = "Busy or broken", body = super::ErrorBody),
))]
pub async fn count(app: Shared, caller: Arc<Caller>, name: &str, body: &[u8]) -> Reply {
    let (Decoded { request, mut ignored }, mut prompt) = read_count(body, reading(&app))?;
    check_model(name, request.model.as_deref())?;
    let model = app.registry.get(name).await?;
    think::settle(&mut prompt, &model, app.policy.lenient, &mut ignored)?;
    let prompts = answer::encode(&model, caller.client, vec![prompt]).await?;
    let (all, seen) = prompts.iter().fold((0, 0), |(a, s), p| (a + p.ids.len(), s + p.seen()));
    let mut details = vec![value!({"modality": "TEXT", "tokenCount": all - seen})];
    if seen > 0 {
        details.push(value!({"modality": "IMAGE", "tokenCount": seen}));
    }
    let reply = json(&value!({"totalTokens": all, "promptTokensDetails": details}));
    Ok(signed(reply, &model, None, &ignored))
}
