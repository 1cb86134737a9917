//! The tape: the operations once more, on a processor, recorded so that gradients can be pulled
//! back through them.
//!
//! A model is loaded through it like through any device: matrices and vectors become parameters,
//! or stay frozen beside low-rank adapters, and the model file can't tell. While it records, each
//! operation keeps what its backward needs, or, where a norm, an activation or a rotation made it of
//! something kept, what it is made of; [`Tape::backward`] uses the recording up.

mod backward;
mod forward;
mod mixing;
mod params;

pub use params::{Adapter, Gradient, LoraSpec, Param, Trained};

use crate::{
    Activation, AttentionSpec, Cpu, Isa, Pool, Rope, Routes, Tensor, Vector, Weight,
    weight::WeightData,
};
use lapidary_kernels::backward::{self as kernels, Gemm, Precision};
use lapidary_kernels::{Heap, Packed};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

/// Elements below which an operation is not worth a second thread.
const GRAIN: usize = 16 * 1024;

/// Which dropout masks hold, and whether adapters do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pass {
    /// Seed of the masks; `None`: nothing is dropped.
    pub dropout: Option<u64>,
    /// Compute as if there were no adapters.
    pub base: bool,
}

/// A device that records.
pub struct Tape {
    cpu: Cpu,
    gemm: Gemm,
    trained: Trained,
    weights: Vec<Kept>,
    params: Vec<Param>,
    adapters: Vec<Adapter>,
    nodes: Vec<Node>,
    recording: bool,
    pass: Pass,
    /// By the window, which tells kinds of layers apart.
    lent: HashMap<Option<usize>, Lent>,
}

/// A weight matrix of the model.
enum Kept {
    /// Parameter number so and so.
    Param(usize),
    /// Frozen, perhaps with a part of an adapter.
    Frozen { weight: Packed, adapter: Option<(usize, (usize, usize))> },
}

/// An operation that was recorded: the ids of the tensors, and what its backward needs.
enum Node {
    Embed { weight: usize, columns: Range<usize>, ids: Vec<u32>, scale: f32, out: u64 },
    Linear { weight: usize, bias: Option<usize>, x: Saved, lora: Option<Box<LoraNode>>, out: u64 },
    RmsNorm { x: Tensor, weight: Vector, eps: f32, out: u64 },
    LayerNorm { x: Tensor, weight: Vector, bias: Vector, eps: f32, out: u64 },
    Rope { x: u64, rope: Rope, positions: Arc<Vec<usize>>, out: u64 },
    Attend { q: Saved, k: Saved, v: Saved, of: Attended, out: u64 },
    AttendShared { q: Saved, of: Attended, out: u64 },
    Activation { x: Tensor, kind: Activation, out: u64 },
    Gated { gate: Tensor, up: Tensor, kind: Activation, out: u64 },
    Add { x: u64, y: u64, out: u64 },
    Scale { x: u64, factor: f32, out: u64 },
    Softcap { x: u64, cap: f32, y: Tensor },
    Gather { x: u64, of: usize, rows: Vec<u32>, out: u64 },
    Affine { x: Tensor, scale: Vector, out: u64 },
    Mix { x: u64, cols: usize, coefs: Mixed, width: usize, out: u64 },
    MatchRms { x: Tensor, like: Tensor, out: u64 },
    Sparsify { x: Tensor, deviations: f32, out: u64 },
    Route { scores: Tensor, k: usize, scale: Vector, out: u64 },
    GatedHalves { x: Tensor, kind: Activation, out: u64 },
    Experts { parts: Vec<Part>, routes: Routes, out: u64 },
}

/// What an expert made of the rows that go to it.
struct Part {
    expert: usize,
    made: Tensor,
}

/// The coefficients of a mixture.
enum Mixed {
    Same(Vec<f32>),
    /// Those of each row, and what was mixed.
    Each(Tensor, Tensor),
}

impl Node {
    /// The tensor that it made.
    fn out(&self) -> u64 {
        match self {
            Node::Embed { out, .. }
            | Node::Linear { out, .. }
            | Node::RmsNorm { out, .. }
            | Node::LayerNorm { out, .. }
            | Node::Rope { out, .. }
            | Node::Attend { out, .. }
            | Node::AttendShared { out, .. }
            | Node::Activation { out, .. }
            | Node::Gated { out, .. }
            | Node::Add { out, .. }
            | Node::Scale { out, .. }
            | Node::Gather { out, .. }
            | Node::Affine { out, .. }
            | Node::Mix { out, .. }
            | Node::MatchRms { out, .. }
            | Node::Sparsify { out, .. }
            | Node::Route { out, .. }
            | Node::GatedHalves { out, .. }
            | Node::Experts { out, .. } => *out,
            Node::Softcap { y, .. } => y.id(),
        }
    }
}

/// An operand that a backward asks for.
struct Saved {
    id: u64,
    cols: usize,
    /// `None`: made again from the recording, if it is asked for at all.
    kept: Option<Tensor>,
}

/// How rows attended.
struct Attended {
    spec: AttentionSpec,
    /// Rows of each sequence.
    spans: Vec<Range<usize>>,
    /// The layer whose keys and values they saw, by its place in a cache.
    layer: usize,
}

/// Keys and values that later layers may read: those of the last layer of its kind.
struct Lent {
    layer: usize,
    keys: Tensor,
    values: Tensor,
    /// What the readers have given back so far.
    gradients: Option<[Tensor; 2]>,
}

/// What the backward of an adapter needs beside its input.
struct LoraNode {
    adapter: usize,
    part: (usize, usize),
    /// `factor * A x`, of `x` after dropout.
    low: Tensor,
    dropout: Option<u64>,
}

impl Tape {
    /// A tape on `pool` that trains what `trained` says; matrices are multiplied in `precision`.
    pub fn new(isa: Isa, pool: Arc<Pool>, trained: Trained, precision: Precision) -> Self {
        let cpu = Cpu::new(isa, pool.clone(), crate::Precision::Exact);
        let gemm = Gemm::new(isa, pool).with_precision(precision).with_heap(cpu.heap().clone());
        Self {
            cpu,
            gemm,
            trained,
            weights: Vec::new(),
            params: Vec::new(),
            adapters: Vec::new(),
            nodes: Vec::new(),
            recording: false,
            pass: Pass::default(),
            lent: HashMap::new(),
        }
    }

    /// The threads.
    pub fn pool(&self) -> &Pool {
        self.gemm.pool()
    }

    /// The threads, to use while the parameters are borrowed.
    pub fn shared_pool(&self) -> Arc<Pool> {
        self.gemm.shared_pool()
    }

    /// Where its tensors, parameters and gradients are.
    pub fn heap(&self) -> &Arc<Heap> {
        self.cpu.heap()
    }

    /// The instruction set.
    pub fn isa(&self) -> Isa {
        self.gemm.isa()
    }

    /// What is trained.
    pub fn params(&self) -> &[Param] {
        &self.params
    }

    /// What is trained, to change.
    pub fn params_mut(&mut self) -> &mut [Param] {
        &mut self.params
    }

    /// The adapters.
    pub fn adapters(&self) -> &[Adapter] {
        &self.adapters
    }

    /// How the next operations compute.
    pub fn set_pass(&mut self, pass: Pass) {
        self.pass = pass;
    }

    /// Records from now on, or stops; what was recorded stays until it is used up.
    pub fn record(&mut self, on: bool) {
        self.recording = on;
    }

    /// Bytes of all tensors that are there, those of the recording too, parameters and gradients.
    pub fn live_bytes(&self) -> usize {
        4 * self.cpu.heap().live()
    }

    /// Zeros.
    pub fn zeros(&mut self, rows: usize, cols: usize) -> Tensor {
        let mut x = self.cpu.stale(rows, cols);
        x.data_mut().fill(0.0);
        x
    }

    /// The same values as `x`; memory is shared until one of them is written.
    pub fn share(&self, x: &Tensor) -> Tensor {
        x.share()
    }

    /// Adds the rows of `from` to the rows `rows` of `into`.
    pub fn scatter_add(&mut self, into: &mut Tensor, rows: &[u32], from: &Tensor) {
        let cols = into.cols();
        let data = into.data_mut();
        for (&r, from) in rows.iter().zip(from.data().chunks_exact(cols)) {
            let to = &mut data[r as usize * cols..(r as usize + 1) * cols];
            to.iter_mut().zip(from).for_each(|(t, f)| *t += f);
        }
    }

    /// The nats that each row of logits loses on its target; the logits become their gradient,
    /// each row times its weight.
    pub fn cross_entropy(
        &mut self,
        mut logits: Tensor,
        targets: &[u32],
        weights: &[f32],
    ) -> (Vec<f64>, Tensor) {
        let isa = self.isa();
        let cols = logits.cols();
        let mut nats = vec![0.0; targets.len()];
        let parts: Vec<_> = (logits.data_mut().chunks_exact_mut(cols).zip(&mut nats))
            .map(std::sync::Mutex::new)
            .collect();
        self.pool().run(parts.len(), &|i| {
            let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
            let (row, nats) = &mut *part;
            **nats = kernels::cross_entropy(isa, row, targets[i] as usize, weights[i]);
        });
        drop(parts);
        (nats, logits)
    }

    /// The logarithm of the probability that each row of logits gives its target.
    pub fn log_probabilities(&mut self, mut logits: Tensor, targets: &[u32]) -> Vec<f64> {
        let isa = self.isa();
        let cols = logits.cols();
        let mut out = vec![0.0; targets.len()];
        let parts: Vec<_> = (logits.data_mut().chunks_exact_mut(cols).zip(&mut out))
            .map(std::sync::Mutex::new)
            .collect();
        self.pool().run(parts.len(), &|i| {
            let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
            let (row, out) = &mut *part;
            **out = kernels::log_probability(isa, row, targets[i] as usize);
        });
        drop(parts);
        out
    }

    fn kept(&self, weight: &Weight) -> usize {
        match &*weight.0 {
            WeightData::Taped { index, .. } => *index,
            _ => panic!("a weight of another device"),
        }
    }

    /// The values of a vector today.
    fn today(&self, vector: &Vector) -> Vector {
        match vector.param {
            Some(i) => Vector::new(self.params[i].values.to_vec()),
            None => vector.clone(),
        }
    }

    /// Whether an operation on the recording makes a tensor from what is kept there, without a product.
    fn is_made_again(&self, id: u64) -> bool {
        match self.nodes.iter().rev().find(|n| n.out() == id) {
            Some(
                Node::RmsNorm { .. }
                | Node::LayerNorm { .. }
                | Node::Activation { .. }
                | Node::Gated { .. },
            ) => true,
            Some(Node::Rope { x, .. }) => self.is_made_again(*x),
            _ => false,
        }
    }

    fn save(&self, x: &Tensor) -> Saved {
        let kept = self.recording && !self.is_made_again(x.id());
        Saved { id: x.id(), cols: x.cols(), kept: kept.then(|| x.share()) }
    }

    fn note(&mut self, node: Node) {
        if self.recording {
            self.nodes.push(node);
        }
    }

    /// Zeroes a share of `x` and enlarges the rest.
    fn drop_out(&self, x: &mut Tensor, share: f32, seed: u64) {
        let limit = (share * (1 << 24) as f32) as u64;
        let factor = 1.0 / (1.0 - share);
        let cols = x.cols();
        self.by_rows(x.data_mut(), cols, |row, part| {
            for (i, x) in part.iter_mut().enumerate() {
                let dropped = hash(seed, (row * cols + i) as u64) >> 40 < limit;
                *x = if dropped { 0.0 } else { *x * factor };
            }
        });
    }

    /// Runs `task(first row, rows of out)` for parts of a matrix of `cols` columns.
    fn by_rows(&self, out: &mut [f32], cols: usize, task: impl Fn(usize, &mut [f32]) + Sync) {
        let each = GRAIN.div_ceil(cols);
        let parts: Vec<_> = (out.chunks_mut(each * cols).enumerate())
            .map(|(i, part)| std::sync::Mutex::new((i * each, part)))
            .collect();
        self.pool().run(parts.len(), &|i| {
            let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
            let (first, ref mut part) = *part;
            task(first, part);
        });
    }
}

/// A number that looks random, from a seed and a place (SplitMix64).
fn hash(seed: u64, place: u64) -> u64 {
    let mut z = seed.wrapping_add(place.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A seed that differs by name.
fn named(seed: u64, name: &str) -> u64 {
    name.bytes().fold(seed, |h, b| hash(h, u64::from(b)))
}
