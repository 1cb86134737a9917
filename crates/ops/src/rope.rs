//! Rotary position embeddings (RoFormer, <https://arxiv.org/abs/2104.09864>).

use lapidary_kernels::RopePairs;
use std::sync::{Arc, RwLock, RwLockReadGuard};

/// The angles of one kind of layer: pair i of a head at position p turns by `p * frequency[i]`.
/// Clones share the table.
#[derive(Clone)]
pub struct Rope {
    pub(crate) pairs: RopePairs,
    frequencies: Vec<f32>,
    /// Cosines and sines of the positions met so far: `[position][2][pairs]`.
    table: Arc<RwLock<Vec<f32>>>,
}

impl Rope {
    /// `base^(-2 i / head_dim) / divisor` for each pair; `divisor` is the factor of linear scaling.
    /// Computed in f32, as the reference does.
    pub fn new(base: f32, head_dim: usize, divisor: f32, pairs: RopePairs) -> Self {
        let frequencies = (0..head_dim / 2)
            .map(|i| 1.0 / base.powf((2 * i) as f32 / head_dim as f32) / divisor)
            .collect();
        Self { pairs, frequencies, table: Arc::default() }
    }

    /// `base^(-2 i / head_dim)` for the first `turning` pairs; the others stand still ("proportional"
    /// RoPE: the exponents are over the whole head).
    pub fn proportional(base: f32, head_dim: usize, turning: usize, pairs: RopePairs) -> Self {
        let mut rope = Self::new(base, head_dim, 1.0, pairs);
        rope.frequencies[turning..].fill(0.0);
        rope
    }

    /// Pairs of a head.
    pub(crate) fn half(&self) -> usize {
        self.frequencies.len()
    }

    /// The table, grown to hold position `last`.
    pub(crate) fn table(&self, last: usize) -> RwLockReadGuard<'_, Vec<f32>> {
        let row = 2 * self.half();
        {
            let mut table = self.table.write().unwrap_or_else(|e| e.into_inner());
            while table.len() < (last + 1) * row {
                let position = (table.len() / row) as f32;
                let angles = self.frequencies.iter().map(|f| f64::from(position * f));
                let (cos, sin): (Vec<f32>, Vec<f32>) =
                    angles.map(|a| (a.cos() as f32, a.sin() as f32)).unzip();
                table.extend(cos);
                table.extend(sin);
            }
        }
        self.table.read().unwrap_or_else(|e| e.into_inner())
    }
}
