//! The learning rate of each step.

use serde::{Deserialize, Serialize};

/// `[schedule]`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ScheduleConfig {
    /// Steps in all; or `epochs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<u64>,
    /// How often the data is read; or `steps`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub epochs: Option<u32>,
    /// The highest learning rate.
    pub lr: f64,
    /// Steps in which it rises from 0.
    #[serde(default)]
    pub warmup: u64,
    /// How it falls afterwards.
    #[serde(default)]
    pub kind: ScheduleKind,
    /// Where it ends, as a share of the highest.
    #[serde(default = "tenth")]
    pub end: f64,
    /// `wsd`: the share of the steps, at the end, in which it falls.
    #[serde(default = "fifth")]
    pub decay: f64,
}

/// `schedule.kind`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ScheduleKind {
    /// Half a cosine (<https://arxiv.org/abs/1608.03983>).
    #[default]
    Cosine,
    /// A straight line.
    Linear,
    /// Warm-up, stable, decay (<https://arxiv.org/abs/2404.06395>): a straight fall at the end.
    Wsd,
    /// Not at all.
    Constant,
}

fn tenth() -> f64 {
    0.1
}
fn fifth() -> f64 {
    0.2
}

impl ScheduleConfig {
    /// The first value out of its range.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        let bad = |key, problem: &str| Err((key, problem.to_owned()));
        match (self.steps, self.epochs) {
            (Some(0), _) => return bad("schedule.steps", "at least 1 was expected"),
            (_, Some(0)) => return bad("schedule.epochs", "at least 1 was expected"),
            (None, None) | (Some(_), Some(_)) => {
                return bad("schedule", "either steps or epochs was expected");
            }
            _ => {}
        }
        if !(self.lr > 0.0 && self.lr.is_finite()) {
            return bad("schedule.lr", "a number above 0 was expected");
        }
        if !(0.0..=1.0).contains(&self.end) || !(0.0..=1.0).contains(&self.decay) {
            let key =
                if (0.0..=1.0).contains(&self.end) { "schedule.decay" } else { "schedule.end" };
            return bad(key, "a share from 0 to 1 was expected");
        }
        Ok(())
    }

    /// The learning rate of step `step`, counted from 0, of `steps`.
    pub fn lr(&self, step: u64, steps: u64) -> f64 {
        if step < self.warmup {
            return self.lr * (step + 1) as f64 / self.warmup as f64;
        }
        let falling = match self.kind {
            ScheduleKind::Wsd => (steps as f64 * self.decay).round() as u64,
            _ => steps.saturating_sub(self.warmup),
        };
        let begun = steps.saturating_sub(falling);
        // 0 where the fall begins, 1 at the last step.
        let way = step.saturating_sub(begun) as f64 / falling.saturating_sub(1).max(1) as f64;
        let left = match self.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Cosine => 0.5 + 0.5 * (std::f64::consts::PI * way.min(1.0)).cos(),
            ScheduleKind::Linear | ScheduleKind::Wsd => 1.0 - way.min(1.0),
        };
        self.lr * (self.end + (1.0 - self.end) * left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: ScheduleKind) -> ScheduleConfig {
        ScheduleConfig {
            steps: Some(100),
            epochs: None,
            lr: 2.0,
            warmup: 10,
            kind,
            end: 0.1,
            decay: 0.2,
        }
    }

    #[test]
    fn rates_rise_stand_and_fall() {
        for kind in [ScheduleKind::Cosine, ScheduleKind::Linear, ScheduleKind::Wsd] {
            let s = schedule(kind);
            assert!((s.lr(0, 100) - 0.2).abs() < 1e-12 && (s.lr(9, 100) - 2.0).abs() < 1e-12);
            assert!((s.lr(10, 100) - 2.0).abs() < 1e-12, "{kind:?}");
            assert!((s.lr(99, 100) - 0.2).abs() < 1e-12, "{kind:?} {}", s.lr(99, 100));
            assert!((10..99).all(|i| s.lr(i + 1, 100) <= s.lr(i, 100)), "{kind:?}");
        }
        assert_eq!(schedule(ScheduleKind::Constant).lr(99, 100), 2.0);
        let wsd = schedule(ScheduleKind::Wsd);
        assert_eq!(wsd.lr(79, 100), 2.0);
        assert!(wsd.lr(90, 100) < 1.2);
        // Half way down the cosine and the line.
        let s = schedule(ScheduleKind::Linear);
        assert!((s.lr(10 + 89 / 2, 100) - 1.1).abs() < 0.02);
    }

    #[test]
    fn shares_out_of_range_are_named() {
        let bad = ScheduleConfig { epochs: Some(2), ..schedule(ScheduleKind::Wsd) };
        assert_eq!(bad.check().map_err(|e| e.0), Err("schedule"));
        let bad = ScheduleConfig { end: 1.5, ..schedule(ScheduleKind::Wsd) };
        assert_eq!(bad.check().map_err(|e| e.0), Err("schedule.end"));
        let bad = ScheduleConfig { lr: f64::NAN, ..schedule(ScheduleKind::Wsd) };
        assert_eq!(bad.check().map_err(|e| e.0), Err("schedule.lr"));
    }
}
