//! The fields of chat completions and of completions that say how tokens are chosen.

use crate::failure::Failure;
use crate::job::{Job, MOST_CHOICES, OneOrMany, Prompt, Settings, stops, within};

/// A job with these settings.
///
/// # Errors
/// If a value is out of its range.
pub fn job(
    prompt: Prompt,
    settings: Settings,
    stop: &Option<OneOrMany<String>>,
    n: Option<u64>,
) -> Result<Job, Failure> {
    Ok(Job {
        settings,
        stop: stops("stop", stop.clone())?,
        choices: within("n", n, 1, MOST_CHOICES as u64)?.unwrap_or(1),
        ..Job::new(prompt)
    })
}

/// Writes down a request with its own fields and those that both endpoints have. Not
/// `#[serde(flatten)]`: errors in flattened fields would not say which.
macro_rules! sampled {
    ($(#[$attribute:meta])* pub struct $name:ident { $($own:tt)* }) => {
        $(#[$attribute])*
        pub struct $name {
            $($own)*
            /// 0 takes the likeliest token.
            pub temperature: Option<f32>,
            /// Only the likeliest tokens whose probabilities reach this sum.
            pub top_p: Option<f32>,
            /// Only the likeliest so many tokens.
            pub top_k: Option<usize>,
            /// Only tokens at least this times as likely as the likeliest.
            pub min_p: Option<f32>,
            /// Only tokens whose information is near what is expected.
            pub typical_p: Option<f32>,
            /// Divides the logits of tokens that occurred.
            pub repetition_penalty: Option<f32>,
            /// Taken from logits as often as their token occurred in the answer.
            pub frequency_penalty: Option<f32>,
            /// Taken from logits whose token occurred in the answer.
            pub presence_penalty: Option<f32>,
            /// Added to the logits of tokens.
            pub logit_bias: Option<std::collections::HashMap<String, f32>>,
            /// The same seed, the same answer.
            pub seed: Option<i64>,
            /// Strings that end the answer.
            pub stop: Option<$crate::job::OneOrMany<String>>,
            /// Answers to each prompt.
            pub n: Option<u64>,
        }

        impl $name {
            /// A job with what these fields say.
            fn sampled(&self, prompt: $crate::job::Prompt) -> Result<$crate::job::Job, $crate::failure::Failure> {
                let settings = $crate::job::Settings {
                    temperature: self.temperature,
                    top_k: self.top_k,
                    top_p: self.top_p,
                    min_p: self.min_p,
                    typical_p: self.typical_p,
                    repetition_penalty: self.repetition_penalty,
                    presence_penalty: self.presence_penalty,
                    frequency_penalty: self.frequency_penalty,
                    logit_bias: $crate::openai::content::logit_bias(&self.logit_bias)?,
                    seed: self.seed,
                };
                $crate::openai::sampling::job(prompt, settings, &self.stop, self.n)
            }
        }
    };
}
pub(crate) use sampled;
