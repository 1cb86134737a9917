//! Mixture of experts: where rows go.

use crate::Tensor;

/// For each row the experts that it goes to.
#[derive(Debug, Clone, PartialEq)]
pub struct Routes {
    /// Differs between any two of a device.
    pub(crate) id: u64,
    /// Experts of a row.
    pub k: usize,
    /// `[rows][k]`: which.
    pub experts: Vec<u32>,
    /// `[rows][k]`: with which weight.
    pub weights: Vec<f32>,
}

impl Routes {
    /// The places of [`Routes::weights`] that go to `expert`.
    pub(crate) fn places(&self, expert: usize) -> impl Iterator<Item = usize> + '_ {
        let chosen = self.experts.iter().enumerate();
        chosen.filter(move |(_, e)| **e as usize == expert).map(|(i, _)| i)
    }

    /// The rows that go to `expert`.
    pub fn rows(&self, expert: usize) -> Vec<u32> {
        self.places(expert).map(|place| (place / self.k) as u32).collect()
    }

    /// Adds what `expert` made of its rows, each times its weight, to those rows of `out`.
    pub(crate) fn add(&self, expert: usize, made: &Tensor, out: &mut Tensor) {
        let cols = made.cols();
        let out = out.data_mut();
        for (place, made) in self.places(expert).zip(made.data().chunks_exact(cols)) {
            let (row, weight) = (place / self.k, self.weights[place]);
            let out = &mut out[row * cols..(row + 1) * cols];
            out.iter_mut().zip(made).for_each(|(o, m)| *o = m.mul_add(weight, *o));
        }
    }
}
