//! `/v1/models`, to OpenAI's clients and to Anthropic's.

use crate::app::{Shared, json};
use crate::failure::Reply;
use crate::gemini;
use crate::registry::Entry;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde::Serialize;
use serde_json::{Value, json as value};
use utoipa::ToSchema;

/// The models.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ModelList)]
pub struct List {
    /// `list`.
    pub object: &'static str,
    /// The models, by name.
    pub data: Vec<Model>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = Model)]
pub struct Model {
    /// Its name.
    pub id: String,
    /// `model`.
    pub object: &'static str,
    /// When its files were changed, in seconds since 1970.
    pub created: i64,
    /// `lapidary`.
    pub owned_by: &'static str,
    /// Tokens of a sequence, prompt and answer. Not OpenAI's.
    pub context_length: usize,
    /// Whether it has a chat template. Not OpenAI's.
    pub chat: bool,
    /// Whether pictures can be shown to it. Not OpenAI's.
    pub vision: bool,
    /// Whether it can think apart from its answer. Not OpenAI's.
    pub thinking: bool,
    /// Whether it is in memory. Not OpenAI's.
    pub loaded: bool,
}

fn model(entry: &Entry) -> Model {
    let since = entry.card.modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    Model {
        id: entry.name.clone(),
        object: "model",
        created: since.as_secs() as i64,
        owned_by: "lapidary",
        context_length: entry.card.context,
        chat: entry.card.chats,
        vision: entry.card.sees(),
        thinking: entry.card.thinks,
        loaded: entry.loaded().is_some(),
    }
}

fn anthropic(entry: &Entry) -> Value {
    value!({
        "type": "model", "id": entry.name, "display_name": entry.name,
        "created_at": crate::clock::rfc3339(entry.card.modified),
    })
}

fn is_anthropic(headers: &HeaderMap) -> bool {
    headers.contains_key("anthropic-version")
}

fn is_google(headers: &HeaderMap) -> bool {
    headers.contains_key("x-goog-api-client") || headers.contains_key("x-goog-api-key")
}

/// Lists the models; in Anthropic's form to its clients (`anthropic-version`).
#[utoipa::path(get, operation_id = "listModels", path = "/v1/models", tag = "OpenAI", responses(
    (status = 200, description = "All models", body = List),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
))]
pub async fn list(State(app): State<Shared>, headers: HeaderMap) -> Reply {
    if is_google(&headers) {
        return gemini::models::list(State(app)).await;
    }
    if is_anthropic(&headers) {
        let data: Vec<Value> = app.registry.entries().map(|e| anthropic(e)).collect();
        let (first, last) = (data.first().map(|m| &m["id"]), data.last().map(|m| &m["id"]));
        return Ok(json(
            &value!({"data": data, "has_more": false, "first_id": first, "last_id": last}),
        ));
    }
    let data = app.registry.entries().map(|e| model(e)).collect();
    Ok(json(&List { object: "list", data }))
}

/// One model.
#[utoipa::path(get, operation_id = "retrieveModel", path = "/v1/models/{model}", tag = "OpenAI",
    params(("model" = String, Path, description = "A name from `/v1/models`")), responses(
    (status = 200, description = "The model", body = Model),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
))]
pub async fn get(State(app): State<Shared>, Path(name): Path<String>, headers: HeaderMap) -> Reply {
    if is_google(&headers) {
        return gemini::models::get(State(app), Path(name)).await;
    }
    let entry = app.registry.entry(&name)?;
    Ok(if is_anthropic(&headers) { json(&anthropic(entry)) } else { json(&model(entry)) })
}
