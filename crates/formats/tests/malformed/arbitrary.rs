//! Bytes that nobody wrote: whatever they are, reading ends without a panic, and what is accepted
//! holds together.

use lapidary_formats::{Bytes, TensorView, gguf, safetensors};
use proptest::prelude::*;
use proptest::sample::Index;

use crate::gguf::Spec;

/// What a reader promises about each tensor, and that tensors share no bytes.
fn consistent(tensors: &[TensorView]) {
    let mut ends: Vec<_> = tensors.iter().map(|t| t.bytes.as_ptr_range()).collect();
    ends.retain(|range| range.start < range.end);
    ends.sort_by_key(|range| range.start);
    assert!(ends.windows(2).all(|pair| pair[0].end <= pair[1].start));
    for tensor in tensors {
        assert_eq!(tensor.dtype.bytes_for(&tensor.shape), Ok(tensor.bytes.len()));
    }
}

fn read_both(bytes: &[u8]) {
    match gguf::read("any.gguf".into(), Bytes::from(bytes.to_vec())) {
        Ok(file) => consistent(&file.tensors),
        Err(error) => assert!(!error.field.is_empty(), "{error}"),
    }
    match safetensors::read("any".into(), Bytes::from(bytes.to_vec())) {
        Ok(file) => consistent(&file.tensors),
        Err(error) => assert!(!error.field.is_empty(), "{error}"),
    }
}

/// Changes to a right file: where, and what is put there.
fn edits() -> impl Strategy<Value = Vec<(Index, Vec<u8>)>> {
    let byte = prop_oneof![any::<u8>(), Just(0), Just(1), Just(0x7f), Just(0x80), Just(0xff)];
    prop::collection::vec((any::<Index>(), prop::collection::vec(byte, 1..9)), 1..5)
}

fn edited(mut bytes: Vec<u8>, edits: Vec<(Index, Vec<u8>)>, cut: Option<Index>) -> Vec<u8> {
    for (at, new) in edits {
        let at = at.index(bytes.len());
        let len = new.len().min(bytes.len() - at);
        bytes[at..at + len].copy_from_slice(&new[..len]);
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(bytes.len()));
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        read_both(&bytes);
        // Past the magic or the length, so that the rest is reached.
        read_both(&[b"GGUF\x03\0\0\0", &bytes[..]].concat());
        let mut counted = b"GGUF\x03\0\0\0\x01\0\0\0\0\0\0\0\x01\0\0\0\0\0\0\0".to_vec();
        counted.extend(&bytes);
        read_both(&counted);
        read_both(&crate::safetensors::file(&bytes, 4));
    }

    #[test]
    fn edited_gguf(edits in edits(), cut in prop::option::of(any::<Index>())) {
        read_both(&edited(Spec::valid().build().bytes, edits, cut));
    }

    #[test]
    fn edited_safetensors(edits in edits(), cut in prop::option::of(any::<Index>())) {
        read_both(&edited(crate::safetensors::valid(), edits, cut));
    }

    #[test]
    fn any_json_header(
        tokens in prop::collection::vec(prop::sample::select(vec![
            "{", "}", "[", "]", ":", ",", "\"a\"", "\"dtype\"", "\"F32\"", "\"shape\"",
            "\"data_offsets\"", "0", "4", "-1", "1e9", "null", "\"__metadata__\"",
            "\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}",
        ]), 0..30)
    ) {
        read_both(&crate::safetensors::file(format!("{{{}", tokens.concat()), 4));
    }
}
