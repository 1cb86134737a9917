//! What can go wrong with a request, before a dialect gives it its words.

use axum::response::{IntoResponse, Response};
use std::time::Duration;

/// The kinds of failure that the dialects have statuses and names for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The request is wrong; a field or the body says how.
    Invalid,
    /// No key, or an unknown one.
    Unauthorized,
    /// The key or the page that asks may not do this.
    Forbidden,
    /// No such model, response or path.
    NotFound,
    /// The path exists, with another method.
    Method,
    /// The body is longer than allowed.
    BodyTooLarge,
    /// The body came too slowly.
    SlowBody,
    /// Too many requests with this key; how long to wait.
    RateLimited(Duration),
    /// The server is full or shutting down: try again later.
    Busy,
    /// The answer took longer than allowed.
    Timeout,
    /// Our own fault.
    Internal,
}

/// A request that got no answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// What kind it is.
    pub kind: Kind,
    /// What was wrong, what was expected and what to do, for people.
    pub message: String,
    /// The field that it is about, as a path such as `messages[0].content`.
    pub field: Option<String>,
}

/// What handlers give.
pub type Reply = Result<Response, Failure>;

impl Failure {
    /// A failure that is not about a field.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), field: None }
    }

    /// A wrong field.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { kind: Kind::Invalid, message: message.into(), field: Some(field.into()) }
    }

    /// A wrong request.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(Kind::Invalid, message)
    }

    /// The message, with its field before it.
    pub fn said(&self) -> String {
        match &self.field {
            Some(field) => format!("{field}: {}", self.message),
            None => self.message.clone(),
        }
    }

    /// The status that most dialects share.
    pub fn status(&self) -> u16 {
        match self.kind {
            Kind::Invalid => 400,
            Kind::Unauthorized => 401,
            Kind::Forbidden => 403,
            Kind::NotFound => 404,
            Kind::Method => 405,
            Kind::SlowBody => 408,
            Kind::BodyTooLarge => 413,
            Kind::RateLimited(_) => 429,
            Kind::Internal => 500,
            Kind::Busy => 503,
            Kind::Timeout => 504,
        }
    }
}

impl IntoResponse for Failure {
    /// A response that carries the failure; [`crate::app`] puts it in the words of the dialect
    /// that the path belongs to.
    fn into_response(self) -> Response {
        let mut response = Response::default();
        response.extensions_mut().insert(self);
        response
    }
}
