//! PINs that systemd hands to the service (`LoadCredential=`, `LoadCredentialEncrypted=`).

use std::fmt::Write;
use std::path::{Path, PathBuf};

use claviger_token::TokenId;

/// The folder of the credentials of this process, if systemd gave it any.
pub fn folder() -> Option<PathBuf> {
    let folder = std::env::var_os("CREDENTIALS_DIRECTORY").map(PathBuf::from);
    folder.filter(|folder| folder.is_absolute())
}

/// What the credential with the token's PIN is called: `claviger.pin.` and the serial. Bytes that
/// are no letters, digits, `.` or `-` are written as `_` and two hexadecimal digits.
pub fn name(token: &TokenId) -> String {
    let mut name = "claviger.pin.".to_owned();
    for byte in token.serial.bytes() {
        match byte {
            b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z' | b'.' | b'-' => name.push(byte.into()),
            other => drop(write!(name, "_{other:02x}")),
        }
    }
    name
}

/// The file with the token's PIN, if there is one.
pub(super) fn of(folder: &Path, token: &TokenId) -> Option<PathBuf> {
    Some(folder.join(name(token))).filter(|path| path.is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_serials_have_two_names_and_none_leaves_the_folder() {
        let of = |serial: &str| {
            name(&TokenId {
                kind: "k".into(),
                manufacturer: "m".into(),
                serial: serial.into(),
            })
        };
        assert_eq!(of("0012aF"), "claviger.pin.0012aF");
        assert_eq!(of("a b"), "claviger.pin.a_20b");
        assert_eq!(of("a_20b"), "claviger.pin.a_5f20b");
        assert_eq!(of("../x:é"), "claviger.pin..._2fx_3a_c3_a9");
    }
}
