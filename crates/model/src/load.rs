//! Weights by name, checked for shape and type, onto a device.

use lapidary_formats::{Bytes, Checkpoint, DType, FormatError, Result, Source, TensorView};
use lapidary_ops::{BlockType, Linear, LowRank, Ops, ParamName, RawMatrix, Vector, Weight, blocks};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

/// What a checkpoint's norm weights leave out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormOffset {
    /// The weight is the factor.
    Zero,
    /// The factor is 1 + weight in Hugging Face files (Gemma 1 to 3); GGUF stores the sum.
    OneInHf,
}

/// Trained changes of a model's projections, to be applied beside its weights.
pub struct Adapters {
    /// Where they come from, for errors.
    pub file: String,
    /// By the name of the projection in Hugging Face files.
    pub modules: BTreeMap<String, AdapterFactors>,
    /// `y += factor * B A x`
    pub factor: f32,
}

impl Adapters {
    /// Bytes of its matrices in memory.
    pub fn bytes(&self) -> usize {
        self.modules.values().map(|f| 4 * (f.a.len() + f.b.len())).sum()
    }
}

/// The two matrices of an adapter.
pub struct AdapterFactors {
    /// `[rank, inputs]`
    pub a: Vec<f32>,
    /// `[outputs, rank]`
    pub b: Vec<f32>,
    /// Rows of A, columns of B.
    pub rank: usize,
}

/// A smaller model inside a larger one: MatFormer (<https://arxiv.org/abs/2310.07707>), Gemma 3n.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Slice {
    /// Layers that are left out: of those that read an earlier layer's keys and values.
    pub skip: Vec<usize>,
    /// Feed-forward widths of the layers that stay: one for all, or one for each; none: as they are.
    pub ffn: Vec<usize>,
}

impl Slice {
    /// E2B inside E4B, as Google's MatFormer Lab has it.
    pub fn e2b() -> Self {
        Self { skip: (20..25).collect(), ffn: vec![8192] }
    }
}

/// A checkpoint's tensors on their way to a device.
pub struct Weights<'a> {
    pub(crate) checkpoint: &'a Checkpoint,
    ops: &'a mut dyn Ops,
    adapters: &'a [Adapters],
    adapted: HashSet<(u32, String)>,
    prefix: String,
    taken: HashSet<String>,
    ignored: Vec<&'static str>,
    step_bytes: usize,
    counts: Vec<(BlockType, usize)>,
    slow: Vec<&'static str>,
    /// The part of the model that is wanted.
    pub(crate) slice: Option<&'a Slice>,
    pub(crate) matrices: Vec<(String, Weight)>,
}

/// The types that products read as they are; the others are repacked to 12 bits a weight.
const DIRECT: [BlockType; 9] = [
    BlockType::F32,
    BlockType::F16,
    BlockType::BF16,
    BlockType::Q8_0,
    BlockType::Q4_0,
    BlockType::Q5_0,
    BlockType::Q4_K,
    BlockType::Q5_K,
    BlockType::Q6_K,
];

impl<'a> Weights<'a> {
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        ops: &'a mut dyn Ops,
        adapters: &'a [Adapters],
    ) -> Self {
        Self {
            checkpoint,
            ops,
            adapters,
            adapted: HashSet::new(),
            prefix: String::new(),
            taken: HashSet::new(),
            ignored: Vec::new(),
            step_bytes: 0,
            counts: Vec::new(),
            slow: Vec::new(),
            slice: None,
            matrices: Vec::new(),
        }
    }

    /// Whether the names are those of GGUF.
    pub fn is_gguf(&self) -> bool {
        matches!(self.checkpoint.source(), Source::Gguf(_))
    }

    /// Picks the prefix of Hugging Face names: the first under which `probe` is found.
    pub fn set_prefix(&mut self, candidates: &[&str], probe: &str) {
        let found =
            (candidates.iter()).find(|p| self.checkpoint.get(&format!("{p}{probe}")).is_some());
        self.prefix = found.or(candidates.first()).map_or(String::new(), |p| (*p).to_owned());
    }

    /// Runs `f` with names that stand outside the prefix.
    pub fn at_root<T>(&mut self, f: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let prefix = std::mem::take(&mut self.prefix);
        let out = f(self);
        self.prefix = prefix;
        out
    }

    /// Names of tensors (parts of them) that are there for good reason and not used.
    pub fn ignore(&mut self, parts: &[&'static str]) {
        self.ignored.extend(parts);
    }

    fn name(&self, hf: &str, gguf: &str) -> String {
        if self.is_gguf() { gguf.to_owned() } else { format!("{}{hf}", self.prefix) }
    }

    fn view(&mut self, name: &str) -> Result<TensorView> {
        let view = self.checkpoint.tensor(name)?;
        self.taken.insert(name.to_owned());
        Ok(view)
    }

    /// How many rows the matrix `hf`.weight or `gguf`.weight has, if it is there.
    pub fn rows(&self, hf: &str, gguf: &str) -> Option<usize> {
        let name = self.name(&format!("{hf}.weight"), &format!("{gguf}.weight"));
        self.checkpoint.get(&name)?.shape.first().copied()
    }

    /// The shape of a tensor, by its whole name.
    pub fn shape(&self, hf: &str, gguf: &str) -> Option<Vec<usize>> {
        self.checkpoint.get(&self.name(hf, gguf)).map(|view| view.shape.clone())
    }

    /// An error about a tensor.
    pub fn wrong(&self, hf: &str, gguf: &str, problem: &str) -> FormatError {
        let name = self.name(hf, gguf);
        match self.checkpoint.tensor(&name) {
            Ok(view) => view.wrong(problem),
            Err(e) => e,
        }
    }

    /// Whether a tensor is there.
    pub fn has(&self, hf: &str, gguf: &str) -> bool {
        self.checkpoint.get(&self.name(hf, gguf)).is_some()
    }

    /// The matrix `hf`.weight or `gguf`.weight of shape `[n, k]`, for products.
    pub fn matrix(&mut self, hf: &str, gguf: &str, shape: [usize; 2]) -> Result<Weight> {
        let view = self.view(&self.name(&format!("{hf}.weight"), &format!("{gguf}.weight")))?;
        view.expect_shape(&shape)?;
        let name = ParamName::whole(format!("{}{hf}.weight", self.prefix));
        self.upload(&view, name, view.bytes.clone(), shape)
    }

    fn upload(
        &mut self,
        view: &TensorView,
        name: ParamName,
        bytes: Bytes,
        [n, k]: [usize; 2],
    ) -> Result<Weight> {
        let ty = block_type(view.dtype).map_err(|e| view.wrong(e))?;
        if !DIRECT.contains(&ty) && !self.slow.contains(&ty.name()) {
            self.slow.push(ty.name());
        }
        let done = |range| {
            if let Some(part) = bytes.slice(range) {
                part.advise_dontneed();
            }
        };
        let raw = RawMatrix { name, ty, n, k, bytes: Arc::new(bytes.clone()), done: &done };
        let weight = self.ops.matrix(raw).map_err(|e| view.wrong(e))?;
        self.step_bytes += weight.bytes();
        match self.counts.iter_mut().find(|(t, _)| *t == ty) {
            Some((_, count)) => *count += n * k,
            None => self.counts.push((ty, n * k)),
        }
        self.matrices.push((view.name.to_string(), weight.clone()));
        Ok(weight)
    }

    /// Whether the checkpoint has an output projection of its own.
    pub fn has_output(&self) -> bool {
        let name = if self.is_gguf() { "output.weight" } else { "lm_head.weight" };
        self.checkpoint.get(name).is_some()
    }

    /// That projection, `[vocab, width]`.
    pub fn output(&mut self, shape: [usize; 2]) -> Result<Linear> {
        self.at_root(|w| w.linear("lm_head", "output", shape))
    }

    /// A matrix of which rows are gathered and nothing else.
    pub fn table(&mut self, hf: &str, gguf: &str, [n, k]: [usize; 2]) -> Result<Weight> {
        let view = self.view(&self.name(&format!("{hf}.weight"), &format!("{gguf}.weight")))?;
        view.expect_shape(&[n, k])?;
        let ty = block_type(view.dtype).map_err(|e| view.wrong(e))?;
        let bytes = Arc::new(view.bytes.clone());
        let name = ParamName::whole(format!("{}{hf}.weight", self.prefix));
        let raw = RawMatrix { name, ty, n, k, bytes, done: &|_| {} };
        self.ops.table(raw).map_err(|e| view.wrong(e))
    }

    /// As [`Weights::table`], cut into `parts` tables of `k` columns each.
    pub fn table_parts(
        &mut self,
        hf: &str,
        gguf: &str,
        [n, k]: [usize; 2],
        parts: usize,
    ) -> Result<Vec<Weight>> {
        let table = self.table(hf, gguf, [n, parts * k])?;
        let view = self.view(&self.name(&format!("{hf}.weight"), &format!("{gguf}.weight")))?;
        (0..parts)
            .map(|i| {
                let part = table.columns(i * k..(i + 1) * k);
                part.ok_or_else(|| view.wrong(format!("its type can't be cut in parts of {k}")))
            })
            .collect()
    }

    /// A matrix `[parts * n, k]` by its whole name, as `parts` projections.
    pub fn linear_parts(
        &mut self,
        hf: &str,
        gguf: &str,
        parts: usize,
        [n, k]: [usize; 2],
    ) -> Result<Vec<Linear>> {
        let view = self.view(&self.name(hf, gguf))?;
        view.expect_shape(&[parts * n, k])?;
        self.cut(&view, parts, [n, k])
    }

    /// The experts' matrices `[count, n, k]` by their whole name. A step reads `active` of them.
    pub fn experts(
        &mut self,
        hf: &str,
        gguf: &str,
        (count, active): (usize, usize),
        [n, k]: [usize; 2],
    ) -> Result<Vec<Linear>> {
        let view = self.view(&self.name(hf, gguf))?;
        view.expect_shape(&[count, n, k])?;
        let (bytes, counts) = (self.step_bytes, self.counts.clone());
        let experts = self.cut(&view, count, [n, k])?;
        self.step_bytes = bytes + (self.step_bytes - bytes) / count * active;
        for (ty, now) in &mut self.counts {
            let before = counts.iter().find(|(t, _)| t == ty).map_or(0, |(_, c)| *c);
            *now = before + (*now - before) / count * active;
        }
        Ok(experts)
    }

    fn cut(&mut self, view: &TensorView, parts: usize, shape: [usize; 2]) -> Result<Vec<Linear>> {
        let size = view.bytes.len() / parts;
        (0..parts)
            .map(|i| {
                let bytes = view.bytes.slice(i * size..(i + 1) * size);
                let bytes = bytes.ok_or_else(|| view.wrong("this type can't be cut in parts"))?;
                let part = (i, parts);
                let name = ParamName { part, ..ParamName::whole(view.name.to_string()) };
                let weight = self.upload(view, name, bytes, shape)?;
                Ok(Linear { weight, bias: None, adapters: Vec::new() })
            })
            .collect()
    }

    /// The matrix `[n, k]` that `hf`.weight or `gguf`.weight holds in another shape, with the bias it
    /// may have.
    pub fn reshaped(
        &mut self,
        hf: &str,
        gguf: &str,
        shape: &[usize],
        [n, k]: [usize; 2],
    ) -> Result<Linear> {
        let view = self.view(&self.name(&format!("{hf}.weight"), &format!("{gguf}.weight")))?;
        view.expect_shape(shape)?;
        let weight = self.upload(&view, ParamName::default(), view.bytes.clone(), [n, k])?;
        let has = self.has(&format!("{hf}.bias"), &format!("{gguf}.bias"));
        let bias = has.then(|| self.bias(hf, gguf, n)).transpose()?;
        Ok(Linear { weight, bias, adapters: Vec::new() })
    }

    /// The rows of a tensor, by its whole name, that holds a matrix `[n, k]` in another shape.
    pub fn reshaped_table(
        &mut self,
        hf: &str,
        gguf: &str,
        shape: &[usize],
        [n, k]: [usize; 2],
    ) -> Result<Weight> {
        let view = self.view(&self.name(hf, gguf))?;
        view.expect_shape(shape)?;
        let ty = block_type(view.dtype).map_err(|e| view.wrong(e))?;
        let bytes = Arc::new(view.bytes.clone());
        let raw = RawMatrix { name: ParamName::default(), ty, n, k, bytes, done: &|_| {} };
        self.ops.table(raw).map_err(|e| view.wrong(e))
    }

    /// The matrix `[n, k]` of a tensor, by its whole name, that holds it as `[k, n]`.
    pub fn transposed(&mut self, hf: &str, gguf: &str, [n, k]: [usize; 2]) -> Result<Linear> {
        let view = self.view(&self.name(hf, gguf))?;
        view.expect_shape(&[k, n])?;
        let ty = block_type(view.dtype).map_err(|e| view.wrong(e))?;
        if ty.block_len() != 1 {
            return Err(view.wrong("this type can't be transposed"));
        }
        let bytes = Bytes::from(transpose(&view.bytes, ty.block_bytes(), n, 0..n));
        let weight = self.upload(&view, ParamName::default(), bytes, [n, k])?;
        Ok(Linear { weight, bias: None, adapters: Vec::new() })
    }

    /// One number, by its whole name.
    pub fn scalar(&mut self, hf: &str, gguf: &str) -> Result<f32> {
        let view = self.view(&self.name(hf, gguf))?;
        let ty = block_type(view.dtype).map_err(|e| view.wrong(e))?;
        if view.elements() != 1 || ty.block_len() != 1 {
            return Err(view.wrong(format!("one number was expected, found {:?}", view.shape)));
        }
        let mut value = [0.0];
        blocks::dequantize(ty, &view.bytes, &mut value);
        if value[0].is_nan() { Err(view.wrong("is no number")) } else { Ok(value[0]) }
    }

    /// A projection without bias.
    pub fn linear(&mut self, hf: &str, gguf: &str, shape: [usize; 2]) -> Result<Linear> {
        let weight = self.matrix(hf, gguf, shape)?;
        let adapters = self.adapters_of(hf, shape, (0, 1))?;
        Ok(Linear { weight, bias: None, adapters })
    }

    /// The first rows and columns of a projection `[n, k]`.
    pub fn corner(
        &mut self,
        hf: &str,
        gguf: &str,
        [n, k]: [usize; 2],
        [rows, columns]: [usize; 2],
    ) -> Result<Linear> {
        if [rows, columns] == [n, k] {
            return self.linear(hf, gguf, [n, k]);
        }
        let view = self.view(&self.name(&format!("{hf}.weight"), &format!("{gguf}.weight")))?;
        view.expect_shape(&[n, k])?;
        let ty = block_type(view.dtype).map_err(|e| view.wrong(e))?;
        if rows > n || columns > k || !columns.is_multiple_of(ty.block_len()) {
            let problem = format!("{rows} rows and {columns} columns can't be cut out of it");
            return Err(view.wrong(problem));
        }
        let row = |columns: usize| columns / ty.block_len() * ty.block_bytes();
        let bytes = if columns == k {
            let part = view.bytes.slice(0..rows * row(k));
            part.unwrap_or_else(|| unreachable!("fewer rows than there are"))
        } else {
            let all = view.bytes.chunks_exact(row(k)).take(rows);
            Bytes::from(all.flat_map(|r| &r[..row(columns)]).copied().collect::<Vec<u8>>())
        };
        let weight = self.upload(&view, ParamName::default(), bytes, [rows, columns])?;
        Ok(Linear { weight, bias: None, adapters: Vec::new() })
    }

    /// A projection with the bias that its file may have.
    pub fn linear_bias(&mut self, hf: &str, gguf: &str, shape: [usize; 2]) -> Result<Linear> {
        let weight = self.matrix(hf, gguf, shape)?;
        let has = self.has(&format!("{hf}.bias"), &format!("{gguf}.bias"));
        let bias = has.then(|| self.bias(hf, gguf, shape[0])).transpose()?;
        let adapters = self.adapters_of(hf, shape, (0, 1))?;
        Ok(Linear { weight, bias, adapters })
    }

    /// Outputs `part * n .. (part + 1) * n` of a projection of `parts * n`, with its bias. In
    /// Hugging Face files the matrix is stored `[k, parts * n]` (GPT-2's Conv1D).
    pub fn conv1d(
        &mut self,
        hf: &str,
        gguf: &str,
        [n, k]: [usize; 2],
        (part, parts): (usize, usize),
    ) -> Result<Linear> {
        let view = self.view(&self.name(&format!("{hf}.weight"), &format!("{gguf}.weight")))?;
        let bytes = if self.is_gguf() {
            view.expect_shape(&[parts * n, k])?;
            let size = view.bytes.len() / parts;
            view.bytes.slice(part * size..(part + 1) * size)
        } else {
            view.expect_shape(&[k, parts * n])?;
            let ty = block_type(view.dtype).map_err(|e| view.wrong(e))?;
            let size = ty.block_bytes();
            (ty.block_len() == 1).then(|| {
                Bytes::from(transpose(&view.bytes, size, parts * n, part * n..(part + 1) * n))
            })
        };
        let bytes = bytes.ok_or_else(|| view.wrong("this type can't be cut in parts"))?;
        let tensor = format!("{}{hf}", self.prefix);
        let name = |suffix: &str, transposed| ParamName {
            tensor: format!("{tensor}.{suffix}"),
            part: (part, parts),
            transposed,
            offset: 0.0,
        };
        let weight = self.upload(&view, name("weight", true), bytes, [n, k])?;
        let all = self.floats(&format!("{hf}.bias"), &format!("{gguf}.bias"), parts * n)?;
        let values = all[part * n..(part + 1) * n].to_vec();
        let bias = self.ops.vector(name("bias", false), values);
        let adapters = self.adapters_of(hf, [n, k], (part, parts))?;
        Ok(Linear { weight, bias: Some(bias), adapters })
    }

    /// What the adapters change of a projection's part.
    fn adapters_of(
        &mut self,
        hf: &str,
        shape: [usize; 2],
        part: (usize, usize),
    ) -> Result<Vec<Arc<LowRank>>> {
        let module = format!("{}{hf}", self.prefix);
        let mut out = Vec::new();
        for (number, adapters) in (0..).zip(self.adapters) {
            let Some(factors) = adapters.modules.get(&module) else { continue };
            let wrong = |problem: String| FormatError::new(&adapters.file, &module, problem);
            let (a, b) = self.factors(factors, shape, part).map_err(wrong)?;
            self.step_bytes += a.bytes() + b.bytes();
            self.adapted.insert((number, module.clone()));
            out.push(Arc::new(LowRank { number, a, b, factor: adapters.factor }));
        }
        Ok(out)
    }

    /// The two matrices of an adapter for a part of a projection.
    fn factors(
        &mut self,
        f: &AdapterFactors,
        [n, k]: [usize; 2],
        (part, parts): (usize, usize),
    ) -> std::result::Result<(Weight, Weight), String> {
        if f.a.len() != f.rank * k || f.b.len() != parts * n * f.rank {
            let (inner, out) = (f.a.len() / f.rank, f.b.len() / f.rank);
            return Err(format!(
                "is for a matrix of {out} by {inner}, and the base has one of {} by {k}",
                parts * n
            ));
        }
        let b = &f.b[part * n * f.rank..(part + 1) * n * f.rank];
        let mut upload = |values: &[f32], n, k| {
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            let (name, ty) = (ParamName::default(), BlockType::F32);
            let raw = RawMatrix { name, ty, n, k, bytes: Arc::new(bytes), done: &|_| {} };
            self.ops.matrix(raw).map_err(|e| e.to_string())
        };
        Ok((upload(&f.a, f.rank, k)?, upload(b, n, f.rank)?))
    }

    /// Adapters of projections that the model does not have are an error.
    pub(crate) fn check_adapters(&self) -> Result<()> {
        for (number, adapters) in (0..).zip(self.adapters) {
            let used = |module: &&String| self.adapted.contains(&(number, (*module).clone()));
            if let Some(left) = adapters.modules.keys().find(|m| !used(m)) {
                let problem = "the base has no such projection";
                return Err(FormatError::new(&adapters.file, left, problem));
            }
        }
        Ok(())
    }

    fn bias(&mut self, hf: &str, gguf: &str, n: usize) -> Result<Vector> {
        self.vector(&format!("{hf}.bias"), &format!("{gguf}.bias"), n)
    }

    /// A vector of `len`, by its whole name.
    pub fn vector(&mut self, hf: &str, gguf: &str, len: usize) -> Result<Vector> {
        let values = self.floats(hf, gguf, len)?;
        Ok(self.ops.vector(ParamName::whole(format!("{}{hf}", self.prefix)), values))
    }

    /// The values of a vector that stays as it is, whoever trains.
    pub fn floats(&mut self, hf: &str, gguf: &str, len: usize) -> Result<Vec<f32>> {
        let view = self.view(&self.name(hf, gguf))?;
        view.expect_shape(&[len])?;
        let ty = block_type(view.dtype).map_err(|e| view.wrong(e))?;
        if ty.block_len() != 1 {
            return Err(view.wrong(format!("{} where F32, F16 or BF16 was expected", ty.name())));
        }
        let mut values = vec![0.0; len];
        blocks::dequantize(ty, &view.bytes, &mut values);
        match values.iter().position(|v| !v.is_finite()) {
            Some(i) => Err(view.wrong(format!("element {i} is {}", values[i]))),
            None => Ok(values),
        }
    }

    /// The factor of an RMSNorm, `hf`.weight or `gguf`.weight.
    pub fn norm(&mut self, hf: &str, gguf: &str, len: usize, offset: NormOffset) -> Result<Vector> {
        let mut values = self.floats(&format!("{hf}.weight"), &format!("{gguf}.weight"), len)?;
        let mut name = ParamName::whole(format!("{}{hf}.weight", self.prefix));
        if offset == NormOffset::OneInHf {
            name.offset = 1.0;
            if !self.is_gguf() {
                values.iter_mut().for_each(|w| *w += 1.0);
            }
        }
        Ok(self.ops.vector(name, values))
    }

    /// Weight and bias of a LayerNorm.
    pub fn layer_norm(&mut self, hf: &str, gguf: &str, len: usize) -> Result<(Vector, Vector)> {
        let weight = self.vector(&format!("{hf}.weight"), &format!("{gguf}.weight"), len)?;
        Ok((weight, self.bias(hf, gguf, len)?))
    }

    /// Bytes that a step reads, weights by type, and what the user should be told.
    pub(crate) fn finish(self) -> (usize, Vec<(BlockType, usize)>, Vec<String>) {
        let unused: Vec<&str> = (self.checkpoint.tensors())
            .map(|t| &*t.name)
            .filter(|name| !self.taken.contains(*name))
            .filter(|name| !self.ignored.iter().any(|part| name.contains(part)))
            .collect();
        let mut notes = Vec::new();
        if let Some(first) = unused.first() {
            let rest = if unused.len() > 1 {
                format!(" and {} more", unused.len() - 1)
            } else {
                String::new()
            };
            notes.push(format!("not used by this family: tensor {first}{rest}"));
        }
        if !self.slow.is_empty() {
            let types = self.slow.join(", ");
            notes.push(format!(
                "{types} weights take the slower path, repacked to 12 bits a weight"
            ));
        }
        (self.step_bytes, self.counts, notes)
    }
}

/// Columns `columns` of a `[rows, width]` matrix of elements of `size` bytes, as rows.
fn transpose(bytes: &[u8], size: usize, width: usize, columns: std::ops::Range<usize>) -> Vec<u8> {
    let rows = bytes.len() / (width * size);
    let mut out = vec![0; columns.len() * rows * size];
    // Bands of rows, so that what is written stays in cache.
    for band in (0..rows).step_by(64) {
        for (i, column) in columns.clone().enumerate() {
            for row in band..(band + 64).min(rows) {
                let (to, from) = ((i * rows + row) * size, (row * width + column) * size);
                out[to..to + size].copy_from_slice(&bytes[from..from + size]);
            }
        }
    }
    out
}

/// `max_soft_tokens` of processor_config.json, where there is one.
///
/// # Errors
/// If the file is damaged.
pub fn image_tokens(checkpoint: &Checkpoint) -> Result<Option<usize>> {
    let Source::Hf { dir, .. } = checkpoint.source() else { return Ok(None) };
    let file = dir.join("processor_config.json");
    if !file.is_file() {
        return Ok(None);
    }
    let value = lapidary_formats::json::read_object(&file)?;
    let name = file.display().to_string();
    let config = lapidary_formats::Config::new(&name, &value)?;
    match config.opt_object("image_processor")? {
        Some(image) => image.opt_usize("max_soft_tokens"),
        None => Ok(None),
    }
}

/// The kernels' name of a file's type.
///
/// # Errors
/// For types that are no weights.
pub fn block_type(dtype: DType) -> std::result::Result<BlockType, String> {
    Ok(match dtype {
        DType::F32 => BlockType::F32,
        DType::F16 => BlockType::F16,
        DType::BF16 => BlockType::BF16,
        DType::Q8_0 => BlockType::Q8_0,
        DType::Q4_0 => BlockType::Q4_0,
        DType::Q4_1 => BlockType::Q4_1,
        DType::Q5_0 => BlockType::Q5_0,
        DType::Q5_1 => BlockType::Q5_1,
        DType::Q2_K => BlockType::Q2_K,
        DType::Q3_K => BlockType::Q3_K,
        DType::Q4_K => BlockType::Q4_K,
        DType::Q5_K => BlockType::Q5_K,
        DType::Q6_K => BlockType::Q6_K,
        DType::IQ4_NL => BlockType::IQ4_NL,
        DType::IQ4_XS => BlockType::IQ4_XS,
        DType::MXFP4 => BlockType::MXFP4,
        other => return Err(format!("{} is not a type of weights", other.name())),
    })
}
