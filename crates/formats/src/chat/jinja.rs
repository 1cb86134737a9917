//! A checkpoint's Jinja template, in the environment that transformers gives it, bounded.

use super::{Message, RenderOptions};
use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Kwargs, Serde, Value as Jv, ValueKind};
use minijinja::{Environment, Error, ErrorKind, UndefinedBehavior};
use std::io;

/// Bytes of a template.
const MAX_SOURCE: usize = 1 << 20;
/// Bytes of a rendered prompt.
const MAX_OUTPUT: usize = 64 << 20;
/// Instructions of one rendering.
const FUEL: u64 = 20_000_000;
/// Calls of macros inside macros.
const DEPTH: usize = 64;

const NAME: &str = "chat_template";

pub(super) struct Jinja {
    environment: Environment<'static>,
}

impl Jinja {
    pub(super) fn new(source: &str) -> Result<Self, String> {
        if source.len() > MAX_SOURCE {
            return Err(format!("{} bytes; at most {MAX_SOURCE} were expected", source.len()));
        }
        let mut env = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        env.set_syntax(syntax.map_err(|e| explain(&e))?);
        env.set_undefined_behavior(UndefinedBehavior::Chainable);
        env.set_fuel(Some(FUEL));
        env.set_recursion_limit(DEPTH);
        env.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function("raise_exception", raise_exception);
        env.add_function("range", range);
        env.add_filter("tojson", tojson);
        env.add_template_owned(NAME, neutralise(source)).map_err(|e| explain(&e))?;
        Ok(Self { environment: env })
    }

    pub(super) fn render(
        &self,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<String, String> {
        let mut env = self.environment.clone();
        let now = options.now;
        env.add_function("strftime_now", move |format: &str| strftime(now, format));
        let template = env.get_template(NAME).map_err(|e| explain(&e))?;
        let mut variables = options.extra.clone();
        variables
            .insert("messages".into(), serde_json::to_value(messages).map_err(|e| e.to_string())?);
        variables.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        variables.insert("bos_token".into(), options.bos.into());
        variables.insert("eos_token".into(), options.eos.into());
        variables.insert("tools".into(), options.tools.clone().unwrap_or_default());
        let mut out = Bounded(Vec::new());
        let variables = Jv::from(Serde(&variables));
        template.render_captured_to(variables, &mut out).map_err(|e| explain(&e))?;
        String::from_utf8(out.0).map_err(|e| e.to_string())
    }
}

/// Grows to [`MAX_OUTPUT`] bytes.
struct Bounded(Vec<u8>);

impl io::Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.len() + bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other(format!("more than {MAX_OUTPUT} bytes come out")));
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// `{% generation %}` marks the trained part of a training template; here it means nothing.
fn neutralise(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(at) = rest.find("{%") {
        let Some(end) = rest[at + 2..].find("%}").map(|end| end + 2) else { break };
        let tag = &rest[at..at + end + 2];
        let word =
            tag[2..tag.len() - 2].trim_matches(|c: char| c == '-' || c == '+' || c.is_whitespace());
        out.push_str(&rest[..at]);
        match word {
            // A statement in its place keeps the trimming of white space as it was.
            "generation" | "endgeneration" => {
                out.push_str(&tag.replacen(word, "set generation_mark = 0", 1));
            }
            _ => out.push_str(tag),
        }
        rest = &rest[at + end + 2..];
    }
    out + rest
}

fn explain(e: &Error) -> String {
    let line = e.line().map(|l| format!("line {l}: ")).unwrap_or_default();
    match e.kind() {
        ErrorKind::InvalidOperation if e.detail().is_some_and(|d| d.starts_with(REFUSES)) => {
            e.detail().unwrap_or_default().to_owned()
        }
        ErrorKind::OutOfFuel => format!("{line}the template takes more than {FUEL} steps"),
        _ => {
            use std::error::Error as _;
            let cause = e.source().map(|s| format!(": {s}")).unwrap_or_default();
            let detail = e.detail().map(|d| format!(": {d}")).unwrap_or_default();
            format!("{line}{}{detail}{cause}", e.kind())
        }
    }
}

const REFUSES: &str = "the template refuses: ";

fn raise_exception(message: &str) -> Result<Jv, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, format!("{REFUSES}{message}")))
}

/// `range`, whose results can't fill the memory.
fn range(start: i64, stop: Option<i64>, step: Option<i64>) -> Result<Vec<i64>, Error> {
    let (start, stop) = stop.map_or((0, start), |stop| (start, stop));
    let step = step.unwrap_or(1);
    let wrong = |what: &str| Err(Error::new(ErrorKind::InvalidOperation, what.to_owned()));
    if step == 0 {
        return wrong("range with a step of 0");
    }
    let count = (i128::from(stop) - i128::from(start)).max(0) / i128::from(step.unsigned_abs());
    let back = (i128::from(start) - i128::from(stop)).max(0) / i128::from(step.unsigned_abs());
    if (if step > 0 { count } else { back }) > 100_000 {
        return wrong("range of more than 100000 numbers");
    }
    let mut out = Vec::new();
    let mut i = start;
    while if step > 0 { i < stop } else { i > stop } {
        out.push(i);
        match i.checked_add(step) {
            Some(next) => i = next,
            None => break,
        }
    }
    Ok(out)
}

/// `tojson` as transformers has it: Python's `json.dumps` without escaping HTML or non-ASCII text.
fn tojson(value: Jv, kwargs: Kwargs) -> Result<String, Error> {
    let indent: Option<usize> = kwargs.get("indent")?;
    let _: Option<bool> = kwargs.get("ensure_ascii")?;
    let _: Option<bool> = kwargs.get("sort_keys")?;
    let _: Option<Jv> = kwargs.get("separators")?;
    kwargs.assert_all_used()?;
    if value.kind() == ValueKind::Undefined {
        return Err(Error::new(ErrorKind::InvalidOperation, "tojson of an undefined value"));
    }
    let json = serde_json::to_value(&value)
        .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))?;
    let mut out = String::new();
    dump(&json, indent.map(|i| i.min(16)), 0, &mut out);
    Ok(out)
}

/// Python's spacing: `", "` and `": "`, or line by line with an indent.
fn dump(value: &serde_json::Value, indent: Option<usize>, depth: usize, out: &mut String) {
    use serde_json::Value;
    let line = |out: &mut String, depth: usize| {
        if let Some(i) = indent {
            out.push('\n');
            out.push_str(&" ".repeat(i * depth));
        }
    };
    let comma = if indent.is_some() { "," } else { ", " };
    match value {
        Value::Array(a) if !a.is_empty() => {
            out.push('[');
            for (i, v) in a.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(out, depth + 1);
                dump(v, indent, depth + 1, out);
            }
            line(out, depth);
            out.push(']');
        }
        Value::Object(o) if !o.is_empty() => {
            out.push('{');
            for (i, (k, v)) in o.iter().enumerate() {
                out.push_str(if i > 0 { comma } else { "" });
                line(out, depth + 1);
                out.push_str(&Value::from(k.as_str()).to_string());
                out.push_str(": ");
                dump(v, indent, depth + 1, out);
            }
            line(out, depth);
            out.push('}');
        }
        other => out.push_str(&other.to_string()),
    }
}

/// The date in UTC; the directives that published templates use.
fn strftime(seconds: i64, format: &str) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    let days = seconds.div_euclid(86_400);
    let (year, month, day) = civil(days);
    let name = MONTHS[month - 1];
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('Y') => out += &year.to_string(),
            Some('m') => out += &format!("{month:02}"),
            Some('d') => out += &format!("{day:02}"),
            Some('B') => out += name,
            Some('b') => out += &name[..3],
            Some('H') => out += &format!("{:02}", seconds.rem_euclid(86_400) / 3600),
            Some('M') => out += &format!("{:02}", seconds.rem_euclid(3600) / 60),
            Some('S') => out += &format!("{:02}", seconds.rem_euclid(60)),
            Some('%') => out.push('%'),
            other => {
                let problem = format!("strftime_now: %{} is not supported", other.unwrap_or(' '));
                return Err(Error::new(ErrorKind::InvalidOperation, problem));
            }
        }
    }
    Ok(out)
}

/// Year, month and day of a day counted from 1970-01-01 (Hinnant's algorithm for the proleptic
/// Gregorian calendar).
fn civil(days: i64) -> (i64, usize, i64) {
    let z = days + 719_468;
    let (era, day) = (z.div_euclid(146_097), z.rem_euclid(146_097));
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let m = (5 * day + 2) / 153;
    let month = if m < 10 { m + 3 } else { m - 9 };
    (year + era * 400 + i64::from(month <= 2), month as usize, day - (153 * m + 2) / 5 + 1)
}
