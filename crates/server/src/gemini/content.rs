//! Contents of conversations.

use crate::failure::Failure;
use crate::fields::{Table, differs, no, yes};
use lapidary_formats::chat::Message;
use serde::Deserialize;
use utoipa::ToSchema;

const NO_TOOLS: &str = "the model can't call tools yet";
const NO_IMAGES: &str = "only text can be shown to a model yet";

/// The fields of a content.
pub const CONTENT: Table =
    &[yes("role").note("`user`, `model`, or nothing for the user"), yes("parts").of(PART)];

const PART: Table = &[
    yes("text"),
    differs("thought", "has no effect"),
    differs("thoughtSignature", "has no effect"),
    differs("partMetadata", "has no effect"),
    no("inlineData", NO_IMAGES),
    no("fileData", NO_IMAGES),
    no("videoMetadata", NO_IMAGES),
    no("mediaResolution", NO_IMAGES),
    no("functionCall", NO_TOOLS),
    no("functionResponse", NO_TOOLS),
    no("executableCode", NO_TOOLS),
    no("codeExecutionResult", NO_TOOLS),
    no("toolCall", NO_TOOLS),
    no("toolResponse", NO_TOOLS),
];

/// A turn.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[schema(as = GeminiContent)]
pub struct Content {
    /// Who speaks.
    pub role: Option<Role>,
    /// What is said.
    pub parts: Vec<Part>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = GeminiRole)]
pub enum Role {
    /// A person.
    User,
    /// The model.
    Model,
    /// Instructions; only as `systemInstruction`.
    System,
}

/// A part of text.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[schema(as = GeminiPart)]
pub struct Part {
    /// The text.
    pub text: String,
    /// Accepted, without effect.
    pub thought: Option<bool>,
    /// Accepted, without effect.
    #[serde(rename = "thoughtSignature")]
    pub thought_signature: Option<String>,
}

impl Content {
    /// All its text.
    pub fn text(&self) -> String {
        self.parts.iter().map(|p| p.text.as_str()).collect()
    }
}

/// Turns as templates take them.
///
/// # Errors
/// If there are none, or one has a role that turns don't have.
pub fn conversation(
    contents: &[Content],
    system: Option<&Content>,
) -> Result<Vec<Message>, Failure> {
    if contents.is_empty() {
        return Err(Failure::field("contents", "at least one content was expected"));
    }
    let mut out: Vec<Message> = Vec::new();
    out.extend(system.map(|s| Message::new("system", &s.text())));
    for (i, content) in contents.iter().enumerate() {
        let role = match content.role {
            None | Some(Role::User) => "user",
            Some(Role::Model) => "assistant",
            Some(Role::System) => {
                let message = "instructions belong into systemInstruction";
                return Err(Failure::field(format!("contents[{i}].role"), message));
            }
        };
        out.push(Message::new(role, &content.text()));
    }
    Ok(out)
}
