//! A backup of a node, written to a file of the client: resumes by itself when the connection breaks.

use std::path::PathBuf;
use std::time::Duration;

use raftify_core::{LogPosition, SnapshotDigest, SnapshotMeta, StorageError};
use raftify_storage::BackupFile;
use tokio::time::{Instant, sleep, timeout};
use tonic::{Status, Streaming};

use crate::channels::backups::{BackupHead, BackupReceived, BackupWanted};
use crate::client::cluster_connection::{CONNECT_TIMEOUT, ClusterConnection};
use crate::client::error::{ClientBackupError, ClientError, UnreachableNode};
use crate::error::BackupRefused;
use crate::runtime::endpoint::{describe, endpoint, with_sources};
use crate::verbs::backup::{ReadPart, reply_from_wire, request_to_wire};
use crate::verbs::verb::NotAnswered;
use crate::wire::{self, RequestRejected, proto};

/// How long a node may send nothing: it gives a sign of life every 2 s, and sends the data in small parts.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// For how long a broken connection is made again, without progress.
const PATIENCE: Duration = Duration::from_secs(60);

/// The pause before the first attempt to connect again; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// How [`RaftClient::backup`](crate::RaftClient::backup) makes a backup.
///
/// # Examples
/// ```
/// use raftify::client::BackupOptions;
///
/// let options = BackupOptions { bytes_per_second_max: Some(64 << 20), ..BackupOptions::default() };
/// assert!(!options.newest && !options.resume);
/// ```
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackupOptions {
    /// Copy the newest snapshot that the node has. By default, the node takes a snapshot first: then the backup
    /// has every write that this node had applied before the call.
    pub newest: bool,
    /// Continue `FILE.partial`, which an interrupted call has left, if the node still has its snapshot. The
    /// backup then has the state at that position. By default, an unfinished file is overwritten.
    pub resume: bool,
    /// How many bytes of data are sent in a second at most, from 65536 on. Default `None`: the
    /// [`snapshot_bytes_per_second_max`](crate::Config::snapshot_bytes_per_second_max) of the node, 16 MiB unless
    /// it was changed. Proposals wait longer if backups are sent faster.
    pub bytes_per_second_max: Option<u64>,
}

/// What happens while a backup is made.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum BackupProgress {
    /// The node takes the snapshot, or verifies the part that has arrived before.
    Waiting,
    /// The transfer begins, or continues where it was interrupted.
    Begins {
        /// The position of the snapshot.
        position: LogPosition,
        /// How many bytes of data have arrived already.
        bytes: u64,
        /// How many there are.
        of: u64,
    },
    /// This much data has arrived.
    Copied {
        /// How many bytes have arrived.
        bytes: u64,
        /// How many there are.
        of: u64,
    },
    /// The connection broke. The client tries to connect again.
    Interrupted {
        /// The reason.
        reason: String,
    },
    /// The node no longer has the snapshot of which a part has arrived, or has another one at its position: the
    /// part is discarded, and the transfer begins again.
    BeginsAgain {
        /// The position of the discarded part.
        discarded: LogPosition,
        /// The position of the snapshot that follows.
        position: LogPosition,
    },
}

/// Why one attempt has failed.
enum Failed {
    /// Another attempt would not help.
    Final(ClientBackupError),
    /// The node is not reached, or stops, or the connection broke.
    Broken(ClientError<BackupRefused>),
}

impl<E: Into<ClientBackupError>> From<E> for Failed {
    fn from(error: E) -> Failed {
        Failed::Final(error.into())
    }
}

impl ClusterConnection {
    pub(crate) async fn backup(
        &self,
        file: PathBuf,
        options: &BackupOptions,
        progress: impl FnMut(BackupProgress) + Send,
    ) -> Result<(SnapshotMeta, u64), ClientBackupError> {
        let (path, resume) = (file, options.resume);
        let (file, snapshot) = on_a_thread(move || {
            let mut file = BackupFile::open(&path)?;
            let found = if resume { file.resume()? } else { None };
            Ok((file, found.map(|(meta, _)| meta)))
        })
        .await?;
        let mut transfer = Transfer {
            connection: self,
            options,
            progress,
            address: None,
            partial: file.partial_path().to_owned(),
            written: file.digest(),
            file: Some(file),
            snapshot,
            of: 0,
        };
        let (mut pause, mut reached) = (FIRST_PAUSE, 0);
        let mut until = Instant::now() + PATIENCE;
        loop {
            let error = match transfer.attempt().await {
                Ok((address, announced)) => return transfer.finish(address, announced).await,
                Err(Failed::Final(error)) => return Err(error),
                Err(Failed::Broken(error)) => error,
            };
            // Before the first part has come from it, a node is not waited for.
            let Some(address) = transfer.address.clone() else { return Err(error.into()) };
            let bytes = transfer.written.data_bytes;
            if bytes != reached {
                (pause, reached, until) = (FIRST_PAUSE, bytes, Instant::now() + PATIENCE);
            }
            if Instant::now() + pause >= until {
                let (of, patience, reason) = (transfer.of, PATIENCE, error.to_string());
                return Err(ClientBackupError::Interrupted { address, bytes, of, patience, reason });
            }
            (transfer.progress)(BackupProgress::Interrupted { reason: error.to_string() });
            sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }
}

/// A backup under way.
struct Transfer<'a, Progress> {
    connection: &'a ClusterConnection,
    options: &'a BackupOptions,
    progress: Progress,
    /// The node that sends it: no other has the same bytes for certain.
    address: Option<String>,
    /// The unfinished file.
    partial: PathBuf,
    /// `None` while a thread uses it.
    file: Option<BackupFile>,
    written: SnapshotDigest,
    /// The snapshot of which the file has a part.
    snapshot: Option<SnapshotMeta>,
    /// The size of the data.
    of: u64,
}

impl<Progress: FnMut(BackupProgress) + Send> Transfer<'_, Progress> {
    /// One call. Returns the node and the digest of the whole data once all of it is in the file.
    async fn attempt(&mut self) -> Result<(String, SnapshotDigest), Failed> {
        let (address, mut parts) = self.call().await?;
        let head = loop {
            match self.next(&address, &mut parts).await? {
                Some(ReadPart::Waiting) => (self.progress)(BackupProgress::Waiting),
                Some(ReadPart::Head(head)) => break head,
                Some(ReadPart::Data(_)) => return Err(unsound(&address, "the data comes before the head")),
                None => return Err(broken(&address, "the node ended the call")),
            }
            self.address = Some(address.clone());
        };
        self.address = Some(address.clone());
        let announced = head.digest;
        self.begin(&address, head).await?;
        while self.written.data_bytes < announced.data_bytes {
            match self.next(&address, &mut parts).await? {
                Some(ReadPart::Data(data)) => self.write(&address, data, announced).await?,
                Some(ReadPart::Waiting) => {}
                Some(ReadPart::Head(_)) => return Err(unsound(&address, "a second head comes")),
                None => return Err(broken(&address, "the node ended the call")),
            }
        }
        Ok((address, announced))
    }

    async fn finish(
        mut self,
        address: String,
        announced: SnapshotDigest,
    ) -> Result<(SnapshotMeta, u64), ClientBackupError> {
        let Some(file) = self.file.take() else { return Err(gone().into()) };
        if self.written != announced {
            on_a_thread(move || {
                file.discard();
                Ok(())
            })
            .await?;
            let reason = format!(
                "all of it has the checksum {:08x}, it should be {:08x}: all of it is discarded",
                self.written.crc32c, announced.crc32c
            );
            return Err(ClientBackupError::Unsound { address, reason });
        }
        Ok(on_a_thread(move || file.finish(announced)).await?)
    }

    /// Asks the node, or, before one has answered, each of the given ones in turn.
    async fn call(&mut self) -> Result<(String, Streaming<proto::BackupReply>), Failed> {
        let addresses: Vec<String> = match &self.address {
            Some(address) => vec![address.clone()],
            None => self.connection.given.iter().map(|address| address.to_string()).collect(),
        };
        let (mut unreachable, mut failed) = (Vec::new(), None);
        for address in addresses {
            let reason = match timeout(SILENCE_MAX, self.open(&address)).await {
                Ok(Ok(parts)) => return Ok((address, parts)),
                Ok(Err(NotOpened::Failed(error))) => {
                    failed = Some(error);
                    continue;
                }
                Ok(Err(NotOpened::Unreachable(reason))) => reason,
                Err(_) => format!("no answer within {} s", SILENCE_MAX.as_secs()),
            };
            unreachable.push(UnreachableNode::NotConnected { address, reason });
        }
        Err(failed.unwrap_or(Failed::Broken(ClientError::Unreachable(unreachable))))
    }

    /// Over a separate connection, which ends with the call.
    async fn open(&mut self, address: &str) -> Result<Streaming<proto::BackupReply>, NotOpened> {
        let unreachable = |error: tonic::transport::Error| NotOpened::Unreachable(with_sources(&error));
        let endpoint = endpoint(address, CONNECT_TIMEOUT).map_err(unreachable)?;
        let channel = self.connection.dialer.connect(&endpoint).await.map_err(unreachable)?;
        let received = self
            .snapshot
            .as_ref()
            .map(|meta| BackupReceived { position: meta.position, digest: self.written });
        let wanted = BackupWanted {
            newest: self.options.newest,
            bytes_per_second_max: self.options.bytes_per_second_max,
            received,
        };
        let own = self.connection.cluster.id();
        let cluster = self.snapshot.as_ref().map(|meta| meta.cluster_id).or(own);
        let request = request_to_wire(wire::header(cluster), &wanted);
        let parts = wire::service(channel).backup(request).await;
        parts.map(tonic::Response::into_inner).map_err(|status| match self.failed(address, &status) {
            Failed::Broken(_) => NotOpened::Unreachable(describe(&status)),
            failed => NotOpened::Failed(failed),
        })
    }

    /// The next part; `None` at the end.
    async fn next(
        &mut self,
        address: &str,
        parts: &mut Streaming<proto::BackupReply>,
    ) -> Result<Option<ReadPart>, Failed> {
        let reply = match timeout(SILENCE_MAX, parts.message()).await {
            Ok(Ok(Some(reply))) => reply,
            Ok(Ok(None)) => return Ok(None),
            Ok(Err(status)) => return Err(self.failed(address, &status)),
            Err(_) => {
                return Err(broken(address, format!("nothing came for {} s", SILENCE_MAX.as_secs())));
            }
        };
        match reply_from_wire(reply) {
            Ok(part) => Ok(Some(part)),
            Err(NotAnswered::Malformed(reason)) => Err(unsound(address, reason)),
            Err(NotAnswered::Refusal(refusal)) => {
                let refused = wire::refusal_from_wire::<BackupRefused>(&refusal)
                    .unwrap_or(BackupRefused::Unreadable(refusal.message));
                // The node may not have noticed yet that an earlier call of this transfer has ended.
                let is_own = matches!(refused, BackupRefused::Busy { .. }) && self.address.is_some();
                let passes = matches!(refused, BackupRefused::Stopped(_) | BackupRefused::TooSlow { .. });
                let error = ClientError::Answer(refused);
                Err(if is_own || passes { Failed::Broken(error) } else { error.into() })
            }
        }
    }

    fn failed(&self, address: &str, status: &Status) -> Failed {
        match RequestRejected::from_status(status) {
            Some(RequestRejected::Stopped(reason)) => {
                Failed::Broken(ClientError::Answer(BackupRefused::Stopped(reason)))
            }
            // A node that has just started again may not know its cluster yet.
            Some(rejection @ RequestRejected::NoCluster { .. }) if self.address.is_some() => {
                Failed::Broken(ClientError::Rejected(rejection))
            }
            Some(RequestRejected::OtherCluster { found, own, .. }) if self.snapshot.is_some() => {
                let partial = self.partial.clone();
                ClientBackupError::OtherCluster { partial, found, own }.into()
            }
            Some(rejection) => ClientBackupError::Node(ClientError::Rejected(rejection)).into(),
            None => broken(address, describe(status)),
        }
    }

    /// Begins the file, or continues it.
    async fn begin(&mut self, address: &str, head: BackupHead) -> Result<(), Failed> {
        let BackupHead { meta, digest, begin_at } = head;
        let own = self.snapshot.as_ref().map(|meta| meta.cluster_id).or(self.connection.cluster.id());
        if let Some(own) = own
            && own != meta.cluster_id
        {
            return Err(unsound(
                address,
                format!("the snapshot is of cluster {}, not {own}", meta.cluster_id),
            ));
        }
        let (position, written) = (meta.position, self.written.data_bytes);
        let continues = self.snapshot.as_ref() == Some(&meta) && begin_at == written;
        self.of = digest.data_bytes;
        if !continues {
            if begin_at > 0 {
                return Err(unsound(
                    address,
                    format!("it begins at byte {begin_at}, {written} were received"),
                ));
            }
            if let Some(former) = self.snapshot.take().filter(|_| written > 0) {
                (self.progress)(BackupProgress::BeginsAgain { discarded: former.position, position });
            }
            self.snapshot = Some(meta.clone());
            self.on_file(move |file| file.begin(&meta)).await?;
        }
        let (bytes, of) = (begin_at, self.of);
        (self.progress)(BackupProgress::Begins { position, bytes, of });
        Ok(())
    }

    async fn write(
        &mut self,
        address: &str,
        part: proto::SnapshotData,
        announced: SnapshotDigest,
    ) -> Result<(), Failed> {
        let (received, length) = (self.written.data_bytes, part.data.len() as u64);
        if part.offset != received {
            return Err(unsound(address, format!("{} comes at offset {received}", part.offset)));
        }
        if received.saturating_add(length) > announced.data_bytes {
            return Err(unsound(address, format!("there are more than {} bytes", announced.data_bytes)));
        }
        self.on_file(move |file| file.write(&part.data)).await?;
        (self.progress)(BackupProgress::Copied { bytes: received + length, of: announced.data_bytes });
        Ok(())
    }

    /// Works on the file on a thread that may wait for the disk.
    async fn on_file(
        &mut self,
        work: impl FnOnce(&mut BackupFile) -> Result<(), StorageError> + Send + 'static,
    ) -> Result<(), Failed> {
        let Some(mut file) = self.file.take() else { return Err(gone().into()) };
        let (file, outcome) = on_a_thread(move || {
            let outcome = work(&mut file);
            Ok((file, outcome))
        })
        .await?;
        self.written = file.digest();
        self.file = Some(file);
        Ok(outcome?)
    }
}

async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, StorageError> + Send + 'static,
) -> Result<T, StorageError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| Err(gone()))
}

/// A thread that used the file was not started, or panicked.
fn gone() -> StorageError {
    StorageError::Refused { reason: "the thread that writes the backup is gone".to_owned() }
}

fn broken(address: &str, reason: impl Into<String>) -> Failed {
    let (address, reason) = (address.to_owned(), reason.into());
    Failed::Broken(ClientError::Unreachable(vec![UnreachableNode::NotConnected { address, reason }]))
}

fn unsound(address: &str, reason: impl Into<String>) -> Failed {
    let (address, reason) = (address.to_owned(), reason.into());
    Failed::Final(ClientBackupError::Unsound { address, reason })
}

enum NotOpened {
    Failed(Failed),
    Unreachable(String),
}
