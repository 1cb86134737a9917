//! OpenAI's dialect: chat completions, completions, responses, embeddings, models.
//!
//! <https://platform.openai.com/docs/api-reference>

pub mod chat;
pub mod completions;
pub mod content;
pub mod embeddings;
pub mod models;
pub mod responses;
pub mod responses_stream;
mod sampling;
pub mod store;

use crate::app::Shared;
use crate::failure::{Failure, Kind};
use axum::Router;
use axum::routing::{get, post};
use serde::Serialize;
use utoipa::ToSchema;

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorBody {
    /// What was wrong.
    pub error: ErrorDetail,
}

/// What was wrong.
#[derive(Debug, Serialize, ToSchema)]
pub struct ErrorDetail {
    /// For people.
    pub message: String,
    /// The kind, as OpenAI names it.
    pub r#type: &'static str,
    /// The field.
    pub param: Option<String>,
    /// A finer kind.
    pub code: Option<&'static str>,
}

impl ErrorBody {
    /// A failure in OpenAI's words.
    pub fn new(failure: &Failure) -> Self {
        let (r#type, code) = match failure.kind {
            Kind::Invalid if failure.message.starts_with("unknown field") => {
                ("invalid_request_error", Some("unknown_parameter"))
            }
            Kind::Invalid if failure.message.starts_with("not supported") => {
                ("invalid_request_error", Some("unsupported_parameter"))
            }
            Kind::Invalid if failure.message.contains("fit in a context") => {
                ("invalid_request_error", Some("context_length_exceeded"))
            }
            Kind::Invalid | Kind::BodyTooLarge | Kind::Method | Kind::SlowBody => {
                ("invalid_request_error", None)
            }
            Kind::Unauthorized => ("invalid_request_error", Some("invalid_api_key")),
            Kind::Forbidden => ("permission_error", None),
            Kind::NotFound if failure.field.as_deref() == Some("model") => {
                ("invalid_request_error", Some("model_not_found"))
            }
            Kind::NotFound => ("invalid_request_error", None),
            Kind::RateLimited(_) => ("rate_limit_error", Some("rate_limit_exceeded")),
            Kind::Busy | Kind::Timeout | Kind::Internal => ("server_error", None),
        };
        let (message, param) = (failure.said(), failure.field.clone());
        Self { error: ErrorDetail { message, r#type, param, code } }
    }
}

/// OpenAI's routes.
pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/chat/completions", post(chat::handle))
        .route("/v1/completions", post(completions::handle))
        .route("/v1/embeddings", post(embeddings::handle))
        .route("/v1/models", get(models::list))
        .route("/v1/models/{*call}", get(models::get))
        .route("/v1/responses", post(responses::handle))
        .route("/v1/responses/{id}", get(responses::get).delete(responses::delete))
        .route("/v1/responses/{id}/input_items", get(responses::input_items))
}
