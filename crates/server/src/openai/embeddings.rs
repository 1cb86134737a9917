//! `/v1/embeddings`.

use super::completions::Prompts;
use crate::app::{Shared, Whole, json, signed};
use crate::auth::Caller;
use crate::embed;
use crate::failure::{Failure, Reply};
use crate::fields::{Decoded, Reading, Table, decode, differs, yes};
use crate::job::{Prompt, within};
use axum::extract::{Extension, State};
use base64::Engine;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// The fields of a request.
pub const TABLE: Table = &[
    yes("model"),
    differs(
        "input",
        "text, token ids, or arrays of either; without a model for embeddings the vector is the mean of the hidden states",
    ),
    yes("encoding_format").note("`float` or `base64`"),
    differs("dimensions", "the first so many, scaled to length 1 again"),
    differs("user", "has no effect"),
];

/// A request.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = EmbeddingRequest)]
pub struct Request {
    /// A name from `/v1/models`.
    pub model: String,
    /// Texts.
    pub input: Prompts,
    /// How vectors are written.
    pub encoding_format: Option<Format>,
    /// Only the first so many dimensions.
    pub dimensions: Option<u64>,
    /// Accepted, without effect.
    pub user: Option<String>,
}

/// How vectors are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[schema(as = EmbeddingFormat)]
pub enum Format {
    /// Numbers.
    Float,
    /// Their bytes, little-endian f32, in Base64.
    Base64,
}

/// Vectors.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EmbeddingList)]
pub struct Response {
    /// `list`.
    pub object: &'static str,
    /// In the order of the texts.
    pub data: Vec<Embedding>,
    /// The model that made them.
    pub model: String,
    /// Tokens.
    pub usage: EmbeddingUsage,
}

/// A vector.
#[derive(Debug, Serialize, ToSchema)]
pub struct Embedding {
    /// `embedding`.
    pub object: &'static str,
    /// The number of its text.
    pub index: usize,
    /// The vector.
    pub embedding: Vector,
}

/// A vector, as numbers or in Base64.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
#[schema(as = EmbeddingVector)]
pub enum Vector {
    /// Numbers.
    Float(Vec<f32>),
    /// Base64.
    Base64(String),
}

/// Tokens of the texts.
#[derive(Debug, Serialize, ToSchema)]
pub struct EmbeddingUsage {
    /// Tokens.
    pub prompt_tokens: usize,
    /// Tokens.
    pub total_tokens: usize,
}

/// Bytes to a request and its texts.
///
/// # Errors
/// If the body is refused.
pub fn read(body: &[u8], reading: Reading) -> Result<(Decoded<Request>, Vec<Prompt>), Failure> {
    let decoded: Decoded<Request> = decode(body, TABLE, reading)?;
    let prompts = decoded.request.input.all("input")?;
    Ok((decoded, prompts))
}

/// Texts to vectors.
#[utoipa::path(post, operation_id = "createEmbedding", path = "/v1/embeddings", tag = "OpenAI", request_body = Request, responses(
    (status = 200, description = "The vectors", body = Response),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
    (status = "5XX", description = "Busy or broken", body = super::ErrorBody),
))]
pub async fn handle(
    State(app): State<Shared>,
    Extension(caller): Extension<Arc<Caller>>,
    Whole(body): Whole,
) -> Reply {
    let (Decoded { request, ignored }, texts) = read(&body, app.reading())?;
    let model = app.registry.get(&request.model).await?;
    let most = model.dimensions() as u64;
    let dimensions = within("dimensions", request.dimensions, 1, most)?;
    let made = embed::embed(&model, texts, dimensions, app.terms(&caller)).await?;
    let base64 = request.encoding_format == Some(Format::Base64);
    let one = |(index, vector): (usize, Vec<f32>)| {
        let embedding = if base64 {
            let bytes: Vec<u8> = vector.iter().flat_map(|x| x.to_le_bytes()).collect();
            Vector::Base64(base64::engine::general_purpose::STANDARD.encode(bytes))
        } else {
            Vector::Float(vector)
        };
        Embedding { object: "embedding", index, embedding }
    };
    let tokens = made.tokens.iter().sum();
    let reply = json(&Response {
        object: "list",
        data: made.vectors.into_iter().enumerate().map(one).collect(),
        model: model.name.clone(),
        usage: EmbeddingUsage { prompt_tokens: tokens, total_tokens: tokens },
    });
    Ok(signed(reply, &model, None, &ignored))
}
