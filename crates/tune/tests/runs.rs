//! Runs with a small learner of their own: what a run does around the steps.

use lapidary_formats::{Checkpoint, FormatError, Result};
use lapidary_tune::run::{Entry, Event, Finished, Hooks, Learner, TrainConfig, read_log, train};
use lapidary_tune::{Pair, Sequence, StepReport};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// Learns how likely each token is after each other one: logits by gradient descent. Rows that were
/// never learnt are zero.
struct Bigrams {
    vocab: usize,
    rows: BTreeMap<u32, Vec<f32>>,
    /// Saving fails, as on a full disk.
    full: bool,
}

impl Bigrams {
    fn row(&self, id: u32) -> Vec<f32> {
        self.rows.get(&id).cloned().unwrap_or_else(|| vec![0.0; self.vocab])
    }

    /// Probabilities after `id`.
    fn after(&self, id: u32) -> Vec<f64> {
        let exp: Vec<f64> = self.row(id).iter().map(|l| f64::from(*l).exp()).collect();
        let sum: f64 = exp.iter().sum();
        exp.iter().map(|e| e / sum).collect()
    }
}

impl Learner for Bigrams {
    fn step(&mut self, batch: &[Vec<Sequence>], lr: f32) -> Result<StepReport> {
        let (mut loss, mut count, mut tokens) = (0.0, 0usize, 0);
        for sequence in batch.iter().flatten() {
            tokens += sequence.ids.len();
            for (i, pair) in sequence.ids.windows(2).enumerate() {
                if !sequence.learn[i + 1] {
                    continue;
                }
                let p = self.after(pair[0]);
                loss -= p[pair[1] as usize].ln();
                count += 1;
                let vocab = self.vocab;
                let row = self.rows.entry(pair[0]).or_insert_with(|| vec![0.0; vocab]);
                row.iter_mut().zip(&p).for_each(|(l, p)| *l -= lr * *p as f32);
                row[pair[1] as usize] += lr;
            }
        }
        let loss = loss / count as f64;
        Ok(StepReport { loss, grad_norm: 1.0, tokens, preferred: None })
    }

    fn step_pairs(&mut self, batch: &[Vec<Pair>], lr: f32) -> Result<StepReport> {
        let chosen = |b: &Vec<Pair>| b.iter().map(|p| p.chosen.clone()).collect();
        self.step(&batch.iter().map(chosen).collect::<Vec<_>>(), lr)
    }

    fn evaluate(&mut self, sequences: &[Sequence]) -> Result<(f64, usize)> {
        let pairs = sequences.iter().flat_map(|s| s.ids.windows(2));
        let nats: Vec<f64> = pairs.map(|p| -self.after(p[0])[p[1] as usize].ln()).collect();
        Ok((nats.iter().sum(), nats.len()))
    }

    fn answer(&mut self, prompt: &[u32], stops: &[u32], most: usize) -> Result<Vec<u32>> {
        let mut ids = vec![prompt[prompt.len() - 1]];
        while ids.len() <= most {
            let row = self.row(ids[ids.len() - 1]);
            let best = (0..row.len()).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as u32;
            if stops.contains(&best) {
                break;
            }
            ids.push(best);
        }
        Ok(ids.split_off(1))
    }

    fn notes(&self) -> Vec<String> {
        Vec::new()
    }

    fn save(&mut self, path: &Path) -> Result<()> {
        if self.full {
            fs::write(path, "half").unwrap();
            return Err(FormatError::new(path.display(), "", "No space left on device"));
        }
        let mut bytes = Vec::new();
        for (id, row) in &self.rows {
            bytes.extend(id.to_le_bytes());
            bytes.extend(row.iter().flat_map(|l| l.to_le_bytes()));
        }
        fs::write(path, bytes).map_err(|e| FormatError::new(path.display(), "", e))
    }

    fn load(&mut self, path: &Path) -> Result<()> {
        let bytes = fs::read(path).map_err(|e| FormatError::new(path.display(), "", e))?;
        let (words, _) = bytes.as_chunks::<4>();
        let row = |row: &[[u8; 4]]| {
            let values = row[1..].iter().map(|b| f32::from_le_bytes(*b)).collect();
            (u32::from_le_bytes(row[0]), values)
        };
        self.rows = words.chunks(self.vocab + 1).map(row).collect();
        Ok(())
    }

    fn write_result(&mut self, _: &Checkpoint, run: &Path) -> Result<PathBuf> {
        let path = run.join("result.bin");
        self.save(&path)?;
        Ok(path)
    }
}

/// A folder of one test, removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("lapidary-run-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn built_in() -> Result<Checkpoint> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/default-Q8_0.gguf");
    Checkpoint::open(&path)
}

/// A configuration for 300 lines, in `folder`.
fn config(folder: &Path, output: &str, more: &str) -> TrainConfig {
    let lines: String =
        (0..300).map(|i| format!("{{\"text\": \"story {} of the day {i}\"}}\n", i % 7)).collect();
    fs::write(folder.join("data.jsonl"), lines).unwrap();
    let text = format!(
        "output = \"{output}\"\nmethod = \"full\"\n[data]\nsequence = 64\nbatch_tokens = 128\n\
         shuffle = 50\nheld_out = 0.1\n[[data.source]]\npath = \"data.jsonl\"\n[schedule]\n\
         steps = 60\nlr = 0.5\nwarmup = 5\n[evaluate]\nevery = 20\ntokens = 500\n[sample]\nevery = 30\n\
         prompts = [\"story\"]\nchat = false\nmax_tokens = 5\n[save]\nevery_steps = 7\nkeep = 2\n{more}"
    );
    let path = folder.join("config.toml");
    fs::write(&path, text).unwrap();
    TrainConfig::open(&path).unwrap()
}

struct Outcome {
    finished: Result<Finished>,
    notes: Vec<String>,
}

/// Runs; stops after `stop` steps of this go, and saving fails from step `full` on.
fn go(config: &TrainConfig, resume: bool, stop: Option<u64>, full: bool) -> Outcome {
    let flag = AtomicBool::new(false);
    let (mut notes, mut steps) = (Vec::new(), 0);
    let mut listen = |event: Event| match event {
        Event::Note(text) => notes.push(text),
        Event::Entry(Entry::Step { .. }) => {
            steps += 1;
            flag.store(stop.is_some_and(|most| steps >= most), Ordering::Relaxed);
        }
        _ => {}
    };
    let make = |base: &Checkpoint, _| -> Result<Box<dyn Learner>> {
        let vocab = lapidary_engine::Text::open(base)?.tokenizer.vocab_size();
        Ok(Box::new(Bigrams { vocab, rows: BTreeMap::new(), full }))
    };
    let hooks = Hooks { listen: &mut listen, stop: &flag };
    let finished = train(config, resume, &built_in, &make, hooks);
    Outcome { finished, notes }
}

/// Entries without the seconds, which no two runs share.
fn log(config: &TrainConfig) -> Vec<Entry> {
    let mut all = read_log(&config.output).unwrap();
    for entry in &mut all {
        if let Entry::Step { seconds, .. } = entry {
            *seconds = 0.0;
        }
    }
    all
}

fn checkpoints(config: &TrainConfig) -> Vec<String> {
    let names = fs::read_dir(config.output.join("checkpoints")).unwrap();
    let mut names: Vec<String> =
        names.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_run_that_was_stopped_many_times_is_the_run_that_was_not() {
    let dir = Folder::new("stops");
    let whole = config(&dir.0, "whole", "");
    let finished = go(&whole, false, None, false).finished.unwrap();
    assert_eq!(finished.steps, 60);
    let parts = config(&dir.0, "parts", "");
    let mut stops = 0;
    let mut outcome = go(&parts, false, Some(1), false);
    while outcome.finished.as_ref().unwrap().result.is_none() {
        stops += 1;
        outcome = go(&parts, true, Some(1 + stops * 3), false);
    }
    assert!(stops >= 5, "{stops}");
    let read = |c: &TrainConfig| fs::read(c.output.join("result.bin")).unwrap();
    assert!(read(&whole) == read(&parts), "the weights differ");
    assert!(log(&whole) == log(&parts), "the logs differ");
    assert_eq!(checkpoints(&whole), ["step-000000056", "step-000000060"]);
    // The log has what it should, and the loss fell.
    let entries = log(&whole);
    let losses: Vec<f64> = entries
        .iter()
        .filter_map(|e| match e {
            Entry::Step { loss, .. } => Some(*loss),
            _ => None,
        })
        .collect();
    assert_eq!(losses.len(), 60);
    assert!(losses[59] < losses[0] / 2.0, "{losses:?}");
    let count = |f: fn(&Entry) -> bool| entries.iter().filter(|e| f(e)).count();
    assert_eq!(count(|e| matches!(e, Entry::Evaluation { .. })), 4);
    assert_eq!(count(|e| matches!(e, Entry::Sample { .. })), 2);
    let report = fs::read_to_string(&finished.report).unwrap();
    assert!(report.contains("<svg") && report.contains("held out: "));
    let table = fs::read_to_string(whole.output.join("log.csv")).unwrap();
    assert_eq!(table.lines().count(), 61);
}

#[test]
fn a_kill_loses_nothing_before_the_last_checkpoint() {
    let dir = Folder::new("killed");
    let whole = config(&dir.0, "whole", "");
    go(&whole, false, None, false).finished.unwrap();
    // What a kill between two checkpoints leaves: half a checkpoint, a cut line, later lines.
    let killed = config(&dir.0, "killed", "");
    go(&killed, false, Some(24), false).finished.unwrap();
    let folder = killed.output.join("checkpoints");
    fs::remove_dir_all(folder.join("step-000000024")).unwrap();
    fs::create_dir(folder.join(".step-000000028.part")).unwrap();
    fs::write(folder.join(".step-000000028.part/trainer.safetensors"), "half").unwrap();
    let log_file = killed.output.join("log.jsonl");
    let text = fs::read_to_string(&log_file).unwrap();
    fs::write(&log_file, &text[..text.len() - 9]).unwrap();
    let outcome = go(&killed, true, None, false);
    assert_eq!(outcome.finished.unwrap().steps, 60);
    assert!(log(&whole) == log(&killed), "the logs differ");
    let read = |c: &TrainConfig| fs::read(c.output.join("result.bin")).unwrap();
    assert!(read(&whole) == read(&killed), "the weights differ");
}

#[test]
fn a_full_disk_is_an_error_and_the_last_checkpoint_stays() {
    let dir = Folder::new("full");
    let run = config(&dir.0, "run", "");
    go(&run, false, Some(10), false).finished.unwrap();
    let before = checkpoints(&run);
    let error = go(&run, true, None, true).finished.unwrap_err().to_string();
    assert!(error.contains("No space left"), "{error}");
    assert_eq!(checkpoints(&run), before, "nothing half, nothing lost");
    assert_eq!(go(&run, true, None, false).finished.unwrap().steps, 60);
}

#[test]
fn a_run_is_not_overwritten_nor_shared_and_changes_are_told() {
    let dir = Folder::new("claim");
    let run = config(&dir.0, "run", "");
    go(&run, false, Some(8), false).finished.unwrap();
    let error = go(&run, false, None, false).finished.unwrap_err().to_string();
    assert!(error.contains("--resume"), "{error}");
    let lock = fs::File::open(run.output.join(".lock")).unwrap();
    lock.try_lock().unwrap();
    let error = go(&run, true, None, false).finished.unwrap_err().to_string();
    assert!(error.contains("another process"), "{error}");
    drop(lock);
    let changed = config(&dir.0, "run", "[optimizer]\nclip = 2.0\n");
    let outcome = go(&changed, true, None, false);
    assert!(
        outcome.notes.iter().any(|n| n.ends_with("began: optimizer.clip")),
        "{:?}",
        outcome.notes
    );
    outcome.finished.unwrap();
}

#[test]
fn epochs_count_their_steps_and_wrong_values_are_named() {
    let dir = Folder::new("epochs");
    let mut run = config(&dir.0, "run", "");
    run.schedule.steps = None;
    run.schedule.epochs = Some(2);
    let finished = go(&run, false, None, false).finished.unwrap();
    let seen = log(&run).iter().rev().find_map(|e| match e {
        Entry::Step { tokens_seen, .. } => Some(*tokens_seen),
        _ => None,
    });
    // Two epochs of some 270 documents of about 8 tokens.
    assert!((3000..9000).contains(&seen.unwrap()), "{seen:?}");
    assert!((30..90).contains(&finished.steps), "{}", finished.steps);
    let mut long = config(&dir.0, "long", "");
    long.data.sequence = 5000;
    let error = go(&long, false, None, false).finished.unwrap_err().to_string();
    assert!(error.contains("data.sequence") && error.contains("1024"), "{error}");
    let text = fs::read_to_string(dir.0.join("config.toml")).unwrap();
    for (from, to, key) in [
        ("lr = 0.5", "lr = -1.0", "schedule.lr"),
        ("steps = 60", "", "schedule"),
        ("keep = 2", "keep = 0", "save.keep"),
        ("batch_tokens = 128", "batch_tokens = 3", "data.batch_tokens"),
        ("held_out = 0.1", "held_out = 2.0", "data.held_out"),
    ] {
        let path = dir.0.join("bad.toml");
        fs::write(&path, text.replace(from, to)).unwrap();
        let error = TrainConfig::open(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("bad.toml: {key}: ")), "{error}");
    }
    // Preferences are between answers.
    let text = text.replace("method = \"full\"", "method = \"dpo\"");
    let text = text.replace("held_out = 0.1", "held_out = 0.1\nlearn = \"all\"");
    let text = text.replace("batch_tokens = 128", "batch_tokens = 4096");
    let path = dir.0.join("bad.toml");
    fs::write(&path, text).unwrap();
    let error = TrainConfig::open(&path).unwrap_err().to_string();
    assert!(error.contains("bad.toml: data.learn: "), "{error}");
}
