//! How much each input of a projection matters: the mean of its square over a text.
//!
//! The error that a quantised weight makes in an output is the weight's error times its input. Where
//! inputs are uncorrelated, the output's mean squared error is the sum of the squared errors of the
//! weights, each times the mean square of its input; so these means are the weights of the search.

use lapidary_engine::{Limits, Session, SessionError};
use lapidary_formats::Checkpoint;
use lapidary_ops::{Cpu, Isa, KvType, Pool, Precision};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Mean squares by the name of the tensor, as the checkpoint has it.
#[derive(Debug, Default)]
pub struct Importance {
    columns: HashMap<String, Vec<f32>>,
    /// Tokens that were seen.
    pub tokens: usize,
}

/// Rows and sums of squares, by the weight's id.
type Sums = HashMap<usize, (usize, Vec<f64>)>;

/// Rows whose logits are held at a time.
const CHUNK: usize = 64;

impl Importance {
    /// Runs the model of `checkpoint` over `passages`. `progress` hears passages done and to do.
    ///
    /// # Errors
    /// If the model can't be loaded or a passage does not fit.
    pub fn measure(
        checkpoint: &Checkpoint,
        passages: &[Vec<u32>],
        pool: &Arc<Pool>,
        progress: &mut dyn FnMut(usize, usize),
    ) -> Result<Self, Box<dyn std::error::Error>> {
        let mut cpu = Cpu::new(Isa::detect(), pool.clone(), Precision::Fast);
        let loaded = lapidary_model::load(checkpoint, &mut cpu)?;
        let widths: HashMap<usize, usize> =
            loaded.matrices.iter().map(|(_, w)| (w.id(), w.k())).collect();
        let sums: Arc<Mutex<Sums>> = Arc::default();
        let heard = sums.clone();
        cpu.watch(Some(Box::new(move |id, x| {
            let Some(k) = widths.get(&id) else { return };
            let mut sums = heard.lock().unwrap_or_else(|e| e.into_inner());
            let (rows, squares) = sums.entry(id).or_insert_with(|| (0, vec![0.0; *k]));
            for row in x.chunks_exact(*k) {
                *rows += 1;
                squares.iter_mut().zip(row).for_each(|(s, x)| *s += f64::from(x * x));
            }
        })));
        run(&loaded, &mut cpu, passages, &mut |_, _| (), progress)?;
        cpu.watch(None);
        let sums = sums.lock().unwrap_or_else(|e| e.into_inner());
        let mut columns = HashMap::new();
        for (name, weight) in &loaded.matrices {
            if let Some((rows, squares)) = sums.get(&weight.id()) {
                let mean = |s: &f64| (s / *rows as f64) as f32;
                columns.insert(name.clone(), squares.iter().map(mean).collect());
            }
        }
        Ok(Self { columns, tokens: passages.iter().map(Vec::len).sum() })
    }

    /// The mean squares of the inputs of tensor `name`, if it was seen at work and has `k` of them.
    pub fn of(&self, name: &str, k: usize) -> Option<&[f32]> {
        self.columns.get(name).map(Vec::as_slice).filter(|c| c.len() == k)
    }
}

/// Computes each passage from its beginning. `listen` hears the ids so far and the logits
/// `[rows, vocab]` of the last of them.
pub(crate) fn run(
    loaded: &lapidary_model::Loaded,
    cpu: &mut Cpu,
    passages: &[Vec<u32>],
    listen: &mut dyn FnMut(&[u32], &[f32]),
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(), SessionError> {
    let model = &*loaded.model;
    let context = passages.iter().map(Vec::len).max().unwrap_or(1);
    let limits = Limits { context, chunk: CHUNK, kv: KvType::F32 };
    let mut session = Session::new(&model.info().kv, limits);
    for (i, passage) in passages.iter().enumerate() {
        progress(i, passages.len());
        session.reset();
        for (c, chunk) in passage.chunks(CHUNK).enumerate() {
            let logits = session.extend(model, cpu, chunk, true)?;
            listen(&passage[..c * CHUNK + chunk.len()], &logits);
        }
    }
    progress(passages.len(), passages.len());
    Ok(())
}
