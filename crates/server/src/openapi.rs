//! The OpenAPI document, made from the handlers and their types.

use crate::{anthropic, gemini, ollama, openai, own};
use utoipa::OpenApi;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Lapidary",
        description = "Models over HTTP in the dialects of OpenAI, Gemini, Anthropic and Ollama. \
            Bodies are read strictly: a field that is not supported is refused by name."
    ),
    paths(
        openai::chat::handle,
        openai::completions::handle,
        openai::embeddings::handle,
        openai::models::list,
        openai::models::get,
        openai::responses::handle,
        openai::responses::get,
        openai::responses::delete,
        openai::responses::input_items,
        anthropic::messages::handle,
        anthropic::messages::count,
        gemini::models::list,
        gemini::models::get,
        gemini::generate::generate,
        gemini::generate::stream,
        gemini::generate::count,
        gemini::embeddings::one,
        gemini::embeddings::batch,
        ollama::generate::chat,
        ollama::generate::generate,
        ollama::embed::handle,
        ollama::models::tags,
        ollama::models::show,
        ollama::models::ps,
        ollama::models::version,
        own::tokenize,
        own::detokenize,
        own::live,
        own::ready,
        own::metrics,
    )
)]
struct Document;

/// The document.
pub fn document() -> utoipa::openapi::OpenApi {
    Document::openapi()
}
