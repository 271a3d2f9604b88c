//! Backups of a node for a program in the same process.

use std::io::{self, Write};
use std::sync::Arc;

use raftify_core::SnapshotMeta;
use raftify_core::error::StopReason;
use raftify_storage::SnapshotStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::RaftNode;
use crate::application::log_entry::LogEntry;
use crate::application::state_machine::StateMachine;
use crate::channels::backups::{self, BackupPart, BackupWanted, NotRequested};
use crate::error::{BackupError, BackupRefused};
use crate::runtime::worker::caught;

impl<Entry, FSM> RaftNode<Entry, FSM>
where
    Entry: LogEntry,
    FSM: StateMachine<LogEntry = Entry>,
{
    /// Takes a snapshot, and writes it to `writer` as a backup: a file with a header and checksums, which
    /// `raftify-cli backup verify` verifies and `raftify-cli restore` makes a new cluster of. Returns the
    /// position and the members of the snapshot, and the writer, which was flushed.
    ///
    /// The backup has all writes that this node had applied before the call. On a follower that may be less than
    /// the leader has acknowledged: call [`read_index`](Self::read_index) first to include every acknowledged
    /// write. Success means that the writer has taken everything, not that it is durable: sync it, and verify it
    /// with [`verify_snapshot_file`](crate::storage::verify_snapshot_file).
    ///
    /// The writer may block; it runs on threads for blocking work. The node reads at most
    /// [`snapshot_bytes_per_second_max`](crate::Config::snapshot_bytes_per_second_max), holds one part of 512 KiB
    /// in memory, keeps the snapshot until it is read, and serves two backups at a time, remote ones included.
    /// Waits at most [`snapshot_timeout`](crate::Config::snapshot_timeout) for the snapshot; a writer that takes
    /// no part for [`snapshot_chunk_timeout`](crate::Config::snapshot_chunk_timeout) loses the backup.
    ///
    /// # Errors
    /// See [`BackupError`]: what was written is of no use then, and nothing else has changed.
    ///
    /// # Cancel safety
    /// Dropping the future ends the backup; what was written is of no use. A call of the writer that has begun
    /// runs to its end.
    ///
    /// # Examples
    /// ```no_run
    /// # use raftify::{LogEntry, RaftNode, StateMachine};
    /// use std::fs::File;
    ///
    /// # async fn save<E: LogEntry, S: StateMachine<LogEntry = E>>(node: &RaftNode<E, S>)
    /// # -> Result<(), raftify::BoxError> {
    /// let (snapshot, file) = node.backup(File::create_new("cluster.backup")?).await?;
    /// file.sync_all()?;
    /// println!("a backup up to {}", snapshot.position);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn backup<W: Write + Send + 'static>(
        &self,
        writer: W,
    ) -> Result<(SnapshotMeta, W), BackupError> {
        let lifecycle = &self.shared.lifecycle;
        if lifecycle.is_waiting() {
            let running = timeout(self.shared.config.membership_timeout, lifecycle.running()).await;
            running.unwrap_or(Err(StopReason::NotRunning)).map_err(BackupRefused::Stopped)?;
        }
        let parts = backups::request(&self.shared.backups, BackupWanted::default());
        let parts = parts.map_err(|error| match error {
            NotRequested::Refused(refused) => refused,
            NotRequested::Stopped => lifecycle.stop_reason().into(),
        })?;
        self.write_backup(parts, writer).await
    }

    async fn write_backup<W: Write + Send + 'static>(
        &self,
        mut parts: mpsc::Receiver<BackupPart>,
        writer: W,
    ) -> Result<(SnapshotMeta, W), BackupError> {
        let head = loop {
            match parts.recv().await {
                Some(BackupPart::Waiting | BackupPart::Data { .. }) => {}
                Some(BackupPart::Head(head)) => break head,
                Some(BackupPart::Refused(refused)) => return Err(refused.into()),
                None => return Err(self.backup_ended().into()),
            }
        };
        let meta = Arc::new(head.meta);
        let header = Arc::clone(&meta);
        let mut stream = on_a_thread(move || SnapshotStream::new(writer, &header)).await?;
        loop {
            match parts.recv().await {
                Some(BackupPart::Data { data, .. }) => {
                    stream = on_a_thread(move || stream.write_all(&data).map(|()| stream)).await?;
                }
                Some(BackupPart::Waiting | BackupPart::Head(_)) => {}
                Some(BackupPart::Refused(refused)) => return Err(refused.into()),
                None if stream.digest().data_bytes < head.digest.data_bytes => {
                    return Err(self.backup_ended().into());
                }
                None => break,
            }
        }
        if stream.digest() != head.digest {
            let reason = "its data does not have the checksum that its end mark records".to_owned();
            return Err(BackupRefused::Unreadable(reason).into());
        }
        let (writer, _) = on_a_thread(move || stream.finish()).await?;
        Ok((Arc::unwrap_or_clone(meta), writer))
    }

    /// Why the parts of a backup have ended before the last one.
    fn backup_ended(&self) -> BackupRefused {
        if self.shared.lifecycle.is_stopping() {
            return self.shared.lifecycle.stop_reason().into();
        }
        BackupRefused::TooSlow { after: self.shared.config.snapshot_chunk_timeout }
    }
}

/// Runs code of the user that may block or panic.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, BackupError> {
    let outcome = tokio::task::spawn_blocking(move || caught(work)).await;
    let outcome = outcome.map_err(|error| BackupError::Write(io::Error::other(error)))?;
    outcome.map_err(|panic| BackupError::Write(io::Error::other(panic)))?.map_err(BackupError::Write)
}
