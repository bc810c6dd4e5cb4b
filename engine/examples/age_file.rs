//! Encrypts to an identity as anybody can, and opens the age file with the key on its token.

mod common;

use std::error::Error;
use std::io::Read;

use claviger_engine::opener::Opener;
use claviger_formats::envelope::{self, Sealed};
use claviger_token::{Call, KeyUse};
use common::Stage;

fn main() -> Result<(), Box<dyn Error>> {
    let stage = Stage::set()?;
    let recipient = stage.public_key(KeyUse::Decrypt)?;
    let file = envelope::encrypt(&[&recipient], b"Meet me at the bridge.\n")?;
    println!("an age file of {} bytes", file.len());

    // The opener finds out who can open it; only the header has been read by then.
    let sealed = Sealed::read(&file[..])?;
    let opened = stage.runtime.block_on(async {
        let opener = Opener::anybody(
            &stage.node,
            &claviger_engine::EngineId::program(),
            sealed.stanzas(),
            &Call::unlimited(),
        )
        .await?;
        Ok::<_, Box<dyn Error>>(opener.open(&Call::unlimited()).await?)
    })?;
    let mut text = String::new();
    sealed.open(opened.file_key)?.read_to_string(&mut text)?;
    print!("{} opens it: {text}", opened.who.name);
    stage.end()
}
