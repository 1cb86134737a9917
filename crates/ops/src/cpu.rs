//! The operations on processors.

use crate::weight::WeightData;
use crate::{
    Activation, AttentionSpec, Coefs, Isa, KvCache, Linear, LowRank, Ops, PackError, Pool,
    RawMatrix, Rope, Routes, Rows, Tensor, Vector, Weight, blocks,
};
use lapidary_kernels::{self as kernels, ByteRows, FloatRows, Heap, Layout, Packed, PairRows};
use std::sync::Arc;

/// How products treat the activations.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Precision {
    /// With quantised weights 8 bits with a scale for each 32 values, with bfloat16 weights
    /// bfloat16, sums in f32: several times faster; what other engines do. With F16 and F32
    /// weights f32.
    #[default]
    Fast,
    /// f32, against exactly dequantised weights.
    Exact,
}

/// Elements below which an operation is not worth a second thread.
const GRAIN: usize = 16 * 1024;

/// Listens to intermediate results: name, rows, values.
pub type Probe = Box<dyn FnMut(&str, usize, &[f32]) + Send>;

/// Sees the inputs of projections: the [`Weight::id`], and rows as long as the weight's.
pub type Watch = Box<dyn FnMut(usize, &[f32]) + Send>;

/// Which arrangement of the activations a product takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    Floats,
    Pairs,
    Bytes,
}

/// Activations as the last product arranged them; the next product is often of the same tensor.
struct Arranged {
    /// Whose they are.
    last: Option<(u64, Form)>,
    floats: FloatRows,
    pairs: PairRows,
    bytes: ByteRows,
}

/// The processor: an instruction set and a pool of threads.
pub struct Cpu {
    isa: Isa,
    pool: Arc<Pool>,
    precision: Precision,
    heap: Arc<Heap>,
    next_id: u64,
    arranged: Arranged,
    /// The adapter of each row of a projection's input; without it adapter 0 is everybody's.
    adapted: Option<Vec<Option<u32>>>,
    probe: Option<Probe>,
    watch: Option<Watch>,
}

impl Cpu {
    /// Runs on `pool` with instruction set `isa`.
    pub fn new(isa: Isa, pool: Arc<Pool>, precision: Precision) -> Self {
        let arranged = Arranged {
            last: None,
            floats: FloatRows::new(&[], 1),
            pairs: PairRows::default(),
            bytes: ByteRows::default(),
        };
        Self {
            isa,
            pool,
            precision,
            heap: Arc::default(),
            next_id: 1,
            arranged,
            adapted: None,
            probe: None,
            watch: None,
        }
    }

    pub(crate) fn heap(&self) -> &Arc<Heap> {
        &self.heap
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// The threads.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Shows every probed result to `probe` from now on.
    pub fn listen(&mut self, probe: Option<Probe>) {
        self.probe = probe;
    }

    /// Shows the inputs of every projection to `watch` from now on.
    pub fn watch(&mut self, watch: Option<Watch>) {
        self.watch = watch;
    }

    pub(crate) fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    pub(crate) fn stale(&mut self, rows: usize, cols: usize) -> Tensor {
        let id = self.id();
        Tensor::stale(&self.heap, id, rows, cols)
    }

    /// Runs `task(rows, their part of out)` for parts of `out`, a matrix of `cols` columns.
    fn by_rows(
        &self,
        out: &mut [f32],
        cols: usize,
        task: impl Fn(std::ops::Range<usize>, &mut [f32]) + Sync,
    ) {
        let rows = out.len() / cols;
        let grain = GRAIN.div_ceil(cols);
        let each = rows.div_ceil(self.pool.threads() * 4).max(grain);
        let parts: Vec<_> = (out.chunks_mut(each * cols).enumerate())
            .map(|(i, part)| std::sync::Mutex::new((i * each, part)))
            .collect();
        self.pool.run(parts.len(), &|i| {
            let mut part = parts[i].lock().unwrap_or_else(|e| e.into_inner());
            let (first, ref mut part) = *part;
            task(first..first + part.len() / cols, part);
        });
    }

    fn in_place(&mut self, mut x: Tensor, f: impl Fn(Isa, &mut [f32]) + Sync) -> Tensor {
        let (isa, cols) = (self.isa, x.cols());
        self.by_rows(x.data_mut(), cols, |_, part| f(isa, part));
        let id = self.id();
        x.renew(id)
    }

    fn norm(&mut self, x: &Tensor, f: impl Fn(Isa, &[f32], &mut [f32]) + Sync) -> Tensor {
        let mut out = self.stale(x.rows(), x.cols());
        let (isa, cols) = (self.isa, x.cols());
        self.by_rows(out.data_mut(), cols, |rows, part| {
            f(isa, &x.data()[rows.start * cols..rows.end * cols], part)
        });
        out
    }

    /// Turns each row by its position.
    pub(crate) fn rotate(&mut self, mut x: Tensor, rope: &Rope, positions: &[usize]) -> Tensor {
        assert_eq!(positions.len(), x.rows(), "a position for each row");
        let table = rope.table(positions.iter().copied().max().unwrap_or(0));
        let (half, cols) = (rope.half(), x.cols());
        self.by_rows(x.data_mut(), cols, |rows, part| {
            for (position, row) in positions[rows].iter().zip(part.chunks_exact_mut(cols)) {
                let angles = &table[position * 2 * half..(position + 1) * 2 * half];
                let (cos, sin) = angles.split_at(half);
                kernels::rope(row, cos, sin, rope.pairs);
            }
        });
        let id = self.id();
        x.renew(id)
    }

    /// `act(first half) * second half` of each row.
    pub(crate) fn gated_halves(&mut self, x: &Tensor, kind: Activation) -> Tensor {
        let (isa, half) = (self.isa, x.cols() / 2);
        let mut out = self.stale(x.rows(), half);
        self.by_rows(out.data_mut(), half, |rows, part| {
            let x = &x.data()[rows.start * 2 * half..rows.end * 2 * half];
            for (x, out) in x.chunks_exact(2 * half).zip(part.chunks_exact_mut(half)) {
                out.copy_from_slice(&x[..half]);
                kernels::gated(isa, kind, out, &x[half..]);
            }
        });
        out
    }

    fn product(&mut self, x: &Tensor, w: &Packed, out: &mut [f32]) {
        let form = match (self.precision, w.layout) {
            (Precision::Fast, Layout::Bf16) => Form::Pairs,
            (Precision::Fast, layout) if layout.is_quantised() => Form::Bytes,
            _ => Form::Floats,
        };
        let (isa, pool, arranged) = (self.isa, &*self.pool, &mut self.arranged);
        if arranged.last != Some((x.id(), form)) {
            match form {
                Form::Floats => arranged.floats = FloatRows::new(x.data(), x.cols()),
                Form::Pairs => arranged.pairs.fill(isa, pool, x.data(), x.cols()),
                Form::Bytes => arranged.bytes.fill(isa, pool, x.data(), x.cols()),
            }
            arranged.last = Some((x.id(), form));
        }
        match form {
            Form::Floats => kernels::product_f32(isa, pool, &arranged.floats, w, out),
            Form::Pairs => kernels::product_bf16(isa, pool, &arranged.pairs, w, out),
            Form::Bytes => kernels::product_i8(isa, pool, &arranged.bytes, w, out),
        }
    }
}

impl Cpu {
    /// Adds what `adapter` changes to the rows of `out` that have it. A row's change does not
    /// depend on the others: products are taken row by row.
    fn change(&mut self, x: &Tensor, adapter: &LowRank, out: &mut Tensor) {
        let Some(rows) = self.rows_of(adapter.number, x.rows()) else {
            let change = self.low_rank(x, adapter);
            let n = change.cols();
            return self.by_rows(out.data_mut(), n, |rows, part| {
                let change = &change.data()[rows.start * n..rows.end * n];
                part.iter_mut().zip(change).for_each(|(y, c)| *y += c);
            });
        };
        if rows.is_empty() {
            return;
        }
        let x = self.gather(x, &rows);
        let change = self.low_rank(&x, adapter);
        let n = change.cols();
        for (&row, change) in rows.iter().zip(change.data().chunks_exact(n)) {
            let at = row as usize * n;
            out.data_mut()[at..at + n].iter_mut().zip(change).for_each(|(y, c)| *y += c);
        }
    }

    /// The rows that have adapter `number`; `None`: all.
    fn rows_of(&self, number: u32, rows: usize) -> Option<Vec<u32>> {
        let Some(adapted) = &self.adapted else {
            return if number == 0 { None } else { Some(Vec::new()) };
        };
        assert_eq!(adapted.len(), rows, "an adapter or none for each row");
        let own: Vec<u32> =
            (0..).zip(adapted).filter(|r| *r.1 == Some(number)).map(|r| r.0).collect();
        (own.len() < rows).then_some(own)
    }

    /// `factor * B A x`: `[rows, n]`.
    fn low_rank(&mut self, x: &Tensor, adapter: &LowRank) -> Tensor {
        let (WeightData::Packed(a), WeightData::Packed(b)) = (&*adapter.a.0, &*adapter.b.0) else {
            panic!("a table of rows takes no product");
        };
        let mut low = self.stale(x.rows(), a.n);
        self.product(x, a, low.data_mut());
        low.data_mut().iter_mut().for_each(|v| *v *= adapter.factor);
        let mut change = self.stale(x.rows(), b.n);
        self.product(&low, b, change.data_mut());
        change
    }
}

impl Ops for Cpu {
    fn adapt(&mut self, rows: Option<Vec<Option<u32>>>) {
        self.adapted = rows;
    }

    fn matrix(&mut self, raw: RawMatrix) -> Result<Weight, PackError> {
        let bytes = (*raw.bytes).as_ref();
        let rows = kernels::Rows { ty: raw.ty, n: raw.n, k: raw.k, bytes };
        Ok(Weight(Arc::new(WeightData::Packed(Packed::new(rows, &self.pool, raw.done)?))))
    }

    fn table(&mut self, raw: RawMatrix) -> Result<Weight, PackError> {
        let RawMatrix { ty, n, k, bytes, .. } = raw;
        let row = (k / ty.block_len()).checked_mul(ty.block_bytes());
        let fits = row.and_then(|r| r.checked_mul(n)) == Some((*bytes).as_ref().len());
        if !fits || !k.is_multiple_of(ty.block_len()) {
            let got = (*bytes).as_ref().len();
            return Err(PackError::Shape(format!(
                "{got} bytes are not {n} x {k} of {}",
                ty.name()
            )));
        }
        Ok(Weight(Arc::new(WeightData::Table { ty, n, columns: 0..k, k, bytes })))
    }

    fn embed(&mut self, weight: &Weight, ids: &[u32], scale: f32) -> Tensor {
        let k = weight.k();
        let isa = self.isa;
        let mut out = self.stale(ids.len(), k);
        self.by_rows(out.data_mut(), k, |rows, part| {
            for (&id, out) in ids[rows].iter().zip(part.chunks_exact_mut(k)) {
                match &*weight.0 {
                    WeightData::Packed(p) => p.row(isa, id as usize, out),
                    WeightData::Table { ty, columns, k, bytes, .. } => {
                        let size = |elements| elements / ty.block_len() * ty.block_bytes();
                        let at = id as usize * size(*k);
                        let part = at + size(columns.start)..at + size(columns.end);
                        blocks::dequantize(*ty, &(**bytes).as_ref()[part], out);
                    }
                    WeightData::Taped { .. } => unreachable!("a tape keeps it to itself"),
                }
                if scale != 1.0 {
                    out.iter_mut().for_each(|x| *x *= scale);
                }
            }
        });
        out
    }

    fn linear(&mut self, x: &Tensor, linear: &Linear) -> Tensor {
        let WeightData::Packed(w) = &*linear.weight.0 else {
            panic!("a table of rows takes no product");
        };
        if let Some(watch) = &mut self.watch {
            watch(linear.weight.id(), x.data());
        }
        let mut out = self.stale(x.rows(), w.n);
        self.product(x, w, out.data_mut());
        let n = w.n;
        for adapter in &linear.adapters {
            self.change(x, adapter, &mut out);
        }
        if let Some(bias) = &linear.bias {
            self.by_rows(out.data_mut(), n, |_, part| {
                for row in part.chunks_exact_mut(n) {
                    row.iter_mut().zip(bias.values()).for_each(|(y, b)| *y += b);
                }
            });
        }
        out
    }

    fn rms_norm(&mut self, x: &Tensor, weight: &Vector, eps: f32) -> Tensor {
        let w = weight.values();
        self.norm(x, |isa, x, out| kernels::rms_norm(isa, x, w, eps, out))
    }

    fn layer_norm(&mut self, x: &Tensor, weight: &Vector, bias: &Vector, eps: f32) -> Tensor {
        let (w, b) = (weight.values(), bias.values());
        self.norm(x, |isa, x, out| kernels::layer_norm(isa, x, w, b, eps, out))
    }

    fn rope(&mut self, x: Tensor, rope: &Rope, rows: &Rows) -> Tensor {
        let positions: Vec<usize> = rows.positions().collect();
        self.rotate(x, rope, &positions)
    }

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
        let group = cache.layout.layers[layer].group;
        let kv = &mut cache.layers[layer];
        for span in &rows.spans {
            for (i, row) in span.rows.clone().enumerate() {
                let position = span.position + i;
                let block = span.tables[group][position / kernels::KV_BLOCK] as usize;
                let part = |t: &Tensor| row * t.cols()..(row + 1) * t.cols();
                kv.write(block, position, &k.data()[part(k)], &v.data()[part(v)]);
            }
        }
        self.attend_shared(q, spec, layer, rows, cache)
    }

    fn attend_shared(
        &mut self,
        q: &Tensor,
        spec: &AttentionSpec,
        layer: usize,
        rows: &Rows,
        cache: &KvCache,
    ) -> Tensor {
        let group = cache.layout.layers[layer].group;
        let kv = &cache.layers[layer];
        let positions = |s: &crate::Span| -> Vec<std::ops::Range<usize>> {
            let inside = rows.together.iter().filter(|r| s.rows.contains(&r.start));
            let at = |row: usize| row - s.rows.start + s.position;
            inside.map(|r| at(r.start)..at(r.end)).collect()
        };
        let together: Vec<_> = rows.spans.iter().map(positions).collect();
        let spans: Vec<kernels::Span> = (rows.spans.iter().zip(&together))
            .map(|(s, together)| kernels::Span {
                rows: s.rows.clone(),
                position: s.position,
                table: &s.tables[group],
                together,
            })
            .collect();
        let mut out = self.stale(q.rows(), q.cols());
        kernels::attend(self.isa, &self.pool, spec, &spans, q.data(), kv, out.data_mut());
        out
    }

    fn route(&mut self, scores: &Tensor, k: usize, scale: &Vector) -> Routes {
        let (experts, weights) = (scores.data().chunks_exact(scores.cols()))
            .flat_map(|row| kernels::top_experts(self.isa, row, k))
            .map(|(e, w)| (e, w * scale.values()[e as usize]))
            .unzip();
        Routes { id: self.id(), k, experts, weights }
    }

    fn experts(
        &mut self,
        x: &Tensor,
        routes: &Routes,
        gate_up: &[Linear],
        down: &[Linear],
        kind: Activation,
    ) -> Tensor {
        let mut out = self.stale(x.rows(), down[0].weight.n());
        out.data_mut().fill(0.0);
        // A row adds up in the order of its experts' numbers, whichever other rows there are.
        for (expert, (gate_up, down)) in gate_up.iter().zip(down).enumerate() {
            let rows = routes.rows(expert);
            if rows.is_empty() {
                continue;
            }
            let h = self.gather(x, &rows);
            let h = self.linear(&h, gate_up);
            let h = self.gated_halves(&h, kind);
            let h = self.linear(&h, down);
            routes.add(expert, &h, &mut out);
        }
        out
    }

    fn activation(&mut self, x: Tensor, kind: Activation) -> Tensor {
        self.in_place(x, |isa, x| kernels::activation(isa, kind, x))
    }

    fn gated(&mut self, mut gate: Tensor, up: &Tensor, kind: Activation) -> Tensor {
        let (isa, cols) = (self.isa, gate.cols());
        self.by_rows(gate.data_mut(), cols, |rows, part| {
            kernels::gated(isa, kind, part, &up.data()[rows.start * cols..rows.end * cols]);
        });
        let id = self.id();
        gate.renew(id)
    }

    fn add(&mut self, mut x: Tensor, y: &Tensor) -> Tensor {
        assert_eq!((x.rows(), x.cols()), (y.rows(), y.cols()), "shapes of a sum");
        let cols = x.cols();
        self.by_rows(x.data_mut(), cols, |rows, part| {
            let y = &y.data()[rows.start * cols..rows.end * cols];
            part.iter_mut().zip(y).for_each(|(x, y)| *x += y);
        });
        let id = self.id();
        x.renew(id)
    }

    fn scale(&mut self, x: Tensor, factor: f32) -> Tensor {
        self.in_place(x, |_, x| x.iter_mut().for_each(|x| *x *= factor))
    }

    fn softcap(&mut self, x: Tensor, cap: f32) -> Tensor {
        self.in_place(x, |isa, x| kernels::softcap(isa, cap, x))
    }

    fn affine(&mut self, mut x: Tensor, scale: &Vector, shift: Option<&Vector>) -> Tensor {
        let cols = x.cols();
        self.by_rows(x.data_mut(), cols, |_, part| {
            for row in part.chunks_exact_mut(cols) {
                row.iter_mut().zip(scale.values()).for_each(|(x, s)| *x *= s);
                if let Some(shift) = shift {
                    row.iter_mut().zip(shift.values()).for_each(|(x, s)| *x += s);
                }
            }
        });
        let id = self.id();
        x.renew(id)
    }

    fn mix(&mut self, x: &Tensor, coefs: Coefs, width: usize) -> Tensor {
        let inputs = x.cols() / width;
        let count = match coefs {
            Coefs::Each(c) => c.cols(),
            Coefs::Same(c) => c.len(),
        };
        let cols = count / inputs * width;
        let mut out = self.stale(x.rows(), cols);
        self.by_rows(out.data_mut(), cols, |rows, part| {
            for (row, out) in rows.zip(part.chunks_exact_mut(cols)) {
                let coefs = match coefs {
                    Coefs::Each(c) => &c.data()[row * count..(row + 1) * count],
                    Coefs::Same(c) => c,
                };
                kernels::mix(
                    &x.data()[row * inputs * width..][..inputs * width],
                    coefs,
                    width,
                    out,
                );
            }
        });
        out
    }

    fn match_rms(&mut self, mut x: Tensor, like: &Tensor) -> Tensor {
        let (isa, cols) = (self.isa, x.cols());
        self.by_rows(x.data_mut(), cols, |rows, part| {
            let like = &like.data()[rows.start * cols..rows.end * cols];
            for (x, like) in part.chunks_exact_mut(cols).zip(like.chunks_exact(cols)) {
                kernels::match_rms(isa, x, like);
            }
        });
        let id = self.id();
        x.renew(id)
    }

    fn sparsify(&mut self, mut x: Tensor, deviations: f32) -> Tensor {
        let (isa, cols) = (self.isa, x.cols());
        self.by_rows(x.data_mut(), cols, |_, part| {
            part.chunks_exact_mut(cols).for_each(|row| kernels::sparsify(isa, row, deviations));
        });
        let id = self.id();
        x.renew(id)
    }

    fn clamp(&mut self, x: Tensor, low: f32, high: f32) -> Tensor {
        self.in_place(x, |_, x| x.iter_mut().for_each(|x| *x = x.max(low).min(high)))
    }

    fn rope_axes(&mut self, mut x: Tensor, rope: &Rope, axes: &[Vec<usize>]) -> Tensor {
        let table = rope.table(axes.iter().flatten().copied().max().unwrap_or(0));
        let (half, cols) = (rope.half(), x.cols());
        self.by_rows(x.data_mut(), cols, |rows, part| {
            for (row, x) in rows.zip(part.chunks_exact_mut(cols)) {
                for (x, axis) in x.chunks_exact_mut(2 * half).zip(axes.iter().cycle()) {
                    let angles = &table[axis[row] * 2 * half..(axis[row] + 1) * 2 * half];
                    let (cos, sin) = angles.split_at(half);
                    kernels::rope(x, cos, sin, rope.pairs);
                }
            }
        });
        drop(table);
        let id = self.id();
        x.renew(id)
    }

    fn mean_rows(&mut self, x: &Tensor, groups: &[Vec<u32>]) -> Tensor {
        let cols = x.cols();
        let mut out = self.stale(groups.len(), cols);
        self.by_rows(out.data_mut(), cols, |range, part| {
            for (group, out) in groups[range].iter().zip(part.chunks_exact_mut(cols)) {
                out.fill(0.0);
                for &row in group {
                    let x = &x.data()[row as usize * cols..(row as usize + 1) * cols];
                    out.iter_mut().zip(x).for_each(|(o, x)| *o += x);
                }
                let count = group.len().max(1) as f32;
                out.iter_mut().for_each(|o| *o /= count);
            }
        });
        out
    }

    fn place(&mut self, mut x: Tensor, y: &Tensor, rows: &[u32]) -> Tensor {
        let cols = x.cols();
        for (&row, y) in rows.iter().zip(y.data().chunks_exact(cols)) {
            x.data_mut()[row as usize * cols..(row as usize + 1) * cols].copy_from_slice(y);
        }
        let id = self.id();
        x.renew(id)
    }

    fn tensor(&mut self, values: &[f32], cols: usize) -> Tensor {
        let mut out = self.stale(values.len() / cols, cols);
        out.data_mut().copy_from_slice(values);
        out
    }

    fn gather(&mut self, x: &Tensor, rows: &[u32]) -> Tensor {
        let cols = x.cols();
        let mut out = self.stale(rows.len(), cols);
        for (&r, out) in rows.iter().zip(out.data_mut().chunks_exact_mut(cols)) {
            out.copy_from_slice(&x.data()[r as usize * cols..(r as usize + 1) * cols]);
        }
        out
    }

    fn read(&mut self, x: &Tensor) -> Vec<f32> {
        x.data().to_vec()
    }

    fn share(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) {
        self.pool.run(tasks, task);
    }

    fn probe(&mut self, name: &str, x: &Tensor) {
        if let Some(probe) = &mut self.probe {
            probe(name, x.rows(), x.data());
        }
    }
}
