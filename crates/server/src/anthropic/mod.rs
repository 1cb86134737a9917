//! Anthropic's dialect: messages, with streaming events, and counting tokens.
//!
//! <https://docs.anthropic.com/en/api/messages>

pub mod messages;
mod stream;

use crate::app::Shared;
use crate::failure::{Failure, Kind};
use axum::Router;
use axum::routing::post;
use serde::Serialize;
use utoipa::ToSchema;

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AnthropicError)]
pub struct ErrorBody {
    /// `error`.
    pub r#type: &'static str,
    /// What was wrong.
    pub error: ErrorDetail,
}

/// What was wrong.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = AnthropicErrorDetail)]
pub struct ErrorDetail {
    /// The kind, as Anthropic names it.
    pub r#type: &'static str,
    /// For people.
    pub message: String,
}

/// Anthropic says 529 where others say 503.
pub fn status(failure: &Failure) -> u16 {
    if failure.kind == Kind::Busy { 529 } else { failure.status() }
}

impl ErrorBody {
    /// A failure in Anthropic's words.
    pub fn new(failure: &Failure) -> Self {
        let r#type = match failure.kind {
            Kind::Invalid | Kind::SlowBody | Kind::Method => "invalid_request_error",
            Kind::Unauthorized => "authentication_error",
            Kind::Forbidden => "permission_error",
            Kind::NotFound => "not_found_error",
            Kind::BodyTooLarge => "request_too_large",
            Kind::RateLimited(_) => "rate_limit_error",
            Kind::Busy => "overloaded_error",
            Kind::Timeout => "timeout_error",
            Kind::Internal => "api_error",
        };
        Self { r#type: "error", error: ErrorDetail { r#type, message: failure.said() } }
    }
}

/// Anthropic's routes; `/v1/models` is shared with OpenAI.
pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/v1/messages", post(messages::handle))
        .route("/v1/messages/count_tokens", post(messages::count))
}
