//! What the fuzz targets check beyond "no panic, no hang, bounded memory".
#![forbid(unsafe_code)]

use lapidary_formats::tokenizer::{Detokenizer, Encode, Tokenizer};
use lapidary_formats::{FormatError, TensorView};

/// Tensors of an accepted file have as many bytes as shape and type need, share none, and each has
/// a name of its own.
pub fn check_tensors(tensors: &[TensorView]) {
    let mut ranges: Vec<_> = tensors.iter().map(|t| t.bytes.as_ptr_range()).collect();
    ranges.retain(|range| range.start < range.end);
    ranges.sort_by_key(|range| range.start);
    assert!(ranges.windows(2).all(|pair| pair[0].end <= pair[1].start), "tensors share bytes");
    for tensor in tensors {
        assert_eq!(tensor.dtype.bytes_for(&tensor.shape), Ok(tensor.bytes.len()), "{tensor:?}");
    }
    let mut names: Vec<_> = tensors.iter().map(|t| &t.name).collect();
    names.sort();
    assert!(names.windows(2).all(|pair| pair[0] != pair[1]), "two tensors have one name");
}

/// An error names the file and the field, fits on a screen, and can't play with the terminal.
pub fn check_error(error: &FormatError, file: &str) {
    let message = error.to_string();
    assert_eq!(error.file, file, "{message}");
    assert!(!error.field.is_empty(), "no field: {message}");
    assert!(message.chars().count() < 1000, "{} characters", message.chars().count());
    assert!(!message.contains(char::is_control), "control characters: {message:?}");
}

/// An accepted tokenizer gives ids of its vocabulary, and streams what it decodes.
pub fn check_tokenizer(tokenizer: &Tokenizer) {
    let options = Encode { add_special: true, parse_special: true };
    for text in
        ["", "a", " Hello  world, it's 42 \u{e9}\u{1f642}\n\n<s></s><bos>", "\u{2581}\u{fffd}\0"]
    {
        let ids = tokenizer.encode(text, options);
        assert!(ids.iter().all(|id| (*id as usize) < tokenizer.vocab_size()), "{ids:?}");
        let mut words = Detokenizer::new(tokenizer, false);
        let mut streamed: String = ids.iter().map(|id| words.push(*id)).collect();
        streamed += &words.finish();
        assert_eq!(streamed, tokenizer.decode(&ids, false));
    }
    for id in 0..tokenizer.vocab_size().min(512) as u32 {
        tokenizer.token_bytes(id);
        tokenizer.decode(&[id, id], true);
    }
}
