//! Making models from models: conversion to GGUF and quantisation.
#![forbid(unsafe_code)]

mod agreement;
pub mod data;
mod gguf_gemma4;
mod gguf_names;
mod importance;
mod merge;
mod muon;
mod optimizer;
mod options;
mod passages;
mod quantize;
mod recipe;
pub mod run;
mod sequence;
mod state;
pub mod tokenizer;
mod trainer;

pub use agreement::{Agreement, agreement};
pub use importance::Importance;
pub use lapidary_ops::ProductPrecision;
pub use merge::{Adapter, Merged, merge};
pub use options::{AdamW, LoraOptions, Method, Muon, StatePrecision, StepReport, TrainOptions};
pub use passages::passages;
pub use quantize::{Options, Report, Written, quantize};
pub use recipe::{Place, Recipe};
pub use sequence::{Pair, Sequence};
pub use state::{AdapterWeights, TensorValues};
pub use trainer::{TrainError, Trainer};
