//! `lapidary tokenize` and `lapidary template`.

use crate::args::{TemplateArgs, TokenizeArgs};
use crate::{Outcome, model};
use lapidary_engine::Text;
use lapidary_formats::chat::Message;
use lapidary_formats::tokenizer::Encode;
use std::io::{BufRead, Write};

/// JSON strings in, arrays of ids out, a line each; or the reverse.
pub fn tokenize(args: TokenizeArgs) -> Outcome {
    let text = Text::open(&model::checkpoint(args.model.as_deref())?)?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for (i, line) in std::io::stdin().lock().lines().enumerate() {
        let line = line?;
        let wrong =
            |what: &str, e: serde_json::Error| format!("line {}: {what} was expected: {e}", i + 1);
        if args.decode {
            let ids: Vec<u32> =
                serde_json::from_str(&line).map_err(|e| wrong("a JSON array of token ids", e))?;
            let size = text.tokenizer.vocab_size();
            if let Some(id) = ids.iter().find(|id| **id as usize >= size) {
                return Err(format!("line {}: token {id} is not below {size}", i + 1).into());
            }
            let decoded = text.tokenizer.decode(&ids, !args.special);
            writeln!(out, "{}", serde_json::to_string(&decoded)?)?;
        } else {
            let string: String =
                serde_json::from_str(&line).map_err(|e| wrong("a JSON string", e))?;
            let options = Encode { add_special: args.add_special, parse_special: args.special };
            let ids = text.tokenizer.encode(&string, options);
            writeln!(out, "{}", serde_json::to_string(&ids)?)?;
        }
    }
    out.flush()?;
    Ok(())
}

/// The prompt that a conversation becomes.
pub fn template(args: TemplateArgs) -> Outcome {
    let text = Text::open(&model::checkpoint(args.model.as_deref())?)?;
    let name = args.messages.display();
    let bytes = std::fs::read(&args.messages).map_err(|e| format!("{name}: {e}"))?;
    let messages: Vec<Message> = serde_json::from_slice(&bytes)
        .map_err(|e| format!("{name}: an array of {{\"role\", \"content\"}} was expected: {e}"))?;
    let rendered = text.render(&messages, !args.no_generation_prompt, model::now())?;
    std::io::stdout().write_all(rendered.text.as_bytes())?;
    Ok(())
}
