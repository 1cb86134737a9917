//! `lapidary chat`: a conversation in the terminal.

use crate::args::{ChatArgs, StopArgs};
use crate::model::{self, Ready};
use crate::pictures::{self, Pictures};
use crate::run::rate;
use crate::turn::Screen;
use crate::{Outcome, show};
use lapidary_engine::{
    Event, Finish, Generation, Picture, Sampler, Sampling, Session, StopStrings, Stops, Turn,
    generate,
};
use lapidary_formats::atomic;
use lapidary_formats::chat::Message;
use rustyline::error::ReadlineError;
use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const HELP: &str = "\
/help             this
/system [TEXT]    how the model should behave; without text, nothing special
/image FILE       show a picture with the next turn
/set              the settings
/set NAME VALUE   change one of them
/reset            forget the conversation
/save FILE        write the conversation as JSON
/load FILE        read one
/stats            tokens, speed, memory
/exit             leave (also Ctrl-D); Ctrl-C stops an answer";

/// Settings of the sampler that are plain numbers, as `/set` shows them.
const NUMBERS: [&str; 7] = [
    "temperature",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
];

/// A conversation and what answers it.
struct Chat {
    ready: Ready,
    session: Session,
    messages: Vec<Message>,
    pictures: Pictures,
    /// Files of pictures that the next turn shows.
    shown: Vec<String>,
    system: Option<String>,
    sampling: Sampling,
    max_tokens: usize,
    stops: StopArgs,
    last: Option<Generation>,
    stop: Arc<AtomicBool>,
}

/// Runs the command.
pub fn chat(args: ChatArgs) -> Outcome {
    model::introduce(args.model.model.as_deref());
    let mut ready = Ready::open(&args.model)?;
    if ready.text.template.is_none() {
        return Err("this model has no chat template: it is a base model; continue a text with \
                    lapidary run --raw"
            .into());
    }
    ready.set_thinking(&args.think)?;
    let sampling = ready.sampling(&args.sampling)?;
    let stop = Arc::new(AtomicBool::new(false));
    let flag = stop.clone();
    ctrlc::set_handler(move || flag.store(true, Ordering::Relaxed))?;
    let session = ready.weights.session();
    let mut chat = Chat {
        ready,
        session,
        messages: Vec::new(),
        pictures: Pictures::new(args.mmproj),
        shown: Vec::new(),
        system: args.system,
        sampling,
        max_tokens: args.max_tokens,
        stops: args.stops,
        last: None,
        stop,
    };
    if std::io::stdin().is_terminal() {
        show::note("/help shows the commands, Ctrl-D leaves");
        chat.interactive()
    } else {
        chat.piped()
    }
}

impl Chat {
    fn interactive(&mut self) -> Outcome {
        let mut editor = rustyline::DefaultEditor::new()?;
        let history = history_file();
        if let Some(file) = &history {
            // There is none the first time.
            let _ = editor.load_history(file);
        }
        loop {
            match editor.readline("> ") {
                Ok(line) if line.trim().is_empty() => {}
                Ok(line) => {
                    editor.add_history_entry(line.as_str())?;
                    if !self.line(&line)? {
                        break;
                    }
                }
                Err(ReadlineError::Interrupted) => show::note("Ctrl-D leaves"),
                Err(ReadlineError::Eof) => break,
                Err(e) => return Err(e.into()),
            }
        }
        if let Some(file) = &history {
            save_history(&mut editor, file);
        }
        Ok(())
    }

    /// Turns from a pipe, one a line.
    fn piped(&mut self) -> Outcome {
        for line in std::io::stdin().lines() {
            let line = line?;
            if !line.trim().is_empty() && !self.line(&line)? {
                break;
            }
        }
        Ok(())
    }

    /// A command or a turn; false ends the chat. What goes wrong is shown, and the chat goes on.
    fn line(&mut self, line: &str) -> Result<bool> {
        let line = line.trim();
        let outcome = match line.strip_prefix('/') {
            Some("exit" | "quit" | "bye") => return Ok(false),
            Some(command) => self.command(command),
            None => self.turn(line),
        };
        match outcome {
            Err(e) if show::is_broken_pipe(&*e) => return Err(e),
            Err(e) => eprintln!("{} {e}", show::style("error:", show::Style::Error)),
            Ok(()) => {}
        }
        Ok(true)
    }

    fn command(&mut self, command: &str) -> Result<()> {
        let (name, rest) = command.split_once(char::is_whitespace).unwrap_or((command, ""));
        let rest = rest.trim();
        match name {
            "help" | "?" => println!("{HELP}"),
            "system" => {
                self.system = (!rest.is_empty()).then(|| rest.to_owned());
                show::note("the system message counts from the next turn on");
            }
            "reset" => {
                self.messages.clear();
                self.shown.clear();
                self.pictures.forget();
                self.session.reset();
                show::note("the conversation is forgotten");
            }
            "image" => self.image(rest)?,
            "save" => self.save(rest)?,
            "load" => self.load(rest)?,
            "stats" => self.stats(),
            "set" => self.set(rest)?,
            _ => return Err(format!("/{name} is no command; /help shows them").into()),
        }
        Ok(())
    }

    fn set(&mut self, rest: &str) -> Result<()> {
        let Some((name, value)) = rest.split_once(char::is_whitespace) else {
            for name in NUMBERS {
                let value = self.sampling.number(name).map(|x| *x).unwrap_or_default();
                println!("{name} {value}");
            }
            println!("top_k {}\nseed {}", self.sampling.top_k, self.sampling.seed);
            println!("max_tokens {}", self.max_tokens);
            return Ok(());
        };
        let value = value.trim();
        let wrong = |e: &dyn std::fmt::Display| format!("{name} {value}: {e}");
        let mut s = self.sampling.clone();
        match name {
            "top_k" => s.top_k = value.parse().map_err(|e| wrong(&e))?,
            "seed" => s.seed = value.parse().map_err(|e| wrong(&e))?,
            "max_tokens" => self.max_tokens = value.parse().map_err(|e| wrong(&e))?,
            _ => {
                let number = s.number(name).ok_or("that is no setting; /set shows them");
                *number.map_err(|e| wrong(&e))? = value.parse().map_err(|e| wrong(&e))?;
            }
        }
        s.check()?;
        self.sampling = s;
        Ok(())
    }

    fn image(&mut self, file: &str) -> Result<()> {
        file_argument(file, "/image")?;
        if file == "-" {
            return Err("/image -: standard input holds the conversation".into());
        }
        self.pictures.look(&mut self.ready.weights, file)?;
        self.shown.push(file.to_owned());
        show::note("the next turn shows it");
        Ok(())
    }

    fn save(&self, file: &str) -> Result<()> {
        let path = file_argument(file, "/save")?;
        let mut all: Vec<Message> = Vec::new();
        all.extend(self.system.as_deref().map(|s| Message::new("system", s)));
        all.extend_from_slice(&self.messages);
        atomic::write_file(path, serde_json::to_string_pretty(&all)?.as_bytes())?;
        show::note(&format!("{} turns in {file}", self.messages.len()));
        Ok(())
    }

    fn load(&mut self, file: &str) -> Result<()> {
        let path = file_argument(file, "/load")?;
        let bytes = std::fs::read(path).map_err(|e| format!("{file}: {e}"))?;
        let mut all: Vec<Message> = serde_json::from_slice(&bytes).map_err(|e| {
            format!("{file}: an array of {{\"role\", \"content\"}} was expected: {e}")
        })?;
        let system = all.first().filter(|m| m.role == "system").map(|m| {
            m.content.as_str().map(str::to_owned).ok_or("the system message is no plain text")
        });
        self.system = system.transpose()?;
        if self.system.is_some() {
            all.remove(0);
        }
        self.messages = all;
        show::note(&format!("{} turns from {file}", self.messages.len()));
        Ok(())
    }

    fn stats(&self) {
        let used = self.session.tokens().len();
        println!("context    {used} of {} tokens", self.session.limits().context);
        println!("cache      {}", show::bytes(self.session.cache_bytes() as u64));
        if let Some(peak) = show::peak_resident() {
            println!("memory     {} at most", show::bytes(peak));
        }
        if let Some(g) = &self.last {
            println!(
                "last turn  {} prompt tokens from the cache, {} computed at {:.1}/s, {} generated at {:.1}/s ({})",
                g.reused,
                g.prefilled,
                rate(g.prefilled, g.prefill_time),
                g.ids.len(),
                rate(g.steps, g.decode_time),
                g.finish.name(),
            );
        }
    }

    /// A turn of the user, and the answer. When it fails the conversation is as before.
    fn turn(&mut self, text: &str) -> Result<()> {
        let mut message = Message::new("user", text);
        let shown = std::mem::take(&mut self.shown);
        if !shown.is_empty() {
            message.content = pictures::content(&shown, text);
        }
        self.messages.push(message);
        match self.answer() {
            Ok(answer) => {
                self.messages.push(Message::new("assistant", &answer));
                Ok(())
            }
            Err(e) => {
                self.messages.pop();
                self.shown = shown;
                Err(e)
            }
        }
    }

    /// The prompt of the conversation so far. With `--context-shift` the oldest turns are
    /// forgotten until it fills no more than half of the context.
    fn prompt(&mut self) -> Result<(Vec<u32>, Vec<Picture>)> {
        let context = self.session.limits().context;
        let before = self.messages.len();
        loop {
            let mut all: Vec<Message> = Vec::new();
            all.extend(self.system.as_deref().map(|s| Message::new("system", s)));
            all.extend_from_slice(&self.messages);
            let (prompt, pictures) = self.pictures.prompt(&mut self.ready, &all)?;
            let forgotten = before - self.messages.len();
            let limit = if forgotten == 0 { context } else { context / 2 };
            if prompt.len() <= limit || !self.stops.context_shift || self.messages.len() < 3 {
                if forgotten > 0 {
                    show::note(&format!(
                        "the {forgotten} oldest turns were forgotten (--context-shift)"
                    ));
                }
                return Ok((prompt, pictures));
            }
            // A question goes with its answer.
            self.messages.drain(..2);
        }
    }

    fn answer(&mut self) -> Result<String> {
        let (prompt, pictures) = self.prompt()?;
        let mut sampler = Sampler::new(self.sampling.clone())?;
        let stops = Stops {
            ids: self.ready.text.stops.clone(),
            max_tokens: self.max_tokens,
            // Turns are forgotten whole; within one, a picture can't be cut.
            context_shift: self.stops.context_shift && pictures.is_empty(),
        };
        self.session.show(pictures);
        self.stop.store(false, Ordering::Relaxed);
        let (stop, mut out) = (&self.stop, std::io::stdout().lock());
        let strings = StopStrings::new(self.stops.stop.iter().cloned());
        let mut turn = Turn::new(&self.ready.text.tokenizer, strings);
        let mut screen = Screen::default();
        let mut broken = None;
        let mut listen = |event| {
            if let Event::Token(id) = event {
                let pieces = turn.push(id);
                broken = screen.show(&pieces, &mut out).err();
            }
            if turn.stopped_by().is_some() {
                ControlFlow::Break(Finish::Stop)
            } else if stop.load(Ordering::Relaxed) || broken.is_some() {
                ControlFlow::Break(Finish::Cancelled)
            } else {
                ControlFlow::Continue(())
            }
        };
        let model = &*self.ready.weights.loaded.model;
        let cpu = &mut self.ready.weights.cpu;
        let done =
            generate(model, cpu, &mut self.session, &prompt, &mut sampler, &stops, &mut listen);
        let done = done.map_err(|e| format!("{e}; /reset forgets the conversation"))?;
        if let Some(e) = broken {
            return Err(e.into());
        }
        let rest = turn.finish();
        screen.show(&rest, &mut out)?;
        writeln!(out)?;
        let text = turn.text().to_owned();
        self.at_a_glance(&done);
        self.last = Some(done);
        Ok(text)
    }

    fn at_a_glance(&self, done: &Generation) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        let ended = match done.finish {
            Finish::Stop => String::new(),
            Finish::Length => format!("; cut at {} tokens (/set max_tokens)", self.max_tokens),
            Finish::Context => "; the context is full (/reset)".into(),
            Finish::Cancelled | Finish::Deadline => "; stopped".into(),
        };
        if done.forgotten > 0 {
            show::note(&show::forgotten(done.forgotten));
        }
        let speed = rate(done.steps, done.decode_time);
        let (used, context) = (self.session.tokens().len(), self.session.limits().context);
        show::note(&format!("{speed:.1} tokens/s, context {used} of {context}{ended}"));
    }
}

fn file_argument<'a>(file: &'a str, command: &str) -> Result<&'a Path> {
    if file.is_empty() {
        return Err(format!("{command} FILE: the name of a file was expected").into());
    }
    Ok(Path::new(file))
}

/// Where earlier lines are kept.
fn history_file() -> Option<PathBuf> {
    let state = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from);
    let state = state.or_else(|| std::env::home_dir().map(|h| h.join(".local/state")))?;
    Some(state.join("lapidary/history"))
}

/// Keeping the history is a courtesy: without a place for it the chat works as well.
fn save_history(editor: &mut rustyline::DefaultEditor, file: &Path) {
    let made = file.parent().map(std::fs::create_dir_all);
    if !matches!(made, Some(Ok(()))) || editor.save_history(file).is_err() {
        show::note(&format!("the history could not be written to {}", file.display()));
    }
}
