//! The narrow waist between models and machines: tensors of activations, weights on a device, and
//! the [`Ops`] trait, about twenty operations of the size that models are written in.
//!
//! [`Cpu`] implements it on the kernels. A model file speaks to `dyn Ops` and can't tell what is
//! behind it.
#![forbid(unsafe_code)]

mod cpu;
mod kv;
mod rope;
mod route;
mod tape;
mod tensor;
mod weight;

pub use cpu::{Cpu, Precision, Probe, Watch};
pub use kv::{KvCache, KvLayerShape, KvLayout, Media, Rows, Span};
pub use lapidary_kernels::backward::{
    Adam, Gemm, Moments, Operand, Precision as ProductPrecision, adamw, adamw_factored,
    sum_of_squares,
};
pub use lapidary_kernels::blocks::{self, BlockType};
pub use lapidary_kernels::{
    Activation, AttentionSpec, Heap, Isa, KV_BLOCK, KvType, OutOfMemory, PackError, Pool,
    RopePairs, Run,
};
pub use lapidary_kernels::{bf16_peak, f32_peak, int8_peak, read_bandwidth};
pub use rope::Rope;
pub use route::Routes;
pub use tape::{Adapter, Gradient, LoraSpec, Param, Pass, Tape, Trained};
pub use tensor::{Coefs, Tensor};
pub use weight::{Linear, LowRank, ParamName, RawMatrix, SharedBytes, Vector, Weight};

/// The operations that models are made of.
///
/// Activations are f32 matrices `[rows, width]`, a row for each token. Operations that take a
/// [`Tensor`] by value may reuse its memory. Shapes that disagree are a bug of the model file and
/// panic; everything that comes from a checkpoint is checked when it is loaded.
pub trait Ops {
    /// Brings an `[n, k]` weight matrix to the device, in its file's precision.
    ///
    /// # Errors
    /// If the bytes don't fit the shape, hold a NaN or an infinity, or there is no memory.
    fn matrix(&mut self, raw: RawMatrix) -> Result<Weight, PackError>;

    /// A weight matrix of which only rows are gathered: it stays where it is (a mapped file).
    ///
    /// # Errors
    /// If the bytes don't fit the shape.
    fn table(&mut self, raw: RawMatrix) -> Result<Weight, PackError>;

    /// Brings a vector of weights to the device: the factors of a norm, a bias.
    fn vector(&mut self, _name: ParamName, values: Vec<f32>) -> Vector {
        Vector::new(values)
    }

    /// Rows `ids` of `weight`, times `scale`: `[ids, k]`.
    fn embed(&mut self, weight: &Weight, ids: &[u32], scale: f32) -> Tensor;

    /// `x * weight^T + bias`: `[rows, n]`.
    fn linear(&mut self, x: &Tensor, linear: &Linear) -> Tensor;

    /// Says which adapter each row of the projections to come has, by its number; `None` for a row:
    /// none. Until it is called, and after `None` for all, every row has adapter 0.
    fn adapt(&mut self, rows: Option<Vec<Option<u32>>>) {
        assert!(rows.is_none(), "this device takes no adapters by row");
    }

    /// RMSNorm over groups of the weight's length: whole rows, or each head of a row.
    fn rms_norm(&mut self, x: &Tensor, weight: &Vector, eps: f32) -> Tensor;

    /// LayerNorm over rows.
    fn layer_norm(&mut self, x: &Tensor, weight: &Vector, bias: &Vector, eps: f32) -> Tensor;

    /// Rotates every head of each row by its position.
    fn rope(&mut self, x: Tensor, rope: &Rope, rows: &Rows) -> Tensor;

    /// Writes the keys and values of the rows to layer `layer` of the cache and attends to all
    /// that each row may see: `[rows, heads * head_dim]`.
    #[allow(clippy::too_many_arguments)]
    fn attend(
        &mut self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        spec: &AttentionSpec,
        layer: usize,
        rows: &Rows,
        cache: &mut KvCache,
    ) -> Tensor;

    /// As [`Ops::attend`], to the keys and values that an earlier layer has written to `layer` of
    /// the cache for these rows.
    fn attend_shared(
        &mut self,
        q: &Tensor,
        spec: &AttentionSpec,
        layer: usize,
        rows: &Rows,
        cache: &KvCache,
    ) -> Tensor;

    /// The `k` likeliest experts of each row of `scores` (`[rows, experts]`) with their weights:
    /// the softmax over those chosen, times `scale[expert]`.
    fn route(&mut self, scores: &Tensor, k: usize, scale: &Vector) -> Routes;

    /// Sends each row through its experts' feed-forward layers and sums what comes out by the
    /// routes' weights: `down(act(gate) * up)`, where `gate_up` is `[2 * ffn, width]` (the gate
    /// first) and `down` is `[width, ffn]`, one for each expert.
    fn experts(
        &mut self,
        x: &Tensor,
        routes: &Routes,
        gate_up: &[Linear],
        down: &[Linear],
        kind: Activation,
    ) -> Tensor;

    /// `act(x)`, element by element.
    fn activation(&mut self, x: Tensor, kind: Activation) -> Tensor;

    /// `act(gate) * up`, element by element.
    fn gated(&mut self, gate: Tensor, up: &Tensor, kind: Activation) -> Tensor;

    /// `x + y`, element by element.
    fn add(&mut self, x: Tensor, y: &Tensor) -> Tensor;

    /// `x * factor`.
    fn scale(&mut self, x: Tensor, factor: f32) -> Tensor;

    /// `cap * tanh(x / cap)`.
    fn softcap(&mut self, x: Tensor, cap: f32) -> Tensor;

    /// `x * scale + shift`, column by column.
    fn affine(&mut self, x: Tensor, scale: &Vector, shift: Option<&Vector>) -> Tensor;

    /// Takes each row as parts of `width` and sums them: part i of the result is the sum over p of
    /// `coefs[i][p]` times part p. The coefficients are those of the row, or the same for all.
    fn mix(&mut self, x: &Tensor, coefs: Coefs, width: usize) -> Tensor;

    /// `x` times a factor that makes each row's root mean square that of the row of `like` (for a
    /// mean square of at least 1e-5).
    fn match_rms(&mut self, x: Tensor, like: &Tensor) -> Tensor;

    /// What each element has above its row's mean plus `deviations` standard deviations, else 0.
    fn sparsify(&mut self, x: Tensor, deviations: f32) -> Tensor;

    /// `x`, no lower than `low` and no higher than `high`.
    fn clamp(&mut self, x: Tensor, low: f32, high: f32) -> Tensor;

    /// As [`Ops::rope`], where each head is made of as many parts as there are `axes`, and part a
    /// turns by the row's position `axes[a][row]`.
    fn rope_axes(&mut self, x: Tensor, rope: &Rope, axes: &[Vec<usize>]) -> Tensor;

    /// The mean of each group of rows.
    fn mean_rows(&mut self, x: &Tensor, groups: &[Vec<u32>]) -> Tensor;

    /// `x` with `rows[i]` replaced by row i of `y`.
    fn place(&mut self, x: Tensor, y: &Tensor, rows: &[u32]) -> Tensor;

    /// The rows `rows` of `x`.
    fn gather(&mut self, x: &Tensor, rows: &[u32]) -> Tensor;

    /// The values of `x`, row by row.
    fn read(&mut self, x: &Tensor) -> Vec<f32>;

    /// A tensor of rows of `cols` values.
    fn tensor(&mut self, values: &[f32], cols: usize) -> Tensor;

    /// Runs `task(0)`, ..., `task(tasks - 1)`, each once, on the threads that the device computes
    /// with, if it has such.
    fn share(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        (0..tasks).for_each(task);
    }

    /// Shows an intermediate result to whoever listens, under a name such as `layer_3`.
    fn probe(&mut self, _name: &str, _x: &Tensor) {}
}
