//! What models know: bits for each byte of what was held out, and the prompts that they pass.

use crate::prompts::{self, Answer, Prompt};
use crate::{Failure, corpus};
use lapidary_engine::{Finish, Limits, Sampler, Sampling, Session, Stops, Text, generate};
use lapidary_formats::Checkpoint;
use lapidary_formats::chat::Message;
use lapidary_formats::tokenizer::Encode;
use lapidary_model::{Loaded, load};
use lapidary_ops::{Cpu, Isa, KvType, Pool, Precision};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Tokens that a document's piece has at most: each is computed by itself.
const PIECE: usize = 512;
/// Tokens of an answer at most.
const ANSWER: usize = 320;

struct Model {
    name: String,
    text: Text,
    loaded: Loaded,
    cpu: Cpu,
}

/// Examines models one after the other; their answers go to `work/answers-NAME.jsonl`.
///
/// # Errors
/// If a model or a file can't be read.
pub fn examine(work: &Path, models: &[PathBuf]) -> Result<(), Failure> {
    let mut files: Vec<PathBuf> = fs::read_dir(work.join("held_out"))
        .map_err(|e| Failure::new(work, format!("has no held_out: run prepare first: {e}")))?
        .filter_map(|e| Some(e.ok()?.path()))
        .collect();
    files.sort();
    let prompts = prompts::read()?;
    for path in models {
        let mut model = Model::open(path)?;
        println!("## {}\n\n| held out | bytes | bits per byte |\n|---|--:|--:|", path.display());
        for file in &files {
            let (bits, bytes) = model.bits(file)?;
            if bytes > 0 {
                let name = file.file_stem().unwrap_or_default().to_string_lossy();
                println!("| {name} | {bytes} | {:.4} |", bits / bytes as f64);
            }
        }
        model.prompts(&prompts, work)?;
    }
    Ok(())
}

impl Model {
    fn open(path: &Path) -> Result<Self, Failure> {
        let wrong = |e: String| Failure::new(path, e);
        let checkpoint = Checkpoint::open(path).map_err(|e| Failure(e.to_string()))?;
        let text = Text::open(&checkpoint).map_err(|e| Failure(e.to_string()))?;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut cpu = Cpu::new(Isa::detect(), Arc::new(Pool::new(threads)), Precision::Fast);
        let loaded = load(&checkpoint, &mut cpu).map_err(|e| wrong(e.to_string()))?;
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, text, loaded, cpu })
    }

    fn session(&self, context: usize) -> Session {
        let limits = Limits { context, chunk: 256, kv: KvType::F16 };
        Session::new(&self.loaded.model.info().kv, limits)
    }

    /// Bits for all tokens of a file's documents but the first of each, and the documents' bytes,
    /// control tokens spelt out.
    fn bits(&mut self, file: &Path) -> Result<(f64, usize), Failure> {
        let text = fs::read_to_string(file).map_err(|e| Failure::new(file, e.to_string()))?;
        let mut session = self.session(PIECE);
        let (mut nats, mut bytes) = (0.0, 0);
        for document in corpus::lines(file, &text)? {
            let text = self.spelt(&document)?;
            bytes += text.len();
            let options = Encode { add_special: true, parse_special: true };
            let ids = self.text.tokenizer.encode(&text, options);
            // Pieces share a token: the last of one is the first of the next.
            let mut first = 0;
            while first + 1 < ids.len() {
                let piece = &ids[first..ids.len().min(first + PIECE)];
                nats += self.nats(&mut session, piece)?;
                first += piece.len() - 1;
            }
        }
        Ok((nats / std::f64::consts::LN_2, bytes))
    }

    /// A document as the model's template writes it, without the token that begins a text.
    fn spelt(&self, document: &Value) -> Result<String, Failure> {
        let Some(messages) = document["messages"].as_array() else {
            return Ok(document["text"].as_str().unwrap_or_default().to_owned());
        };
        let messages: Vec<Message> = messages
            .iter()
            .filter_map(|m| Some(Message::new(m["role"].as_str()?, m["content"].as_str()?)))
            .collect();
        let rendered = self.text.render(&messages, false, 0);
        let text = rendered.map_err(|e| Failure(e.to_string()))?.text;
        Ok(text.strip_prefix("<bos>").unwrap_or(&text).to_owned())
    }

    fn nats(&mut self, session: &mut Session, ids: &[u32]) -> Result<f64, Failure> {
        session.reset();
        let model = &*self.loaded.model;
        let vocab = model.info().vocab;
        let logits = session
            .extend(model, &mut self.cpu, &ids[..ids.len() - 1], true)
            .map_err(|e| Failure(e.to_string()))?;
        Ok(logits.chunks_exact(vocab).zip(&ids[1..]).map(|(row, id)| nats(row, *id)).sum())
    }

    fn prompts(&mut self, prompts: &[Prompt], work: &Path) -> Result<(), Failure> {
        let mut kinds: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
        let mut lines = Vec::new();
        for prompt in prompts {
            let answer = self.answer(prompt)?;
            let fault = prompt.fault(&answer);
            let count = kinds.entry(&prompt.kind).or_default();
            count.0 += usize::from(fault.is_none());
            count.1 += 1;
            lines.push(json!({"kind": prompt.kind, "asked": prompt.last_question(),
                "answer": answer.text, "fault": fault}));
        }
        println!("\n| prompts | passed | of |\n|---|--:|--:|");
        for (kind, (passed, all)) in &kinds {
            println!("| {kind} | {passed} | {all} |");
        }
        let passed: usize = kinds.values().map(|k| k.0).sum();
        println!("| all | {passed} | {} |\n", prompts.len());
        let path = work.join(format!("answers-{}.jsonl", self.name));
        crate::prepare::write(&path, lines.into_iter()).map(|_| ())
    }

    /// The likeliest answer.
    fn answer(&mut self, prompt: &Prompt) -> Result<Answer, Failure> {
        let messages: Vec<Message> =
            prompt.messages.iter().map(|m| Message::new(&m.role, &m.content)).collect();
        let rendered = self.text.render(&messages, true, 0).map_err(|e| Failure(e.to_string()))?;
        let ids = self.text.encode_rendered(&rendered);
        let mut session = self.session(ids.len() + ANSWER);
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let mut sampler = Sampler::new(greedy).map_err(|e| Failure(e.to_string()))?;
        let stops =
            Stops { ids: self.text.stops.clone(), max_tokens: ANSWER, context_shift: false };
        let model = &*self.loaded.model;
        let mut listen = |_| ControlFlow::Continue(());
        let done =
            generate(model, &mut self.cpu, &mut session, &ids, &mut sampler, &stops, &mut listen)
                .map_err(|e| Failure(e.to_string()))?;
        let text = self.text.tokenizer.decode(&done.ids, false);
        Ok(Answer { text: text.trim().to_owned(), stopped: done.finish == Finish::Stop })
    }
}

/// What a token's logits cost: minus the logarithm of its probability.
fn nats(logits: &[f32], id: u32) -> f64 {
    let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
    let sum: f64 = logits.iter().map(|x| (f64::from(*x) - most).exp()).sum();
    sum.ln() + most - f64::from(logits[id as usize])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nats_by_hand() {
        let logits = [0.0, 3f32.ln(), 0.0];
        assert!((nats(&logits, 1) - (5f64 / 3.0).ln()).abs() < 1e-6);
        assert!((nats(&logits, 0) - 5f64.ln()).abs() < 1e-6);
    }
}
