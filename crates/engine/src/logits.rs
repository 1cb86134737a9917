//! Passes over a row of logits, which may be a quarter of a million long: its largest, its
//! likeliest, the sum of its exponentials. Only operations with one rounding, in a fixed order: the
//! system's `exp` differs from processor to processor.

/// Elements that are taken together.
const LANES: usize = 16;
/// How many of the likeliest tokens are sorted before it is known that more are needed.
const FIRST: usize = 256;

/// The largest, of lanes of elements; NaN never wins.
fn top_of(values: &[f32]) -> f32 {
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let (chunks, rest) = values.as_chunks::<LANES>();
    let larger = |a: f32, b: f32| if b > a { b } else { a };
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(m, v)| *m = larger(*m, *v));
    }
    lanes.iter().chain(rest).fold(f32::NEG_INFINITY, |a, b| larger(a, *b))
}

/// The largest logit.
pub(crate) fn top(logits: &[f32]) -> f32 {
    top_of(logits)
}

/// The likeliest token, the lowest id among equals; NaN never wins.
pub(crate) fn argmax(logits: &[f32]) -> u32 {
    let top = top_of(logits);
    logits.iter().position(|l| *l == top && top > f32::NEG_INFINITY).unwrap_or(0) as u32
}

/// `e^x` for x of at most 0, to about two units in the last place; 0 below -87, and for NaN.
/// (Cephes' polynomial, <https://netlib.org/cephes/>.)
#[inline(always)]
#[allow(clippy::excessive_precision)]
fn exp(x: f32) -> f32 {
    /// Adding it rounds to a whole number, whose bits are the last ones.
    const MAGIC: f32 = 12_582_912.0;
    let clamped = if x > -87.0 { x } else { -87.0 };
    let shifted = clamped * std::f32::consts::LOG2_E + MAGIC;
    let k = shifted - MAGIC;
    let r = clamped - k * 0.693_359_375 + k * 2.121_944_4e-4;
    let mut p = 1.987_569_15e-4;
    for c in [1.398_199_95e-3, 8.333_451_9e-3, 4.166_579_6e-2, 1.666_666_55e-1, 5.000_000_1e-1] {
        p = p * r + c;
    }
    let y = p * r * r + r + 1.0;
    let power = shifted.to_bits().wrapping_sub(MAGIC.to_bits()).wrapping_add(127) << 23;
    let y = y * f32::from_bits(power);
    if x > -87.0 { y } else { 0.0 }
}

/// What a logit weighs beside the largest one: `e^((logit - top) * sharpness)`.
#[inline(always)]
pub(crate) fn weight(logit: f32, top: f32, sharpness: f32) -> f64 {
    f64::from(exp((logit - top) * sharpness))
}

/// The sum of all weights.
pub(crate) fn total(logits: &[f32], top: f32, sharpness: f32) -> f64 {
    let mut sums = [0.0f64; LANES];
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        let weights = chunk.map(|l| exp((l - top) * sharpness));
        sums.iter_mut().zip(weights).for_each(|(s, w)| *s += f64::from(w));
    }
    let rest: f64 = rest.iter().map(|l| weight(*l, top, sharpness)).sum();
    sums.iter().sum::<f64>() + rest
}

/// Tokens from the likeliest on, the lowest id first among equals. No more of them are sorted than
/// are asked for, roughly.
pub(crate) struct Descending<'a> {
    logits: &'a [f32],
    most: usize,
    sorted: Vec<u32>,
    next: usize,
}

impl<'a> Descending<'a> {
    /// The `most` likeliest tokens.
    pub fn new(logits: &'a [f32], most: usize) -> Self {
        Self { logits, most: most.min(logits.len()), sorted: Vec::new(), next: 0 }
    }
}

impl Iterator for Descending<'_> {
    type Item = u32;

    fn next(&mut self) -> Option<u32> {
        if self.next == self.sorted.len() {
            if self.next == self.most {
                return None;
            }
            let count = FIRST.max(8 * self.next).min(self.most);
            self.sorted = likeliest(self.logits, count);
        }
        self.next += 1;
        self.sorted.get(self.next - 1).copied()
    }
}

/// A number that sorts by logit and, the other way round, by id; NaN comes last.
fn key(id: usize, logit: f32) -> u64 {
    let bits = logit.to_bits();
    let order = if bits >> 31 == 1 { !bits } else { bits | 1 << 31 };
    u64::from(if logit.is_nan() { 0 } else { order }) << 32 | u64::from(!(id as u32))
}

/// The `count` likeliest ids in order.
fn likeliest(logits: &[f32], count: usize) -> Vec<u32> {
    const BLOCK: usize = 64;
    // So many blocks as ids are wanted have their largest at or above this; what is below it is not
    // among the likeliest.
    let mut tops: Vec<f32> = logits.chunks(BLOCK).map(top_of).collect();
    let floor = if count < tops.len() {
        *tops.select_nth_unstable_by(count, |a, b| b.total_cmp(a)).1
    } else {
        f32::NEG_INFINITY
    };
    let mut keys: Vec<u64> =
        Vec::with_capacity(if count < tops.len() { 4 * count } else { logits.len() });
    for (block, values) in logits.chunks(BLOCK).enumerate() {
        let ids = values.iter().enumerate().filter(|(_, l)| **l >= floor || l.is_nan());
        keys.extend(ids.map(|(i, l)| key(block * BLOCK + i, *l)));
    }
    if count < keys.len() {
        keys.select_nth_unstable_by(count, |a, b| b.cmp(a));
        keys.truncate(count);
    }
    keys.sort_unstable_by(|a, b| b.cmp(a));
    keys.into_iter().map(|k| !(k as u32)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn exponentials_are_those_of_the_system() {
        let mut worst: f64 = 0.0;
        for i in 0..200_000 {
            let x = -(i as f32) * 4.35e-4;
            let want = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - want).abs() / want);
        }
        assert!(worst < 2e-7, "{worst}");
        assert_eq!(
            [exp(0.0), exp(-88.0), exp(f32::NEG_INFINITY), exp(f32::NAN)],
            [1.0, 0.0, 0.0, 0.0]
        );
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn descending_is_a_stable_sort(
            values in proptest::collection::vec(-20i32..20, 1..6000),
            most in 1usize..7000,
        ) {
            let logits: Vec<f32> = values.iter().map(|v| *v as f32 / 2.0).collect();
            let mut want: Vec<u32> = (0..logits.len() as u32).collect();
            want.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
            want.truncate(most);
            prop_assert_eq!(argmax(&logits), want[0]);
            prop_assert_eq!(top(&logits), logits[want[0] as usize]);
            prop_assert_eq!(Descending::new(&logits, most).collect::<Vec<_>>(), want);
        }

        #[test]
        fn totals_are_those_of_f64(values in proptest::collection::vec(-30.0f32..30.0, 1..700)) {
            let top = top(&values);
            let want: f64 = values.iter().map(|v| ((f64::from(*v) - f64::from(top)) * 0.7).exp()).sum();
            let got = total(&values, top, 0.7);
            prop_assert!((got - want).abs() < 3e-6 * want, "{} {}", got, want);
        }
    }

    #[test]
    fn no_logit_that_is_not_a_number_is_chosen() {
        let mut logits = vec![f32::NAN; 300];
        assert_eq!(argmax(&logits), 0);
        logits[77] = -5.0;
        logits[200] = f32::NEG_INFINITY;
        assert_eq!(argmax(&logits), 77);
        assert_eq!(Descending::new(&logits, 2).collect::<Vec<_>>(), [77, 200]);
    }
}
