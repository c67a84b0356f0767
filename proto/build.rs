//! Compiles proto/*.proto in Rust, so that building needs no installed protoc.

type Error = Box<dyn std::error::Error>;

fn main() -> Result<(), Error> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["proto/broker.proto", "proto/admin.proto"], ["proto"])?;
    // Record bytes and snapshots are passed on, not copied.
    let config = tonic_prost_build::configure().bytes(".");
    config.compile_fds(descriptors)?;
    Ok(())
}
