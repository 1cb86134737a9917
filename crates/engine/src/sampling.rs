//! Settings of the sampler.

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
    /// Of the tokens left by the limits above, those whose information is closest to what is
    /// expected, until their probabilities reach this sum; 1: off (Locally Typical Sampling,
    /// <https://arxiv.org/abs/2202.00666>).
    pub typical_p: f32,
    /// Divides positive logits of tokens that have occurred, in the prompt or in the answer, and
    /// multiplies negative ones; 1: off (CTRL, <https://arxiv.org/abs/1909.05858>).
    pub repetition_penalty: f32,
    /// Taken from the logits of tokens that occur in the answer; 0: off.
    pub presence_penalty: f32,
    /// Taken from the logits of tokens as often as they occur in the answer; 0: off.
    pub frequency_penalty: f32,
    /// Added to the logits of these tokens, first of all. Ids beyond the vocabulary have no effect.
    pub logit_bias: Vec<(u32, f32)>,
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
            typical_p: 1.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            logit_bias: Vec::new(),
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
        let share = |p: f32| p > 0.0 && p <= 1.0;
        let any = |_: f32| true;
        let checks: [(_, _, &dyn Fn(f32) -> bool, _); 7] = [
            ("temperature", self.temperature, &|t| t >= 0.0, "0 or more"),
            ("top_p", self.top_p, &share, "above 0 and at most 1"),
            ("min_p", self.min_p, &|p| (0.0..=1.0).contains(&p), "between 0 and 1"),
            ("typical_p", self.typical_p, &share, "above 0 and at most 1"),
            ("repetition_penalty", self.repetition_penalty, &|r| r > 0.0, "above 0"),
            ("presence_penalty", self.presence_penalty, &any, "a finite number"),
            ("frequency_penalty", self.frequency_penalty, &any, "a finite number"),
        ];
        let biases = self.logit_bias.iter();
        let biases = biases.map(|(_, b)| ("logit_bias", *b, &any as _, "a finite number"));
        for (field, found, good, expected) in checks.into_iter().chain(biases) {
            if !(good(found) && found.is_finite()) {
                return Err(SamplingError { field, found, expected });
            }
        }
        Ok(())
    }

    /// The setting of this name that is a plain number, to be changed.
    pub fn number(&mut self, name: &str) -> Option<&mut f32> {
        Some(match name {
            "temperature" => &mut self.temperature,
            "top_p" => &mut self.top_p,
            "min_p" => &mut self.min_p,
            "typical_p" => &mut self.typical_p,
            "repetition_penalty" => &mut self.repetition_penalty,
            "presence_penalty" => &mut self.presence_penalty,
            "frequency_penalty" => &mut self.frequency_penalty,
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_named() {
        let bad = Sampling { top_p: 0.0, ..Sampling::default() };
        assert_eq!(bad.check().map_err(|e| e.field), Err("top_p"));
        let bad = Sampling { temperature: f32::NAN, ..Sampling::default() };
        assert_eq!(bad.check().map_err(|e| e.field), Err("temperature"));
        let bad = Sampling { logit_bias: vec![(3, f32::INFINITY)], ..Sampling::default() };
        assert_eq!(bad.check().map_err(|e| e.field), Err("logit_bias"));
    }
}
