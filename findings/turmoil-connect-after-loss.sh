#!/bin/sh
# turmoil 0.7.2 (crates.io): a crashed host never answers a connect, and a cut link refuses it: the reverse of TCP.
#
# When a process is killed, its machine ends its streams and refuses new connections at once. When a network is cut,
# streams and connects get no answer until they time out. After `Sim::crash`, streams end at once, but a connect waits
# forever; after `Sim::partition`, streams are silent, but a connect is refused at once. A test of a client with both
# covers neither a killed process nor a cut network.
#
# Seen: crash:     read Ok(0) at once; connect no answer in 60 simulated seconds
#       partition: read no answer in 60 simulated seconds; connect ConnectionRefused within 1 ms
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
tokio = { version = "=1.54.1", features = ["full", "test-util"] }
turmoil = "=0.7.2"
TOML
cat > src/main.rs <<'RUST'
use std::time::Duration;
use tokio::io::AsyncReadExt;
use turmoil::net::{TcpListener, TcpStream};

/// What a client sees: of a stream that it has, and of a connect a second later.
fn loss(lose: impl Fn(&mut turmoil::Sim)) -> (String, String) {
    let mut sim = turmoil::Builder::new().simulation_duration(Duration::from_secs(300)).build();
    sim.host("server", || async {
        let listener = TcpListener::bind("0.0.0.0:80").await?;
        let mut streams = vec![];
        loop {
            streams.push(listener.accept().await?);
        }
    });
    let (tell, told) = std::sync::mpsc::channel();
    sim.client("client", async move {
        let mut stream = TcpStream::connect("server:80").await?;
        let minute = Duration::from_secs(60);
        let read = tokio::time::timeout(minute, stream.read(&mut [0])).await;
        tell.send(format!("{:?}", read.map(|read| read.map_err(|error| error.kind()))))?;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let begun = tokio::time::Instant::now();
        let connect = tokio::time::timeout(minute, TcpStream::connect("server:80")).await;
        assert!(connect.is_err() || begun.elapsed() <= Duration::from_millis(1));
        tell.send(format!("{:?}", connect.map(|made| made.map(drop).map_err(|error| error.kind()))))?;
        Ok(())
    });
    while sim.elapsed() < Duration::from_secs(1) {
        sim.step().unwrap();
    }
    lose(&mut sim);
    sim.run().unwrap();
    (told.recv().unwrap(), told.recv().unwrap())
}

fn main() {
    let crashed = loss(|sim| sim.crash("server"));
    let cut = loss(|sim| sim.partition("client", "server"));
    println!("crash:     read {}, connect {}", crashed.0, crashed.1);
    println!("partition: read {}, connect {}", cut.0, cut.1);
    assert_eq!((&crashed.0[..], &crashed.1[..]), ("Ok(Ok(0))", "Err(Elapsed(()))"));
    assert_eq!((&cut.0[..], &cut.1[..]), ("Err(Elapsed(()))", "Ok(Err(ConnectionRefused))"));
}
RUST
CARGO_BUILD_JOBS=1 nice -n 15 cargo build --quiet || exit 2
cargo run --quiet || exit 1
echo "as stated"
