//! The connections to a registry: one that reads, and one that writes.
//!
//! Who looks something up does not wait for those who write, so each has a connection of its own.
//! The one that writes is made for the first write: most processes never write.

use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};

use claviger_token::sync::lock;
use rusqlite::Connection;

use super::digests;
use super::error::RegistryError;
use super::ours::Ours;
use super::schema::open_to_write;

/// The connections to one registry.
pub(super) struct Connections {
    reader: Mutex<Connection>,
    writer: Writer,
}

enum Writer {
    /// What is in memory has one connection.
    Same,
    Apart {
        path: PathBuf,
        /// The file that `reader` reads.
        file: Ours,
        connection: Mutex<Option<Connection>>,
    },
}

impl Connections {
    /// To the file at `path`, which `reader` has open and `file` has checked.
    pub(super) fn to_file(path: PathBuf, file: Ours, reader: Connection) -> Self {
        Connections {
            reader: Mutex::new(reader),
            writer: Writer::Apart {
                path,
                file,
                connection: Mutex::default(),
            },
        }
    }

    /// To what is in memory.
    pub(super) fn to_memory(only: Connection) -> Self {
        Connections {
            reader: Mutex::new(only),
            writer: Writer::Same,
        }
    }

    pub(super) fn reader(&self) -> MutexGuard<'_, Connection> {
        // A panic elsewhere leaves no transaction open: it is rolled back when dropped.
        lock(&self.reader)
    }

    /// Works with the connection that writes. What it writes gets its digests.
    ///
    /// # Errors
    /// Those of `work`, and what the first write finds.
    pub(super) fn write<T, E: From<RegistryError>>(
        &self,
        work: impl FnOnce(&mut Connection) -> Result<T, E>,
    ) -> Result<T, E> {
        let Writer::Apart {
            path,
            file,
            connection,
        } = &self.writer
        else {
            let mut only = lock(&self.reader);
            digests::keep(&only).map_err(RegistryError::from)?;
            return work(&mut only);
        };
        let mut made = lock(connection);
        let writer = match &mut *made {
            Some(writer) => writer,
            none => none.insert(open_to_write(path, file)?),
        };
        digests::keep(writer).map_err(RegistryError::from)?;
        work(writer)
    }
}
