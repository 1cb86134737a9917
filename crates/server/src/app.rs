//! The state of a server, its routes, and what every request passes on its way in and out.

use crate::answer::{self, Answers, Terms};
use crate::auth::{Caller, Keys, Scope};
use crate::failure::{Failure, Kind, Reply};
use crate::fields::Reading;
use crate::job::Job;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::openai::store::Store;
use crate::registry::Registry;
use crate::{anthropic, gemini, ollama, openai, own, page};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode, Uri, header};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// What a server allows.
#[derive(Debug, Clone)]
pub struct Policy {
    /// Ignore unsupported fields, with a warning header, instead of refusing the request.
    pub lenient: bool,
    /// Bytes of a body at most.
    pub body: usize,
    /// Time that a body may take to arrive.
    pub body_time: Duration,
    /// Time for the head of a request, and for a TLS handshake.
    pub head_time: Duration,
    /// Time that a client may leave what it is sent unread.
    pub write_time: Duration,
    /// Time that an answer may take.
    pub timeout: Duration,
    /// Pages that may ask, besides those of the server itself (`https://example.org`); `*`: all.
    pub origins: Vec<String>,
    /// Names under which the server may be asked. Empty: any. Guards a server on loopback against
    /// pages whose name is made to point here.
    pub hosts: Vec<String>,
    /// Write the bodies of requests to the log.
    pub log_prompts: bool,
}

impl Default for Policy {
    /// For a server on loopback.
    fn default() -> Self {
        Self {
            lenient: false,
            body: 16 << 20,
            body_time: Duration::from_secs(30),
            head_time: Duration::from_secs(30),
            write_time: Duration::from_secs(60),
            timeout: Duration::from_secs(600),
            origins: Vec::new(),
            hosts: ["localhost", "127.0.0.1", "[::1]"].map(str::to_owned).to_vec(),
            log_prompts: false,
        }
    }
}

/// A server's state.
pub struct App {
    /// The models.
    pub registry: Registry,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// Who may ask.
    pub keys: Keys,
    /// What is allowed.
    pub policy: Policy,
    /// Stored responses.
    pub store: Store,
    /// The server is shutting down.
    pub draining: AtomicBool,
    /// When it began.
    pub started: Instant,
    requests: AtomicU64,
    /// Room for bodies, in KiB.
    bodies: Arc<Semaphore>,
}

/// Bodies that are in memory at once, in KiB. Others wait to be read.
const HELD_KIB: usize = 256 << 10;

/// What handlers get.
pub type Shared = Arc<App>;

/// The dialect that a path belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// OpenAI's.
    OpenAi,
    /// Anthropic's.
    Anthropic,
    /// Google's.
    Gemini,
    /// Ollama's.
    Ollama,
    /// Ours.
    Own,
}

impl Dialect {
    fn of(path: &str, headers: &HeaderMap) -> Self {
        let under = |prefix: &str| {
            path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        let google =
            ["x-goog-api-client", "x-goog-api-key"].iter().any(|h| headers.contains_key(*h));
        // Google's methods stand behind a colon: `/v1/models/NAME:generateContent`.
        if under("/v1/models") && (google || path.contains(':')) {
            return Dialect::Gemini;
        }
        if under("/v1/messages") || under("/v1") && headers.contains_key("anthropic-version") {
            Dialect::Anthropic
        } else if under("/v1") {
            Dialect::OpenAi
        } else if under("/v1beta") {
            Dialect::Gemini
        } else if under("/api") {
            Dialect::Ollama
        } else {
            Dialect::Own
        }
    }

    fn name(self) -> &'static str {
        match self {
            Dialect::OpenAi => "openai",
            Dialect::Anthropic => "anthropic",
            Dialect::Gemini => "gemini",
            Dialect::Ollama => "ollama",
            Dialect::Own => "own",
        }
    }

    /// A failure in the dialect's words.
    fn refuse(self, failure: &Failure) -> Response {
        let (status, body) = match self {
            Dialect::OpenAi => (failure.status(), text(&openai::ErrorBody::new(failure))),
            Dialect::Anthropic => {
                (anthropic::status(failure), text(&anthropic::ErrorBody::new(failure)))
            }
            Dialect::Gemini => (failure.status(), text(&gemini::ErrorBody::new(failure))),
            Dialect::Ollama => (failure.status(), text(&ollama::ErrorBody::new(failure))),
            Dialect::Own => (failure.status(), text(&own::ErrorBody::new(failure))),
        };
        let mut response = Response::new(body.into());
        *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::IM_A_TEAPOT);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, crate::stream::JSON);
        match failure.kind {
            Kind::RateLimited(wait) => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from(wait.as_secs() + 1));
            }
            Kind::Busy => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            Kind::Unauthorized => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            _ => {}
        }
        response
    }
}

/// JSON of our own types; they have no maps with odd keys that could fail.
fn text(value: &impl Serialize) -> String {
    serde_json::to_string(value).unwrap_or_else(|e| format!("{{\"error\":\"{e}\"}}"))
}

/// A JSON response.
pub fn json(value: &impl Serialize) -> Response {
    ([(header::CONTENT_TYPE, crate::stream::JSON)], text(value)).into_response()
}

/// The body of a request, complete and within its limits.
pub struct Whole(pub Bytes);

impl FromRequest<Shared> for Whole {
    type Rejection = Failure;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, Failure> {
        let (limit, time) = (app.policy.body, app.policy.body_time);
        let too_large = || {
            let message = format!("the body has more than the {limit} bytes allowed (--max-body)");
            Failure::new(Kind::BodyTooLarge, message)
        };
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|n| n > limit as u64) {
            return Err(too_large());
        }
        let places = length.map_or(limit, |n| n as usize).div_ceil(1024).max(1);
        let held = app.bodies.clone().acquire_many_owned(places.min(HELD_KIB) as u32);
        let slow = |_| Failure::new(Kind::SlowBody, format!("the body took longer than {time:?}"));
        let read = async { (held.await, axum::body::to_bytes(request.into_body(), limit).await) };
        let (held, read) = tokio::time::timeout(time, read).await.map_err(slow)?;
        match read {
            Ok(bytes) => {
                if app.policy.log_prompts {
                    tracing::info!(body = %String::from_utf8_lossy(&bytes), "request body");
                }
                // The place is free again when the last part of the body is dropped.
                Ok(Self(Bytes::from_owner(Held { bytes, _place: held.ok() })))
            }
            Err(e) if is_limit(&e) => Err(too_large()),
            Err(e) => Err(Failure::invalid(format!("the body broke off: {e}"))),
        }
    }
}

/// A body with its place among those that are in memory.
struct Held {
    bytes: Bytes,
    _place: Option<OwnedSemaphorePermit>,
}

impl AsRef<[u8]> for Held {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn is_limit(error: &axum::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(e) = cause {
        if e.to_string().contains("length limit exceeded") {
            return true;
        }
        cause = e.source();
    }
    false
}

impl App {
    /// A server's state.
    pub fn new(registry: Registry, keys: Keys, policy: Policy) -> Shared {
        Arc::new(Self {
            registry,
            metrics: Arc::default(),
            keys,
            policy,
            store: Store::default(),
            draining: AtomicBool::new(false),
            started: Instant::now(),
            requests: AtomicU64::new(0),
            bodies: Arc::new(Semaphore::new(HELD_KIB)),
        })
    }

    /// How bodies are read.
    pub fn reading(&self) -> Reading {
        Reading { lenient: self.policy.lenient, either_case: false }
    }

    /// A name for an answer that no other answer has.
    pub fn fresh_id(&self, prefix: &str) -> String {
        use std::hash::{BuildHasher, Hasher};
        // Keyed by the system's random numbers.
        let state = std::hash::RandomState::new();
        let half = |n: u64| {
            let mut hasher = state.build_hasher();
            hasher.write_u64(n);
            hasher.finish()
        };
        format!("{prefix}{:016x}{:08x}", half(crate::clock::nanoseconds()), half(1) as u32)
    }

    /// The terms of a caller's request.
    pub fn terms(&self, caller: &Caller) -> Terms {
        Terms {
            client: caller.client,
            priority: caller.priority(),
            deadline: Instant::now() + self.policy.timeout,
        }
    }

    /// Starts jobs.
    ///
    /// # Errors
    /// If they are refused.
    pub async fn answers(
        &self,
        model: &Arc<Model>,
        jobs: Vec<Job>,
        caller: &Caller,
    ) -> Result<Answers, Failure> {
        answer::start(model, &self.metrics, jobs, self.terms(caller)).await
    }

    fn check_origin(&self, headers: &HeaderMap) -> Result<Option<HeaderValue>, Failure> {
        let host = headers.get(header::HOST).and_then(|h| h.to_str().ok()).unwrap_or_default();
        let hosts = &self.policy.hosts;
        if !hosts.is_empty() && !hosts.iter().any(|h| without_port(host).eq_ignore_ascii_case(h)) {
            let message = format!("the server is not called {host:?} (--allow-host adds a name)");
            return Err(Failure::new(Kind::Forbidden, message));
        }
        let Some(origin) = headers.get(header::ORIGIN) else { return Ok(None) };
        let name = origin.to_str().unwrap_or_default();
        let own = name.split_once("://").is_some_and(|(_, h)| h.eq_ignore_ascii_case(host));
        let listed = |o: &String| o == "*" || o.eq_ignore_ascii_case(name);
        if own || self.policy.origins.iter().any(listed) {
            return Ok(Some(origin.clone()));
        }
        let message = format!("pages of {name:?} may not ask (--allow-origin lets them)");
        Err(Failure::new(Kind::Forbidden, message))
    }
}

fn without_port(host: &str) -> &str {
    match host.rfind(':') {
        Some(colon) if !host.ends_with(']') => &host[..colon],
        _ => host,
    }
}

/// What a path needs; `None`: nothing, it is public.
fn scope(path: &str) -> Option<Scope> {
    let last = path.rsplit(['/', ':']).next().unwrap_or_default();
    let api = ["/v1/", "/v1beta/", "/api/"].iter().any(|p| path.starts_with(p));
    match last {
        "metrics" if path == "/metrics" => Some(Scope::Metrics),
        "tokenize" | "detokenize" if !api => Some(Scope::Read),
        _ if !api => None,
        "embeddings" | "embed" | "embedContent" | "batchEmbedContents" => Some(Scope::Embed),
        "completions"
        | "messages"
        | "chat"
        | "generate"
        | "generateContent"
        | "streamGenerateContent" => Some(Scope::Generate),
        _ if path.starts_with("/v1/responses") => Some(Scope::Generate),
        _ => Some(Scope::Read),
    }
}

/// All routes. [`crate::serve`] puts them on a socket; tests call them as they are.
pub fn router(app: Shared) -> Router {
    Router::new()
        .merge(openai::routes())
        .merge(anthropic::routes())
        .merge(gemini::routes())
        .merge(ollama::routes())
        .merge(own::routes())
        .merge(page::routes())
        .fallback(async |method: Method, uri: Uri| -> Reply {
            let message = format!("nothing answers {method} {}", uri.path());
            Err(Failure::new(Kind::NotFound, message))
        })
        .method_not_allowed_fallback(async |method: Method, uri: Uri| -> Reply {
            let message = format!("{} does not answer {method}", uri.path());
            Err(Failure::new(Kind::Method, message))
        })
        .layer(from_fn_with_state(app.clone(), edge))
        .with_state(app)
}

/// What every request passes: host, origin, key, rate; and on the way out the dialect's words for
/// failures, headers, counters and a line in the log.
async fn edge(State(app): State<Shared>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let number = app.requests.fetch_add(1, Relaxed);
    let dialect = Dialect::of(request.uri().path(), request.headers());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let origin = app.check_origin(request.headers());
    app.metrics.active.fetch_add(1, Relaxed);
    let active = Active(app.clone());
    let mut who = String::new();
    let mut response = match (&origin, &method) {
        (Err(failure), _) => failure.clone().into_response(),
        (Ok(Some(_)), &Method::OPTIONS) => preflight(request.headers()),
        (Ok(_), _) => match admit(&app, &request) {
            Ok(caller) => {
                who = caller.name.clone();
                request.extensions_mut().insert(caller);
                next.run(request).await
            }
            Err(failure) => {
                app.metrics.refused.fetch_add(1, Relaxed);
                failure.into_response()
            }
        },
    };
    let failure = response.extensions_mut().remove::<Failure>();
    if let Some(failure) = &failure {
        response = dialect.refuse(failure);
    }
    drop(active);
    let status = response.status().as_u16();
    app.metrics.request(dialect.name(), status, start.elapsed());
    let seconds = start.elapsed().as_secs_f64();
    // No text of the request: messages of failures may quote field names, never contents.
    let problem = failure.as_ref().and_then(|f| f.field.as_deref()).unwrap_or_default();
    tracing::info!(request = number, %method, path = shown(&path), status, seconds, key = who, problem);
    headers(&mut response, origin.ok().flatten(), number, dialect);
    response
}

/// A path for the log: of what people send, only what can be a path of ours.
fn shown(path: &str) -> String {
    path.chars().take(120).filter(|c| c.is_ascii_graphic()).collect()
}

struct Active(Shared);

impl Drop for Active {
    fn drop(&mut self) {
        self.0.metrics.active.fetch_sub(1, Relaxed);
    }
}

/// Whether the request may be handled, and for whom.
fn admit(app: &App, request: &Request) -> Result<Arc<Caller>, Failure> {
    let Some(scope) = scope(request.uri().path()) else {
        return Ok(app.keys.public());
    };
    let caller = app.keys.caller(request.headers(), request.uri())?;
    caller.may(scope)?;
    if request.method() == Method::POST {
        if app.draining.load(Relaxed) {
            return Err(Failure::new(Kind::Busy, "the server is shutting down"));
        }
        caller.take()?;
    }
    Ok(caller)
}

/// The answer to a browser that asks whether it may ask.
fn preflight(asked: &HeaderMap) -> Response {
    let mut response = StatusCode::NO_CONTENT.into_response();
    let headers = response.headers_mut();
    let methods = HeaderValue::from_static("GET, POST, DELETE, HEAD");
    headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
    if let Some(wanted) = asked.get(header::ACCESS_CONTROL_REQUEST_HEADERS) {
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    headers.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    response
}

fn headers(response: &mut Response, origin: Option<HeaderValue>, number: u64, dialect: Dialect) {
    let headers = response.headers_mut();
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(origin) = origin {
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        let exposed = "x-request-id, x-lapidary-fingerprint, x-lapidary-seed, x-lapidary-ignored";
        let exposed = HeaderValue::from_static(exposed);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        headers.append(header::VARY, HeaderValue::from_static("origin"));
    }
    let id = HeaderValue::from_str(&format!("req_{number:012x}"));
    let id = id.unwrap_or_else(|_| HeaderValue::from_static("req"));
    // Anthropic's clients look for theirs.
    if dialect == Dialect::Anthropic {
        headers.insert(HeaderName::from_static("request-id"), id.clone());
    }
    headers.insert(HeaderName::from_static("x-request-id"), id);
}

/// Adds what every answer of a model carries: its fingerprint, the seed, and what was ignored.
pub fn signed(
    mut response: Response,
    model: &Model,
    seed: Option<u64>,
    ignored: &[String],
) -> Response {
    let headers = response.headers_mut();
    let mut add = |name: &'static str, value: &str| {
        // Field names come from requests: only what a header can hold.
        let value: String = value.chars().filter(|c| (' '..='~').contains(c)).take(1000).collect();
        if let Ok(value) = HeaderValue::from_str(&value) {
            headers.insert(HeaderName::from_static(name), value);
        }
    };
    add("x-lapidary-fingerprint", &model.fingerprint);
    if let Some(seed) = seed {
        add("x-lapidary-seed", &seed.to_string());
    }
    if !ignored.is_empty() {
        add("x-lapidary-ignored", &ignored.join(", "));
    }
    response
}
