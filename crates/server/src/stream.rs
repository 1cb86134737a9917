//! Answers as they are made: server-sent events, lines of JSON, or a JSON array.

use crate::answer::{Answers, Part, Usage};
use crate::failure::Failure;
use axum::body::{Body, Bytes};
use axum::http::{HeaderValue, header};
use axum::response::Response;
use futures_core::Stream;
use serde_json::Value;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::mpsc;

/// How often a sign of life is sent while nothing else is.
const PING: Duration = Duration::from_secs(15);
/// How long a client may leave what it is sent unread.
const STALL: Duration = Duration::from_secs(60);

/// The streaming form of a dialect.
pub trait Encoder: Send + 'static {
    /// What comes first.
    fn begin(&mut self, _usage: &Usage) -> String {
        String::new()
    }
    /// A part of an answer.
    fn part(&mut self, part: &Part) -> String;
    /// What comes last, when all went well.
    fn finish(&mut self, usage: &Usage) -> String;
    /// What comes last, when it did not.
    fn failed(&mut self, failure: &Failure) -> String;
    /// A sign of life.
    fn ping(&mut self) -> &'static str {
        ""
    }
}

/// `text/event-stream`.
pub const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream; charset=utf-8");
/// `application/x-ndjson`.
pub const LINES: HeaderValue = HeaderValue::from_static("application/x-ndjson");
/// `application/json`.
pub const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// One server-sent event.
pub fn sse(event: Option<&str>, data: &Value) -> String {
    match event {
        Some(name) => format!("event: {name}\ndata: {data}\n\n"),
        None => format!("data: {data}\n\n"),
    }
}

/// The body of a response, whose chunks come from a task.
struct Chunks(mpsc::Receiver<Bytes>);

impl Stream for Chunks {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.poll_recv(cx).map(|chunk| chunk.map(Ok))
    }
}

/// A response that is sent while `answers` are made. The task ends, and cancels them, when the client
/// has gone or reads nothing for a minute.
pub fn respond(answers: Answers, encoder: impl Encoder, content_type: HeaderValue) -> Response {
    let (sender, receiver) = mpsc::channel(16);
    tokio::spawn(run(answers, encoder, sender));
    let mut response = Response::new(Body::from_stream(Chunks(receiver)));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, content_type);
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

async fn run(mut answers: Answers, mut encoder: impl Encoder, sender: mpsc::Sender<Bytes>) {
    let send = async |text: String| {
        text.is_empty() || sender.send_timeout(text.into(), STALL).await.is_ok()
    };
    if !send(encoder.begin(&answers.usage())).await {
        return;
    }
    loop {
        let next = tokio::select! {
            // The client has gone: dropping the answers cancels them.
            () = sender.closed() => return,
            next = tokio::time::timeout(PING, answers.next()) => next,
        };
        let (text, last) = match next {
            Err(_) => (encoder.ping().to_owned(), false),
            Ok(Some(Ok(part))) => (encoder.part(&part), false),
            Ok(Some(Err(failure))) => {
                tracing::warn!(problem = failure.said(), "an answer broke off");
                (encoder.failed(&failure), true)
            }
            Ok(None) => (encoder.finish(&answers.usage()), true),
        };
        if !send(text).await || last {
            return;
        }
    }
}
