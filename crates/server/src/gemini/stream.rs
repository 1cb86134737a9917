//! The parts of a streamed answer, as server-sent events or as a JSON array.

use super::generate::{Response, UsageMetadata, candidate, finish_reason, logprobs, thought};
use crate::answer::{Part, Usage};
use crate::failure::Failure;
use crate::stream::{Encoder, sse};
use serde_json::{Value, json};

/// An answer on its way.
pub struct Stream {
    version: String,
    id: String,
    sse: bool,
    /// Whether thoughts are shown.
    shows: bool,
    /// The prompt's tokens, and those of answers that are complete.
    usage: Usage,
    begun: bool,
}

impl Stream {
    /// An answer that has just begun.
    pub fn new(version: String, id: String, sse: bool, shows: bool, usage: Usage) -> Self {
        Self { version, id, sse, shows, usage, begun: false }
    }

    fn piece(&mut self, value: &Value) -> String {
        if self.sse {
            return sse(None, value);
        }
        let before = if std::mem::replace(&mut self.begun, true) { ",\n" } else { "[" };
        format!("{before}{value}")
    }

    fn response(&mut self, candidates: Vec<Value>, usage: &Usage) -> String {
        let response = Response {
            candidates,
            usage_metadata: Some(UsageMetadata::new(usage)),
            model_version: self.version.clone(),
            response_id: self.id.clone(),
        };
        self.piece(&json!(response))
    }

    fn close(&self) -> &'static str {
        if self.sse { "" } else { "]\n" }
    }
}

impl Encoder for Stream {
    fn part(&mut self, part: &Part) -> String {
        let candidate = match part {
            Part::Text { choice, text, tokens } => {
                let mut out = candidate(*choice, text);
                if let Some(tokens) = tokens {
                    out["logprobsResult"] = logprobs(tokens);
                }
                out
            }
            Part::Thought { .. } if !self.shows => return String::new(),
            Part::Thought { choice, text } => {
                let mut out = candidate(*choice, "");
                out["content"]["parts"] = json!([thought(text)]);
                out
            }
            Part::End { choice, end, completion, thought } => {
                self.usage.completion += completion;
                self.usage.thought += thought;
                let mut out = candidate(*choice, "");
                out["finishReason"] = finish_reason(end).into();
                out
            }
        };
        let usage = self.usage;
        self.response(vec![candidate], &usage)
    }

    fn finish(&mut self, _usage: &Usage) -> String {
        self.close().to_owned()
    }

    fn failed(&mut self, failure: &Failure) -> String {
        let error = json!(super::ErrorBody::new(failure));
        self.piece(&error) + self.close()
    }
}
