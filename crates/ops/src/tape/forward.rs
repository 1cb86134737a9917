//! The operations, forward.

use super::{Attended, Kept, Lent, LoraNode, Mixed, Node, Part, Saved, Tape, named};
use crate::weight::WeightData;
use crate::{
    Activation, AttentionSpec, Coefs, KvCache, Linear, Ops, PackError, ParamName, RawMatrix, Rope,
    Routes, Rows, Tensor, Vector, Weight,
};
use lapidary_kernels::backward::{self as kernels, Operand};
use lapidary_kernels::{FloatRows, product_f32};
use std::ops::Range;
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
        }
        out
    }

    /// Whether the rows go through a cache, which can't be recorded.
    fn is_cached(&self, rows: &Rows) -> bool {
        let cached = rows.spans.iter().any(|s| !s.tables.is_empty());
        assert!(!cached || !self.recording, "a cache can't be recorded");
        assert!(cached || rows.together.is_empty(), "rows that see ahead: no gradient");
        cached
    }

    fn attend_whole(&mut self, [q, k, v]: [&Tensor; 3], of: &Attended) -> Tensor {
        let mut out = self.cpu.stale(q.rows(), q.cols());
        let inputs = [q.data(), k.data(), v.data()];
        kernels::attend_forward(&self.gemm, &of.spec, &of.spans, inputs, out.data_mut());
        out
    }

    /// Keeps a layer's keys and values for later ones that read them. A layer that is computed
    /// again keeps what its readers have given back.
    fn lend(&mut self, of: &Attended, keys: &Tensor, values: &Tensor) {
        let before = self.lent.remove(&of.spec.window).filter(|l| l.layer == of.layer);
        let gradients = before.and_then(|l| l.gradients);
        let (keys, values) = (keys.share(), values.share());
        self.lent.insert(of.spec.window, Lent { layer: of.layer, keys, values, gradients });
    }

    /// The keys and values of another layer.
    pub(super) fn borrow(&self, of: &Attended) -> [Tensor; 2] {
        match self.lent.get(&of.spec.window) {
            Some(l) if l.layer == of.layer => [l.keys.share(), l.values.share()],
            _ => panic!("layer {} is not the last of its kind with keys", of.layer),
        }
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

/// Whole sequences: the rows of each.
fn whole(rows: &Rows) -> Vec<Range<usize>> {
    rows.spans.iter().map(|s| s.rows.clone()).collect()
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
        let WeightData::Taped { index, columns, .. } = &*weight.0 else {
            // A frozen table.
            return self.cpu.embed(weight, ids, scale);
        };
        let (index, columns, k) = (*index, columns.clone(), columns.len());
        let mut out = self.cpu.stale(ids.len(), k);
        let isa = self.gemm.isa();
        self.by_rows(out.data_mut(), k, |first, part| {
            for (&id, out) in ids[first..].iter().zip(part.chunks_exact_mut(k)) {
                match &self.weights[index] {
                    Kept::Param(i) => {
                        let p = &self.params[*i];
                        let at = id as usize * p.shape[1] + columns.start;
                        out.copy_from_slice(&p.values[at..at + k]);
                    }
                    Kept::Frozen { weight, .. } => weight.row(isa, id as usize, out),
                }
                if scale != 1.0 {
                    out.iter_mut().for_each(|x| *x *= scale);
                }
            }
        });
        let ids = ids.to_vec();
        self.note(Node::Embed { weight: index, columns, ids, scale, out: out.id() });
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
        if self.is_cached(rows) {
            return self.cpu.attend(q, k, v, spec, layer, rows, cache);
        }
        let of = Attended { spec: *spec, spans: whole(rows), layer };
        let out = self.attend_whole([q, k, v], &of);
        if cache.layout.lent {
            self.lend(&of, k, v);
        }
        let (q, k, v) = (self.save(q), self.save(k), self.save(v));
        self.note(Node::Attend { q, k, v, of, out: out.id() });
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
        if self.is_cached(rows) {
            return self.cpu.attend_shared(q, spec, layer, rows, cache);
        }
        let of = Attended { spec: *spec, spans: whole(rows), layer };
        let [k, v] = self.borrow(&of);
        let out = self.attend_whole([q, &k, &v], &of);
        let q = self.save(q);
        self.note(Node::AttendShared { q, of, out: out.id() });
        out
    }

    fn route(&mut self, scores: &Tensor, k: usize, scale: &Vector) -> Routes {
        let today = self.today(scale);
        let routes = self.cpu.route(scores, k, &today);
        if self.recording {
            let (scores, scale) = (scores.share(), scale.clone());
            self.note(Node::Route { scores, k, scale, out: routes.id });
        }
        routes
    }

    fn experts(
        &mut self,
        x: &Tensor,
        routes: &Routes,
        gate_up: &[Linear],
        down: &[Linear],
        kind: Activation,
    ) -> Tensor {
        let mut out = self.zeros(x.rows(), down[0].weight.n());
        let mut parts = Vec::new();
        // In the order of the experts' numbers, as everywhere.
        for (expert, (gate_up, down)) in gate_up.iter().zip(down).enumerate() {
            let rows = routes.rows(expert);
            if rows.is_empty() {
                continue;
            }
            let h = self.gather(x, &rows);
            let h = self.linear(&h, gate_up);
            let both = self.recording.then(|| h.share());
            let h = self.cpu.gated_halves(&h, kind);
            if let Some(x) = both {
                self.note(Node::GatedHalves { x, kind, out: h.id() });
            }
            let made = self.linear(&h, down);
            routes.add(expert, &made, &mut out);
            if self.recording {
                parts.push(Part { expert, made });
            }
        }
        if self.recording {
            self.note(Node::Experts { parts, routes: routes.clone(), out: out.id() });
        }
        out
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
        assert!(shift.is_none() || !self.recording, "a shift: no gradient");
        let before = self.recording.then(|| x.share());
        let today = self.today(scale);
        let out = self.cpu.affine(x, &today, shift);
        if let Some(x) = before {
            self.note(Node::Affine { x, scale: scale.clone(), out: out.id() });
        }
        out
    }

    fn mix(&mut self, x: &Tensor, coefs: Coefs, width: usize) -> Tensor {
        let out = self.cpu.mix(x, coefs, width);
        if self.recording {
            let coefs = match coefs {
                Coefs::Same(coefs) => Mixed::Same(coefs.to_vec()),
                Coefs::Each(coefs) => Mixed::Each(coefs.share(), x.share()),
            };
            self.note(Node::Mix { x: x.id(), cols: x.cols(), coefs, width, out: out.id() });
        }
        out
    }

    fn match_rms(&mut self, x: Tensor, like: &Tensor) -> Tensor {
        let before = self.recording.then(|| x.share());
        let out = self.cpu.match_rms(x, like);
        if let Some(x) = before {
            self.note(Node::MatchRms { x, like: like.share(), out: out.id() });
        }
        out
    }

    fn sparsify(&mut self, x: Tensor, deviations: f32) -> Tensor {
        let before = self.recording.then(|| x.share());
        let out = self.cpu.sparsify(x, deviations);
        if let Some(x) = before {
            self.note(Node::Sparsify { x, deviations, out: out.id() });
        }
        out
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
