//! `/api/embed`.

use super::options::{self, Options};
use crate::app::{Shared, Whole, json, signed};
use crate::auth::Caller;
use crate::embed;
use crate::failure::{Failure, Reply};
use crate::fields::{Decoded, Reading, Table, decode, differs, no, yes};
use crate::job::{OneOrMany, Prompt, within};
use axum::extract::{Extension, State};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::sync::Arc;
use std::time::Instant;
use utoipa::ToSchema;

/// The fields of a request.
pub const TABLE: Table = &[
    yes("model"),
    differs(
        "input",
        "a text or an array; without a model for embeddings the vector is the mean of the hidden states",
    ),
    differs("dimensions", "the first so many, scaled to length 1 again"),
    differs("options", "`num_ctx` is checked; the others have no effect on vectors")
        .of(options::TABLE),
    differs("keep_alive", "has no effect: --idle says when models are unloaded"),
    no("truncate", "a text is never cut").unless(&["false"]),
];

/// A request.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaEmbedRequest)]
pub struct Request {
    /// A name from `/api/tags`.
    pub model: String,
    /// Texts.
    pub input: OneOrMany<String>,
    /// Only the first so many dimensions.
    pub dimensions: Option<u64>,
    /// Only `num_ctx` has an effect.
    pub options: Option<Options>,
    /// Accepted, without effect.
    #[schema(value_type = Option<Object>)]
    pub keep_alive: Option<Value>,
}

/// Vectors.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaEmbedResponse)]
pub struct Response {
    /// The model that made them.
    pub model: String,
    /// In the order of the texts, of length 1.
    pub embeddings: Vec<Vec<f32>>,
    /// Nanoseconds from the request to the answer.
    pub total_duration: u64,
    /// Nanoseconds until the model was loaded.
    pub load_duration: u64,
    /// Tokens of the texts.
    pub prompt_eval_count: usize,
}

/// Bytes to a request.
///
/// # Errors
/// If the body is refused.
pub fn read(body: &[u8], reading: Reading) -> Result<Decoded<Request>, Failure> {
    decode(body, TABLE, reading)
}

/// Texts to vectors.
#[utoipa::path(post, operation_id = "ollamaEmbed", path = "/api/embed", tag = "Ollama", request_body = Request, responses(
    (status = 200, description = "The vectors", body = Response),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
    (status = "5XX", description = "Busy or broken", body = super::ErrorBody),
))]
pub async fn handle(
    State(app): State<Shared>,
    Extension(caller): Extension<Arc<Caller>>,
    Whole(body): Whole,
) -> Reply {
    let start = Instant::now();
    let Decoded { request, ignored } = read(&body, app.reading())?;
    let model = app.registry.get(&request.model).await?;
    let loaded = start.elapsed();
    request.options.unwrap_or_default().check(model.card.context)?;
    let dimensions = within("dimensions", request.dimensions, 1, model.dimensions() as u64)?;
    let texts = request.input.into_vec().into_iter().map(Prompt::Text).collect();
    let made = embed::embed(&model, texts, dimensions, app.terms(&caller)).await?;
    let reply = json(&Response {
        model: model.name.clone(),
        embeddings: made.vectors,
        total_duration: start.elapsed().as_nanos() as u64,
        load_duration: loaded.as_nanos() as u64,
        prompt_eval_count: made.tokens.iter().sum(),
    });
    Ok(signed(reply, &model, None, &ignored))
}
