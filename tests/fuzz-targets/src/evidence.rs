//! Evidence of who reads for whom, as it comes from other machines, and statements.

use claviger_engine::evidence::{Statement, from_text, to_text};

/// One input.
pub fn run(data: &[u8]) {
    if let Ok(statement) = Statement::parse(data) {
        assert_eq!(statement.to_bytes(), data);
    }
    let Ok(file) = from_text(data) else {
        return;
    };
    for piece in &file.evidence {
        let _ = piece.verify();
    }
    for revocation in &file.revocations {
        let _ = revocation.verify();
    }
    let text = to_text(&file).unwrap();
    assert_eq!(from_text(text.as_bytes()).unwrap(), file);
}
