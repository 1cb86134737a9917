//! Tokenizers against the encodings of the reference libraries.

use lapidary_formats::gguf;
use lapidary_formats::tokenizer::{Detokenizer, Encode, GgufVocab, Tokenizer};
use proptest::prelude::*;
use serde_json::Value;
use std::path::{Path, PathBuf};

fn shared(part: &str) -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let found = [root.join("shared"), root.join("../shared")];
    let found = found.into_iter().map(|p| p.join(part)).find(|p| p.exists());
    if found.is_none() {
        eprintln!("skipped: ../shared/{part} is not there");
    }
    found
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn ids(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|i| i.as_u64().unwrap() as u32).collect()
}

const PLAIN: Encode = Encode { add_special: false, parse_special: false };
const PARSED: Encode = Encode { add_special: false, parse_special: true };
const WHOLE: Encode = Encode { add_special: true, parse_special: true };

/// Streaming gives what decoding the whole gives.
fn check_streaming(t: &Tokenizer, ids: &[u32]) {
    for skip in [false, true] {
        let mut words = Detokenizer::new(t, skip);
        let mut text: String = ids.iter().map(|id| words.push(*id)).collect();
        text += &words.finish();
        assert_eq!(text, t.decode(ids, skip));
    }
}

/// The way from a conversation to ids: what a template rendered, encoded with its control tokens.
#[test]
fn rendered_conversations_encode_to_the_reference_s_ids() {
    let Some(dir) = shared("fixtures") else { return };
    for name in ["gemma", "gemma3", "gemma3n", "gemma4_31b", "gemma4_e2b"] {
        let golden = json(&dir.join(format!("chat/{name}.json")));
        let kind = golden["tokenizer"].as_str().unwrap();
        let t = Tokenizer::from_dir(&dir.join("tokenizers").join(kind)).unwrap();
        let mut same = 0;
        for row in golden["rows"].as_array().unwrap() {
            if let Some(text) = row.get("rendered").and_then(Value::as_str) {
                assert_eq!(t.encode(text, PARSED), ids(&row["ids"]), "{name} {}", row["name"]);
                same += 1;
            }
        }
        assert!(same >= 10, "{name}: {same}");
    }
}

#[test]
fn fixtures_in_their_hugging_face_form() {
    let Some(dir) = shared("fixtures/tokenizers") else { return };
    for kind in ["gemma", "gemma3", "gemma3n", "gemma4", "embedding", "llama", "gpt2"] {
        let t = Tokenizer::from_dir(&dir.join(kind)).unwrap();
        let golden = json(&dir.join(kind).join("golden_encodings.json"));
        let rows = golden["rows"].as_array().unwrap();
        for row in rows {
            let (text, want) = (row["text"].as_str().unwrap(), ids(&row["ids"]));
            assert_eq!(t.encode(text, PARSED), want, "{kind} {text:?}");
            if let Some(whole) = row.get("ids_with_special") {
                assert_eq!(t.encode(text, WHOLE), ids(whole), "{kind} {text:?}");
            }
            assert_eq!(t.decode(&want, false), row["decoded"].as_str().unwrap(), "{kind} {text:?}");
            if let Some(skipped) = row["decoded_skipping_special"].as_str() {
                assert_eq!(t.decode(&want, true), skipped, "{kind} {text:?}");
            }
            if !t.control_pieces().any(|c| text.contains(c)) {
                assert_eq!(t.encode(text, PLAIN), want, "{kind} {text:?}");
            } else {
                assert!(
                    t.encode(text, PLAIN).iter().all(|id| !t.is_control(*id)),
                    "{kind} {text:?}"
                );
            }
            check_streaming(&t, &want);
        }
        let broken = json(&dir.join(kind).join("golden_broken_bytes.json"));
        for row in broken["rows"].as_array().unwrap() {
            let ids = ids(&row["ids"]);
            assert_eq!(t.decode(&ids, false), row["decoded"].as_str().unwrap(), "{kind} {row}");
            check_streaming(&t, &ids);
        }
        println!(
            "{kind} tokenizer.json: {} encodings, {} broken byte rows",
            rows.len(),
            broken["rows"].as_array().unwrap().len()
        );
        assert!(rows.len() >= 250);
    }
}

#[test]
fn fixtures_in_their_sentencepiece_form() {
    let Some(dir) = shared("fixtures/tokenizers") else { return };
    for kind in ["gemma", "gemma3", "gemma3n", "embedding", "llama"] {
        let bytes = std::fs::read(dir.join(kind).join("tokenizer.model")).unwrap();
        let t = Tokenizer::from_sentencepiece(&bytes, kind).unwrap();
        let golden = json(&dir.join(kind).join("golden_encodings.json"));
        let rows = golden["rows"].as_array().unwrap();
        for row in rows {
            let text = row["text"].as_str().unwrap();
            let agrees = row["spm_agrees"].as_bool().unwrap();
            let (want, decoded) =
                if agrees { ("ids", "decoded") } else { ("spm_ids", "spm_decoded") };
            let want = ids(&row[want]);
            // Turn markers are user-defined pieces there; here they are control tokens.
            let how = if text.contains("_of_") { PARSED } else { PLAIN };
            assert_eq!(t.encode(text, how), want, "{kind} {text:?}");
            if let Some(decoded) = row[decoded].as_str() {
                assert_eq!(t.decode(&want, false), decoded, "{kind} {text:?}");
            }
            check_streaming(&t, &want);
        }
        let broken = json(&dir.join(kind).join("golden_broken_bytes.json"));
        for row in broken["rows"].as_array().unwrap() {
            let ids = ids(&row["ids"]);
            assert_eq!(t.decode(&ids, false), row["spm_decoded"].as_str().unwrap(), "{kind} {row}");
            check_streaming(&t, &ids);
        }
        println!("{kind} tokenizer.model: {} encodings", rows.len());
    }
}

fn lines(path: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn check_rows(name: &str, t: &Tokenizer, path: &Path, how: Encode) {
    let rows = lines(path);
    for row in &rows {
        let (text, want) = (row["text"].as_str().unwrap(), ids(&row["ids"]));
        assert_eq!(t.encode(text, how), want, "{name} {text:?}");
        if let Some(decoded) = row["decoded"].as_str() {
            assert_eq!(t.decode(&want, false), decoded, "{name} {text:?}");
        }
        check_streaming(t, &want);
    }
    println!("{name}: {} encodings", rows.len());
    assert!(rows.len() >= 47);
}

#[test]
fn genuine_vocabularies() {
    let Some(dir) = shared("tokenizers") else { return };
    for kind in ["llama2", "mistral-v1", "mistral-v3"] {
        let bytes = std::fs::read(dir.join(kind).join("tokenizer.model")).unwrap();
        let t = Tokenizer::from_sentencepiece(&bytes, kind).unwrap();
        check_rows(kind, &t, &dir.join(kind).join("golden.jsonl"), PLAIN);
    }
    let gpt2 = Tokenizer::from_dir(&dir.join("gpt2")).unwrap();
    check_rows("gpt2", &gpt2, &dir.join("gpt2/golden.jsonl"), PLAIN);
    let bytes = std::fs::read(dir.join("litert-lm-test/tokenizer.json")).unwrap();
    let t = Tokenizer::from_json(&bytes, "litert-lm-test").unwrap();
    check_rows(
        "litert-lm-test tokenizer.json",
        &t,
        &dir.join("litert-lm-test/golden.tokenizer-json.jsonl"),
        PARSED,
    );
}

#[test]
fn models_of_other_kinds_are_refused_by_name() {
    let Some(dir) = shared("tokenizers") else { return };
    for kind in ["sentencepiece-test", "litert-lm-test"] {
        let bytes = std::fs::read(dir.join(kind).join("tokenizer.model")).unwrap();
        match Tokenizer::from_sentencepiece(&bytes, kind) {
            Ok(t) => check_rows(kind, &t, &dir.join(kind).join("golden.jsonl"), PLAIN),
            Err(e) => {
                println!("{e}");
                assert!(e.to_string().contains("_spec."), "{e}");
            }
        }
    }
}

fn gguf_tokenizer(path: &Path) -> Tokenizer {
    let file = gguf::open(path).unwrap();
    let m = &file.metadata;
    let key = |k: &str| format!("tokenizer.ggml.{k}");
    let vocab = GgufVocab {
        model: m.str(&key("model")).unwrap().to_owned(),
        pre: m.opt_str(&key("pre")).unwrap().map(str::to_owned),
        tokens: m.strs(&key("tokens")).unwrap().to_vec(),
        scores: m.opt_f32s(&key("scores")).unwrap().map(<[f32]>::to_vec),
        token_types: m.opt_i32s(&key("token_type")).unwrap(),
        merges: m.opt_strs(&key("merges")).unwrap().map(<[String]>::to_vec),
        bos: m.opt_u32(&key("bos_token_id")).unwrap(),
        eos: m.opt_u32(&key("eos_token_id")).unwrap(),
        unk: m.opt_u32(&key("unknown_token_id")).unwrap(),
        pad: m.opt_u32(&key("padding_token_id")).unwrap(),
        add_bos: m.opt_bool(&key("add_bos_token")).unwrap(),
        add_eos: m.opt_bool(&key("add_eos_token")).unwrap(),
        add_space_prefix: m.opt_bool(&key("add_space_prefix")).unwrap(),
    };
    Tokenizer::from_gguf(vocab, &path.display().to_string()).unwrap()
}

#[test]
fn vocabularies_in_gguf() {
    let Some(dir) = shared("tokenizers/gguf-vocab") else { return };
    for kind in ["llama-spm", "gpt-2", "phi-3"] {
        let t = gguf_tokenizer(&dir.join(format!("ggml-vocab-{kind}.gguf")));
        let text = |ext: &str| {
            std::fs::read_to_string(dir.join(format!("ggml-vocab-{kind}.gguf.{ext}"))).unwrap()
        };
        let (inputs, outputs) = (text("inp"), text("out"));
        let inputs: Vec<&str> = inputs.split("\n__ggml_vocab_test__\n").collect();
        let mut rows = 0;
        for (input, output) in inputs.iter().zip(outputs.lines()) {
            let want: Vec<u32> = output.split_whitespace().map(|s| s.parse().unwrap()).collect();
            assert_eq!(t.encode(input, PLAIN), want, "{kind} {input:?}");
            rows += 1;
        }
        println!("{kind} in GGUF: {rows} encodings by llama.cpp");
        assert!(rows >= 46);
    }
}

#[test]
fn gguf_and_model_files_of_one_vocabulary_agree() {
    let (Some(dir), Some(models)) = (shared("fixtures/gguf"), shared("fixtures/models")) else {
        return;
    };
    let gemma4 = ["gemma4_text", "gemma4_e2b", "gemma4_12b", "gemma4_26b_a4b", "gemma4_31b"];
    for kind in ["gemma", "gemma3_text", "llama_gqa", "gpt2"].into_iter().chain(gemma4) {
        let a = gguf_tokenizer(&dir.join(format!("{kind}-q8_0.gguf")));
        let b = Tokenizer::from_dir(&models.join(kind)).unwrap();
        let turn = "<|turn>user\n<|image|>Why?<turn|>\n<|channel>thought\na<channel|><|\"|>b";
        for text in ["The blue door.", "  two  spaces", "héllo 🙂\n\n\tx", "1234 <b>", turn] {
            assert_eq!(a.encode(text, PLAIN), b.encode(text, PLAIN), "{kind} {text:?}");
            assert_eq!(a.encode(text, WHOLE), b.encode(text, WHOLE), "{kind} {text:?}");
        }
    }
    // All that the reference has encoded, and what came back.
    let a = gguf_tokenizer(&dir.join("gemma4_e2b-q8_0.gguf"));
    let b = Tokenizer::from_dir(&models.join("gemma4_e2b")).unwrap();
    let golden = json(&dir.join("../tokenizers/gemma4/golden_encodings.json"));
    let rows = golden["rows"].as_array().unwrap();
    for text in rows.iter().map(|row| row["text"].as_str().unwrap()) {
        let ids = b.encode(text, PARSED);
        assert_eq!(a.encode(text, PARSED), ids, "{text:?}");
        assert_eq!(a.decode(&ids, false), b.decode(&ids, false), "{text:?}");
    }
    println!("{} texts alike in Gemma 4's two forms", rows.len());
}

/// A small vocabulary of our own, with byte fallback and a control token.
fn small() -> Tokenizer {
    let mut tokens = vec!["<unk>".to_owned(), "<s>".into(), "</s>".into()];
    let mut types = vec![2, 3, 3];
    for b in 0..=255 {
        tokens.push(format!("<0x{b:02X}>"));
        types.push(6);
    }
    for piece in ["▁", "t", "h", "e", "th", "the", "▁the", "é", "a", "▁a"] {
        tokens.push(piece.into());
        types.push(1);
    }
    let scores = (0..tokens.len()).map(|i| -(i as f32)).collect();
    let vocab = GgufVocab {
        model: "llama".into(),
        tokens,
        scores: Some(scores),
        token_types: Some(types),
        bos: Some(1),
        eos: Some(2),
        unk: Some(0),
        ..GgufVocab::default()
    };
    Tokenizer::from_gguf(vocab, "small").unwrap()
}

#[test]
fn control_tokens_in_text_are_text_unless_asked_for() {
    let t = small();
    assert!(!t.encode("a</s>", PLAIN).contains(&2));
    assert!(t.encode("a</s>", PARSED).contains(&2));
    let spelt = 1..5;
    assert!(!t.encode_with_literals("a</s>", PARSED, std::slice::from_ref(&spelt)).contains(&2));
    assert_eq!(t.encode("</s></s>", PARSED).iter().filter(|id| **id == 2).count(), 2);
    let second = 4..8;
    let once = t.encode_with_literals("</s></s>", PARSED, std::slice::from_ref(&second));
    assert_eq!(once.iter().filter(|id| **id == 2).count(), 1);
    assert_eq!(t.encode("a", WHOLE)[0], 1);
}

#[test]
fn long_texts_take_linear_time() {
    let t = small();
    let text = "thethe the a é".repeat(70_000);
    let start = std::time::Instant::now();
    let ids = t.encode(&text, PLAIN);
    let time = start.elapsed();
    assert_eq!(t.decode(&ids, false), text);
    assert!(time.as_secs() < 10, "{} bytes took {time:?}", text.len());
}

proptest! {
    #[test]
    fn text_comes_back(text in "\\PC{0,40}") {
        let t = small();
        // A space is put before the text and taken off again.
        let ids = t.encode(&text, PLAIN);
        prop_assert_eq!(t.decode(&ids, false), text.clone());
        check_streaming(&t, &ids);
    }

    #[test]
    fn any_ids_stream_as_they_decode(ids in proptest::collection::vec(0u32..300, 0..40)) {
        check_streaming(&small(), &ids);
    }

    #[test]
    fn damaged_files_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), kind in 0..3u8) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let json = format!("{{\"model\":{{\"type\":\"BPE\",\"vocab\":{{\"a\":{}}},\"merges\":[{text:?}]}}}}", bytes.len());
        let _ = match kind {
            0 => Tokenizer::from_sentencepiece(&bytes, "x"),
            1 => Tokenizer::from_json(json.as_bytes(), "x"),
            _ => Tokenizer::from_vocab_and_merges(b"{\"a\": 0}", &text, "x"),
        };
    }
}
