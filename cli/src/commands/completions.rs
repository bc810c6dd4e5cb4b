//! Completions and man pages, made from the command's own definition.

use std::path::Path;

use clap_complete::Shell;

use super::{Answer, FINE};
use crate::failure::Failure;
use crate::{command_line, output};

/// What `shell` needs to complete the command's words, on standard output.
pub(crate) fn write(shell: Shell) -> Answer {
    let mut script = Vec::new();
    clap_complete::generate(
        shell,
        &mut command_line::definition(),
        "claviger",
        &mut script,
    );
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(FINE)
}

/// The man pages, as `claviger.1`, `claviger-sign.1`, ….
pub(crate) fn write_man_pages(folder: &Path) -> Answer {
    clap_mangen::generate_to(command_line::definition(), folder)
        .map_err(|e| Failure::io(format!("`{}`", folder.display()), &e))?;
    Ok(FINE)
}
