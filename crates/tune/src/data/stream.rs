//! Sources mixed by weight, and their examples packed into the micro-batches of each step.

use super::Example;
use super::encode::{Encoder, Unfit};
use super::rng::Rng;
use super::source::{Source, SourceSpec, SourceState};
use crate::{Pair, Sequence};
use lapidary_formats::{FormatError, Result};
use serde::{Deserialize, Serialize};
use std::collections::VecDeque;

/// How batches are made.
#[derive(Debug, Clone)]
pub struct StreamSpec {
    /// Sources, each with its weight: the share of the documents that are drawn from it.
    pub sources: Vec<(SourceSpec, f64)>,
    /// Tokens of one step.
    pub batch_tokens: usize,
    /// Tokens that are computed at once.
    pub micro_tokens: usize,
    /// Whether the examples are pairs for DPO.
    pub pairs: bool,
    /// The first unfit example ends the run.
    pub strict: bool,
    /// The order of everything.
    pub seed: u64,
}

/// What has gone through.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Documents that became sequences.
    pub documents: u64,
    /// Tokens in batches.
    pub tokens: u64,
    /// Documents that were left out because they are longer than a sequence.
    pub too_long: u64,
    /// Documents that were left out for another reason.
    pub unfit: u64,
    /// Records that could not be read.
    pub broken: u64,
}

/// Something that was left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// How many of its kind there have been.
    pub count: u64,
    /// What it was.
    pub text: String,
}

/// Where a stream stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StreamState {
    sources: Vec<SourceState>,
    over: Vec<bool>,
    rng: Rng,
    waiting: VecDeque<Example>,
    counts: Counts,
}

/// An endless (or, with epochs, a finite) row of steps.
pub struct Stream {
    spec: StreamSpec,
    sources: Vec<Source>,
    /// Sources whose epochs are over.
    over: Vec<bool>,
    encoder: Encoder,
    rng: Rng,
    /// Examples for the next step.
    waiting: VecDeque<Example>,
    counts: Counts,
    news: Vec<Notice>,
}

impl Stream {
    /// A stream at its beginning.
    ///
    /// # Errors
    /// If a source can't be opened.
    pub fn new(spec: StreamSpec, encoder: Encoder) -> Result<Self> {
        let sources = (spec.sources.iter().enumerate())
            .map(|(i, (source, _))| Source::new(source.clone(), spec.seed, i as u64))
            .collect::<Result<Vec<_>>>()?;
        Ok(Self {
            over: vec![false; sources.len()],
            sources,
            encoder,
            rng: Rng::new(spec.seed, u64::MAX - 1),
            waiting: VecDeque::new(),
            counts: Counts::default(),
            news: Vec::new(),
            spec,
        })
    }

    /// The next step's micro-batches of sequences; `None` when all epochs are over.
    ///
    /// # Errors
    /// If the data can't be read, is of another kind, or, where the stream is strict, is unfit.
    pub fn next_step(&mut self) -> Result<Option<Vec<Vec<Sequence>>>> {
        let one = |e: Example| match e {
            Example::One(one) => one,
            Example::Pair(pair) => pair.chosen,
        };
        Ok(self.pack()?.map(|m| m.into_iter().map(|b| b.into_iter().map(one).collect()).collect()))
    }

    /// The next step's micro-batches of pairs.
    ///
    /// # Errors
    /// As [`Stream::next_step`].
    pub fn next_pairs(&mut self) -> Result<Option<Vec<Vec<Pair>>>> {
        let pair = |e: Example| match e {
            Example::Pair(pair) => Some(pair),
            Example::One(_) => None,
        };
        let pack = self.pack()?;
        Ok(pack.map(|m| m.into_iter().map(|b| b.into_iter().filter_map(pair).collect()).collect()))
    }

    /// Steps until all epochs are over, counted by reading everything.
    ///
    /// # Errors
    /// As [`Stream::next_step`].
    pub fn count_steps(mut self) -> Result<u64> {
        let mut steps = 0;
        while self.pack()?.is_some() {
            steps += 1;
            self.news.clear();
        }
        Ok(steps)
    }

    /// What has gone through.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Epochs that are over, of the source that is furthest.
    pub fn epoch(&self) -> u32 {
        self.sources.iter().map(Source::epoch).max().unwrap_or(0)
    }

    /// What was left out since this was last asked.
    pub fn take_news(&mut self) -> Vec<Notice> {
        std::mem::take(&mut self.news)
    }

    /// Where it stands.
    pub fn state(&self) -> StreamState {
        StreamState {
            sources: self.sources.iter().map(Source::state).collect(),
            over: self.over.clone(),
            rng: self.rng.clone(),
            waiting: self.waiting.clone(),
            counts: self.counts,
        }
    }

    /// Goes to where a stream of the same data stood.
    ///
    /// # Errors
    /// If the data is not the same any more.
    pub fn restore(&mut self, state: &StreamState) -> Result<()> {
        if state.sources.len() != self.sources.len() {
            let (was, is) = (state.sources.len(), self.sources.len());
            let problem = format!("the checkpoint was written with {was} sources, here are {is}");
            return Err(FormatError::new("the configuration", "data.source", problem));
        }
        for (source, state) in self.sources.iter_mut().zip(&state.sources) {
            source.restore(state)?;
        }
        self.over.clone_from(&state.over);
        self.rng = state.rng.clone();
        self.waiting = state.waiting.clone();
        self.counts = state.counts;
        Ok(())
    }

    /// Takes examples until the step is full, and cuts it into micro-batches.
    fn pack(&mut self) -> Result<Option<Vec<Vec<Example>>>> {
        let mut step = Vec::new();
        let mut tokens = 0;
        while self.fill_waiting()? {
            let next = self.waiting.front().map_or(0, Example::tokens);
            if !step.is_empty() && tokens + next > self.spec.batch_tokens {
                break;
            }
            tokens += next;
            step.extend(self.waiting.pop_front());
        }
        self.counts.tokens += tokens as u64;
        let mut micro: Vec<Vec<Example>> = Vec::new();
        let mut room = 0;
        for example in step {
            let tokens = example.tokens();
            match micro.last_mut() {
                Some(last) if tokens <= room => last.push(example),
                _ => {
                    room = self.spec.micro_tokens.max(tokens);
                    micro.push(vec![example]);
                }
            }
            room -= tokens;
        }
        Ok((!micro.is_empty()).then_some(micro))
    }

    /// Makes sure that an example waits; false when all is over.
    fn fill_waiting(&mut self) -> Result<bool> {
        while self.waiting.is_empty() {
            let Some(index) = self.draw() else { return Ok(false) };
            let document = self.sources[index].next_document()?;
            for broken in self.sources[index].take_broken() {
                self.counts.broken += 1;
                let text = format!("left out: {}", broken.error);
                self.news.push(Notice { count: self.counts.broken, text });
            }
            let Some(document) = document else {
                self.over[index] = true;
                continue;
            };
            match self.encoder.encode(&document) {
                Ok(examples) => {
                    self.check_kind(index, &examples)?;
                    self.counts.documents += 1;
                    self.waiting.extend(examples);
                }
                Err(unfit) => self.leave_out(index, unfit)?,
            }
        }
        Ok(true)
    }

    /// A source by weight among those that are not over.
    fn draw(&mut self) -> Option<usize> {
        let weight = |i: usize| if self.over[i] { 0.0 } else { self.spec.sources[i].1 };
        let total: f64 = (0..self.sources.len()).map(weight).sum();
        let mut left = self.rng.unit() * total;
        let alive = (0..self.sources.len()).filter(|i| weight(*i) > 0.0);
        let mut last = None;
        for i in alive {
            last = Some(i);
            left -= weight(i);
            if left < 0.0 {
                break;
            }
        }
        last
    }

    fn source_name(&self, index: usize) -> String {
        let paths = &self.spec.sources[index].0.paths;
        paths.first().map(|p| p.display().to_string()).unwrap_or_default()
    }

    fn check_kind(&self, index: usize, examples: &[Example]) -> Result<()> {
        let wrong = examples.iter().any(|e| matches!(e, Example::Pair(_)) != self.spec.pairs);
        if !wrong {
            return Ok(());
        }
        let problem = if self.spec.pairs {
            "DPO learns from chosen and rejected answers; this source has an example without"
        } else {
            "chosen and rejected answers are learnt by DPO alone (method = \"dpo\")"
        };
        Err(FormatError::new(self.source_name(index), "", problem))
    }

    fn leave_out(&mut self, index: usize, unfit: Unfit) -> Result<()> {
        let (count, problem) = match unfit {
            Unfit::TooLong(tokens) => {
                self.counts.too_long += 1;
                let problem = format!("an example of {tokens} tokens is longer than a sequence");
                (self.counts.too_long, problem)
            }
            Unfit::Problem(problem) => {
                self.counts.unfit += 1;
                (self.counts.unfit, problem)
            }
        };
        let error = FormatError::new(self.source_name(index), "", problem);
        if self.spec.strict {
            return Err(error);
        }
        self.news.push(Notice { count, text: format!("left out: {error}") });
        // An endless source of nothing but unfit examples would never end.
        let out = self.counts.too_long + self.counts.unfit;
        if self.counts.documents == 0 && out >= 100_000 {
            return Err(error);
        }
        Ok(())
    }
}
