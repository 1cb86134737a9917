//! A load on a running server: clients that chat, stream, go away, and send nonsense.
//!
//! `cargo run --release -p lapidary-server --example load -- ADDRESS CLIENTS SECONDS [PID]`
//!
//! ADDRESS is a loopback address of `lapidary serve`. Every answer to a good request is compared with
//! the answer that it got alone. With PID the resident memory of that process is shown as it goes on
//! (Linux). Ends with exit code 1 if an answer differs, or a status is not what was asked for.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// What a request is sent for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Kind {
    Chat,
    Stream,
    /// A stream that is left after its first bytes.
    Leave,
    Malformed,
    Embed,
}

const SUBJECTS: [&str; 8] = ["cat", "dog", "sun", "tree", "boat", "girl", "ball", "bird"];
/// Different requests.
const VARIANTS: usize = 48;

/// A small generator of numbers (xorshift), so that a run can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % below as u64) as usize
    }
}

fn body(model: &str, variant: usize, stream: bool) -> String {
    let subject = SUBJECTS[variant % SUBJECTS.len()];
    let filler = "It was a very nice day and they all went to the park. ".repeat(variant % 7 * 3);
    let tokens = [4, 16, 48, 96][variant % 4];
    let temperature = if variant.is_multiple_of(3) { "0" } else { "0.8" };
    format!(
        r#"{{"model": "{model}", "messages": [{{"role": "user", "content": "{filler}Tell me of the {subject}."}}], "max_completion_tokens": {tokens}, "temperature": {temperature}, "seed": {variant}, "stream": {stream}}}"#
    )
}

const MALFORMED: [(&str, &str); 5] = [
    ("/v1/chat/completions", "{\"model\": "),
    (
        "/v1/chat/completions",
        "{\"model\": \"nobody\", \"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}",
    ),
    ("/v1/messages", "[1, 2, 3]"),
    ("/api/chat", "{\"model\": 5}"),
    ("/v1beta/models/x:generateContent", "\u{0}"),
];

/// Sends a request on a connection of its own; the status and the body, or what was read of it.
fn ask(address: SocketAddr, path: &str, body: &str, leave: bool) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(300)))?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())?;
    let mut bytes = Vec::new();
    if leave {
        let mut some = [0; 512];
        let n = stream.read(&mut some)?;
        bytes.extend_from_slice(&some[..n]);
    } else {
        stream.read_to_end(&mut bytes)?;
    }
    let text = String::from_utf8_lossy(&bytes).into_owned();
    let status = text.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
    Ok((status, text))
}

/// The text of an answer, streamed or not.
fn content(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let line = line.strip_prefix("data: ").unwrap_or(line);
        let Ok(value) = serde_json::from_str::<serde_json::Value>(line) else { continue };
        for place in ["/choices/0/message/content", "/choices/0/delta/content"] {
            out += value.pointer(place).and_then(|v| v.as_str()).unwrap_or_default();
        }
    }
    out
}

fn resident(pid: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.parse().ok()
}

#[derive(Default)]
struct Tally {
    statuses: BTreeMap<(Kind, u16), u64>,
    times: BTreeMap<Kind, Vec<Duration>>,
    wrong: Vec<String>,
}

struct Load {
    address: SocketAddr,
    model: String,
    alone: Vec<String>,
    end: Instant,
    tally: Mutex<Tally>,
}

impl Load {
    fn client(&self, number: usize) {
        let mut random = Random(0x9e37_79b9 + number as u64 * 7919);
        while Instant::now() < self.end {
            let kind = match random.next(20) {
                0 | 1 => Kind::Malformed,
                2 | 3 => Kind::Leave,
                4 => Kind::Embed,
                5..=11 => Kind::Stream,
                _ => Kind::Chat,
            };
            let variant = random.next(VARIANTS);
            let start = Instant::now();
            let done = match kind {
                Kind::Malformed => {
                    let (path, body) = MALFORMED[variant % MALFORMED.len()];
                    ask(self.address, path, body, false)
                }
                Kind::Embed => {
                    let body = format!(r#"{{"model": "{}", "input": "a {variant}"}}"#, self.model);
                    ask(self.address, "/v1/embeddings", &body, false)
                }
                _ => {
                    let stream = kind != Kind::Chat;
                    let body = body(&self.model, variant, stream);
                    ask(self.address, "/v1/chat/completions", &body, kind == Kind::Leave)
                }
            };
            self.note(kind, variant, start.elapsed(), done);
        }
    }

    fn note(
        &self,
        kind: Kind,
        variant: usize,
        time: Duration,
        done: std::io::Result<(u16, String)>,
    ) {
        let mut tally = self.tally.lock().unwrap_or_else(|e| e.into_inner());
        let (status, text) = match done {
            Ok(done) => done,
            Err(e) => {
                tally.wrong.push(format!("{kind:?}: {e}"));
                return;
            }
        };
        *tally.statuses.entry((kind, status)).or_default() += 1;
        tally.times.entry(kind).or_default().push(time);
        let wanted: &[u16] = if kind == Kind::Malformed { &[400, 404] } else { &[200] };
        if !wanted.contains(&status) {
            tally.wrong.push(format!("{kind:?}: status {status}"));
        }
        if matches!(kind, Kind::Chat | Kind::Stream) && content(&text) != self.alone[variant] {
            tally.wrong.push(format!("variant {variant}: another answer than alone"));
        }
    }
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    let parsed = || {
        let address: SocketAddr = args.get(1)?.parse().ok()?;
        let (clients, seconds): (usize, u64) =
            (args.get(2)?.parse().ok()?, args.get(3)?.parse().ok()?);
        address.ip().is_loopback().then_some((address, clients.min(1024), seconds.min(3600)))
    };
    let Some((address, clients, seconds)) = parsed() else {
        eprintln!("usage: load LOOPBACK_ADDRESS CLIENTS SECONDS [PID]");
        return ExitCode::from(2);
    };
    let Some(model) = first_model(address) else {
        eprintln!("{address} lists no models");
        return ExitCode::FAILURE;
    };
    let mut alone = Vec::new();
    for variant in 0..VARIANTS {
        match ask(address, "/v1/chat/completions", &body(&model, variant, false), false) {
            Ok((200, text)) => alone.push(content(&text)),
            other => {
                eprintln!("alone: {other:?}");
                return ExitCode::FAILURE;
            }
        }
    }
    println!("{VARIANTS} answers alone; now {clients} clients for {seconds} s");
    let end = Instant::now() + Duration::from_secs(seconds);
    let load = Load { address, model, alone, end, tally: Mutex::default() };
    std::thread::scope(|scope| {
        for number in 0..clients {
            let load = &load;
            scope.spawn(move || load.client(number));
        }
        let Some(pid) = args.get(4) else { return };
        while Instant::now() < end {
            std::thread::sleep(Duration::from_secs(10));
            println!("resident {} kB", resident(pid).unwrap_or(0));
        }
    });
    report(load.tally.into_inner().unwrap_or_else(|e| e.into_inner()), seconds)
}

fn first_model(address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream
        .write_all(b"GET /v1/models HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n")
        .ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let value: serde_json::Value = serde_json::from_str(text.split("\r\n\r\n").nth(1)?).ok()?;
    Some(value["data"][0]["id"].as_str()?.to_owned())
}

fn report(mut tally: Tally, seconds: u64) -> ExitCode {
    for ((kind, status), n) in &tally.statuses {
        println!("{kind:?} {status}: {n} ({:.1}/s)", *n as f64 / seconds as f64);
    }
    for (kind, times) in &mut tally.times {
        times.sort_unstable();
        let at = |q: f64| times[((times.len() - 1) as f64 * q) as usize];
        println!(
            "{kind:?}: median {:?}, 99th percentile {:?}, longest {:?}",
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
    println!("{} wrong", tally.wrong.len());
    tally.wrong.iter().take(20).for_each(|w| println!("  {w}"));
    if tally.wrong.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
