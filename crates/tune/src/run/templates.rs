//! `lapidary train --init`: configurations with a comment on every key.

/// The kinds of configuration that can be written.
pub const TEMPLATES: [&str; 4] = ["pretrain", "sft", "lora", "dpo"];

/// What differs between them.
struct Parts {
    title: &'static str,
    method: &'static str,
    schedule: &'static str,
    kind: &'static str,
    beta2: &'static str,
    decay: &'static str,
    every: &'static str,
    prompts: &'static str,
    chat: &'static str,
}

const PRETRAIN: &str = r#"
# A model from nothing.
[model.init]
# "gemma3", "llama" or "gpt2".
family = "gemma3"
# A folder with a tokenizer, from `lapidary train-tokenizer` or a published checkpoint.
tokenizer = "tokenizer"
width = 256
layers = 8
heads = 4
# Heads of keys and values. [as many as query heads]
kv_heads = 1
# [width / heads]
head_dim = 64
ffn = 704
# Positions.
context = 1024
# Gemma 3: positions that a local layer sees, and every so manyth layer is global.
window = 128
global_every = 4
# Spread of the fresh weights.
std = 0.02

[data]
# Tokens of a sequence at most: longer text is cut there.
sequence = 512
# Tokens of one step.
batch_tokens = 8192
# Tokens computed at once; fewer need less memory. [batch_tokens]
micro_tokens = 2048
# Documents from which the next one is drawn; 1 keeps the files' order.
shuffle = 10000
# Share of the documents that is kept to measure on.
held_out = 0.005
# What of a conversation is learnt: "answers", or "all", the questions too.
learn = "all"

# A file or a folder: .jsonl, .txt or .parquet, also .gz and .zst. Write as many sources as you like.
[[data.source]]
path = "corpus"
# Its share of the documents, beside those of the others.
weight = 1.0
# "jsonl", "text" or "parquet". [by the name]
# format = "text"
# The line that ends a document of plain text. [an empty line after 4 kB]
# separator = "<|endoftext|>"
"#;

const TUNE_DATA: &str = r#"
[model]
# A Hugging Face directory or a GGUF file. [the built-in model]
# path = "gemma-3-1b-it"

[data]
# Tokens of an example at most: longer ones are left out and counted, never cut.
sequence = 512
# Tokens of one step.
batch_tokens = 2048
# Tokens computed at once; fewer need less memory. [batch_tokens]
micro_tokens = 2048
# Documents from which the next one is drawn; 1 keeps the files' order.
shuffle = 10000
# Share of the documents that is kept to measure on.
held_out = 0.05
# What of a conversation is learnt: "answers", or "all", the questions too (not with dpo).
learn = "answers"

"#;

const CHAT_SOURCE: &str = r#"# Lines such as {"messages": [{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]}
# (the loss is that of the assistant's turns) or {"prompt": "…", "completion": "…"}.
[[data.source]]
path = "examples.jsonl"
# Its share of the documents, beside those of other sources.
weight = 1.0
# "jsonl", "text" or "parquet". [by the name]
# format = "jsonl"
"#;

const PAIR_SOURCE: &str = r#"# Lines such as {"prompt": "…", "chosen": "…", "rejected": "…"}, with strings or arrays of turns.
[[data.source]]
path = "preferences.jsonl"
# Its share of the documents, beside those of other sources.
weight = 1.0
# "jsonl" or "parquet". [by the name]
# format = "jsonl"
"#;

const LORA: &str = r#"
[lora]
# Rank of each adapter.
rank = 16
# The adapters count alpha / rank times; with rslora, alpha / sqrt(rank) times.
alpha = 32.0
rslora = false
# Share of the adapters' inputs that is left out at random.
dropout = 0.0
# Projections by the ends of their names, such as ["q_proj", "v_proj"]; empty: all of the blocks.
targets = []
"#;

const DPO: &str = r#"
[dpo]
# How much the model holds on to what it was: its answers with the adapters switched off.
beta = 0.1
"#;

/// A commented configuration of one of [`TEMPLATES`], which names its own file `file`.
pub fn template(kind: &str, file: &str) -> Option<String> {
    let tuned = Parts {
        title: "",
        method: "lora",
        schedule: "# How often the data is read; or `steps = …`.\nepochs = 3\n# The highest \
                   learning rate.\nlr = 2e-4\n# Steps in which it rises from 0.\nwarmup = 10",
        kind: "cosine",
        beta2: "0.999",
        decay: "0.0",
        every: "50",
        prompts: "[\"Who are you?\"]",
        chat: "true",
    };
    let (parts, sections) = match kind {
        "pretrain" => {
            let parts = Parts {
                title: "Pre-training from scratch.",
                method: "full",
                schedule: "# Steps in all; or `epochs = …`, how often the data is read.\nsteps = \
                           2000\n# The highest learning rate.\nlr = 2e-3\n# Steps in which it \
                           rises from 0.\nwarmup = 100",
                kind: "wsd",
                beta2: "0.95",
                decay: "0.1",
                every: "200",
                prompts: "[\"Once upon a time\"]",
                chat: "false",
            };
            (parts, vec![PRETRAIN])
        }
        "sft" => {
            let title = "Fine-tuning of all weights on conversations.";
            let schedule = "# How often the data is read; or `steps = …`.\nepochs = 3\n# The \
                            highest learning rate.\nlr = 2e-5\n# Steps in which it rises from \
                            0.\nwarmup = 10";
            (Parts { title, schedule, method: "full", ..tuned }, vec![TUNE_DATA, CHAT_SOURCE])
        }
        "lora" => {
            let title = "Fine-tuning by low-rank adapters on conversations.";
            (Parts { title, ..tuned }, vec![TUNE_DATA, CHAT_SOURCE, LORA])
        }
        "dpo" => {
            let title = "Direct preference optimisation.";
            let schedule = "# How often the data is read; or `steps = …`.\nepochs = 1\n# The \
                            highest learning rate.\nlr = 5e-5\n# Steps in which it rises from \
                            0.\nwarmup = 10";
            let parts = Parts { title, schedule, method: "dpo", ..tuned };
            (parts, vec![TUNE_DATA, PAIR_SOURCE, LORA, DPO])
        }
        _ => return None,
    };
    Some(fill(&parts, &sections, kind, file))
}

fn fill(parts: &Parts, sections: &[&str], kind: &str, file: &str) -> String {
    let mut text = include_str!("templates/head.toml").to_owned();
    sections.iter().for_each(|s| text += s);
    text += "\n";
    text += include_str!("templates/common.toml");
    text += include_str!("templates/tail.toml");
    let output = format!("runs/{kind}");
    for (key, value) in [
        ("title", parts.title),
        ("file", file),
        ("output", output.as_str()),
        ("method", parts.method),
        ("schedule", parts.schedule),
        ("kind", parts.kind),
        ("beta2", parts.beta2),
        ("decay", parts.decay),
        ("every", parts.every),
        ("prompts", parts.prompts),
        ("chat", parts.chat),
    ] {
        text = text.replace(&format!("{{{{{key}}}}}"), value);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::{MethodConfig, TrainConfig};

    /// Keys of a table and of those in it, `a.b`.
    fn keys(at: &str, value: &serde_json::Value, out: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => fields.iter().for_each(|(k, v)| {
                keys(&format!("{at}{}{k}", if at.is_empty() { "" } else { "." }), v, out);
            }),
            serde_json::Value::Array(all) if all.first().is_some_and(|v| v.is_object()) => {
                keys(at, &all[0], out);
            }
            _ => out.push(at.to_owned()),
        }
    }

    #[test]
    fn templates_are_valid_and_show_every_key_of_their_method() {
        for kind in TEMPLATES {
            let text = template(kind, "x.toml").unwrap();
            assert!(!text.contains("{{"), "{text}");
            let config = TrainConfig::parse(&text, kind).unwrap_or_else(|e| panic!("{e}"));
            // Commented keys count as shown; so the resolved form must have no key beyond the text.
            let mut all = Vec::new();
            keys("", &serde_json::to_value(&config).unwrap(), &mut all);
            for key in all {
                let other = match config.method {
                    MethodConfig::Full => key.starts_with("lora") || key.starts_with("dpo"),
                    MethodConfig::Lora => key.starts_with("dpo"),
                    MethodConfig::Dpo => false,
                };
                let last = key.rsplit('.').next().unwrap();
                let shown = text
                    .lines()
                    .any(|l| l.trim_start_matches("# ").starts_with(&format!("{last} =")));
                assert!(shown || other, "{kind}: {key} is not shown");
            }
        }
        assert_eq!(template("other", "x"), None);
    }

    #[test]
    fn unknown_keys_are_refused_with_their_line() {
        let text = template("lora", "x.toml").unwrap().replace("rank = 16", "rnak = 16");
        let line = text.lines().position(|l| l.starts_with("rnak")).unwrap() + 1;
        let error = TrainConfig::parse(&text, "x.toml").unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("x.toml: line {line}: unknown field `rnak`")),
            "{error}"
        );
        let text = template("sft", "x.toml").unwrap().replace("lr = 2e-5", "lr = \"fast\"");
        let error = TrainConfig::parse(&text, "x.toml").unwrap_err().to_string();
        assert!(error.contains("line") && error.contains("invalid type"), "{error}");
    }

    #[test]
    fn a_resolved_configuration_says_the_same() {
        for kind in TEMPLATES {
            let config = TrainConfig::parse(&template(kind, "x").unwrap(), kind).unwrap();
            let again = TrainConfig::parse(&config.resolved(), "resolved").unwrap();
            assert_eq!(config, again);
            let mut other = config.clone();
            other.schedule.lr = 7.0;
            other.data.shuffle = 1;
            assert_eq!(config.changed_keys(&other), ["data.shuffle", "schedule.lr"]);
        }
    }
}
