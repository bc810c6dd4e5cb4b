//! Shows how tokens come, go and change, for as many seconds as the argument says.

use std::error::Error;
use std::time::Duration;

use claviger_engine::{Node, Registry};
use claviger_memory::MemoryDriver;
use claviger_pkcs11::Pkcs11Driver;
use claviger_token::Call;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let seconds = std::env::args()
        .nth(1)
        .map_or(Ok(10), |text| text.parse())?;
    let node = Node::builder(Registry::in_memory()?)
        .driver(MemoryDriver::new())
        .driver(Pkcs11Driver::new())
        .build();
    let mut changes = node.token_changes(None, &Call::unlimited()).await?;
    let show = async {
        loop {
            let change = changes.next().await;
            println!("{}: {}", change.token, change.state);
        }
    };
    // That the time is over is how it ends.
    let _ = tokio::time::timeout(Duration::from_secs(seconds), show).await;
    Ok(())
}
