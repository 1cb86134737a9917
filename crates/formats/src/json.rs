//! JSON files: bounded in size, with errors that name the field.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};

use crate::names::quote;
use crate::{FormatError, Result};

/// The largest configuration file that is read, in bytes; published ones have a few thousand.
pub const MAX_CONFIG_BYTES: u64 = 4 << 20;

/// Reads a configuration file as one JSON object. Depth is bounded by the parser (128).
pub fn read_object(path: &Path) -> Result<Value> {
    let bytes = read_bounded(path, MAX_CONFIG_BYTES)?;
    let wrong = |problem: String| FormatError::new(path.display(), "", problem);
    let value: Value =
        serde_json::from_slice(&bytes).map_err(|e| wrong(format!("is not valid JSON: {e}")))?;
    if !value.is_object() {
        let kind = kind(&value);
        return Err(wrong(format!("expected a JSON object of settings, found {kind}")));
    }
    Ok(value)
}

/// Reads a whole file of at most `most` bytes.
pub(crate) fn read_bounded(path: &Path, most: u64) -> Result<Vec<u8>> {
    let wrong = |problem: String| FormatError::new(path.display(), "", problem);
    let unreadable = |e: std::io::Error| wrong(format!("cannot be read: {e}"));
    if !std::fs::metadata(path).map_err(unreadable)?.is_file() {
        return Err(wrong("is not a file".into()));
    }
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(unreadable)?;
    file.take(most + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > most {
        return Err(wrong(format!("is larger than the {most} bytes that such a file may have")));
    }
    Ok(bytes)
}

/// What a JSON value is, in words.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => format!("the number {n}"),
        Value::String(s) => format!("the string {}", quote(s)),
        Value::Array(a) => format!("an array of {}", a.len()),
        Value::Object(o) => format!("an object of {} keys", o.len()),
    }
}

/// A JSON object of strings in file order, in which a key may stand once.
pub(crate) struct Strings(pub(crate) Vec<(String, String)>);

impl<'de> Deserialize<'de> for Strings {
    fn deserialize<D: Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Strings;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(
                self,
                mut map: A,
            ) -> std::result::Result<Strings, A::Error> {
                let mut pairs = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some(key) = map.next_key::<String>()? {
                    let value = map
                        .next_value::<String>()
                        .map_err(|e| A::Error::custom(format!("{}: {e}", quote(&key))))?;
                    if !seen.insert(key.clone()) {
                        return Err(A::Error::custom(format!("{} stands twice", quote(&key))));
                    }
                    pairs.push((key, value));
                }
                Ok(Strings(pairs))
            }
        }
        from.deserialize_map(Pairs)
    }
}

/// A view of one object of a configuration file, with typed access. A key whose value is `null`
/// counts as absent. Errors name the file and the path of the key (`text_config.hidden_size`).
#[derive(Clone, Debug)]
pub struct Config<'a> {
    file: &'a str,
    path: String,
    map: &'a Map<String, Value>,
}

/// Defines `NAME(key)`, which must be there, and `opt_NAME(key)`, which may be absent.
macro_rules! config_getters {
    ($($doc:literal, $name:ident, $opt:ident, $type:ty, $convert:expr;)*) => { $(
        #[doc = concat!("The value of `key` as ", $doc, "; an error if it is absent.")]
        pub fn $name(&self, key: &str) -> Result<$type> {
            self.$opt(key)?.ok_or_else(|| self.wrong(key, concat!("is missing; expected ", $doc)))
        }

        #[doc = concat!("The value of `key` as ", $doc, "; `None` if it is absent.")]
        pub fn $opt(&self, key: &str) -> Result<Option<$type>> {
            self.typed(key, $doc, $convert)
        }
    )* };
}

impl<'a> Config<'a> {
    /// A view of a whole file's object; an error if `value` is something else.
    pub fn new(file: &'a str, value: &'a Value) -> Result<Config<'a>> {
        let map = value.as_object().ok_or_else(|| {
            FormatError::new(file, "", format!("expected an object, found {}", kind(value)))
        })?;
        Ok(Config { file, path: String::new(), map })
    }

    /// The file it comes from.
    pub fn file(&self) -> &'a str {
        self.file
    }

    /// The value of `key` as it stands; `None` if it is absent or null.
    pub fn get(&self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    /// Whether `key` has a value other than null.
    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Every key with its value, nulls included.
    pub fn entries(&self) -> impl Iterator<Item = (&'a str, &'a Value)> {
        self.map.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// An error about `key`.
    pub fn wrong(&self, key: &str, problem: impl std::fmt::Display) -> FormatError {
        FormatError::new(self.file, format!("{}{key}", self.path), problem)
    }

    config_getters! {
        "a whole number", usize, opt_usize, usize, as_usize;
        "a token id", u32, opt_u32, u32, as_u32;
        "a whole number, perhaps negative", i64, opt_i64, i64, Value::as_i64;
        "a number", f64, opt_f64, f64, Value::as_f64;
        "true or false", bool, opt_bool, bool, Value::as_bool;
        "a string", str, opt_str, &'a str, Value::as_str;
        "an array of strings", strs, opt_strs, Vec<&'a str>, |v| each(v, Value::as_str);
        "an array of whole numbers", usizes, opt_usizes, Vec<usize>, |v| each(v, as_usize);
        "an array of numbers", f64s, opt_f64s, Vec<f64>, |v| each(v, Value::as_f64);
        "a token id or an array of them", ids, opt_ids, Vec<u32>,
            |v| as_u32(v).map(|id| vec![id]).or_else(|| each(v, as_u32));
    }

    /// The object at `key` as a view of its own; an error if it is absent.
    pub fn object(&self, key: &str) -> Result<Config<'a>> {
        self.opt_object(key)?.ok_or_else(|| self.wrong(key, "is missing; expected an object"))
    }

    /// The object at `key` as a view of its own; `None` if it is absent.
    pub fn opt_object(&self, key: &str) -> Result<Option<Config<'a>>> {
        let map = self.typed(key, "an object", Value::as_object)?;
        let path = format!("{}{key}.", self.path);
        Ok(map.map(|map| Config { file: self.file, path, map }))
    }

    fn typed<T>(
        &self,
        key: &str,
        expected: &str,
        convert: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        self.get(key)
            .map(|value| {
                convert(value).ok_or_else(|| {
                    self.wrong(key, format!("expected {expected}, found {}", kind(value)))
                })
            })
            .transpose()
    }
}

fn as_usize(value: &Value) -> Option<usize> {
    value.as_u64()?.try_into().ok()
}

fn as_u32(value: &Value) -> Option<u32> {
    value.as_u64()?.try_into().ok()
}

fn each<'a, T>(value: &'a Value, convert: impl Fn(&'a Value) -> Option<T>) -> Option<Vec<T>> {
    value.as_array()?.iter().map(convert).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scratch::Scratch;
    use serde_json::json;

    #[test]
    fn typed_access_names_the_path() {
        let value = json!({
            "hidden_size": 64, "eps": 1e-6, "theta": 10000, "tied": true, "window": null,
            "eos_token_id": [1, 107], "bos_token_id": 2, "neg": -1, "big": 1u64 << 40,
            "text_config": {"layer_types": ["full_attention"], "head_dim": "16"}
        });
        let config = Config::new("config.json", &value).unwrap();
        assert_eq!(config.usize("hidden_size"), Ok(64));
        assert_eq!(config.f64("theta"), Ok(10000.0));
        assert_eq!(config.opt_f64("eps"), Ok(Some(1e-6)));
        assert_eq!(config.opt_usize("window"), Ok(None));
        assert!(!config.has("window") && config.bool("tied").unwrap());
        assert_eq!(config.ids("eos_token_id"), Ok(vec![1, 107]));
        assert_eq!(config.ids("bos_token_id"), Ok(vec![2]));
        assert_eq!(config.i64("neg"), Ok(-1));
        let text = config.object("text_config").unwrap();
        assert_eq!(text.strs("layer_types"), Ok(vec!["full_attention"]));

        let says = |e: FormatError| e.to_string();
        assert_eq!(
            says(text.usize("head_dim").unwrap_err()),
            "config.json: text_config.head_dim: expected a whole number, found the string \"16\""
        );
        assert_eq!(
            says(config.usize("window").unwrap_err()),
            "config.json: window: is missing; expected a whole number"
        );
        assert!(config.usize("neg").is_err() && config.u32("big").is_err());
        assert!(config.opt_object("eps").is_err() && config.opt_ids("neg").is_err());
        assert!(Config::new("f", &json!([])).is_err());
    }

    #[test]
    fn files_are_bounded_and_must_be_objects() {
        let dir = Scratch::new("json");
        let error =
            |name: &str, text: &[u8]| read_object(&dir.file(name, text)).unwrap_err().to_string();
        assert!(error("a.json", b"[1]").contains("a.json: expected a JSON object"));
        assert!(error("b.json", b"{\"a\": ").contains("b.json: is not valid JSON: EOF"));
        assert!(error("c.json", "[".repeat(100_000).as_bytes()).contains("recursion limit"));
        assert!(error("d.json", &vec![b' '; (4 << 20) + 1]).contains("larger than"));
        assert!(error("e.json", b"{\"a\": \"\xff\"}").contains("not valid JSON"));
        assert!(read_object(dir.path()).is_err());
        assert_eq!(read_object(&dir.file("f.json", b" {\"a\": 1}\n")).unwrap(), json!({"a": 1}));
    }
}
