//! Every endpoint with the fields of its requests: the second half of `docs/serving.md`.

use crate::fields::{Table, markdown};
use crate::{anthropic, gemini, ollama, openai, own};

/// An endpoint that takes a body.
pub struct Endpoint {
    /// Its path.
    pub path: &'static str,
    /// The type of its requests in the OpenAPI document.
    pub schema: &'static str,
    /// The fields of its requests.
    pub table: Table,
}

const fn endpoint(path: &'static str, schema: &'static str, table: Table) -> Endpoint {
    Endpoint { path, schema, table }
}

/// The dialects with their endpoints.
pub const DIALECTS: [(&str, &[Endpoint]); 5] = [
    (
        "OpenAI",
        &[
            endpoint("/v1/chat/completions", "ChatCompletionRequest", openai::chat::TABLE),
            endpoint("/v1/completions", "CompletionRequest", openai::completions::TABLE),
            endpoint("/v1/responses", "ResponseRequest", openai::responses::TABLE),
            endpoint("/v1/embeddings", "EmbeddingRequest", openai::embeddings::TABLE),
        ],
    ),
    (
        "Gemini",
        &[
            endpoint(
                "/v1beta/models/{model}:generateContent",
                "GenerateContentRequest",
                gemini::generate::TABLE,
            ),
            endpoint(
                "/v1beta/models/{model}:countTokens",
                "GeminiCountTokensRequest",
                gemini::generate::COUNT_TABLE,
            ),
            endpoint(
                "/v1beta/models/{model}:embedContent",
                "EmbedContentRequest",
                gemini::embeddings::TABLE,
            ),
            endpoint(
                "/v1beta/models/{model}:batchEmbedContents",
                "BatchEmbedContentsRequest",
                gemini::embeddings::BATCH_TABLE,
            ),
        ],
    ),
    (
        "Anthropic",
        &[
            endpoint("/v1/messages", "MessagesRequest", anthropic::messages::TABLE),
            endpoint(
                "/v1/messages/count_tokens",
                "CountTokensRequest",
                anthropic::messages::COUNT_TABLE,
            ),
        ],
    ),
    (
        "Ollama",
        &[
            endpoint("/api/chat", "OllamaChatRequest", ollama::generate::CHAT_TABLE),
            endpoint("/api/generate", "OllamaGenerateRequest", ollama::generate::GENERATE_TABLE),
            endpoint("/api/embed", "OllamaEmbedRequest", ollama::embed::TABLE),
            endpoint("/api/show", "OllamaShowRequest", ollama::models::SHOW_TABLE),
        ],
    ),
    (
        "Lapidary",
        &[
            endpoint("/tokenize", "TokenizeRequest", own::TOKENIZE),
            endpoint("/detokenize", "DetokenizeRequest", own::DETOKENIZE),
        ],
    ),
];

/// The tables as Markdown.
pub fn document() -> String {
    let mut out = String::new();
    for (dialect, endpoints) in DIALECTS {
        out += &format!("\n### {dialect}\n");
        for e in endpoints {
            out += &format!("\n`POST {}`\n\n{}", e.path, markdown(e.table));
        }
    }
    out
}
