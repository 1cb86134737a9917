//! How a trainer trains.

use lapidary_ops::ProductPrecision;

/// Which values change.
#[derive(Debug, Clone, PartialEq)]
pub enum Method {
    /// All of them.
    Full,
    /// Low-rank adapters beside frozen projections; over a quantised base this is QLoRA.
    Lora(LoraOptions),
}

/// LoRA (<https://arxiv.org/abs/2106.09685>): `y = W x + factor * B A x`.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraOptions {
    /// Rows of A, columns of B.
    pub rank: usize,
    /// The factor is `alpha / rank`, or `alpha / sqrt(rank)` with `rslora`.
    pub alpha: f32,
    /// Share of A's inputs that are zeroed while training, from 0 to below 1.
    pub dropout: f32,
    /// Modules that get an adapter: the last parts of their names (`q_proj`), or longer ends
    /// (`layers.3.mlp.up_proj`); empty: every projection of the blocks.
    pub targets: Vec<String>,
    /// The factor of rank-stabilised LoRA (<https://arxiv.org/abs/2312.03732>).
    pub rslora: bool,
}

impl LoraOptions {
    /// What B A x is multiplied with.
    pub fn factor(&self) -> f32 {
        let rank = self.rank as f32;
        self.alpha / if self.rslora { rank.sqrt() } else { rank }
    }
}

/// AdamW (<https://arxiv.org/abs/1711.05101>). Biases, norms and other vectors don't decay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Memory of the first moment.
    pub beta1: f32,
    /// Memory of the second moment.
    pub beta2: f32,
    /// Added to the root of the second moment.
    pub eps: f32,
    /// What each step takes from a weight, times the learning rate.
    pub weight_decay: f32,
}

impl Default for AdamW {
    fn default() -> Self {
        Self { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 }
    }
}

/// Muon (<https://kellerjordan.github.io/posts/muon/>): steps of matrices made nearly orthogonal. It
/// keeps four bytes for each of their values, and takes AdamW's learning rate and decay.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Muon {
    /// Memory of the momentum.
    pub momentum: f32,
}

/// How the optimiser keeps its moments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StatePrecision {
    /// Eight bytes for each trained value.
    #[default]
    F32,
    /// Two bytes for each trained value: 8-bit floats with a scale for each block of 256.
    Bits8,
    /// Four bytes for each trained value: the second moment of a matrix as row and column means
    /// (Adafactor, <https://arxiv.org/abs/1804.04235>).
    Factored,
}

/// Everything that a trainer is told once.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainOptions {
    /// Which values change.
    pub method: Method,
    /// The optimiser.
    pub optimizer: AdamW,
    /// How its moments are kept.
    pub state: StatePrecision,
    /// Muon for the matrices of the blocks, beside AdamW for the rest; for [`Method::Full`].
    pub muon: Option<Muon>,
    /// How matrices are rounded before they are multiplied.
    pub precision: ProductPrecision,
    /// The longest gradient that is not shortened.
    pub clip: Option<f32>,
    /// Memory of an exponential average of the weights, such as 0.999.
    pub ema: Option<f32>,
    /// How much direct preference optimisation holds on to the reference model: its beta.
    pub dpo_beta: f32,
    /// Bytes for what blocks compute and their gradients need. Blocks that do not fit keep only
    /// their input and are computed again: less memory, up to a third more arithmetic, the same
    /// bits.
    pub activation_memory: usize,
    /// Where randomness begins: fresh weights, fresh adapters, dropout.
    pub seed: u64,
    /// Threads; the results don't depend on them.
    pub threads: usize,
}

impl Default for TrainOptions {
    fn default() -> Self {
        Self {
            method: Method::Full,
            optimizer: AdamW::default(),
            state: StatePrecision::F32,
            precision: ProductPrecision::F32,
            muon: None,
            clip: Some(1.0),
            ema: None,
            dpo_beta: 0.1,
            activation_memory: 1 << 30,
            seed: 0,
            threads: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Mean loss: nats for each learnt token, or the preference loss for each pair.
    pub loss: f64,
    /// Length of the gradient before it was shortened.
    pub grad_norm: f64,
    /// Tokens that were computed, learnt or not.
    pub tokens: usize,
    /// Preference optimisation: the share of pairs whose better answer gained on the worse one.
    pub preferred: Option<f64>,
}
