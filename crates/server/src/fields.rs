//! The fields of every request, and what becomes of them: one table for each kind of object. A body
//! is checked against its table before it is decoded, and `docs/serving.md` is written from them.

use crate::failure::Failure;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// What becomes of a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// It does what the dialect's own documentation says.
    Supported,
    /// It is accepted; the note says what is different.
    Different,
    /// A request with it is refused; the note says why.
    Refused,
}

/// A field of an object.
#[derive(Debug)]
pub struct Field {
    /// Its name.
    pub name: &'static str,
    /// What becomes of it.
    pub support: Support,
    /// Why, or what is different.
    pub note: &'static str,
    /// Values (JSON) of a refused field that ask for nothing and are let through.
    pub neutral: &'static [&'static str],
    /// The fields of the object, or of the objects in the array, that it holds.
    pub inside: Option<&'static [Field]>,
}

/// The fields of one kind of object.
pub type Table = &'static [Field];

const fn field(name: &'static str, support: Support, note: &'static str) -> Field {
    Field { name, support, note, neutral: &[], inside: None }
}

/// A supported field.
pub const fn yes(name: &'static str) -> Field {
    field(name, Support::Supported, "")
}

/// An accepted field with a difference.
pub const fn differs(name: &'static str, note: &'static str) -> Field {
    field(name, Support::Different, note)
}

/// A refused field.
pub const fn no(name: &'static str, note: &'static str) -> Field {
    field(name, Support::Refused, note)
}

impl Field {
    /// With a remark.
    pub const fn note(self, note: &'static str) -> Self {
        Self { note, ..self }
    }

    /// Refused, but for these values (JSON), which ask for nothing.
    pub const fn unless(self, neutral: &'static [&'static str]) -> Self {
        Self { neutral, ..self }
    }

    /// With objects inside.
    pub const fn of(self, inside: Table) -> Self {
        Self { inside: Some(inside), ..self }
    }
}

/// A decoded request, and what was left out of it because the server is lenient.
#[derive(Debug)]
pub struct Decoded<T> {
    /// The request.
    pub request: T,
    /// Refused fields that were ignored, for the `x-lapidary-ignored` header.
    pub ignored: Vec<String>,
}

/// How bodies are read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Reading {
    /// Ignore refused and unknown fields, with a warning, instead of refusing the request.
    pub lenient: bool,
    /// The dialect takes `snake_case` and `camelCase` names for the same field.
    pub either_case: bool,
}

/// Reads a body strictly: every field must be in the table and not refused.
///
/// # Errors
/// If it is no JSON object, or a field is unknown, refused, missing or of the wrong type.
pub fn decode<T: DeserializeOwned>(
    body: &[u8],
    table: Table,
    reading: Reading,
) -> Result<Decoded<T>, Failure> {
    let mut value: Value = serde_json::from_slice(body)
        .map_err(|e| Failure::invalid(format!("the body is not valid JSON: {e}")))?;
    let Value::Object(object) = &mut value else {
        return Err(Failure::invalid("the body must be a JSON object"));
    };
    let mut ignored = Vec::new();
    check(object, table, "", reading, &mut ignored)?;
    let request = serde_path_to_error::deserialize(value).map_err(|e| {
        let path = e.path().to_string();
        let message = e.into_inner().to_string();
        // serde names a missing field itself.
        match path.as_str() {
            "." | "" | "?" => Failure { field: missing(&message), ..Failure::invalid(message) },
            _ => Failure::field(path, message),
        }
    })?;
    Ok(Decoded { request, ignored })
}

/// The name in serde's "missing field `x`".
fn missing(message: &str) -> Option<String> {
    message.strip_prefix("missing field `")?.split('`').next().map(str::to_owned)
}

fn check(
    object: &mut Map<String, Value>,
    table: Table,
    path: &str,
    reading: Reading,
    ignored: &mut Vec<String>,
) -> Result<(), Failure> {
    // Nothing is what most clients send for fields that they do not use.
    object.retain(|_, v| !v.is_null());
    if reading.either_case {
        rename(object, table);
    }
    let mut drop = Vec::new();
    for (name, value) in object.iter_mut() {
        let at = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let known = table.iter().find(|f| f.name == name);
        let problem = match known {
            None => Some(format!("unknown field{}", similar(name, table))),
            Some(f) if f.support != Support::Refused => None,
            Some(f) if is_neutral(f, value) => {
                drop.push(name.clone());
                continue;
            }
            Some(f) => Some(format!("not supported: {}", f.note)),
        };
        match problem {
            Some(message) if !reading.lenient => return Err(Failure::field(at, message)),
            Some(_) => {
                ignored.push(at);
                drop.push(name.clone());
            }
            None => {
                if let Some(inside) = known.and_then(|f| f.inside) {
                    descend(value, inside, &at, reading, ignored)?;
                }
            }
        }
    }
    for name in drop {
        object.shift_remove(&name);
    }
    Ok(())
}

fn descend(
    value: &mut Value,
    table: Table,
    path: &str,
    reading: Reading,
    ignored: &mut Vec<String>,
) -> Result<(), Failure> {
    match value {
        Value::Object(object) => check(object, table, path, reading, ignored),
        Value::Array(items) => (items.iter_mut().enumerate())
            .try_for_each(|(i, v)| descend(v, table, &format!("{path}[{i}]"), reading, ignored)),
        _ => Ok(()),
    }
}

fn is_neutral(field: &Field, value: &Value) -> bool {
    field.neutral.iter().any(|n| serde_json::from_str::<Value>(n).is_ok_and(|n| n == *value))
}

/// `snake_case` to the `camelCase` of the table.
fn rename(object: &mut Map<String, Value>, table: Table) {
    let renamed: Vec<(String, String)> = (object.keys())
        .filter(|k| k.contains('_') && !table.iter().any(|f| f.name == *k))
        .map(|k| (k.clone(), camel(k)))
        .filter(|(_, to)| !object.contains_key(to))
        .collect();
    for (from, to) in renamed {
        if let Some(value) = object.shift_remove(&from) {
            object.insert(to, value);
        }
    }
}

fn camel(name: &str) -> String {
    let mut out = String::with_capacity(name.len());
    let mut upper = false;
    for c in name.chars() {
        if c == '_' {
            upper = true;
        } else if std::mem::take(&mut upper) {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
    }
    out
}

/// A hint for a misspelt name: one of the table that differs in case, underscores or one letter.
fn similar(name: &str, table: Table) -> String {
    let plain = |s: &str| s.to_lowercase().replace('_', "");
    let wanted = plain(name);
    let close = |f: &&Field| {
        let n = plain(f.name);
        n == wanted
            || (n.len().abs_diff(wanted.len()) <= 1
                && n.len() > 3
                && (n.starts_with(&wanted) || wanted.starts_with(&n)))
    };
    table.iter().find(close).map_or(String::new(), |f| format!(" (did you mean {}?)", f.name))
}

/// A table as rows of Markdown: `| field | support | note |`, with the fields of inner objects
/// under the name of the outer one.
pub fn markdown(table: Table) -> String {
    let mut out = String::from("| field | | |\n|---|---|---|\n");
    rows(table, "", &mut out, 0);
    out
}

fn rows(table: Table, prefix: &str, out: &mut String, depth: usize) {
    for f in table {
        let support = match f.support {
            Support::Supported => "supported",
            Support::Different => "different",
            Support::Refused => "refused",
        };
        let neutral = match f.neutral {
            [] => String::new(),
            n => format!(" (accepted: `{}`)", n.join("`, `")),
        };
        *out += &format!("| `{prefix}{}` | {support} | {}{neutral} |\n", f.name, f.note);
        if let (Some(inside), true) = (f.inside, depth < 4) {
            rows(inside, &format!("{prefix}{}.", f.name), out, depth + 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;

    #[derive(Debug, Deserialize)]
    struct Thing {
        name: String,
        #[serde(default, rename = "maxTokens")]
        max: Option<u32>,
    }

    const TABLE: Table = &[
        yes("name"),
        yes("maxTokens"),
        no("tools", "no tools yet").unless(&["[]"]),
        differs("parts", "").of(&[yes("text"), no("image", "no eyes")]),
    ];

    fn read(body: &str, lenient: bool) -> Result<Decoded<Thing>, Failure> {
        decode(body.as_bytes(), TABLE, Reading { lenient, either_case: true })
    }

    fn refusal(body: &str) -> String {
        read(body, false).map(|d| d.request.name).unwrap_err().said()
    }

    #[test]
    fn refusals_name_the_field() {
        assert_eq!(refusal(r#"{"name": "a", "tools": [1]}"#), "tools: not supported: no tools yet");
        assert_eq!(
            refusal(r#"{"name": "a", "parts": [{"text": ""}, {"image": 1}]}"#),
            "parts[1].image: not supported: no eyes"
        );
        assert_eq!(
            refusal(r#"{"name": "a", "Name": 1}"#),
            "Name: unknown field (did you mean name?)"
        );
        assert_eq!(refusal("{}"), "name: missing field `name`");
        assert!(
            refusal(r#"{"name": "a", "maxTokens": "b"}"#).starts_with("maxTokens: invalid type")
        );
        assert!(refusal("[]").contains("JSON object"));
    }

    #[test]
    fn what_asks_for_nothing_passes() {
        let d = read(r#"{"name": "a", "tools": [], "unheard": null, "max_tokens": 3}"#, false);
        let d = d.unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!((d.request.max, d.ignored), (Some(3), vec![]));
    }

    #[test]
    fn the_lenient_ignore_and_tell() {
        let d = read(r#"{"name": "a", "tools": [1], "x": 1, "parts": {"image": 1}}"#, true);
        let d = d.unwrap_or_else(|e| panic!("{e:?}"));
        assert_eq!(d.ignored, ["tools", "x", "parts.image"]);
    }
}
