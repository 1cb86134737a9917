//! Counters and histograms in Prometheus' text format.
//!
//! <https://prometheus.io/docs/instrumenting/exposition_formats/>

use crate::registry::Registry;
use lapidary_engine::Stats;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// Upper bounds of the histograms, in seconds.
const BOUNDS: [f64; 16] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];

/// A histogram of durations.
#[derive(Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanoseconds: AtomicU64,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let bucket = BOUNDS.partition_point(|b| *b < seconds);
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.nanoseconds.fetch_add(time.as_nanos() as u64, Relaxed);
    }

    fn write(&self, out: &mut String, name: &str, help: &str) {
        head(out, name, "histogram", help);
        let mut sum = 0;
        for (i, bucket) in self.buckets.iter().enumerate() {
            sum += bucket.load(Relaxed);
            let bound = BOUNDS.get(i).map_or("+Inf".to_owned(), f64::to_string);
            line(out, &format!("{name}_bucket{{le=\"{bound}\"}}"), sum);
        }
        line(out, &format!("{name}_sum"), self.nanoseconds.load(Relaxed) as f64 / 1e9);
        line(out, &format!("{name}_count"), sum);
    }
}

fn head(out: &mut String, name: &str, kind: &str, help: &str) {
    // Writing to a string can't fail.
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} {kind}");
}

fn line(out: &mut String, name: &str, value: impl std::fmt::Display) {
    let _ = writeln!(out, "{name} {value}");
}

/// What the server counts itself.
#[derive(Default)]
pub struct Metrics {
    /// Requests by dialect and status.
    requests: Mutex<BTreeMap<(&'static str, u16), u64>>,
    /// Requests that are being answered.
    pub active: AtomicU64,
    /// Requests refused for want of a place, by rate limits, or without a key.
    pub refused: AtomicU64,
    /// Time from a request to its head, and to its end for those that don't stream.
    pub duration: Histogram,
    first: Histogram,
    between: Histogram,
}

impl Metrics {
    /// A request was answered.
    pub fn request(&self, dialect: &'static str, status: u16, time: Duration) {
        self.duration.observe(time);
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((dialect, status)).or_default() += 1;
    }

    /// A token came so long after the one before, or after the request.
    pub fn token(&self, after: Duration, first: bool) {
        if first { self.first.observe(after) } else { self.between.observe(after) }
    }

    /// All of it as text.
    pub fn text(&self, registry: &Registry) -> String {
        let mut out = String::new();
        head(&mut out, "lapidary_requests_total", "counter", "Requests by dialect and status.");
        for ((dialect, status), n) in
            self.requests.lock().unwrap_or_else(PoisonError::into_inner).iter()
        {
            let labels = format!("dialect=\"{dialect}\",status=\"{status}\"");
            line(&mut out, &format!("lapidary_requests_total{{{labels}}}"), n);
        }
        let mut own = |name: &str, kind: &str, help: &str, value: &AtomicU64| {
            head(&mut out, name, kind, help);
            line(&mut out, name, value.load(Relaxed));
        };
        own("lapidary_requests_active", "gauge", "Requests being answered.", &self.active);
        own(
            "lapidary_requests_refused_total",
            "counter",
            "Requests refused by keys, rate limits or for want of a place.",
            &self.refused,
        );
        let h = &self.duration;
        h.write(&mut out, "lapidary_request_seconds", "Time to the head of a response.");
        let h = &self.first;
        h.write(
            &mut out,
            "lapidary_time_to_first_token_seconds",
            "Time to an answer's first token.",
        );
        let h = &self.between;
        h.write(&mut out, "lapidary_inter_token_seconds", "Time between the tokens of an answer.");
        engines(&mut out, &registry.loaded_stats());
        out
    }
}

/// The figures of an engine: name, type, meaning, value.
type Figure = (&'static str, &'static str, &'static str, fn(&Stats) -> u64);

const FIGURES: [Figure; 13] = [
    ("queue", "gauge", "Requests that wait for the engine.", |s| s.queued as u64),
    ("batch", "gauge", "Requests that are computed together.", |s| s.running as u64),
    ("kv_used_bytes", "gauge", "Keys and values of running requests.", |s| s.kv_used as u64),
    ("kv_cached_bytes", "gauge", "Kept for prefixes to come.", |s| s.kv_cached as u64),
    ("kv_planned_bytes", "gauge", "Planned for keys and values.", |s| s.kv_total as u64),
    ("steps_total", "counter", "Passes of the model.", |s| s.steps),
    ("prefill_tokens_total", "counter", "Tokens of prompts computed.", |s| s.prefill_tokens),
    ("reused_tokens_total", "counter", "Tokens of prompts found in the cache.", |s| {
        s.reused_tokens
    }),
    ("prefix_hits_total", "counter", "Requests that found a prefix.", |s| s.prefix_hits),
    ("decode_tokens_total", "counter", "Tokens of answers.", |s| s.decode_tokens),
    ("refused_total", "counter", "Requests that the engine refused.", |s| s.refused),
    ("cancelled_total", "counter", "Requests that were cancelled.", |s| s.cancelled),
    ("preemptions_total", "counter", "Times that a request lost its memory.", |s| s.preemptions),
];

fn engines(out: &mut String, stats: &[(String, Stats)]) {
    for (name, kind, help, value) in FIGURES {
        let name = format!("lapidary_engine_{name}");
        head(out, &name, kind, help);
        for (model, stats) in stats {
            line(out, &format!("{name}{{model=\"{model}\"}}"), value(stats));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_add_up() {
        let h = Histogram::default();
        for ms in [1, 1, 3, 700, 500_000] {
            h.observe(Duration::from_millis(ms));
        }
        let mut out = String::new();
        h.write(&mut out, "x", "help");
        assert!(out.contains("x_bucket{le=\"0.001\"} 2\nx_bucket{le=\"0.0025\"} 2\n"), "{out}");
        assert!(out.contains("x_bucket{le=\"0.5\"} 3\nx_bucket{le=\"1\"} 4\n"), "{out}");
        assert!(out.contains("x_bucket{le=\"+Inf\"} 5\nx_sum 500.705\nx_count 5\n"), "{out}");
    }
}
