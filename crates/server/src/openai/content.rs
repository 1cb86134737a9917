//! Messages of chat completions, and settings that several endpoints share.

use crate::failure::Failure;
use crate::fields::{Table, differs, no, yes};
use crate::job::{MOST_LOGPROBS, Said, said, within};
use crate::pictures::{Conversation, Image, NO_FILES, Piece};
use crate::think::Asked;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use utoipa::ToSchema;

const NO_TOOLS: &str = "the model can't call tools yet";

/// What becomes of `detail`.
pub const DETAIL: &str = "has no effect: pictures are seen as the model was made to see them";

/// A message.
pub const MESSAGE: Table = &[
    yes("role").note("`system`, `developer` (as system), `user`, `assistant`"),
    yes("content").note("a string, or an array of parts").of(PART),
    differs(
        "reasoning_content",
        "not OpenAI's: what the model thought; templates leave out thoughts of earlier turns",
    ),
    no("name", "chat templates have no place for it"),
    no("refusal", "there are no refusals beside the content"),
    no("tool_calls", NO_TOOLS).unless(&["[]"]),
    no("tool_call_id", NO_TOOLS),
    no("function_call", NO_TOOLS),
    no("audio", NO_FILES),
    no("annotations", "answers have none").unless(&["[]"]),
];

/// A part of a message's content.
const PART: Table = &[
    yes("type").note("`text` or `image_url`"),
    yes("text"),
    yes("image_url").note("in a turn of the user").of(&[
        differs("url", "a data URL of a PNG, JPEG or WebP file; nothing is fetched"),
        differs("detail", DETAIL),
    ]),
    no("input_audio", NO_FILES),
    no("file", NO_FILES),
    no("refusal", "there are no refusals beside the content"),
];

/// A turn of the conversation.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[schema(as = OpenAiMessage)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    #[serde(deserialize_with = "said")]
    pub content: Said<Part>,
    /// What the model thought before it said it.
    pub reasoning_content: Option<String>,
}

/// How much to think.
#[derive(Debug, Clone, Copy, Deserialize, Serialize, ToSchema, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
#[schema(as = OpenAiEffort)]
pub enum Effort {
    /// Not at all.
    None,
    /// As the others: the model thinks.
    Minimal,
    /// As the others.
    Low,
    /// As the others.
    Medium,
    /// As the others.
    High,
    /// As the others.
    Xhigh,
    /// As the others.
    Max,
}

impl Effort {
    /// What it asks for in `field`.
    pub fn asked(self, field: &'static str) -> Asked {
        Asked { on: self != Effort::None, field }
    }
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

/// A part of a content.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
#[schema(as = OpenAiPart)]
pub enum Part {
    /// Text.
    Text {
        /// The text.
        text: String,
    },
    /// A picture.
    ImageUrl {
        /// Where it is.
        image_url: ImageUrl,
    },
}

/// Where a picture is.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[schema(as = OpenAiImageUrl)]
pub struct ImageUrl {
    /// A data URL.
    pub url: String,
    /// Accepted, without effect.
    pub detail: Option<String>,
}

/// Messages as templates take them.
///
/// # Errors
/// If there are none, or a picture can't be taken.
pub fn messages(messages: &[ChatMessage]) -> Result<Conversation, Failure> {
    if messages.is_empty() {
        return Err(Failure::field("messages", "at least one message was expected"));
    }
    let mut out = Conversation::default();
    for (i, m) in messages.iter().enumerate() {
        let mut pieces = Vec::new();
        if let Some(text) = &m.reasoning_content {
            let field = format!("messages[{i}].reasoning_content");
            pieces.push(Piece::Thought { field, text: text.clone() });
        }
        match &m.content {
            Said::Text(text) => pieces.push(Piece::Text(text.clone())),
            Said::Parts(parts) => {
                for (j, part) in parts.iter().enumerate() {
                    pieces.push(part.piece(&format!("messages[{i}].content[{j}]"))?);
                }
            }
        }
        out.show(m.role.name(), pieces)?;
    }
    Ok(out)
}

impl Part {
    fn piece(&self, at: &str) -> Result<Piece, Failure> {
        match self {
            Part::Text { text } => Ok(Piece::Text(text.clone())),
            Part::ImageUrl { image_url } => {
                Image::from_url(format!("{at}.image_url.url"), &image_url.url).map(Piece::Image)
            }
        }
    }
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
