//! Mixture of experts: where rows go.

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

    /// The rows that go to `expert`, with their weights.
    pub fn rows(&self, expert: usize) -> (Vec<u32>, Vec<f32>) {
        (self.experts.iter().zip(&self.weights).enumerate())
            .filter(|(_, (e, _))| **e as usize == expert)
            .map(|(i, (_, w))| ((i / self.k) as u32, *w))
            .unzip()
    }
}
