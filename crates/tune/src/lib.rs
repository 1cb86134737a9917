//! Making models from models: conversion to GGUF and quantisation.
#![forbid(unsafe_code)]

mod gguf_names;
mod quantize;

pub use quantize::{Options, Report, quantize};
