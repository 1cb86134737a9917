//! What a terminal shows: colour where it helps, plain text elsewhere, sizes and speeds for people.

use std::io::IsTerminal;

/// What a piece of text is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Something went wrong.
    Error,
    /// Beside the point.
    Dim,
    /// A label.
    Bold,
}

/// `text` in the colours of `style`, if standard error is a terminal and NO_COLOR is not set.
pub fn style(text: &str, style: Style) -> String {
    let plain = !std::io::stderr().is_terminal()
        || std::env::var_os("NO_COLOR").is_some_and(|v| !v.is_empty());
    let code = match style {
        _ if plain => return text.to_owned(),
        Style::Error => "1;31",
        Style::Dim => "2",
        Style::Bold => "1",
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// A line for people on standard error, beside the results on standard output.
pub fn note(text: &str) {
    eprintln!("{}", style(text, Style::Dim));
}

/// Bytes, as people read them.
pub fn bytes(n: u64) -> String {
    match n {
        0..1_000 => format!("{n} B"),
        1_000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

/// A number with its thousands apart.
pub fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// What `--context-shift` did.
pub fn forgotten(tokens: usize) -> String {
    format!("the context was full: {tokens} of the older tokens were forgotten (--context-shift)")
}

/// The most memory that this process has had resident, where the system tells (Linux).
pub fn peak_resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}

/// Whether an error says that nobody reads our output any more.
pub fn is_broken_pipe(e: &(dyn std::error::Error + 'static)) -> bool {
    e.downcast_ref::<std::io::Error>().is_some_and(|e| e.kind() == std::io::ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_for_people() {
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(12), "12");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(7_100_000), "7.1 MB");
    }
}
