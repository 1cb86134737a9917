//! Google's dialect: models, content, tokens, embeddings.
//!
//! <https://ai.google.dev/api>

pub mod content;
pub mod embeddings;
pub mod generate;
pub mod models;
mod stream;

use crate::app::{Shared, Whole};
use crate::auth::Caller;
use crate::failure::{Failure, Kind, Reply};
use crate::fields::Reading;
use axum::Router;
use axum::extract::{Extension, Path, RawQuery, State};
use axum::routing::{get, post};
use serde::Serialize;
use std::sync::Arc;
use utoipa::ToSchema;

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = GeminiError)]
pub struct ErrorBody {
    /// What was wrong.
    pub error: ErrorDetail,
}

/// What was wrong.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = GeminiErrorDetail)]
pub struct ErrorDetail {
    /// The HTTP status.
    pub code: u16,
    /// For people.
    pub message: String,
    /// The kind, as Google names it.
    pub status: &'static str,
}

impl ErrorBody {
    /// A failure in Google's words.
    pub fn new(failure: &Failure) -> Self {
        let status = match failure.kind {
            Kind::Invalid | Kind::BodyTooLarge | Kind::SlowBody => "INVALID_ARGUMENT",
            Kind::Unauthorized => "UNAUTHENTICATED",
            Kind::Forbidden => "PERMISSION_DENIED",
            Kind::NotFound => "NOT_FOUND",
            Kind::Method => "UNIMPLEMENTED",
            Kind::RateLimited(_) => "RESOURCE_EXHAUSTED",
            Kind::Busy => "UNAVAILABLE",
            Kind::Timeout => "DEADLINE_EXCEEDED",
            Kind::Internal => "INTERNAL",
        };
        Self { error: ErrorDetail { code: failure.status(), message: failure.said(), status } }
    }
}

/// How bodies of this dialect are read: Google takes both spellings of a field's name.
pub fn reading(app: &Shared) -> Reading {
    Reading { either_case: true, ..app.reading() }
}

/// Google's routes.
pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1beta/models", get(models::list))
        // Google's newer clients say v1; `openai::models` answers them where the paths are one.
        .route("/v1/models/{*call}", post(call))
        .route("/v1beta/models/{*call}", post(call).get(models::get))
}

/// `MODEL:METHOD`.
async fn call(
    State(app): State<Shared>,
    Extension(caller): Extension<Arc<Caller>>,
    Path(call): Path<String>,
    RawQuery(query): RawQuery,
    Whole(body): Whole,
) -> Reply {
    let unknown = || {
        let short: String = call.chars().take(100).collect();
        let message = format!(
            "{short:?} is not MODEL:generateContent, :streamGenerateContent, :countTokens, :embedContent or :batchEmbedContents"
        );
        Failure::new(Kind::NotFound, message)
    };
    let (name, method) = call.rsplit_once(':').ok_or_else(unknown)?;
    match method {
        "generateContent" => generate::generate(app, caller, name, &body).await,
        "streamGenerateContent" => {
            let sse = query.iter().flat_map(|q| q.split('&')).any(|p| p == "alt=sse");
            generate::stream(app, caller, name, &body, sse).await
        }
        "countTokens" => generate::count(app, caller, name, &body).await,
        "embedContent" => embeddings::one(app, caller, name, &body).await,
        "batchEmbedContents" => embeddings::batch(app, caller, name, &body).await,
        _ => Err(unknown()),
    }
}
