//! Ollama's dialect: chat, generate, embed, and what is known of the models. Lines of JSON.
//!
//! <https://github.com/ollama/ollama/blob/main/docs/api.md>

pub mod embed;
pub mod generate;
pub mod models;
pub mod options;
mod stream;

use crate::app::Shared;
use crate::failure::Failure;
use axum::Router;
use axum::routing::{get, post};
use serde::Serialize;
use utoipa::ToSchema;

/// The body of every error.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaError)]
pub struct ErrorBody {
    /// What was wrong.
    pub error: String,
}

impl ErrorBody {
    /// A failure in Ollama's words.
    pub fn new(failure: &Failure) -> Self {
        Self { error: failure.said() }
    }
}

/// Ollama's routes.
pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/api/chat", post(generate::chat))
        .route("/api/generate", post(generate::generate))
        .route("/api/embed", post(embed::handle))
        .route("/api/tags", get(models::tags))
        .route("/api/show", post(models::show))
        .route("/api/ps", get(models::ps))
        .route("/api/version", get(models::version))
}
