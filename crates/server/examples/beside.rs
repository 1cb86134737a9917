//! Two servers on the same file, one after the other, under the same clients: Lapidary's and
//! llama.cpp's.
//!
//! `cargo run --release -p lapidary-server --example beside -- MODEL.gguf LAPIDARY LLAMA_SERVER \
//!   [--clients 1,4,16,64] [--seconds 60] [--rounds 3] [--threads N] [--words 40,160] [--tokens 48] [--lapidary-args "--isa avx2"]`
//!
//! LAPIDARY and LLAMA_SERVER are the programs; `-` leaves one out. Each client sends one streamed completion
//! after the other, with a prompt of its own that shares nothing with those before, and greedily; both
//! servers get the same requests in the same order. A server is started anew for each number of
//! clients in each round, and the two take turns. No client asks again when the time is over, and a run ends when
//! all answers have: tokens a second are those of all answers over the time from the first request to the last
//! token, prompts and all. Prints a table: medians over the rounds, with the lowest and the highest.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

const USAGE: &str = "usage: beside MODEL.gguf LAPIDARY LLAMA_SERVER [--clients 1,4,16,64] [--seconds 60] \
                     [--rounds 3] [--threads N] [--words 40,160] [--tokens 48] [--lapidary-args \"…\"]";
/// Tokens of a sequence: prompts and answers are far shorter.
const CONTEXT: usize = 1024;
const SYLLABLES: [&str; 16] = [
    "ba", "ce", "di", "fo", "gu", "ha", "je", "ki", "lo", "mu", "na", "pe", "ri", "so", "tu", "va",
];

/// What is measured.
struct Plan {
    model: String,
    programs: [Option<String>; 2],
    clients: Vec<usize>,
    seconds: u64,
    rounds: usize,
    threads: usize,
    words: (usize, usize),
    tokens: usize,
    lapidary_args: Vec<String>,
}

const NAMES: [&str; 2] = ["Lapidary", "llama.cpp"];

impl Plan {
    fn read(args: &[String]) -> Option<Self> {
        let program = |i: usize| Some(args.get(i)?.clone()).map(|p| Some(p).filter(|p| p != "-"));
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let mut plan = Self {
            model: args.first()?.clone(),
            programs: [program(1)?, program(2)?],
            clients: vec![1, 4, 16, 64],
            seconds: 60,
            rounds: 3,
            threads: cores,
            words: (40, 160),
            tokens: 48,
            lapidary_args: vec![],
        };
        for pair in args[3..].chunks(2) {
            let [flag, value] = pair else { return None };
            let numbers: Option<Vec<usize>> = value.split(',').map(|n| n.parse().ok()).collect();
            let positive = |n: &usize| *n > 0;
            let one = || value.parse().ok().filter(positive);
            match flag.as_str() {
                "--clients" => plan.clients = numbers.filter(|n| n.iter().all(positive))?,
                "--words" => plan.words = <[usize; 2]>::try_from(numbers?).ok()?.into(),
                "--seconds" => plan.seconds = one()? as u64,
                "--rounds" => plan.rounds = one()?,
                "--threads" => plan.threads = one()?,
                "--tokens" => plan.tokens = one()?,
                "--lapidary-args" => {
                    plan.lapidary_args = value.split_whitespace().map(str::to_owned).collect();
                }
                _ => return None,
            }
        }
        (0 < plan.words.0 && plan.words.0 <= plan.words.1).then_some(plan)
    }

    /// The command of server `which` for so many clients.
    fn command(&self, which: usize, program: &str, clients: usize, port: u16) -> Command {
        let mut command = Command::new(program);
        let (threads, port) = (self.threads.to_string(), port.to_string());
        if which == 0 {
            let (listen, model) = (format!("127.0.0.1:{port}"), format!("m={}", self.model));
            let context = CONTEXT.to_string();
            command.args(["serve", "--model", &model, "--listen", &listen, "--context", &context]);
            command.args(["--threads", &threads, "--batch", &clients.max(1).to_string()]);
            command.args(["--log", "error"]).args(&self.lapidary_args);
        } else {
            let (slots, context) = (clients.to_string(), (clients * CONTEXT).to_string());
            command.args(["-m", &self.model, "--host", "127.0.0.1", "--port", &port]);
            command.args(["-np", &slots, "-c", &context, "-t", &threads, "-tb", &threads]);
        }
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }
}

/// A server that ends with this.
struct Server {
    child: Child,
    address: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Server {
    /// Starts it, and waits until it has answered something.
    fn start(plan: &Plan, which: usize, program: &str, clients: usize) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = plan.command(which, program, clients, port).spawn()?;
        let mut server = Self { child, address: ([127, 0, 0, 1], port).into() };
        let begin = Instant::now();
        loop {
            match ask(server.address, "warm up", 2) {
                Ok(answer) if answer.tokens > 0 => return Ok(server),
                other if begin.elapsed() > Duration::from_secs(300) => {
                    return Err(format!("{program} does not answer: {:?}", other.err()).into());
                }
                _ => {}
            }
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("{program} ended: {status}").into());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}

/// A streamed answer.
struct Answer {
    asked: Instant,
    /// When each piece of text came.
    pieces: Vec<Instant>,
    /// As the server counts them.
    tokens: usize,
    prompt: usize,
}

/// Sends a completion and reads it to its end.
fn ask(address: SocketAddr, prompt: &str, tokens: usize) -> Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(600)))?;
    stream.set_nodelay(true)?;
    let body = serde_json::json!({
        "model": "m", "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": true,
        "stream_options": {"include_usage": true},
    });
    let body = body.to_string();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    let asked = Instant::now();
    stream.write_all((head + &body).as_bytes())?;
    let mut answer = Answer { asked, pieces: vec![], tokens: 0, prompt: 0 };
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if line.get(9..12) != Some("200") {
        let mut rest = String::new();
        reader.read_to_string(&mut rest)?;
        return Err(format!("{line}{rest}").into());
    }
    loop {
        line.clear();
        if reader.read_line(&mut line)? == 0 {
            return Ok(answer);
        }
        let Some(data) = line.strip_prefix("data: ") else { continue };
        let Ok(event) = serde_json::from_str::<serde_json::Value>(data) else { continue };
        let text = event["choices"][0]["text"].as_str().unwrap_or_default();
        if !text.is_empty() {
            answer.pieces.push(Instant::now());
        }
        let count = |name: &str| event["usage"][name].as_u64().map(|n| n as usize);
        answer.tokens = count("completion_tokens").unwrap_or(answer.tokens);
        answer.prompt = count("prompt_tokens").unwrap_or(answer.prompt);
    }
}

/// The prompt of request `number`: the same for both servers, and like no other's.
fn prompt(plan: &Plan, number: usize) -> String {
    let mut state = (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 33) as usize % below
    };
    let count = plan.words.0 + next(plan.words.1 - plan.words.0 + 1);
    let mut word = || -> String { (0..2 + next(2)).map(|_| SYLLABLES[next(16)]).collect() };
    (0..count).map(|_| word()).collect::<Vec<_>>().join(" ")
}

/// What a run gave.
struct Run {
    rate: f64,
    first: [f64; 2],
    prompt: f64,
    answers: usize,
}

fn run(plan: &Plan, server: &Server, clients: usize) -> Result<Run> {
    let (number, answers) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let begin = Instant::now();
    let end = begin + Duration::from_secs(plan.seconds);
    std::thread::scope(|scope| {
        let client = || -> Result<()> {
            while Instant::now() < end {
                let prompt = prompt(plan, number.fetch_add(1, Ordering::Relaxed));
                let answer = ask(server.address, &prompt, plan.tokens)?;
                answers.lock().unwrap_or_else(|e| e.into_inner()).push(answer);
            }
            Ok(())
        };
        let all: Vec<_> = (0..clients).map(|_| scope.spawn(client)).collect();
        all.into_iter().try_for_each(|t| t.join().map_err(|_| "a client panicked")?)
    })?;
    measure(&answers.into_inner().unwrap_or_else(|e| e.into_inner()), begin)
}

/// Tokens a second from `begin` to the last piece of text of all, and times to the first piece.
fn measure(answers: &[Answer], begin: Instant) -> Result<Run> {
    let first = |a: &Answer| a.pieces.first().copied();
    let last =
        answers.iter().filter_map(|a| a.pieces.last()).max().ok_or("no answer had any text")?;
    let tokens: usize = answers.iter().map(|a| a.tokens).sum();
    let mut times: Vec<f64> =
        (answers.iter()).filter_map(|a| Some((first(a)? - a.asked).as_secs_f64())).collect();
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times[((times.len() - 1) as f64 * q).round() as usize];
    let prompts: usize = answers.iter().map(|a| a.prompt).sum();
    Ok(Run {
        rate: tokens as f64 / (*last - begin).as_secs_f64().max(1e-3),
        first: [at(0.5), at(0.99)],
        prompt: prompts as f64 / answers.len() as f64,
        answers: answers.len(),
    })
}

/// The median, and the lowest and the highest.
fn spread(runs: &[Run], value: impl Fn(&Run) -> f64) -> (f64, String) {
    let mut values: Vec<f64> = runs.iter().map(value).collect();
    values.sort_by(f64::total_cmp);
    let (Some(low), Some(high)) = (values.first(), values.last()) else {
        return (0.0, "–".into());
    };
    let median = values[values.len() / 2];
    (median, format!("{median:.2} ({low:.2}–{high:.2})"))
}

fn row(clients: usize, runs: &[Vec<Run>; 2]) {
    let figure = |value: fn(&Run) -> f64| {
        let [(ours, a), (theirs, b)] = [spread(&runs[0], value), spread(&runs[1], value)];
        let ratio =
            if theirs > 0.0 && ours > 0.0 { format!("{:.2}", ours / theirs) } else { "–".into() };
        format!("{a} | {b} | {ratio}")
    };
    let (rate, median, last) = (figure(|r| r.rate), figure(|r| r.first[0]), figure(|r| r.first[1]));
    println!("| {clients} | {rate} | {median} | {last} |");
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some(plan) = Plan::read(&args) else {
        eprintln!("{USAGE}");
        return ExitCode::from(2);
    };
    match compare(&plan) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("error: {e}");
            ExitCode::FAILURE
        }
    }
}

fn compare(plan: &Plan) -> Result<()> {
    println!(
        "| clients | tokens/s: Lapidary | llama.cpp | ratio | first token, median s: Lapidary | llama.cpp | ratio | 99th percentile s: Lapidary | llama.cpp | ratio |"
    );
    println!("|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|");
    for &clients in &plan.clients {
        let mut runs = [Vec::new(), Vec::new()];
        for round in 0..plan.rounds {
            for (which, program) in plan.programs.iter().enumerate() {
                let Some(program) = program else { continue };
                let server = Server::start(plan, which, program, clients)?;
                let run = run(plan, &server, clients)?;
                eprintln!(
                    "{} with {clients}, round {}: {:.1} tokens/s, first token {:.2} s, 99th percentile {:.2} s, {} answers to prompts of {:.0} tokens",
                    NAMES[which],
                    round + 1,
                    run.rate,
                    run.first[0],
                    run.first[1],
                    run.answers,
                    run.prompt
                );
                runs[which].push(run);
            }
        }
        row(clients, &runs);
    }
    Ok(())
}
