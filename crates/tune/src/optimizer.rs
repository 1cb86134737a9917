//! AdamW over all parameters of a tape, or Muon over the matrices of its blocks.

use crate::{Muon, StatePrecision, TrainOptions, muon};
use lapidary_ops::{Adam, Moments, Param, Pool, Run, Tape, adamw, adamw_factored, sum_of_squares};
use std::sync::Mutex;

/// Values that a task changes; a multiple of the moments' blocks. Fixed: sums are taken by it.
const PART: usize = 1 << 16;
/// Rows of a matrix whose squares are summed by themselves.
const ROWS: usize = 64;

/// The state of one parameter.
pub(crate) enum State {
    /// Both moments of each value.
    Each(Moments),
    /// The first of each value, the second's means over rows and columns.
    Factored { m: Run, rows: Vec<f32>, columns: Vec<f32> },
    /// Muon's momentum.
    Momentum(Run),
}

/// The states of all parameters, and their averages.
pub(crate) struct Optimizer {
    pub(crate) states: Vec<State>,
    /// An exponential average of the weights.
    pub(crate) ema: Option<Vec<Run>>,
}

impl Optimizer {
    pub fn new(tape: &Tape, options: &TrainOptions) -> Self {
        let heap = tape.heap();
        let states = (tape.params().iter())
            .map(|p| match (options.state, &p.shape[..]) {
                _ if options.muon.is_some() && muon::takes(p) => {
                    State::Momentum(heap.zeros(p.values.len()))
                }
                (StatePrecision::Factored, &[n, k]) => State::Factored {
                    m: heap.zeros(n * k),
                    rows: vec![0.0; n],
                    columns: vec![0.0; k],
                },
                (StatePrecision::Bits8, _) => State::Each(Moments::new(heap, p.values.len(), true)),
                _ => State::Each(Moments::new(heap, p.values.len(), false)),
            })
            .collect();
        let values = || tape.params().iter().map(|p| p.values.clone()).collect();
        Self { states, ema: options.ema.map(|_| values()) }
    }

    /// The length of all gradients together.
    pub fn norm(&self, tape: &Tape) -> f64 {
        let isa = tape.isa();
        let parts: Vec<&[f32]> = tape
            .params()
            .iter()
            .filter_map(|p| p.grad.get())
            .flat_map(|g| g.chunks(PART))
            .collect();
        let sums: Vec<Mutex<f64>> = parts.iter().map(|_| Mutex::new(0.0)).collect();
        tape.pool().run(parts.len(), &|i| {
            *sums[i].lock().unwrap_or_else(|e| e.into_inner()) = sum_of_squares(isa, parts[i]);
        });
        let sums = sums.into_iter().map(|s| s.into_inner().unwrap_or_else(|e| e.into_inner()));
        sums.sum::<f64>().sqrt()
    }

    /// Sets all gradients to zero.
    pub fn forget(&self, tape: &mut Tape) {
        tape.params_mut().iter_mut().for_each(|p| p.grad.clear());
    }

    /// Step number `step` (from 1).
    pub fn step(&mut self, tape: &mut Tape, o: &TrainOptions, step: u64, lr: f32, norm: f64) {
        let (isa, a) = (tape.isa(), &o.optimizer);
        let pool = tape.shared_pool();
        let power = |beta: f32| (1.0 - f64::from(beta).powf(step as f64)) as f32;
        let scale = o.clip.map_or(1.0, |c| (f64::from(c) / (norm + 1e-6)).min(1.0)) as f32;
        let adam = |p: &Param| Adam {
            lr,
            beta1: a.beta1,
            beta2: a.beta2,
            eps: a.eps,
            decay: if p.shape.len() > 1 { a.weight_decay } else { 0.0 },
            scale,
            correction1: power(a.beta1),
            correction2: power(a.beta2),
        };
        for (p, state) in tape.params_mut().iter_mut().zip(&mut self.states) {
            let adam = adam(p);
            let grad = p.grad.get_mut();
            match state {
                State::Each(moments) => {
                    let parts: Vec<_> = (p.values.chunks_mut(PART).zip(grad.chunks(PART)))
                        .zip(moments.parts(PART))
                        .map(|part| Mutex::new(Some(part)))
                        .collect();
                    pool.run(parts.len(), &|i| {
                        let part = parts[i].lock().unwrap_or_else(|e| e.into_inner()).take();
                        let Some(((w, g), moments)) = part else { return };
                        adamw(isa, &adam, w, g, moments);
                    });
                }
                // All together, below.
                State::Momentum(_) => continue,
                State::Factored { m, rows, columns } => {
                    factored_means(&pool, grad, &adam, rows, columns);
                    let k = columns.len();
                    let mean = rows.iter().map(|r| f64::from(*r)).sum::<f64>() / rows.len() as f64;
                    let mean = mean as f32;
                    let parts: Vec<_> = (p.values.chunks_mut(ROWS * k))
                        .zip(grad.chunks(ROWS * k))
                        .zip(m.chunks_mut(ROWS * k).zip(rows.chunks(ROWS)))
                        .map(Mutex::new)
                        .collect();
                    let columns = &*columns;
                    pool.run(parts.len(), &|i| {
                        let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
                        let ((w, g), (m, rows)) = &mut *part;
                        for (r, row) in rows.iter().enumerate() {
                            let at = r * k..(r + 1) * k;
                            let (w, m) = (&mut w[at.clone()], &mut m[at.clone()]);
                            adamw_factored(isa, &adam, w, &g[at], m, columns, row / mean);
                        }
                    });
                }
            }
            p.grad.clear();
        }
        if let Some(Muon { momentum }) = o.muon {
            let f = muon::Figures { lr, momentum, decay: a.weight_decay, scale };
            let matrices = (tape.params_mut().iter_mut().zip(&mut self.states))
                .filter_map(|(p, state)| match state {
                    State::Momentum(m) => Some((p, m)),
                    _ => None,
                })
                .collect();
            muon::steps(isa, o.precision, &pool, &f, matrices);
        }
        if let (Some(averages), Some(keep)) = (&mut self.ema, o.ema) {
            average(&pool, tape.params(), averages, keep);
        }
    }
}

/// Moves the averages towards the weights.
fn average(pool: &Pool, params: &[Param], averages: &mut [Run], keep: f32) {
    let parts: Vec<_> = (averages.iter_mut().zip(params))
        .flat_map(|(average, p)| average.chunks_mut(PART).zip(p.values.chunks(PART)))
        .map(Mutex::new)
        .collect();
    pool.run(parts.len(), &|i| {
        let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
        let (average, w) = &mut *part;
        for (a, w) in average.iter_mut().zip(*w) {
            *a = keep * *a + (1.0 - keep) * w;
        }
    });
}

/// Moves the means of the squared gradient over rows and columns.
fn factored_means(pool: &Pool, grad: &[f32], adam: &Adam, rows: &mut [f32], columns: &mut [f32]) {
    let (k, n) = (columns.len(), rows.len());
    let beta = adam.beta2;
    let parts: Vec<_> = (grad.chunks(ROWS * k).zip(rows.chunks_mut(ROWS)))
        .map(|(g, rows)| Mutex::new((g, rows, vec![0.0f32; k])))
        .collect();
    pool.run(parts.len(), &|i| {
        let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
        let (g, rows, sums) = &mut *part;
        for (g, row) in g.chunks_exact(k).zip(rows.iter_mut()) {
            let mut total = 0.0f64;
            for (g, sum) in g.iter().zip(sums.iter_mut()) {
                // As Adafactor: never quite zero, so that nothing is divided by it.
                let square = (g * adam.scale) * (g * adam.scale) + 1e-30;
                *sum += square;
                total += f64::from(square);
            }
            *row = beta * *row + (1.0 - beta) * (total / k as f64) as f32;
        }
    });
    let mut totals = vec![0.0f64; k];
    for part in parts {
        let (_, _, sums) = part.into_inner().unwrap_or_else(|e| e.into_inner());
        totals.iter_mut().zip(sums).for_each(|(t, s)| *t += f64::from(s));
    }
    for (column, total) in columns.iter_mut().zip(totals) {
        *column = beta * *column + (1.0 - beta) * (total / n as f64) as f32;
    }
}
