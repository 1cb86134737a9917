//! `/api/tags`, `/api/show`, `/api/ps`, `/api/version`.

use crate::app::{Shared, Whole, json};
use crate::clock::rfc3339;
use crate::failure::{Failure, Reply};
use crate::fields::{Decoded, Reading, Table, decode, differs, yes};
use crate::model::format_name;
use crate::registry::Entry;
use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json as value};
use utoipa::ToSchema;

/// The fields of a request to `/api/show`.
pub const SHOW_TABLE: Table = &[
    yes("model"),
    yes("name").note("the older name of `model`"),
    differs("verbose", "has no effect: the vocabulary is not shown"),
];

/// A request to `/api/show`.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = OllamaShowRequest)]
pub struct ShowRequest {
    /// A name from `/api/tags`.
    pub model: Option<String>,
    /// The same.
    pub name: Option<String>,
    /// Accepted, without effect.
    pub verbose: Option<bool>,
}

/// What a model is.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaDetails)]
pub struct Details {
    /// Always empty.
    pub parent_model: &'static str,
    /// `gguf` or `safetensors`.
    pub format: &'static str,
    /// The family.
    pub family: &'static str,
    /// The family.
    pub families: Vec<&'static str>,
    /// Parameters, for people.
    pub parameter_size: String,
    /// The type of most weights.
    pub quantization_level: String,
}

fn details(entry: &Entry) -> Details {
    let card = &entry.card;
    Details {
        parent_model: "",
        format: format_name(&entry.origin),
        family: card.family,
        families: vec![card.family],
        parameter_size: card.size(),
        quantization_level: card.quantisation.clone(),
    }
}

/// The models.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = OllamaTags)]
pub struct Tags {
    /// By name.
    #[schema(value_type = Vec<Object>)]
    pub models: Vec<Value>,
}

fn tag(entry: &Entry) -> Value {
    value!({
        "name": entry.name, "model": entry.name, "modified_at": rfc3339(entry.card.modified),
        "size": entry.card.file_bytes, "digest": entry.card.digest, "details": details(entry),
    })
}

/// Lists the models.
#[utoipa::path(get, operation_id = "ollamaTags", path = "/api/tags", tag = "Ollama", responses(
    (status = 200, description = "All models", body = Tags),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
))]
pub async fn tags(State(app): State<Shared>) -> Reply {
    Ok(json(&Tags { models: app.registry.entries().map(|e| tag(e)).collect() }))
}

/// Lists the models in memory.
#[utoipa::path(get, operation_id = "ollamaPs", path = "/api/ps", tag = "Ollama", responses(
    (status = 200, description = "The models in memory", body = Tags),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
))]
pub async fn ps(State(app): State<Shared>) -> Reply {
    let loaded = app.registry.entries().filter(|e| e.loaded().is_some());
    let models = loaded.map(|e| {
        let mut out = tag(e);
        out["size"] = e.card.memory().into();
        out["size_vram"] = 0.into();
        out["context_length"] = e.card.context.into();
        out["expires_at"] = rfc3339(app.registry.expires(e)).into();
        out
    });
    Ok(json(&Tags { models: models.collect() }))
}

/// Bytes to a request to `/api/show`, and the name in it.
///
/// # Errors
/// If the body is refused.
pub fn read_show(body: &[u8], reading: Reading) -> Result<(Decoded<ShowRequest>, String), Failure> {
    let mut decoded: Decoded<ShowRequest> = decode(body, SHOW_TABLE, reading)?;
    let request = &mut decoded.request;
    let name = request.model.take().or(request.name.take());
    let name = name.ok_or_else(|| Failure::field("model", "the name of a model was expected"))?;
    Ok((decoded, name))
}

/// Tells what is known of a model.
#[utoipa::path(post, operation_id = "ollamaShow", path = "/api/show", tag = "Ollama", request_body = ShowRequest, responses(
    (status = 200, description = "What is known", body = Object),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
    (status = "5XX", description = "Busy or broken", body = super::ErrorBody),
))]
pub async fn show(State(app): State<Shared>, Whole(body): Whole) -> Reply {
    let (_, name) = read_show(&body, app.reading())?;
    let entry = app.registry.entry(&name)?;
    let card = &entry.card;
    let family = card.family;
    let mut info = value!({
        "general.architecture": family,
        "general.parameter_count": card.parameters,
        "general.file_type": card.quantisation,
    });
    info[format!("{family}.context_length")] = card.trained_context.into();
    info[format!("{family}.embedding_length")] = card.width.into();
    info[format!("{family}.block_count")] = card.layers.into();
    info[format!("{family}.vocab_size")] = card.vocab.into();
    let mut capabilities = Vec::new();
    if card.chats {
        let others = [(card.sees(), "vision"), (card.thinks, "thinking")];
        capabilities.push("completion");
        capabilities.extend(others.into_iter().filter(|o| o.0).map(|o| o.1));
    }
    capabilities.push("embedding");
    let parameters = format!("num_ctx {}", card.context);
    Ok(json(&value!({
        "modelfile": "", "parameters": parameters, "template": "", "license": card.license,
        "details": details(entry), "model_info": info, "capabilities": capabilities,
        "modified_at": rfc3339(card.modified),
    })))
}

/// The program's version.
#[utoipa::path(get, operation_id = "ollamaVersion", path = "/api/version", tag = "Ollama", responses(
    (status = 200, description = "The version of Lapidary", body = Object),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
))]
pub async fn version() -> Reply {
    Ok(json(&value!({"version": env!("CARGO_PKG_VERSION")})))
}
