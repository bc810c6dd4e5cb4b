//! Writes the descriptors of the wire's messages (a `FileDescriptorSet`) to standard output, for
//! languages that read them when they run.

use std::io::{self, Write};

use claviger_client::wire::DESCRIPTORS;

fn main() -> io::Result<()> {
    io::stdout().write_all(DESCRIPTORS)
}
