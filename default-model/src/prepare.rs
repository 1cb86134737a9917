//! The corpus to what is trained on and what is measured on.

use crate::Failure;
use crate::copies::HeldOut;
use crate::corpus::{self, File};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Documents in a thousand that are held out, and bytes of them for each source at most.
const HELD_OUT: u64 = 6;
const HELD_OUT_BYTES: usize = 60_000;
/// Bytes of a piece of a conversation: sequences have 512 tokens, and longer examples are refused.
const PIECE: usize = 1500;

/// Writes `data/NAME.jsonl` for each source, `held_out/NAME.jsonl`, `held_out/starter.jsonl`, and
/// the manifest with the hashes of all.
///
/// # Errors
/// If something can't be read or written.
pub fn prepare(corpus: &Path, starter: &Path, work: &Path) -> Result<(), Failure> {
    let files: Vec<File> =
        corpus::files(corpus)?.iter().map(|p| File::open(p)).collect::<Result<_, _>>()?;
    let text = fs::read_to_string(starter)
        .map_err(|e| Failure::new(starter, format!("cannot be read: {e}")))?;
    let starters = corpus::lines(starter, &text)?;
    let mut held = HeldOut::default();
    starters.iter().filter_map(|d| d["text"].as_str()).for_each(|t| held.add(&no_marks(t)));

    let mut sources = Vec::new();
    for file in &files {
        let out = held_out(&file.documents);
        out.iter().for_each(|&i| held.add(&asked(&file.documents[i])));
        sources.push((file, out));
    }
    let mut report = vec![];
    write(&work.join("held_out/starter.jsonl"), starters.iter().cloned())?;
    for (file, out) in sources {
        let held_part = out.iter().flat_map(|&i| pieces(&file.documents[i]));
        let (held_documents, held_hash) =
            write(&work.join(format!("held_out/{}.jsonl", file.name)), held_part)?;
        let mut copies = 0;
        let rest = (0..file.documents.len()).filter(|i| !out.contains(i)).filter(|&i| {
            let copy = held.has(&asked(&file.documents[i]));
            copies += usize::from(copy);
            !copy
        });
        let rest: Vec<Value> = rest.flat_map(|i| pieces(&file.documents[i])).collect();
        let bytes: usize = rest.iter().map(|d| plain(d).len()).sum();
        let (documents, hash) =
            write(&work.join(format!("data/{}.jsonl", file.name)), rest.into_iter())?;
        let licences = licences(&file.documents);
        println!(
            "{}: {documents} documents, {bytes} bytes ({} a document); {} held out, {copies} copies",
            file.name,
            bytes / documents.max(1),
            out.len()
        );
        report.push(json!({
            "source": file.file, "sha256": file.sha256, "licences": licences,
            "documents": documents, "bytes": bytes, "copies_left_out": copies,
            "data_sha256": hash, "held_out": held_documents, "held_out_sha256": held_hash,
        }));
    }
    let manifest =
        json!({ "starter_held_out_sha256": corpus::hash(text.as_bytes()), "files": report });
    save(&work.join("manifest.json"), &pretty(&manifest))
}

/// Adds to the manifest of `work` what was made from the sources.
///
/// # Errors
/// If there is none, or it can't be written.
pub fn note(work: &Path, name: &str, made: Value) -> Result<(), Failure> {
    let path = work.join("manifest.json");
    let text = fs::read_to_string(&path)
        .map_err(|e| Failure::new(&path, format!("cannot be read: run prepare first: {e}")))?;
    let mut manifest: Value =
        serde_json::from_str(&text).map_err(|e| Failure::new(&path, format!("is no JSON: {e}")))?;
    manifest[name] = made;
    save(&path, &pretty(&manifest))
}

fn pretty(value: &Value) -> String {
    let mut text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.push('\n');
    text
}

/// The numbers of the documents that are held out: by their content, so that adding others changes
/// nothing.
fn held_out(documents: &[Value]) -> Vec<usize> {
    let mut bytes = 0;
    let mut found = Vec::new();
    for (i, document) in documents.iter().enumerate() {
        let text = plain(document);
        let first = u64::from_str_radix(&corpus::hash(text.as_bytes())[..12], 16).unwrap_or(0);
        if first % 1000 < HELD_OUT && bytes + text.len() <= HELD_OUT_BYTES {
            bytes += text.len();
            found.push(i);
        }
    }
    found
}

/// Only what is learnt from a document; conversations in pieces that fit a sequence.
fn pieces(document: &Value) -> Vec<Value> {
    let Some(messages) = document["messages"].as_array() else {
        return vec![json!({ "text": document["text"] })];
    };
    let mut all: Vec<Vec<Value>> = vec![vec![]];
    let mut bytes = 0;
    for message in messages {
        let size = message["content"].as_str().map_or(0, str::len);
        let begins = message["role"] == "user";
        match all.last_mut() {
            Some(last) if !(begins && !last.is_empty() && bytes + size > PIECE) => {
                bytes += size;
                last.push(message.clone());
            }
            _ => {
                bytes = size;
                all.push(vec![message.clone()]);
            }
        }
    }
    all.into_iter().filter(|m| m.len() > 1).map(|m| json!({ "messages": m })).collect()
}

/// A document's words, a turn a line.
pub fn plain(document: &Value) -> String {
    match document["messages"].as_array() {
        Some(messages) => {
            let turns: Vec<&str> = messages.iter().filter_map(|m| m["content"].as_str()).collect();
            turns.join("\n")
        }
        None => document["text"].as_str().unwrap_or_default().to_owned(),
    }
}

/// What makes a document the one that it is: of conversations only what the user says, since many
/// share a stock answer; of translations both sides.
fn asked(document: &Value) -> String {
    match document["messages"].as_array() {
        Some(messages) if document.get("fr").is_none() => {
            let user = messages.iter().filter(|m| m["role"] == "user");
            let turns: Vec<&str> = user.filter_map(|m| m["content"].as_str()).collect();
            turns.join("\n")
        }
        _ => plain(document),
    }
}

/// A conversation with control tokens spelt out, without them.
pub fn no_marks(text: &str) -> String {
    text.replace("<start_of_turn>user\n", "\n")
        .replace("<start_of_turn>model\n", "\n")
        .replace("<end_of_turn>", "")
}

fn licences(documents: &[Value]) -> BTreeMap<String, usize> {
    let mut found = BTreeMap::new();
    for document in documents {
        let licence = document["licence"].as_str().unwrap_or("not stated");
        *found.entry(licence.to_owned()).or_default() += 1;
    }
    found
}

/// Writes documents, a line each: how many, and the file's hash.
pub fn write(
    path: &Path,
    documents: impl Iterator<Item = Value>,
) -> Result<(usize, String), Failure> {
    let mut text = String::new();
    let mut count = 0;
    for document in documents {
        text.push_str(&document.to_string());
        text.push('\n');
        count += 1;
    }
    save(path, &text)?;
    Ok((count, corpus::hash(text.as_bytes())))
}

fn save(path: &Path, text: &str) -> Result<(), Failure> {
    let wrong = |e| Failure::new(path, format!("cannot be written: {e}"));
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(wrong)?;
    }
    fs::write(path, text).map_err(wrong)
}
