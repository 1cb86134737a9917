//! Who may do what: keys, their scopes and rates.
//!
//! Keys are kept as SHA-256 hashes. They are long random strings, not passwords: a slow hash would
//! add nothing.

use crate::failure::{Failure, Kind};
use axum::http::{HeaderMap, Uri, header};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant, SystemTime};
use subtle::ConstantTimeEq;

/// What a key is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Answers.
    Generate,
    /// Embeddings.
    Embed,
    /// Lists of models, tokens and counts.
    Read,
    /// `/metrics`.
    Metrics,
}

impl Scope {
    /// All scopes by their names in a keys file.
    pub const ALL: [(&'static str, Scope); 4] = [
        ("generate", Scope::Generate),
        ("embed", Scope::Embed),
        ("read", Scope::Read),
        ("metrics", Scope::Metrics),
    ];

    fn bit(self) -> u8 {
        1 << self as u8
    }

    fn name(self) -> &'static str {
        Self::ALL[self as usize].0
    }
}

/// Requests in a minute, with bursts as large.
#[derive(Debug)]
struct Bucket {
    left: f64,
    at: Instant,
}

/// What comes with a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rights {
    /// A bit for each scope.
    scopes: u8,
    /// Requests in a minute.
    rate: Option<u32>,
    /// Whose requests go first: higher ones.
    priority: i32,
}

impl Rights {
    /// Everything, in turn with others.
    fn all(rate: Option<u32>) -> Self {
        Self { scopes: u8::MAX, rate, priority: 0 }
    }
}

/// A key, or the lack of one where none is needed.
#[derive(Debug)]
pub struct Caller {
    /// Its name, for logs.
    pub name: String,
    /// Its number, for the engine's fairness.
    pub client: u64,
    hash: [u8; 32],
    rights: Rights,
    bucket: Mutex<Bucket>,
}

impl Caller {
    fn new(name: &str, hash: [u8; 32], rights: Rights) -> Self {
        let client = u64::from_le_bytes(std::array::from_fn(|i| hash[i]));
        let bucket = Bucket { left: f64::from(rights.rate.unwrap_or(0)), at: Instant::now() };
        Self { name: name.into(), client, hash, rights, bucket: Mutex::new(bucket) }
    }

    /// Whose requests the engine computes first: higher ones.
    pub fn priority(&self) -> i32 {
        self.rights.priority
    }

    /// Whether it may do this.
    ///
    /// # Errors
    /// If the key lacks the scope.
    pub fn may(&self, scope: Scope) -> Result<(), Failure> {
        if self.rights.scopes & scope.bit() != 0 {
            return Ok(());
        }
        let message = format!("this key does not have the scope {:?}", scope.name());
        Err(Failure::new(Kind::Forbidden, message))
    }

    /// Takes one request from what the rate allows.
    ///
    /// # Errors
    /// If nothing is left; how long to wait.
    pub fn take(&self) -> Result<(), Failure> {
        let Some(rate) = self.rights.rate else { return Ok(()) };
        let per_second = f64::from(rate) / 60.0;
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let gained = (now - bucket.at).as_secs_f64() * per_second;
        *bucket = Bucket { left: (bucket.left + gained).min(f64::from(rate)), at: now };
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return Ok(());
        }
        let wait = Duration::from_secs_f64((1.0 - bucket.left) / per_second);
        let message =
            format!("more than {rate} requests in a minute; wait {} s", wait.as_secs() + 1);
        Err(Failure::new(Kind::RateLimited(wait), message))
    }
}

/// The keys of a server.
pub struct Keys {
    fixed: Vec<Arc<Caller>>,
    file: Option<PathBuf>,
    rate: Option<u32>,
    state: RwLock<State>,
    /// Whoever needs no key.
    anyone: Arc<Caller>,
}

#[derive(Default)]
struct State {
    keys: Vec<Arc<Caller>>,
    stamp: Option<(SystemTime, u64)>,
}

impl Keys {
    /// Keys as given, and those of a file. Without any, everybody may do everything.
    ///
    /// # Errors
    /// If the file can't be read or a line is wrong.
    pub fn new(given: &[String], file: Option<PathBuf>, rate: Option<u32>) -> Result<Self, String> {
        if let Some(short) = given.iter().find(|k| k.len() < 8) {
            return Err(format!("--api-key: {} characters are too few for a key", short.len()));
        }
        let fixed = (given.iter().enumerate())
            .map(|(i, k)| Caller::new(&format!("key-{}", i + 1), digest(k), Rights::all(rate)))
            .map(Arc::new)
            .collect();
        let anyone = Arc::new(Caller::new("anyone", [0; 32], Rights::all(rate)));
        let keys = Self { fixed, file, rate, state: RwLock::default(), anyone };
        keys.reload()?;
        Ok(keys)
    }

    /// Whether a key is needed.
    pub fn needed(&self) -> bool {
        !self.fixed.is_empty() || self.file.is_some()
    }

    /// Whoever asks for what is public.
    pub fn public(&self) -> Arc<Caller> {
        self.anyone.clone()
    }

    /// Reads the file again if it has changed. What was known before stays when it is wrong.
    ///
    /// # Errors
    /// If the file can't be read or a line is wrong.
    pub fn reload(&self) -> Result<bool, String> {
        let Some(path) = &self.file else { return Ok(false) };
        let wrong = |e: std::io::Error| format!("{}: {e}", path.display());
        let meta = std::fs::metadata(path).map_err(wrong)?;
        let stamp = Some((meta.modified().unwrap_or(SystemTime::UNIX_EPOCH), meta.len()));
        if self.state.read().unwrap_or_else(PoisonError::into_inner).stamp == stamp {
            return Ok(false);
        }
        let text = std::fs::read_to_string(path).map_err(wrong)?;
        let mut keys = parse(&text, path, self.rate)?;
        let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
        for key in &mut keys {
            // An unchanged key keeps what it has used of its rate.
            let same =
                |k: &&Arc<Caller>| (k.hash, k.rights, &k.name) == (key.hash, key.rights, &key.name);
            if let Some(old) = state.keys.iter().find(same) {
                *key = old.clone();
            }
        }
        *state = State { keys, stamp };
        Ok(true)
    }

    /// Who asks.
    ///
    /// # Errors
    /// If a key is needed and there is none, or an unknown one.
    pub fn caller(&self, headers: &HeaderMap, uri: &Uri) -> Result<Arc<Caller>, Failure> {
        if !self.needed() {
            return Ok(self.anyone.clone());
        }
        let Some(presented) = presented(headers, uri) else {
            return Err(Failure::new(
                Kind::Unauthorized,
                "a key is needed: Authorization: Bearer KEY, x-api-key or x-goog-api-key",
            ));
        };
        let hash = digest(&presented);
        let state = self.state.read().unwrap_or_else(PoisonError::into_inner);
        let mut found = None;
        // All of them, so that the time does not tell which one it was.
        for key in self.fixed.iter().chain(&state.keys) {
            if bool::from(key.hash.ct_eq(&hash)) {
                found = Some(key.clone());
            }
        }
        found.ok_or_else(|| Failure::new(Kind::Unauthorized, "this key is not known here"))
    }
}

fn digest(key: &str) -> [u8; 32] {
    Sha256::digest(key).into()
}

/// The key of a request, wherever a dialect's clients put it.
fn presented(headers: &HeaderMap, uri: &Uri) -> Option<String> {
    let header = |name: &str| headers.get(name).and_then(|v| v.to_str().ok());
    let bearer = header(header::AUTHORIZATION.as_str())
        .and_then(|v| v.split_once(' '))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        .map(|(_, key)| key.trim());
    let found = bearer.or(header("x-api-key")).or(header("x-goog-api-key"));
    let query = || {
        let pairs = uri.query()?.split('&').filter_map(|p| p.split_once('='));
        pairs.into_iter().find(|(k, _)| *k == "key").map(|(_, v)| v)
    };
    found.or_else(query).filter(|k| !k.is_empty()).map(str::to_owned)
}

/// Lines of `NAME SHA256 [scopes=A,B] [rate=N] [priority=N]`.
fn parse(text: &str, path: &Path, rate: Option<u32>) -> Result<Vec<Arc<Caller>>, String> {
    let mut keys = Vec::new();
    for (i, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        if !line.is_empty() {
            let key = parse_line(line, rate)
                .map_err(|e| format!("{}, line {}: {e}", path.display(), i + 1))?;
            keys.push(Arc::new(key));
        }
    }
    Ok(keys)
}

/// Of keys.
const PRIORITIES: std::ops::RangeInclusive<i32> = -100..=100;

fn parse_line(line: &str, rate: Option<u32>) -> Result<Caller, String> {
    let mut words = line.split_whitespace();
    let (Some(name), Some(hash)) = (words.next(), words.next()) else {
        return Err("NAME and the SHA-256 of the key were expected".into());
    };
    let hash = unhex(hash).ok_or("64 hexadecimal digits (the SHA-256 of the key) were expected")?;
    let mut rights = Rights::all(rate);
    for word in words {
        match word.split_once('=') {
            Some(("scopes", list)) => {
                rights.scopes = 0;
                for name in list.split(',') {
                    let known = Scope::ALL.iter().find(|(n, _)| *n == name);
                    let names = Scope::ALL.map(|s| s.0).join(", ");
                    let known = known.ok_or(format!("{name:?} is not one of {names}"))?;
                    rights.scopes |= known.1.bit();
                }
            }
            Some(("rate", n)) => {
                let n = n.parse().ok().filter(|n| *n > 0);
                rights.rate = Some(n.ok_or("rate: requests in a minute were expected")?);
            }
            Some(("priority", n)) => {
                let n = n.parse().ok().filter(|n| PRIORITIES.contains(n));
                rights.priority = n.ok_or("priority: a number from -100 to 100 was expected")?;
            }
            _ => return Err(format!("{word:?} is neither scopes=… nor rate=… nor priority=…")),
        }
    }
    Ok(Caller::new(name, hash, rights))
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (byte, i) in out.iter_mut().zip((0..64).step_by(2)) {
        *byte = u8::from_str_radix(&text[i..i + 2], 16).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(text: &str) -> Result<Vec<Arc<Caller>>, String> {
        parse(text, Path::new("keys"), None)
    }

    /// SHA-256 of "abc" (FIPS 180-2, B.1).
    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    #[test]
    fn a_file_is_read_and_its_mistakes_are_named() {
        let read = keys(&format!("# who\nann {ABC} scopes=read,embed rate=2 # her\n\nbob {ABC}"));
        let read = read.unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(read[0].hash, digest("abc"));
        assert_eq!(read[0].priority(), 0);
        let first = keys(&format!("ann {ABC} priority=-3")).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(first[0].priority(), -3);
        assert!(read[0].may(Scope::Embed).is_ok() && read[0].may(Scope::Generate).is_err());
        assert!(read[1].may(Scope::Generate).is_ok());
        assert!(read[0].take().is_ok() && read[0].take().is_ok());
        let wait = read[0].take().map_err(|f| f.kind);
        assert!(matches!(wait, Err(Kind::RateLimited(d)) if d.as_secs() == 29), "{wait:?}");
        for (line, want) in [
            ("ann", "line 1: NAME"),
            ("ann 12", "64 hexadecimal"),
            (&format!("\nann {ABC} scopes=all"), "line 2: \"all\" is not one of generate"),
            (&format!("ann {ABC} rate=0"), "rate: requests"),
            (&format!("ann {ABC} priority=101"), "-100 to 100"),
            (&format!("ann {ABC} x"), "neither"),
        ] {
            let e = keys(line).map(|_| ()).unwrap_err();
            assert!(e.contains(want), "{e}");
        }
    }

    #[test]
    fn keys_come_in_each_dialects_way() {
        let keys = Keys::new(&["sesame-open".into()], None, None).unwrap_or_else(|e| panic!("{e}"));
        let ask = |name: &'static str, value: &str, uri: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(name, value.parse().unwrap_or_else(|e| panic!("{e}")));
            let uri = uri.parse().unwrap_or_else(|e| panic!("{e}"));
            keys.caller(&headers, &uri).is_ok()
        };
        assert!(ask("authorization", "Bearer sesame-open", "/"));
        assert!(ask("authorization", "bearer  sesame-open", "/"));
        assert!(ask("x-api-key", "sesame-open", "/"));
        assert!(ask("x-goog-api-key", "sesame-open", "/"));
        assert!(ask("x", "y", "/v1beta/models?alt=sse&key=sesame-open"));
        assert!(!ask("x-api-key", "sesame-opem", "/"));
        assert!(!ask("x", "y", "/"));
        assert!(Keys::new(&["short".into()], None, None).is_err());
    }

    #[test]
    fn a_changed_file_is_read_again_and_a_broken_one_is_not_taken() {
        let path = std::env::temp_dir().join(format!("lapidary-keys-{}", std::process::id()));
        let write = |text: &str| std::fs::write(&path, text).unwrap_or_else(|e| panic!("{e}"));
        write(&format!("ann {ABC}\n"));
        let keys = Keys::new(&[], Some(path.clone()), None).unwrap_or_else(|e| panic!("{e}"));
        let mut headers = HeaderMap::new();
        headers.insert("x-api-key", "abc".parse().unwrap_or_else(|e| panic!("{e}")));
        let known = || keys.caller(&headers, &Uri::from_static("/")).is_ok();
        assert!(known() && keys.needed());
        write("ann nonsense\n");
        assert!(keys.reload().is_err() && known());
        write("# nobody at all\n");
        assert_eq!(keys.reload(), Ok(true));
        assert!(!known() && keys.needed(), "an empty file lets nobody in");
        let _ = std::fs::remove_file(&path);
    }
}
