//! Lines of JSON.

use super::generate::Head;
use crate::answer::{End, Part, Usage};
use crate::failure::Failure;
use crate::stream::Encoder;
use serde::Serialize;
use serde_json::json;

/// An answer on its way.
pub struct Stream {
    head: Head,
    end: End,
}

impl Stream {
    /// An answer that has just begun.
    pub fn new(head: Head) -> Self {
        Self { head, end: End::Stop }
    }
}

fn line(value: &impl Serialize) -> String {
    format!("{}\n", json!(value))
}

impl Encoder for Stream {
    fn part(&mut self, part: &Part) -> String {
        match part {
            Part::Text { text, tokens, .. } => line(&self.head.line("", text, tokens.as_deref())),
            Part::Thought { text, .. } => line(&self.head.line(text, "", None)),
            Part::End { end, .. } => {
                self.end = end.clone();
                String::new()
            }
        }
    }

    fn finish(&mut self, usage: &Usage) -> String {
        line(&self.head.last(self.head.line("", "", None), &self.end, usage))
    }

    fn failed(&mut self, failure: &Failure) -> String {
        line(&super::ErrorBody::new(failure))
    }
}
