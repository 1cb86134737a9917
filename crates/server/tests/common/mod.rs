//! A server on the default model, called without a socket.
#![allow(dead_code)]

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request};
use lapidary_ops::{Isa, KvType, Precision};
use lapidary_server::app::{App, Policy, Shared, router};
use lapidary_server::auth::Keys;
use lapidary_server::model::{Machine, Origin};
use lapidary_server::registry::Registry;
use serde_json::Value;
use std::path::PathBuf;
use tower::ServiceExt;

pub const MODEL: &str = "tiny";

pub fn model_file() -> PathBuf {
    format!("{}/../../models/default-Q8_0.gguf", env!("CARGO_MANIFEST_DIR")).into()
}

pub fn machine() -> Machine {
    Machine {
        isa: Isa::detect(),
        threads: 1,
        precision: Precision::Fast,
        kv: KvType::F16,
        context: Some(512),
        chunk: 64,
        max_sequences: 32,
        max_queue: 256,
        think: None,
        idle: None,
    }
}

/// A folder that is gone at the end.
pub struct Folder(pub PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("lapidary-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

pub fn policy() -> Policy {
    Policy { hosts: Vec::new(), ..Policy::default() }
}

pub fn app(policy: Policy, keys: Keys) -> Shared {
    app_on(machine(), policy, keys)
}

pub fn app_on(machine: Machine, policy: Policy, keys: Keys) -> Shared {
    let models = vec![(MODEL.to_owned(), Origin::path(model_file()))];
    let registry =
        Registry::new(models, Vec::new(), machine, 1 << 30).unwrap_or_else(|e| panic!("{e}"));
    App::new(registry, keys, policy)
}

pub fn no_keys() -> Keys {
    Keys::new(&[], None, None).unwrap()
}

pub fn server() -> Router {
    router(app(policy(), no_keys()))
}

/// A response, read to its end.
#[derive(Debug)]
pub struct Got {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
}

impl Got {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|e| panic!("{e}: {}", self.text))
    }

    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |v| v.to_str().unwrap())
    }

    /// The data of server-sent events that are JSON.
    pub fn events(&self) -> Vec<Value> {
        let data = self.text.lines().filter_map(|l| l.strip_prefix("data: "));
        data.filter(|d| *d != "[DONE]").map(|d| serde_json::from_str(d).unwrap()).collect()
    }

    pub fn lines(&self) -> Vec<Value> {
        self.text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
    }
}

pub async fn send(router: &Router, request: Request<Body>) -> Got {
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let bytes = axum::body::to_bytes(body, usize::MAX).await.unwrap();
    let text = String::from_utf8(bytes.to_vec()).unwrap();
    Got { status: parts.status.as_u16(), headers: parts.headers, text }
}

pub async fn post(router: &Router, path: &str, body: impl Into<Body>) -> Got {
    send(router, Request::post(path).body(body.into()).unwrap()).await
}

pub async fn ask(router: &Router, path: &str, body: Value) -> Got {
    post(router, path, body.to_string()).await
}

pub async fn get(router: &Router, path: &str) -> Got {
    send(router, Request::get(path).body(Body::empty()).unwrap()).await
}

/// Asks, and wants a good answer.
pub async fn good(router: &Router, path: &str, body: Value) -> Value {
    let got = ask(router, path, body).await;
    assert_eq!(got.status, 200, "{path}: {}", got.text);
    got.json()
}
