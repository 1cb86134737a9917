//! Activations.

use std::sync::{Arc, Mutex};

/// Buffers of dropped tensors, to be used again: fresh pages from the system cost more than what
/// is computed into them.
#[derive(Default)]
pub(crate) struct FreeList(Mutex<Vec<Vec<f32>>>);

/// How many buffers wait for their next use.
const KEEP: usize = 8;

impl FreeList {
    /// A buffer of `len` values, whatever they are.
    fn take(&self, len: usize) -> Vec<f32> {
        let mut free = self.0.lock().unwrap_or_else(|e| e.into_inner());
        let best = (free.iter().enumerate())
            // A much larger one would be missed where it is needed.
            .filter(|(_, v)| (len..=4 * len + 1024).contains(&v.capacity()))
            .min_by_key(|(_, v)| v.capacity())
            .map(|(i, _)| i);
        let mut v = best.map_or_else(|| Vec::with_capacity(len), |i| free.swap_remove(i));
        drop(free);
        v.resize(len, 0.0);
        v
    }

    fn give(&self, v: Vec<f32>) {
        let mut free = self.0.lock().unwrap_or_else(|e| e.into_inner());
        if free.len() == KEEP {
            // The longest unused goes.
            free.remove(0);
        }
        free.push(v);
    }
}

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
    data: Vec<f32>,
    home: Arc<FreeList>,
}

impl Tensor {
    /// A tensor with whatever its buffer held before.
    pub(crate) fn stale(home: &Arc<FreeList>, id: u64, rows: usize, cols: usize) -> Self {
        Self { id, rows, cols, data: home.take(rows * cols), home: home.clone() }
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

    /// The values, row by row.
    pub(crate) fn data(&self) -> &[f32] {
        &self.data
    }

    /// The values, to write.
    pub(crate) fn data_mut(&mut self) -> &mut [f32] {
        &mut self.data
    }
}

impl Drop for Tensor {
    fn drop(&mut self) {
        self.home.give(std::mem::take(&mut self.data));
    }
}
