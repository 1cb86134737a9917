//! Texts to vectors: EmbeddingGemma 1 and 2, as sentence-transformers computes them.

use crate::Text;
use lapidary_formats::{Checkpoint, FormatError, Result, Source, TensorView, json, safetensors};
use lapidary_model::{Loaded, block_type, load_encoder};
use lapidary_ops::{Linear, Ops, ParamName, RawMatrix, Rows, Tensor, Vector};
use std::path::Path;
use std::sync::Arc;

/// A model that makes embeddings.
pub struct Embedder {
    loaded: Loaded,
    text: Text,
    /// Layers behind the mean of a text's rows.
    dense: Vec<Linear>,
    /// Prompts by the name of their task.
    prompts: Vec<(String, String)>,
    context: usize,
    size: usize,
}

/// One text's vector.
#[derive(Debug, Clone, PartialEq)]
pub struct Embedding {
    /// Of length 1 (unless all is zero).
    pub vector: Vec<f32>,
    /// Tokens that the text had, its prompt and what frames it included.
    pub tokens: usize,
}

/// Why a text has no embedding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EmbedError {
    /// It is longer than the model takes; nothing was cut.
    TooLong {
        /// Its place among the texts.
        index: usize,
        /// Its tokens.
        tokens: usize,
        /// The most there may be.
        context: usize,
    },
    /// It has no tokens.
    Empty {
        /// Its place among the texts.
        index: usize,
    },
    /// A token id beyond the vocabulary.
    UnknownToken {
        /// Its text's place among the texts.
        index: usize,
        /// The id.
        id: u32,
        /// Entries of the vocabulary.
        vocab: usize,
    },
    /// No prompt of this name.
    UnknownTask {
        /// The name.
        name: String,
        /// Those that there are.
        known: Vec<String>,
    },
    /// More or fewer dimensions than the model has.
    Dimensions {
        /// What was asked for.
        wanted: usize,
        /// The most there may be.
        size: usize,
    },
    /// No memory.
    OutOfMemory(lapidary_ops::OutOfMemory),
}

impl std::fmt::Display for EmbedError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            EmbedError::TooLong { index, tokens, context } => {
                write!(f, "text {index}: {tokens} tokens do not fit in {context}; nothing was cut")
            }
            EmbedError::Empty { index } => write!(f, "text {index} has no tokens"),
            EmbedError::UnknownToken { index, id, vocab } => {
                write!(f, "text {index}: token {id} is not below the vocabulary's {vocab}")
            }
            EmbedError::UnknownTask { name, known } => {
                write!(f, "there is no task \"{name}\"; there are {}", known.join(", "))
            }
            EmbedError::Dimensions { wanted, size } => {
                write!(f, "{wanted} dimensions: from 1 to {size} were expected")
            }
            EmbedError::OutOfMemory(e) => e.fmt(f),
        }
    }
}

impl std::error::Error for EmbedError {}

/// The prompts of the model cards, for files that bring none.
const PROMPTS: [(&str, &str); 9] = [
    ("query", "task: search result | query: "),
    ("document", "title: none | text: "),
    ("question answering", "task: question answering | query: "),
    ("fact checking", "task: fact checking | query: "),
    ("classification", "task: classification | query: "),
    ("clustering", "task: clustering | query: "),
    ("similarity", "task: sentence similarity | query: "),
    ("code", "task: code retrieval | query: "),
    ("none", ""),
];

/// Tokens that one pass takes: texts are gathered up to here.
const PASS: usize = 2048;

impl Embedder {
    /// Loads the model, its tokenizer and what stands behind it.
    ///
    /// # Errors
    /// If it is no model for embeddings, or a part of it is missing, damaged or unsupported.
    pub fn open(checkpoint: &Checkpoint, ops: &mut dyn Ops) -> Result<Self> {
        let loaded = load_encoder(checkpoint, ops)?;
        let text = Text::open(checkpoint)?;
        let mut dense = Vec::new();
        let mut prompts: Vec<(String, String)> = Vec::new();
        let mut context = loaded.model.info().context;
        match checkpoint.source() {
            Source::Hf { dir, .. } => {
                dense = dense_layers(dir, ops)?;
                prompts = own_prompts(dir)?;
                let file = dir.join("sentence_bert_config.json");
                if file.is_file() {
                    let config = json::read_object(&file)?;
                    let most = config.get("max_seq_length").and_then(|v| v.as_u64());
                    context = most.map_or(context, |n| context.min(n as usize));
                }
            }
            Source::Gguf(_) => {
                for name in ["dense_2.weight", "dense_3.weight"] {
                    if let Some(view) = checkpoint.get(name) {
                        dense.push(linear(&view, None, ops)?);
                    }
                }
            }
        }
        for (name, prompt) in PROMPTS {
            if !prompts.iter().any(|(n, _)| n == name) {
                prompts.push((name.to_owned(), prompt.to_owned()));
            }
        }
        let mut out = Self { loaded, text, dense, prompts, context, size: 0 };
        // The width that comes out, and whether the parts fit each other.
        let mut size = out.hidden(ops, &[vec![0]]).map_or(0, |x| x.cols());
        for d in &out.dense {
            if d.weight.k() != size {
                let problem = format!("takes {} values where {size} come", d.weight.k());
                return Err(FormatError::new("this checkpoint", "a dense layer", problem));
            }
            size = d.weight.n();
        }
        out.size = size;
        Ok(out)
    }

    /// Dimensions of an embedding.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Tokens that a text may have.
    pub fn context(&self) -> usize {
        self.context
    }

    /// Names of tasks, with the prompts that they put before a text.
    pub fn prompts(&self) -> &[(String, String)] {
        &self.prompts
    }

    /// Things that the user should know.
    pub fn notes(&self) -> impl Iterator<Item = &str> {
        self.loaded.notes.iter().chain(&self.text.notes).map(String::as_str)
    }

    /// The prompt of a task.
    ///
    /// # Errors
    /// If there is no such task.
    pub fn prompt(&self, task: &str) -> std::result::Result<&str, EmbedError> {
        let found = self.prompts.iter().find(|(name, _)| name.eq_ignore_ascii_case(task));
        found.map(|(_, prompt)| prompt.as_str()).ok_or_else(|| EmbedError::UnknownTask {
            name: task.to_owned(),
            known: self.prompts.iter().map(|(name, _)| name.clone()).collect(),
        })
    }

    /// The tokens that the model sees of `text` behind `prompt`.
    pub fn tokens(&self, prompt: &str, text: &str) -> Vec<u32> {
        self.text.encode_plain(&format!("{prompt}{text}"))
    }

    /// A vector of `dimensions` for each text, which stands behind `prompt`. Fewer dimensions than
    /// the model has are its first ones, made as long as 1 again (Matryoshka,
    /// <https://arxiv.org/abs/2205.13147>). A text's vector does not depend on the others.
    ///
    /// # Errors
    /// [`EmbedError`].
    pub fn embed(
        &self,
        ops: &mut dyn Ops,
        prompt: &str,
        texts: &[&str],
        dimensions: Option<usize>,
    ) -> std::result::Result<Vec<Embedding>, EmbedError> {
        let ids: Vec<Vec<u32>> = texts.iter().map(|t| self.tokens(prompt, t)).collect();
        self.embed_tokens(ops, &ids, dimensions)
    }

    /// As [`Embedder::embed`], for texts that are tokens already.
    ///
    /// # Errors
    /// [`EmbedError`].
    pub fn embed_tokens(
        &self,
        ops: &mut dyn Ops,
        ids: &[Vec<u32>],
        dimensions: Option<usize>,
    ) -> std::result::Result<Vec<Embedding>, EmbedError> {
        let wanted = dimensions.unwrap_or(self.size);
        if !(1..=self.size).contains(&wanted) {
            return Err(EmbedError::Dimensions { wanted, size: self.size });
        }
        let vocab = self.loaded.model.info().vocab;
        for (index, ids) in ids.iter().enumerate() {
            if ids.is_empty() {
                return Err(EmbedError::Empty { index });
            }
            if let Some(&id) = ids.iter().find(|id| **id as usize >= vocab) {
                return Err(EmbedError::UnknownToken { index, id, vocab });
            }
        }
        if let Some(index) = ids.iter().position(|t| t.len() > self.context) {
            let (tokens, context) = (ids[index].len(), self.context);
            return Err(EmbedError::TooLong { index, tokens, context });
        }
        let mut out = Vec::with_capacity(ids.len());
        let mut rest = ids;
        while !rest.is_empty() {
            let mut tokens = rest[0].len();
            let more = rest[1..].iter().take_while(|t| {
                tokens += t.len();
                tokens <= PASS
            });
            let count = 1 + more.count();
            for (mut vector, ids) in self.pass(ops, &rest[..count])?.into_iter().zip(rest) {
                vector.truncate(wanted);
                normalise(&mut vector);
                out.push(Embedding { vector, tokens: ids.len() });
            }
            rest = &rest[count..];
        }
        Ok(out)
    }

    fn pass(
        &self,
        ops: &mut dyn Ops,
        texts: &[Vec<u32>],
    ) -> std::result::Result<Vec<Vec<f32>>, EmbedError> {
        let x = self.hidden(ops, texts)?;
        let mut first = 0;
        let mut groups = Vec::with_capacity(texts.len());
        for ids in texts {
            groups.push((first..first + ids.len() as u32).collect());
            first += ids.len() as u32;
        }
        let mut x = ops.mean_rows(&x, &groups);
        ops.probe("mean", &x);
        for (i, dense) in self.dense.iter().enumerate() {
            x = ops.linear(&x, dense);
            ops.probe(&format!("dense_{i}"), &x);
        }
        let values = ops.read(&x);
        Ok(values.chunks_exact(x.cols()).map(<[f32]>::to_vec).collect())
    }

    /// What comes out of the last norm, a row for each token.
    fn hidden(
        &self,
        ops: &mut dyn Ops,
        texts: &[Vec<u32>],
    ) -> std::result::Result<Tensor, EmbedError> {
        let model = &*self.loaded.model;
        let (rows, mut cache) =
            Rows::whole(texts, &model.info().kv).map_err(EmbedError::OutOfMemory)?;
        let mut x = model.embed(ops, &rows);
        ops.probe("embed", &x);
        for layer in 0..model.info().layers {
            x = model.block(layer, ops, x, &rows, &mut cache);
            ops.probe(&format!("layer_{layer}"), &x);
        }
        let x = model.norm(ops, &x);
        ops.probe("last_hidden", &x);
        Ok(x)
    }
}

fn normalise(vector: &mut [f32]) {
    let length = vector.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x = (f64::from(*x) / length) as f32);
    }
}

/// The layers that modules.json of sentence-transformers names: a mean, dense layers, a length of 1.
fn dense_layers(dir: &Path, ops: &mut dyn Ops) -> Result<Vec<Linear>> {
    let file = dir.join("modules.json");
    let name = file.display().to_string();
    if !file.is_file() {
        return Ok(Vec::new());
    }
    let bytes = std::fs::read(&file).map_err(|e| FormatError::new(&name, "", e))?;
    let modules: Vec<serde_json::Value> = serde_json::from_slice(&bytes).map_err(|e| {
        FormatError::new(&name, "", format!("an array of modules was expected: {e}"))
    })?;
    let mut out = Vec::new();
    for module in &modules {
        let text = |key: &str| module.get(key).and_then(|v| v.as_str()).unwrap_or_default();
        let (kind, path) = (text("type").rsplit('.').next().unwrap_or_default(), text("path"));
        if path.contains(['/', '\\']) || path.starts_with('.') {
            return Err(FormatError::new(&name, "path", format!("\"{path}\" is no folder's name")));
        }
        match kind {
            "Transformer" | "Normalize" => {}
            "Pooling" => check_pooling(&dir.join(path).join("config.json"))?,
            "Dense" => out.push(dense(&dir.join(path), ops)?),
            other => {
                let problem = format!("\"{other}\" is no module known here");
                return Err(FormatError::new(&name, "type", problem));
            }
        }
    }
    Ok(out)
}

fn check_pooling(file: &Path) -> Result<()> {
    let config = json::read_object(file)?;
    let name = file.display().to_string();
    let on = |key: &str| config.get(key).and_then(|v| v.as_bool());
    let other =
        ["cls_token", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken"]
            .into_iter()
            .find(|kind| on(&format!("pooling_mode_{kind}")) == Some(true));
    if let Some(kind) = other.or((on("pooling_mode_mean_tokens") == Some(false)).then_some("none"))
    {
        let problem = format!("pooling by {kind}: only the mean of tokens is supported");
        return Err(FormatError::new(&name, "pooling_mode", problem));
    }
    if on("include_prompt") == Some(false) {
        return Err(FormatError::new(&name, "include_prompt", "false is not supported"));
    }
    Ok(())
}

fn dense(dir: &Path, ops: &mut dyn Ops) -> Result<Linear> {
    let file = dir.join("config.json");
    let config = json::read_object(&file)?;
    let act = config.get("activation_function").and_then(|v| v.as_str()).unwrap_or("Identity");
    if !act.ends_with("Identity") {
        let problem = format!("{act}: only Identity is supported");
        return Err(FormatError::new(file.display().to_string(), "activation_function", problem));
    }
    let weights = dir.join("model.safetensors");
    let tensors = safetensors::open(&weights)?.tensors;
    let find = |name: &str| tensors.iter().find(|t| &*t.name == name);
    let missing = || FormatError::new(weights.display().to_string(), "linear.weight", "is missing");
    linear(find("linear.weight").ok_or_else(missing)?, find("linear.bias"), ops)
}

fn linear(view: &TensorView, bias: Option<&TensorView>, ops: &mut dyn Ops) -> Result<Linear> {
    let &[n, k] = &view.shape[..] else {
        return Err(view.wrong(format!("expected a matrix, found {:?}", view.shape)));
    };
    let upload = |view: &TensorView, ops: &mut dyn Ops, n, k| {
        let ty = block_type(view.dtype).map_err(|e| view.wrong(e))?;
        let bytes = Arc::new(view.bytes.clone());
        let name = ParamName::default();
        let raw = RawMatrix { name, ty, n, k, bytes, done: &|_| {} };
        ops.matrix(raw).map_err(|e| view.wrong(e))
    };
    let weight = upload(view, ops, n, k)?;
    let bias = bias
        .map(|b| {
            b.expect_shape(&[n])?;
            let row = upload(b, ops, 1, n)?;
            let row = ops.embed(&row, &[0], 1.0);
            Ok(Vector::new(ops.read(&row)))
        })
        .transpose()?;
    Ok(Linear { weight, bias, adapters: Vec::new() })
}

/// The prompts of config_sentence_transformers.json.
fn own_prompts(dir: &Path) -> Result<Vec<(String, String)>> {
    let file = dir.join("config_sentence_transformers.json");
    if !file.is_file() {
        return Ok(Vec::new());
    }
    let config = json::read_object(&file)?;
    let prompts = config.get("prompts").and_then(|p| p.as_object());
    let pair = |(k, v): (&String, &serde_json::Value)| Some((k.clone(), v.as_str()?.to_owned()));
    Ok(prompts.into_iter().flatten().filter_map(pair).collect())
}
