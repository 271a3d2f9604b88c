#!/bin/sh
# tonic 0.14.9 with hyper 1.12.0 and h2 0.4.20 (crates.io): a call that races with a GOAWAY is `Cancelled`, and was
# never sent.
#
# A server ends an idle connection with GOAWAY (no error). A call that is made after the server has sent that frame
# and before the client's connection has read it goes to the connection, which closes without sending it. The caller
# gets `Cancelled`, the code of a call that the caller has cancelled, and not `Unavailable`, which retry policies
# expect; only the source of the error, a `hyper::Error` for which `is_canceled` is true, shows that the call was
# never sent. The next call connects again and succeeds.
#
# Seen: 5 of 5 times: Cancelled, "operation was canceled", source "connection closed"; 0 calls reached the server
set -eu
dir=$(mktemp -d)
trap 'rm -rf "$dir"' EXIT
cd "$dir"
mkdir src
cat > Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
bytes = "=1.12.2"
h2 = "=0.4.20"
http = "=1.5.0"
hyper = "=1.12.0"
tokio = { version = "=1.54.1", features = ["full", "test-util"] }
tonic = { version = "=0.14.9", default-features = false, features = ["transport"] }
tonic-prost = "=0.14.9"
TOML
cat > src/main.rs <<'RUST'
use bytes::Bytes;
use h2::server::SendResponse;
use tokio::net::TcpListener;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

/// Calls a method that takes and returns an empty message.
async fn call(channel: Channel) -> Result<(), Status> {
    let mut client = tonic::client::Grpc::new(channel);
    client.ready().await.unwrap();
    let path = http::uri::PathAndQuery::from_static("/finding.Service/Method");
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    client.unary(Request::new(()), path, codec).await.map(drop)
}

/// An empty message, and the status OK.
fn answer(mut respond: SendResponse<Bytes>) {
    let head = http::Response::builder().header("content-type", "application/grpc").body(()).unwrap();
    let mut body = respond.send_response(head, false).unwrap();
    body.send_data(Bytes::from_static(&[0; 5]), false).unwrap();
    let trailers = [("grpc-status".parse().unwrap(), "0".parse().unwrap())];
    body.send_trailers(trailers.into_iter().collect()).unwrap();
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let (end, mut ends) = tokio::sync::mpsc::channel::<tokio::sync::oneshot::Sender<usize>>(1);
    tokio::spawn(async move {
        let mut served = 0;
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let mut calls = h2::server::handshake(stream).await.unwrap();
            loop {
                tokio::select! {
                    accepted = calls.accept() => match accepted {
                        Some(accepted) => (served += 1, answer(accepted.unwrap().1)).1,
                        None => break,
                    },
                    ended = ends.recv() => {
                        calls.abrupt_shutdown(h2::Reason::NO_ERROR);
                        // One poll writes the frame to the socket.
                        std::future::poll_fn(|cx| std::task::Poll::Ready(drop(calls.poll_closed(cx)))).await;
                        ended.unwrap().send(served).unwrap();
                    }
                }
            }
        }
    });
    let channel = Endpoint::from_shared(address).unwrap().connect_lazy();
    for round in 1..=5 {
        call(channel.clone()).await.unwrap();
        let (ended, has_ended) = tokio::sync::oneshot::channel();
        end.send(ended).await.unwrap();
        assert_eq!(has_ended.await.unwrap(), round, "calls that the server has seen");
        // In this task and at once: the client's connection has not read the frame yet.
        let status = call(channel.clone()).await.unwrap_err();
        let transport = std::error::Error::source(&status).unwrap();
        let cause = transport.source().unwrap().downcast_ref::<hyper::Error>().unwrap();
        println!("{:?}: {}; {cause:?}", status.code(), status.message());
        assert!(status.code() == Code::Cancelled && cause.is_canceled());
    }
}
RUST
CARGO_BUILD_JOBS=1 nice -n 15 cargo build --quiet || exit 2
cargo run --quiet || exit 1
echo "as stated"
