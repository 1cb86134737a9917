//! `lapidary export`: what a run learnt, as a checkpoint for this program and others.

use crate::args::{ExportArgs, ExportFormat};
use crate::{Outcome, model, show};
use lapidary_formats::{Checkpoint, Source};
use lapidary_ops::Pool;
use lapidary_tune::run::TrainConfig;
use lapidary_tune::{Adapter, Options, Recipe, merge, quantize};
use std::path::{Path, PathBuf};

type Failure = Box<dyn std::error::Error>;

/// Runs the command.
pub fn run(args: &ExportArgs) -> Outcome {
    if args.out.exists() {
        return Err(format!("{} is there already", args.out.display()).into());
    }
    if args.format == ExportFormat::Hf && args.ty.is_some() {
        return Err("--type is for --format gguf: Hugging Face files keep the base's type".into());
    }
    let pool = Pool::new(std::thread::available_parallelism().map_or(1, usize::from));
    let whole = args.run.join("model");
    let adapter = args.run.join("adapter");
    if whole.is_dir() {
        write(&Checkpoint::open(&whole)?, None, args, &pool)?;
    } else if adapter.is_dir() {
        let base = base(&args.run)?;
        write(&base, Some(&Adapter::open(&adapter)?), args, &pool)?;
    } else {
        return Err(format!(
            "{} has neither model nor adapter: is it the output of a run that has finished? \
             (lapidary train CONFIG --resume finishes one)",
            args.run.display()
        )
        .into());
    }
    println!("{}", args.out.display());
    Ok(())
}

/// The checkpoint that a run began with.
fn base(run: &Path) -> Result<Checkpoint, Failure> {
    let path = run.join("config.toml");
    let text = std::fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
    let config = TrainConfig::parse(&text, &path.display().to_string())?;
    model::checkpoint(config.model.path.as_deref())
}

/// Merges where there is an adapter, and converts where another form is wanted.
fn write(base: &Checkpoint, adapter: Option<&Adapter>, args: &ExportArgs, pool: &Pool) -> Outcome {
    let is_gguf = matches!(base.source(), Source::Gguf(_));
    let ty = args.ty.as_deref().map(recipe).transpose()?;
    match (args.format, adapter) {
        (ExportFormat::Hf, _) if is_gguf => Err("the run's base is a GGUF file, which has no \
            Hugging Face form here: --format gguf was expected"
            .into()),
        (ExportFormat::Hf, Some(adapter)) => {
            merge(base, adapter, &args.out, pool)?;
            Ok(())
        }
        (ExportFormat::Hf, None) => copy(&args.run.join("model"), &args.out),
        (ExportFormat::Gguf, Some(adapter)) if is_gguf && ty.is_none() => {
            merge(base, adapter, &args.out, pool)?;
            Ok(())
        }
        (ExportFormat::Gguf, Some(adapter)) => {
            let part = Part::beside(&args.out, is_gguf)?;
            merge(base, adapter, &part.0, pool)?;
            convert(&Checkpoint::open(&part.0)?, &args.out, ty, pool)
        }
        (ExportFormat::Gguf, None) => convert(base, &args.out, ty, pool),
    }
}

fn convert(from: &Checkpoint, out: &Path, ty: Option<Recipe>, pool: &Pool) -> Outcome {
    let recipe = ty.or(Recipe::named("q8_0")).ok_or("no type")?;
    let options = Options { recipe, importance: None };
    let report = quantize(from, out, &options, pool, &mut |_, _| {})?;
    for (name, ty) in &report.fallen_back {
        show::note(&format!("{name} became {}: its rows fit no other block", ty.name()));
    }
    Ok(())
}

fn recipe(name: &str) -> Result<Recipe, String> {
    Recipe::named(name)
        .ok_or_else(|| format!("--type {name}: no such type; see lapidary quantize --help"))
}

fn copy(from: &Path, to: &Path) -> Outcome {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let path = entry?.path();
        std::fs::copy(&path, to.join(path.file_name().unwrap_or_default()))?;
    }
    Ok(())
}

/// A file or folder that is gone at the end.
struct Part(PathBuf);

impl Part {
    fn beside(out: &Path, file: bool) -> Result<Self, Failure> {
        let name = out.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let end = if file { ".part.gguf" } else { ".part" };
        let path = out.with_file_name(format!(".{name}{end}"));
        if path.exists() {
            return Err(format!("{} is in the way", path.display()).into());
        }
        Ok(Self(path))
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
