//! What a tape trains.

use super::{Kept, Tape, hash, named};
use crate::{PackError, ParamName, RawMatrix, Vector, Weight, weight::WeightData};
use lapidary_kernels::{self as kernels, Heap, Packed, Run, blocks};
use std::sync::Arc;

/// Which parameters of a model change.
#[derive(Debug, Clone, PartialEq)]
pub enum Trained {
    /// None: it only computes.
    Nothing,
    /// All of them, in f32.
    All,
    /// Adapters beside frozen matrices.
    Lora(LoraSpec),
}

/// The adapters of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSpec {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// What B A x is multiplied with.
    pub factor: f32,
    /// Share of inputs that are zeroed where a pass says so.
    pub dropout: f32,
    /// Ends of the names of modules, at a dot.
    pub targets: Vec<String>,
    /// Where fresh values begin.
    pub seed: u64,
}

impl LoraSpec {
    /// Whether a module gets an adapter.
    pub fn takes(&self, module: &str) -> bool {
        self.targets.iter().any(|t| {
            module
                .strip_suffix(t.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        })
    }
}

/// A trained matrix or vector.
pub struct Param {
    /// Where it comes from.
    pub name: ParamName,
    /// `[n, k]` or `[len]`
    pub shape: Vec<usize>,
    /// Its values.
    pub values: Run,
    /// Their gradient so far.
    pub grad: Gradient,
}

/// The gradient of a parameter. It takes memory from when something is added to it until it is
/// cleared: while the blocks behind still hold their recording, those in front have no gradient.
pub struct Gradient {
    values: Option<Run>,
    len: usize,
    heap: Arc<Heap>,
}

impl Gradient {
    /// Zero, for `len` values; what it will hold comes from `heap`.
    pub fn new(heap: Arc<Heap>, len: usize) -> Self {
        Self { values: None, len, heap }
    }

    /// The values; `None`: all are zero.
    pub fn get(&self) -> Option<&[f32]> {
        self.values.as_deref()
    }

    /// The values, to change.
    pub fn get_mut(&mut self) -> &mut [f32] {
        self.values.get_or_insert_with(|| self.heap.zeros(self.len))
    }

    /// Room for the values, and whether they are there, to be added to; else they are to be written.
    pub fn sum(&mut self) -> (&mut [f32], bool) {
        let add = self.values.is_some();
        (self.values.get_or_insert_with(|| self.heap.take(self.len)), add)
    }

    /// Makes it zero.
    pub fn clear(&mut self) {
        self.values = None;
    }
}

/// A low-rank adapter of a module: `y += factor * B A x`.
#[derive(Debug, Clone, PartialEq)]
pub struct Adapter {
    /// The module's name in Hugging Face files.
    pub module: String,
    /// A, `[rank, inputs]`: its number among the parameters.
    pub a: usize,
    /// B, `[outputs, rank]`.
    pub b: usize,
    /// The factor.
    pub factor: f32,
    /// Share of inputs that are zeroed while training.
    pub dropout: f32,
    /// Whether the module stores inputs first (PEFT's `fan_in_fan_out`).
    pub transposed: bool,
}

impl Tape {
    pub(super) fn add_param(&mut self, name: ParamName, shape: Vec<usize>, values: Run) -> usize {
        let grad = Gradient::new(self.cpu.heap().clone(), values.len());
        self.params.push(Param { name, shape, values, grad });
        self.params.len() - 1
    }

    fn on_heap(&self, values: &[f32]) -> Run {
        let mut run = self.cpu.heap().take(values.len());
        run.copy_from_slice(values);
        run
    }

    pub(super) fn add_vector(&mut self, name: ParamName, values: Vec<f32>) -> Vector {
        let mut vector = Vector::new(values.clone());
        if self.trained == Trained::All {
            let values = self.on_heap(&values);
            vector.param = Some(self.add_param(name, vec![values.len()], values));
        }
        vector
    }

    pub(super) fn add_matrix(&mut self, raw: RawMatrix) -> Result<Weight, PackError> {
        let (n, k) = (raw.n, raw.k);
        let kept = if self.trained == Trained::All {
            self.trained_matrix(raw)?
        } else {
            let adapter = self.adapter(&raw.name, [n, k]);
            let bytes = (*raw.bytes).as_ref();
            let rows = kernels::Rows { ty: raw.ty, n, k, bytes };
            let weight = Packed::new(rows, self.pool(), raw.done)?;
            Kept::Frozen { weight, adapter }
        };
        Ok(self.keep(kept, [n, k]))
    }

    pub(super) fn add_table(&mut self, raw: RawMatrix) -> Result<Weight, PackError> {
        let (n, k) = (raw.n, raw.k);
        if self.trained != Trained::All {
            return crate::Ops::table(&mut self.cpu, raw);
        }
        let kept = self.trained_matrix(raw)?;
        Ok(self.keep(kept, [n, k]))
    }

    fn keep(&mut self, kept: Kept, [n, k]: [usize; 2]) -> Weight {
        self.weights.push(kept);
        Weight(Arc::new(WeightData::Taped { index: self.weights.len() - 1, n, columns: 0..k }))
    }

    fn trained_matrix(&mut self, raw: RawMatrix) -> Result<Kept, PackError> {
        let RawMatrix { ty, n, k, bytes, done, name } = raw;
        let bytes = (*bytes).as_ref();
        let row = k / ty.block_len() * ty.block_bytes();
        if !k.is_multiple_of(ty.block_len()) || n.checked_mul(row) != Some(bytes.len()) {
            let problem = format!("{} bytes are not {n} x {k} of {}", bytes.len(), ty.name());
            return Err(PackError::Shape(problem));
        }
        if let Err(block) = blocks::check_finite(ty, bytes) {
            return Err(PackError::NotFinite { row: block * ty.block_len() / k });
        }
        let mut values = self.cpu.heap().take(n * k);
        blocks::dequantize(ty, bytes, &mut values);
        done(0..bytes.len());
        Ok(Kept::Param(self.add_param(name, vec![n, k], values)))
    }

    /// The adapter of a module's part, made when its first part comes.
    fn adapter(&mut self, name: &ParamName, [n, k]: [usize; 2]) -> Option<(usize, (usize, usize))> {
        let Trained::Lora(spec) = &self.trained else { return None };
        let module = name.module().to_owned();
        if !spec.takes(&module) {
            return None;
        }
        if let Some(i) = self.adapters.iter().position(|a| a.module == module) {
            return Some((i, name.part));
        }
        let (rank, factor, dropout) = (spec.rank, spec.factor, spec.dropout);
        // PEFT's: uniform with the variance of 1 / (3 inputs); B is zero.
        let (seed, bound) = (named(spec.seed, &module), 1.0 / (k as f32).sqrt());
        let fresh = |i: usize| (hash(seed, i as u64) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        let a: Vec<f32> = (0..rank * k).map(|i| fresh(i) * bound).collect();
        let outputs = n * name.part.1;
        let part = |side: &str| ParamName::whole(format!("{module}.lora_{side}.weight"));
        let (a, b) = (self.on_heap(&a), self.cpu.heap().zeros(outputs * rank));
        let a = self.add_param(part("A"), vec![rank, k], a);
        let b = self.add_param(part("B"), vec![outputs, rank], b);
        let transposed = name.transposed;
        self.adapters.push(Adapter { module, a, b, factor, dropout, transposed });
        Some((self.adapters.len() - 1, name.part))
    }
}
