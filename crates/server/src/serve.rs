//! From a socket to the router and back: connections, their limits, and the end.

use crate::app::{App, Policy, Shared, router};
use crate::auth::Keys;
use crate::model::{AdapterOrigin, Machine, Origin};
use crate::registry::Registry;
use crate::timeouts::Patient;
use crate::tls;
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use std::future::Future;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

/// Everything that a server is told at its start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Where it listens.
    pub listen: SocketAddr,
    /// The models, by name.
    pub models: Vec<(String, Origin)>,
    /// Adapters of theirs.
    pub adapters: Vec<AdapterOrigin>,
    /// How they compute.
    pub machine: Machine,
    /// Bytes that loaded models may use.
    pub memory: u64,
    /// Load every model that fits now, instead of when it is asked for. A single one always is.
    pub preload: bool,
    /// What is allowed.
    pub policy: Policy,
    /// Keys.
    pub api_keys: Vec<String>,
    /// A file of keys.
    pub keys_file: Option<PathBuf>,
    /// Requests in a minute for each key.
    pub rate: Option<u32>,
    /// PEM files of a certificate chain and its key.
    pub tls: Option<(PathBuf, PathBuf)>,
    /// Connections at once.
    pub connections: usize,
    /// Time that answers get to come to their end when the server is told to stop.
    pub drain: Duration,
}

/// Bytes of the head of a request at most.
const HEAD_BYTES: usize = 64 << 10;
/// How often keys and idle models are looked at.
const LOOK: Duration = Duration::from_secs(2);

/// Why a server did not start, or how it ended.
pub type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Where the log goes: standard error, as lines for people or as JSON. A second call does nothing.
pub fn log(level: tracing::Level, json: bool) {
    let builder = tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .with_target(false);
    let set = if json { builder.json().try_init() } else { builder.with_ansi(false).try_init() };
    // An error: there is a log already.
    let _ = set;
}

impl Settings {
    /// Checks that nobody can be let in by mistake.
    ///
    /// # Errors
    /// If others could reach the server without a key.
    fn check(&self, keys: &Keys) -> Result<(), String> {
        if !self.listen.ip().is_loopback() && !keys.needed() {
            return Err(format!(
                "--listen {}: others could use the server without a key; add --api-keys-file or \
                 --api-key, or listen on 127.0.0.1",
                self.listen
            ));
        }
        if !self.listen.ip().is_loopback() && self.tls.is_none() {
            tracing::warn!(
                "keys and prompts travel unencrypted: --tls-cert and --tls-key, or a proxy"
            );
        }
        Ok(())
    }

    /// The state of the server.
    ///
    /// # Errors
    /// If a model or the keys can't be read.
    pub fn app(&self) -> Result<Shared, Box<dyn std::error::Error + Send + Sync>> {
        let keys = Keys::new(&self.api_keys, self.keys_file.clone(), self.rate)?;
        self.check(&keys)?;
        let (models, adapters) = (self.models.clone(), self.adapters.clone());
        let registry = Registry::new(models, adapters, self.machine.clone(), self.memory)?;
        Ok(App::new(registry, keys, self.policy.clone()))
    }
}

/// Serves until the process is told to stop (Ctrl-C, SIGTERM). `ready` is called with the address
/// and the memory plan, once connections are accepted.
///
/// # Errors
/// If it can't be started.
pub fn serve(settings: &Settings, ready: impl FnOnce(SocketAddr, Vec<String>)) -> Outcome {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ended = runtime.block_on(async {
        let app = settings.app()?;
        let listener = TcpListener::bind(settings.listen)
            .await
            .map_err(|e| format!("--listen {}: {e}", settings.listen))?;
        let address = listener.local_addr()?;
        if settings.preload || settings.models.len() == 1 {
            preload(&app).await?;
        }
        ready(address, app.registry.plan());
        run(app, listener, settings, told_to_stop()).await
    });
    // A model that is being loaded is not waited for.
    runtime.shutdown_background();
    ended
}

/// Loads models as long as they fit.
async fn preload(app: &Shared) -> Outcome {
    let mut left = app.registry.memory();
    for entry in app.registry.bases() {
        if let Some(rest) = left.checked_sub(entry.card.memory()) {
            left = rest;
            app.registry.get(&entry.name).await.map_err(|f| f.message)?;
        }
    }
    Ok(())
}

/// Ctrl-C or SIGTERM.
async fn told_to_stop() {
    #[cfg(unix)]
    let terminated = async {
        use tokio::signal::unix::{SignalKind, signal};
        match signal(SignalKind::terminate()) {
            Ok(mut signal) => signal.recv().await,
            Err(_) => std::future::pending().await,
        }
    };
    #[cfg(not(unix))]
    let terminated = std::future::pending::<Option<()>>();
    tokio::select! {
        // An error: there is no such signal here.
        Ok(()) = tokio::signal::ctrl_c() => {}
        _ = terminated => {}
    }
}

/// Accepts connections until `stop`, then lets answers come to their end.
///
/// # Errors
/// If TLS can't be set up.
pub async fn run(
    app: Shared,
    listener: TcpListener,
    settings: &Settings,
    stop: impl Future<Output = ()>,
) -> Outcome {
    let tls = match &settings.tls {
        Some((chain, key)) => Some(tls::acceptor(chain, key)?),
        None => None,
    };
    let housekeeping = tokio::spawn(housekeeping(app.clone()));
    let places = Arc::new(Semaphore::new(settings.connections));
    let graceful = GracefulShutdown::new();
    let router = router(app.clone());
    let mut stop = std::pin::pin!(stop);
    loop {
        let accept = async {
            // Beyond the limit new connections wait in the system's queue.
            let place = places.clone().acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            accepted = accept => accepted,
            () = &mut stop => break,
        };
        let Ok((stream, _)) = accepted else {
            // Out of file descriptors, say: give others time to close theirs.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let (router, tls, watcher) = (router.clone(), tls.clone(), graceful.watcher());
        let times = (settings.policy.head_time, settings.policy.write_time);
        tokio::spawn(async move {
            connection(stream, router, tls, watcher, times).await;
            drop(place);
        });
    }
    drop(listener);
    app.draining.store(true, Relaxed);
    tracing::info!("stopping: answers get {:?} to come to their end", settings.drain);
    tokio::select! {
        () = graceful.shutdown() => {}
        () = tokio::time::sleep(settings.drain) => tracing::warn!("answers were cut off"),
        () = told_to_stop() => tracing::warn!("told again: answers were cut off"),
    }
    housekeeping.abort();
    // Joins the engines' threads.
    let stopped = tokio::task::spawn_blocking(move || app.registry.stop()).await;
    stopped.map_err(Into::into)
}

/// `times`: for a head or a handshake, and for a write.
async fn connection(
    stream: TcpStream,
    router: Router,
    tls: Option<TlsAcceptor>,
    watcher: Watcher,
    times: (Duration, Duration),
) {
    // A token is a small packet: it must not wait for the next.
    let _ = stream.set_nodelay(true);
    match tls {
        None => http(stream, router, watcher, times).await,
        Some(tls) => match tokio::time::timeout(times.0, tls.accept(stream)).await {
            Ok(Ok(stream)) => http(stream, router, watcher, times).await,
            Ok(Err(e)) => tracing::debug!("TLS: {e}"),
            Err(_) => tracing::debug!("TLS: the handshake took too long"),
        },
    }
}

async fn http(
    stream: impl AsyncRead + AsyncWrite + Unpin + 'static,
    router: Router,
    watcher: Watcher,
    (head, write): (Duration, Duration),
) {
    let io = TokioIo::new(Patient::new(stream, write));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(head)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(io, TowerToHyperService::new(router));
    if let Err(e) = watcher.watch(connection).await {
        tracing::debug!("connection: {e}");
    }
}

/// Looks at the file of keys and at idle models.
async fn housekeeping(app: Shared) {
    let mut last = Ok(false);
    loop {
        tokio::time::sleep(LOOK).await;
        let state = app.clone();
        let looked = tokio::task::spawn_blocking(move || {
            state.registry.unload_idle();
            state.keys.reload()
        });
        let Ok(now) = looked.await else { return };
        match &now {
            Ok(true) => tracing::info!("the keys were read again"),
            Err(e) if last.as_ref().err() != Some(e) => {
                tracing::error!("the keys stay as they were: {e}");
            }
            _ => {}
        }
        last = now;
    }
}
