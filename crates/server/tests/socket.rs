//! A server on a loopback port: clients that leave, and the end.

mod common;

use common::{MODEL, app, machine, model_file, no_keys, policy};
use lapidary_server::app::Shared;
use lapidary_server::model::Origin;
use lapidary_server::serve::{Settings, run};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

struct Served {
    app: Shared,
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

async fn serve(connections: usize) -> Served {
    let settings = Settings {
        listen: ([127, 0, 0, 1], 0).into(),
        models: vec![(MODEL.to_owned(), Origin::Path(model_file()))],
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

async fn send(address: SocketAddr, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + body).as_bytes()).await.unwrap();
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
        let before = model.engine.stats();
        let client = send(served.address, &body(480, stream)).await;
        for wait in 0.. {
            if model.engine.stats().decode_tokens > before.decode_tokens + 3 {
                break;
            }
            assert!(wait < 1000, "it never began");
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        drop(client);
        for wait in 0.. {
            let now = model.engine.stats();
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
