//! A text in passages of tokens, to measure a model on.

use crate::data::{Source, SourceSpec};
use lapidary_engine::Text;
use lapidary_formats::{FormatError, Result};
use std::path::Path;

/// The documents of `path` (plain text, JSON lines, Parquet) in passages of at most `length` tokens,
/// each from its beginning, until there are `tokens` in all. Passages of one token are left out:
/// there is nothing to tell from them.
///
/// # Errors
/// If the file can't be read, has a broken record, or holds no passage.
pub fn passages(path: &Path, text: &Text, length: usize, tokens: usize) -> Result<Vec<Vec<u32>>> {
    let spec = SourceSpec {
        paths: vec![path.to_owned()],
        format: None,
        separator: None,
        epochs: Some(1),
        shuffle: 1,
        held_out: 0.0,
        only_held_out: false,
        strict: true,
    };
    let mut source = Source::new(spec, 0, 0)?;
    let (mut all, mut count) = (Vec::new(), 0);
    while count < tokens {
        let Some(document) = source.next_document()? else { break };
        let ids = text.encode_plain(&document.words().join("\n"));
        for part in ids.chunks(length).filter(|p| p.len() > 1) {
            let part = &part[..part.len().min(tokens - count)];
            count += part.len();
            all.push(part.to_vec());
            if count == tokens {
                break;
            }
        }
    }
    all.retain(|p| p.len() > 1);
    if all.is_empty() {
        return Err(FormatError::new(path.display(), "", "holds no text of two tokens or more"));
    }
    Ok(all)
}
