//! Responses that are kept for `previous_response_id` and for being asked for again: in memory,
//! bounded, and only for the key that made them.

use crate::failure::{Failure, Kind};
use crate::pictures::Conversation;
use crate::think::thought_of;
use serde_json::Value;
use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Responses kept at most, and their bytes.
const MOST: usize = 1000;
const MOST_BYTES: usize = 64 << 20;

/// A response that is kept.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Whose it is.
    pub client: u64,
    /// The conversation, the answer included, without instructions.
    pub conversation: Conversation,
    /// What was new in the request, as items.
    pub input: Vec<Value>,
    /// The response.
    pub body: Value,
}

impl Kept {
    fn bytes(&self) -> usize {
        let text = |content: &Value| match content {
            Value::Array(parts) => {
                parts.iter().filter_map(|p| p["text"].as_str()).map(str::len).sum()
            }
            content => content.as_str().map_or(0, str::len),
        };
        let texts: usize = (self.conversation.messages.iter())
            .map(|m| text(&m.content) + thought_of(m).len() + 64)
            .sum();
        let pictures: usize = self.conversation.images.iter().map(|i| i.data.len() + 256).sum();
        (texts + pictures) * 2 + 2048
    }
}

#[derive(Default)]
struct Inner {
    kept: HashMap<String, Kept>,
    /// The oldest first; those deleted since may still be here.
    order: VecDeque<String>,
    bytes: usize,
}

/// The responses of a server. When there are too many the oldest are forgotten.
#[derive(Default)]
pub struct Store(Mutex<Inner>);

impl Store {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps a response.
    pub fn put(&self, id: String, kept: Kept) {
        let mut inner = self.lock();
        inner.bytes += kept.bytes();
        inner.order.push_back(id.clone());
        inner.kept.insert(id, kept);
        while inner.order.len() > MOST || inner.bytes > MOST_BYTES {
            let Some(oldest) = inner.order.pop_front() else { break };
            let freed = inner.kept.remove(&oldest).map_or(0, |k| k.bytes());
            inner.bytes -= freed;
        }
    }

    /// A response of this client.
    ///
    /// # Errors
    /// If there is none, or it is another's.
    pub fn get(&self, id: &str, client: u64) -> Result<Kept, Failure> {
        let inner = self.lock();
        inner.kept.get(id).filter(|k| k.client == client).cloned().ok_or_else(|| unknown(id))
    }

    /// Forgets a response of this client.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn delete(&self, id: &str, client: u64) -> Result<(), Failure> {
        self.get(id, client)?;
        let mut inner = self.lock();
        let freed = inner.kept.remove(id).map_or(0, |k| k.bytes());
        inner.bytes -= freed;
        inner.order.retain(|other| other != id);
        Ok(())
    }
}

fn unknown(id: &str) -> Failure {
    let short: String = id.chars().take(100).collect();
    Failure::new(
        Kind::NotFound,
        format!(
            "there is no response {short:?}: it was not stored, or was forgotten (the last {MOST} are kept, until the server ends)"
        ),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kept(client: u64, bytes: usize) -> Kept {
        let mut conversation = Conversation::default();
        conversation.say("user", &"x".repeat(bytes));
        Kept { client, conversation, input: vec![], body: Value::Null }
    }

    #[test]
    fn the_oldest_are_forgotten_and_others_see_nothing() {
        let store = Store::default();
        for i in 0..MOST + 5 {
            store.put(format!("r{i}"), kept(1, 10));
        }
        assert!(store.get("r4", 1).is_err() && store.get("r5", 1).is_ok());
        assert!(store.get("r9", 2).is_err() && store.delete("r9", 2).is_err());
        assert!(store.delete("r9", 1).is_ok() && store.get("r9", 1).is_err());
        store.put("large".into(), kept(1, MOST_BYTES / 2 - 5000));
        let inner = store.lock();
        assert!(inner.bytes <= MOST_BYTES && inner.kept.len() < 10, "{}", inner.kept.len());
        assert_eq!(inner.bytes, inner.kept.values().map(Kept::bytes).sum::<usize>());
    }
}
