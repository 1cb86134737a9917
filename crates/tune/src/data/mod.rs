//! From files to batches: examples are read, shuffled, mixed, written down as tokens and packed,
//! always in the same order for the same seed, and with a state from which a stopped run goes on
//! exactly.

mod compressed;
mod document;
mod encode;
mod held_out;
mod parquet;
mod records;
mod rng;
mod source;
mod stream;

pub use document::Document;
pub use encode::{Encoder, Learn, Unfit};
pub use held_out::{HeldOut, held_out};
pub use records::Format;
pub(crate) use records::{Raw, Records, files};
pub use rng::Rng;
pub(crate) use rng::stable_hash;
pub use source::{Broken, Source, SourceSpec, SourceState};
pub use stream::{Counts, Notice, Stream, StreamSpec, StreamState};

use crate::{Pair, Sequence};
use serde::{Deserialize, Serialize};

/// What a batch is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Example {
    /// One sequence.
    One(Sequence),
    /// A pair, for DPO.
    Pair(Pair),
}

impl Example {
    /// Its tokens.
    pub fn tokens(&self) -> usize {
        match self {
            Example::One(one) => one.ids.len(),
            Example::Pair(pair) => pair.chosen.ids.len() + pair.rejected.ids.len(),
        }
    }
}
