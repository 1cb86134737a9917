//! The events of a streamed message.

use super::messages::{Response, Usage, stop_reason};
use crate::answer::{self, End, Part};
use crate::failure::Failure;
use crate::stream::{Encoder, sse};
use serde_json::{Value, json};

/// A message on its way.
pub struct Stream {
    message: Response,
    end: End,
}

impl Stream {
    /// A message that has just begun.
    pub fn new(message: Response) -> Self {
        Self { message, end: End::Stop }
    }
}

fn event(kind: &str, mut data: Value) -> String {
    data["type"] = kind.into();
    sse(Some(kind), &data)
}

impl Encoder for Stream {
    fn begin(&mut self, usage: &answer::Usage) -> String {
        self.message.usage = Usage::new(usage);
        let block = json!({"type": "text", "text": ""});
        event("message_start", json!({"message": self.message}))
            + &event("content_block_start", json!({"index": 0, "content_block": block}))
            + self.ping()
    }

    fn part(&mut self, part: &Part) -> String {
        match part {
            Part::Text { text, .. } => {
                let delta = json!({"type": "text_delta", "text": text});
                event("content_block_delta", json!({"index": 0, "delta": delta}))
            }
            Part::End { end, .. } => {
                self.end = end.clone();
                String::new()
            }
        }
    }

    fn finish(&mut self, usage: &answer::Usage) -> String {
        let (reason, string) = stop_reason(&self.end);
        let delta = json!({"stop_reason": reason, "stop_sequence": string});
        event("content_block_stop", json!({"index": 0}))
            + &event("message_delta", json!({"delta": delta, "usage": Usage::new(usage)}))
            + &event("message_stop", json!({}))
    }

    fn failed(&mut self, failure: &Failure) -> String {
        event("error", json!({"error": super::ErrorBody::new(failure).error}))
    }

    fn ping(&mut self) -> &'static str {
        "event: ping\ndata: {\"type\":\"ping\"}\n\n"
    }
}
