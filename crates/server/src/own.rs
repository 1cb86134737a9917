//! Our own endpoints: tokens, health, metrics, the OpenAPI document.

use crate::app::{Shared, Whole, json, signed};
use crate::failure::{Failure, Kind, Reply};
use crate::fields::{Decoded, Reading, Table, decode, yes};
use crate::openapi;
use axum::Router;
use axum::extract::State;
use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use lapidary_formats::tokenizer::Encode;
use serde::{Deserialize, Serialize};
use std::sync::atomic::Ordering::Relaxed;
use utoipa::ToSchema;

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OwnError)]
pub struct ErrorBody {
    /// What was wrong.
    pub error: ErrorDetail,
}

/// What was wrong.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OwnErrorDetail)]
pub struct ErrorDetail {
    /// For people.
    pub message: String,
    /// The field that it is about.
    pub field: Option<String>,
}

impl ErrorBody {
    /// A failure in our own words.
    pub fn new(failure: &Failure) -> Self {
        Self {
            error: ErrorDetail { message: failure.message.clone(), field: failure.field.clone() },
        }
    }
}

/// The fields of a request to `/tokenize`.
pub const TOKENIZE: Table = &[
    yes("model"),
    yes("text"),
    yes("add_special").note("the tokens that a text begins and ends with; default false"),
    yes("parse_special").note("control tokens that the text spells become those; default false"),
];

/// The fields of a request to `/detokenize`.
pub const DETOKENIZE: Table = &[
    yes("model"),
    yes("ids"),
    yes("skip_special").note("control tokens give nothing; default false"),
];

/// A text to be taken apart.
#[derive(Debug, Deserialize, ToSchema)]
pub struct TokenizeRequest {
    /// A name from `/v1/models`.
    pub model: String,
    /// The text.
    pub text: String,
    /// Add the tokens that a text begins and ends with.
    #[serde(default)]
    pub add_special: bool,
    /// Turn control tokens that the text spells into those.
    #[serde(default)]
    pub parse_special: bool,
}

/// Its tokens.
#[derive(Debug, Serialize, ToSchema)]
pub struct TokenizeResponse {
    /// Their ids.
    pub ids: Vec<u32>,
    /// What the vocabulary calls them.
    pub pieces: Vec<String>,
}

/// Tokens to be put together.
#[derive(Debug, Deserialize, ToSchema)]
pub struct DetokenizeRequest {
    /// A name from `/v1/models`.
    pub model: String,
    /// Token ids.
    pub ids: Vec<u32>,
    /// Leave control tokens out.
    #[serde(default)]
    pub skip_special: bool,
}

/// Their text.
#[derive(Debug, Serialize, ToSchema)]
pub struct DetokenizeResponse {
    /// The text.
    pub text: String,
}

/// Bytes to a request to `/tokenize`.
///
/// # Errors
/// If the body is refused.
pub fn read_tokenize(body: &[u8], reading: Reading) -> Result<Decoded<TokenizeRequest>, Failure> {
    decode(body, TOKENIZE, reading)
}

/// Bytes to a request to `/detokenize`.
///
/// # Errors
/// If the body is refused.
pub fn read_detokenize(
    body: &[u8],
    reading: Reading,
) -> Result<Decoded<DetokenizeRequest>, Failure> {
    decode(body, DETOKENIZE, reading)
}

/// Text to tokens.
#[utoipa::path(post, path = "/tokenize", tag = "Lapidary", request_body = TokenizeRequest, responses(
    (status = 200, description = "The tokens", body = TokenizeResponse),
    (status = "4XX", description = "Refused", body = ErrorBody),
    (status = "5XX", description = "Busy or broken", body = ErrorBody),
))]
pub async fn tokenize(State(app): State<Shared>, Whole(body): Whole) -> Reply {
    let Decoded { request, ignored } = read_tokenize(&body, app.reading())?;
    let model = app.registry.get(&request.model).await?;
    let options = Encode { add_special: request.add_special, parse_special: request.parse_special };
    let (words, text) = (model.clone(), request.text);
    let ids = model.aside(move || words.text.tokenizer.encode(&text, options)).await?;
    let piece = |id: &u32| model.text.tokenizer.piece(*id).unwrap_or_default().to_owned();
    let pieces = ids.iter().map(piece).collect();
    Ok(signed(json(&TokenizeResponse { ids, pieces }), &model, None, &ignored))
}

/// Tokens to text.
#[utoipa::path(post, path = "/detokenize", tag = "Lapidary", request_body = DetokenizeRequest, responses(
    (status = 200, description = "The text", body = DetokenizeResponse),
    (status = "4XX", description = "Refused", body = ErrorBody),
    (status = "5XX", description = "Busy or broken", body = ErrorBody),
))]
pub async fn detokenize(State(app): State<Shared>, Whole(body): Whole) -> Reply {
    let Decoded { request, ignored } = read_detokenize(&body, app.reading())?;
    let model = app.registry.get(&request.model).await?;
    let tokenizer = &model.text.tokenizer;
    if let Some(i) = request.ids.iter().position(|id| *id as usize >= tokenizer.vocab_size()) {
        let (id, size) = (request.ids[i], tokenizer.vocab_size());
        let message = format!("{id} is not below the vocabulary's {size}");
        return Err(Failure::field(format!("ids[{i}]"), message));
    }
    let text = tokenizer.decode(&request.ids, request.skip_special);
    Ok(signed(json(&DetokenizeResponse { text }), &model, None, &ignored))
}

/// The process answers.
#[utoipa::path(get, path = "/health/live", tag = "Lapidary", responses(
    (status = 200, description = "`ok`", body = String, content_type = "text/plain")))]
pub async fn live() -> &'static str {
    "ok\n"
}

/// The server takes requests.
#[utoipa::path(get, path = "/health/ready", tag = "Lapidary", responses(
    (status = 200, description = "`ready`", body = String, content_type = "text/plain"),
    (status = 503, description = "It is shutting down", body = ErrorBody)))]
pub async fn ready(State(app): State<Shared>) -> Reply {
    if app.draining.load(Relaxed) {
        return Err(Failure::new(Kind::Busy, "the server is shutting down"));
    }
    Ok("ready\n".into_response())
}

/// Counters for Prometheus.
#[utoipa::path(get, path = "/metrics", tag = "Lapidary", responses(
    (status = 200, description = "Text", body = String, content_type = "text/plain; version=0.0.4"),
    (status = "4XX", description = "Refused", body = ErrorBody)))]
pub async fn metrics(State(app): State<Shared>) -> Reply {
    let text = app.metrics.text(&app.registry);
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response())
}

async fn document() -> Reply {
    Ok(json(&openapi::document()))
}

/// Our own routes.
pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/tokenize", post(tokenize))
        .route("/detokenize", post(detokenize))
        .route("/health/live", get(live))
        .route("/health/ready", get(ready))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(document))
}
