//! Weights on a device.

use lapidary_kernels::Packed;
use lapidary_kernels::blocks::BlockType;
use std::ops::Range;
use std::sync::Arc;

/// Bytes that stay alive as long as someone holds them: a mapped file, or memory.
pub type SharedBytes = Arc<dyn AsRef<[u8]> + Send + Sync>;

/// Where a weight comes from: how training finds what to change, and export where to put it.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct ParamName {
    /// The tensor's name in Hugging Face files, whatever form was read.
    pub tensor: String,
    /// Which of how many equal parts of that tensor's outputs this is.
    pub part: (usize, usize),
    /// Whether Hugging Face files store the tensor with inputs first (GPT-2's Conv1D).
    pub transposed: bool,
    /// What Hugging Face files leave out of the values: Gemma's norms are stored minus 1.
    pub offset: f32,
}

impl ParamName {
    /// The whole of a tensor, stored as it is.
    pub fn whole(tensor: String) -> Self {
        Self { tensor, part: (0, 1), transposed: false, offset: 0.0 }
    }

    /// The module that the tensor belongs to.
    pub fn module(&self) -> &str {
        self.tensor.rsplit_once('.').map_or(&self.tensor, |(module, _)| module)
    }
}

/// A matrix as a file holds it.
pub struct RawMatrix<'a> {
    /// Where it comes from.
    pub name: ParamName,
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
    /// A weight that a tape keeps, by its number there, or some of its columns.
    Taped { index: usize, n: usize, columns: Range<usize> },
}

impl Weight {
    /// Tells weights apart as long as they live; clones have the same.
    pub fn id(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    /// Output rows.
    pub fn n(&self) -> usize {
        match &*self.0 {
            WeightData::Packed(p) => p.n,
            WeightData::Table { n, .. } | WeightData::Taped { n, .. } => *n,
        }
    }

    /// Inputs.
    pub fn k(&self) -> usize {
        match &*self.0 {
            WeightData::Packed(p) => p.k,
            WeightData::Table { columns, .. } | WeightData::Taped { columns, .. } => columns.len(),
        }
    }

    /// Some columns of a table, as a table: `None` where they would cut a block of its type.
    pub fn columns(&self, part: Range<usize>) -> Option<Weight> {
        let (columns, len) = match &*self.0 {
            WeightData::Packed(_) => return None,
            WeightData::Table { columns, ty, .. } => (columns, ty.block_len()),
            WeightData::Taped { columns, .. } => (columns, 1),
        };
        let part = columns.start + part.start..columns.start + part.end;
        if part.end > columns.end
            || !part.start.is_multiple_of(len)
            || !part.len().is_multiple_of(len)
        {
            return None;
        }
        Some(Weight(Arc::new(match &*self.0 {
            WeightData::Packed(_) => return None,
            WeightData::Table { ty, n, k, bytes, .. } => {
                let (ty, n, k, bytes) = (*ty, *n, *k, bytes.clone());
                WeightData::Table { ty, n, columns: part, k, bytes }
            }
            WeightData::Taped { index, n, .. } => {
                WeightData::Taped { index: *index, n: *n, columns: part }
            }
        })))
    }

    /// Bytes that a product with it reads: 0 for a table, and on a tape.
    pub fn bytes(&self) -> usize {
        match &*self.0 {
            WeightData::Packed(p) => p.bytes(),
            WeightData::Table { .. } | WeightData::Taped { .. } => 0,
        }
    }
}

/// A vector of f32: the weight of a norm, a bias.
#[derive(Clone)]
pub struct Vector {
    values: Arc<Vec<f32>>,
    /// Its number among the parameters of a tape, which knows the values of today.
    pub(crate) param: Option<usize>,
}

impl Vector {
    /// A vector of these values.
    pub fn new(values: Vec<f32>) -> Self {
        Self { values: Arc::new(values), param: None }
    }

    /// The values that it was made with.
    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

/// A projection: weight `[n, k]` and perhaps a bias `[n]`.
#[derive(Clone)]
pub struct Linear {
    /// The matrix.
    pub weight: Weight,
    /// Added to each row.
    pub bias: Option<Vector>,
    /// Low-rank adapters that a device applies beside the weight: those of a row, if it has them.
    pub adapters: Vec<Arc<LowRank>>,
}

/// A trained change of a projection: `y += factor * B A x`.
pub struct LowRank {
    /// Which of the model's adapters it is part of, from 0.
    pub number: u32,
    /// A, `[rank, k]`.
    pub a: Weight,
    /// B, `[n, rank]`.
    pub b: Weight,
    /// The factor.
    pub factor: f32,
}
