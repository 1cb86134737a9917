//! `run --image` and `/image` in a chat, on the reference's tiny checkpoints.

#[path = "../../engine/tests/shared/projector.rs"]
mod projector;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use lapidary_formats::Checkpoint;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

fn fixtures() -> Option<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../..");
    let found = [root.join("shared/fixtures"), root.join("../shared/fixtures")];
    let found = found.into_iter().find(|p| p.is_dir());
    if found.is_none() {
        eprintln!("skipped: ../shared/fixtures is not there");
    }
    found.map(|f| f.join("models"))
}

fn run(args: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lapidary"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have ended before it read anything.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

/// What `run --json` with these arguments reports.
fn report(args: &[&str], input: &[u8]) -> Value {
    let out = run(&[&["run", "--json"], args].concat(), input);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    serde_json::from_slice(&out.stdout).unwrap()
}

fn bad(args: &[&str], input: &[u8], words: &str) {
    let out = run(args, input);
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(!out.status.success() && said.contains(words), "{args:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
}

/// Token ids around and for a picture of `rows` rows.
fn stretch([begin, one, end]: [u32; 3], rows: usize) -> Vec<u32> {
    [vec![begin], vec![one; rows], vec![end]].concat()
}

#[test]
fn a_picture_stands_before_the_prompt_and_in_a_chat() {
    let Some(models) = fixtures() else { return };
    for (name, tokens, rows) in [("gemma3", [46, 508, 47], 9), ("gemma4_e2b", [54, 56, 58], 63)] {
        let dir = models.join(name);
        let (dir, image) = (dir.to_str().unwrap(), dir.join("image.png"));
        let image = image.to_str().unwrap();
        let file = std::fs::read(image).unwrap();
        let rest = ["--temperature", "0", "--max-tokens", "8", "--precision", "exact"];
        let report = |image: &[&str], input: &[u8]| -> Value {
            report(&[&["--model", dir, "What is it?"], &rest[..], image].concat(), input)
        };
        let one = report(&["--image", image], b"");
        let ids: Vec<u32> = serde_json::from_value(one["prompt_ids"].clone()).unwrap();
        let wanted = stretch(tokens, rows);
        let found = ids.windows(wanted.len()).filter(|w| *w == wanted).count();
        assert_eq!((found, ids[0]), (1, 2), "{ids:?}");
        let none = report(&[], b"");
        assert_ne!(one["text"], none["text"]);
        // From standard input; with chunks smaller than the picture; two of them.
        for other in
            [report(&["--image", "-"], &file), report(&["--image", image, "--chunk", "4"], b"")]
        {
            assert_eq!((&other["prompt_ids"], &other["text"]), (&one["prompt_ids"], &one["text"]));
        }
        let two = report(&["--image", image, "--image", image], b"");
        let ids: Vec<u32> = serde_json::from_value(two["prompt_ids"].clone()).unwrap();
        assert_eq!(ids.windows(wanted.len()).filter(|w| *w == wanted).count(), 2);

        let saved =
            std::env::temp_dir().join(format!("lapidary-{name}-{}.json", std::process::id()));
        let file = saved.to_str().unwrap();
        let chat = [&["chat", "--model", dir][..], &rest].concat();
        let lines = format!("/image {image}\nWhat is it?\n/image /no/such.png\n/save {file}\n");
        let first = run(&chat, lines.as_bytes());
        let said = String::from_utf8_lossy(&first.stderr);
        assert!(first.status.success() && said.contains("/no/such.png"), "{said}");
        let text = one["text"].as_str().unwrap();
        assert_eq!(String::from_utf8_lossy(&first.stdout).trim_end(), text.trim_end());
        // What was saved shows its pictures again.
        let again = format!("/load {file}\nAnd now?\n/stats\n");
        let again = run(&chat, again.as_bytes());
        let said = String::from_utf8_lossy(&again.stderr);
        assert!(again.status.success() && !said.contains("error"), "{said}");
        std::fs::remove_file(saved).unwrap();
    }
}

#[test]
fn what_can_not_be_seen_is_refused() {
    let Some(models) = fixtures() else { return };
    let dir = |name: &str| models.join(name).to_str().unwrap().to_owned();
    let gemma3 = dir("gemma3");
    let image = format!("{gemma3}/image.png");
    let (model, config) = (["run", "--model", &gemma3], format!("{gemma3}/config.json"));
    let with = |more: &[&'static str]| [&model[..], more].concat();
    bad(&[&model[..], &["x", "--image", &config]].concat(), b"", &config);
    bad(&with(&["x", "--image", "/no/such.png"]), b"", "/no/such.png");
    bad(&with(&["x", "--image", "-"]), b"\x89PNG\r\n\x1a\n", "standard input");
    bad(&with(&["x", "--image", "https://example.org/x.png"]), b"", "network");
    bad(&with(&["x", "--image", "a.png", "--raw"]), b"", "--raw");
    bad(&with(&["x", "--image", "a.png", "--context-shift"]), b"", "--context-shift");
    bad(&with(&["--image", "-"]), b"", "standard input holds the prompt");
    bad(&["run", "--model", &dir("gemma2"), "x", "--image", &image], b"", "no vision tower");
    bad(&["run", "--model", &dir("gemma3n"), "x", "--image", &image], b"", "no vision tower");
    bad(&["run", "x", "--image", &image], b"", "mmproj");
    let gguf = models.join("../gguf/gemma4_e2b-q8_0.gguf");
    let gguf = ["run", "--model", gguf.to_str().unwrap(), "x", "--image", &image];
    bad(&gguf, b"", "none lies beside it");
    bad(&[&gguf[..], &["--mmproj", &config]].concat(), b"", &config);
    let own = ["x", "--image", &image, "--mmproj", &config];
    bad(&[&model[..], &own].concat(), b"", "has its own vision tower");
    bad(&with(&["x", "--mmproj", "m.gguf"]), b"", "--image");
    // A picture fits whole or the prompt is refused.
    let small = ["x", "--image", &image, "--context", "10"];
    bad(&[&model[..], &small].concat(), b"", "10");
}

/// A process that ends with this.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// What `lapidary serve` answers to a chat, and what it says on standard error before.
fn served(args: &[&str], body: &Value) -> (Value, String) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_lapidary"))
        .args(["serve", "--listen", "127.0.0.1:0", "--log", "error", "--threads", "1"])
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let (out, err) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let running = Running(child);
    let mut address = String::new();
    BufReader::new(out).read_line(&mut address).unwrap();
    let address = address.trim().strip_prefix("http://").unwrap_or_default().to_owned();
    let mut stream = TcpStream::connect(&address).unwrap_or_else(|e| panic!("{address:?}: {e}"));
    let body = body.to_string();
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    drop(running);
    let mut said = String::new();
    BufReader::new(err).read_to_string(&mut said).unwrap();
    let answer = answer.split_once("\r\n\r\n").map_or("", |a| a.1);
    (serde_json::from_str(answer).unwrap_or_else(|e| panic!("{e}: {answer} {said}")), said)
}

#[test]
fn a_served_gguf_model_sees_as_in_run() {
    let Some(models) = fixtures() else { return };
    let folder = std::env::temp_dir().join(format!("lapidary-serve-sees-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (model, right, wrong) =
        (file("model.gguf"), file("mmproj-e2b.gguf"), file("mmproj-other.gguf"));
    std::fs::copy(models.join("../gguf/gemma4_e2b-q8_0.gguf"), &model).unwrap();
    for (name, kind, to) in [("gemma4_e2b", "gemma4v", &right), ("gemma3", "gemma3", &wrong)] {
        let from = Checkpoint::open(&models.join(name)).unwrap();
        projector::write_projector(&from, kind, Path::new(to));
    }
    let image = models.join("gemma4_e2b/image.png");
    let picture = ["--image", image.to_str().unwrap(), "--mmproj", &right];
    let plain = ["--model", &model, "What is it?", "--temperature", "0", "--max-tokens", "8"];
    let want = report(&[&plain[..], &picture].concat(), b"");
    let url = format!("data:image/png;base64,{}", STANDARD.encode(std::fs::read(&image).unwrap()));
    let body = json!({"model": "m", "temperature": 0, "max_tokens": 8, "messages": [
        {"role": "user", "content": [
            {"type": "image_url", "image_url": {"url": url}},
            {"type": "text", "text": "What is it?"}]}]});
    // The one that fits is found, and told; or it is named.
    let name = format!("m={model}");
    let (found, said) = served(&["--model", &name], &body);
    assert!(
        said.contains(&format!("m sees with {right}")) && said.contains(", sees pictures"),
        "{said}"
    );
    let (named, _) = served(&["--model", &name, "--mmproj", &format!("m={right}")], &body);
    for got in [found, named] {
        assert_eq!(got["choices"][0]["message"]["content"], want["text"], "{got}");
        assert_eq!(got["usage"]["prompt_tokens"], want["counts"]["prompt"]);
    }
    let serve = |more: &[&str], words: &str| {
        bad(&[&["serve", "--model", &name], more].concat(), b"", words)
    };
    serve(&["--mmproj", &wrong], "is for gemma3");
    serve(&["--model", &format!("b={model}"), "--mmproj", &right], "say MODEL=");
    serve(&["--matformer", "e2b"], "only Gemma 3n");
    serve(&["--matformer", "/no/such.json"], "--matformer");
    serve(&["--think", "--no-think"], "--no-think");
    bad(&["serve", "--think"], b"", "no model here can think");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_directory_sees_the_same_as_a_gguf_file_and_a_tower() {
    let Some(models) = fixtures() else { return };
    let folder = std::env::temp_dir().join(format!("lapidary-gguf-sees-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let (model, tower) = (file("gemma3-F32.gguf"), file("mmproj-gemma3.gguf"));
    // GGUF has no key for the scale of queries: that of the published sizes is taken.
    let dir = folder.join("gemma3");
    std::fs::create_dir(&dir).unwrap();
    for entry in std::fs::read_dir(models.join("gemma3")).unwrap() {
        let from = entry.unwrap().path();
        std::fs::copy(&from, dir.join(from.file_name().unwrap())).unwrap();
    }
    let config = dir.join("config.json");
    let mut settings: Value = serde_json::from_slice(&std::fs::read(&config).unwrap()).unwrap();
    settings["text_config"]["query_pre_attn_scalar"] = settings["text_config"]["head_dim"].clone();
    // The fixtures can't be written to, and so can't their copies.
    std::fs::remove_file(&config).unwrap();
    std::fs::write(&config, settings.to_string()).unwrap();
    projector::write_projector(&Checkpoint::open(&dir).unwrap(), "gemma3", Path::new(&tower));
    let dir = dir.to_str().unwrap();
    let out = run(&["quantize", dir, &model, "--type", "f32"], b"");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let image = models.join("gemma3/image.png");
    let answer = |model: &str, more: &[&str]| -> Value {
        let args = ["--model", model, "What is it?", "--image", image.to_str().unwrap()];
        let rest = ["--temperature", "0", "--max-tokens", "24", "--precision", "exact"];
        report(&[&args[..], &rest, more].concat(), b"")
    };
    let (want, got) = (answer(dir, &[]), answer(&model, &["--mmproj", &tower]));
    for key in ["ids", "counts", "text"] {
        assert_eq!(got[key], want[key], "{key}");
    }
    assert!(want["ids"].as_array().is_some_and(|ids| ids.len() > 8), "{want}");
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
fn a_model_thinks_when_it_is_told_to() {
    let Some(models) = fixtures() else { return };
    let ids = |name: &str, flags: &[&str]| -> Vec<u32> {
        let dir = models.join(name);
        let args = ["--model", dir.to_str().unwrap(), "Why?", "--max-tokens", "4"];
        let report = report(&[&args[..], flags].concat(), b"");
        assert!(report["thought"].is_string());
        serde_json::from_value(report["prompt_ids"].clone()).unwrap()
    };
    let (off, on) = (ids("gemma4_e2b", &[]), ids("gemma4_e2b", &["--think"]));
    assert_eq!(off, ids("gemma4_e2b", &["--no-think"]));
    // <|think|> in a system turn before the user's.
    assert!(on.len() > off.len() && on.ends_with(&off[1..]), "{on:?} {off:?}");
    let think = ["chat", "--think", "--max-tokens", "4", "--model"];
    let model = |name: &str| models.join(name).to_str().unwrap().to_owned();
    let out = run(&[&think[..], &[&model("gemma4_e2b")]].concat(), b"Why?\nAnd?\n");
    assert!(out.status.success() && !String::from_utf8_lossy(&out.stderr).contains("error"));
    bad(&[&think[..], &[&model("gemma3")]].concat(), b"", "--think: this model has no thinking");
    let run = ["run", "x", "--model", &model("gemma3")];
    bad(&[&run[..], &["--no-think"]].concat(), b"", "--no-think: this model has no thinking");
    bad(&[&run[..], &["--think", "--no-think"]].concat(), b"", "--no-think");
    bad(&[&run[..], &["--think", "--raw"]].concat(), b"", "--raw");
}
