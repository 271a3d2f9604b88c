#!/bin/sh
# tonic 0.14.9 (crates.io) against grpcio 1.85.3 (PyPI): a client's keep-alive pings end the call that they should
# protect.
#
# A server of grpcio accepts pings without data in between only once in five minutes; it tolerates two earlier ones,
# and at the next one ends the connection, and the calls on it, with "Too many pings". A client of tonic that pings
# each second gets no warning before. So a call that is answered after 8 s on a healthy connection fails half way, and
# succeeds if the client sends no keep-alive pings.
#
# Seen: with pings each second: Unavailable "Too many pings" after 4 to 5 s; without: Ok after 8 s
set -eu
dir=$(mktemp -d)
trap 'kill "$server" 2> /dev/null || true; rm -rf "$dir"' EXIT
server=
cd "$dir"
python3 -m venv venv
venv/bin/pip install --quiet --disable-pip-version-check grpcio==1.85.3 || exit 2
cat > server.py <<'PY'
import os, time
from concurrent import futures
import grpc


def answer_late(request, context):
    time.sleep(8)
    return b""


method = grpc.unary_unary_rpc_method_handler(answer_late)
server = grpc.server(futures.ThreadPoolExecutor(4))
server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("finding.Service", {"Method": method})])
port = server.add_insecure_port("127.0.0.1:0")
server.start()
with open("port.partial", "w") as file:
    file.write(str(port))
os.rename("port.partial", "port")
server.wait_for_termination()
PY
venv/bin/python server.py &
server=$!
mkdir src
cat > Cargo.toml <<'TOML'
[package]
name = "finding"
version = "0.0.0"
edition = "2021"
[dependencies]
http = "=1.5.0"
tokio = { version = "=1.54.1", features = ["full", "test-util"] }
tonic = { version = "=0.14.9", default-features = false, features = ["transport"] }
tonic-prost = "=0.14.9"
TOML
cat > src/main.rs <<'RUST'
use std::time::{Duration, Instant};
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};

#[tokio::main]
async fn main() {
    let port = std::fs::read_to_string("port").unwrap();
    let endpoint = Endpoint::from_shared(format!("http://127.0.0.1:{port}")).unwrap();
    for pings in [true, false] {
        let second = Duration::from_secs(1);
        let endpoint = if pings { endpoint.clone().http2_keep_alive_interval(second) } else { endpoint.clone() };
        let mut client = tonic::client::Grpc::new(endpoint.connect().await.unwrap());
        client.ready().await.unwrap();
        let path = http::uri::PathAndQuery::from_static("/finding.Service/Method");
        let begun = Instant::now();
        let codec = tonic_prost::ProstCodec::<(), ()>::default();
        let outcome: Result<_, Status> = client.unary(Request::new(()), path, codec).await.map(drop);
        println!("pings each second: {pings}; after {:?}: {outcome:?}", begun.elapsed());
        match outcome {
            Ok(()) => assert!(!pings),
            Err(status) => {
                assert!(pings && status.code() == Code::Unavailable && status.message() == "Too many pings");
            }
        }
    }
}
RUST
CARGO_BUILD_JOBS=1 nice -n 15 cargo build --quiet || exit 2
while ! [ -e port ]; do kill -0 "$server"; sleep 0.1; done
cargo run --quiet || exit 1
echo "as stated"
