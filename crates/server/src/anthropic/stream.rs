//! The events of a streamed message.

use super::messages::{Response, Usage, stop_reason};
use crate::answer::{self, End, Part};
use crate::failure::Failure;
use crate::stream::{Encoder, sse};
use serde_json::{Value, json};

/// A message on its way.
pub struct Stream {
    message: Response,
    /// Of thoughts.
    signature: String,
    /// Whether thoughts come empty.
    omits: bool,
    open: Option<Open>,
    /// Blocks that were begun before the open one.
    before: usize,
    end: End,
}

/// The block that is being written.
#[derive(Clone, Copy, PartialEq)]
enum Open {
    Thinking,
    Text,
}

impl Stream {
    /// A message that has just begun.
    pub fn new(message: Response, signature: String, omits: bool) -> Self {
        Self { message, signature, omits, open: None, before: 0, end: End::Stop }
    }

    /// Begins a block, if it is not the open one.
    fn begin_block(&mut self, wanted: Open) -> String {
        if self.open == Some(wanted) {
            return String::new();
        }
        let ended = self.end_block();
        self.open = Some(wanted);
        let block = match wanted {
            Open::Thinking => json!({"type": "thinking", "thinking": "", "signature": ""}),
            Open::Text => json!({"type": "text", "text": ""}),
        };
        let data = json!({"index": self.before, "content_block": block});
        let begun = ended + &event("content_block_start", data);
        // As Anthropic's own streams begin.
        if self.before == 0 { begun + self.ping() } else { begun }
    }

    /// Completes the open block.
    fn end_block(&mut self) -> String {
        let signed = match self.open.take() {
            None => return String::new(),
            Some(Open::Text) => String::new(),
            Some(Open::Thinking) => {
                self.delta(json!({"type": "signature_delta", "signature": self.signature}))
            }
        };
        let stop = event("content_block_stop", json!({"index": self.before}));
        self.before += 1;
        signed + &stop
    }

    fn delta(&self, delta: Value) -> String {
        event("content_block_delta", json!({"index": self.before, "delta": delta}))
    }
}

fn event(kind: &str, mut data: Value) -> String {
    data["type"] = kind.into();
    sse(Some(kind), &data)
}

impl Encoder for Stream {
    fn begin(&mut self, usage: &answer::Usage) -> String {
        self.message.usage = Usage::new(usage);
        event("message_start", json!({"message": self.message}))
    }

    fn part(&mut self, part: &Part) -> String {
        match part {
            Part::Text { text, .. } => {
                let begin = self.begin_block(Open::Text);
                begin + &self.delta(json!({"type": "text_delta", "text": text}))
            }
            Part::Thought { text, .. } => {
                let begin = self.begin_block(Open::Thinking);
                if self.omits {
                    return begin;
                }
                begin + &self.delta(json!({"type": "thinking_delta", "thinking": text}))
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
        // Clients expect a text, if only an empty one.
        let text = self.begin_block(Open::Text);
        text + &self.end_block()
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
