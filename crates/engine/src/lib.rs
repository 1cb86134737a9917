//! From a prompt to tokens: the sampler, the bookkeeping of cache blocks, and the loop that feeds a
//! model.
#![forbid(unsafe_code)]

mod batch;
mod blocks;
mod embedding;
mod engine;
mod generate;
mod logits;
mod pictures;
pub mod request;
mod sampler;
mod sampling;
mod scheduler;
mod session;
mod stop;
mod text;
mod turn;
mod worker;

pub use embedding::{EmbedError, Embedder, Embedding};
pub use engine::{Engine, EngineOptions, Parts, Plan, PlanError, Stats};
pub use generate::{Event, Finish, Generation, Stops, generate};
pub use pictures::{Gallery, PictureError, read_picture};
pub use sampler::{LogProbabilities, Sampler};
pub use sampling::{Sampling, SamplingError};
pub use session::{Digest, Limits, Picture, Session, SessionError};
pub use stop::StopStrings;
pub use text::Text;
pub use turn::{Piece, Turn};
