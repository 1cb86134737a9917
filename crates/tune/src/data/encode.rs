//! Examples to token ids, with a mark on each token whether it is learnt.

use super::Example;
use super::document::Document;
use crate::{Pair, Sequence};
use lapidary_engine::Text;
use lapidary_formats::chat::{Message, Rendered};
use serde::{Deserialize, Serialize};
use std::ops::Range;
use std::sync::Arc;

/// Why an example gives no sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// More tokens than a sequence may have.
    TooLong(usize),
    /// Something else.
    Problem(String),
}

/// Writes examples down as a model's template and tokenizer do.
#[derive(Clone)]
pub struct Encoder {
    text: Arc<Text>,
    /// Tokens of a sequence at most.
    sequence: usize,
    /// What of a conversation is learnt.
    learn: Learn,
}

/// What of an example with an answer is learnt.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Learn {
    /// The answers, with the tokens that end them.
    #[default]
    Answers,
    /// Everything, the questions too: for pre-training.
    All,
}

/// Templates that show the date get this one: a run must not depend on the day it runs.
const NOW: i64 = 1_767_225_600;

impl Encoder {
    /// An encoder for sequences of at most `sequence` tokens.
    pub fn new(text: Arc<Text>, sequence: usize) -> Self {
        Self { text, sequence, learn: Learn::Answers }
    }

    /// The same, which learns that of conversations.
    #[must_use]
    pub fn learning(self, learn: Learn) -> Self {
        Self { learn, ..self }
    }

    /// The sequences of a document. Only plain text is cut; whatever else is too long is refused.
    ///
    /// # Errors
    /// Why it can't be learnt.
    pub fn encode(&self, document: &Document) -> Result<Vec<Example>, Unfit> {
        match document {
            Document::Text(text) => Ok(self.text(text)),
            Document::Preference { chosen, rejected } => {
                let (chosen, rejected) = (self.one(chosen)?, self.one(rejected)?);
                Ok(vec![Example::Pair(Pair { chosen, rejected })])
            }
            one => Ok(vec![Example::One(self.one(one)?)]),
        }
    }

    /// Text between the tokens that begin and end one, in pieces of the sequence's length.
    fn text(&self, text: &str) -> Vec<Example> {
        let mut ids = self.text.encode_plain(text);
        ids.extend(self.end(&ids));
        // A piece of one token has nothing to predict.
        let pieces = ids.chunks(self.sequence).filter(|c| c.len() > 1);
        pieces
            .map(|c| Example::One(Sequence { ids: c.to_vec(), learn: vec![true; c.len()] }))
            .collect()
    }

    /// The token that ends a text, unless the tokenizer has put it there.
    fn end(&self, ids: &[u32]) -> Option<u32> {
        self.text.tokenizer.eos().filter(|eos| ids.last() != Some(eos))
    }

    fn one(&self, document: &Document) -> Result<Sequence, Unfit> {
        let mut sequence = match document {
            Document::Turns { messages, from } => self.turns(messages, *from)?,
            Document::Completion { prompt, completion } => self.completion(prompt, completion),
            _ => return Err(Unfit::Problem("a prompt with its answer was expected".into())),
        };
        if sequence.ids.len() > self.sequence {
            return Err(Unfit::TooLong(sequence.ids.len()));
        }
        if !sequence.learn.iter().skip(1).any(|l| *l) {
            return Err(Unfit::Problem("it has no answer to learn".into()));
        }
        if self.learn == Learn::All {
            sequence.learn.fill(true);
        }
        Ok(sequence)
    }

    fn completion(&self, prompt: &str, completion: &str) -> Sequence {
        let mut ids = self.text.encode_plain(&format!("{prompt}{completion}"));
        ids.extend(self.end(&ids));
        let given = common(&self.text.encode_plain(prompt), &ids);
        let learn = (0..ids.len()).map(|i| i >= given).collect();
        Sequence { ids, learn }
    }

    /// A conversation; the assistant's words and the token that ends its turn are learnt.
    fn turns(&self, messages: &[Message], from: usize) -> Result<Sequence, Unfit> {
        let problem = |e: lapidary_formats::FormatError| Unfit::Problem(e.to_string());
        let whole = self.text.render(messages, false, NOW).map_err(problem)?;
        let answers = (from..messages.len())
            .filter(|turn| is_assistant(&messages[*turn]))
            .map(|turn| self.answer(messages, turn, &whole))
            .collect::<Result<Vec<_>, _>>()
            .map_err(Unfit::Problem)?;
        let (whole, answers) = prompted(whole, answers);
        let ids = self.text.encode_rendered(&whole);
        let mut learn = vec![false; ids.len()];
        for range in answers {
            // The tokens of what stands before a place begin those of the whole: up to a token
            // that lies across it, which counts to what follows.
            let before = |end: usize| common(&self.text.encode_rendered(&cut(&whole, end)), &ids);
            let (start, end) = (before(range.start), before(range.end));
            learn[start..end.max(start)].fill(true);
        }
        Ok(Sequence { ids, learn })
    }

    /// The bytes of `whole` that the model itself has to write for turn `turn`: from where the
    /// prompt of that turn ends, to the end of the turn. And what that prompt has at its end that
    /// `whole` has not: the empty thought of Gemma 4's larger models, which a chat asks them to go on from.
    fn answer(
        &self,
        messages: &[Message],
        turn: usize,
        whole: &Rendered,
    ) -> Result<(Range<usize>, String), String> {
        let rendered = |turns: &[Message], prompt: bool| {
            self.text.render(turns, prompt, NOW).ok().map(|r| r.text)
        };
        let asked = rendered(&messages[..turn], true);
        let prompt = asked.as_ref().filter(|p| whole.text.starts_with(*p));
        let through = rendered(&messages[..=turn], false).filter(|t| whole.text.starts_with(t));
        if let (Some(prompt), Some(through)) = (prompt, through)
            && prompt.len() < through.len()
        {
            let words = prompt.len()..through.trim_end().len().max(prompt.len());
            return Ok((words, String::new()));
        }
        let words = self.answer_by_mark(messages, turn, whole).ok_or_else(|| {
            format!("the chat template doesn't show where turn {} begins and ends", turn + 1)
        })?;
        let more = asked.as_ref().and_then(|p| p.strip_prefix(&whole.text[..words.start]));
        let more = more.unwrap_or_default().to_owned();
        Ok((words, more))
    }

    /// The same for a template that writes a turn differently when others follow: the turn is
    /// given other words, and what stands before and behind them is looked up.
    fn answer_by_mark(
        &self,
        messages: &[Message],
        turn: usize,
        whole: &Rendered,
    ) -> Option<Range<usize>> {
        const MARK: &str = "\u{f8e0}\u{f8e1}\u{f8e0}";
        let mut marked = messages.to_vec();
        marked[turn] = Message::new(&messages[turn].role, MARK);
        let marked = self.text.render(&marked, false, NOW).ok()?.text;
        let at = marked.find(MARK)?;
        let (before, behind) = (&marked[..at], &marked[at + MARK.len()..]);
        let fits = whole.text.starts_with(before)
            && whole.text.ends_with(behind)
            && before.len() + behind.len() <= whole.text.len();
        let words = before.len()..whole.text.len() - behind.len();
        // With the token that ends the turn, if one stands there.
        let ends = self.text.stops.iter().filter_map(|id| self.text.tokenizer.piece(*id));
        let end = ends.filter(|e| !e.is_empty() && behind.trim_start().starts_with(*e));
        let skipped = behind.len() - behind.trim_start().len();
        let end = end.map(|e| skipped + e.len()).max().unwrap_or(0);
        fits.then_some(words.start..words.end + end)
    }
}

fn is_assistant(message: &Message) -> bool {
    matches!(message.role.as_str(), "assistant" | "model")
}

/// The conversation with what each answer's prompt ends with written before it, and where the answers
/// are then.
fn prompted(
    whole: Rendered,
    answers: Vec<(Range<usize>, String)>,
) -> (Rendered, Vec<Range<usize>>) {
    let Rendered { mut text, mut literal } = whole;
    let mut places: Vec<Range<usize>> = Vec::new();
    let shift = |r: &mut Range<usize>, by: usize| *r = r.start + by..r.end + by;
    // From the last on: what stands before stays where it is.
    for (mut words, more) in answers.into_iter().rev() {
        text.insert_str(words.start, &more);
        literal.iter_mut().filter(|l| l.start >= words.start).for_each(|l| shift(l, more.len()));
        places.iter_mut().for_each(|later| shift(later, more.len()));
        shift(&mut words, more.len());
        places.insert(0, words);
    }
    (Rendered { text, literal }, places)
}

/// The first `end` bytes of a prompt.
fn cut(whole: &Rendered, end: usize) -> Rendered {
    let literal = whole.literal.iter().filter(|r| r.end <= end).cloned().collect();
    Rendered { text: whole.text[..end].to_owned(), literal }
}

/// How many tokens two sequences begin with alike.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}
