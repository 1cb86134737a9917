//! A server on a loopback port: clients that leave, and the end.

mod common;

use common::{MODEL, app, machine, model_file, no_keys, policy};
use lapidary_server::app::Shared;
use lapidary_server::model::Origin;
use lapidary_server::serve::{Settings, run};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{
    ClientConfig, ProtocolVersion, RootCertStore, SupportedProtocolVersion,
};

struct Served {
    app: Shared,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

async fn serve(connections: usize) -> Served {
    serve_with(connections, |_| {}).await
}

async fn serve_with(connections: usize, change: impl FnOnce(&mut Settings)) -> Served {
    let mut settings = Settings {
        listen: ([127, 0, 0, 1], 0).into(),
        models: vec![(MODEL.to_owned(), Origin::path(model_file()))],
        adapters: Vec::new(),
        machine: machine(),
        memory: 1 << 30,
        preload: false,
        policy: policy(),
        api_keys: vec![],
        keys_file: None,
        rate: None,
        tls: None,
        connections,
        drain: Duration::from_secs(20),
    };
    change(&mut settings);
    let listener = TcpListener::bind(settings.listen).await.unwrap();
    let address = listener.local_addr().unwrap();
    let app = app(policy(), no_keys());
    let (stop, stopped) = oneshot::channel::<()>();
    let state = app.clone();
    let ended = tokio::spawn(async move {
        let stopped = async { drop(stopped.await) };
        run(state, listener, &settings, stopped).await.unwrap();
    });
    Served { app, address, stop, ended }
}

fn request(body: &str) -> String {
    let length = body.len();
    format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

async fn send(address: SocketAddr, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(request(body).as_bytes()).await.unwrap();
    stream
}

fn body(tokens: usize, stream: bool) -> String {
    format!(
        r#"{{"model": "tiny", "prompt": "Once", "max_tokens": {tokens}, "stream": {stream}, "temperature": 1.5, "logit_bias": {{"1": -100}}}}"#
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_come_to_their_end_when_the_server_is_stopped() {
    let served = serve(8).await;
    let mut answering = send(served.address, &body(120, true)).await;
    let mut first = [0; 16];
    answering.read_exact(&mut first).await.unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK\r");
    served.stop.send(()).unwrap();
    let mut rest = String::new();
    answering.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("data: [DONE]"), "{rest}");
    served.ended.await.unwrap();
    assert!(TcpStream::connect(served.address).await.is_err(), "nobody listens any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_closed_connection_cancels_its_request() {
    let served = serve(8).await;
    let model = served.app.registry.get(MODEL).await.unwrap();
    for stream in [true, false] {
        let before = model.engine().unwrap().stats();
        let client = send(served.address, &body(480, stream)).await;
        for wait in 0.. {
            if model.engine().unwrap().stats().decode_tokens > before.decode_tokens + 3 {
                break;
            }
            assert!(wait < 1000, "it never began");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        drop(client);
        for wait in 0.. {
            let now = model.engine().unwrap().stats();
            if now.finished > before.finished {
                assert_eq!(now.cancelled, before.cancelled + 1, "stream: {stream}");
                break;
            }
            assert!(wait < 1000, "{now:?}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_beyond_the_limit_wait_their_turn() {
    let served = serve(1).await;
    let held = TcpStream::connect(served.address).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let mut waiting = send(served.address, &body(2, false)).await;
    let mut text = String::new();
    let early = tokio::time::timeout(Duration::from_millis(150), waiting.read_to_string(&mut text));
    assert!(early.await.is_err(), "{text}");
    drop(held);
    waiting.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

#[tokio::test]
async fn what_is_no_http_is_refused() {
    let served = serve(8).await;
    for bytes in [
        &b"\x16\x03\x01 hello\r\n\r\n"[..],
        b"GET / HTTP/1.1\r\nx: \0\r\n\r\n",
        b"\r\n\r\nBOO\r\n\r\n",
    ] {
        let mut stream = TcpStream::connect(served.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut text = Vec::new();
        stream.read_to_end(&mut text).await.unwrap();
        let text = String::from_utf8_lossy(&text);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 400"), "{text}");
    }
}

/// Reads until the server closes; how long it took.
async fn until_closed(stream: &mut TcpStream) -> Duration {
    let start = std::time::Instant::now();
    let mut bytes = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut bytes)).await;
    // An error inside: the connection was cut.
    assert!(read.is_ok(), "the server keeps a client that says nothing");
    start.elapsed()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_slow_is_given_up() {
    let served = serve_with(8, |s| s.policy.head_time = Duration::from_millis(300)).await;
    // Nothing; then half a head, and a byte now and then.
    let mut silent = TcpStream::connect(served.address).await.unwrap();
    let took = until_closed(&mut silent).await;
    assert!(took >= Duration::from_millis(250), "{took:?}");
    let mut drip = TcpStream::connect(served.address).await.unwrap();
    drip.write_all(b"GET /health/live HTTP/1.1\r\nhost: localhost\r\nx-slow: ").await.unwrap();
    let mut written = 0;
    while drip.write_all(b"a").await.is_ok() {
        written += 1;
        assert!(written < 400, "a head may take for ever");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // The others are served.
    let mut text = String::new();
    send(served.address, &body(2, false)).await.read_to_string(&mut text).await.unwrap();
    assert!(text.starts_with("HTTP/1.1 200"), "{text}");
}

fn data(name: &str) -> PathBuf {
    format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR")).into()
}

/// A client's connection that speaks one version and trusts the certificates of `roots`.
async fn tls_client(
    address: SocketAddr,
    version: &'static SupportedProtocolVersion,
    roots: RootCertStore,
) -> std::io::Result<TlsStream<TcpStream>> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_protocol_versions(&[version])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tls_1_2_and_1_3_are_spoken_and_nothing_else() {
    let served = serve_with(8, |s| {
        s.tls = Some((data("cert.pem"), data("key.pem")));
        s.policy.head_time = Duration::from_secs(2);
    })
    .await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(data("cert.pem")).unwrap()).unwrap();
    for (tls, name) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        let mut stream = tls_client(served.address, tls, roots.clone()).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(name));
        stream.write_all(request(&body(2, false)).as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
    }
    let stranger = tls_client(served.address, &TLS13, RootCertStore::empty()).await;
    assert!(stranger.is_err(), "a client that does not know the certificate turns away");
    // Plain HTTP gets no answer, and who says nothing is given up.
    let mut bytes = Vec::new();
    let mut plain = send(served.address, &body(2, false)).await;
    let _ = plain.read_to_end(&mut bytes).await;
    assert!(!bytes.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&bytes));
    until_closed(&mut TcpStream::connect(served.address).await.unwrap()).await;
}
