#!/bin/sh
# postcard 1.1.3 with serde_derive 1.0.229 (crates.io): after a skipped variant, an enum is decoded as another variant.
#
# `#[serde(skip)]` on a variant that is not the last one: the derived `Serialize` numbers variants as they are
# declared, the derived `Deserialize` numbers only those that are not skipped. Formats that write names are not
# affected; postcard writes the number. So each variant after the skipped one is decoded as its successor if that has
# fields of the same form, without an error, and the last one cannot be decoded at all.
#
# Seen: Opened(5) -> Ok(Opened(5)), Raised(5) -> Ok(Lowered(5)), Lowered(5) -> Err(SerdeDeCustom)
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
postcard = { version = "=1.1.3", features = ["use-std"] }
serde = { version = "=1.0.229", features = ["derive"] }
serde_derive = "=1.0.229"
TOML
cat > src/main.rs <<'RUST'
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize, Debug, PartialEq)]
enum Event {
    Opened(u32),
    #[serde(skip)]
    #[allow(dead_code)]
    Traced(u32),
    Raised(u32),
    Lowered(u32),
}

fn main() {
    let read_back = |event: &Event| {
        let bytes = postcard::to_stdvec(event).unwrap();
        let decoded = postcard::from_bytes::<Event>(&bytes);
        println!("{event:?} -> {bytes:?} -> {decoded:?}");
        decoded
    };
    assert_eq!(read_back(&Event::Opened(5)), Ok(Event::Opened(5)));
    assert_eq!(read_back(&Event::Raised(5)), Ok(Event::Lowered(5)));
    assert_eq!(read_back(&Event::Lowered(5)), Err(postcard::Error::SerdeDeCustom));
}
RUST
CARGO_BUILD_JOBS=1 nice -n 15 cargo build --quiet || exit 2
cargo run --quiet || exit 1
echo "as stated"
