//! What a trainer learns from.

use serde::{Deserialize, Serialize};

/// One document, or one conversation, as tokens. It never sees another one: a micro-batch holds
/// many, and each has its own positions, from 0.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sequence {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Whether token `i`, predicted from those before it, counts in the loss; as long as `ids`.
    /// The first one has nothing before it and never counts.
    pub learn: Vec<bool>,
}

impl Sequence {
    /// A sequence that is learnt whole.
    pub fn whole(ids: Vec<u32>) -> Self {
        let learn = vec![true; ids.len()];
        Self { ids, learn }
    }

    /// Tokens that count in the loss.
    pub fn learnt(&self) -> usize {
        self.learn.iter().skip(1).filter(|l| **l).count()
    }
}

/// Two answers to one prompt, for direct preference optimisation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pair {
    /// The prompt with the better answer; the answer's tokens are learnt.
    pub chosen: Sequence,
    /// The prompt with the worse answer.
    pub rejected: Sequence,
}
