//! The program as a user runs it, on the built-in model and on files made here.

use serde_json::Value;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};

fn run(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lapidary"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn good(args: &[&str], input: &str) -> String {
    let out = run(args, input);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8(out.stdout).unwrap()
}

/// What is said on standard error when a command fails.
fn bad(args: &[&str], input: &str) -> String {
    let out = run(args, input);
    assert!(!out.status.success(), "{args:?} succeeded");
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(!said.contains("panicked"), "{said}");
    said
}

/// A file of this test, in a folder of its own.
fn file(test: &str, name: &str) -> PathBuf {
    let dir = std::env::temp_dir().join(format!("lapidary-{test}-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    dir.join(name)
}

/// The built-in model as a file.
fn model() -> String {
    format!("{}/../../models/default-Q8_0.gguf", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn the_built_in_model_continues_a_story_as_its_reference_does() {
    let base = ["run", "--raw", "--temperature", "0", "--max-tokens", "60"];
    let args = [&base[..], &["Once upon a time", "--json"]].concat();
    let report: Value = serde_json::from_str(&good(&args, "")).unwrap();
    let text = report["text"].as_str().unwrap();
    assert!(text.starts_with(", there was a little girl named Lily."), "{text}");
    assert_eq!(report["prompt_ids"], serde_json::json!([2, 1433, 848, 269, 599]));
    assert_eq!(report["finish_reason"], "length");
    assert_eq!(report["counts"]["generated"], 60);
    // The same from standard input, from ids, with other threads and chunks.
    let plain = good(&base, "Once upon a time");
    assert_eq!(plain.trim_end(), text);
    for extra in [["--threads", "1"], ["--chunk", "2"], ["--isa", "scalar"]] {
        let args =
            ["run", "--ids", "[2,1433,848,269,599]", "--temperature", "0", "--max-tokens", "60"];
        assert_eq!(good(&[&args[..], &extra].concat(), "").trim_end(), text, "{extra:?}");
    }
}

#[test]
fn the_built_in_model_answers_and_stops_by_itself() {
    for (question, word) in [
        ("Who are you?", "Lapidary"),
        ("What is the capital of France?", "Paris"),
        ("How do I serve a model?", "lapidary serve"),
        ("Quelle est la capitale de l'Italie ?", "Rome"),
    ] {
        let report = good(&["run", question, "--temperature", "0", "--json"], "");
        let report: Value = serde_json::from_str(&report).unwrap();
        assert!(report["text"].as_str().unwrap().contains(word), "{question}: {report}");
        assert_eq!(report["finish_reason"], "stop", "{question}");
    }
}

#[test]
fn a_seed_repeats_and_is_reported() {
    let args = |seed: &'static str| {
        let run = ["run", "--raw", "The cat", "--temperature", "1", "--max-tokens", "20", "--json"];
        [&run[..], &["--seed", seed]].concat()
    };
    let run = |seed| serde_json::from_str::<Value>(&good(&args(seed), "")).unwrap();
    let (a, b, c) = (run("7"), run("7"), run("8"));
    assert_eq!(a["ids"], b["ids"]);
    assert_ne!(a["ids"], c["ids"]);
    assert_eq!(a["seed"], 7);
}

#[test]
fn a_chat_from_a_pipe_keeps_its_turns() {
    let saved = file("chat", "saved.json");
    let script = format!(
        "/set temperature 0\n/system Be brief.\nHello\nAnd you?\n/save {0}\n/reset\n/load {0}\n/set nonsense 1\n/bogus\n/stats\n/exit\nnever",
        saved.display()
    );
    let out = run(&["chat", "--max-tokens", "12"], &script);
    assert!(out.status.success());
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(
        said.contains("nonsense 1: that is no setting") && said.contains("/bogus is no command"),
        "{said}"
    );
    assert!(said.contains("4 turns from"), "{said}");
    let turns: Vec<Value> = serde_json::from_slice(&std::fs::read(&saved).unwrap()).unwrap();
    let roles: Vec<&str> = turns.iter().map(|t| t["role"].as_str().unwrap()).collect();
    assert_eq!(roles, ["system", "user", "assistant", "user", "assistant"]);
    assert!(String::from_utf8(out.stdout).unwrap().contains("context"), "/stats prints");
}

#[test]
fn tokens_go_there_and_back() {
    let lines = "\"Once upon a time\"\n\"<end_of_turn> é\"\n";
    let ids = good(&["tokenize", "--model", &model()], lines);
    assert_eq!(ids.lines().next(), Some("[1433,848,269,599]"));
    assert_eq!(good(&["tokenize", "--model", &model(), "--decode"], &ids), lines);
    let special = good(&["tokenize", "--model", &model(), "--special"], lines);
    assert_ne!(ids, special, "the control token is parsed when asked for");
    assert!(bad(&["tokenize"], "no json\n").contains("line 1"));
    assert!(bad(&["tokenize", "--decode"], "[99999]\n").contains("99999"));
}

#[test]
fn a_template_renders() {
    let messages = file("template", "m.json");
    std::fs::write(&messages, r#"[{"role":"system","content":"S"},{"role":"user","content":"U"}]"#)
        .unwrap();
    let text = good(&["template", "--messages", messages.to_str().unwrap()], "");
    assert_eq!(text, "<bos><start_of_turn>user\nS\n\nU<end_of_turn>\n<start_of_turn>model\n");
    assert!(bad(&["template", "--messages", "/nonexistent"], "").contains("/nonexistent"));
}

#[test]
fn logits_are_written_whole() {
    let (tokens, out) = (file("logits", "t.json"), file("logits", "l.safetensors"));
    std::fs::write(&tokens, "[[2,973,771],[2]]").unwrap();
    let (t, o) = (tokens.to_str().unwrap(), out.to_str().unwrap());
    good(&["logits", "--tokens", t, "--out", o], "");
    let file = lapidary_formats::safetensors::open(&out).unwrap();
    let shapes: Vec<&[usize]> = file.tensors.iter().map(|t| &t.shape[..]).collect();
    assert_eq!(shapes, [&[3, 8192][..], &[1, 8192][..]]);
    // A failure leaves the old file alone.
    let before = std::fs::read(&out).unwrap();
    std::fs::write(&tokens, "[[2],[8192]]").unwrap();
    assert!(bad(&["logits", "--tokens", t, "--out", o], "").contains("token 8192"));
    assert_eq!(std::fs::read(&out).unwrap(), before);
}

#[test]
fn files_are_converted_and_read_back() {
    let out = file("quantize", "q4.gguf");
    let text = good(&["quantize", &model(), out.to_str().unwrap(), "--type", "q4_0"], "");
    assert!(text.contains("relative error"), "{text}");
    let report: Value =
        serde_json::from_str(&good(&["inspect", out.to_str().unwrap(), "--json"], "")).unwrap();
    assert_eq!(report["family"], "gemma3");
    assert_eq!(report["parameters"], 4_725_952);
    let story =
        good(&["run", "--model", out.to_str().unwrap(), "--raw", "Once", "--max-tokens", "5"], "");
    assert!(!story.trim().is_empty());
    assert!(bad(&["quantize", &model(), "/nonexistent/x.gguf"], "").contains("/nonexistent"));
    assert!(
        bad(&["quantize", &model(), out.to_str().unwrap(), "--type", "q9"], "").contains("q8_0")
    );
}

#[test]
fn inspect_shows_what_a_person_wants_to_know() {
    let text = good(&["inspect", &model()], "");
    for part in ["gemma3", "4,725,952", "8 layers", "tokenizer", "template", "token_embd.weight"] {
        assert!(text.contains(part), "{part} is missing in {text}");
    }
}

/// As `lapidary inspect ... | head` leaves it: more is written than the pipe holds or the reader reads.
#[test]
fn a_reader_that_goes_away_is_no_accident() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lapidary"))
        .args(["inspect", &model()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let out = child.wait_with_output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(out.status.success() && said.is_empty(), "{said}");
}

#[test]
fn what_does_not_fit_is_refused_and_never_cut() {
    let said = bad(&["run", "--context", "8", "--max-tokens", "4"], &"word ".repeat(50));
    assert!(said.contains("do not fit in a context of 8"), "{said}");
    assert!(bad(&["run", "x", "--context", "99999999"], "").contains("--context"));
    assert!(bad(&["run", "x", "--top-p", "0"], "").contains("top_p"));
    assert!(bad(&["run", "--ids", "[99999]"], "").contains("99999"));
    assert!(bad(&["run", "--ids", "[]"], "").contains("no tokens"));
    assert!(bad(&["run", "--model", "/nonexistent", "x"], "").contains("/nonexistent"));
    let said = bad(&["run", "--model", "nobody/nothing", "x"], "");
    assert!(said.contains("Hugging Face cache"), "{said}");
}

#[test]
fn an_answer_ends_before_a_stop_string_and_bias_bars_a_token() {
    let base =
        ["run", "--raw", "Once upon a time", "--temperature", "0", "--json", "--max-tokens", "40"];
    let run = |extra: &[&str]| -> Value {
        serde_json::from_str(&good(&[&base[..], extra].concat(), "")).unwrap()
    };
    let plain = run(&[]);
    // The string lies across tokens, and another never comes.
    let stopped = run(&["--stop", "rl named", "--stop", "Lily!"]);
    assert_eq!(stopped["text"], ", there was a little gi");
    assert_eq!(stopped["finish_reason"], "stop");
    let first = plain["ids"][0].as_u64().unwrap();
    let barred = run(&["--logit-bias", &format!("{first}=-100")]);
    assert_ne!(barred["ids"][0].as_u64().unwrap(), first);
    assert!(bad(&["run", "x", "--logit-bias", "99999=1"], "").contains("99999"));
    assert!(bad(&["run", "x", "--logit-bias", "1"], "").contains("1234=-100"));
}

#[test]
fn a_full_context_is_forgotten_only_when_asked_for() {
    let base = ["run", "--temperature", "0", "--json", "--context", "16", "--max-tokens", "40"];
    let run = |extra: &[&str], input: &str| -> Value {
        serde_json::from_str(&good(&[&base[..], extra].concat(), input)).unwrap()
    };
    let ended = run(&["--raw"], "Once upon a time");
    assert_eq!(ended["finish_reason"], "context");
    let shifted = run(&["--context-shift", "--raw"], "Once upon a time");
    assert_eq!(shifted["counts"]["generated"], 40);
    // What the shift continues is what a fresh run of the kept tokens continues.
    let ids: Vec<u64> = shifted["prompt_ids"]
        .as_array()
        .unwrap()
        .iter()
        .chain(shifted["ids"].as_array().unwrap())
        .map(|id| id.as_u64().unwrap())
        .collect();
    let kept = [&ids[..1], &ids[9..17]].concat();
    let fresh = run(&["--ids", &serde_json::to_string(&kept).unwrap()], "");
    assert_eq!(fresh["ids"][0], ids[17]);
    let long = run(&["--context-shift", "--raw"], &"word ".repeat(50));
    assert!(long["counts"]["forgotten"].as_u64().unwrap() > 30);
}

#[test]
fn bench_reports_its_share_of_the_limit() {
    let text = good(&["bench", "--prompt", "16", "--generate", "4", "--repeat", "1", "--json"], "");
    let report: Value = serde_json::from_str(&text).unwrap();
    assert!(report["decode_share_of_bandwidth"].as_f64().unwrap() > 0.0);
    assert!(report["prefill_tokens_per_second"]["median"].as_f64().unwrap() > 0.0);
}

#[test]
fn a_quantised_model_is_calibrated_and_compared() {
    let dir = std::env::temp_dir().join(format!("lapidary-kl-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/default-Q8_0.gguf");
    let text = dir.join("text.txt");
    std::fs::write(
        &text,
        "Once upon a time there was a little girl who had a big red ball. ".repeat(9),
    )
    .unwrap();
    let out = dir.join("small.gguf");
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_lapidary"))
        .args(["quantize", model])
        .arg(&out)
        .args(["--type", "q4_k_m", "--tensors", "--tokens", "96", "--calibrate"])
        .arg(&text)
        .arg("--kl")
        .arg(&text)
        .output()
        .unwrap();
    let (stdout, stderr) =
        (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{stderr}");
    assert!(stderr.contains("calibrated on 96 tokens"), "{stderr}");
    assert!(stderr.contains("4 matrices became Q5_0"), "{stderr}");
    assert!(stdout.contains("blk.0.attn_q.weight") && stdout.contains("Q4_K"), "{stdout}");
    let kl = stdout.split("KL divergence ").nth(1).and_then(|s| s.split(' ').next());
    let kl: f64 = kl.and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{stdout}"));
    assert!(kl > 0.0 && kl < 0.05, "{stdout}");
    std::fs::remove_dir_all(&dir).unwrap();
}
