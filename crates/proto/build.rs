//! Compiles the proto files without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "../../proto";
    println!("cargo::rerun-if-changed={root}");
    let files = ["kvferry/v1/local.proto", "kvferry/v1/peer.proto"];
    tonic_prost_build::configure().compile_fds(protox::compile(files, [root])?)?;
    Ok(())
}
