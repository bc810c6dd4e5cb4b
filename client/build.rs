//! Compiles the messages of the wire; this takes no `protoc`.

use std::path::Path;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, FileDescriptorSet};

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
    std::fs::write(Path::new(&out).join("shape.rs"), shape(&files)?)?;
    let mut config = prost_build::Config::new();
    config.skip_debug(SECRET.map(|name| format!(".claviger.v1.{name}")));
    config.compile_fds(files)?;
    Ok(())
}

/// The table of `src/shape.rs`: for each message its fields that are messages, or lists of anything
/// but numbers.
fn shape(files: &FileDescriptorSet) -> Result<String, Box<dyn std::error::Error>> {
    let mut all: Vec<(String, &DescriptorProto)> = Vec::new();
    for file in &files.file {
        let package = format!(".{}", file.package());
        let mut nested: Vec<_> = file
            .message_type
            .iter()
            .map(|one| (package.clone(), one))
            .collect();
        while let Some((within, message)) = nested.pop() {
            let name = format!("{within}.{}", message.name());
            nested.extend(message.nested_type.iter().map(|one| (name.clone(), one)));
            all.push((name, message));
        }
    }
    let place = |wanted: &str| all.iter().position(|(name, _)| name == wanted);
    let mut table = String::from("pub(super) const MESSAGES: &[super::Fields] = &[\n");
    for (_, message) in &all {
        table.push_str("    &[");
        for field in &message.field {
            let of = place(field.type_name());
            let has_length = of.is_some() || matches!(field.r#type(), Type::String | Type::Bytes);
            let is_list = has_length && field.label() == Label::Repeated;
            if is_list || of.is_some() {
                let number = field.number();
                table.push_str(&format!("({number}, {is_list}, {of:?}), "));
            }
        }
        table.push_str("],\n");
    }
    let frame = place(".claviger.v1.Frame").ok_or("there is no message Frame")?;
    table.push_str(&format!("];\npub(super) const FRAME: usize = {frame};\n"));
    Ok(table)
}
