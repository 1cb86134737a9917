//! candle's quantised Gemma.

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_gemma3::ModelWeights;
use std::fs::File;
use std::io::BufReader;

/// A loaded model.
pub struct Candle {
    model: ModelWeights,
    position: usize,
}

impl Candle {
    /// Loads `file`.
    pub fn load(file: &str) -> candle_core::Result<Self> {
        let mut reader = BufReader::new(File::open(file)?);
        let content = gguf_file::Content::read(&mut reader)?;
        let model = ModelWeights::from_gguf(content, &mut reader, &Device::Cpu)?;
        Ok(Self { model, position: 0 })
    }

    /// Begins a new sequence: its cache starts anew at position 0.
    pub fn clear(&mut self) {
        self.position = 0;
    }

    /// Computes `ids` as the next tokens.
    pub fn extend(&mut self, ids: &[u32]) -> candle_core::Result<()> {
        let input = Tensor::new(ids, &Device::Cpu)?.unsqueeze(0)?;
        let logits = self.model.forward(&input, self.position)?;
        self.position += ids.len();
        // Nothing is lazy, but the logits must have been made.
        logits.flatten_all()?.to_vec1::<f32>()?;
        Ok(())
    }
}

/// Multiply-adds of the layers for each token, from the shapes in the file.
pub fn layer_weights(file: &str) -> candle_core::Result<u64> {
    let content = gguf_file::Content::read(&mut BufReader::new(File::open(file)?))?;
    let matrices = content
        .tensor_infos
        .iter()
        .filter(|(name, info)| name.starts_with("blk.") && info.shape.rank() == 2);
    Ok(matrices.map(|(_, info)| info.shape.elem_count() as u64).sum())
}
