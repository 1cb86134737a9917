//! `:embedContent` and `:batchEmbedContents`.

use super::content::{Content, TEXT_CONTENT};
use super::generate::check_model;
use super::reading;
use crate::app::{Shared, json, signed};
use crate::auth::Caller;
use crate::embed;
use crate::failure::{Failure, Reply};
use crate::fields::{Decoded, Reading, Table, decode, differs, no, yes};
use crate::job::{Prompt, within};
use crate::model::Model;
use lapidary_engine::EmbedError;
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use utoipa::ToSchema;

/// The fields of a request.
pub const TABLE: Table = &[
    differs(
        "content",
        "without a model for embeddings the vector is the mean of the hidden states",
    )
    .of(TEXT_CONTENT),
    differs("outputDimensionality", "the first so many, scaled to length 1 again"),
    differs(
        "taskType",
        "the prompt of the task, with models for embeddings; no effect with others",
    ),
    differs("model", "must be the one of the path, if it is there"),
    differs("title", "of a `RETRIEVAL_DOCUMENT`, with models for embeddings; refused otherwise"),
    no("autoTruncate", "a text is never cut").unless(&["false"]),
    no("embedContentConfig", "say it in the request itself"),
];

/// The fields of a request for many.
pub const BATCH_TABLE: Table = &[yes("requests").of(TABLE), differs("model", "as in a request")];

/// A request for a vector.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = EmbedContentRequest)]
pub struct Request {
    /// The text.
    pub content: Content,
    /// Only the first so many dimensions.
    pub output_dimensionality: Option<u64>,
    /// What the vector is for.
    pub task_type: Option<Task>,
    /// The title of a document.
    pub title: Option<String>,
    /// The model of the path.
    pub model: Option<String>,
}

/// What a vector is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
#[schema(as = EmbedTaskType)]
pub enum Task {
    /// Nothing in particular.
    TaskTypeUnspecified,
    /// A question to find documents by.
    RetrievalQuery,
    /// A document to be found.
    RetrievalDocument,
    /// Texts that mean the same.
    SemanticSimilarity,
    /// Labels.
    Classification,
    /// Groups.
    Clustering,
    /// A question to be answered.
    QuestionAnswering,
    /// A claim to be checked.
    FactVerification,
    /// A question to find code by.
    CodeRetrievalQuery,
}

impl Task {
    /// The name of its prompt, as model cards have it.
    fn prompt(self) -> &'static str {
        match self {
            Task::TaskTypeUnspecified => "none",
            Task::RetrievalQuery => "query",
            Task::RetrievalDocument => "document",
            Task::SemanticSimilarity => "similarity",
            Task::Classification => "classification",
            Task::Clustering => "clustering",
            Task::QuestionAnswering => "question answering",
            Task::FactVerification => "fact checking",
            Task::CodeRetrievalQuery => "code",
        }
    }
}

/// A request for many vectors.
#[derive(Debug, Deserialize, ToSchema)]
#[schema(as = BatchEmbedContentsRequest)]
pub struct BatchRequest {
    /// The texts.
    pub requests: Vec<Request>,
    /// The model of the path.
    pub model: Option<String>,
}

/// A vector.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ContentEmbedding)]
pub struct Vector {
    /// Of length 1.
    pub values: Vec<f32>,
}

/// The answer to a request for a vector.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = EmbedContentResponse)]
pub struct Response {
    /// The vector.
    pub embedding: Vector,
}

/// The answer to a request for many.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = BatchEmbedContentsResponse)]
pub struct BatchResponse {
    /// In the order of the requests.
    pub embeddings: Vec<Vector>,
}

/// Bytes to a request.
///
/// # Errors
/// If the body is refused.
pub fn read(body: &[u8], reading: Reading) -> Result<Decoded<Request>, Failure> {
    decode(body, TABLE, reading)
}

/// Bytes to a request for many.
///
/// # Errors
/// If the body is refused.
pub fn read_batch(body: &[u8], reading: Reading) -> Result<Decoded<BatchRequest>, Failure> {
    decode(body, BATCH_TABLE, reading)
}

/// A text to a vector.
#[utoipa::path(post, operation_id = "geminiEmbedContent", path = "/v1beta/models/{model}:embedContent", tag = "Gemini",
    params(("model" = String, Path, description = "A name from `/v1/models`")),
    request_body = Request, responses(
    (status = 200, description = "The vector", body = Response),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
    (status = "5XX", description = "Busy or broken", body = super::ErrorBody),
))]
pub async fn one(app: Shared, caller: Arc<Caller>, name: &str, body: &[u8]) -> Reply {
    let Decoded { request, ignored } = read(body, reading(&app))?;
    let (model, mut vectors) = vectors(&app, &caller, name, &[request]).await?;
    let values = vectors.pop().unwrap_or_default();
    Ok(signed(json(&Response { embedding: Vector { values } }), &model, None, &ignored))
}

/// Texts to vectors.
#[utoipa::path(post, operation_id = "geminiBatchEmbedContents", path = "/v1beta/models/{model}:batchEmbedContents", tag = "Gemini",
    params(("model" = String, Path, description = "A name from `/v1/models`")),
    request_body = BatchRequest, responses(
    (status = 200, description = "The vectors", body = BatchResponse),
    (status = "4XX", description = "Refused", body = super::ErrorBody),
    (status = "5XX", description = "Busy or broken", body = super::ErrorBody),
))]
pub async fn batch(app: Shared, caller: Arc<Caller>, name: &str, body: &[u8]) -> Reply {
    let Decoded { request, ignored } = read_batch(body, reading(&app))?;
    check_model(name, request.model.as_deref())?;
    let (model, vectors) = vectors(&app, &caller, name, &request.requests).await?;
    let embeddings = vectors.into_iter().map(|values| Vector { values }).collect();
    Ok(signed(json(&BatchResponse { embeddings }), &model, None, &ignored))
}

/// The text that the model sees: behind the prompt of its task, if the model knows tasks.
fn text(model: &Model, request: &Request) -> Result<Prompt, Failure> {
    let text = request.content.text("content")?;
    let Some(made) = model.vectors() else {
        return match request.title {
            Some(_) => Err(Failure::field("title", "this model was not trained for titles")),
            None => Ok(Prompt::Text(text)),
        };
    };
    let task = request.task_type.unwrap_or(Task::TaskTypeUnspecified);
    let wrong = |e: EmbedError| Failure::field("taskType", e.to_string());
    let prompt = made.embedder.prompt(task.prompt()).map_err(wrong)?;
    let prompt = match &request.title {
        None => prompt.to_owned(),
        Some(title) if task == Task::RetrievalDocument && prompt.contains("title: none") => {
            prompt.replacen("title: none", &format!("title: {title}"), 1)
        }
        Some(_) => {
            return Err(Failure::field("title", "only a RETRIEVAL_DOCUMENT has a title"));
        }
    };
    Ok(Prompt::Text(prompt + &text))
}

type Made = (Arc<Model>, Vec<Vec<f32>>);

async fn vectors(
    app: &Shared,
    caller: &Caller,
    name: &str,
    requests: &[Request],
) -> Result<Made, Failure> {
    let Some(first) = requests.first() else {
        return Err(Failure::field("requests", "at least one request was expected"));
    };
    for r in requests {
        check_model(name, r.model.as_deref())?;
        if r.output_dimensionality != first.output_dimensionality {
            let message = "all requests must ask for the same";
            return Err(Failure::field("outputDimensionality", message));
        }
    }
    let model = app.registry.get(name).await?;
    let most = model.dimensions() as u64;
    let dimensions = within("outputDimensionality", first.output_dimensionality, 1, most)?;
    let texts = requests.iter().map(|r| text(&model, r)).collect::<Result<_, _>>()?;
    let made = embed::embed(&model, texts, dimensions, app.terms(caller)).await?;
    Ok((model, made.vectors))
}
