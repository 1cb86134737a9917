//! Activations.

use lapidary_kernels::{Heap, Run};
use std::sync::Arc;

/// The coefficients of [`crate::Ops::mix`].
#[derive(Clone, Copy)]
pub enum Coefs<'a> {
    /// A row of `[outputs * inputs]` for each row.
    Each(&'a Tensor),
    /// One for all rows.
    Same(&'a [f32]),
}

/// An f32 matrix `[rows, cols]` in memory, row by row.
pub struct Tensor {
    id: u64,
    rows: usize,
    cols: usize,
    /// Perhaps of several tensors: whoever writes while it is shared gets a copy.
    data: Arc<Run>,
}

impl Tensor {
    /// A tensor with whatever its buffer held before.
    pub(crate) fn stale(home: &Arc<Heap>, id: u64, rows: usize, cols: usize) -> Self {
        Self { id, rows, cols, data: Arc::new(home.take(rows * cols)) }
    }

    /// Rows: tokens.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns: the width.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Differs between any two tensors of a device, and changes when the content does.
    pub(crate) fn id(&self) -> u64 {
        self.id
    }

    /// Declares that the content has changed.
    pub(crate) fn renew(mut self, id: u64) -> Self {
        self.id = id;
        self
    }

    /// The same tensor once more; the memory is shared until one of them is written.
    pub(crate) fn share(&self) -> Self {
        Self { id: self.id, rows: self.rows, cols: self.cols, data: self.data.clone() }
    }

    /// The values, row by row.
    pub(crate) fn data(&self) -> &[f32] {
        &self.data
    }

    /// The values, to write.
    pub(crate) fn data_mut(&mut self) -> &mut [f32] {
        &mut *Arc::<Run>::make_mut(&mut self.data)
    }
}
