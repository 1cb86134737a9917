//! From a job to the parts of its answers: encoded, submitted, detokenised, ended by stop strings.

use crate::failure::{Failure, Kind};
use crate::job::{Job, Prompt};
use crate::metrics::Metrics;
use crate::model::Model;
use crate::think;
use lapidary_engine::request::{Canceller, Event, Refusal, Request, Summary, Timings};
use lapidary_engine::{Finish, Picture, Piece, StopStrings, Turn};
use lapidary_formats::chat::{Message, Rendered};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// A piece of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Part {
    /// Text that is certain.
    Text {
        /// Which answer it belongs to.
        choice: usize,
        /// Not empty.
        text: String,
        /// The tokens that made it, if probabilities are wanted.
        tokens: Option<Vec<Token>>,
    },
    /// What the model thinks before it says something.
    Thought {
        /// Which answer it belongs to.
        choice: usize,
        /// Not empty.
        text: String,
    },
    /// An answer is complete.
    End {
        /// Which.
        choice: usize,
        /// Why.
        end: End,
        /// Its tokens, thoughts included.
        completion: usize,
        /// Of those, the ones that were thought.
        thought: usize,
    },
}

/// Why an answer ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum End {
    /// The model ended its turn.
    #[default]
    Stop,
    /// This string came.
    StopString(String),
    /// The limit of new tokens was reached.
    Length,
    /// The context is full.
    Context,
}

/// A token with its probabilities.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// What it shows.
    pub text: String,
    /// The bytes that it stands for.
    pub bytes: Vec<u8>,
    /// Its log-probability.
    pub logprob: f32,
    /// The likeliest tokens in its place.
    pub top: Vec<Token>,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Of the prompts.
    pub prompt: usize,
    /// Of the prompts, those found in the cache.
    pub cached: usize,
    /// Of the answers, thoughts included.
    pub completion: usize,
    /// Of the answers, those that were thought, with the markers around them.
    pub thought: usize,
    /// Where the time went, added up over the answers.
    pub timings: Timings,
}

/// A complete answer.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Choice {
    /// Its text.
    pub text: String,
    /// What the model thought before.
    pub thought: String,
    /// Its tokens, if probabilities are wanted.
    pub tokens: Vec<Token>,
    /// Why it ended.
    pub end: End,
    /// Its tokens, thoughts included.
    pub completion: usize,
    /// Of those, the ones that were thought.
    pub thought_tokens: usize,
}

/// Who asks, and how long an answer may take.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Requests of one client share its part of the engine.
    pub client: u64,
    /// Higher ones go first.
    pub priority: i32,
    /// When answers are of no more use.
    pub deadline: Instant,
}

/// What a choice's task reports.
enum Report {
    Part(Part),
    Counted { summary: Option<Summary>, counts: Counts },
    Failed(Failure),
}

/// What a choice's task counts.
#[derive(Clone, Copy, Default)]
struct Counts {
    cached: usize,
    completion: usize,
    thought: usize,
}

/// Answers that are being made. Dropping them cancels the requests.
pub struct Answers {
    parts: mpsc::Receiver<Report>,
    tasks: Vec<JoinHandle<()>>,
    usage: Usage,
    /// The seed of the first answer.
    pub seed: u64,
    /// Answers in all.
    pub choices: usize,
}

impl Drop for Answers {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

/// Cancels a request when it is dropped.
pub(crate) struct Guard(pub Canceller);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.cancel();
    }
}

/// Starts the jobs of one request on `model`. The choices of the jobs are numbered through.
///
/// # Errors
/// If a prompt can't be written down or does not fit, or the engine is full. Nothing runs then.
pub async fn start(
    model: &Arc<Model>,
    metrics: &Arc<Metrics>,
    jobs: Vec<Job>,
    terms: Terms,
) -> Result<Answers, Failure> {
    let engine = model.engine()?;
    let seed = model.fresh_seed();
    let prompts = jobs.iter().map(|j| j.prompt.clone()).collect();
    let late = |_| {
        let message = "the pictures were not looked at in the time that an answer may take";
        Failure::new(Kind::Timeout, message)
    };
    let encoded = encode(model, terms.client, prompts);
    let prompts = tokio::time::timeout_at(terms.deadline.into(), encoded).await.map_err(late)??;
    let (sender, parts) = mpsc::channel(32);
    let mut usage = Usage::default();
    let mut answers = Answers { parts, tasks: Vec::new(), usage, seed, choices: 0 };
    for (job, prompt) in jobs.iter().zip(prompts) {
        usage.prompt += prompt.ids.len();
        for number in 0..job.choices {
            let mut sampling = job.settings.over(&model.text.defaults, seed)?;
            if answers.choices == 0 {
                answers.seed = sampling.seed;
            }
            sampling.seed = sampling.seed.wrapping_add(number as u64);
            let room = engine.options().context.saturating_sub(prompt.ids.len()).max(1);
            let request = Request {
                sampling,
                stop_ids: model.text.stops.clone(),
                logprobs: job.logprobs,
                adapter: model.adapter,
                owner: terms.client,
                client: terms.client,
                priority: terms.priority,
                deadline: Some(terms.deadline),
                pictures: prompt.pictures.clone(),
                ..Request::new(prompt.ids.clone(), job.max_tokens.unwrap_or(room).min(room))
            };
            let (sink, events) = mpsc::unbounded_channel();
            let submitted = Instant::now();
            let canceller = engine
                .submit_to(
                    request,
                    Box::new(move |event| match sink.send(event) {
                        Ok(()) => ControlFlow::Continue(()),
                        Err(_) => ControlFlow::Break(Finish::Cancelled),
                    }),
                )
                .map_err(|r| refused(&r))?;
            let follow = Follow {
                model: model.clone(),
                metrics: metrics.clone(),
                choice: answers.choices,
                stop: job.stop.clone(),
                chat: matches!(job.prompt, Prompt::Chat(_)),
                logprobs: job.logprobs.is_some(),
                sender: sender.clone(),
                last: submitted,
                first: true,
            };
            answers.tasks.push(tokio::spawn(follow.run(events, Guard(canceller))));
            answers.choices += 1;
        }
    }
    answers.usage = usage;
    Ok(answers)
}

/// A refusal of the engine, as a request's failure.
pub fn refused(refusal: &Refusal) -> Failure {
    let kind = match refusal {
        Refusal::Busy { .. } | Refusal::Stopping => Kind::Busy,
        _ => Kind::Invalid,
    };
    Failure::new(kind, refusal.to_string())
}

/// A prompt as the engine takes it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Encoded {
    /// Token ids.
    pub ids: Vec<u32>,
    /// Which of them stand for which pictures.
    pub pictures: Vec<Picture>,
}

impl Encoded {
    /// Tokens that stand for pictures.
    pub fn seen(&self) -> usize {
        self.pictures.iter().map(|p| p.rows.len()).sum()
    }
}

/// The tokens of prompts of `owner`.
///
/// # Errors
/// If the model has no chat template, or it refuses a conversation; if a picture can't be read, or
/// the model can't see.
pub async fn encode(
    model: &Arc<Model>,
    owner: u64,
    prompts: Vec<Prompt>,
) -> Result<Vec<Encoded>, Failure> {
    let mut seen = Vec::with_capacity(prompts.len());
    for prompt in &prompts {
        let images = match prompt {
            Prompt::Chat(c) => &c.images[..],
            _ => &[],
        };
        seen.push(match (images.first(), &model.sight) {
            (None, _) => Vec::new(),
            (Some(_), Some(sight)) => sight.look(owner, images.to_vec()).await?,
            (Some(image), None) => {
                let message = format!("{} reads text alone: it can't see pictures", model.name);
                return Err(Failure::field(&image.field, message));
            }
        });
    }
    let words = model.clone();
    let work = move || prompts.iter().zip(&seen).map(|(p, s)| prompt(&words, p, s)).collect();
    model.aside(work).await?
}

/// The tokens of a prompt that shows what was `seen`.
fn prompt(model: &Model, prompt: &Prompt, seen: &[Arc<Vec<f32>>]) -> Result<Encoded, Failure> {
    let plain = |ids| Encoded { ids, pictures: Vec::new() };
    let conversation = match prompt {
        Prompt::Ids(ids) => return Ok(plain(ids.clone())),
        Prompt::Text(text) => return Ok(plain(model.text.encode_plain(text))),
        Prompt::Chat(c) => c,
    };
    let messages = &conversation.messages[..];
    let think = think::thinks(model, conversation.think);
    let now = crate::clock::seconds();
    let wrong = |e: lapidary_formats::FormatError| Failure::invalid(e.to_string());
    let (turns, begun) = match messages.split_last() {
        Some((last, turns)) if last.role == "assistant" => (turns, Some(last)),
        _ => (messages, None),
    };
    let mut rendered =
        model.text.render_with(turns, true, now, think::variables(think)).map_err(wrong)?;
    if begun.is_some() && model.card.answers_once() {
        let message = "this model answers one question: an answer can't be gone on with";
        return Err(Failure::invalid(message));
    }
    if let Some(begun) = begun {
        go_on(&mut rendered, begun, think == Some(true));
    }
    let Some(sight) = model.sight.as_ref().filter(|_| !seen.is_empty()) else {
        return Ok(plain(model.text.encode_rendered(&rendered)));
    };
    let wrong = |e: lapidary_engine::PictureError| Failure::invalid(e.to_string());
    let rendered = sight.gallery.hang(&rendered, seen, &model.text.tokenizer).map_err(wrong)?;
    let ids = model.text.encode_rendered(&rendered);
    let pictures = sight.gallery.places(&ids, seen).map_err(wrong)?;
    Ok(Encoded { ids, pictures })
}

/// Begins the model's turn with what it has said before, and thought, if it thinks.
fn go_on(rendered: &mut Rendered, begun: &Message, thinks: bool) {
    let literal = |rendered: &mut Rendered, text: &str| {
        let start = rendered.text.len();
        rendered.text.push_str(text);
        rendered.literal.push(start..rendered.text.len());
    };
    let thought = think::thought_of(begun);
    if thinks && !thought.is_empty() {
        rendered.text.push_str("<|channel>thought\n");
        literal(rendered, thought);
        rendered.text.push_str("\n<channel|>");
    }
    literal(rendered, begun.content.as_str().unwrap_or_default());
}

/// The task that follows one choice.
struct Follow {
    model: Arc<Model>,
    metrics: Arc<Metrics>,
    choice: usize,
    stop: Vec<String>,
    /// Whether it is a turn of a chat, in which the model may think.
    chat: bool,
    logprobs: bool,
    sender: mpsc::Sender<Report>,
    /// When the last token came, or the request was submitted.
    last: Instant,
    first: bool,
}

impl Follow {
    async fn run(mut self, mut events: mpsc::UnboundedReceiver<Event>, guard: Guard) {
        let model = self.model.clone();
        let stops = StopStrings::new(std::mem::take(&mut self.stop));
        let begin = if self.chat { Turn::new } else { Turn::plain };
        let mut turn = begin(&model.text.tokenizer, stops);
        let (mut held, mut counts) = (Vec::new(), Counts::default());
        while let Some(event) = events.recv().await {
            match event {
                Event::Prefilled { reused, .. } => counts.cached = reused,
                Event::Token { id, logprob, top } => {
                    self.measure();
                    counts.completion += 1;
                    let before = turn.thinking();
                    let pieces = turn.push(id);
                    let thought = before || turn.thinking();
                    counts.thought += usize::from(thought);
                    // Probabilities are of what is said.
                    if self.logprobs && !thought {
                        held.push(token(&model, id, logprob.unwrap_or(0.0), &top));
                    }
                    let stopped = turn.stopped_by().map(str::to_owned);
                    if stopped.is_some() && pieces.is_empty() {
                        held.clear();
                    }
                    if !self.pieces(pieces, &mut held).await {
                        return;
                    }
                    if let Some(string) = stopped {
                        drop(guard);
                        return self.end(End::StopString(string), counts, None).await;
                    }
                }
                Event::Done(summary) => {
                    let pieces = turn.finish();
                    let stopped = turn.stopped_by().map(str::to_owned);
                    let end = match (stopped, summary.finish) {
                        (Some(string), _) => End::StopString(string),
                        (None, Finish::Length) => End::Length,
                        (None, Finish::Context) => End::Context,
                        (None, Finish::Stop) => End::Stop,
                        (None, _) => return self.unfinished(&summary).await,
                    };
                    self.pieces(pieces, &mut held).await;
                    counts.cached = summary.reused;
                    return self.end(end, counts, Some(summary)).await;
                }
                Event::Failed(message) => {
                    let failure = Failure::new(Kind::Internal, message);
                    return self.report(Report::Failed(failure)).await;
                }
                Event::Embedding(_) => {}
            }
        }
        let failure = Failure::new(Kind::Busy, "the model was stopped");
        self.report(Report::Failed(failure)).await;
    }

    fn measure(&mut self) {
        let now = Instant::now();
        self.metrics.token(now - self.last, std::mem::take(&mut self.first));
        self.last = now;
    }

    /// Whether anybody still listens.
    async fn pieces(&mut self, pieces: Vec<Piece>, held: &mut Vec<Token>) -> bool {
        let choice = self.choice;
        for piece in pieces {
            let part = match piece {
                Piece::Text(text) => {
                    let tokens = self.logprobs.then(|| std::mem::take(held));
                    Part::Text { choice, text, tokens }
                }
                Piece::Thought(text) => Part::Thought { choice, text },
            };
            if self.sender.send(Report::Part(part)).await.is_err() {
                return false;
            }
        }
        !self.sender.is_closed()
    }

    async fn end(&mut self, end: End, counts: Counts, summary: Option<Summary>) {
        self.report(Report::Counted { summary, counts }).await;
        let (completion, thought) = (counts.completion, counts.thought);
        let part = Part::End { choice: self.choice, end, completion, thought };
        self.report(Report::Part(part)).await;
    }

    async fn unfinished(&mut self, summary: &Summary) {
        let failure = match summary.finish {
            Finish::Deadline => Failure::new(
                Kind::Timeout,
                format!(
                    "the answer took longer than allowed; {} tokens were made",
                    summary.generated
                ),
            ),
            _ => Failure::new(Kind::Busy, "the request was cancelled: the server is shutting down"),
        };
        self.report(Report::Failed(failure)).await;
    }

    /// An error: nobody listens any more.
    async fn report(&mut self, report: Report) {
        let _ = self.sender.send(report).await;
    }
}

/// A token in words.
fn token(model: &Model, id: u32, logprob: f32, top: &[(u32, f32)]) -> Token {
    let bytes = model.text.tokenizer.token_bytes(id);
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let top = top.iter().map(|(id, logprob)| token(model, *id, *logprob, &[])).collect();
    Token { id, text, bytes, logprob, top }
}

impl Answers {
    /// The next part; `None` when all answers are complete.
    pub async fn next(&mut self) -> Option<Result<Part, Failure>> {
        loop {
            match self.parts.recv().await? {
                Report::Part(part) => return Some(Ok(part)),
                Report::Failed(failure) => return Some(Err(failure)),
                Report::Counted { summary, counts } => {
                    self.usage.completion += counts.completion;
                    self.usage.thought += counts.thought;
                    self.usage.cached = self.usage.cached.max(counts.cached);
                    let add = |to: &mut Duration, more| *to = to.saturating_add(more);
                    if let Some(s) = summary {
                        add(&mut self.usage.timings.queued, s.timings.queued);
                        add(&mut self.usage.timings.prefill, s.timings.prefill);
                        add(&mut self.usage.timings.decode, s.timings.decode);
                    }
                }
            }
        }
    }

    /// Tokens so far.
    pub fn usage(&self) -> Usage {
        self.usage
    }

    /// All answers, complete.
    ///
    /// # Errors
    /// If one of them failed.
    pub async fn collect(mut self) -> Result<(Vec<Choice>, Usage), Failure> {
        let mut choices = vec![Choice::default(); self.choices];
        while let Some(part) = self.next().await {
            match part? {
                Part::Text { choice, text, tokens } => {
                    choices[choice].text += &text;
                    choices[choice].tokens.extend(tokens.into_iter().flatten());
                }
                Part::Thought { choice, text } => choices[choice].thought += &text,
                Part::End { choice, end, completion, thought } => {
                    choices[choice].end = end;
                    choices[choice].completion = completion;
                    choices[choice].thought_tokens = thought;
                }
            }
        }
        Ok((choices, self.usage))
    }
}
