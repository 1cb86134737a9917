//! From logits to a token.

use std::fmt;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// Divides the logits; 0 takes the likeliest token.
    pub temperature: f32,
    /// Only the likeliest so many; 0: no limit.
    pub top_k: usize,
    /// Only the likeliest whose probabilities reach this sum; 1: no limit.
    pub top_p: f32,
    /// Only tokens at least this times as likely as the likeliest; 0: no limit.
    pub min_p: f32,
    /// Divides positive logits of tokens that have occurred, multiplies negative ones; 1: off
    /// (CTRL, <https://arxiv.org/abs/1909.05858>).
    pub repetition_penalty: f32,
    /// The same seed, the same prompt: the same tokens.
    pub seed: u64,
}

impl Default for Sampling {
    /// The likeliest token.
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            seed: 0,
        }
    }
}

/// A sampling setting outside its range.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingError {
    /// The setting.
    pub field: &'static str,
    /// What it was.
    pub found: f32,
    /// What it may be.
    pub expected: &'static str,
}

impl fmt::Display for SamplingError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} is not {}", self.field, self.found, self.expected)
    }
}

impl std::error::Error for SamplingError {}

impl Sampling {
    /// Checks the ranges.
    ///
    /// # Errors
    /// The first setting that is out of its range.
    pub fn check(&self) -> Result<(), SamplingError> {
        let checks = [
            ("temperature", self.temperature, self.temperature >= 0.0, "0 or more"),
            ("top_p", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0, "above 0 and at most 1"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "between 0 and 1"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0,
                "above 0",
            ),
        ];
        for (field, found, good, expected) in checks {
            if !(good && found.is_finite()) {
                return Err(SamplingError { field, found, expected });
            }
        }
        Ok(())
    }
}

/// Chooses the tokens of one generation. The n-th choice depends on the seed, on n and on the
/// logits alone, so that what else an engine does at the time can't change it.
pub struct Sampler {
    sampling: Sampling,
    drawn: u64,
}

/// How many of the likeliest tokens are sorted before it is known that more are needed.
const FIRST: usize = 256;

impl Sampler {
    /// A sampler at its first token.
    ///
    /// # Errors
    /// If a setting is out of its range.
    pub fn new(sampling: Sampling) -> Result<Self, SamplingError> {
        sampling.check()?;
        Ok(Self { sampling, drawn: 0 })
    }

    /// The next token, given its logits and the tokens before it. Logits are changed in passing.
    /// Among equals the lowest id wins.
    pub fn sample(&mut self, logits: &mut [f32], before: &[u32]) -> u32 {
        let s = &self.sampling;
        if s.repetition_penalty != 1.0 {
            penalise(logits, before, s.repetition_penalty);
        }
        if s.temperature == 0.0 {
            return argmax(logits);
        }
        self.drawn += 1;
        let u = uniform(s.seed, self.drawn);
        let candidates = candidates(logits, s);
        let total: f64 = candidates.iter().map(|(_, p)| p).sum();
        let mut left = u * total;
        for &(id, p) in &candidates {
            left -= p;
            if left < 0.0 {
                return id;
            }
        }
        candidates.last().map_or_else(|| argmax(logits), |c| c.0)
    }
}

/// The likeliest token, the lowest id among equals; NaN never wins.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let mut best = (0, f32::NEG_INFINITY);
    for (i, &l) in logits.iter().enumerate() {
        if l > best.1 {
            best = (i, l);
        }
    }
    best.0 as u32
}

fn penalise(logits: &mut [f32], before: &[u32], penalty: f32) {
    let mut seen: Vec<u32> = before.to_vec();
    seen.sort_unstable();
    seen.dedup();
    for id in seen {
        if let Some(l) = logits.get_mut(id as usize) {
            *l = if *l > 0.0 { *l / penalty } else { *l * penalty };
        }
    }
}

/// Tokens that may be drawn with their weights, the likeliest first.
fn candidates(logits: &[f32], s: &Sampling) -> Vec<(u32, f64)> {
    let top = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let temperature = f64::from(s.temperature);
    let weight = |l: f32| ((f64::from(l) - top) / temperature).exp();
    let keep = if s.top_k == 0 { logits.len() } else { s.top_k.min(logits.len()) };
    // top_p counts in probabilities among the top_k.
    let floor = f64::from(s.min_p);
    let mut sorted = likeliest(logits, keep.min(FIRST.max(s.top_k)));
    let mut total: f64 = if keep == logits.len() {
        logits.iter().map(|l| weight(*l)).sum()
    } else {
        sorted.iter().map(|i| weight(logits[*i as usize])).sum()
    };
    if !total.is_finite() || total <= 0.0 {
        total = 1.0;
    }
    loop {
        let mut out = Vec::new();
        let mut sum = 0.0;
        for &id in &sorted {
            let w = weight(logits[id as usize]);
            if !out.is_empty() && (sum >= f64::from(s.top_p) * total && s.top_p < 1.0 || w < floor)
            {
                return out;
            }
            sum += w;
            out.push((id, w));
        }
        if sorted.len() >= keep {
            return out;
        }
        sorted = likeliest(logits, keep);
    }
}

/// The `count` likeliest ids in order, the lowest first among equals.
fn likeliest(logits: &[f32], count: usize) -> Vec<u32> {
    let order =
        |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if count < ids.len() {
        ids.select_nth_unstable_by(count, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

/// A number in [0, 1) from a seed and a counter (SplitMix64's finaliser, twice).
fn uniform(seed: u64, n: u64) -> f64 {
    let mix = |mut z: u64| {
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    let z = mix(mix(seed).wrapping_add(n.wrapping_mul(0x9e37_79b9_7f4a_7c15)));
    (z >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn draw(sampling: Sampling, logits: &[f32], times: usize) -> Vec<f64> {
        let mut sampler = Sampler::new(sampling).unwrap_or_else(|e| panic!("{e}"));
        let mut counts = vec![0.0; logits.len()];
        for _ in 0..times {
            counts[sampler.sample(&mut logits.to_vec(), &[]) as usize] += 1.0 / times as f64;
        }
        counts
    }

    fn softmax(logits: &[f32], temperature: f32) -> Vec<f64> {
        let w: Vec<f64> = logits.iter().map(|l| f64::from(l / temperature).exp()).collect();
        let sum: f64 = w.iter().sum();
        w.iter().map(|w| w / sum).collect()
    }

    #[test]
    fn draws_follow_the_softmax() {
        let logits = [1.0, 3.0, 2.0, -1.0, 2.5];
        for temperature in [0.5, 1.0, 2.0] {
            let got = draw(Sampling { temperature, ..Sampling::default() }, &logits, 20_000);
            for (got, want) in got.iter().zip(softmax(&logits, temperature)) {
                assert!((got - want).abs() < 0.015, "{got} {want}");
            }
        }
    }

    #[test]
    fn limits_cut_the_tail() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 37) % 1000) as f32 / 100.0).collect();
        let base = Sampling { temperature: 1.0, ..Sampling::default() };
        let drawn = |s| draw(s, &logits, 3000).iter().filter(|c| **c > 0.0).count();
        assert_eq!(drawn(Sampling { top_k: 3, ..base.clone() }), 3);
        assert_eq!(drawn(Sampling { top_k: 1, ..base.clone() }), 1);
        assert_eq!(drawn(Sampling { top_p: 1e-6, ..base.clone() }), 1);
        assert_eq!(drawn(Sampling { min_p: 1.0, ..base.clone() }), 1);
        // 1 / (1 - e^-0.01) tokens' worth of weight: half of it lies in the first 69.
        let half = drawn(Sampling { top_p: 0.5, ..base.clone() });
        assert!((60..=70).contains(&half), "{half}");
        assert!(drawn(base) > 250, "the sorted head must not be the limit");
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals_and_the_penalty_counts() {
        assert_eq!(argmax(&[1.0, 5.0, 5.0, f32::NAN]), 1);
        let mut sampler = Sampler::new(Sampling { repetition_penalty: 2.0, ..Sampling::default() })
            .unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(sampler.sample(&mut [1.0, 5.0, 4.0], &[1, 1, 7]), 2);
    }

    #[test]
    fn settings_out_of_range_are_named() {
        let bad = Sampling { top_p: 0.0, ..Sampling::default() };
        assert_eq!(bad.check().map_err(|e| e.field), Err("top_p"));
        let bad = Sampling { temperature: f32::NAN, ..Sampling::default() };
        assert_eq!(bad.check().map_err(|e| e.field), Err("temperature"));
    }

    #[test]
    fn seeds_repeat_and_differ() {
        let logits: Vec<f32> = (0..50).map(|i| (i % 7) as f32).collect();
        let run = |seed| {
            let s = Sampling { temperature: 1.0, seed, ..Sampling::default() };
            let mut sampler = Sampler::new(s).unwrap_or_else(|e| panic!("{e}"));
            (0..20).map(|_| sampler.sample(&mut logits.clone(), &[])).collect::<Vec<_>>()
        };
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }
}
