//! The OpenAPI document, made from the handlers and their types.

use crate::{anthropic, gemini, ollama, openai, own};
use utoipa::OpenApi;
use utoipa::openapi::path::PathItem;

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
    let mut document = Document::openapi();
    // Google's newer clients say v1 where the older ones say v1beta: the same handlers answer.
    let twin = |(path, item): (&String, &PathItem)| {
        let rest = path.strip_prefix("/v1beta/").filter(|rest| rest.contains(':'))?;
        let mut item = item.clone();
        let operation = item.post.as_mut()?;
        operation.operation_id = operation.operation_id.take().map(|id| id + "V1");
        Some((format!("/v1/{rest}"), item))
    };
    let paths = &mut document.paths.paths;
    let twins: Vec<_> = paths.iter().filter_map(twin).collect();
    paths.extend(twins);
    document
}
