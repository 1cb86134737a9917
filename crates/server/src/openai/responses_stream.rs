//! The events of a streamed response.

use super::chat::tokens;
use super::responses::{Keep, Response, message, output_text, status};
use crate::answer::{End, Part, Usage};
use crate::failure::Failure;
use crate::stream::{Encoder, sse};
use serde_json::{Value, json};

/// A response on its way.
pub struct Stream {
    response: Response,
    message: String,
    keep: Keep,
    text: String,
    logprobs: Vec<Value>,
    end: End,
    number: u64,
}

impl Stream {
    /// A response that has just begun, whose message has this id.
    pub fn new(response: Response, message: String, keep: Keep) -> Self {
        let (text, logprobs) = (String::new(), Vec::new());
        Self { response, message, keep, text, logprobs, end: End::Stop, number: 0 }
    }

    fn event(&mut self, kind: &str, mut data: Value) -> String {
        data["type"] = kind.into();
        data["sequence_number"] = self.number.into();
        self.number += 1;
        sse(Some(kind), &data)
    }

    /// An event about the message's only part.
    fn about_part(&mut self, kind: &str, mut data: Value) -> String {
        data["item_id"] = self.message.as_str().into();
        data["output_index"] = 0.into();
        data["content_index"] = 0.into();
        self.event(kind, data)
    }
}

impl Encoder for Stream {
    fn begin(&mut self, _usage: &Usage) -> String {
        let item = message(&self.message, "in_progress", vec![]);
        let response = json!({"response": self.response});
        let mut out = self.event("response.created", response.clone());
        out += &self.event("response.in_progress", response);
        out += &self.event("response.output_item.added", json!({"output_index": 0, "item": item}));
        let part = json!({"part": output_text("", vec![])});
        out + &self.about_part("response.content_part.added", part)
    }

    fn part(&mut self, part: &Part) -> String {
        match part {
            Part::Text { text, tokens: t, .. } => {
                let new = t.as_deref().map(tokens).unwrap_or_default();
                self.text += text;
                let data = json!({"delta": text, "logprobs": new});
                self.logprobs.extend(new);
                self.about_part("response.output_text.delta", data)
            }
            Part::End { end, .. } => {
                self.end = end.clone();
                String::new()
            }
        }
    }

    fn finish(&mut self, usage: &Usage) -> String {
        let logprobs = std::mem::take(&mut self.logprobs);
        let part = output_text(&self.text, logprobs.clone());
        let done = json!({"text": self.text, "logprobs": logprobs});
        let mut out = self.about_part("response.output_text.done", done);
        out += &self.about_part("response.content_part.done", json!({"part": part}));
        let item = message(&self.message, status(&self.end), vec![part]);
        let data = json!({"output_index": 0, "item": item});
        out += &self.event("response.output_item.done", data);
        self.response.end(item, &self.end, usage);
        self.keep.keep(&self.response, &self.text);
        let kind = format!("response.{}", self.response.status);
        let data = json!({"response": self.response});
        out + &self.event(&kind, data)
    }

    fn failed(&mut self, failure: &Failure) -> String {
        let error = super::ErrorBody::new(failure).error;
        self.event(
            "error",
            json!({"code": error.code, "message": error.message, "param": error.param}),
        )
    }

    fn ping(&mut self) -> &'static str {
        ": waiting\n\n"
    }
}
