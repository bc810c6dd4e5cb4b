//! Errors of the registry.

use std::path::{Path, PathBuf};

use super::rows::NotAsWritten;

/// Why the registry could not be read or written.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The home folder is not a folder.
    #[error("`{}` is not a folder", path.display())]
    NotAFolder {
        /// The path.
        path: PathBuf,
    },
    /// The file in place of the registry is not a registry.
    #[error("`{}` is not a registry of Claviger", path.display())]
    NotARegistry {
        /// The path.
        path: PathBuf,
    },
    /// The registry file is empty: its content is lost, or the file was truncated.
    #[error("`{}` is empty: the registry that was there is lost", path.display())]
    Empty {
        /// The path.
        path: PathBuf,
    },
    /// The registry file is missing, and SQLite's files beside it are there: the registry is lost.
    /// A new one would be mixed with the remains.
    #[error(
        "`{}` is missing, but its `{}` is there: the registry is lost",
        path.display(), left.display()
    )]
    Lost {
        /// The path.
        path: PathBuf,
        /// The file that is left.
        left: PathBuf,
    },
    /// Somebody else owns the home folder or the registry, or can write to it, and could choose a
    /// PKCS#11 module, whose code then runs.
    #[error("`{}` is not private: {reason}", path.display())]
    NotPrivate {
        /// The path.
        path: PathBuf,
        /// Who has access.
        reason: String,
    },
    /// The home is a copy, or was restored or moved. Its abandoned intents may have been completed
    /// elsewhere, and are not resolved here.
    #[error("this home is a copy, or was restored: abandoned intents are not resolved here")]
    Copy,
    /// The registry was written by a newer program.
    #[error("the registry has version {found}; this program knows version {known}")]
    Newer {
        /// The version in the file.
        found: i32,
        /// The version that this program knows.
        known: i32,
    },
    /// The disk is full.
    #[error("no space is left for the registry")]
    DiskFull,
    /// The file or its folder cannot be written to.
    #[error("the registry cannot be written to")]
    ReadOnly,
    /// Another process has been writing for too long.
    #[error("another process has locked the registry")]
    Busy,
    /// The registry cannot be replaced while another process has it open.
    #[error("another process has the registry open")]
    InUse,
    /// The content of the registry is invalid.
    #[error("the registry is damaged: {reason}")]
    Damaged {
        /// What is invalid.
        reason: String,
    },
    /// Something else altered a row. The row is not used.
    #[error("the registry is damaged: `{row}` of the table {table} is not as it was written")]
    Altered {
        /// The table.
        table: String,
        /// The name of the row, as it is in the registry now.
        row: String,
    },
    /// Any other failure of the file system or of SQLite.
    #[error("the registry cannot be used: {reason}")]
    Other {
        /// The error of the system.
        reason: String,
    },
}

impl RegistryError {
    /// The stable name of the variant, for programs.
    pub fn code(&self) -> &'static str {
        match self {
            RegistryError::NotAFolder { .. } => "home-not-a-folder",
            RegistryError::NotARegistry { .. } => "not-a-registry",
            RegistryError::Empty { .. } => "registry-empty",
            RegistryError::Lost { .. } => "registry-lost",
            RegistryError::NotPrivate { .. } => "registry-not-private",
            RegistryError::Copy => "registry-copy",
            RegistryError::Newer { .. } => "registry-newer",
            RegistryError::DiskFull => "registry-disk-full",
            RegistryError::ReadOnly => "registry-read-only",
            RegistryError::Busy => "registry-busy",
            RegistryError::InUse => "registry-in-use",
            RegistryError::Damaged { .. } => "registry-damaged",
            RegistryError::Altered { .. } => "registry-row-altered",
            RegistryError::Other { .. } => "registry-other",
        }
    }

    /// A file of the user cannot be read.
    pub(super) fn reading(path: &Path, error: &std::io::Error) -> Self {
        RegistryError::Other {
            reason: format!("`{}` cannot be read: {error}", path.display()),
        }
    }

    pub(crate) fn io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind;
        match error.kind() {
            ErrorKind::StorageFull | ErrorKind::QuotaExceeded => RegistryError::DiskFull,
            ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => RegistryError::ReadOnly,
            _ => RegistryError::Other {
                reason: error.to_string(),
            },
        }
    }
}

impl From<rusqlite::Error> for RegistryError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode;
        if let Some(NotAsWritten { table, row }) = NotAsWritten::of(&error) {
            return RegistryError::Altered {
                table: (*table).into(),
                row: row.clone(),
            };
        }
        let extended = error.sqlite_error().map(|e| e.extended_code);
        match error.sqlite_error_code() {
            // The index of the write-ahead log could not grow.
            _ if extended == Some(rusqlite::ffi::SQLITE_IOERR_SHMSIZE) => RegistryError::DiskFull,
            Some(ErrorCode::DiskFull) => RegistryError::DiskFull,
            Some(ErrorCode::ReadOnly | ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => {
                RegistryError::ReadOnly
            }
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => RegistryError::Busy,
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => RegistryError::Damaged {
                reason: error.to_string(),
            },
            _ => match error {
                rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::InvalidColumnType(..) => RegistryError::Damaged {
                    reason: error.to_string(),
                },
                _ => RegistryError::Other {
                    reason: error.to_string(),
                },
            },
        }
    }
}
