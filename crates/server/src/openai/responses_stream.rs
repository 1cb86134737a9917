//! The events of a streamed response.

use super::chat::tokens;
use super::responses::{Keep, Response, message, output_text, reasoning, reasoning_text, status};
use crate::answer::{End, Part, Usage};
use crate::failure::Failure;
use crate::stream::{Encoder, sse};
use serde_json::{Value, json};

/// A response on its way: what is thought is an item, and then the message is one.
pub struct Stream {
    response: Response,
    /// Of the reasoning item and of the message.
    ids: (String, String),
    keep: Keep,
    /// All that was thought, and said.
    whole: (String, String),
    /// Of the open item.
    text: String,
    logprobs: Vec<Value>,
    /// Items that are complete.
    output: Vec<Value>,
    open: Option<Open>,
    end: End,
    number: u64,
}

/// The item that is being written.
#[derive(Clone, Copy, PartialEq)]
enum Open {
    Reasoning,
    Message,
}

impl Stream {
    /// A response that has just begun, whose reasoning item and message have these ids.
    pub fn new(response: Response, ids: (String, String), keep: Keep) -> Self {
        Self {
            response,
            ids,
            keep,
            whole: Default::default(),
            text: String::new(),
            logprobs: Vec::new(),
            output: Vec::new(),
            open: None,
            end: End::Stop,
            number: 0,
        }
    }

    fn event(&mut self, kind: &str, mut data: Value) -> String {
        data["type"] = kind.into();
        data["sequence_number"] = self.number.into();
        self.number += 1;
        sse(Some(kind), &data)
    }

    /// The id of the next item, of this kind. Models think before they speak; if one thinks again,
    /// items of the same kind have numbers.
    fn id(&self, kind: Open) -> String {
        let id = if kind == Open::Reasoning { &self.ids.0 } else { &self.ids.1 };
        match self.output.len() {
            n @ 2.. => format!("{id}_{n}"),
            _ => id.clone(),
        }
    }

    /// An event about the only part of the item that is open.
    fn about_part(&mut self, kind: &str, open: Open, mut data: Value) -> String {
        data["item_id"] = self.id(open).into();
        data["output_index"] = self.output.len().into();
        data["content_index"] = 0.into();
        self.event(kind, data)
    }

    /// Begins an item, if it is not the open one.
    fn begin_item(&mut self, wanted: Open) -> String {
        if self.open == Some(wanted) {
            return String::new();
        }
        let mut out = self.end_item();
        self.open = Some(wanted);
        let id = self.id(wanted);
        let (item, part) = match wanted {
            Open::Reasoning => (reasoning(&id, "in_progress", vec![]), reasoning_text("")),
            Open::Message => (message(&id, "in_progress", vec![]), output_text("", vec![])),
        };
        let data = json!({"output_index": self.output.len(), "item": item});
        out += &self.event("response.output_item.added", data);
        out + &self.about_part("response.content_part.added", wanted, json!({"part": part}))
    }

    /// Completes the open item.
    fn end_item(&mut self) -> String {
        let Some(open) = self.open.take() else { return String::new() };
        let (id, text) = (self.id(open), std::mem::take(&mut self.text));
        let logprobs = std::mem::take(&mut self.logprobs);
        let (kind, done, part, item) = match open {
            Open::Reasoning => {
                let part = reasoning_text(&text);
                let item = reasoning(&id, "completed", vec![part.clone()]);
                ("response.reasoning_text.done", json!({"text": text}), part, item)
            }
            Open::Message => {
                let part = output_text(&text, logprobs.clone());
                let item = message(&id, status(&self.end), vec![part.clone()]);
                let done = json!({"text": text, "logprobs": logprobs});
                ("response.output_text.done", done, part, item)
            }
        };
        let mut out = self.about_part(kind, open, done);
        out += &self.about_part("response.content_part.done", open, json!({"part": part}));
        let data = json!({"output_index": self.output.len(), "item": item});
        out += &self.event("response.output_item.done", data);
        self.output.push(item);
        out
    }
}

impl Encoder for Stream {
    fn begin(&mut self, _usage: &Usage) -> String {
        let response = json!({"response": self.response});
        let created = self.event("response.created", response.clone());
        created + &self.event("response.in_progress", response)
    }

    fn part(&mut self, part: &Part) -> String {
        match part {
            Part::Thought { text, .. } => {
                let begin = self.begin_item(Open::Reasoning);
                self.text += text;
                self.whole.0 += text;
                let data = json!({"delta": text});
                begin + &self.about_part("response.reasoning_text.delta", Open::Reasoning, data)
            }
            Part::Text { text, tokens: t, .. } => {
                let begin = self.begin_item(Open::Message);
                let new = t.as_deref().map(tokens).unwrap_or_default();
                self.text += text;
                self.whole.1 += text;
                let data = json!({"delta": text, "logprobs": new});
                self.logprobs.extend(new);
                begin + &self.about_part("response.output_text.delta", Open::Message, data)
            }
            Part::End { end, .. } => {
                self.end = end.clone();
                String::new()
            }
        }
    }

    fn finish(&mut self, usage: &Usage) -> String {
        let mut out = self.begin_item(Open::Message);
        out += &self.end_item();
        self.response.end(std::mem::take(&mut self.output), &self.end, usage);
        self.keep.keep(&self.response, &self.whole.0, &self.whole.1);
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
