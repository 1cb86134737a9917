//! From a plan to rows, through the model, to what each sequence wants to know of it.

use crate::blocks::{Blocks, Change};
use crate::scheduler::{Plan, Scheduler};
use lapidary_model::{Model, layers};
use lapidary_ops::{KvCache, Ops, OutOfMemory, Rows, Span};

/// What a pass gave.
#[derive(Default)]
pub(crate) struct Output {
    /// Logits `[rows, vocab]` of the rows that asked for them, in their order.
    pub logits: Vec<f32>,
    /// Hidden states after the last norm, `[rows, width]`, likewise.
    pub states: Vec<f32>,
}

/// Makes the cache have the blocks that `blocks` has handed out.
pub(crate) fn follow(cache: &mut KvCache, blocks: &mut Blocks) -> Result<(), OutOfMemory> {
    for change in blocks.take_changes() {
        match change {
            Change::Provide(group, block) => cache.provide(group, block)?,
            Change::Release(group, block) => cache.release(group, block),
        }
    }
    Ok(())
}

/// The rows of all parts, in their order.
pub(crate) fn rows(plan: &Plan, scheduler: &Scheduler) -> Rows {
    let mut rows = Rows::default();
    for part in &plan.parts {
        let Some(s) = scheduler.get(part.id) else { continue };
        let start = rows.ids.len();
        rows.ids.extend(&s.tokens[part.tokens.clone()]);
        rows.spans.push(Span {
            rows: start..rows.ids.len(),
            position: part.tokens.start,
            tables: scheduler.tables(part.id),
        });
    }
    rows
}

/// What is wanted of a pass.
pub(crate) struct Wanted<'a> {
    /// Rows whose logits are.
    pub logits: &'a [u32],
    /// Rows whose hidden states are.
    pub states: &'a [u32],
    /// The adapter of each row, if the model has any.
    pub adapters: Option<Vec<Option<u32>>>,
}

/// Runs the model over `rows`: the logits of some rows and the hidden states of others.
pub(crate) fn pass(
    model: &dyn Model,
    ops: &mut dyn Ops,
    rows: &Rows,
    wanted: Wanted,
    cache: &mut KvCache,
) -> Output {
    let Wanted { logits, states, adapters } = wanted;
    if adapters.is_some() {
        ops.adapt(adapters.clone());
    }
    let x = layers(model, ops, rows, cache);
    let mut out = Output::default();
    if !logits.is_empty() {
        if let Some(all) = &adapters {
            ops.adapt(Some(logits.iter().map(|row| all[*row as usize]).collect()));
        }
        // The vocabulary is wide: only rows whose logits are wanted go through the head.
        let x = ops.gather(&x, logits);
        let y = model.head(ops, &x);
        out.logits = ops.read(&y);
    }
    if !states.is_empty() {
        let x = ops.gather(&x, states);
        let y = model.norm(ops, &x);
        out.states = ops.read(&y);
    }
    out
}
