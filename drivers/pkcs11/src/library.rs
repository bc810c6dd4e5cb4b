//! What a module says of itself.

use cryptoki::context::Pkcs11;

/// What a module says of itself (`C_GetInfo`).
#[derive(Debug, Default)]
pub(crate) struct Library {
    pub(crate) manufacturer: String,
    pub(crate) description: String,
    pub(crate) version: (u8, u8),
}

impl Library {
    pub(crate) fn of(pkcs11: &Pkcs11) -> Self {
        let Ok(info) = pkcs11.get_library_info() else {
            return Library::default();
        };
        let version = info.library_version();
        Library {
            manufacturer: info.manufacturer_id().into(),
            description: info.library_description().into(),
            version: (version.major(), version.minor()),
        }
    }
}
