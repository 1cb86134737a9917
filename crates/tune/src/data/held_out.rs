//! The documents that are kept from training, to measure on.

use super::Example;
use super::encode::Encoder;
use super::source::{Source, SourceSpec};
use crate::Sequence;
use lapidary_engine::Text;
use lapidary_formats::Result;

/// The held-out part of one source.
#[derive(Debug, Clone)]
pub struct HeldOut {
    /// The source's first file or folder.
    pub name: String,
    /// The sequences; of pairs the chosen one.
    pub sequences: Vec<Sequence>,
    /// Bytes of text that the learnt tokens stand for: the loss over them is a figure that models
    /// with different tokenizers share.
    pub bytes: u64,
}

/// The held-out documents of each source, up to `tokens` for each. Sources without any are left
/// out.
///
/// # Errors
/// If a file can't be read.
pub fn held_out(
    sources: &[SourceSpec],
    encoder: &Encoder,
    text: &Text,
    tokens: usize,
) -> Result<Vec<HeldOut>> {
    let mut all = Vec::new();
    for spec in sources {
        let name = spec.paths.first().map(|p| p.display().to_string()).unwrap_or_default();
        let spec = SourceSpec { only_held_out: true, epochs: Some(1), shuffle: 1, ..spec.clone() };
        let mut source = Source::new(spec, 0, 0)?;
        let mut found = HeldOut { name, sequences: Vec::new(), bytes: 0 };
        let mut count = 0;
        'documents: while let Some(document) = source.next_document()? {
            // What can't be encoded is told when the training part meets its like.
            for example in encoder.encode(&document).unwrap_or_default() {
                let sequence = match example {
                    Example::One(one) => one,
                    Example::Pair(pair) => pair.chosen,
                };
                if count + sequence.ids.len() > tokens {
                    break 'documents;
                }
                count += sequence.ids.len();
                found.bytes += learnt_bytes(&sequence, text);
                found.sequences.push(sequence);
            }
        }
        if !found.sequences.is_empty() {
            all.push(found);
        }
    }
    Ok(all)
}

/// Bytes of the tokens whose prediction counts; control tokens have none.
fn learnt_bytes(sequence: &Sequence, text: &Text) -> u64 {
    let learnt = sequence.ids.iter().zip(&sequence.learn).skip(1).filter(|(_, learn)| **learn);
    let bytes = |id: &u32| match text.tokenizer.is_control(*id) {
        true => 0,
        false => text.tokenizer.token_bytes(*id).len() as u64,
    };
    learnt.map(|(id, _)| bytes(id)).sum()
}
