//! Requests for a backup of this node, and the parts of one: between the callers, in this process or over the
//! network, and the part of the node that reads its snapshots.

use raftify_core::{LogPosition, SnapshotDigest, SnapshotMeta};
use tokio::sync::mpsc;

use crate::error::BackupRefused;

/// How many requests for a backup wait until they are begun or refused.
const WAITING_MAX: usize = 8;

/// A request for a copy of a snapshot of this node.
pub(crate) struct BackupCall {
    pub(crate) wanted: BackupWanted,
    /// Takes the parts. It has room for one: while that is not taken, no further part is read.
    pub(crate) parts: mpsc::Sender<BackupPart>,
}

/// What a backup is to hold, and how fast it is read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BackupWanted {
    /// The newest snapshot, rather than one that is taken first.
    pub(crate) newest: bool,
    /// `None`: the limit of the node's settings.
    pub(crate) bytes_per_second_max: Option<u64>,
    pub(crate) received: Option<BackupReceived>,
}

/// The part of a backup that the caller has from an earlier call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BackupReceived {
    /// The position of the snapshot.
    pub(crate) position: LogPosition,
    pub(crate) digest: SnapshotDigest,
}

/// In this order: any number of `Waiting`, `Head`, the data; or, at any time, `Refused` as the last part.
#[derive(Debug)]
pub(crate) enum BackupPart {
    /// The snapshot is being taken, or the part that the caller has is being verified.
    Waiting,
    Head(BackupHead),
    Data {
        offset: u64,
        data: Vec<u8>,
    },
    Refused(BackupRefused),
}

/// The snapshot whose data follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BackupHead {
    pub(crate) meta: SnapshotMeta,
    /// The digest of all data.
    pub(crate) digest: SnapshotDigest,
    /// The offset of the first byte that follows: the caller has all bytes before.
    pub(crate) begin_at: u64,
}

/// The sender of requests for backups of a node, and the end of it for the node.
pub(crate) fn backup_calls() -> (mpsc::Sender<BackupCall>, mpsc::Receiver<BackupCall>) {
    mpsc::channel(WAITING_MAX)
}

/// Requests a backup.
pub(crate) fn request(
    calls: &mpsc::Sender<BackupCall>,
    wanted: BackupWanted,
) -> Result<mpsc::Receiver<BackupPart>, NotRequested> {
    let (parts, received) = mpsc::channel(1);
    match calls.try_send(BackupCall { wanted, parts }) {
        Ok(()) => Ok(received),
        Err(mpsc::error::TrySendError::Full(_)) => {
            Err(NotRequested::Refused(BackupRefused::Busy { under_way: WAITING_MAX as u64 }))
        }
        Err(mpsc::error::TrySendError::Closed(_)) => Err(NotRequested::Stopped),
    }
}

/// Why no backup was requested.
#[derive(Debug)]
pub(crate) enum NotRequested {
    Refused(BackupRefused),
    /// The node has stopped.
    Stopped,
}
