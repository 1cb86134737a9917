//! What a trainer holds, in files: its whole state to go on from, weights and adapters to export.

use crate::optimizer::State;
use crate::{Method, Trainer};
use lapidary_formats::{DType, FormatError, Result, TensorSpec, TensorView, safetensors};
use lapidary_ops::{Moments, Param};
use std::collections::BTreeMap;
use std::path::Path;

/// A tensor to export, as Hugging Face files have it.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorValues {
    /// Its name.
    pub name: String,
    /// Its dimensions.
    pub shape: Vec<usize>,
    /// Its values, row by row.
    pub values: Vec<f32>,
}

/// An adapter to export.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterWeights {
    /// The module's name in Hugging Face files.
    pub module: String,
    /// A, `[rank, inputs]`.
    pub a: TensorValues,
    /// B, `[outputs, rank]`.
    pub b: TensorValues,
    /// Whether the module stores inputs first.
    pub transposed: bool,
}

/// Values on their way to a file or back.
enum Values<'a> {
    F32(&'a mut [f32]),
    U8(&'a mut [u8]),
}

/// Bytes that are converted at a time.
const BUFFER: usize = 1 << 20;

impl Trainer {
    /// The weights of a full training, tensor by tensor, under their Hugging Face names.
    pub fn weights(&self) -> impl Iterator<Item = TensorValues> + '_ {
        self.export(true, |i| &self.tape.params()[i].values)
    }

    pub(crate) fn export_gradients(&self) -> Vec<TensorValues> {
        self.export(false, |i| self.tape.params()[i].grad.get().unwrap_or_default()).collect()
    }

    /// The averaged weights, if the options ask for an average.
    pub fn ema_weights(&self) -> Option<impl Iterator<Item = TensorValues> + '_> {
        let ema = self.optimizer.ema.as_ref()?;
        Some(self.export(true, move |i| &ema[i]))
    }

    fn export<'a>(
        &'a self,
        offset: bool,
        values: impl Fn(usize) -> &'a [f32] + 'a,
    ) -> impl Iterator<Item = TensorValues> + 'a {
        let params = self.tape.params();
        let first = params.iter().enumerate().filter(|(_, p)| p.name.part.0 == 0);
        first.map(move |(_, p)| {
            let mut all = Vec::new();
            for part in 0..p.name.part.1 {
                let found = params
                    .iter()
                    .position(|q| q.name.tensor == p.name.tensor && q.name.part.0 == part);
                all.extend(found.map_or(&[][..], &values));
            }
            if offset {
                all.iter_mut().for_each(|v| *v -= p.name.offset);
            }
            let mut shape = p.shape.clone();
            shape[0] *= p.name.part.1;
            if p.name.transposed {
                let (n, k) = (shape[0], shape[1]);
                all = (0..k)
                    .flat_map(|c| (0..n).map(move |r| (r, c)))
                    .map(|(r, c)| all[r * k + c])
                    .collect();
                shape.reverse();
            }
            TensorValues { name: p.name.tensor.clone(), shape, values: all }
        })
    }

    /// The adapters of LoRA, module by module.
    pub fn adapters(&self) -> impl Iterator<Item = AdapterWeights> + '_ {
        let values = |i: usize| {
            let p = &self.tape.params()[i];
            let (name, shape) = (p.name.tensor.clone(), p.shape.clone());
            TensorValues { name, shape, values: p.values.to_vec() }
        };
        self.tape.adapters().iter().map(move |a| AdapterWeights {
            module: a.module.clone(),
            a: values(a.a),
            b: values(a.b),
            transposed: a.transposed,
        })
    }

    /// Writes everything that the next step depends on: trained weights, moments, averages, and
    /// the number of steps (dropout follows from it and the seed). The file appears whole or not
    /// at all.
    ///
    /// # Errors
    /// If the file can't be written.
    pub fn save_state(&mut self, path: &Path) -> Result<()> {
        let metadata = self.facts();
        let parts = parts(self);
        let specs: Vec<TensorSpec> = (parts.iter())
            .map(|(name, values)| match values {
                Values::F32(v) => TensorSpec::new(name.clone(), DType::F32, [v.len()]),
                Values::U8(v) => TensorSpec::new(name.clone(), DType::U8, [v.len()]),
            })
            .collect();
        let mut file = safetensors::create(path, &specs, &metadata)?;
        for (name, values) in &parts {
            match values {
                Values::U8(v) => file.write(name, v)?,
                Values::F32(v) => {
                    for chunk in v.chunks(BUFFER / 4) {
                        let bytes: Vec<u8> = chunk.iter().flat_map(|x| x.to_le_bytes()).collect();
                        file.write(name, &bytes)?;
                    }
                }
            }
        }
        file.finish()
    }

    /// Goes on where [`Trainer::save_state`] was called, to the bit.
    ///
    /// # Errors
    /// If the file can't be read, or is of another model, method or seed; the trainer is then not
    /// to be used.
    pub fn load_state(&mut self, path: &Path) -> Result<()> {
        let file = safetensors::open(path)?;
        let wrong = |field: &str, problem: String| FormatError::new(path.display(), field, problem);
        let found: BTreeMap<String, String> = file.metadata.iter().cloned().collect();
        for (key, want) in self.facts() {
            let value = found.get(&key).map_or("nothing", String::as_str);
            if key != "steps" && value != want {
                return Err(wrong(&key, format!("is {value}, and this run has {want}")));
            }
        }
        let steps = found.get("steps").and_then(|s| s.parse().ok());
        let steps = steps.ok_or_else(|| wrong("steps", "a number was expected".into()))?;
        let views: BTreeMap<&str, &TensorView> =
            file.tensors.iter().map(|t| (&*t.name, t)).collect();
        let parts = parts(self);
        if let Some(more) = views.keys().find(|name| !parts.iter().any(|p| p.0 == **name)) {
            return Err(wrong(more, "is not a part of this model and method".into()));
        }
        for (name, values) in parts {
            let view = views.get(&*name).ok_or_else(|| wrong(&name, "is missing".into()))?;
            match values {
                Values::F32(v) if view.dtype == DType::F32 && view.shape == [v.len()] => {
                    for (v, b) in v.iter_mut().zip(view.bytes.chunks_exact(4)) {
                        *v = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                    }
                }
                Values::U8(v) if view.dtype == DType::U8 && view.shape == [v.len()] => {
                    v.copy_from_slice(&view.bytes);
                }
                Values::F32(v) => return Err(view.wrong(format!("{} F32 were expected", v.len()))),
                Values::U8(v) => return Err(view.wrong(format!("{} U8 were expected", v.len()))),
            }
            view.bytes.advise_dontneed();
        }
        self.steps = steps;
        Ok(())
    }

    /// What a state's file says beside the values; all but the steps must agree to go on.
    fn facts(&self) -> BTreeMap<String, String> {
        let method = match &self.options.method {
            Method::Full => "full".to_owned(),
            Method::Lora(l) => {
                format!("lora, rank {}, factor {}, dropout {}", l.rank, l.factor(), l.dropout)
            }
        };
        let facts = [
            ("format", "lapidary training state 1".to_owned()),
            ("family", self.model.info().family.to_owned()),
            ("method", method),
            ("optimizer_state", format!("{:?}", self.options.state)),
            ("seed", self.options.seed.to_string()),
            ("steps", self.steps.to_string()),
        ];
        facts.map(|(k, v)| (k.to_owned(), v)).into()
    }
}

/// Everything that changes, by name.
fn parts(trainer: &mut Trainer) -> Vec<(String, Values<'_>)> {
    let key = |p: &Param| match p.name.part {
        (_, 1) => p.name.tensor.clone(),
        (part, _) => format!("{}[{part}]", p.name.tensor),
    };
    let keys: Vec<String> = trainer.tape.params().iter().map(key).collect();
    let mut all = Vec::new();
    for (p, key) in trainer.tape.params_mut().iter_mut().zip(&keys) {
        all.push((format!("weight/{key}"), Values::F32(&mut p.values)));
    }
    for (state, key) in trainer.optimizer.states.iter_mut().zip(&keys) {
        let mut add = |what: &str, values| all.push((format!("{what}/{key}"), values));
        match state {
            State::Each(Moments::F32(m, v)) => {
                add("first", Values::F32(m));
                add("second", Values::F32(v));
            }
            State::Each(Moments::Bits8 { m, v, scales }) => {
                add("first", Values::U8(m));
                add("second", Values::U8(v));
                add("scales", Values::F32(scales));
            }
            State::Momentum(m) => add("momentum", Values::F32(m)),
            State::Factored { m, rows, columns } => {
                add("first", Values::F32(m));
                add("second.rows", Values::F32(rows));
                add("second.columns", Values::F32(columns));
            }
        }
    }
    for (average, key) in trainer.optimizer.ema.iter_mut().flatten().zip(&keys) {
        all.push((format!("average/{key}"), Values::F32(average)));
    }
    all
}
