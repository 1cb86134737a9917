//! Writes the seed corpus: `seeds DIR` makes a folder for each target, with small files that the
//! project's own writers make, so that a fuzzer starts beyond the first magic number.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use lapidary_formats::gguf::{self, Array, Metadata, Value};
use lapidary_formats::{DType, TensorSpec, safetensors};

type Result<T = ()> = std::result::Result<T, Box<dyn Error>>;

fn main() -> Result {
    let dir: PathBuf = std::env::args_os().nth(1).ok_or("usage: seeds DIR")?.into();
    write_gguf(&folder(&dir, "gguf")?)?;
    write_safetensors(&folder(&dir, "safetensors")?)?;
    write_templates(&folder(&dir, "template")?)?;
    fs::write(folder(&dir, "sentencepiece")?.join("small"), sentencepiece())?;
    for (i, json) in TOKENIZERS.iter().enumerate() {
        fs::write(folder(&dir, "tokenizer_json")?.join(i.to_string()), json)?;
    }
    write_requests(&folder(&dir, "requests")?)
}

/// A request for each decoder of the target, which the first byte chooses.
fn write_requests(dir: &Path) -> Result {
    const BODIES: [&str; 16] = [
        r#"{"model":"m","messages":[{"role":"system","content":"a"},{"role":"user","content":[{"type":"text","text":"b"}]}],"stream":true,"stream_options":{"include_usage":true},"temperature":0.5,"seed":1,"n":2,"logprobs":true,"top_logprobs":3,"stop":["c"],"logit_bias":{"5":-1},"max_completion_tokens":4}"#,
        r#"{"model":"m","prompt":["a","b"],"max_tokens":4,"logprobs":2,"stop":"c"}"#,
        r#"{"model":"m","input":[{"type":"message","role":"user","content":[{"type":"input_text","text":"a"}]}],"instructions":"b","store":false,"include":["message.output_text.logprobs"],"metadata":{"a":"b"}}"#,
        r#"{"model":"m","input":[[1,2],[3]],"encoding_format":"base64","dimensions":4}"#,
        r#"{"model":"m","max_tokens":4,"system":[{"type":"text","text":"a","cache_control":{"type":"ephemeral"}}],"messages":[{"role":"user","content":"b"}],"stop_sequences":["c"],"top_k":5}"#,
        r#"{"contents":[{"role":"user","parts":[{"text":"a"}]}],"systemInstruction":{"parts":[{"text":"b"}]},"generation_config":{"topK":40.0,"stopSequences":["c"],"candidateCount":2,"responseLogprobs":true,"logprobs":1},"safetySettings":[{"category":"c","threshold":"t"}]}"#,
        r#"{"generateContentRequest":{"contents":[{"parts":[{"text":"a"}]}]}}"#,
        r#"{"content":{"parts":[{"text":"a"}]},"outputDimensionality":4,"taskType":"t"}"#,
        r#"{"requests":[{"model":"models/m","content":{"parts":[{"text":"a"}]}}]}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"a"}],"stream":false,"options":{"num_predict":-1,"seed":1,"stop":["b"],"num_ctx":512},"keep_alive":"5m"}"#,
        r#"{"model":"m","prompt":"a","raw":true,"options":{"temperature":0}}"#,
        r#"{"model":"m","input":"a","dimensions":4}"#,
        r#"{"name":"m","verbose":true}"#,
        r#"{"model":"m","text":"a","add_special":true}"#,
        r#"{"model":"m","ids":[1,2],"skip_special":true}"#,
        r#"{"model":"m","messages":[{"role":"user","content":"a"}],"system":"b"}"#,
    ];
    for (i, body) in BODIES.iter().enumerate() {
        fs::write(dir.join(i.to_string()), [&[i as u8], body.as_bytes()].concat())?;
    }
    Ok(())
}

fn folder(dir: &Path, target: &str) -> Result<PathBuf> {
    let path = dir.join(target);
    fs::create_dir_all(&path)?;
    Ok(path)
}

fn write_gguf(dir: &Path) -> Result {
    let mut keys = Metadata::new("seed");
    gguf::create(&dir.join("empty"), &keys, &[])?.finish()?;
    for (key, value) in every_value() {
        keys.insert(key, value)?;
    }
    gguf::create(&dir.join("keys"), &keys, &[])?.finish()?;

    let mut model = Metadata::new("seed");
    model.insert("general.architecture", "llama")?;
    model.insert("general.alignment", 32u32)?;
    model.insert("llama.block_count", 1u32)?;
    model.insert("tokenizer.ggml.tokens", vec!["<s>".to_owned(), "▁a".to_owned()])?;
    // One tensor of each type: a row of two blocks, or of two values.
    let typed = DType::ALL.into_iter().filter(|t| t.ggml_id().is_some());
    let tensors = |types: &mut dyn Iterator<Item = DType>| -> Vec<TensorSpec> {
        types.map(|t| TensorSpec::new(t.name(), t, [1, 2 * t.block_len()])).collect()
    };
    write_tensors_gguf(&dir.join("plain"), &model, &tensors(&mut [DType::F32].into_iter()))?;
    write_tensors_gguf(&dir.join("every_type"), &model, &tensors(&mut typed.into_iter()))
}

/// A key of each type, and arrays of several.
fn every_value() -> Vec<(&'static str, Value)> {
    let nested = Array::Array(vec![Array::I32(vec![1, -2]), Array::Str(vec!["é".into()])]);
    vec![
        ("u8", 200u8.into()),
        ("i8", (-3i8).into()),
        ("u16", 60_000u16.into()),
        ("i16", (-300i16).into()),
        ("u32", 7u32.into()),
        ("i32", (-7i32).into()),
        ("f32", 0.5f32.into()),
        ("bool", true.into()),
        ("str", "text".into()),
        ("u64", (1u64 << 40).into()),
        ("i64", i64::MIN.into()),
        ("f64", 0.1f64.into()),
        ("strs", vec!["a".to_owned(), String::new()].into()),
        ("floats", vec![-1.0f32, f32::INFINITY].into()),
        ("bools", vec![true, false].into()),
        ("nested", Value::Array(nested)),
    ]
}

fn write_tensors_gguf(path: &Path, keys: &Metadata, tensors: &[TensorSpec]) -> Result {
    let mut writer = gguf::create(path, keys, tensors)?;
    for tensor in tensors {
        writer.write(&tensor.name, &vec![1; tensor.dtype.bytes_for(&tensor.shape)?])?;
    }
    Ok(writer.finish()?)
}

fn write_safetensors(dir: &Path) -> Result {
    let none = BTreeMap::new();
    safetensors::create(&dir.join("empty"), &[], &none)?.finish()?;
    let tensors = [
        TensorSpec::new("model.embed_tokens.weight", DType::BF16, [2, 3]),
        TensorSpec::new("model.norm.weight", DType::F32, [3]),
        TensorSpec::new("scalar", DType::I64, []),
        TensorSpec::new("nothing \"é\"\n", DType::F16, [0, 4]),
    ];
    let metadata = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    let mut writer = safetensors::create(&dir.join("four"), &tensors, &metadata)?;
    for tensor in &tensors {
        writer.write(&tensor.name, &vec![1; tensor.dtype.bytes_for(&tensor.shape)?])?;
    }
    Ok(writer.finish()?)
}

/// A model of a few pieces of every kind, as a protocol buffer.
fn sentencepiece() -> Vec<u8> {
    let pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("<0x41>", 6), ("\u{2581}", 1), ("a", 1)];
    let more = [("\u{2581}a", 1), ("  ", 4), ("ab", 5)];
    let mut out = Vec::new();
    for (i, (text, kind)) in pieces.into_iter().chain(more).enumerate() {
        let mut piece = vec![0x0a, text.len() as u8];
        piece.extend(text.as_bytes());
        piece.push(0x15);
        piece.extend((-(i as f32)).to_le_bytes());
        piece.extend([0x18, kind]);
        out.extend([0x0a, piece.len() as u8]);
        out.extend(piece);
    }
    // trainer_spec: BPE, byte fallback; normalizer_spec: no squeezing of spaces.
    out.extend([0x12, 5, 0x18, 2, 0x98, 0x02, 1, 0x1a, 2, 0x20, 0]);
    out
}

/// The forms of Gemma, Llama and GPT-2.
const TOKENIZERS: [&str; 3] = [
    r#"{"added_tokens":[{"id":0,"content":"<bos>","special":true}],"normalizer":{"type":"Replace","pattern":{"String":" "},"content":"\u2581"},"pre_tokenizer":{"type":"Split","pattern":{"String":" "},"behavior":"MergedWithPrevious"},"post_processor":{"type":"TemplateProcessing","single":[{"SpecialToken":{"id":"<bos>"}},{"Sequence":{"id":"A"}}],"special_tokens":{"<bos>":{"ids":[0]}}},"decoder":{"type":"Sequence","decoders":[{"type":"ByteFallback"},{"type":"Fuse"}]},"model":{"type":"BPE","unk_token":"<unk>","fuse_unk":true,"byte_fallback":true,"vocab":{"<bos>":0,"<unk>":1,"\u2581":2,"a":3,"\u2581a":4,"<0x41>":5},"merges":[["\u2581","a"]]}}"#,
    r#"{"normalizer":{"type":"Sequence","normalizers":[{"type":"Prepend","prepend":"\u2581"},{"type":"Replace","pattern":{"String":" "},"content":"\u2581"}]},"decoder":{"type":"Strip","content":" ","start":1},"model":{"vocab":{"<unk>":0,"\u2581":1,"t":2,"\u2581t":3},"merges":["\u2581 t"]}}"#,
    r#"{"pre_tokenizer":{"type":"Sequence","pretokenizers":[{"type":"Digits","individual_digits":true},{"type":"ByteLevel","add_prefix_space":false}]},"model":{"type":"BPE","ignore_merges":true,"vocab":{"a":0,"b":1,"ab":2,"\u0120":3},"merges":["a b"]}}"#,
];

fn write_templates(dir: &Path) -> Result {
    for (i, template) in TEMPLATES.iter().enumerate() {
        fs::write(dir.join(i.to_string()), template)?;
    }
    Ok(())
}

/// Between them: every kind of statement and the helpers that published templates use.
const TEMPLATES: [&str; 7] = [
    "{{ bos_token }}{%- for m in messages -%}{% if m.role == 'user' %}{{ '[' + m.content | trim + ']' }}\
     {% elif loop.first %}{{ m['content'] }}{% else %}{{ raise_exception('roles') }}{% endif %}{%- endfor -%}",
    "{% macro turn(role, text='') %}<{{ role }}>{{ text }}<end_of_turn>{% endmacro %}\
     {% for m in messages %}{{ turn(m.role, m.content) }}{% endfor %}{% if add_generation_prompt %}<model>{% endif %}",
    "{% set ns = namespace(n=0, s='') %}{% for m in messages[1:] %}{% set ns.n = ns.n + 1 %}\
     {% set ns.s = ns.s ~ m.content.strip().split('é')[0].upper() %}{% endfor %}{{ ns.s ~ (ns.n * 2 % 3) }}",
    "{{ messages | tojson(indent=2) }}{{ messages | map(attribute='role') | join(', ') }}{{ strftime_now('%d %b %Y') }}",
    "{% generation %}{{ range(3) | list | length }}{% endgeneration %}{# note #}{% filter upper %}a{% endfilter %}\
     {% for i in range(9) %}{% if i is odd %}{% continue %}{% elif i > 6 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{{ messages | selectattr('role', 'equalto', 'user') | first | items }}{{ (tools or []) | length }}{{ 'ab'[::-1] }}{{ 7 // 2 ** 2 }}\
     {{ x.y is defined and not none }}{{ {'a': 1}.get('b', 'c').replace('c', '<end') }}",
    "{% for m in messages %}{% for p in m.content %}{{ p.text if p.type == 'text' else p.keys() }}{% endfor %}{% endfor %}\0\
     [{\"role\": \"user\", \"content\": [{\"type\": \"text\", \"text\": \"<end_of_turn>\"}], \"tool_calls\": [{\"a\": [null, 1e3]}]}]",
];
