//! `/v1beta/models`.

use crate::app::{Shared, json};
use crate::failure::Reply;
use crate::registry::Entry;
use axum::extract::{Path, State};
use serde::Serialize;
use utoipa::ToSchema;

/// The models.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = GeminiModelList)]
pub struct List {
    /// The models, by name.
    pub models: Vec<Model>,
}

/// A model.
#[derive(Debug, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = GeminiModel)]
pub struct Model {
    /// `models/…`.
    pub name: String,
    /// Its name.
    pub base_model_id: String,
    /// The beginning of its digest.
    pub version: String,
    /// Its name.
    pub display_name: String,
    /// Family, size and precision.
    pub description: String,
    /// Tokens of a prompt at most.
    pub input_token_limit: usize,
    /// Tokens of an answer at most, if the prompt leaves room.
    pub output_token_limit: usize,
    /// What it can be asked for.
    pub supported_generation_methods: Vec<&'static str>,
}

fn model(entry: &Entry) -> Model {
    let card = &entry.card;
    let all = [
        "countTokens",
        "embedContent",
        "batchEmbedContents",
        "generateContent",
        "streamGenerateContent",
    ];
    Model {
        name: format!("models/{}", entry.name),
        base_model_id: entry.name.clone(),
        version: card.digest[..12].to_owned(),
        display_name: entry.name.clone(),
        description: format!("{} {} {}", card.family, card.size(), card.quantisation),
        input_token_limit: card.context,
        output_token_limit: card.context,
        // Without a chat template there are no turns.
        supported_generation_methods: if card.chats { all.to_vec() } else { all[1..3].to_vec() },
    }
}

/// Lists the models.
#[utoipa::path(get, operation_id = "geminiListModels", path = "/v1beta/models", tag = "Gemini", responses(
    (status = 200, description = "All models", body = List),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
))]
pub async fn list(State(app): State<Shared>) -> Reply {
    let models = app.registry.entries().map(|e| model(e)).collect();
    Ok(json(&List { models }))
}

/// One model.
#[utoipa::path(get, operation_id = "geminiGetModel", path = "/v1beta/models/{model}", tag = "Gemini",
    params(("model" = String, Path, description = "A name from `/v1/models`")), responses(
    (status = 200, description = "The model", body = Model),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
))]
pub async fn get(State(app): State<Shared>, Path(name): Path<String>) -> Reply {
    Ok(json(&model(app.registry.entry(&name)?)))
}
