//! Thoughts: whether a model has them before it answers, as requests ask for it.

use crate::failure::Failure;
use crate::job::Prompt;
use crate::model::Model;
use lapidary_formats::chat::{Message, THINKING};
use serde_json::{Map, Value};

/// The name that templates know a turn's thoughts by.
pub const THOUGHT: &str = "reasoning_content";

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    /// Whether to think.
    pub on: bool,
    /// The field that says so.
    pub field: &'static str,
}

/// Checks that the model can do what the prompt asks for. One that can't think is not asked to if the
/// server is lenient, and `ignored` names the field.
///
/// # Errors
/// If it can't think, and the server is not lenient.
pub fn settle(
    prompt: &mut Prompt,
    model: &Model,
    lenient: bool,
    ignored: &mut Vec<String>,
) -> Result<(), Failure> {
    let Prompt::Chat(conversation) = prompt else { return Ok(()) };
    match conversation.think {
        Some(Asked { on: true, field }) if !model.card.thinks => {
            if !lenient {
                let message = format!("{} can't think apart from its answer", model.name);
                return Err(Failure::field(field, message));
            }
            ignored.push(field.to_owned());
            conversation.think = None;
        }
        _ => {}
    }
    Ok(())
}

/// Whether `model` thinks when it is `asked`, if that is said anywhere.
pub fn thinks(model: &Model, asked: Option<Asked>) -> Option<bool> {
    asked.map(|a| a.on).or(model.think).filter(|_| model.card.thinks)
}

/// Variables of the chat template beside the conversation.
pub fn variables(think: Option<bool>) -> Map<String, Value> {
    think.map(|on| (THINKING.to_owned(), on.into())).into_iter().collect()
}

/// What was thought in a turn.
pub fn thought_of(turn: &Message) -> &str {
    turn.extra.get(THOUGHT).and_then(Value::as_str).unwrap_or_default()
}
