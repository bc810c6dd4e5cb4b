//! Compiles the messages of the wire; this takes no `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    const FILES: [&str; 1] = ["claviger/v1/frame.proto"];
    println!("cargo::rerun-if-changed=proto");
    let files = protox::compile(FILES, ["proto"])?;
    let mut config = prost_build::Config::new();
    config.compile_fds(files)?;
    Ok(())
}
