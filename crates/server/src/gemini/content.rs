//! Contents of conversations.

use crate::failure::Failure;
use crate::fields::{Field, Table, differs, no, yes};
use crate::pictures::{Conversation, Image, NO_FETCHING, NO_FILES, Piece};
use serde::Deserialize;
use utoipa::ToSchema;

const NO_TOOLS: &str = "the model can't call tools yet";

/// The fields of a content.
pub const CONTENT: Table =
    &[yes("role").note("`user`, `model`, or nothing for the user"), yes("parts").of(PART)];

/// The fields of a content that is text alone.
pub const TEXT_CONTENT: Table = &[
    yes("role").note("has no effect"),
    yes("parts").of(&part(
        no("inlineData", "text was expected"),
        no("thought", "text was expected").unless(&["false"]),
    )),
];

const PART: Table = &part(
    yes("inlineData").note("a picture, in a turn of the user").of(&[
        yes("mimeType").note("`image/png`, `image/jpeg` or `image/webp`"),
        yes("data"),
        differs("displayName", "has no effect"),
    ]),
    differs("thought", "in a turn of the model; templates leave out thoughts of earlier turns"),
);

const fn part(inline_data: Field, thought: Field) -> [Field; 14] {
    [
        yes("text"),
        inline_data,
        thought,
        differs("thoughtSignature", "has no effect"),
        differs("partMetadata", "has no effect"),
        no("fileData", NO_FETCHING),
        no("videoMetadata", NO_FILES),
        no("mediaResolution", "pictures are seen as the model was made to see them"),
        no("functionCall", NO_TOOLS),
        no("functionResponse", NO_TOOLS),
        no("executableCode", NO_TOOLS),
        no("codeExecutionResult", NO_TOOLS),
        no("toolCall", NO_TOOLS),
        no("toolResponse", NO_TOOLS),
    ]
}

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

/// A part: text or a picture.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[schema(as = GeminiPart)]
pub struct Part {
    /// The text.
    pub text: Option<String>,
    /// The picture.
    #[serde(rename = "inlineData")]
    pub inline_data: Option<Blob>,
    /// Whether the text was thought.
    pub thought: Option<bool>,
    /// Accepted, without effect.
    #[serde(rename = "thoughtSignature")]
    pub thought_signature: Option<String>,
}

/// A picture's file.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = GeminiBlob)]
pub struct Blob {
    /// `image/png`, `image/jpeg` or `image/webp`.
    pub mime_type: String,
    /// In base64.
    pub data: String,
    /// Accepted, without effect.
    pub display_name: Option<String>,
}

impl Content {
    /// All its text. `at`: what errors call it.
    ///
    /// # Errors
    /// If a part has none.
    pub fn text(&self, at: &str) -> Result<String, Failure> {
        let text = |(i, part): (usize, &Part)| match (&part.text, &part.inline_data) {
            (Some(text), None) => Ok(text.clone()),
            _ => Err(Failure::field(format!("{at}.parts[{i}].text"), "text was expected")),
        };
        self.parts.iter().enumerate().map(text).collect()
    }

    fn pieces(&self, at: &str) -> Result<Vec<Piece>, Failure> {
        let piece = |(i, part): (usize, &Part)| match (&part.text, &part.inline_data) {
            (Some(text), None) if part.thought == Some(true) => {
                let field = format!("{at}.parts[{i}].thought");
                Ok(Piece::Thought { field, text: text.clone() })
            }
            (Some(text), None) => Ok(Piece::Text(text.clone())),
            (None, Some(blob)) => {
                let at = format!("{at}.parts[{i}].inlineData");
                let (field, kind) = (format!("{at}.data"), format!("{at}.mimeType"));
                Image::new(field, &kind, &blob.mime_type, blob.data.clone()).map(Piece::Image)
            }
            _ => {
                let message = "either text or inlineData was expected";
                Err(Failure::field(format!("{at}.parts[{i}]"), message))
            }
        };
        self.parts.iter().enumerate().map(piece).collect()
    }
}

/// Turns as templates take them.
///
/// # Errors
/// If there are none, one has a role that turns don't have, or a picture can't be taken.
pub fn conversation(
    contents: &[Content],
    system: Option<&Content>,
) -> Result<Conversation, Failure> {
    if contents.is_empty() {
        return Err(Failure::field("contents", "at least one content was expected"));
    }
    let mut out = Conversation::default();
    if let Some(system) = system {
        out.say("system", &system.text("systemInstruction")?);
    }
    for (i, content) in contents.iter().enumerate() {
        let role = match content.role {
            None | Some(Role::User) => "user",
            Some(Role::Model) => "assistant",
            Some(Role::System) => {
                let message = "instructions belong into systemInstruction";
                return Err(Failure::field(format!("contents[{i}].role"), message));
            }
        };
        out.show(role, content.pieces(&format!("contents[{i}]"))?)?;
    }
    Ok(out)
}
