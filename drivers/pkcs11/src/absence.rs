//! Modules whose daemon, server or device is missing, and what to do about it.

use std::path::Path;

use claviger_token::Error;
use cryptoki::context::Function;
use cryptoki::error::Error as Ck;

use crate::error::describe;
use crate::library::Library;

/// What a module needs besides itself.
struct Needs {
    /// Parts of its file's name.
    files: &'static [&'static str],
    /// What is wrong where it is not there.
    missing: &'static str,
    cure: &'static str,
}

const NEEDS: [Needs; 3] = [
    Needs {
        // The second is what it was called first.
        files: &["opencryptoki", "PKCS11_API"],
        missing: "the daemon pkcsslotd is not running, or you have no access to it",
        cure: "start the daemon (`sudo systemctl start pkcsslotd`), and join the group pkcs11",
    },
    Needs {
        files: &["tpm2_pkcs11"],
        missing: "there is no TPM, or you have no access to it",
        cure: "join the group tss, which may open /dev/tpmrm0, or name another TPM with the \
               variable TPM2_PKCS11_TCTI",
    },
    Needs {
        files: &["p11-kit-client"],
        missing: "there is no p11-kit server at the address in P11_KIT_SERVER_ADDRESS",
        cure: "start `p11-kit server`, and set the variable P11_KIT_SERVER_ADDRESS as it says",
    },
];

fn needs(path: &Path) -> Option<&'static Needs> {
    let file = path.file_name()?.to_str()?;
    let named = |needs: &&Needs| needs.files.iter().any(|part| file.contains(part));
    NEEDS.iter().find(named)
}

/// Why the module that was named by `path`, a link to `real` or that itself, could not be
/// loaded.
pub(crate) fn of_module(path: &Path, real: &Path, error: &Ck) -> Error {
    let said = describe(error);
    let needs = needs(path).or_else(|| needs(real));
    match (error, needs) {
        (Ck::Pkcs11(_, Function::Initialize), Some(needs)) => not_ready(path, needs, &said),
        _ => Error::BadModule {
            path: path.display().to_string(),
            reason: said,
        },
    }
}

/// What is missing where the module works and says so.
pub(crate) fn stated(path: &Path, library: &Library) -> Option<Error> {
    let text = &library.description;
    let needs = needs(path).filter(|_| text.contains("(no connection)"))?;
    Some(not_ready(path, needs, text.trim()))
}

fn not_ready(path: &Path, needs: &Needs, said: &str) -> Error {
    Error::NotReady {
        module: path.display().to_string(),
        reason: format!("{} ({said})", needs.missing),
        cure: needs.cure.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cryptoki::error::RvError;

    #[test]
    fn a_module_that_misses_its_daemon_says_so_and_any_other_is_bad() {
        let failed = Ck::Pkcs11(RvError::HostMemory, Function::Initialize);
        let of = |path: &str, real: &str| of_module(path.as_ref(), real.as_ref(), &failed);
        let error = of("/usr/lib/pkcs11/PKCS11_API.so", "/usr/lib/x.so");
        assert_eq!(
            error.to_string(),
            "the module `/usr/lib/pkcs11/PKCS11_API.so` cannot be used yet: the daemon pkcsslotd \
             is not running, or you have no access to it (C_Initialize: CKR_HOST_MEMORY)"
        );
        assert!(
            matches!(&error, Error::NotReady { cure, .. } if cure.starts_with("start the daemon"))
        );
        let linked = of("/x.so", "/usr/lib/libtpm2_pkcs11.so.1.9.0");
        assert!(matches!(linked, Error::NotReady { .. }), "{linked:?}");
        let other = of("/x.so", "/x.so");
        assert!(matches!(other, Error::BadModule { .. }), "{other:?}");
    }
}
