//! Models over HTTP: the dialects of OpenAI, Gemini, Anthropic and Ollama, and a few endpoints of our
//! own, from one process. A dialect turns bytes into a [`job::Job`] and the parts of an answer into
//! bytes; what lies between is the same for all of them.
#![forbid(unsafe_code)]

pub mod answer;
pub mod anthropic;
pub mod app;
pub mod auth;
pub mod clock;
pub mod embed;
pub mod failure;
pub mod fields;
pub mod gemini;
pub mod job;
pub mod metrics;
pub mod model;
pub mod ollama;
pub mod openai;
pub mod openapi;
pub mod own;
pub mod page;
pub mod pictures;
pub mod reference;
pub mod registry;
pub mod serve;
pub mod stream;
pub mod think;
mod timeouts;
mod tls;
