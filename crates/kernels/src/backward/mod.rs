//! What training needs beside the forward kernels: products of matrices that change every step,
//! the backward of each row-wise operation and of attention, and the optimiser.
//!
//! The rules of the house hold here too: one order of accumulation per value, whatever the
//! instruction set and the threads. Sums over tokens are taken in the order of the tokens, or in
//! blocks of a fixed number of them.

mod attention;
mod gemm;
mod mixing;
mod optimizer;
mod pack;
mod rowwise;
mod tiles;

pub use attention::{AttendGradients, attend_backward, attend_forward};
pub use gemm::{Gemm, Precision};
pub use mixing::{match_rms_backward, mix_backward, sparsify_backward};
pub use optimizer::{Adam, Moments, MomentsMut, adamw, adamw_factored, sum_of_squares};
pub use pack::Operand;
pub use rowwise::{
    activation_backward, cross_entropy, gated_backward, layer_norm_backward, log_probability,
    rms_norm_backward, rope_backward, softcap_backward,
};
