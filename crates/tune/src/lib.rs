//! Making models from models: conversion to GGUF and quantisation.
#![forbid(unsafe_code)]

mod gguf_names;
mod options;
mod quantize;
mod sequence;

pub use options::{AdamW, LoraOptions, Method, StatePrecision, StepReport, TrainOptions};
pub use quantize::{Options, Report, quantize};
pub use sequence::{Pair, Sequence};
