//! Compiles the messages of the wire; this takes no `protoc`.

/// What has a secret, which its `Debug` does not show.
const SECRET: [&str; 5] = [
    "PinAnswer",
    "Chunk",
    "RequestCommitment",
    "RequestEncrypt",
    "ReplyDecryption",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 1] = ["claviger/v1/frame.proto"];
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(FILES, ["proto"])?;
    let mut config = prost_build::Config::new();
    config.skip_debug(SECRET.map(|name| format!(".claviger.v1.{name}")));
    config.compile_fds(files)?;
    Ok(())
}
