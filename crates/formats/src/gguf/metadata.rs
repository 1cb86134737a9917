//! The keys and values of a GGUF file, with typed access.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::{MAX_DEPTH, MAX_NAME};
use crate::names::quote;
use crate::{FormatError, Result};

/// Defines the two enums over GGUF's value types and what both need of them.
macro_rules! values {
    ($($doc:literal, $variant:ident, $type:ty, $id:literal, $name:literal;)*) => {
        /// A value of a GGUF key.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Value {
            $(#[doc = $doc] $variant($type),)*
            /// An array of one type.
            Array(Array),
        }

        /// An array: every element has the same type.
        #[derive(Debug, Clone, PartialEq)]
        pub enum Array {
            $(#[doc = $doc] $variant(Vec<$type>),)*
            /// Arrays, each with a type of its own.
            Array(Vec<Array>),
        }

        impl Value {
            /// The type's number in the file.
            pub(super) fn id(&self) -> u32 {
                match self { $(Value::$variant(_) => $id,)* Value::Array(_) => 9 }
            }

            fn type_name(&self) -> &'static str {
                match self { $(Value::$variant(_) => $name,)* Value::Array(_) => "array" }
            }
        }

        impl Array {
            /// The element type's number in the file.
            pub(super) fn id(&self) -> u32 {
                match self { $(Array::$variant(_) => $id,)* Array::Array(_) => 9 }
            }

            /// How many elements it has.
            pub fn len(&self) -> usize {
                match self { $(Array::$variant(v) => v.len(),)* Array::Array(v) => v.len() }
            }

            fn type_name(&self) -> &'static str {
                match self { $(Array::$variant(_) => $name,)* Array::Array(_) => "array" }
            }
        }

        $(impl From<$type> for Value {
            fn from(value: $type) -> Value {
                Value::$variant(value)
            }
        }

        impl From<Vec<$type>> for Value {
            fn from(values: Vec<$type>) -> Value {
                Value::Array(Array::$variant(values))
            }
        })*
    };
}

values! {
    "Unsigned byte.", U8, u8, 0, "u8";
    "Signed byte.", I8, i8, 1, "i8";
    "Unsigned 16-bit integer.", U16, u16, 2, "u16";
    "Signed 16-bit integer.", I16, i16, 3, "i16";
    "Unsigned 32-bit integer.", U32, u32, 4, "u32";
    "Signed 32-bit integer.", I32, i32, 5, "i32";
    "IEEE 754 binary32.", F32, f32, 6, "f32";
    "One byte, 0 or 1.", Bool, bool, 7, "bool";
    "UTF-8 text.", Str, String, 8, "str";
    "Unsigned 64-bit integer.", U64, u64, 10, "u64";
    "Signed 64-bit integer.", I64, i64, 11, "i64";
    "IEEE 754 binary64.", F64, f64, 12, "f64";
}

impl From<&str> for Value {
    fn from(value: &str) -> Value {
        Value::Str(value.to_owned())
    }
}

impl fmt::Display for Value {
    /// The type and, where it is short, the value: `u32 7`, `array of 3 str`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Array(a) => return write!(f, "array of {} {}", a.len(), a.type_name()),
            Value::Str(s) => return write!(f, "str {}", quote(s)),
            Value::Bool(b) => return write!(f, "bool {b}"),
            _ => {}
        }
        f.write_str(self.type_name())?;
        match (self.int(), self.float()) {
            (Some(n), _) => write!(f, " {n}"),
            (None, Some(x)) => write!(f, " {x}"),
            _ => Ok(()),
        }
    }
}

impl Value {
    /// Any integer type, widened.
    fn int(&self) -> Option<i128> {
        match self {
            Value::U8(n) => Some((*n).into()),
            Value::I8(n) => Some((*n).into()),
            Value::U16(n) => Some((*n).into()),
            Value::I16(n) => Some((*n).into()),
            Value::U32(n) => Some((*n).into()),
            Value::I32(n) => Some((*n).into()),
            Value::U64(n) => Some((*n).into()),
            Value::I64(n) => Some((*n).into()),
            _ => None,
        }
    }

    fn float(&self) -> Option<f64> {
        match self {
            Value::F32(x) => Some((*x).into()),
            Value::F64(x) => Some(*x),
            _ => None,
        }
    }

    fn array(&self) -> Option<&Array> {
        match self {
            Value::Array(a) => Some(a),
            _ => None,
        }
    }
}

impl Array {
    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Any integer type, widened; `None` for other types or a value that `T` cannot hold.
    fn ints<T: TryFrom<i128>>(&self) -> Option<Vec<T>> {
        fn all<N: Copy + Into<i128>, T: TryFrom<i128>>(values: &[N]) -> Option<Vec<T>> {
            values.iter().map(|n| T::try_from((*n).into()).ok()).collect()
        }
        match self {
            Array::U8(v) => all(v),
            Array::I8(v) => all(v),
            Array::U16(v) => all(v),
            Array::I16(v) => all(v),
            Array::U32(v) => all(v),
            Array::I32(v) => all(v),
            Array::U64(v) => all(v),
            Array::I64(v) => all(v),
            _ => None,
        }
    }

    fn depth(&self) -> usize {
        match self {
            Array::Array(v) => 1 + v.iter().map(Array::depth).max().unwrap_or(0),
            _ => 1,
        }
    }
}

/// The keys of a GGUF file in file order. A key stands once.
#[derive(Debug, Clone)]
pub struct Metadata {
    file: Arc<str>,
    entries: Vec<(Arc<str>, Value)>,
    index: HashMap<Arc<str>, usize>,
}

/// Defines `NAME(key)`, which must be there, and `opt_NAME(key)`, which may be absent.
macro_rules! getters {
    ($($expected:literal, $name:ident, $opt:ident, $type:ty, $convert:expr;)*) => { $(
        #[doc = concat!("The value of `key` as ", $expected, "; an error if it is absent.")]
        pub fn $name(&self, key: &str) -> Result<$type> {
            self.$opt(key)?
                .ok_or_else(|| self.wrong(key, concat!("is missing; expected ", $expected)))
        }

        #[doc = concat!("The value of `key` as ", $expected, "; `None` if it is absent.")]
        pub fn $opt(&self, key: &str) -> Result<Option<$type>> {
            let Some(value) = self.get(key) else { return Ok(None) };
            let convert: fn(&Value) -> Option<$type> = $convert;
            let wrong = || self.wrong(key, format!(concat!("expected ", $expected, ", found {}"), value));
            convert(value).map(Some).ok_or_else(wrong)
        }
    )* };
}

impl Metadata {
    /// No keys yet; `file` is the name in errors.
    pub fn new(file: impl Into<Arc<str>>) -> Metadata {
        Metadata { file: file.into(), entries: Vec::new(), index: HashMap::new() }
    }

    /// The file that it is from.
    pub fn file(&self) -> &Arc<str> {
        &self.file
    }

    /// Adds a key at the end. An error if it is there already, is empty or too long, or if arrays
    /// are nested too deep.
    pub fn insert(&mut self, key: &str, value: impl Into<Value>) -> Result<()> {
        let value = value.into();
        if key.is_empty() || key.len() > MAX_NAME {
            return Err(self.wrong(key, format!("a key has 1 to {MAX_NAME} bytes")));
        }
        if value.array().is_some_and(|a| a.depth() > MAX_DEPTH) {
            return Err(self.wrong(key, format!("arrays are nested deeper than {MAX_DEPTH}")));
        }
        if self.index.contains_key(key) {
            return Err(self.wrong(key, "stands twice in the file"));
        }
        let key: Arc<str> = key.into();
        self.index.insert(key.clone(), self.entries.len());
        self.entries.push((key, value));
        Ok(())
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Every key with its value, in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(key, value)| (&**key, value))
    }

    /// The value of `key`, of whatever type.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|i| &self.entries[*i].1)
    }

    /// An error about `key`.
    pub fn wrong(&self, key: &str, problem: impl fmt::Display) -> FormatError {
        FormatError::new(&self.file, format!("key {}", quote(key)), problem)
    }

    getters! {
        "a u32 (any integer type that fits)", u32, opt_u32, u32,
            |v| v.int()?.try_into().ok();
        "a u64 (any integer type that fits)", u64, opt_u64, u64,
            |v| v.int()?.try_into().ok();
        "an i64 (any integer type that fits)", i64, opt_i64, i64,
            |v| v.int()?.try_into().ok();
        "an f32", f32, opt_f32, f32, |v| v.float().map(|x| x as f32);
        "a bool", bool, opt_bool, bool, |v| match v { Value::Bool(b) => Some(*b), _ => None };
        "a str", str, opt_str, &str, |v| match v { Value::Str(s) => Some(s), _ => None };
        "an array of str", strs, opt_strs, &[String],
            |v| match v.array()? { Array::Str(a) => Some(a), _ => None };
        "an array of f32", f32s, opt_f32s, &[f32],
            |v| match v.array()? { Array::F32(a) => Some(a), _ => None };
        "an array of bool", bools, opt_bools, &[bool],
            |v| match v.array()? { Array::Bool(a) => Some(a), _ => None };
        "an array of u32 (any integer type that fits)", u32s, opt_u32s, Vec<u32>,
            |v| v.array()?.ints();
        "an array of i32 (any integer type that fits)", i32s, opt_i32s, Vec<i32>,
            |v| v.array()?.ints();
        "an array of integers", ints, opt_ints, Vec<i64>, |v| v.array()?.ints();
    }

    /// A value for each of `layers` layers: an array of that many integers, or one for all.
    pub fn u32_per_layer(&self, key: &str, layers: usize) -> Result<Vec<u32>> {
        if self.get(key).is_none_or(|v| v.array().is_none()) {
            return self.u32(key).map(|one| vec![one; layers]);
        }
        let values = self.u32s(key)?;
        if values.len() != layers {
            let found = values.len();
            return Err(self.wrong(key, format!("expected {layers} values, found {found}")));
        }
        Ok(values)
    }
}
