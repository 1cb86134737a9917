//! `lapidary`: run, chat with, inspect, convert and measure open models.
#![forbid(unsafe_code)]

mod args;
mod bench;
mod chat;
mod embed;
mod export;
mod inspect;
mod logits;
mod merge;
mod model;
mod pictures;
mod quantize;
mod run;
mod serve;
mod show;
mod text;
mod together;
mod train;
mod train_tokenizer;
mod turn;

use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use std::process::ExitCode;

/// What a command ends with: an error is printed as one line and gives exit code 1.
type Outcome = Result<(), Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = match cli.command {
        Command::Chat(args) => chat::chat(args),
        Command::Run(args) => run::run(args),
        Command::Serve(args) => serve::serve(*args),
        Command::Inspect(args) => inspect::inspect(args),
        Command::Tokenize(args) => text::tokenize(args),
        Command::Template(args) => text::template(args),
        Command::Logits(args) => logits::logits(args),
        Command::Embed(args) => embed::embed(args),
        Command::Bench(args) => bench::bench(args),
        Command::Quantize(args) => quantize::quantize(args),
        Command::Train(args) => train::run(&args),
        Command::Export(args) => export::run(&args),
        Command::Merge(args) => merge::run(&args),
        Command::TrainTokenizer(args) => train_tokenizer::run(&args),
        Command::Completions { shell } => {
            let mut command = Cli::command();
            clap_complete::generate(shell, &mut command, "lapidary", &mut std::io::stdout());
            Ok(())
        }
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read our output has gone (`lapidary ... | head`): nothing to tell.
        Err(e) if show::is_broken_pipe(&*e) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("{} {e}", show::style("error:", show::Style::Error));
            ExitCode::FAILURE
        }
    }
}
