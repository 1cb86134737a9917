//! One example, in the forms that data comes in.

use super::rng::stable_hash;
use lapidary_formats::chat::Message;
use serde_json::{Map, Value};

/// One example as a file gives it.
#[derive(Debug, Clone, PartialEq)]
pub enum Document {
    /// Text, all of which is learnt.
    Text(String),
    /// A conversation, of which the assistant's turns from `from` on are learnt.
    Turns {
        /// The turns.
        messages: Vec<Message>,
        /// The first turn that may be learnt.
        from: usize,
    },
    /// A prompt and the text that follows it, which is learnt.
    Completion {
        /// What is given.
        prompt: String,
        /// What is learnt.
        completion: String,
    },
    /// Two answers to one prompt, for DPO.
    Preference {
        /// The better one, with its prompt.
        chosen: Box<Document>,
        /// The worse one, with its prompt.
        rejected: Box<Document>,
    },
}

impl Document {
    /// The example that a JSON object holds: `messages`; `chosen` and `rejected`, with or without
    /// `prompt`; `prompt` and `completion`; or `text`. Other keys are ignored.
    ///
    /// # Errors
    /// What is missing or of another kind.
    pub fn from_json(value: Value) -> Result<Self, String> {
        let Value::Object(mut fields) = value else {
            return Err("a JSON object was expected".into());
        };
        let mut take = |key: &str| fields.remove(key).filter(|v| !v.is_null());
        if let (Some(chosen), Some(rejected)) = (take("chosen"), take("rejected")) {
            return preference(take("prompt"), chosen, rejected);
        }
        if let Some(messages) = take("messages") {
            return Ok(Document::Turns { messages: turns("messages", messages)?, from: 0 });
        }
        if let Some(completion) = take("completion") {
            let prompt = take("prompt").ok_or("a completion without a prompt")?;
            return completed(prompt, completion, "completion");
        }
        match take("text") {
            Some(Value::String(text)) => Ok(Document::Text(text)),
            Some(_) => Err("text: a string was expected".into()),
            None => Err(unknown(&fields)),
        }
    }

    /// The example as JSON, of which [`Document::from_json`] makes the same.
    pub fn to_json(&self) -> Value {
        let mut out = Map::new();
        match self {
            Document::Text(text) => drop(out.insert("text".into(), text.as_str().into())),
            Document::Turns { messages, from: 0 } => {
                out.insert("messages".into(), serde_json::json!(messages));
            }
            Document::Turns { messages, from } => {
                out.insert("prompt".into(), serde_json::json!(messages[..*from]));
                out.insert("completion".into(), serde_json::json!(messages[*from..]));
            }
            Document::Completion { prompt, completion } => {
                out.insert("prompt".into(), prompt.as_str().into());
                out.insert("completion".into(), completion.as_str().into());
            }
            Document::Preference { chosen, rejected } => {
                out.insert("chosen".into(), chosen.to_json());
                out.insert("rejected".into(), rejected.to_json());
            }
        }
        Value::Object(out)
    }

    /// The words in it, for a tokenizer's statistics.
    pub fn words(&self) -> Vec<&str> {
        match self {
            Document::Text(text) => vec![text],
            Document::Turns { messages, .. } => {
                messages.iter().filter_map(|m| m.content.as_str()).collect()
            }
            Document::Completion { prompt, completion } => vec![prompt, completion],
            Document::Preference { chosen, rejected } => {
                let mut all = chosen.words();
                all.extend(rejected.words());
                all
            }
        }
    }

    /// Whether it belongs to the held-out part, a share `fraction` of all: decided by its content
    /// alone, so that the same document is always on the same side.
    pub fn is_held_out(&self, fraction: f64) -> bool {
        let hash = stable_hash(self.to_json().to_string().as_bytes());
        ((hash >> 11) as f64 / (1u64 << 53) as f64) < fraction
    }
}

fn unknown(fields: &Map<String, Value>) -> String {
    let keys: Vec<&str> = fields.keys().map(String::as_str).take(8).collect();
    format!(
        "none of the keys text, messages, prompt with completion, chosen with rejected; found {}",
        if keys.is_empty() { "nothing".to_owned() } else { keys.join(", ") }
    )
}

fn turns(key: &str, value: Value) -> Result<Vec<Message>, String> {
    let messages: Vec<Message> = serde_json::from_value(value)
        .map_err(|e| format!("{key}: an array of {{\"role\", \"content\"}} was expected: {e}"))?;
    if messages.is_empty() { Err(format!("{key}: is empty")) } else { Ok(messages) }
}

/// A prompt and what follows: both text, or both turns.
fn completed(prompt: Value, completion: Value, key: &str) -> Result<Document, String> {
    match (prompt, completion) {
        (Value::String(prompt), Value::String(completion)) => {
            Ok(Document::Completion { prompt, completion })
        }
        (prompt @ Value::Array(_), completion @ Value::Array(_)) => {
            let mut messages = turns("prompt", prompt)?;
            let from = messages.len();
            messages.extend(turns(key, completion)?);
            Ok(Document::Turns { messages, from })
        }
        _ => Err(format!("prompt and {key}: two strings or two arrays of turns were expected")),
    }
}

fn preference(prompt: Option<Value>, chosen: Value, rejected: Value) -> Result<Document, String> {
    // A prompt as text beside whole conversations only repeats their beginning.
    let prompt = prompt.filter(|p| !(p.is_string() && chosen.is_array()));
    let (chosen, rejected) = match prompt {
        Some(prompt) => {
            (completed(prompt.clone(), chosen, "chosen")?, completed(prompt, rejected, "rejected")?)
        }
        // Our own form, nested; else whole conversations whose common beginning is the prompt.
        None if chosen.is_object() => {
            (Document::from_json(chosen)?, Document::from_json(rejected)?)
        }
        None => {
            let (chosen, rejected) = (turns("chosen", chosen)?, turns("rejected", rejected)?);
            let from = chosen.iter().zip(&rejected).take_while(|(a, b)| a == b).count();
            if from == 0 || from == chosen.len().min(rejected.len()) {
                return Err("chosen and rejected: two conversations that begin alike and end \
                            differently were expected"
                    .into());
            }
            (
                Document::Turns { messages: chosen, from },
                Document::Turns { messages: rejected, from },
            )
        }
    };
    Ok(Document::Preference { chosen: Box::new(chosen), rejected: Box::new(rejected) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_form_comes_back() {
        let turn = |role: &str, content: &str| json!({"role": role, "content": content});
        let forms = [
            json!({"text": "a", "lang": "en"}),
            json!({"messages": [turn("user", "a"), turn("assistant", "b")]}),
            json!({"prompt": "a", "completion": "b"}),
            json!({"prompt": [turn("user", "a")], "completion": [turn("assistant", "b")]}),
            json!({"prompt": "a", "chosen": "b", "rejected": "c"}),
            json!({"chosen": [turn("user", "a"), turn("assistant", "b")],
                   "rejected": [turn("user", "a"), turn("assistant", "c")]}),
        ];
        for form in forms {
            let document = Document::from_json(form.clone()).unwrap();
            assert_eq!(Document::from_json(document.to_json()), Ok(document.clone()), "{form}");
            assert!(!document.words().is_empty());
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let problem = |v| Document::from_json(v).unwrap_err();
        assert!(problem(json!({"story": "x"})).contains("found story"));
        assert!(problem(json!({"text": 3})).contains("a string was expected"));
        assert!(problem(json!({"completion": "x"})).contains("without a prompt"));
        assert!(problem(json!({"messages": [{"content": "x"}]})).contains("role"));
        assert!(problem(json!([1])).contains("object"));
        assert!(problem(json!({"prompt": "a", "chosen": {}, "rejected": "c"})).contains("chosen"));
    }

    #[test]
    fn the_split_is_a_share_of_the_content() {
        let held = (0..10_000)
            .filter(|i| Document::Text(format!("document {i}")).is_held_out(0.05))
            .count();
        assert!((430..570).contains(&held), "{held}");
        assert!(!Document::Text("x".into()).is_held_out(0.0));
        assert!(Document::Text("x".into()).is_held_out(1.0));
    }
}
