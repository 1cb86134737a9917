//! From logits to a token.

use crate::logits::{self, Descending, argmax};
use crate::sampling::{Sampling, SamplingError};
use std::collections::HashMap;

/// Chooses the tokens of one generation. The n-th choice depends on the seed, on n and on the
/// logits alone, so that what else an engine does at the time can't change it.
pub struct Sampler {
    sampling: Sampling,
    drawn: u64,
    /// How often each token was chosen.
    chosen: HashMap<u32, u32>,
}

impl Sampler {
    /// A sampler at its first token.
    ///
    /// # Errors
    /// If a setting is out of its range.
    pub fn new(sampling: Sampling) -> Result<Self, SamplingError> {
        sampling.check()?;
        Ok(Self { sampling, drawn: 0, chosen: HashMap::new() })
    }

    /// The next token, given its logits and the tokens before it. Logits are changed in passing.
    /// Among equals the lowest id wins.
    pub fn sample(&mut self, logits: &mut [f32], before: &[u32]) -> u32 {
        self.adjust(logits, before);
        let id = self.choose(logits);
        if self.sampling.presence_penalty != 0.0 || self.sampling.frequency_penalty != 0.0 {
            *self.chosen.entry(id).or_default() += 1;
        }
        id
    }

    /// Bias and penalties.
    fn adjust(&self, logits: &mut [f32], before: &[u32]) {
        let s = &self.sampling;
        let mut change = |id: u32, f: &dyn Fn(f32) -> f32| {
            if let Some(l) = logits.get_mut(id as usize) {
                *l = f(*l);
            }
        };
        for &(id, bias) in &s.logit_bias {
            change(id, &|l| l + bias);
        }
        if s.repetition_penalty != 1.0 {
            let r = s.repetition_penalty;
            let mut seen: Vec<u32> = before.to_vec();
            seen.sort_unstable();
            seen.dedup();
            for id in seen {
                change(id, &|l| if l > 0.0 { l / r } else { l * r });
            }
        }
        for (&id, &count) in &self.chosen {
            change(id, &|l| l - s.presence_penalty - s.frequency_penalty * count as f32);
        }
    }

    /// The next token by adjusted logits.
    fn choose(&mut self, logits: &[f32]) -> u32 {
        let s = &self.sampling;
        if s.temperature == 0.0 {
            return argmax(logits);
        }
        self.drawn += 1;
        let u = uniform(s.seed, self.drawn);
        if s.top_p == 1.0 && s.min_p == 0.0 && s.typical_p == 1.0 {
            return draw_uncut(logits, s, u);
        }
        let mut candidates = candidates(logits, s);
        if s.typical_p < 1.0 {
            keep_typical(&mut candidates, f64::from(s.typical_p));
        }
        let total: f64 = candidates.iter().map(|(_, p)| p).sum();
        draw(candidates.into_iter(), u * total).unwrap_or_else(|| argmax(logits))
    }
}

/// The factor of the logits; finite also for a temperature that is next to nothing.
fn sharpness(s: &Sampling) -> f32 {
    (1.0 / s.temperature).min(f32::MAX)
}

/// The first token with which the sum of weights passes `left`, or the last one.
fn draw(candidates: impl Iterator<Item = (u32, f64)>, mut left: f64) -> Option<u32> {
    let mut last = None;
    for (id, p) in candidates {
        left -= p;
        last = Some(id);
        if left < 0.0 {
            break;
        }
    }
    last
}

/// A draw from all tokens, or from the `top_k`: the tail is only sorted if the draw falls into it.
fn draw_uncut(logits: &[f32], s: &Sampling, u: f64) -> u32 {
    let (top, sharpness) = (logits::top(logits), sharpness(s));
    let weigh = |id: u32| (id, logits::weight(logits[id as usize], top, sharpness));
    let keep = if s.top_k == 0 { logits.len() } else { s.top_k };
    let total = match s.top_k {
        0 => logits::total(logits, top, sharpness),
        k => Descending::new(logits, k).map(|id| weigh(id).1).sum(),
    };
    draw(Descending::new(logits, keep).map(weigh), u * total).unwrap_or(0)
}

/// Tokens that may be drawn with their weights, the likeliest first.
fn candidates(logits: &[f32], s: &Sampling) -> Vec<(u32, f64)> {
    let (top, sharpness) = (logits::top(logits), sharpness(s));
    let weigh = |id: u32| logits::weight(logits[id as usize], top, sharpness);
    let keep = if s.top_k == 0 { logits.len() } else { s.top_k };
    // top_p counts in probabilities among the top_k.
    let total: f64 = match s.top_k {
        _ if s.top_p == 1.0 => f64::INFINITY,
        0 => logits::total(logits, top, sharpness),
        k => Descending::new(logits, k).map(weigh).sum(),
    };
    let (enough, floor) = (f64::from(s.top_p) * total, f64::from(s.min_p));
    let mut out = Vec::new();
    let mut sum = 0.0;
    for id in Descending::new(logits, keep) {
        let w = weigh(id);
        if !out.is_empty() && (sum >= enough || w < floor) {
            break;
        }
        sum += w;
        out.push((id, w));
    }
    out
}

/// Keeps the smallest set of candidates, the most typical first, whose probabilities reach `mass`.
fn keep_typical(candidates: &mut Vec<(u32, f64)>, mass: f64) {
    let total: f64 = candidates.iter().map(|c| c.1).sum();
    let information = |w: f64| -(w / total).ln();
    let entropy: f64 =
        (candidates.iter().filter(|c| c.1 > 0.0)).map(|c| c.1 / total * information(c.1)).sum();
    // Stable: among equally typical ones the likeliest stays first.
    candidates.sort_by(|a, b| {
        let far = |w: f64| (information(w) - entropy).abs();
        far(a.1).total_cmp(&far(b.1))
    });
    let mut sum = 0.0;
    let enough = candidates.iter().position(|c| {
        sum += c.1 / total;
        sum >= mass
    });
    candidates.truncate(enough.map_or(candidates.len(), |i| i + 1));
}

/// The log-probabilities of a row of logits, as the model gives them: before bias, penalties and
/// temperature.
pub struct LogProbabilities<'a> {
    logits: &'a [f32],
    /// The logarithm of the sum of exponentials.
    log_sum: f64,
}

impl<'a> LogProbabilities<'a> {
    /// Of `logits`.
    pub fn new(logits: &'a [f32]) -> Self {
        let top = logits::top(logits);
        let sum = logits::total(logits, top, 1.0);
        Self { logits, log_sum: f64::from(top) + sum.ln() }
    }

    /// Of one token.
    pub fn of(&self, id: u32) -> f32 {
        (f64::from(self.logits[id as usize]) - self.log_sum) as f32
    }

    /// The `count` likeliest tokens, the likeliest first.
    pub fn top(&self, count: usize) -> Vec<(u32, f32)> {
        Descending::new(self.logits, count).map(|id| (id, self.of(id))).collect()
    }
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

    #[test]
    fn typical_sampling_keeps_what_the_definition_keeps() {
        // Probabilities 0.5, 0.2, 0.2, 0.1: the entropy is 1.22 nats; informations are 0.69, 1.61,
        // 1.61, 2.30, so 0.2 is nearest (0.39), then 0.5 (0.53), then 0.1 (1.08).
        let logits = [0.5f32, 0.2, 0.2, 0.1].map(f32::ln);
        let kept = |typical_p| {
            let s = Sampling { temperature: 1.0, typical_p, ..Sampling::default() };
            let counts = draw(s, &logits, 4000);
            (0..4).filter(|i| counts[*i] > 0.0).collect::<Vec<_>>()
        };
        assert_eq!(kept(0.1), [1]);
        assert_eq!(kept(0.3), [1, 2]);
        assert_eq!(kept(0.5), [0, 1, 2]);
        assert_eq!(kept(0.95), [0, 1, 2, 3]);
    }

    #[test]
    fn penalties_count_the_answer_and_bias_comes_first() {
        let s = Sampling { frequency_penalty: 0.4, presence_penalty: 0.3, ..Sampling::default() };
        let mut sampler = Sampler::new(s).unwrap_or_else(|e| panic!("{e}"));
        // The prompt is not counted: token 0 wins once (5), then has 4.3, then 3.9.
        let ids: Vec<u32> = (0..4).map(|_| sampler.sample(&mut [5.0, 4.1, 0.0], &[0, 0])).collect();
        assert_eq!(ids, [0, 0, 1, 0]);
        let s = Sampling { logit_bias: vec![(2, 9.0), (77, 1.0)], ..Sampling::default() };
        let mut sampler = Sampler::new(s).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(sampler.sample(&mut [5.0, 4.1, 0.0], &[]), 2);
    }

    #[test]
    fn log_probabilities_are_those_of_the_softmax() {
        let logits = [1.0, 3.0, 2.0, -1.0, 3.0];
        let log = LogProbabilities::new(&logits);
        for (id, p) in softmax(&logits, 1.0).into_iter().enumerate() {
            assert!((f64::from(log.of(id as u32)) - p.ln()).abs() < 1e-6);
        }
        assert_eq!(log.top(3).iter().map(|t| t.0).collect::<Vec<_>>(), [1, 4, 2]);
    }
}
