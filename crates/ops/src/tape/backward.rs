//! The operations, backward: from the gradient of an output to those of its inputs.

use super::{Attended, Kept, LoraNode, Mixed, Node, Part, Saved, Tape};
use crate::{Ops, Tensor, Vector};
use lapidary_kernels::backward::{self as kernels, AttendGradients, Operand};
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Mutex;

/// Rows whose share of a vector's gradient is summed by itself: fixed, so that threads leave no
/// trace.
pub(super) const ROWS: usize = 64;

/// What the way back has in hand, by the ids of tensors.
#[derive(Default)]
struct Back {
    gradients: HashMap<u64, Tensor>,
    /// Operands that were made again, until the operation that made them is reached.
    again: HashMap<u64, Tensor>,
}

impl Tape {
    /// How long the recording is.
    pub fn mark(&self) -> usize {
        self.nodes.len()
    }

    /// Pulls the gradient of `output` back through what was recorded since `mark`; parameters'
    /// gradients grow. Returns the gradient of `input`, if it was used. That part of the recording
    /// is used up.
    pub fn backward(
        &mut self,
        output: u64,
        gradient: Tensor,
        input: u64,
        mark: usize,
    ) -> Option<Tensor> {
        let mut back = Back::default();
        back.gradients.insert(output, gradient);
        while self.nodes.len() > mark {
            let Some(node) = self.nodes.pop() else { break };
            self.step(node, &mut back);
        }
        back.gradients.remove(&input)
    }

    /// The number of a tensor, for [`Tape::backward`].
    pub fn id_of(&self, x: &Tensor) -> u64 {
        x.id()
    }

    /// Adds to the gradient of a tensor.
    fn give(&mut self, back: &mut Back, id: u64, g: Tensor) {
        let sum = match back.gradients.remove(&id) {
            None => g,
            Some(sum) => self.sum(sum, &g),
        };
        back.gradients.insert(id, sum);
    }

    fn sum(&self, mut sum: Tensor, more: &Tensor) -> Tensor {
        let cols = sum.cols();
        self.by_rows(sum.data_mut(), cols, |first, part| {
            let more = &more.data()[first * cols..first * cols + part.len()];
            part.iter_mut().zip(more).for_each(|(s, m)| *s += m);
        });
        sum
    }

    /// An operand, made again if it was not kept.
    fn recall(&mut self, saved: &Saved, back: &mut Back) -> Tensor {
        if let Some(x) = saved.kept.as_ref().or_else(|| back.again.get(&saved.id)) {
            return x.share();
        }
        let x = self.make_again(saved.id);
        back.again.insert(saved.id, x.share());
        x
    }

    /// What an operation that is still on the recording has made.
    fn make_again(&mut self, id: u64) -> Tensor {
        let Some(at) = self.nodes.iter().rposition(|n| n.out() == id) else {
            unreachable!("what is not kept was recorded before")
        };
        match &self.nodes[at] {
            Node::RmsNorm { x, weight, eps, .. } => {
                let w = self.today(weight);
                self.cpu.rms_norm(x, &w, *eps)
            }
            Node::LayerNorm { x, weight, bias, eps, .. } => {
                let (w, b) = (self.today(weight), self.today(bias));
                self.cpu.layer_norm(x, &w, &b, *eps)
            }
            Node::Activation { x, kind, .. } => self.cpu.activation(x.share(), *kind),
            Node::Gated { gate, up, kind, .. } => self.cpu.gated(gate.share(), up, *kind),
            Node::Rope { x, rope, positions, .. } => {
                let (x, rope, positions) = (*x, rope.clone(), positions.clone());
                let x = self.make_again(x);
                self.cpu.rotate(x, &rope, &positions)
            }
            _ => unreachable!("products are kept"),
        }
    }

    fn step(&mut self, node: Node, back: &mut Back) {
        let out = node.out();
        back.again.remove(&out);
        // Without a gradient the output went nowhere.
        let Some(g) = back.gradients.remove(&out) else { return };
        match node {
            Node::Embed { weight, columns, ids, scale, .. } => {
                self.embed_back(weight, columns, &ids, scale, &g);
            }
            Node::Linear { weight, bias, x, lora, .. } => {
                let dx = self.linear_back(weight, bias, &x, lora, &g, back);
                self.give(back, x.id, dx);
            }
            Node::RmsNorm { x, weight, eps, .. } => {
                let dx = self.norm_back(&x, &weight, None, eps, &g);
                self.give(back, x.id(), dx);
            }
            Node::LayerNorm { x, weight, bias, eps, .. } => {
                let dx = self.norm_back(&x, &weight, Some(&bias), eps, &g);
                self.give(back, x.id(), dx);
            }
            Node::Attend { q, k, v, of, .. } => {
                let ids = [q.id, k.id, v.id];
                let inputs = [q, k, v].map(|x| self.recall(&x, back));
                for (id, g) in ids.into_iter().zip(self.attend_back(&inputs, &of, &g)) {
                    self.give(back, id, g);
                }
                let mine = self.lent.get_mut(&of.spec.window).filter(|l| l.layer == of.layer);
                if let Some([dk, dv]) = mine.and_then(|l| l.gradients.take()) {
                    self.give(back, ids[1], dk);
                    self.give(back, ids[2], dv);
                }
            }
            Node::AttendShared { q, of, .. } => {
                let id = q.id;
                let q = self.recall(&q, back);
                let [k, v] = self.borrow(&of);
                let [dq, dk, dv] = self.attend_back(&[q, k, v], &of, &g);
                self.give(back, id, dq);
                self.give_back(&of, [dk, dv]);
            }
            Node::Gated { gate, up, kind, .. } => {
                let (dgate, dup) = self.gated_back(&gate, &up, kind, g);
                self.give(back, gate.id(), dgate);
                self.give(back, up.id(), dup);
            }
            Node::Add { x, y, .. } => {
                self.give(back, y, g.share());
                self.give(back, x, g);
            }
            Node::Gather { x, of, rows, .. } => {
                let dx = back.gradients.remove(&x);
                let mut dx = dx.unwrap_or_else(|| self.zeros(of, g.cols()));
                self.scatter_add(&mut dx, &rows, &g);
                back.gradients.insert(x, dx);
            }
            Node::Affine { x, scale, .. } => {
                let dx = self.affine_back(&x, &scale, g);
                self.give(back, x.id(), dx);
            }
            Node::Mix { x, cols, coefs, width, .. } => {
                let (dx, dcoefs) = self.mix_back(cols, &coefs, width, &g);
                self.give(back, x, dx);
                if let (Mixed::Each(coefs, _), Some(dcoefs)) = (&coefs, dcoefs) {
                    self.give(back, coefs.id(), dcoefs);
                }
            }
            Node::MatchRms { x, like, .. } => {
                let (dx, dlike) = self.match_back(&x, &like, g);
                self.give(back, x.id(), dx);
                self.give(back, like.id(), dlike);
            }
            Node::Route { scores, k, scale, .. } => {
                let dscores = self.route_back(&scores, k, &scale, &g);
                self.give(back, scores.id(), dscores);
            }
            Node::GatedHalves { x, kind, .. } => {
                let dx = self.gated_halves_back(&x, kind, &g);
                self.give(back, x.id(), dx);
            }
            Node::Experts { parts, routes, .. } => {
                let mut dweights = self.zeros(g.rows(), routes.k);
                for Part { expert, made } in parts {
                    let dmade = self.expert_back(expert, &made, &routes, &g, &mut dweights);
                    self.give(back, made.id(), dmade);
                }
                self.give(back, routes.id, dweights);
            }
            Node::Rope { .. }
            | Node::Activation { .. }
            | Node::Scale { .. }
            | Node::Softcap { .. }
            | Node::Sparsify { .. } => {
                let (id, dx) = self.in_place_back(node, g);
                self.give(back, id, dx);
            }
        }
    }

    fn attend_back(&mut self, [q, k, v]: &[Tensor; 3], of: &Attended, g: &Tensor) -> [Tensor; 3] {
        let [mut dq, mut dk, mut dv] = [q, k, v].map(|x| self.cpu.stale(x.rows(), x.cols()));
        let to = AttendGradients { dq: dq.data_mut(), dk: dk.data_mut(), dv: dv.data_mut() };
        let inputs = [q.data(), k.data(), v.data()];
        kernels::attend_backward(&self.gemm, &of.spec, &of.spans, inputs, g.data(), to);
        [dq, dk, dv]
    }

    /// Adds to the gradients of keys and values that another layer lent.
    fn give_back(&mut self, of: &Attended, more: [Tensor; 2]) {
        let Some(mut lent) = self.lent.remove(&of.spec.window) else { return };
        lent.gradients = Some(match lent.gradients.take() {
            None => more,
            Some([keys, values]) => {
                let [dk, dv] = more;
                [self.sum(keys, &dk), self.sum(values, &dv)]
            }
        });
        self.lent.insert(of.spec.window, lent);
    }

    /// Operations of one tensor whose gradient changes in place.
    fn in_place_back(&self, node: Node, mut g: Tensor) -> (u64, Tensor) {
        let (isa, cols) = (self.isa(), g.cols());
        let id = match node {
            Node::Rope { x, rope, positions, .. } => {
                let table = rope.table(positions.iter().copied().max().unwrap_or(0));
                let half = rope.half();
                self.by_rows(g.data_mut(), cols, |first, part| {
                    for (position, row) in
                        positions[first..].iter().zip(part.chunks_exact_mut(cols))
                    {
                        let angles = &table[position * 2 * half..(position + 1) * 2 * half];
                        let (cos, sin) = angles.split_at(half);
                        kernels::rope_backward(row, cos, sin, rope.pairs);
                    }
                });
                x
            }
            Node::Activation { x, kind, .. } => {
                self.by_rows(g.data_mut(), cols, |first, part| {
                    let x = &x.data()[first * cols..first * cols + part.len()];
                    kernels::activation_backward(isa, kind, x, part);
                });
                x.id()
            }
            Node::Scale { x, factor, .. } => {
                self.by_rows(g.data_mut(), cols, |_, part| {
                    part.iter_mut().for_each(|g| *g *= factor);
                });
                x
            }
            Node::Softcap { x, cap, y } => {
                self.by_rows(g.data_mut(), cols, |first, part| {
                    let y = &y.data()[first * cols..first * cols + part.len()];
                    kernels::softcap_backward(isa, cap, y, part);
                });
                x
            }
            Node::Sparsify { x, deviations, .. } => {
                self.by_rows(g.data_mut(), cols, |first, part| {
                    let x = x.data()[first * cols..].chunks_exact(cols);
                    for (row, x) in part.chunks_exact_mut(cols).zip(x) {
                        kernels::sparsify_backward(isa, x, deviations, row);
                    }
                });
                x.id()
            }
            _ => unreachable!("operations in place"),
        };
        (id, g)
    }

    fn gated_back(
        &mut self,
        gate: &Tensor,
        up: &Tensor,
        kind: crate::Activation,
        mut g: Tensor,
    ) -> (Tensor, Tensor) {
        let (isa, cols) = (self.isa(), g.cols());
        let mut dup = self.cpu.stale(g.rows(), cols);
        let each = super::GRAIN.div_ceil(cols) * cols;
        let parts: Vec<_> = (g.data_mut().chunks_mut(each).zip(dup.data_mut().chunks_mut(each)))
            .zip(gate.data().chunks(each).zip(up.data().chunks(each)))
            .map(Mutex::new)
            .collect();
        self.pool().run(parts.len(), &|i| {
            let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
            let ((g, dup), (gate, up)) = &mut *part;
            kernels::gated_backward(isa, kind, gate, up, g, dup);
        });
        drop(parts);
        (g, dup)
    }

    fn embed_back(
        &mut self,
        weight: usize,
        columns: Range<usize>,
        ids: &[u32],
        scale: f32,
        g: &Tensor,
    ) {
        let Kept::Param(index) = self.weights[weight] else { return };
        let k = self.params[index].shape[1];
        let pool = self.shared_pool();
        let grad = self.params[index].grad.get_mut();
        // Each part of the table looks for its ids, in the order of the tokens.
        let each = (grad.len() / k).div_ceil(16);
        let parts: Vec<_> = grad.chunks_mut(each * k).map(Mutex::new).collect();
        pool.run(parts.len(), &|i| {
            let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
            let range = i * each..(i + 1) * each;
            for (&id, g) in ids.iter().zip(g.data().chunks_exact(columns.len())) {
                if range.contains(&(id as usize)) {
                    let at = (id as usize - range.start) * k + columns.start;
                    part[at..at + g.len()].iter_mut().zip(g).for_each(|(p, g)| *p += g * scale);
                }
            }
        });
    }

    /// Sums over rows: of each block of [`ROWS`], then of the blocks in order.
    pub(super) fn sum_rows(&mut self, param: Option<usize>, blocks: &[Vec<f32>]) {
        let Some(index) = param else { return };
        let grad = self.params[index].grad.get_mut();
        for block in blocks {
            grad.iter_mut().zip(block).for_each(|(g, b)| *g += b);
        }
    }

    /// The sums of each block of [`ROWS`].
    pub(super) fn sums_of_rows(&self, g: &Tensor) -> Vec<Vec<f32>> {
        let n = g.cols();
        let rows: Vec<&[f32]> = g.data().chunks(ROWS * n).collect();
        let blocks: Vec<Mutex<Vec<f32>>> = rows.iter().map(|_| Mutex::default()).collect();
        self.pool().run(blocks.len(), &|i| {
            let mut sum = vec![0.0; n];
            for row in rows[i].chunks_exact(n) {
                sum.iter_mut().zip(row).for_each(|(s, g)| *s += g);
            }
            *blocks[i].lock().unwrap_or_else(|e| e.into_inner()) = sum;
        });
        blocks.into_iter().map(inner).collect()
    }

    fn norm_back(
        &mut self,
        x: &Tensor,
        weight: &Vector,
        bias: Option<&Vector>,
        eps: f32,
        g: &Tensor,
    ) -> Tensor {
        let (isa, w) = (self.isa(), self.today(weight));
        let n = w.values().len();
        let mut dx = self.cpu.stale(x.rows(), x.cols());
        let each = ROWS * x.cols();
        let parts: Vec<_> = (dx.data_mut().chunks_mut(each))
            .zip(x.data().chunks(each).zip(g.data().chunks(each)))
            .map(|(dx, (x, g))| Mutex::new((dx, x, g, vec![0.0; n], vec![0.0; n])))
            .collect();
        self.pool().run(parts.len(), &|i| {
            let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
            let (dx, x, g, dw, db) = &mut *part;
            match bias {
                None => kernels::rms_norm_backward(isa, x, w.values(), eps, g, dx, dw),
                Some(_) => kernels::layer_norm_backward(isa, x, w.values(), eps, g, dx, dw, db),
            }
        });
        let sums = parts.into_iter().map(inner).map(|(_, _, _, dw, db)| (dw, db));
        let (dw, db): (Vec<_>, Vec<_>) = sums.unzip();
        self.sum_rows(weight.param, &dw);
        self.sum_rows(bias.and_then(|b| b.param), &db);
        dx
    }

    fn linear_back(
        &mut self,
        weight: usize,
        bias: Option<usize>,
        x: &Saved,
        lora: Option<Box<LoraNode>>,
        g: &Tensor,
        back: &mut Back,
    ) -> Tensor {
        if let Some(bias) = bias {
            let sums = self.sums_of_rows(g);
            self.sum_rows(Some(bias), &sums);
        }
        let (rows, n, k) = (g.rows(), g.cols(), x.cols);
        let needed = lora.is_some() || matches!(self.weights[weight], Kept::Param(_));
        let x = needed.then(|| self.recall(x, back));
        let mut dx = self.cpu.stale(rows, k);
        let (dy, shape) = (Operand::Rows(g.data(), n), [rows, k, n]);
        match &self.weights[weight] {
            Kept::Param(index) => {
                let param = &mut self.params[*index];
                let b = Operand::Columns(&param.values, k);
                self.gemm.product(shape, dy, b, dx.data_mut(), false);
                if let Some(x) = &x {
                    let (a, b) = (Operand::Columns(g.data(), n), Operand::Columns(x.data(), k));
                    let (grad, add) = param.grad.sum();
                    self.gemm.product([n, k, rows], a, b, grad, add);
                }
            }
            Kept::Frozen { weight, .. } => {
                let b = Operand::WeightsTransposed(weight);
                self.gemm.product(shape, dy, b, dx.data_mut(), false);
            }
        }
        if let (Some(lora), Some(x)) = (lora, x) {
            self.lora_back(&lora, x, g, &mut dx);
        }
        dx
    }

    fn lora_back(&mut self, lora: &LoraNode, mut x: Tensor, g: &Tensor, dx: &mut Tensor) {
        let adapter = self.adapters[lora.adapter].clone();
        if let Some(seed) = lora.dropout {
            self.drop_out(&mut x, adapter.dropout, seed);
        }
        let (rows, n, k, rank) = (g.rows(), g.cols(), dx.cols(), lora.low.cols());
        let range = lora.part.0 * n * rank..(lora.part.0 + 1) * n * rank;
        let mut dlow = self.cpu.stale(rows, rank);
        let b = Operand::Columns(&self.params[adapter.b].values[range.clone()], rank);
        let dy = Operand::Rows(g.data(), n);
        self.gemm.product([rows, rank, n], dy, b, dlow.data_mut(), false);
        dlow.data_mut().iter_mut().for_each(|v| *v *= adapter.factor);
        let (a, b) = (Operand::Columns(g.data(), n), Operand::Columns(lora.low.data(), rank));
        let grad = &mut self.params[adapter.b].grad.get_mut()[range];
        self.gemm.product([n, rank, rows], a, b, grad, true);
        let (a, b) = (Operand::Columns(dlow.data(), rank), Operand::Columns(x.data(), k));
        let (grad, add) = self.params[adapter.a].grad.sum();
        self.gemm.product([rank, k, rows], a, b, grad, add);
        let dlow = Operand::Rows(dlow.data(), rank);
        let a = Operand::Columns(&self.params[adapter.a].values, k);
        match lora.dropout {
            None => self.gemm.product([rows, k, rank], dlow, a, dx.data_mut(), true),
            Some(seed) => {
                let mut own = self.cpu.stale(rows, k);
                self.gemm.product([rows, k, rank], dlow, a, own.data_mut(), false);
                self.drop_out(&mut own, adapter.dropout, seed);
                self.by_rows(dx.data_mut(), k, |row, part| {
                    let own = &own.data()[row * k..row * k + part.len()];
                    part.iter_mut().zip(own).for_each(|(d, o)| *d += o);
                });
            }
        }
    }
}

fn inner<T>(m: Mutex<T>) -> T {
    m.into_inner().unwrap_or_else(|e| e.into_inner())
}
