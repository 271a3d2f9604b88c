#!/bin/sh
# turmoil 0.7.2 (crates.io): a TCP stream that was hit by a partition once stays silent forever, and each write
# succeeds.
#
# TCP retransmits lost data: a stream survives a short cut of the network. After `Sim::partition` and `Sim::repair`, a
# stream over which bytes were written meanwhile never delivers any more bytes, including those written after the
# repair: the receiver waits for the bytes that were dropped. The writer gets no error. A stream without writes
# meanwhile continues, and so does one that was cut with `hold` and `release`, which keeps the bytes.
#
# Seen, one byte written each second, cut from 0.5 s to 1.5 s: partition: 4 writes Ok, read [1]; hold: read [1, 2, 3, 4]
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
use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use turmoil::net::{TcpListener, TcpStream};
use turmoil::Sim;

/// Writes 1 to 4, a second apart, while the link is cut in between; what has arrived a minute later.
fn read_of(writes: &'static [u8], cut: fn(&Sim), restore: fn(&Sim)) -> Vec<u8> {
    let mut sim = turmoil::Builder::new().simulation_duration(Duration::from_secs(300)).build();
    let read = Rc::new(RefCell::new(vec![]));
    let reader = Rc::clone(&read);
    sim.host("server", move || {
        let read = Rc::clone(&reader);
        async move {
            let listener = TcpListener::bind("0.0.0.0:80").await?;
            let (mut stream, _) = listener.accept().await?;
            while let Ok(byte) = stream.read_u8().await {
                read.borrow_mut().push(byte);
            }
            Ok(())
        }
    });
    sim.client("client", async move {
        let mut stream = TcpStream::connect("server:80").await?;
        for byte in writes {
            if *byte > 0 {
                stream.write_u8(*byte).await.expect("each write succeeds");
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        tokio::time::sleep(Duration::from_secs(60)).await;
        Ok(())
    });
    for (until, change) in [(500, cut), (1500, restore)] {
        while sim.elapsed() < Duration::from_millis(until) {
            sim.step().unwrap();
        }
        change(&sim);
    }
    sim.run().unwrap();
    read.take()
}

fn main() {
    let partition: fn(&Sim) = |sim| sim.partition("client", "server");
    let repair: fn(&Sim) = |sim| sim.repair("client", "server");
    let written_meanwhile = read_of(&[1, 2, 3, 4], partition, repair);
    let silent_meanwhile = read_of(&[1, 0, 3, 4], partition, repair);
    let held = read_of(&[1, 2, 3, 4], |sim| sim.hold("client", "server"), |sim| sim.release("client", "server"));
    println!("partition: {written_meanwhile:?}, silent: {silent_meanwhile:?}, hold: {held:?}");
    assert_eq!(written_meanwhile, [1]);
    assert_eq!((&silent_meanwhile[..], &held[..]), (&[1, 3, 4][..], &[1, 2, 3, 4][..]));
}
RUST
CARGO_BUILD_JOBS=1 nice -n 15 cargo build --quiet || exit 2
cargo run --quiet || exit 1
echo "as stated"
