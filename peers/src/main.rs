//! Lapidary beside llama.cpp and candle: the same files, the same work, interleaved in one run.
//!
//!     cd peers && cargo run --release -- model-Q4_0.gguf model-Q8_0.gguf
//!
//! Each measurement is a process of its own, so that memory and start are measured as users see
//! them; the programs take turns.

mod candle;
mod golden;
mod llama;
mod measure;
mod precision;
mod table;
mod work;

use clap::{Parser, Subcommand};
use std::path::PathBuf;

/// Measures Lapidary, llama.cpp and candle in turn, and prints a Markdown table.
#[derive(Parser)]
#[command(name = "peers", subcommand_negates_reqs = true, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// GGUF files
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// Rows to measure [default: all]: prefill, decode, decode-1, depth, together-4, together-16,
    /// first, memory
    #[arg(long, short, value_name = "NAME", value_delimiter = ',')]
    row: Vec<String>,
    /// Programs: lapidary, llama, candle
    #[arg(
        long,
        short,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "lapidary,llama,candle"
    )]
    programs: Vec<String>,
    /// Measurements of each program
    #[arg(long, value_name = "N", default_value_t = 3)]
    repeat: usize,
    /// Threads, in rows that do not fix them [default: one for each core]
    #[arg(long, short, value_name = "N")]
    threads: Option<usize>,
    /// The `lapidary` program [default: built from the sources beside this crate]
    #[arg(long, value_name = "PATH")]
    lapidary: Option<PathBuf>,
    /// More arguments for `lapidary bench`, for instance "--isa avx2"
    #[arg(long, value_name = "ARGS", default_value = "", allow_hyphen_values = true)]
    lapidary_args: String,
    /// Append what was measured to this file, a JSON object a line
    #[arg(long, value_name = "FILE")]
    log: Option<PathBuf>,
}

#[derive(Subcommand)]
enum Command {
    /// Print the table of what log files hold
    Table {
        /// Files that --log wrote
        logs: Vec<PathBuf>,
    },
    /// Print how far each path's predictions are from those of the f32 path
    Precision {
        /// The `lapidary` program
        #[arg(long, value_name = "PATH")]
        lapidary: PathBuf,
        /// JSON lines with a key "text" [default: random tokens]
        #[arg(long, value_name = "FILE")]
        text: Option<PathBuf>,
        /// Tokens to compare
        #[arg(long, value_name = "N", default_value_t = 4096)]
        tokens: usize,
        /// GGUF files
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// Print what ggml's quantisers lose, for a test of ours
    Quantisers,
    /// One measurement (what the program starts itself)
    #[command(hide = true)]
    Work {
        /// llama or candle
        program: String,
        /// The row
        row: String,
        /// The GGUF file
        file: String,
        /// Threads
        threads: usize,
    },
}

fn main() {
    if let Err(e) = run(Cli::parse()) {
        eprintln!("peers: {e}");
        std::process::exit(1);
    }
}

fn run(cli: Cli) -> Result<(), String> {
    match cli.command {
        Some(Command::Work { program, row, file, threads }) => {
            measure::worker(&program, &row, &file, threads)
        }
        Some(Command::Precision { lapidary, text, tokens, files }) => {
            precision::print(&lapidary, &files, text.as_deref(), tokens)
        }
        Some(Command::Quantisers) => {
            golden::print();
            Ok(())
        }
        Some(Command::Table { logs }) => {
            let mut all = Vec::new();
            for log in logs {
                all.extend(measure::read_log(&log)?);
            }
            table::print(&all);
            Ok(())
        }
        None => measure::all(&cli),
    }
}
