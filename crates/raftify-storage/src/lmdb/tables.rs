//! The tables of a directory, with checks of each value. `HeedStorage` keeps everything in them, `WalStorage`
//! its metadata.

use std::path::Path;
use std::sync::Arc;

use heed::{RoTxn, RwTxn, WithoutTls};
use raftify_core::{LogPosition, Remembered, StorageError};

use super::environment::{Environment, Failure};
use super::values::{self, MetaKey, Table};
use crate::fields::{Damage, GROUP_ID};
use crate::files::{self, io_error};
use crate::layout::{self, DirectoryLock, StorageKind};

pub(crate) type ReadTxn<'a> = RoTxn<'a, WithoutTls>;

/// The tables of a directory in their environment.
pub(crate) struct Tables {
    /// Dropped before the lock is released.
    environment: Environment,
    _lock: Option<DirectoryLock>,
}

impl Tables {
    /// Opens the databases of a directory that belongs to this process. New ones are created for `kind`.
    pub(crate) fn open(
        directory: &Path,
        lock: DirectoryLock,
        kind: StorageKind,
    ) -> Result<Tables, StorageError> {
        layout::check_no_snapshots_without_database(directory)?;
        let environment = Environment::open(directory, |meta, txn| {
            let layout = MetaKey::Layout.key();
            let value = values::frame(Table::Meta, layout, |out| out.extend_from_slice(kind.content()));
            Ok(meta.put(txn, &layout, &value)?)
        })?;
        // The names of the database's files must be as durable as their content.
        files::sync_names(directory).map_err(io_error("sync the directory", directory))?;
        let tables = Tables { environment, _lock: Some(lock) };
        let found = tables.kind()?;
        if found != kind {
            return Err(StorageError::OtherKind {
                path: directory.to_owned(),
                found: found.name(),
                asked: kind.name(),
                convert_to: kind.short_name(),
            });
        }
        Ok(tables)
    }

    /// Opens the databases of a directory read-only, also while another process uses them.
    pub(crate) fn open_read_only(directory: &Path) -> Result<Tables, StorageError> {
        Ok(Tables { environment: Environment::open_read_only(directory)?, _lock: None })
    }

    /// For reading and writing several values in one transaction.
    pub(crate) fn environment(&self) -> &Environment {
        &self.environment
    }

    /// The value under `key`, for messages.
    pub(crate) fn what(&self, table: Table, key: u128) -> String {
        let file = self.environment.data_file();
        let file = file.display();
        let (group_id, number) = values::split_key(key);
        if group_id != GROUP_ID {
            return format!("{file}: key {number} of group {group_id} in {}", table.name());
        }
        match (table, MetaKey::from_number(number)) {
            (Table::Entries, _) => format!("{file}: entry {number}"),
            (Table::Meta, Some(key)) => format!("{file}: metadata {key:?}"),
            (Table::Meta, None) => format!("{file}: metadata with key {number}"),
        }
    }

    /// Damage of the value under `key`.
    pub(crate) fn corrupt(&self, table: Table, key: u128, reason: impl Into<String>) -> Failure {
        Damage::Content(reason.into()).of(self.what(table, key)).into()
    }

    /// The storage of the directory. First checks that the directory has this version.
    pub(crate) fn kind(&self) -> Result<StorageKind, StorageError> {
        self.environment.read(|txn| {
            let kind = self.meta(txn, MetaKey::Layout, StorageKind::decode)?;
            kind.ok_or_else(|| self.corrupt(Table::Meta, MetaKey::Layout.key(), "it is missing"))
        })
    }

    /// Checks that there is no metadata of another version of this program.
    pub(crate) fn check_meta_keys(&self, txn: &ReadTxn<'_>) -> Result<(), Failure> {
        for item in self.environment.table(Table::Meta).iter(txn)? {
            let (key, _) = item?;
            let (group_id, number) = values::split_key(key);
            if group_id != GROUP_ID || MetaKey::from_number(number).is_none() {
                return Err(self.corrupt(Table::Meta, key, "this program knows no such key"));
            }
        }
        Ok(())
    }

    pub(crate) fn meta<T>(
        &self,
        txn: &ReadTxn<'_>,
        key: MetaKey,
        decode: impl FnOnce(&[u8]) -> Result<T, Damage>,
    ) -> Result<Option<T>, Failure> {
        let Some(value) = self.environment.table(Table::Meta).get(txn, &key.key())? else {
            return Ok(None);
        };
        let decoded = values::unframe(Table::Meta, key.key(), value).and_then(decode);
        Ok(Some(decoded.map_err(|damage| damage.of(self.what(Table::Meta, key.key())))?))
    }

    pub(crate) fn truncated(&self, txn: &ReadTxn<'_>) -> Result<LogPosition, Failure> {
        Ok(self.meta(txn, MetaKey::Truncated, values::decode_position)?.unwrap_or_default())
    }

    pub(crate) fn remembered(&self, txn: &ReadTxn<'_>) -> Result<Arc<Remembered>, Failure> {
        let found = self.meta(txn, MetaKey::Remembered, |content| Ok(Remembered::decode(content)?))?;
        Ok(found.unwrap_or_default().into())
    }

    pub(crate) fn put_meta(
        &self,
        txn: &mut RwTxn<'_>,
        key: MetaKey,
        encode: impl FnOnce(&mut Vec<u8>),
    ) -> Result<(), Failure> {
        let value = values::frame(Table::Meta, key.key(), encode);
        Ok(self.environment.table(Table::Meta).put(txn, &key.key(), &value)?)
    }
}
