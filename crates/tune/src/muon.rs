//! Muon: a momentum whose matrix is made nearly orthogonal before each step
//! (<https://kellerjordan.github.io/posts/muon/>), so that no direction of a weight matrix learns
//! faster than another. The length of a step follows <https://arxiv.org/abs/2502.16982>: its root
//! mean square is AdamW's, so one learning rate serves both.

use lapidary_ops::{Gemm, Isa, Operand, Param, Pool, ProductPrecision, Run};
use std::sync::{Arc, Mutex};

/// The factors of the quintic that pulls singular values to about 1, and how often it is applied.
const QUINTIC: [f32; 3] = [3.4445, -4.7750, 2.0315];
const ROUNDS: usize = 5;
/// Root mean square of AdamW's steps, as the paper above measured it.
const ADAM_SIZE: f32 = 0.2;

/// The figures of one step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Figures {
    /// Learning rate.
    pub lr: f32,
    /// Memory of the momentum.
    pub momentum: f32,
    /// What a weight loses, times the learning rate.
    pub decay: f32,
    /// Factor of the gradient (clipping).
    pub scale: f32,
}

/// Whether a parameter is a matrix of a block: embeddings, heads and vectors are AdamW's.
pub(crate) fn takes(p: &Param) -> bool {
    p.shape.len() == 2 && p.name.tensor.split('.').any(|part| part.parse::<u32>().is_ok())
}

/// One step of all these matrices, with their momenta; their gradients become zero. A thread takes
/// whole matrices: those of a model are many, and often too small to share.
pub(crate) fn steps(
    isa: Isa,
    precision: ProductPrecision,
    pool: &Pool,
    f: &Figures,
    mut all: Vec<(&mut Param, &mut Run)>,
) {
    // The largest first, so that none is left for the end.
    all.sort_by_key(|(p, _)| std::cmp::Reverse(p.values.len()));
    let all: Vec<_> = all.into_iter().map(Mutex::new).collect();
    pool.run(all.len(), &|i| {
        let gemm = Gemm::new(isa, Arc::new(Pool::new(1))).with_precision(precision);
        let mut matrix = all[i].lock().unwrap_or_else(|e| e.into_inner());
        let (p, momentum) = &mut *matrix;
        step(&gemm, f, p, momentum);
    });
}

/// One step of a matrix.
fn step(gemm: &Gemm, f: &Figures, p: &mut Param, momentum: &mut [f32]) {
    let (n, k) = (p.shape[0], p.shape[1]);
    let mut x: Vec<f32> = (p.grad.get_mut().iter().zip(momentum))
        .map(|(g, m)| {
            let now = g * f.scale;
            *m = f.momentum * *m + (1.0 - f.momentum) * now;
            // Nesterov's look ahead.
            f.momentum * *m + (1.0 - f.momentum) * now
        })
        .collect();
    p.grad.clear();
    orthogonalize(gemm, n, k, &mut x);
    let size = f.lr * ADAM_SIZE * (n.max(k) as f32).sqrt();
    for (w, x) in p.values.iter_mut().zip(&x) {
        *w -= f.lr * f.decay * *w + size * x;
    }
}

/// Moves the singular values of `x`, `[n][k]`, to about 1 (0.7 to 1.2) by a Newton-Schulz iteration.
fn orthogonalize(gemm: &Gemm, n: usize, k: usize, x: &mut Vec<f32>) {
    let length = x.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
    if length == 0.0 {
        return;
    }
    x.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    let [a, b, c] = QUINTIC;
    // The Gram matrix of the shorter side.
    let (side, wide) = (n.min(k), n <= k);
    let (mut gram, mut square) = (vec![0.0; side * side], vec![0.0; side * side]);
    let mut next = vec![0.0; n * k];
    for _ in 0..ROUNDS {
        let rows = if wide { Operand::Rows(x, k) } else { Operand::Columns(x, k) };
        gemm.product([side, side, n.max(k)], rows, rows, &mut gram, false);
        let both = Operand::Rows(&gram, side);
        gemm.product([side, side, side], both, both, &mut square, false);
        gram.iter_mut().zip(&square).for_each(|(g, s)| *g = b * *g + c * s);
        next.iter_mut().zip(&*x).for_each(|(next, x)| *next = a * x);
        // The polynomial of the Gram matrix is symmetric: either order of its indices will do.
        let factor = Operand::Rows(&gram, side);
        if wide {
            gemm.product([n, k, n], factor, Operand::Columns(x, k), &mut next, true);
        } else {
            gemm.product([n, k, k], Operand::Rows(x, k), factor, &mut next, true);
        }
        std::mem::swap(x, &mut next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapidary_ops::{Gradient, Heap, ParamName};

    fn gemm(threads: usize) -> Gemm {
        Gemm::new(Isa::detect(), Arc::new(Pool::new(threads)))
    }

    fn param(name: &str, shape: &[usize]) -> Param {
        let (heap, len) = (Arc::<Heap>::default(), shape.iter().product());
        let (name, shape) = (ParamName::whole(name.into()), shape.to_vec());
        Param { name, shape, values: heap.zeros(len), grad: Gradient::new(heap, len) }
    }

    fn values(len: usize) -> Vec<f32> {
        (0..len).map(|i| ((i * i * 7 + 3 * i) as f32 * 0.37).sin()).collect()
    }

    /// The same iteration in f64, by its definition.
    fn exact(n: usize, k: usize, x: &[f32]) -> Vec<f64> {
        let mut x: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
        let length = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        x.iter_mut().for_each(|x| *x /= length);
        let [a, b, c] = QUINTIC.map(f64::from);
        let times = |x: &[f64], y: &[f64], n: usize, inner: usize, k: usize| -> Vec<f64> {
            (0..n * k)
                .map(|i| (0..inner).map(|p| x[i / k * inner + p] * y[p * k + i % k]).sum())
                .collect()
        };
        for _ in 0..ROUNDS {
            let turned: Vec<f64> = (0..n * k).map(|i| x[i % n * k + i / n]).collect();
            let gram = times(&x, &turned, n, k, n);
            let square = times(&gram, &gram, n, n, n);
            let factor: Vec<f64> = gram.iter().zip(&square).map(|(g, s)| b * g + c * s).collect();
            let more = times(&factor, &x, n, n, k);
            x = x.iter().zip(more).map(|(x, more)| a * x + more).collect();
        }
        x
    }

    #[test]
    fn both_shapes_follow_the_definition() {
        for (n, k) in [(12, 40), (40, 12), (17, 17)] {
            let raw = values(n * k);
            let want = exact(n, k, &raw);
            let mut first = None;
            for threads in [1, 3] {
                let mut x = raw.clone();
                orthogonalize(&gemm(threads), n, k, &mut x);
                for (x, want) in x.iter().zip(&want) {
                    assert!((f64::from(*x) - want).abs() < 1e-4, "{n} x {k}: {x} {want}");
                }
                assert_eq!(*first.get_or_insert_with(|| x.clone()), x);
            }
        }
    }

    #[test]
    fn rows_become_orthogonal() {
        let (n, k) = (10, 64);
        let mut x = values(n * k);
        orthogonalize(&gemm(1), n, k, &mut x);
        for (i, j) in (0..n).flat_map(|i| (0..n).map(move |j| (i, j))) {
            let dot: f32 = (0..k).map(|p| x[i * k + p] * x[j * k + p]).sum();
            let near = if i == j { (0.4..1.5).contains(&dot) } else { dot.abs() < 0.35 };
            assert!(near, "rows {i} and {j}: {dot}");
        }
    }

    #[test]
    fn a_step_has_the_length_of_adams() {
        let (n, k) = (16, 48);
        let mut p = param("model.layers.3.mlp.up_proj.weight", &[n, k]);
        p.values.fill(1.0);
        p.grad.get_mut().copy_from_slice(&values(n * k));
        assert!(takes(&p));
        let mut momentum = vec![0.0; n * k];
        let f = Figures { lr: 0.01, momentum: 0.95, decay: 0.1, scale: 1.0 };
        step(&gemm(1), &f, &mut p, &mut momentum);
        let moved = |w: &f32| f64::from(*w - (1.0 - 0.01 * 0.1)).powi(2);
        let size = (p.values.iter().map(moved).sum::<f64>() / (n * k) as f64).sqrt();
        assert!((0.7..1.2).contains(&(size / (0.01 * 0.2))), "{size}");
        assert_eq!(p.grad.get(), None, "cleared");
    }

    #[test]
    fn embeddings_heads_and_vectors_are_left_to_adam() {
        assert!(!takes(&param("model.embed_tokens.weight", &[9, 4])));
        assert!(!takes(&param("lm_head.weight", &[9, 4])));
        assert!(!takes(&param("model.layers.0.input_layernorm.weight", &[4])));
        assert!(takes(&param("transformer.h.0.attn.c_attn.weight", &[4, 4])));
    }
}
