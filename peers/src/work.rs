//! The rows of the table: what is timed, and how each program does it.

use crate::candle::Candle;
use crate::llama::{Entry, Llama};
use std::time::Instant;

/// What is timed.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// As `--row` takes it.
    pub name: &'static str,
    /// As the table shows it.
    pub title: &'static str,
    /// Tokens in each sequence's cache before.
    pub depth: usize,
    /// Tokens of a prompt, computed in one pass.
    pub prompt: usize,
    /// Tokens decoded one by one.
    pub generate: usize,
    /// Sequences.
    pub sequences: usize,
    /// Threads where the row fixes them.
    pub threads: Option<usize>,
    /// The ratio to reach.
    pub goal: f64,
}

const BASE: Work = Work {
    name: "",
    title: "",
    depth: 0,
    prompt: 0,
    generate: 0,
    sequences: 1,
    threads: None,
    goal: 1.0,
};

/// All rows. `first` and `memory` are not tokens for each second.
pub const ROWS: [Work; 8] = [
    Work { name: "prefill", title: "prefill 512", prompt: 512, goal: 2.0, ..BASE },
    Work { name: "decode", title: "decode 128", generate: 128, ..BASE },
    Work {
        name: "decode-1",
        title: "decode 128, 1 thread",
        generate: 128,
        threads: Some(1),
        goal: 1.3,
        ..BASE
    },
    Work {
        name: "depth",
        title: "decode 64 after 4096",
        depth: 4096,
        generate: 64,
        goal: 1.2,
        ..BASE
    },
    Work {
        name: "together-4",
        title: "4 sequences together",
        depth: 32,
        generate: 64,
        sequences: 4,
        goal: 1.5,
        ..BASE
    },
    Work {
        name: "together-16",
        title: "16 sequences together",
        depth: 32,
        generate: 32,
        sequences: 16,
        goal: 2.0,
        ..BASE
    },
    Work { name: "first", title: "start to first token, s", goal: 0.5, ..BASE },
    Work { name: "memory", title: "peak memory, MB", prompt: 512, generate: 16, ..BASE },
];

/// The prompt of the row `first`.
pub const PROMPT: &str = "Once upon a time there was a stone that wanted to be cut.";

/// Some id for position `i`, the same in every program.
pub fn id(i: usize, vocab: usize) -> u32 {
    ((i * 7919 + 13) % vocab) as u32
}

impl Work {
    /// Positions that a sequence needs.
    fn tokens(&self) -> usize {
        self.depth + self.prompt + self.generate
    }

    /// Tokens for each second, in llama.cpp.
    pub fn llama(&self, file: &str, threads: usize) -> Result<f64, String> {
        let mut llama = Llama::load(file, threads, self.tokens().max(64), self.sequences)?;
        let vocab = llama.vocab();
        let entries = |from: usize, to: usize| -> Vec<Entry> {
            (0..self.sequences)
                .flat_map(|s| (from..to).map(move |i| (i, s)))
                .map(|(i, s)| (id(i + 31 * s, vocab), i, s, i + 1 == to))
                .collect()
        };
        // A short pass wakes the threads and touches the weights.
        llama.decode(&entries(0, 16))?;
        llama.clear();
        if self.depth > 0 {
            llama.decode(&entries(0, self.depth))?;
        }
        let start = Instant::now();
        if self.prompt > 0 {
            llama.decode(&entries(self.depth, self.depth + self.prompt))?;
            llama.logits(self.prompt - 1)?;
        }
        let prefill = start.elapsed();
        let start = Instant::now();
        for i in 0..self.generate {
            let at = self.depth + self.prompt + i;
            llama.decode(&entries(at, at + 1))?;
            llama.logits(0)?;
        }
        Ok(self.rate(prefill.as_secs_f64(), start.elapsed().as_secs_f64()))
    }

    /// The same in candle, which has no batches of sequences.
    pub fn candle(&self, file: &str, vocab: usize) -> candle_core::Result<f64> {
        let mut candle = Candle::load(file)?;
        let ids =
            |from: usize, to: usize| -> Vec<u32> { (from..to).map(|i| id(i, vocab)).collect() };
        candle.extend(&ids(0, 16))?;
        candle.clear();
        if self.depth > 0 {
            candle.extend(&ids(0, self.depth))?;
        }
        let start = Instant::now();
        if self.prompt > 0 {
            candle.extend(&ids(self.depth, self.depth + self.prompt))?;
        }
        let prefill = start.elapsed();
        let start = Instant::now();
        for i in 0..self.generate {
            let at = self.depth + self.prompt + i;
            candle.extend(&ids(at, at + 1))?;
        }
        Ok(self.rate(prefill.as_secs_f64(), start.elapsed().as_secs_f64()))
    }

    fn rate(&self, prefill: f64, decode: f64) -> f64 {
        match self.generate {
            0 => (self.prompt * self.sequences) as f64 / prefill,
            n => (n * self.sequences) as f64 / decode,
        }
    }
}

/// llama.cpp from the start of the process to the first token.
pub fn llama_first(file: &str, threads: usize) -> Result<u32, String> {
    let mut llama = Llama::load(file, threads, 256, 1)?;
    let ids = llama.tokenize(PROMPT)?;
    let last = ids.len() - 1;
    let entries: Vec<Entry> =
        ids.iter().enumerate().map(|(i, id)| (*id, i, 0, i == last)).collect();
    llama.decode(&entries)?;
    let logits = llama.logits(last)?;
    let best = (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b]));
    Ok(best.unwrap_or(0) as u32)
}

/// The most memory that this process has had, in bytes (Linux).
pub fn peak_resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"));
    let kib = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse::<u64>().ok());
    kib.unwrap_or(0) * 1024
}
