//! Compiles the proto files without protoc.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = "../../proto";
    println!("cargo::rerun-if-changed={root}");
    let mut files = vec!["kvferry/v1/local.proto"];
    if std::env::var_os("CARGO_FEATURE_PEER").is_some() {
        files.push("kvferry/v1/peer.proto");
    }
    tonic_prost_build::configure().compile_fds(protox::compile(files, [root])?)?;
    Ok(())
}
