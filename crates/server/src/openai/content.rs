//! Messages of chat completions, and settings that several endpoints share.

use crate::failure::Failure;
use crate::fields::{Table, no, yes};
use crate::job::{MOST_LOGPROBS, within};
use lapidary_formats::chat::Message;
use serde::Deserialize;
use std::collections::HashMap;
use utoipa::ToSchema;

const NO_TOOLS: &str = "the model can't call tools yet";
const NO_IMAGES: &str = "only text can be shown to a model yet";

/// A message.
pub const MESSAGE: Table = &[
    yes("role").note("`system`, `developer` (as system), `user`, `assistant`"),
    yes("content").note("a string, or an array of text parts").of(PART),
    no("name", "chat templates have no place for it"),
    no("refusal", "there are no refusals beside the content"),
    no("tool_calls", NO_TOOLS).unless(&["[]"]),
    no("tool_call_id", NO_TOOLS),
    no("function_call", NO_TOOLS),
    no("audio", NO_IMAGES),
    no("annotations", "answers have none").unless(&["[]"]),
];

/// A part of a message's content.
const PART: Table = &[
    yes("type").note("`text`"),
    yes("text"),
    no("image_url", NO_IMAGES),
    no("input_audio", NO_IMAGES),
    no("file", NO_IMAGES),
    no("refusal", "there are no refusals beside the content"),
];

/// A turn of the conversation.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[schema(as = OpenAiMessage)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: Content,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[schema(as = OpenAiRole)]
pub enum Role {
    /// Instructions.
    System,
    /// Instructions.
    Developer,
    /// A person.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// The name that chat templates know.
    pub fn name(self) -> &'static str {
        match self {
            Role::System | Role::Developer => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// A string, or an array of parts.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "expected a string or an array of text parts")]
#[schema(as = OpenAiContent)]
pub enum Content {
    /// Text.
    Text(String),
    /// Parts of text.
    Parts(Vec<Part>),
}

/// A part of text.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[schema(as = OpenAiPart)]
pub struct Part {
    /// `text`.
    #[serde(rename = "type")]
    pub kind: PartKind,
    /// The text.
    pub text: String,
}

/// The kinds of parts.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = OpenAiPartKind)]
pub enum PartKind {
    /// Text.
    Text,
}

/// Messages as templates take them.
///
/// # Errors
/// If there are none.
pub fn messages(messages: &[ChatMessage]) -> Result<Vec<Message>, Failure> {
    if messages.is_empty() {
        return Err(Failure::field("messages", "at least one message was expected"));
    }
    let text = |m: &ChatMessage| match &m.content {
        Content::Text(text) => text.clone(),
        Content::Parts(parts) => parts.iter().map(|p| p.text.as_str()).collect(),
    };
    Ok(messages.iter().map(|m| Message::new(m.role.name(), &text(m))).collect())
}

/// `logit_bias`: token ids, as JSON names them, to what is added to their logits.
///
/// # Errors
/// If a name is no token id, or a bias is not between -100 and 100.
pub fn logit_bias(bias: &Option<HashMap<String, f32>>) -> Result<Vec<(u32, f32)>, Failure> {
    let mut out = Vec::new();
    for (id, &bias) in bias.iter().flatten() {
        let at = format!("logit_bias.{id}");
        let id = id.parse().map_err(|_| Failure::field(&at, "a token id was expected"))?;
        if !(-100.0..=100.0).contains(&bias) {
            return Err(Failure::field(at, format!("{bias} is not between -100 and 100")));
        }
        out.push((id, bias));
    }
    // The order of a map must not show in the sum of equal ids.
    out.sort_unstable_by_key(|(id, _)| *id);
    Ok(out)
}

/// `logprobs` and `top_logprobs` together.
///
/// # Errors
/// If alternatives are wanted without `logprobs`, or too many.
pub fn logprobs(wanted: Option<bool>, top: Option<u64>) -> Result<Option<usize>, Failure> {
    let top = within("top_logprobs", top, 0, MOST_LOGPROBS as u64)?;
    match (wanted.unwrap_or(false), top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(Failure::field("top_logprobs", "needs logprobs to be true")),
    }
}
