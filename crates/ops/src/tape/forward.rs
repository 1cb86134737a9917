//! The operations, forward.

use super::{Kept, LoraNode, Node, Saved, Tape, named};
use crate::{
    Activation, AttentionSpec, Coefs, KvCache, Linear, Ops, PackError, ParamName, RawMatrix, Rope,
    Routes, Rows, Tensor, Vector, Weight,
};
use lapidary_kernels::backward::{self as kernels, Operand};
use lapidary_kernels::{FloatRows, product_f32};
use std::sync::Arc;

/// Rows below which a product reads frozen weights in place; packing them would take longer.
const FEW: usize = 8;

impl Tape {
    /// Operations that no family which trains is made of.
    fn no_backward(&self, what: &str) {
        assert!(!self.recording, "{what}: no gradient");
    }

    /// `x * weight^T`.
    fn project(&mut self, x: &Tensor, weight: usize, n: usize) -> Tensor {
        let mut out = self.cpu.stale(x.rows(), n);
        let (rows, k) = (x.rows(), x.cols());
        let a = Operand::Rows(x.data(), k);
        match &self.weights[weight] {
            Kept::Param(i) => {
                let b = Operand::Rows(&self.params[*i].values, k);
                self.gemm.product([rows, n, k], a, b, out.data_mut(), false);
            }
            Kept::Frozen { weight, .. } if rows < FEW => {
                let x = FloatRows::new(x.data(), k);
                product_f32(self.gemm.isa(), self.gemm.pool(), &x, weight, out.data_mut());
            }
            Kept::Frozen { weight, .. } => {
                let b = Operand::Weights(weight);
                self.gemm.product([rows, n, k], a, b, out.data_mut(), false);
            }
            Kept::Table(_) => panic!("a table of rows takes no product"),
        }
        out
    }

    /// Adds an adapter's share to `out`.
    fn adapt(&mut self, x: &Tensor, weight: usize, out: &mut Tensor) -> Option<Box<LoraNode>> {
        let Kept::Frozen { adapter: Some((index, part)), .. } = self.weights[weight] else {
            return None;
        };
        if self.pass.base {
            return None;
        }
        let adapter = self.adapters[index].clone();
        let (rank, k) = (self.params[adapter.a].shape[0], x.cols());
        let dropout = self.pass.dropout.filter(|_| adapter.dropout > 0.0);
        let dropout = dropout.map(|seed| named(seed, &adapter.module));
        let mut x = x.share();
        if let Some(seed) = dropout {
            self.drop_out(&mut x, adapter.dropout, seed);
        }
        let mut low = self.cpu.stale(x.rows(), rank);
        let a = Operand::Rows(&self.params[adapter.a].values, k);
        let shape = [x.rows(), rank, k];
        self.gemm.product(shape, Operand::Rows(x.data(), k), a, low.data_mut(), false);
        low.data_mut().iter_mut().for_each(|v| *v *= adapter.factor);
        let n = out.cols();
        let b = &self.params[adapter.b].values[part.0 * n * rank..(part.0 + 1) * n * rank];
        let shape = [x.rows(), n, rank];
        let (a, b) = (Operand::Rows(low.data(), rank), Operand::Rows(b, rank));
        self.gemm.product(shape, a, b, out.data_mut(), true);
        Some(Box::new(LoraNode { adapter: index, part, low, dropout }))
    }
}

impl Ops for Tape {
    fn matrix(&mut self, raw: RawMatrix) -> Result<Weight, PackError> {
        self.add_matrix(raw)
    }

    fn table(&mut self, raw: RawMatrix) -> Result<Weight, PackError> {
        self.add_table(raw)
    }

    fn vector(&mut self, name: ParamName, values: Vec<f32>) -> Vector {
        self.add_vector(name, values)
    }

    fn embed(&mut self, weight: &Weight, ids: &[u32], scale: f32) -> Tensor {
        let (index, k) = (self.kept(weight), weight.k());
        let mut out = self.cpu.stale(ids.len(), k);
        if let Kept::Table(table) = &self.weights[index] {
            let table = table.clone();
            return self.cpu.embed(&table, ids, scale);
        }
        let isa = self.gemm.isa();
        self.by_rows(out.data_mut(), k, |first, part| {
            for (&id, out) in ids[first..].iter().zip(part.chunks_exact_mut(k)) {
                match &self.weights[index] {
                    Kept::Param(i) => {
                        let at = id as usize * k;
                        out.copy_from_slice(&self.params[*i].values[at..at + k]);
                    }
                    Kept::Frozen { weight, .. } => weight.row(isa, id as usize, out),
                    Kept::Table(_) => unreachable!("handled above"),
                }
                if scale != 1.0 {
                    out.iter_mut().for_each(|x| *x *= scale);
                }
            }
        });
        self.note(Node::Embed { weight: index, ids: ids.to_vec(), scale, out: out.id() });
        out
    }

    fn linear(&mut self, x: &Tensor, linear: &Linear) -> Tensor {
        let weight = self.kept(&linear.weight);
        let n = linear.weight.n();
        let mut out = self.project(x, weight, n);
        let lora = self.adapt(x, weight, &mut out);
        if let Some(bias) = &linear.bias {
            let bias = self.today(bias);
            self.by_rows(out.data_mut(), n, |_, part| {
                for row in part.chunks_exact_mut(n) {
                    row.iter_mut().zip(bias.values()).for_each(|(y, b)| *y += b);
                }
            });
        }
        let bias = linear.bias.as_ref().and_then(|b| b.param);
        let x = match self.weights[weight] {
            // The gradient of a frozen matrix is not asked for.
            Kept::Frozen { .. } if lora.is_none() => {
                Saved { id: x.id(), cols: x.cols(), kept: None }
            }
            _ => self.save(x),
        };
        self.note(Node::Linear { weight, bias, x, lora, out: out.id() });
        out
    }

    fn rms_norm(&mut self, x: &Tensor, weight: &Vector, eps: f32) -> Tensor {
        let today = self.today(weight);
        let out = self.cpu.rms_norm(x, &today, eps);
        self.note(Node::RmsNorm { x: x.share(), weight: weight.clone(), eps, out: out.id() });
        out
    }

    fn layer_norm(&mut self, x: &Tensor, weight: &Vector, bias: &Vector, eps: f32) -> Tensor {
        let (w, b) = (self.today(weight), self.today(bias));
        let out = self.cpu.layer_norm(x, &w, &b, eps);
        let (weight, bias) = (weight.clone(), bias.clone());
        self.note(Node::LayerNorm { x: x.share(), weight, bias, eps, out: out.id() });
        out
    }

    fn rope(&mut self, x: Tensor, rope: &Rope, rows: &Rows) -> Tensor {
        let id = x.id();
        let out = self.cpu.rope(x, rope, rows);
        if self.recording {
            let positions = Arc::new(rows.positions().collect());
            self.note(Node::Rope { x: id, rope: rope.clone(), positions, out: out.id() });
        }
        out
    }

    /// Rows whose spans have block tables go through the cache and can't be recorded; whole
    /// sequences without tables attend among themselves, and the cache is not touched.
    fn attend(
        &mut self,
        q: &Tensor,
        k: &Tensor,
        v: &Tensor,
        spec: &AttentionSpec,
        layer: usize,
        rows: &Rows,
        cache: &mut KvCache,
    ) -> Tensor {
        if rows.spans.iter().any(|s| !s.tables.is_empty()) {
            assert!(!self.recording, "a cache can't be recorded");
            return self.cpu.attend(q, k, v, spec, layer, rows, cache);
        }
        assert!(rows.together.is_empty(), "rows that see ahead: no gradient");
        let spans: Vec<_> = rows.spans.iter().map(|s| s.rows.clone()).collect();
        let mut out = self.cpu.stale(q.rows(), q.cols());
        let inputs = [q.data(), k.data(), v.data()];
        kernels::attend_forward(&self.gemm, spec, &spans, inputs, out.data_mut());
        let (q, k, v) = (self.save(q), self.save(k), self.save(v));
        self.note(Node::Attend { q, k, v, spec: *spec, spans, out: out.id() });
        out
    }

    fn attend_shared(
        &mut self,
        q: &Tensor,
        spec: &AttentionSpec,
        layer: usize,
        rows: &Rows,
        cache: &KvCache,
    ) -> Tensor {
        self.no_backward("attention to another layer's keys");
        self.cpu.attend_shared(q, spec, layer, rows, cache)
    }

    fn route(&mut self, scores: &Tensor, k: usize, scale: &Vector) -> Routes {
        self.no_backward("routes to experts");
        self.cpu.route(scores, k, scale)
    }

    fn experts(
        &mut self,
        _: &Tensor,
        _: &Routes,
        _: &[Linear],
        _: &[Linear],
        _: Activation,
    ) -> Tensor {
        panic!("experts have no place on a tape")
    }

    fn activation(&mut self, x: Tensor, kind: Activation) -> Tensor {
        let before = self.recording.then(|| x.share());
        let out = self.cpu.activation(x, kind);
        if let Some(x) = before {
            self.note(Node::Activation { x, kind, out: out.id() });
        }
        out
    }

    fn gated(&mut self, gate: Tensor, up: &Tensor, kind: Activation) -> Tensor {
        let before = self.recording.then(|| (gate.share(), up.share()));
        let out = self.cpu.gated(gate, up, kind);
        if let Some((gate, up)) = before {
            self.note(Node::Gated { gate, up, kind, out: out.id() });
        }
        out
    }

    fn add(&mut self, x: Tensor, y: &Tensor) -> Tensor {
        let id = x.id();
        let out = self.cpu.add(x, y);
        self.note(Node::Add { x: id, y: y.id(), out: out.id() });
        out
    }

    fn scale(&mut self, x: Tensor, factor: f32) -> Tensor {
        let id = x.id();
        let out = self.cpu.scale(x, factor);
        self.note(Node::Scale { x: id, factor, out: out.id() });
        out
    }

    fn softcap(&mut self, x: Tensor, cap: f32) -> Tensor {
        let id = x.id();
        let out = self.cpu.softcap(x, cap);
        self.note(Node::Softcap { x: id, cap, y: out.share() });
        out
    }

    fn affine(&mut self, x: Tensor, scale: &Vector, shift: Option<&Vector>) -> Tensor {
        self.no_backward("an affine map");
        self.cpu.affine(x, scale, shift)
    }

    fn mix(&mut self, x: &Tensor, coefs: Coefs, width: usize) -> Tensor {
        self.no_backward("a mixture of parts");
        self.cpu.mix(x, coefs, width)
    }

    fn match_rms(&mut self, x: Tensor, like: &Tensor) -> Tensor {
        self.no_backward("a matched norm");
        self.cpu.match_rms(x, like)
    }

    fn sparsify(&mut self, x: Tensor, deviations: f32) -> Tensor {
        self.no_backward("sparse activations");
        self.cpu.sparsify(x, deviations)
    }

    fn clamp(&mut self, x: Tensor, low: f32, high: f32) -> Tensor {
        self.no_backward("clamped values");
        self.cpu.clamp(x, low, high)
    }

    fn rope_axes(&mut self, x: Tensor, rope: &Rope, axes: &[Vec<usize>]) -> Tensor {
        self.no_backward("rotation by axes");
        self.cpu.rope_axes(x, rope, axes)
    }

    fn mean_rows(&mut self, x: &Tensor, groups: &[Vec<u32>]) -> Tensor {
        self.no_backward("means of rows");
        self.cpu.mean_rows(x, groups)
    }

    fn place(&mut self, x: Tensor, y: &Tensor, rows: &[u32]) -> Tensor {
        self.no_backward("placed rows");
        self.cpu.place(x, y, rows)
    }

    fn tensor(&mut self, values: &[f32], cols: usize) -> Tensor {
        self.cpu.tensor(values, cols)
    }

    fn gather(&mut self, x: &Tensor, rows: &[u32]) -> Tensor {
        let out = self.cpu.gather(x, rows);
        let (of, rows) = (x.rows(), rows.to_vec());
        self.note(Node::Gather { x: x.id(), of, rows, out: out.id() });
        out
    }

    fn read(&mut self, x: &Tensor) -> Vec<f32> {
        self.cpu.read(x)
    }
}
