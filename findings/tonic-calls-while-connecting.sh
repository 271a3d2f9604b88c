#!/bin/sh
# tonic 0.14.9 with hyper 1.12.0 and h2 0.4.20 (crates.io): calls that are made while a lazy channel connects are refused.
#
# The first SETTINGS frame of a server has its limit of concurrent streams. h2 sends the first calls before that frame
# has arrived, as HTTP/2 allows, up to 100 of them; a server with a lower limit resets the excess ones with
# REFUSED_STREAM. That reset promises that the call was not processed, but neither h2 nor hyper nor tonic sends it
# again: the caller gets `Unavailable`. On a connection that has carried one call, the same calls wait for a free
# stream and all succeed.
#
# Seen: 50 calls at once on a server that takes 10: on a new lazy channel 10 succeed and 40 are Unavailable (h2 protocol
#       error: REFUSED_STREAM); after one call, 50 of 50 succeed
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
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut server = h2::server::Builder::new();
                let mut calls = server.max_concurrent_streams(10).handshake(stream).await.unwrap();
                while let Some(Ok((_, respond))) = calls.accept().await {
                    tokio::spawn(async move {
                        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                        answer(respond);
                    });
                }
            });
        }
    });
    for warm in [false, true] {
        let channel = Endpoint::from_shared(address.clone()).unwrap().connect_lazy();
        if warm {
            call(channel.clone()).await.unwrap();
        }
        let calls: Vec<_> = (0..50).map(|_| tokio::spawn(call(channel.clone()))).collect();
        let mut refused = vec![];
        for call in calls {
            refused.extend(call.await.unwrap().err());
        }
        println!("after a first call: {warm}; refused: {} of 50; {:?}", refused.len(), refused.first());
        assert_eq!(refused.len(), if warm { 0 } else { 40 });
        assert!(refused.iter().all(|status| status.code() == Code::Unavailable));
        assert!(refused.iter().all(|status| format!("{status:?}").contains("REFUSED_STREAM")));
    }
}
RUST
CARGO_BUILD_JOBS=1 nice -n 15 cargo build --quiet || exit 2
cargo run --quiet || exit 1
echo "as stated"
