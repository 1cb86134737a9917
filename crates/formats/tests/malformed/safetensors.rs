//! Wrong safetensors files.

use lapidary_formats::Bytes;
use lapidary_formats::safetensors::read;

use crate::{Case, HUGE, check_all};

/// A file of this header and so many bytes of data.
pub fn file(header: impl AsRef<[u8]>, data: usize) -> Vec<u8> {
    let header = header.as_ref();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.resize(bytes.len() + data, 7);
    bytes
}

/// A right file of two tensors and metadata.
pub fn valid() -> Vec<u8> {
    let header = r#"{"__metadata__":{"format":"pt","license":"mit"},
        "a":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},
        "b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]}}"#;
    file(header, 22)
}

pub fn check() -> usize {
    assert_eq!(read("v".into(), Bytes::from(valid())).unwrap().tensors.len(), 2);
    let mut cases = truncated();
    cases.extend(wrong_lengths());
    cases.extend(wrong_headers());
    cases.extend(wrong_entries());
    cases.extend(wrong_layouts());
    check_all(cases, |bytes| read("bad.bin".into(), Bytes::from(bytes)))
}

/// Cut at every byte.
fn truncated() -> Vec<Case> {
    let bytes = valid();
    let header_end = bytes.len() - 22;
    let cut = |len: usize| {
        let (field, text) = match len {
            0..8 => ("header length", "needs 8 bytes"),
            _ if len < header_end => ("header length", "at most"),
            _ => ("data_offsets", "but the file has"),
        };
        Case::new(&format!("cut at byte {len}"), bytes[..len].to_vec(), field, text)
    };
    (0..bytes.len()).map(cut).collect()
}

fn wrong_lengths() -> Vec<Case> {
    let at_most = HUGE.into_iter().chain([100_000_001, valid().len() as u64 - 7]);
    let mut cases: Vec<Case> = at_most
        .map(|len| {
            let mut bytes = valid();
            bytes[..8].copy_from_slice(&len.to_le_bytes());
            let text = format!("is {len}, but at most");
            Case::new(&format!("header length {len}"), bytes, "header length", &text)
        })
        .collect();
    // Shorter than the JSON: it ends in the middle.
    for len in [0u64, 1, 2, 30, 60, 120, 190] {
        let mut bytes = valid();
        bytes[..8].copy_from_slice(&len.to_le_bytes());
        cases.push(Case::new(&format!("header length {len}"), bytes, "", ""));
    }
    cases
}

fn wrong_headers() -> Vec<Case> {
    let not_object = ["", "[]", "null", "1", "\"a\"", " {}", "\u{feff}{}", "PK"];
    let mut cases: Vec<Case> = not_object
        .map(|h| Case::new(&format!("header {h:?}"), file(h, 0), "header", "is not a JSON object"))
        .into();
    for h in ["{", "{]", "{\"a\"}", "{\"a\":}", "{}x", "{},", "{}{}", "{\"a\":1,}", "{'a':1}"] {
        cases.push(Case::new(&format!("header {h:?}"), file(h, 0), "", "at line 1"));
    }
    for h in
        [&b"{\"\xff\":1}"[..], b"{\"a\":{\"dtype\":\"\xc3\x28\"}}", b"{\xff}", b"{\"\\ud800\":1}"]
    {
        cases.push(Case::new("UTF-8", file(h, 0), "", "at line 1"));
    }
    for value in
        ["1", "[]", "\"x\"", "{\"k\":1}", "{\"k\":null}", "{\"k\":{}}", "{\"k\":\"1\",\"k\":\"2\"}"]
    {
        let header = format!("{{\"__metadata__\":{value}}}");
        cases.push(Case::new(&format!("metadata {value}"), file(header, 0), "__metadata__", ""));
    }
    let twice = "{\"__metadata__\":{},\"__metadata__\":{}}";
    cases.push(Case::new("metadata twice", file(twice, 0), "__metadata__", "stands twice"));
    let deep = format!("{{\"a\":{{\"x\":{}", "[".repeat(1 << 20));
    cases.push(Case::new("deep", file(deep, 0), "tensor \"a\"", ""));
    let deep = format!("{{\"a\":{}", "[".repeat(1 << 20));
    cases.push(Case::new("deep", file(deep, 0), "tensor \"a\"", ""));
    cases
}

/// What one tensor's entry can have wrong; it is the only one, with 16 bytes of data.
fn wrong_entries() -> Vec<Case> {
    let entries = [
        ("1", "", "invalid type"),
        ("null", "", "invalid type"),
        ("[]", "", "invalid type"),
        ("\"F32\"", "", "invalid type"),
        ("{}", "", "data_offsets is missing"),
        (r#"{"dtype":"F32","shape":[4]}"#, "", "data_offsets is missing"),
        (r#"{"dtype":"F32","data_offsets":[0,16]}"#, "", "shape is missing"),
        (r#"{"shape":[4],"data_offsets":[0,16]}"#, "", "dtype is missing"),
        (r#"{"dtype":"F32","shape":[4],"data_offsets":[]}"#, "", "must be two numbers"),
        (r#"{"dtype":"F32","shape":[4],"data_offsets":[0]}"#, "", "must be two numbers"),
        (r#"{"dtype":"F32","shape":[4],"data_offsets":[0,16,16]}"#, " data_offsets", "length 3"),
        (r#"{"dtype":"F32","dtype":"F32","shape":[4]}"#, " dtype", "stands twice"),
        (r#"{"dtype":"F32","shape":[4],"shape":[4]}"#, " shape", "stands twice"),
        (r#"{"data_offsets":[0,16],"data_offsets":[0,16]}"#, " data_offsets", "stands twice"),
    ];
    let mut cases: Vec<Case> = entries
        .map(|(entry, part, text)| (entry.to_string(), part, text.to_string()))
        .into_iter()
        .chain(wrong_dtypes())
        .chain(wrong_shapes())
        .chain(wrong_offsets())
        .map(|(entry, part, text)| {
            let bytes = file(format!("{{\"w\":{entry}}}"), 16);
            Case::new(&entry, bytes, &format!("tensor \"w\"{part}"), &text)
        })
        .collect();
    // A name and a value as long as a header may be do not make a message as long.
    let long = "x".repeat(1 << 20);
    for entry in [
        format!("\"{long}\""),
        format!("{{\"dtype\":\"{long}\",\"shape\":[],\"data_offsets\":[0,1]}}"),
    ] {
        cases.push(Case::new(
            "long",
            file(format!("{{\"{long}\":{entry}}}"), 1),
            "tensor \"xxx",
            "",
        ));
    }
    let clear = r#"{"\u001b[2J":{"dtype":"\u001b[2J","shape":[],"data_offsets":[0,1]}}"#;
    cases.push(Case::new("terminal", file(clear, 1), "\\u{1b}", "\\u{1b}"));
    let clear = r#"{"w":{"\u001b[2J":}}"#;
    cases.push(Case::new("terminal", file(clear, 1), "tensor \"w\"", ""));
    cases
}

type Entry = (String, &'static str, String);

fn wrong_dtypes() -> Vec<Entry> {
    let names = ["F33", "", "f32", "float32", "Q8_0", "Q4_K", "F4", "C64", "BFLOAT16", "F32 "];
    let unknown = names.iter().map(|name| {
        let entry = format!(r#"{{"dtype":"{name}","shape":[4],"data_offsets":[0,16]}}"#);
        (entry, " dtype", format!("{name:?} is not a type"))
    });
    let wrong = ["1", "null", "[\"F32\"]", "{}", "true"].iter().map(|value| {
        let entry = format!(r#"{{"dtype":{value},"shape":[4],"data_offsets":[0,16]}}"#);
        (entry, " dtype", "invalid type".to_string())
    });
    unknown.chain(wrong).collect()
}

fn wrong_shapes() -> Vec<Entry> {
    [
        ("4", "invalid type"),
        ("\"4\"", "invalid type"),
        ("null", "invalid type"),
        ("{}", "invalid type"),
        ("[\"4\"]", "invalid type"),
        ("[4.0]", "invalid type"),
        ("[null]", "invalid type"),
        ("[[4]]", "invalid type"),
        ("[-4]", "invalid value"),
        ("[18446744073709551616]", "invalid type"),
        ("[1e30]", "invalid type"),
        ("[1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1,4]", "at most 16"),
        ("[18446744073709551615]", "too large"),
        ("[9223372036854775808]", "too large"),
        ("[9223372036854775808,2]", "too large"),
        ("[4294967296,4294967296]", "too large"),
        ("[4611686018427387904]", "too large"),
        ("[9223372036854775808,9223372036854775808,0]", "too large"),
    ]
    .iter()
    .map(|(shape, text)| {
        let entry = format!(r#"{{"dtype":"F32","shape":{shape},"data_offsets":[0,16]}}"#);
        (entry, " shape", text.to_string())
    })
    .collect()
}

fn wrong_offsets() -> Vec<Entry> {
    [
        ("0", "invalid type"),
        ("null", "invalid type"),
        ("{\"0\":16}", "invalid type"),
        ("[0,\"16\"]", "invalid type"),
        ("[0,16.0]", "invalid type"),
        ("[-16,0]", "invalid value"),
        ("[0,18446744073709551616]", "invalid type"),
        ("[16,0]", "end at 0 before they start at 16"),
        ("[18446744073709551615,16]", "before they start"),
        ("[0,17]", "end at byte 17 of the data, but the file has 16"),
        ("[1,17]", "end at byte 17"),
        ("[0,9223372036854775808]", "end at byte 9223372036854775808"),
        ("[9223372036854775792,9223372036854775808]", "end at byte"),
        ("[18446744073709551599,18446744073709551615]", "end at byte"),
        ("[0,15]", "span 15 bytes, but F32 [4] takes 16"),
        ("[0,0]", "span 0 bytes"),
        ("[1,16]", "span 15 bytes"),
        ("[16,16]", "span 0 bytes"),
    ]
    .iter()
    .map(|(offsets, text)| {
        let entry = format!(r#"{{"dtype":"F32","shape":[4],"data_offsets":{offsets}}}"#);
        (entry, " data_offsets", text.to_string())
    })
    .collect()
}

/// Tensors that are right alone and wrong together.
fn wrong_layouts() -> Vec<Case> {
    let header = |tensors: &[(&str, usize, usize)]| {
        let entries: Vec<String> = tensors
            .iter()
            .map(|(name, start, end)| {
                let len = end - start;
                format!(
                    r#""{name}":{{"dtype":"U8","shape":[{len}],"data_offsets":[{start},{end}]}}"#
                )
            })
            .collect();
        format!("{{{}}}", entries.join(","))
    };
    [
        (header(&[("a", 0, 8), ("b", 4, 12)]), 12, "tensor \"b\"", "overlaps tensor \"a\" by 4"),
        (header(&[("b", 4, 12), ("a", 0, 8)]), 12, "tensor \"b\"", "overlaps tensor \"a\" by 4"),
        (header(&[("a", 0, 8), ("b", 0, 8)]), 8, "tensor \"b\"", "overlaps tensor \"a\" by 8"),
        (header(&[("a", 0, 8), ("b", 2, 4)]), 8, "tensor \"b\"", "overlaps tensor \"a\""),
        (header(&[("a", 0, 8), ("b", 4, 4)]), 8, "tensor \"b\"", "overlaps tensor \"a\""),
        (header(&[("a", 0, 8), ("b", 9, 12)]), 12, "tensor \"b\"", "leaves a hole after byte 8"),
        (header(&[("a", 4, 8)]), 8, "tensor \"a\"", "leaves a hole after byte 0"),
        (header(&[("a", 0, 8)]), 9, "data", "end at byte 8, but the file has 9"),
        (header(&[]), 1, "data", "end at byte 0, but the file has 1"),
        (header(&[("a", 0, 8), ("a", 8, 12)]), 12, "tensor \"a\"", "stands twice"),
        (header(&[("a", 0, 8), ("a", 0, 8)]), 8, "tensor \"a\"", "stands twice"),
    ]
    .map(|(header, data, field, text)| Case::new(&header, file(&header, data), field, text))
    .into()
}
