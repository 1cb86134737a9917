//! The parts of a streamed answer, as server-sent events or as a JSON array.

use super::generate::{Response, UsageMetadata, candidate, finish_reason, logprobs};
use crate::answer::{Part, Usage};
use crate::failure::Failure;
use crate::stream::{Encoder, sse};
use serde_json::{Value, json};

/// An answer on its way.
pub struct Stream {
    version: String,
    id: String,
    sse: bool,
    prompt: Usage,
    completion: usize,
    begun: bool,
}

impl Stream {
    /// An answer that has just begun.
    pub fn new(version: String, id: String, sse: bool, prompt: Usage) -> Self {
        Self { version, id, sse, prompt, completion: 0, begun: false }
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
            Part::End { choice, end, completion } => {
                self.completion += completion;
                let mut out = candidate(*choice, "");
                out["finishReason"] = finish_reason(end).into();
                out
            }
        };
        let usage = Usage { completion: self.completion, ..self.prompt };
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
