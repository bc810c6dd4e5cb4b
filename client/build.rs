//! Compiles the messages of the wire; this takes no `protoc`.

use std::path::Path;

/// What has a secret, which its `Debug` does not show.
const SECRET: [&str; 7] = [
    "PinAnswer",
    "Chunk",
    "RequestCommitment",
    "RequestEncrypt",
    "ReplyDecryption",
    "DeviceSign",
    "DeviceSecret",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 1] = ["claviger/v1/frame.proto"];
    println!("cargo::rerun-if-changed=proto");
    let mut compiler = protox::Compiler::new(["proto"])?;
    compiler.include_imports(true).open_files(FILES)?;
    // For languages that read descriptors when they run. Comments are not in it.
    let descriptors = compiler.encode_file_descriptor_set();
    let out = std::env::var_os("OUT_DIR").ok_or("cargo names no OUT_DIR")?;
    std::fs::write(Path::new(&out).join("descriptors.pb"), descriptors)?;
    let files = protox::compile(FILES, ["proto"])?;
    let mut config = prost_build::Config::new();
    config.skip_debug(SECRET.map(|name| format!(".claviger.v1.{name}")));
    config.compile_fds(files)?;
    Ok(())
}
