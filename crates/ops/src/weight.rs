//! Weights on a device.

use lapidary_kernels::Packed;
use lapidary_kernels::blocks::BlockType;
use std::ops::Range;
use std::sync::Arc;

/// Bytes that stay alive as long as someone holds them: a mapped file, or memory.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// A matrix as a file holds it.
pub struct RawMatrix<'a> {
    /// The type of its elements.
    pub ty: BlockType,
    /// Output rows.
    pub n: usize,
    /// Inputs of each row.
    pub k: usize,
    /// The elements, row after row.
    pub bytes: SharedBytes,
    /// Told which bytes are no longer needed, so that mapped pages can leave memory.
    pub done: &'a (dyn Fn(Range<usize>) + Sync),
}

/// An `[n, k]` matrix; clones share it.
#[derive(Clone)]
pub struct Weight(pub(crate) Arc<WeightData>);

pub(crate) enum WeightData {
    /// For products, and for gathering rows.
    Packed(Packed),
    /// For gathering rows alone, some `columns` of rows of `k`.
    Table { ty: BlockType, n: usize, columns: Range<usize>, k: usize, bytes: SharedBytes },
}

impl Weight {
    /// Output rows.
    pub fn n(&self) -> usize {
        match &*self.0 {
            WeightData::Packed(p) => p.n,
            WeightData::Table { n, .. } => *n,
        }
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        match &*self.0 {
            WeightData::Packed(p) => p.k,
            WeightData::Table { columns, .. } => columns.len(),
        }
    }

    /// Some columns of a table, as a table: `None` where they would cut a block of its type.
    pub fn columns(&self, part: Range<usize>) -> Option<Weight> {
        let WeightData::Table { ty, n, columns, k, bytes } = &*self.0 else { return None };
        let part = columns.start + part.start..columns.start + part.end;
        let len = ty.block_len();
        if part.end > columns.end
            || !part.start.is_multiple_of(len)
            || !part.len().is_multiple_of(len)
        {
            return None;
        }
        let (ty, n, k, bytes) = (*ty, *n, *k, bytes.clone());
        Some(Weight(Arc::new(WeightData::Table { ty, n, columns: part, k, bytes })))
    }

    /// Bytes that a product with it reads: 0 for a table.
    pub fn bytes(&self) -> usize {
        match &*self.0 {
            WeightData::Packed(p) => p.bytes(),
            WeightData::Table { .. } => 0,
        }
    }
}

/// A vector of f32: the weight of a norm, a bias.
#[derive(Clone)]
pub struct Vector(pub(crate) Arc<Vec<f32>>);

impl Vector {
    /// A vector of these values.
    pub fn new(values: Vec<f32>) -> Self {
        Self(Arc::new(values))
    }

    /// The values.
    pub fn values(&self) -> &[f32] {
        &self.0
    }
}

/// A projection: weight `[n, k]` and perhaps a bias `[n]`.
#[derive(Clone)]
pub struct Linear {
    /// The matrix.
    pub weight: Weight,
    /// Added to each row.
    pub bias: Option<Vector>,
}
