//! The backward of what Gemma 3n mixes and of what Gemma 4 sends to experts.

use super::backward::ROWS;
use super::{Mixed, Tape};
use crate::{Activation, Routes, Tensor, Vector};
use lapidary_kernels::backward as kernels;
use lapidary_kernels::top_experts;
use std::sync::Mutex;

impl Tape {
    pub(super) fn affine_back(&mut self, x: &Tensor, scale: &Vector, mut g: Tensor) -> Tensor {
        let (today, cols) = (self.today(scale), g.cols());
        if scale.param.is_some() {
            let mut products = self.cpu.stale(g.rows(), cols);
            self.by_rows(products.data_mut(), cols, |first, part| {
                let at = first * cols..first * cols + part.len();
                let both = x.data()[at.clone()].iter().zip(&g.data()[at]);
                part.iter_mut().zip(both).for_each(|(p, (x, g))| *p = x * g);
            });
            let sums = self.sums_of_rows(&products);
            self.sum_rows(scale.param, &sums);
        }
        self.by_rows(g.data_mut(), cols, |_, part| {
            for row in part.chunks_exact_mut(cols) {
                row.iter_mut().zip(today.values()).for_each(|(g, s)| *g *= s);
            }
        });
        g
    }

    /// The gradients of what was mixed, `cols` wide, and of the coefficients if each row has its own.
    pub(super) fn mix_back(
        &mut self,
        cols: usize,
        coefs: &Mixed,
        width: usize,
        g: &Tensor,
    ) -> (Tensor, Option<Tensor>) {
        let isa = self.isa();
        let mut dx = self.cpu.stale(g.rows(), cols);
        let dy = |row: usize| &g.data()[row * g.cols()..(row + 1) * g.cols()];
        let (coefs, x) = match coefs {
            Mixed::Same(coefs) => {
                self.by_rows(dx.data_mut(), cols, |first, part| {
                    for (row, dx) in (first..).zip(part.chunks_exact_mut(cols)) {
                        kernels::mix_backward(isa, coefs, width, dy(row), dx, None);
                    }
                });
                return (dx, None);
            }
            Mixed::Each(coefs, x) => (coefs, x),
        };
        let count = coefs.cols();
        let mut dcoefs = self.cpu.stale(g.rows(), count);
        let rows: Vec<_> = (dx.data_mut().chunks_mut(ROWS * cols))
            .zip(dcoefs.data_mut().chunks_mut(ROWS * count))
            .map(Mutex::new)
            .collect();
        self.pool().run(rows.len(), &|i| {
            let mut part = rows[i].lock().unwrap_or_else(|e| e.into_inner());
            let (dx, dcoefs) = &mut *part;
            let both = dx.chunks_exact_mut(cols).zip(dcoefs.chunks_exact_mut(count));
            for (row, (dx, dcoefs)) in (i * ROWS..).zip(both) {
                let coefs = &coefs.data()[row * count..(row + 1) * count];
                let x = &x.data()[row * cols..(row + 1) * cols];
                kernels::mix_backward(isa, coefs, width, dy(row), dx, Some((x, dcoefs)));
            }
        });
        drop(rows);
        (dx, Some(dcoefs))
    }

    pub(super) fn match_back(
        &mut self,
        x: &Tensor,
        like: &Tensor,
        mut g: Tensor,
    ) -> (Tensor, Tensor) {
        let (isa, cols) = (self.isa(), g.cols());
        let mut dlike = self.cpu.stale(g.rows(), cols);
        let rows: Vec<_> = (g.data_mut().chunks_mut(ROWS * cols))
            .zip(dlike.data_mut().chunks_mut(ROWS * cols))
            .zip(x.data().chunks(ROWS * cols).zip(like.data().chunks(ROWS * cols)))
            .map(Mutex::new)
            .collect();
        self.pool().run(rows.len(), &|i| {
            let mut part = rows[i].lock().unwrap_or_else(|e| e.into_inner());
            let ((g, dlike), (x, like)) = &mut *part;
            let out = g.chunks_exact_mut(cols).zip(dlike.chunks_exact_mut(cols));
            let of = x.chunks_exact(cols).zip(like.chunks_exact(cols));
            for ((g, dlike), (x, like)) in out.zip(of) {
                kernels::match_rms_backward(isa, x, like, g, dlike);
            }
        });
        drop(rows);
        (g, dlike)
    }

    /// The gradient of what `expert` made, from that of the experts' sum; those of the weights of
    /// its rows go to `dweights`.
    pub(super) fn expert_back(
        &mut self,
        expert: usize,
        made: &Tensor,
        routes: &Routes,
        g: &Tensor,
        dweights: &mut Tensor,
    ) -> Tensor {
        let cols = made.cols();
        let mut dmade = self.cpu.stale(made.rows(), cols);
        let dweights = dweights.data_mut();
        let rows = dmade.data_mut().chunks_exact_mut(cols).zip(made.data().chunks_exact(cols));
        for (place, (dmade, made)) in routes.places(expert).zip(rows) {
            let row = place / routes.k;
            let g = &g.data()[row * cols..(row + 1) * cols];
            let weight = routes.weights[place];
            dmade.iter_mut().zip(g).for_each(|(d, g)| *d = g * weight);
            let along = made.iter().zip(g).map(|(m, g)| f64::from(*m) * f64::from(*g));
            dweights[place] = along.sum::<f64>() as f32;
        }
        dmade
    }

    /// The gradient of scores from that of the weights of those chosen.
    pub(super) fn route_back(
        &mut self,
        scores: &Tensor,
        k: usize,
        scale: &Vector,
        g: &Tensor,
    ) -> Tensor {
        let (isa, today, cols) = (self.isa(), self.today(scale), scores.cols());
        let mut dscores = self.zeros(scores.rows(), cols);
        let mut dscale = vec![0.0; cols];
        let rows = dscores.data_mut().chunks_exact_mut(cols).zip(scores.data().chunks_exact(cols));
        for ((dscores, scores), g) in rows.zip(g.data().chunks_exact(k)) {
            let chosen = top_experts(isa, scores, k);
            // As of a softmax over the chosen alone.
            let scaled = |(&(e, p), g): (&(u32, f32), &f32)| (e, p, g * today.values()[e as usize]);
            let mean: f32 = chosen.iter().zip(g).map(scaled).map(|(_, p, dp)| p * dp).sum();
            for (e, p, dp) in chosen.iter().zip(g).map(scaled) {
                dscores[e as usize] = p * (dp - mean);
            }
            for (&(e, p), g) in chosen.iter().zip(g) {
                dscale[e as usize] += p * g;
            }
        }
        self.sum_rows(scale.param, &[dscale]);
        dscores
    }

    pub(super) fn gated_halves_back(&mut self, x: &Tensor, kind: Activation, g: &Tensor) -> Tensor {
        let (isa, half) = (self.isa(), g.cols());
        let mut dx = self.cpu.stale(x.rows(), 2 * half);
        self.by_rows(dx.data_mut(), 2 * half, |first, part| {
            for (row, dx) in (first..).zip(part.chunks_exact_mut(2 * half)) {
                let (gate, up) = x.data()[row * 2 * half..(row + 1) * 2 * half].split_at(half);
                let (dgate, dup) = dx.split_at_mut(half);
                dgate.copy_from_slice(&g.data()[row * half..(row + 1) * half]);
                kernels::gated_backward(isa, kind, gate, up, dgate, dup);
            }
        });
        dx
    }
}
