//! How far each path's predictions are from those of the f32 path, on the same file: f32 activations,
//! exactly dequantised weights, keys and values in f32.

use crate::llama::{Entry, Llama};
use serde_json::{Value, json};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

type Result<T> = std::result::Result<T, String>;

/// Tokens of a passage.
const PASSAGE: usize = 256;

/// Logits of each prompt, `[tokens, vocab]`.
type Logits = Vec<Vec<f32>>;

/// What is compared with the f32 path.
const PATHS: [(&str, &[&str]); 3] = [
    ("Lapidary", &[]),
    ("Lapidary, `--kv f32`", &["--kv", "f32"]),
    ("Lapidary, `--precision exact`", &["--precision", "exact"]),
];

/// Prints a Markdown table for `files`.
pub fn print(ours: &Path, files: &[PathBuf], text: Option<&Path>, tokens: usize) -> Result<()> {
    println!("| file | path | KL divergence, mean | largest | same likeliest token |");
    println!("|---|---|--:|--:|--:|");
    for file in files {
        let name = file.file_stem().and_then(|s| s.to_str()).unwrap_or("?");
        let path = file.to_str().ok_or("a file's name is not UTF-8")?;
        let prompts = match text {
            Some(text) => passages(ours, path, text, tokens)?,
            None => random(path, tokens)?,
        };
        let exact = ["--precision", "exact", "--kv", "f32"];
        let reference = logits(ours, path, &prompts, &exact)?;
        for (title, flags) in PATHS {
            row(name, title, &reference, &logits(ours, path, &prompts, flags)?, &prompts);
        }
        match llama(path, &prompts) {
            Ok(found) => row(name, "llama.cpp", &reference, &found, &prompts),
            Err(e) => println!("| {name} | llama.cpp | {e} | | |"),
        }
    }
    Ok(())
}

fn row(file: &str, path: &str, reference: &Logits, found: &Logits, prompts: &[Vec<u32>]) {
    let (mut all, mut same) = (Vec::new(), 0);
    for ((p, q), ids) in reference.iter().zip(found).zip(prompts) {
        let vocab = p.len() / ids.len();
        for (p, q) in p.chunks_exact(vocab).zip(q.chunks_exact(vocab)) {
            all.push(divergence(p, q));
            same += usize::from(top(p) == top(q));
        }
    }
    let mean = all.iter().sum::<f64>() / all.len() as f64;
    let most = all.iter().copied().fold(0.0, f64::max);
    let share = 100.0 * same as f64 / all.len() as f64;
    println!("| {file} | {path} | {mean:.2e} | {most:.2e} | {share:.2} % |");
}

fn top(x: &[f32]) -> usize {
    (0..x.len()).fold(0, |best, i| if x[i] > x[best] { i } else { best })
}

/// KL(p || q) in nats.
fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let normal = |x: &[f32]| {
        let most = f64::from(x.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        most + x.iter().map(|x| (f64::from(*x) - most).exp()).sum::<f64>().ln()
    };
    let (np, nq) = (normal(p), normal(q));
    let terms = p.iter().zip(q).map(|(p, q)| {
        let (lp, lq) = (f64::from(*p) - np, f64::from(*q) - nq);
        lp.exp() * (lp - lq)
    });
    terms.sum::<f64>().max(0.0)
}

/// Passages of a text of JSON lines with a key `text`, as the file's own tokenizer has them.
fn passages(ours: &Path, file: &str, text: &Path, tokens: usize) -> Result<Vec<Vec<u32>>> {
    let lines = std::fs::read_to_string(text).map_err(|e| format!("{}: {e}", text.display()))?;
    let mut input = String::new();
    for line in lines.lines() {
        let value: Value = serde_json::from_str(line).map_err(|e| format!("{text:?}: {e}"))?;
        input += &format!("{}\n", value["text"]);
    }
    let mut child = Command::new(ours)
        .args(["tokenize", "--add-special", "--model", file])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{}: {e}", ours.display()))?;
    let mut pipe = child.stdin.take().ok_or("no pipe")?;
    let feed = std::thread::spawn(move || pipe.write_all(input.as_bytes()));
    let out = child.wait_with_output().map_err(|e| e.to_string())?;
    feed.join().map_err(|_| "the text was not read")?.map_err(|e| e.to_string())?;
    let (mut all, mut count) = (Vec::new(), 0);
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let ids: Vec<u32> = serde_json::from_str(line).map_err(|e| e.to_string())?;
        for part in ids.chunks(PASSAGE).filter(|p| p.len() > 1) {
            if count < tokens {
                count += part.len();
                all.push(part.to_vec());
            }
        }
    }
    if all.is_empty() { Err(format!("{}: no text", text.display())) } else { Ok(all) }
}

/// Some ids, where there is no text that the file's tokenizer could read.
fn random(file: &str, tokens: usize) -> Result<Vec<Vec<u32>>> {
    let vocab = Llama::load(file, 1, 64, 1)?.vocab();
    let mut state = 1u64;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        ((state >> 33) as usize % vocab) as u32
    };
    Ok((0..tokens.div_ceil(64)).map(|_| (0..64).map(|_| next()).collect()).collect())
}

/// `lapidary logits`.
fn logits(ours: &Path, file: &str, prompts: &[Vec<u32>], flags: &[&str]) -> Result<Logits> {
    let at = |end: &str| std::env::temp_dir().join(format!("peers-{}.{end}", std::process::id()));
    let (ids, out) = (at("json"), at("safetensors"));
    std::fs::write(&ids, json!(prompts).to_string()).map_err(|e| e.to_string())?;
    let status = Command::new(ours)
        .args(["logits", "--model", file, "--tokens"])
        .arg(&ids)
        .arg("--out")
        .arg(&out)
        .args(flags)
        .output()
        .map_err(|e| format!("{}: {e}", ours.display()))?;
    if !status.status.success() {
        return Err(String::from_utf8_lossy(&status.stderr).trim().to_owned());
    }
    let bytes = std::fs::read(&out).map_err(|e| e.to_string())?;
    let _ = (std::fs::remove_file(&ids), std::fs::remove_file(&out));
    let found = (0..prompts.len()).map(|i| tensor(&bytes, &format!("logits.{i}")));
    found.collect::<Option<_>>().ok_or_else(|| "lapidary logits wrote no such file".into())
}

/// An f32 tensor of a safetensors file.
fn tensor(bytes: &[u8], name: &str) -> Option<Vec<f32>> {
    let header = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?) as usize;
    let json: Value = serde_json::from_slice(bytes.get(8..8 + header)?).ok()?;
    let place = &json[name]["data_offsets"];
    let (start, end) = (place[0].as_u64()? as usize, place[1].as_u64()? as usize);
    let values = bytes.get(8 + header + start..8 + header + end)?.chunks_exact(4);
    Some(values.map(|c| f32::from_le_bytes([c[0], c[1], c[2], c[3]])).collect())
}

fn llama(file: &str, prompts: &[Vec<u32>]) -> Result<Logits> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(1);
    let mut llama = Llama::load(file, threads, longest, 1)?;
    let mut all = Vec::new();
    for ids in prompts {
        llama.clear();
        let entries: Vec<Entry> = ids.iter().enumerate().map(|(i, id)| (*id, i, 0, true)).collect();
        llama.decode(&entries)?;
        let mut here = Vec::new();
        for i in 0..ids.len() {
            here.extend_from_slice(llama.logits(i)?);
        }
        all.push(here);
    }
    Ok(all)
}
