//! Chat templates: a conversation to the text that a model was trained to continue.
//!
//! A checkpoint brings a Jinja template; it is untrusted, and is run with bounded steps, memory and
//! output. Gemma 1 to 4 and Llama 2 have built-in forms for files without one.
//!
//! **Control tokens in what people write.** A rendered prompt is encoded with its control tokens
//! parsed, and a message may spell one (`<end_of_turn>`). Before rendering, each spelling inside a
//! message is broken by a marker character; afterwards the markers are taken out and their places
//! reported in [`Rendered::literal`], which the tokenizer must then take as plain text.

mod builtin;
mod gemma4;
mod jinja;
mod turn;

use crate::names::shorten;
use crate::{FormatError, Result};
pub use builtin::Builtin;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::ops::Range;
use std::path::Path;
pub use turn::{Part, TurnParser};

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `user`, `assistant`, `system`, ...
    pub role: String,
    /// What was said: a string, or an array of parts as in OpenAI's API.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub content: Value,
    /// Whatever else a template may use, such as `tool_calls`.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Message {
    /// A turn that is plain text.
    pub fn new(role: &str, content: &str) -> Self {
        Self { role: role.into(), content: content.into(), extra: Map::new() }
    }

    /// The content as one string; parts other than text are an error.
    pub(crate) fn text(&self) -> std::result::Result<String, String> {
        match &self.content {
            Value::String(s) => Ok(s.clone()),
            Value::Array(parts) => {
                let text = |part: &Value| match part.get("text").and_then(Value::as_str) {
                    Some(text) => Ok(text.to_owned()),
                    None => Err("only text parts can be shown to this model".to_owned()),
                };
                parts.iter().map(text).collect()
            }
            _ => Err(format!("the content of a {} turn is neither text nor parts", self.role)),
        }
    }
}

/// What a template is rendered with.
#[derive(Debug, Clone, Default)]
pub struct RenderOptions<'a> {
    /// End with the beginning of the model's turn.
    pub add_generation_prompt: bool,
    /// The spelling of the token that begins a text.
    pub bos: &'a str,
    /// The spelling of the token that ends a text.
    pub eos: &'a str,
    /// Tool definitions, as JSON.
    pub tools: Option<Value>,
    /// Further variables.
    pub extra: Map<String, Value>,
    /// Spellings of control tokens.
    pub control: &'a [String],
    /// Seconds since 1970, for `strftime_now`.
    pub now: i64,
}

/// A rendered prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendered {
    /// The prompt.
    pub text: String,
    /// Byte ranges that spell control tokens but were written by people: to be taken as text.
    pub literal: Vec<Range<usize>>,
}

/// The variable of templates that asks the model for thoughts before its answer.
pub const THINKING: &str = "enable_thinking";

/// A way of writing a conversation down.
pub struct ChatTemplate {
    kind: Kind,
    name: String,
    thinks: bool,
}

enum Kind {
    Jinja(Box<jinja::Jinja>),
    Builtin(Builtin),
}

impl ChatTemplate {
    /// A checkpoint's own template; `name` is its name in errors.
    ///
    /// # Errors
    /// If it is too long or no Jinja.
    pub fn from_jinja(source: &str, name: &str) -> Result<Self> {
        let jinja = jinja::Jinja::new(source)
            .map_err(|e| FormatError::new(name, "chat template", shorten(e)))?;
        let thinks = source.contains(THINKING);
        Ok(Self { kind: Kind::Jinja(Box::new(jinja)), name: name.to_owned(), thinks })
    }

    /// One of ours.
    pub fn builtin(builtin: Builtin) -> Self {
        let thinks = matches!(builtin, Builtin::Gemma4 | Builtin::Gemma4Large);
        let name = format!("built-in {}", builtin.name());
        Self { kind: Kind::Builtin(builtin), name, thinks }
    }

    /// The template of a checkpoint of this architecture: its own if it has one, else ours, else
    /// none (a base model without turns).
    ///
    /// # Errors
    /// If its own is broken.
    pub fn for_model(own: Option<(&str, &str)>, architecture: &str) -> Result<Option<Self>> {
        match own {
            Some((source, name)) => Self::from_jinja(source, name).map(Some),
            None => Ok(Builtin::of(architecture).map(Self::builtin)),
        }
    }

    /// The template of a Hugging Face directory: `chat_template.jinja`, `chat_template.json`, or
    /// `tokenizer_config.json`, else ours.
    ///
    /// # Errors
    /// If a file can't be read or its template is broken.
    pub fn from_dir(dir: &Path, architecture: &str) -> Result<Option<Self>> {
        match find_source(dir)? {
            Some((source, name)) => Self::from_jinja(&source, &name).map(Some),
            None => Self::for_model(None, architecture),
        }
    }

    /// Whether it knows the variable [`THINKING`].
    pub fn thinks(&self) -> bool {
        self.thinks
    }

    /// Where it is from.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Writes `messages` down.
    ///
    /// # Errors
    /// If the template refuses the conversation, or breaks.
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<Rendered> {
        let wrong =
            |problem: String| FormatError::new(&self.name, "chat template", shorten(problem));
        if let Some(m) = messages.iter().find(|m| m.role.is_empty()) {
            return Err(wrong(format!("a turn without a role: {}", m.content)));
        }
        let marker = free_character(messages, options)
            .ok_or_else(|| wrong("too many odd characters".into()))?;
        let marked: Vec<Message> = messages
            .iter()
            .map(|m| Message {
                role: m.role.clone(),
                content: mark(&m.content, options.control, marker),
                extra: mark_fields(&m.extra, options.control, marker),
            })
            .collect();
        let options = RenderOptions {
            tools: options.tools.as_ref().map(|t| mark(t, options.control, marker)),
            extra: mark_fields(&options.extra, options.control, marker),
            ..options.clone()
        };
        let text = match &self.kind {
            Kind::Jinja(j) => j.render(&marked, &options).map_err(wrong)?,
            Kind::Builtin(b) => b.render(&marked, &options).map_err(wrong)?,
        };
        Ok(unmark(&text, options.control, marker))
    }

    /// As [`ChatTemplate::render`], but a system message works with every template: one that the
    /// template refuses is put before the first user turn, with an empty line between. Tells
    /// whether that was done.
    ///
    /// # Errors
    /// As `render`.
    pub fn render_merging(
        &self,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<(Rendered, bool)> {
        let refused = match self.render(messages, options) {
            Ok(rendered) => return Ok((rendered, false)),
            Err(e) => e,
        };
        let [system, user, rest @ ..] = messages else { return Err(refused) };
        if system.role != "system" || user.role != "user" {
            return Err(refused);
        }
        let (Ok(before), Ok(after)) = (system.text(), user.text()) else { return Err(refused) };
        let content = format!("{}\n\n{after}", before.trim_end());
        let mut merged = vec![Message { content: content.into(), ..user.clone() }];
        merged.extend_from_slice(rest);
        Ok((self.render(&merged, options)?, true))
    }
}

/// The Jinja source of a Hugging Face directory's template, if it has one.
///
/// # Errors
/// If a file that may hold it can't be read.
pub fn template_source(dir: &Path) -> Result<Option<String>> {
    Ok(find_source(dir)?.map(|(source, _)| source))
}

/// The source and the name of the file that it is in.
fn find_source(dir: &Path) -> Result<Option<(String, String)>> {
    let jinja = dir.join("chat_template.jinja");
    if jinja.is_file() {
        let name = jinja.display().to_string();
        let source = std::fs::read_to_string(&jinja).map_err(|e| FormatError::new(&name, "", e))?;
        return Ok(Some((source, name)));
    }
    for file in ["chat_template.json", "tokenizer_config.json"] {
        let path = dir.join(file);
        if !path.is_file() {
            continue;
        }
        let config = crate::json::read_object(&path)?;
        let name = path.display().to_string();
        if let Some(source) = in_config(&config, &name)? {
            return Ok(Some((source.to_owned(), name)));
        }
    }
    Ok(None)
}

/// `chat_template` of a configuration: a string, or an array of named ones.
fn in_config<'a>(config: &'a Value, name: &str) -> Result<Option<&'a str>> {
    match config.get("chat_template") {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(s)) => Ok(Some(s)),
        Some(Value::Array(all)) => {
            let named =
                |wanted| all.iter().find(|t| t.get("name").and_then(Value::as_str) == Some(wanted));
            let chosen = named("default").or(all.first());
            let source = chosen.and_then(|t| t.get("template")).and_then(Value::as_str);
            let wrong =
                || FormatError::new(name, "chat_template", "no entry has a template string");
            source.map(Some).ok_or_else(wrong)
        }
        Some(_) => Err(FormatError::new(name, "chat_template", "neither a string nor an array")),
    }
}

/// A private-use character that neither a message nor a variable holds.
fn free_character(messages: &[Message], options: &RenderOptions) -> Option<char> {
    let all = serde_json::to_string(&(messages, &options.tools, &options.extra)).ok()?;
    ('\u{f8f0}'..='\u{f8ff}').find(|c| !all.contains(*c))
}

/// Puts `marker` behind the first character of each control spelling in the strings of `value`.
fn mark(value: &Value, control: &[String], marker: char) -> Value {
    match value {
        Value::String(s) => Value::String(mark_text(s, control, marker)),
        Value::Array(a) => a.iter().map(|v| mark(v, control, marker)).collect(),
        Value::Object(o) => Value::Object(mark_fields(o, control, marker)),
        other => other.clone(),
    }
}

fn mark_fields(o: &Map<String, Value>, control: &[String], marker: char) -> Map<String, Value> {
    let marked = |(k, v): (&String, &Value)| {
        // A part's type is the template's business, not a person's words.
        let v = if k == "type" { v.clone() } else { mark(v, control, marker) };
        (k.clone(), v)
    };
    o.iter().map(marked).collect()
}

fn mark_text(text: &str, control: &[String], marker: char) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let (head, tail) = rest.split_at(first.len_utf8());
        out.push_str(head);
        if control.iter().any(|c| !c.is_empty() && rest.starts_with(c.as_str())) {
            out.push(marker);
        }
        rest = tail;
    }
    out
}

/// Takes the markers out and notes where they were.
fn unmark(marked: &str, control: &[String], marker: char) -> Rendered {
    let mut text = String::with_capacity(marked.len());
    let mut starts = Vec::new();
    for c in marked.chars() {
        if c == marker {
            // It stands behind the first character of the spelling.
            starts.push(text.char_indices().next_back().map_or(0, |(i, _)| i));
        } else {
            text.push(c);
        }
    }
    let literal = (starts.into_iter())
        .filter_map(|start| {
            // None where the template changed the words, to upper case for example.
            let spelt = control.iter().filter(|c| text[start..].starts_with(c.as_str()));
            spelt.map(String::len).max().map(|length| start..start + length)
        })
        .collect();
    Rendered { text, literal }
}
