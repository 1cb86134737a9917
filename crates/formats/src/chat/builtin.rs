//! Templates for checkpoints that bring none.

use super::{Message, RenderOptions};

/// A family's way of writing turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Builtin {
    /// Gemma 1 to 3: `<start_of_turn>role`, a system message joined to the first user turn.
    Gemma,
    /// Gemma 4 E2B and E4B: `<|turn>role`, thoughts, tools.
    Gemma4,
    /// Gemma 4 12B and larger: without thinking, the model's turn begins with an empty thought.
    Gemma4Large,
    /// PaliGemma: pictures, then one question; no turns.
    PaliGemma,
    /// Llama 2 chat: `[INST] <<SYS>>`.
    Llama2,
}

impl Builtin {
    /// The one of an architecture; none for base models such as GPT-2.
    pub fn of(architecture: &str) -> Option<Self> {
        match architecture {
            "gemma" | "gemma2" | "gemma3" | "gemma3_text" | "gemma3n" | "gemma3n_text" => {
                Some(Builtin::Gemma)
            }
            "gemma4" | "gemma4_text" => Some(Builtin::Gemma4),
            "gemma4_unified" | "gemma4_unified_text" => Some(Builtin::Gemma4Large),
            "paligemma" => Some(Builtin::PaliGemma),
            "llama" => Some(Builtin::Llama2),
            _ => None,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Builtin::Gemma => "Gemma",
            Builtin::Gemma4 => "Gemma 4",
            Builtin::Gemma4Large => "Gemma 4 (12B and larger)",
            Builtin::PaliGemma => "PaliGemma",
            Builtin::Llama2 => "Llama 2",
        }
    }

    pub(super) fn render(
        self,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<String, String> {
        if let Builtin::Gemma4 | Builtin::Gemma4Large = self {
            return super::gemma4::render(messages, options, self == Builtin::Gemma4Large);
        }
        if options.tools.is_some() {
            return Err(format!("{} has no form for tools", self.name()));
        }
        let (system, turns) = match messages {
            [first, rest @ ..] if first.role == "system" => (Some(first.text()?), rest),
            all => (None, all),
        };
        if turns.is_empty() {
            return Err("a conversation needs a user turn".into());
        }
        for (i, m) in turns.iter().enumerate() {
            let expected = if i % 2 == 0 { "user" } else { "assistant" };
            if m.role != expected && !(m.role == "model" && expected == "assistant") {
                return Err(format!(
                    "turn {} is a {} turn where a {expected} turn was expected: they alternate",
                    i + 1,
                    m.role
                ));
            }
        }
        match self {
            Builtin::PaliGemma => paligemma(system, turns, options),
            Builtin::Llama2 => llama2(system, turns, options),
            _ => gemma(system, turns, options),
        }
    }
}

fn gemma(
    system: Option<String>,
    turns: &[Message],
    options: &RenderOptions,
) -> Result<String, String> {
    let mut out = options.bos.to_owned();
    for (i, m) in turns.iter().enumerate() {
        out += if i % 2 == 0 { "<start_of_turn>user\n" } else { "<start_of_turn>model\n" };
        if let (0, Some(system)) = (i, &system) {
            out += system;
            out += "\n\n";
        }
        out += text_with_images(m)?.trim();
        out += "<end_of_turn>\n";
    }
    if options.add_generation_prompt {
        out += "<start_of_turn>model\n";
    }
    Ok(out)
}

/// As Gemma 3's template: a token in the place of each picture.
fn text_with_images(m: &Message) -> Result<String, String> {
    let serde_json::Value::Array(parts) = &m.content else { return m.text() };
    let part = |p: &serde_json::Value| match p["type"].as_str() {
        Some("image" | "image_url") => Ok("<start_of_image>".to_owned()),
        _ => Message { content: vec![p.clone()].into(), ..m.clone() }
            .text()
            .map(|t| t.trim().to_owned()),
    };
    parts.iter().map(part).collect()
}

/// A token for each picture, the token that begins a text, the question, a line's end, as the
/// reference's processor writes it.
fn paligemma(
    system: Option<String>,
    turns: &[Message],
    options: &RenderOptions,
) -> Result<String, String> {
    let ([m], None) = (turns, system) else {
        return Err("PaliGemma answers one question: it has neither turns nor a system".into());
    };
    let is_picture =
        |p: &serde_json::Value| matches!(p["type"].as_str(), Some("image" | "image_url"));
    let (pictures, text) = match &m.content {
        serde_json::Value::Array(parts) => {
            let (pictures, words): (Vec<_>, Vec<_>) = parts.iter().cloned().partition(is_picture);
            (pictures.len(), Message { content: words.into(), ..m.clone() }.text()?)
        }
        _ => (0, m.text()?),
    };
    Ok(format!("{}{}{text}\n", "<image>".repeat(pictures), options.bos))
}

fn llama2(
    system: Option<String>,
    turns: &[Message],
    options: &RenderOptions,
) -> Result<String, String> {
    let mut out = String::new();
    for (i, m) in turns.iter().enumerate() {
        let text = m.text()?;
        if i % 2 == 1 {
            out += &format!(" {} {}", text.trim(), options.eos);
            continue;
        }
        let system = match (&system, i) {
            (Some(s), 0) => format!("<<SYS>>\n{s}\n<</SYS>>\n\n"),
            _ => String::new(),
        };
        out += &format!("{}[INST] {} [/INST]", options.bos, (system + &text).trim());
    }
    Ok(out)
}
