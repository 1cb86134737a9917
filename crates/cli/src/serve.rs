//! `lapidary serve`: models over HTTP.

use crate::args::{LogArg, ServeArgs};
use crate::{Outcome, model, pictures, show};
use lapidary_formats::{Checkpoint, Source};
use lapidary_server::app::Policy;
use lapidary_server::model::{AdapterOrigin, Files, Machine, Origin};
use lapidary_server::registry::check_name;
use lapidary_server::serve::{Settings, log};
use std::path::Path;
use std::time::Duration;

/// The name of the model that the program carries.
const BUILT_IN: &str = "lapidary-tiny";

/// Runs the command.
pub fn serve(args: ServeArgs) -> Outcome {
    let level = match args.log {
        LogArg::Error => tracing::Level::ERROR,
        LogArg::Warn => tracing::Level::WARN,
        LogArg::Info => tracing::Level::INFO,
        LogArg::Debug => tracing::Level::DEBUG,
    };
    log(level, args.log_json);
    let settings = settings(&args)?;
    let scheme = if settings.tls.is_some() { "https" } else { "http" };
    lapidary_server::serve::serve(&settings, |address, plan| {
        plan.iter().for_each(|line| show::note(line));
        println!("{scheme}://{address}");
    })
    .map_err(|e| e.to_string().into())
}

fn settings(args: &ServeArgs) -> Result<Settings, Box<dyn std::error::Error>> {
    let at_least_one = |flag: &str, n: usize| match n {
        0 => Err(format!("{flag} 0: at least 1 was expected")),
        n => Ok(n),
    };
    let machine = Machine {
        isa: model::isa(args.isa)?,
        threads: model::threads(args.threads)?,
        precision: model::precision(args.precision),
        kv: model::kv(args.kv),
        context: args.context,
        chunk: at_least_one("--chunk", args.chunk)?,
        max_sequences: at_least_one("--batch", args.batch)?,
        max_queue: at_least_one("--max-queue", args.max_queue)?,
        think: args.think.then_some(true).or(args.no_think.then_some(false)),
        idle: (args.idle > 0).then(|| Duration::from_secs(args.idle)),
    };
    let memory = match &args.memory {
        Some(size) => bytes("--memory", size)?,
        None => available_memory()? / 5 * 4,
    };
    let models = models(args)?;
    Ok(Settings {
        listen: args.listen,
        adapters: adapters(args, &models)?,
        models,
        machine,
        memory,
        preload: args.preload,
        policy: policy(args)?,
        api_keys: args.api_key.clone(),
        keys_file: args.api_keys_file.clone(),
        rate: args.rate,
        tls: args.tls_cert.clone().zip(args.tls_key.clone()),
        connections: at_least_one("--max-connections", args.max_connections)?,
        drain: Duration::from_secs(args.drain),
    })
}

fn policy(args: &ServeArgs) -> Result<Policy, String> {
    let defaults = Policy::default();
    // A server on loopback answers to its own names; one that others reach to any, unless told.
    let mut hosts = if args.listen.ip().is_loopback() { defaults.hosts } else { Vec::new() };
    hosts.extend(args.allow_host.iter().cloned());
    for origin in args.allow_origin.iter().filter(|o| *o != "*") {
        if !origin.contains("://") || origin.ends_with('/') {
            return Err(format!(
                "--allow-origin {origin}: such as https://example.org was expected"
            ));
        }
    }
    Ok(Policy {
        lenient: args.lenient,
        body: bytes("--max-body", &args.max_body)?.max(1) as usize,
        timeout: Duration::from_secs(args.timeout.max(1)),
        origins: args.allow_origin.clone(),
        hosts,
        log_prompts: args.log_prompts,
        body_time: defaults.body_time,
        head_time: defaults.head_time,
        write_time: defaults.write_time,
    })
}

/// The models that the flags name.
fn models(args: &ServeArgs) -> Result<Vec<(String, Origin)>, Box<dyn std::error::Error>> {
    let mut models = Vec::new();
    for given in &args.model {
        let (name, path) = match given.split_once('=') {
            Some((name, path)) => (name.to_owned(), path),
            None => (name_of(Path::new(given)), given.as_str()),
        };
        check_name(&name).map_err(|e| format!("--model {given}: {e}; say NAME=PATH"))?;
        models.push((name, Origin::path(model::resolve(Path::new(path))?)));
    }
    if let Some(dir) = &args.models_dir {
        models.extend(in_directory(dir)?);
    }
    if models.is_empty() {
        model::introduce(None);
        models.push((BUILT_IN.to_owned(), Origin::new(Files::BuiltIn(model::DEFAULT_MODEL))));
    }
    for given in &args.mmproj {
        let (origin, file) = of_model("--mmproj", given, &mut models)?;
        origin.projector = Some(file.into());
    }
    for given in &args.matformer {
        let (origin, slice) = of_model("--matformer", given, &mut models)?;
        origin.slice = Some(model::matformer(slice)?);
    }
    for (name, origin) in &mut models {
        find_projector(name, origin);
    }
    Ok(models)
}

/// The model that a flag's value `[MODEL=]VALUE` is for, and the value.
fn of_model<'a, 'b>(
    flag: &str,
    given: &'b str,
    models: &'a mut [(String, Origin)],
) -> Result<(&'a mut Origin, &'b str), String> {
    let named = models.iter().position(|(name, _)| {
        given.strip_prefix(name.as_str()).is_some_and(|rest| rest.starts_with('='))
    });
    match (named, models.len()) {
        (Some(i), _) => {
            let (name, origin) = &mut models[i];
            Ok((origin, &given[name.len() + 1..]))
        }
        (None, 1) => Ok((&mut models[0].1, given)),
        (None, _) => {
            let names: Vec<&str> = models.iter().map(|m| m.0.as_str()).collect();
            let names = names.join(", ");
            Err(format!("{flag} {given}: say MODEL=..., for the models are {names}"))
        }
    }
}

/// Gives a GGUF model the one vision tower beside it that fits it. What is wrong with the model is
/// said when it is opened.
fn find_projector(name: &str, origin: &mut Origin) {
    let Files::Path(path) = &origin.files else { return };
    let file = if path.is_dir() { &path.join("model.gguf") } else { path };
    let beside = pictures::all_beside(file);
    if origin.projector.is_some() || beside.is_empty() {
        return;
    }
    let Ok(text) = Checkpoint::open(path) else { return };
    if let Source::Hf { .. } = text.source() {
        return;
    }
    let fits = |projector: &Path| {
        let projector = Checkpoint::open(projector)?;
        lapidary_model::projector_rows(&text, &projector)
    };
    let (mut fitting, mut not) = (Vec::new(), Vec::new());
    for projector in beside {
        match fits(&projector) {
            Ok(_) => fitting.push(projector),
            Err(e) => not.push(e.to_string()),
        }
    }
    match &fitting[..] {
        [one] => {
            show::note(&format!("note: {name} sees with {}", one.display()));
            origin.projector = fitting.pop();
        }
        [] => {
            let why = not.join("; ");
            show::note(&format!(
                "note: {name} reads text alone; no mmproj file beside it fits: {why}"
            ));
        }
        several => {
            let files: Vec<String> = several.iter().map(|p| p.display().to_string()).collect();
            let files = files.join(", ");
            show::note(&format!(
                "note: {name} reads text alone; say --mmproj {name}=FILE for one of {files}"
            ));
        }
    }
}

/// The adapters that the flags name.
fn adapters(args: &ServeArgs, models: &[(String, Origin)]) -> Result<Vec<AdapterOrigin>, String> {
    let mut out = Vec::new();
    for given in &args.adapter {
        let (name, path) = given
            .split_once('=')
            .ok_or_else(|| format!("--adapter {given}: [MODEL+]NAME=DIR was expected"))?;
        // A model's name may hold a + itself.
        let base = models.iter().find_map(|(model, _)| {
            let rest = name.strip_prefix(model.as_str())?.strip_prefix('+')?;
            Some((model.clone(), rest.to_owned()))
        });
        let (model, name) = match (base, models) {
            (Some(both), _) => both,
            (None, [(model, _)]) if !name.contains('+') => (model.clone(), name.to_owned()),
            (None, _) => {
                let names: Vec<&str> = models.iter().map(|m| m.0.as_str()).collect();
                let names = names.join(", ");
                return Err(format!("--adapter {given}: say MODEL+NAME=DIR; models: {names}"));
            }
        };
        let path = Path::new(path).to_owned();
        let open: fn(&Path) -> _ = |path| Ok(lapidary_tune::Adapter::open(path)?.into_adapters());
        out.push(AdapterOrigin { model, name, path, open });
    }
    Ok(out)
}

/// `gemma-3-1b-it` for a directory of that name, or for `gemma-3-1b-it.gguf`.
fn name_of(path: &Path) -> String {
    let name = if path.is_dir() { path.file_name() } else { path.file_stem() };
    name.map_or_else(String::new, |n| n.to_string_lossy().into_owned())
}

fn in_directory(dir: &Path) -> Result<Vec<(String, Origin)>, String> {
    let wrong = |e: std::io::Error| format!("--models-dir {}: {e}", dir.display());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).map_err(wrong)? {
        let path = entry.map_err(wrong)?.path();
        let gguf = path.is_file()
            && path.extension().is_some_and(|e| e == "gguf")
            && !lapidary_formats::is_projector(&path);
        if !gguf && !path.join("config.json").is_file() {
            continue;
        }
        let name = name_of(&path);
        match check_name(&name) {
            Ok(()) => found.push((name, Origin::path(path))),
            Err(e) => show::note(&format!("note: {}: left out: {e}", path.display())),
        }
    }
    found.sort_by(|a, b| a.0.cmp(&b.0));
    if found.is_empty() {
        return Err(format!(
            "--models-dir {}: no .gguf file and no Hugging Face directory",
            dir.display()
        ));
    }
    Ok(found)
}

/// A size such as `8GiB`, `500MB` or `1048576`.
fn bytes(flag: &str, text: &str) -> Result<u64, String> {
    let wrong = || format!("{flag} {text}: a size such as 8GiB or 500MB was expected");
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => return Err(wrong()),
    };
    let number: f64 = digits.trim().parse().map_err(|_| wrong())?;
    if !number.is_finite() || number < 0.0 {
        return Err(wrong());
    }
    Ok((number * unit as f64) as u64)
}

/// Memory that programs can have, as the system tells (Linux).
fn available_memory() -> Result<u64, String> {
    let told = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = told.lines().find_map(|l| l.strip_prefix("MemAvailable:"));
    let kib = line.and_then(|l| l.trim().strip_suffix(" kB")).and_then(|n| n.parse::<u64>().ok());
    kib.map(|n| n << 10).ok_or("this system does not tell its memory; say --memory 8GiB".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, want) in [("8GiB", 8 << 30), ("1.5k", 1536), ("500MB", 500_000_000), ("7", 7)] {
            assert_eq!(bytes("--memory", text), Ok(want));
        }
        for text in ["", "GiB", "-1", "8 apples", "1e400", "nan"] {
            assert!(bytes("--memory", text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_machine_tells_its_memory() {
        if cfg!(target_os = "linux") {
            assert!(available_memory().is_ok_and(|n| n > 1 << 20));
        }
    }
}
