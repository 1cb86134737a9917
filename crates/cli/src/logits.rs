//! `lapidary logits`: what the model thinks of given tokens, for scripts and comparisons.

use crate::Outcome;
use crate::args::LogitsArgs;
use crate::model::Weights;
use lapidary_formats::{DType, TensorSpec, safetensors};

/// Writes `logits.N` of shape `[tokens, vocabulary]` for each array of ids.
pub fn logits(args: LogitsArgs) -> Outcome {
    let name = args.tokens.display();
    let bytes = std::fs::read(&args.tokens).map_err(|e| format!("{name}: {e}"))?;
    let prompts: Vec<Vec<u32>> = serde_json::from_slice(&bytes)
        .map_err(|e| format!("{name}: an array of arrays of token ids was expected: {e}"))?;
    let mut ready = Weights::open(&args.model)?;
    let vocab = ready.loaded.model.info().vocab;
    let specs: Vec<TensorSpec> = (prompts.iter().enumerate())
        .map(|(i, p)| TensorSpec::new(format!("logits.{i}"), DType::F32, [p.len(), vocab]))
        .collect();
    let mut file = safetensors::create(&args.out, &specs, &Default::default())?;
    for (i, ids) in prompts.iter().enumerate() {
        let mut session = ready.session();
        let model = &*ready.loaded.model;
        let logits = session
            .extend(model, &mut ready.cpu, ids, true)
            .map_err(|e| format!("{name}: prompt {i}: {e}"))?;
        let bytes: Vec<u8> = logits.iter().flat_map(|x| x.to_le_bytes()).collect();
        file.write(&format!("logits.{i}"), &bytes)?;
    }
    file.finish()?;
    Ok(())
}
