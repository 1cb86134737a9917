//! The arithmetic of Lapidary on processors: quantised blocks, products, attention, norms, and the
//! threads that run them. Slices in, slices out; no files, no models.
//!
//! `unsafe` is allowed in this crate alone (with `cuda`): each site says why it is sound.

mod activations;
mod amx;
mod attention;
pub mod backward;
pub mod blocks;
mod buffer;
mod element;
mod floats;
mod heap;
mod integers;
mod kv;
mod limits;
mod mixing;
mod panel;
mod pool;
mod product;
mod route;
mod rowwise;
mod simd;
mod tiled;
mod unpack;

pub use activations::{ByteRows, FloatRows, PairRows, QuantisedBlock};
pub use attention::{AttentionSpec, Span, attend};
pub use buffer::{Buffer, OutOfMemory};
pub use heap::{Heap, Run};
pub use kv::{KV_BLOCK, KvLayer, KvType};
pub use limits::{bf16_peak, f32_peak, int8_peak, read_bandwidth};
pub use mixing::{match_rms, mix, sparsify};
pub use panel::{Layout, PackError, Packed, Rows};
pub use pool::Pool;
pub use product::{product_bf16, product_f32, product_i8};
pub use route::top_experts;
pub use rowwise::{Activation, RopePairs, activation, gated, layer_norm, rms_norm, rope, softcap};
pub use simd::Isa;
