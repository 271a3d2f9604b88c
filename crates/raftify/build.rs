//! Compiles the service's description with protox, in this process: no installed protoc is needed.

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(["proto/raft_service.proto"], ["proto"])?;
    tonic_prost_build::configure()
        .bytes(".")
        // Written by hand, to limit what one message decodes to.
        .extern_path(".raftify.v1.RequestBatch", "crate::wire::proto::RequestBatch")
        .extern_path(".raftify.v1.ReplyBatch", "crate::wire::proto::ReplyBatch")
        .compile_fds(files)?;
    Ok(())
}
