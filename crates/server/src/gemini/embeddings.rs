//! `:embedContent` and `:batchEmbedContents`.

use super::content::{CONTENT, Content};
use super::generate::check_model;
use super::reading;
use crate::app::{Shared, json, signed};
use crate::auth::Caller;
use crate::embed;
use crate::failure::{Failure, Reply};
use crate::fields::{Decoded, Reading, Table, decode, differs, no, yes};
use crate::job::{Prompt, within};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// The fields of a request.
pub const TABLE: Table = &[
    differs("content", "the vector is the mean of the hidden states").of(CONTENT),
    differs("outputDimensionality", "the first so many, scaled to length 1 again"),
    differs("taskType", "has no effect: vectors are the same for every task"),
    differs("model", "must be the one of the path, if it is there"),
    no("title", "vectors are of the content alone"),
    no("autoTruncate", "a text is never cut").unless(&["false"]),
    no("embedContentConfig", "say it in the request itself"),
];

/// The fields of a request for many.
pub const BATCH_TABLE: Table = &[yes("requests").of(TABLE), differs("model", "as in a request")];

/// A request for a vector.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = EmbedContentRequest)]
pub struct Request {
    /// The text.
    pub content: Content,
    /// Only the first so many dimensions.
    pub output_dimensionality: Option<u64>,
    /// Accepted, without effect.
    pub task_type: Option<String>,
    /// The model of the path.
    pub model: Option<String>,
}

/// A request for many vectors.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = BatchEmbedContentsRequest)]
pub struct BatchRequest {
    /// The texts.
    pub requests: Vec<Request>,
    /// The model of the path.
    pub model: Option<String>,
}

/// A vector.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ContentEmbedding)]
pub struct Vector {
    /// Of length 1.
    pub values: Vec<f32>,
}

/// The answer to a request for a vector.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EmbedContentResponse)]
pub struct Response {
    /// The vector.
    pub embedding: Vector,
}

/// The answer to a request for many.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BatchEmbedContentsResponse)]
pub struct BatchResponse {
    /// In the order of the requests.
    pub embeddings: Vec<Vector>,
}

/// Bytes to a request.
///
/// # Errors
/// If the body is refused.
pub fn read(body: &[u8], reading: Reading) -> Result<Decoded<Request>, Failure> {
    decode(body, TABLE, reading)
}

/// Bytes to a request for many.
///
/// # Errors
/// If the body is refused.
pub fn read_batch(body: &[u8], reading: Reading) -> Result<Decoded<BatchRequest>, Failure> {
    decode(body, BATCH_TABLE, reading)
}

/// A text to a vector.
#[utoipa::path(post, operation_id = "geminiEmbedContent", path = "/v1beta/models/{model}:embedContent", tag = "Gemini",
    params(("model" = String, Path, description = "A name from `/v1/models`")),
    request_body = Request, responses(
    (status = 200, description = "The vector", body = Response),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
    (status = "5XX", description = "Busy or broken", body = super::ErrorBody),
))]
pub async fn one(app: Shared, caller: Arc<Caller>, name: &str, body: &[u8]) -> Reply {
    let Decoded { request, ignored } = read(body, reading(&app))?;
    let (model, mut vectors) = vectors(&app, &caller, name, &[request]).await?;
    let values = vectors.pop().unwrap_or_default();
    Ok(signed(json(&Response { embedding: Vector { values } }), &model, None, &ignored))
}

/// Texts to vectors.
#[utoipa::path(post, operation_id = "geminiBatchEmbedContents", path = "/v1beta/models/{model}:batchEmbedContents", tag = "Gemini",
    params(("model" = String, Path, description = "A name from `/v1/models`")),
    request_body = BatchRequest, responses(
    (status = 200, description = "The vectors", body = BatchResponse),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
    (status = "5XX", description = "Busy or broken", body = super::ErrorBody),
))]
pub async fn batch(app: Shared, caller: Arc<Caller>, name: &str, body: &[u8]) -> Reply {
    let Decoded { request, ignored } = read_batch(body, reading(&app))?;
    check_model(name, request.model.as_deref())?;
    let (model, vectors) = vectors(&app, &caller, name, &request.requests).await?;
    let embeddings = vectors.into_iter().map(|values| Vector { values }).collect();
    Ok(signed(json(&BatchResponse { embeddings }), &model, None, &ignored))
}

type Made = (Arc<crate::model::Model>, Vec<Vec<f32>>);

async fn vectors(
    app: &Shared,
    caller: &Caller,
    name: &str,
    requests: &[Request],
) -> Result<Made, Failure> {
    let Some(first) = requests.first() else {
        return Err(Failure::field("requests", "at least one request was expected"));
    };
    for r in requests {
        check_model(name, r.model.as_deref())?;
        if r.output_dimensionality != first.output_dimensionality {
            let message = "all requests must ask for the same";
            return Err(Failure::field("outputDimensionality", message));
        }
    }
    let model = app.registry.get(name).await?;
    let most = model.card.width as u64;
    let dimensions = within("outputDimensionality", first.output_dimensionality, 1, most)?;
    let texts = requests.iter().map(|r| Prompt::Text(r.content.text())).collect();
    let made = embed::embed(&model, texts, dimensions, app.terms(caller)).await?;
    Ok((model, made.vectors))
}
