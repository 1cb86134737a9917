//! Activations.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Buffers of dropped tensors, to be used again: fresh pages from the system cost more than what
/// is computed into them.
pub(crate) struct FreeList {
    buffers: Mutex<Vec<Vec<f32>>>,
    /// How many wait for their next use.
    keep: usize,
    /// Values in tensors that are there.
    live: AtomicUsize,
}

impl Default for FreeList {
    fn default() -> Self {
        Self::new(16)
    }
}

impl FreeList {
    /// A list that keeps so many buffers.
    pub fn new(keep: usize) -> Self {
        Self { buffers: Mutex::default(), keep, live: AtomicUsize::new(0) }
    }

    /// Gives everything back to the system.
    pub fn clear(&self) {
        self.buffers.lock().unwrap_or_else(|e| e.into_inner()).clear();
    }

    /// Values in all tensors that are there.
    pub fn live(&self) -> usize {
        self.live.load(Ordering::Relaxed)
    }

    /// A buffer of `len` values, whatever they are.
    fn take(&self, len: usize) -> Vec<f32> {
        let mut free = self.buffers.lock().unwrap_or_else(|e| e.into_inner());
        let best = (free.iter().enumerate())
            // A much larger one would be missed where it is needed.
            .filter(|(_, v)| (len..=2 * len + 1024).contains(&v.capacity()))
            .min_by_key(|(_, v)| v.capacity())
            .map(|(i, _)| i);
        let mut v = best.map_or_else(|| Vec::with_capacity(len), |i| free.swap_remove(i));
        drop(free);
        v.resize(len, 0.0);
        self.live.fetch_add(len, Ordering::Relaxed);
        v
    }

    fn give(&self, v: Vec<f32>) {
        self.live.fetch_sub(v.len(), Ordering::Relaxed);
        let mut free = self.buffers.lock().unwrap_or_else(|e| e.into_inner());
        if free.len() == self.keep {
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
    data: Arc<Data>,
}

/// Values, perhaps of several tensors: whoever writes while they are shared gets a copy.
struct Data {
    values: Vec<f32>,
    home: Arc<FreeList>,
}

impl Tensor {
    /// A tensor with whatever its buffer held before.
    pub(crate) fn stale(home: &Arc<FreeList>, id: u64, rows: usize, cols: usize) -> Self {
        let data = Arc::new(Data { values: home.take(rows * cols), home: home.clone() });
        Self { id, rows, cols, data }
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
        &self.data.values
    }

    /// The values, to write.
    pub(crate) fn data_mut(&mut self) -> &mut [f32] {
        if Arc::get_mut(&mut self.data).is_none() {
            let home = self.data.home.clone();
            let mut values = home.take(self.data.values.len());
            values.copy_from_slice(&self.data.values);
            self.data = Arc::new(Data { values, home });
        }
        match Arc::get_mut(&mut self.data) {
            Some(data) => &mut data.values,
            None => unreachable!("just made, or not shared"),
        }
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        self.home.give(std::mem::take(&mut self.values));
    }
}
