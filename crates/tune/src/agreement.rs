//! How far the predictions of one model are from another's, token by token of a text.

use crate::importance::run;
use lapidary_formats::Checkpoint;
use lapidary_ops::{Cpu, Isa, Pool, Precision};
use std::sync::Arc;

/// Sums over the tokens of a text.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Agreement {
    /// Kullback-Leibler divergence of each token's prediction, in nats: what is lost by taking the
    /// other's for the reference's.
    pub divergences: Vec<f64>,
    /// Tokens for which both find the same token the likeliest.
    pub same: usize,
}

impl Agreement {
    /// Compares logits `[rows, vocab]`.
    pub fn add(&mut self, reference: &[f32], other: &[f32], vocab: usize) {
        for (p, q) in reference.chunks_exact(vocab).zip(other.chunks_exact(vocab)) {
            self.divergences.push(divergence(p, q));
            self.same += usize::from(top(p) == top(q));
        }
    }

    /// The mean divergence.
    pub fn mean(&self) -> f64 {
        self.divergences.iter().sum::<f64>() / self.divergences.len().max(1) as f64
    }

    /// The largest divergence.
    pub fn most(&self) -> f64 {
        self.divergences.iter().copied().fold(0.0, f64::max)
    }

    /// The share of tokens for which both find the same one the likeliest.
    pub fn top(&self) -> f64 {
        self.same as f64 / self.divergences.len().max(1) as f64
    }
}

/// The likeliest, the lowest id among equals.
fn top(logits: &[f32]) -> usize {
    let better = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    (0..logits.len()).fold(0, better)
}

/// KL(p || q) of the distributions that two rows of logits stand for, in nats.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let normal = |x: &[f32]| {
        let most = f64::from(x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        most + x.iter().map(|x| (f64::from(*x) - most).exp()).sum::<f64>().ln()
    };
    let (np, nq) = (normal(p), normal(q));
    let terms = p.iter().zip(q).map(|(p, q)| {
        let (lp, lq) = (f64::from(*p) - np, f64::from(*q) - nq);
        lp.exp() * (lp - lq)
    });
    terms.sum::<f64>().max(0.0)
}

/// Compares the predictions of two checkpoints with the same vocabulary over `passages`, each
/// computed with the precision given.
///
/// # Errors
/// If a model can't be loaded, the vocabularies differ, or a passage does not fit.
pub fn agreement(
    (reference, exact): (&Checkpoint, Precision),
    (other, precision): (&Checkpoint, Precision),
    passages: &[Vec<u32>],
    pool: &Arc<Pool>,
) -> Result<Agreement, Box<dyn std::error::Error>> {
    let mut cpus = [exact, precision].map(|p| Cpu::new(Isa::detect(), pool.clone(), p));
    let [first, second] = &mut cpus;
    let a = lapidary_model::load(reference, first)?;
    let b = lapidary_model::load(other, second)?;
    let vocab = a.model.info().vocab;
    if b.model.info().vocab != vocab {
        return Err(format!(
            "{} predicts {} tokens, {} predicts {vocab}: they can't be compared",
            other.name(),
            b.model.info().vocab,
            reference.name()
        )
        .into());
    }
    let mut all = Agreement::default();
    for passage in passages {
        let one = std::slice::from_ref(passage);
        let mut expected: Vec<Vec<f32>> = Vec::new();
        run(&a, first, one, &mut |_, logits| expected.push(logits.to_vec()), &mut |_, _| ())?;
        let mut expected = expected.into_iter();
        let mut compare = |_: &[u32], logits: &[f32]| {
            all.add(&expected.next().unwrap_or_default(), logits, vocab);
        };
        run(&b, second, one, &mut compare, &mut |_, _| ())?;
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_by_hand() {
        let mut a = Agreement::default();
        // Half and half, against three quarters and a quarter; then the same, shifted.
        a.add(&[0.0, 0.0, 1.0, 2.0], &[3f32.ln(), 0.0, 6.0, 7.0], 2);
        let want = 0.5 * (0.5f64 / 0.75).ln() + 0.5 * (0.5f64 / 0.25).ln();
        assert!((a.divergences[0] - want).abs() < 1e-7, "{a:?}");
        assert!(a.divergences[1] < 1e-12, "{a:?}");
        assert_eq!((a.same, a.top()), (2, 1.0));
        assert!((a.mean() - want / 2.0).abs() < 1e-7 && a.most() == a.divergences[0]);
    }
}
