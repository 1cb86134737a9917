//! Texts to vectors, for all dialects: what a model for embeddings makes, or pooled hidden states.

use crate::answer::{self, Terms};
use crate::failure::{Failure, Kind};
use crate::job::Prompt;
use crate::model::{self, Model};
use lapidary_engine::request::{Event, Pooling, Request};
use lapidary_engine::{EmbedError, Finish};
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

/// Computes the vectors of `texts`: those of a model for embeddings as it was trained to make them;
/// of another the mean of the hidden states of all tokens after the last norm, scaled to length 1.
/// `dimensions`: only so many of the first, scaled again.
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
    let width = model.dimensions();
    if dimensions.is_some_and(|d| d == 0 || d > width) {
        return Err(Failure::invalid(format!("this model's vectors have 1 to {width} dimensions")));
    }
    let prompts = answer::encode(model, terms.client, texts).await?;
    let prompts: Vec<Vec<u32>> = prompts.into_iter().map(|p| p.ids).collect();
    match model.vectors() {
        Some(made) => by_embedder(made, &prompts, dimensions, terms).await,
        None => pooled(model, &prompts, dimensions, terms).await,
    }
}

/// Texts that a model for embeddings takes in one go: others have their turn in between.
const TURN: usize = 16;

async fn by_embedder(
    made: &Arc<model::Vectors>,
    prompts: &[Vec<u32>],
    dimensions: Option<usize>,
    terms: Terms,
) -> Result<Vectors, Failure> {
    let context = made.embedder.context();
    if let Some(i) = prompts.iter().position(|p| p.len() > context) {
        let tokens = prompts[i].len();
        let e = EmbedError::TooLong { index: i, tokens, context };
        return Err(Failure::invalid(e.to_string()));
    }
    let mut out = Vectors { vectors: Vec::new(), tokens: Vec::new() };
    for turn in prompts.chunks(TURN) {
        let late = || Failure::new(Kind::Timeout, "the vectors took longer than allowed");
        let until = terms.deadline.into();
        let waited = tokio::time::timeout_at(until, made.cpu.clone().lock_owned()).await;
        let mut cpu = waited.map_err(|_| late())?;
        let (made, turn) = (made.clone(), turn.to_vec());
        let work = move || made.embedder.embed_tokens(&mut *cpu, &turn, dimensions);
        let done = tokio::task::spawn_blocking(work).await;
        let done = done.map_err(|e| Failure::new(Kind::Internal, e.to_string()))?;
        for e in done.map_err(|e| Failure::invalid(e.to_string()))? {
            out.vectors.push(e.vector);
            out.tokens.push(e.tokens);
        }
    }
    Ok(out)
}

async fn pooled(
    model: &Arc<Model>,
    prompts: &[Vec<u32>],
    dimensions: Option<usize>,
    terms: Terms,
) -> Result<Vectors, Failure> {
    let engine = model.engine()?;
    let mut out = Vectors { vectors: Vec::new(), tokens: Vec::new() };
    // A few at a time keep the engine busy and its queue open to others.
    for group in prompts.chunks(16) {
        let mut waiting = Vec::new();
        for prompt in group {
            let request = Request {
                adapter: model.adapter,
                owner: terms.client,
                client: terms.client,
                priority: terms.priority,
                deadline: Some(terms.deadline),
                ..Request::embed(prompt.clone(), Pooling::Mean)
            };
            let (sink, events) = mpsc::unbounded_channel();
            let sink = Box::new(move |event| match sink.send(event) {
                Ok(()) => ControlFlow::Continue(()),
                Err(_) => ControlFlow::Break(Finish::Cancelled),
            });
            let canceller = engine.submit_to(request, sink);
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
