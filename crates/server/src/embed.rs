//! Texts to vectors: pooled hidden states, for all dialects.

use crate::answer::{self, Terms};
use crate::failure::{Failure, Kind};
use crate::job::Prompt;
use crate::model::Model;
use lapidary_engine::Finish;
use lapidary_engine::request::{Event, Pooling, Request};
use std::ops::ControlFlow;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Vectors of a request, and the tokens that they took.
pub struct Vectors {
    /// One for each text, of length 1.
    pub vectors: Vec<Vec<f32>>,
    /// Tokens of each text.
    pub tokens: Vec<usize>,
}

/// Texts of a request at most.
pub const MOST_TEXTS: usize = 2048;

/// Computes the vectors of `texts`: the mean of the hidden states of all tokens after the last norm,
/// scaled to length 1. `dimensions`: only so many of the first, scaled again.
///
/// # Errors
/// If there are too many texts, or one does not fit the context.
pub async fn embed(
    model: &Arc<Model>,
    texts: Vec<Prompt>,
    dimensions: Option<usize>,
    terms: Terms,
) -> Result<Vectors, Failure> {
    if texts.is_empty() || texts.len() > MOST_TEXTS {
        let message = format!("{} texts; 1 to {MOST_TEXTS} were expected", texts.len());
        return Err(Failure::invalid(message));
    }
    let width = model.card.width;
    if dimensions.is_some_and(|d| d == 0 || d > width) {
        return Err(Failure::invalid(format!("this model's vectors have 1 to {width} dimensions")));
    }
    let prompts = answer::encode(model, texts).await?;
    let mut out = Vectors { vectors: Vec::new(), tokens: Vec::new() };
    // A few at a time keep the engine busy and its queue open to others.
    for group in prompts.chunks(16) {
        let mut waiting = Vec::new();
        for prompt in group {
            let request = Request {
                client: terms.client,
                deadline: Some(terms.deadline),
                ..Request::embed(prompt.clone(), Pooling::Mean)
            };
            let (sink, events) = mpsc::unbounded_channel();
            let sink = Box::new(move |event| match sink.send(event) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(Finish::Cancelled),
            });
            let canceller = model.engine.submit_to(request, sink);
            let guard = answer::Guard(canceller.map_err(|r| answer::refused(&r))?);
            waiting.push((events, guard));
            out.tokens.push(prompt.len());
        }
        for (mut events, _guard) in waiting {
            out.vectors.push(normalised(vector(&mut events).await?, dimensions));
        }
    }
    Ok(out)
}

async fn vector(events: &mut mpsc::UnboundedReceiver<Event>) -> Result<Vec<f32>, Failure> {
    let mut found = None;
    while let Some(event) = events.recv().await {
        match event {
            Event::Embedding(vector) => found = Some(vector),
            Event::Failed(message) => return Err(Failure::new(Kind::Internal, message)),
            Event::Done(s) if s.finish == Finish::Deadline => {
                return Err(Failure::new(Kind::Timeout, "the vectors took longer than allowed"));
            }
            _ => {}
        }
    }
    found.ok_or_else(|| Failure::new(Kind::Busy, "the model was stopped"))
}

/// The first dimensions, scaled to length 1.
fn normalised(mut vector: Vec<f32>, dimensions: Option<usize>) -> Vec<f32> {
    vector.truncate(dimensions.unwrap_or(usize::MAX));
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
    vector
}
