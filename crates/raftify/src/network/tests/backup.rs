//! Backups between a client and the server of a node, of which the test is the rest.

use raftify_core::{SnapshotDigest, SnapshotMeta};
use raftify_storage::verify_snapshot_file;

use super::*;
use crate::channels::backups::{BackupHead, BackupPart, BackupReceived, BackupWanted};
use crate::client::backup::{BackupOptions, BackupProgress};
use crate::client::error::ClientBackupError;
use crate::error::BackupRefused;

const DATA: [u8; 5000] = [0x5a; 5000];

fn meta(index: u64) -> SnapshotMeta {
    let members = Members::initial([Member::voter(id(1), "a.example:1")]).unwrap();
    SnapshotMeta { cluster_id: CLUSTER, position: LogPosition::new(1, index), members }
}

fn head(index: u64, begin_at: u64) -> BackupPart {
    let digest = SnapshotDigest::default().followed_by(&DATA);
    BackupPart::Head(BackupHead { meta: meta(index), digest, begin_at })
}

fn part(from: usize, to: usize) -> BackupPart {
    BackupPart::Data { offset: from as u64, data: DATA[from..to].to_vec() }
}

/// A client that writes a backup of the node, and what it reports.
struct Saving {
    task: JoinHandle<Result<(SnapshotMeta, u64), ClientBackupError>>,
    progress: mpsc::UnboundedReceiver<BackupProgress>,
    directory: tempfile::TempDir,
}

impl Saving {
    fn begin(node: &TestNode) -> Saving {
        let directory = tempfile::tempdir().unwrap();
        let cluster = ClusterConnection::new([node.address.clone()], Duration::from_secs(20)).unwrap();
        let (steps, progress) = mpsc::unbounded_channel();
        let file = directory.path().join("a.backup");
        let task = tokio::spawn(async move {
            let options = BackupOptions { newest: true, ..BackupOptions::default() };
            cluster.backup(file, &options, |step| drop(steps.send(step))).await
        });
        Saving { task, progress, directory }
    }

    async fn outcome(&mut self) -> Result<(SnapshotMeta, u64), ClientBackupError> {
        within("the end of the backup", &mut self.task).await.unwrap()
    }

    fn has(&self, name: &str) -> bool {
        self.directory.path().join(name).exists()
    }

    /// Its refusal names all of these.
    async fn fails_with(&mut self, what: &[&str]) {
        let error = self.outcome().await.unwrap_err().to_string();
        assert!(what.iter().all(|what| error.contains(what)), "{error}");
        assert!(!self.has("a.backup"));
    }
}

impl TestNode {
    async fn backup_call(&mut self) -> (BackupWanted, mpsc::Sender<BackupPart>) {
        let BackupCall { wanted, parts } = within("a call", self.backup_calls.recv()).await.unwrap();
        (wanted, parts)
    }
}

async fn send(parts: &mpsc::Sender<BackupPart>, all: impl IntoIterator<Item = BackupPart>) {
    for part in all {
        within("room for a part", parts.send(part)).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_ends_early_is_repeated_with_what_has_arrived_and_a_newer_snapshot_begins_again() {
    let mut node = TestNode::start(1);
    let mut saving = Saving::begin(&node);
    let (wanted, parts) = node.backup_call().await;
    assert_eq!(wanted, BackupWanted { newest: true, ..BackupWanted::default() });
    send(&parts, [BackupPart::Waiting, head(5, 0), part(0, 2000)]).await;
    drop(parts);
    let (wanted, parts) = node.backup_call().await;
    let digest = SnapshotDigest::default().followed_by(&DATA[..2000]);
    assert_eq!(wanted.received, Some(BackupReceived { position: meta(5).position, digest }));
    send(&parts, [head(5, 2000), part(2000, 3000)]).await;
    send(&parts, [BackupPart::Refused(BackupRefused::TooSlow { after: Duration::from_secs(30) })]).await;
    drop(parts);
    let (wanted, parts) = node.backup_call().await;
    assert_eq!(wanted.received.unwrap().digest.data_bytes, 3000);
    send(&parts, [head(7, 0), part(0, 5000)]).await;
    drop(parts);
    assert_eq!(saving.outcome().await.unwrap(), (meta(7), 5000));
    let mut steps = Vec::new();
    while let Ok(step) = saving.progress.try_recv() {
        steps.push(step);
    }
    let (discarded, position, of) = (meta(5).position, meta(7).position, 5000);
    assert_eq!(steps[0], BackupProgress::Waiting);
    assert!(steps.contains(&BackupProgress::Begins { position: discarded, bytes: 2000, of }), "{steps:?}");
    assert!(steps.contains(&BackupProgress::BeginsAgain { discarded, position }), "{steps:?}");
    assert_eq!(steps.iter().filter(|step| matches!(step, BackupProgress::Interrupted { .. })).count(), 2);
    let file = saving.directory.path().join("a.backup");
    assert_eq!(verify_snapshot_file(file).unwrap(), (meta(7), 5000));
    assert!(!saving.has("a.backup.partial"));
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_that_contradict_each_other_are_refused_and_no_file_is_made() {
    let other_cluster = BackupPart::Head(BackupHead {
        meta: meta(5),
        digest: SnapshotDigest { data_bytes: 5000, crc32c: 7 },
        begin_at: 0,
    });
    let cases: [(Vec<BackupPart>, &str); 6] = [
        (vec![part(0, 10)], "the data comes before the head"),
        (vec![head(5, 10)], "begins at byte 10, 0 were received"),
        (vec![head(5, 5001)], "begins after its end"),
        (vec![head(5, 0), head(5, 0)], "a second head"),
        (vec![head(5, 0), part(0, 10), part(20, 30)], "20 comes at offset 10"),
        (vec![other_cluster, part(0, 5000)], "it should be 00000007"),
    ];
    for (sent, reason) in cases {
        let mut node = TestNode::start(1);
        let mut saving = Saving::begin(&node);
        let (_, parts) = node.backup_call().await;
        for part in sent {
            // The client may have ended the call already.
            let _ = parts.send(part).await;
        }
        drop(parts);
        saving.fails_with(&["is not sound", reason, &node.address]).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_the_answer_and_leaves_no_file() {
    for refused in [BackupRefused::NoSnapshot, BackupRefused::Busy { under_way: 2 }] {
        let mut node = TestNode::start(1);
        let mut saving = Saving::begin(&node);
        let (_, parts) = node.backup_call().await;
        send(&parts, [BackupPart::Refused(refused.clone())]).await;
        drop(parts);
        match saving.outcome().await {
            Err(ClientBackupError::Node(ClientError::Answer(error))) => assert_eq!(error, refused),
            other => panic!("{other:?}"),
        }
        assert!(!saving.has("a.backup") && !saving.has("a.backup.partial"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_not_there_is_reported_at_once_and_one_of_another_cluster_refuses() {
    let mut node = TestNode::start(1);
    let client = ClusterConnection::new([node.address.clone()], Duration::from_secs(20)).unwrap();
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.backup");
    let of_other = client.clone().to(ClusterId(0xc2));
    let refused = of_other.backup(file.clone(), &BackupOptions::default(), |_| {}).await;
    let rejected = |error: &ClientBackupError| {
        matches!(error, ClientBackupError::Node(ClientError::Rejected(RequestRejected::OtherCluster { .. })))
    };
    assert!(refused.as_ref().is_err_and(rejected), "{refused:?}");
    node.stop = None;
    within("the end of the server", &mut node.serving).await.unwrap().unwrap();
    let refused = client.backup(file.clone(), &BackupOptions::default(), |_| {}).await;
    let unreachable =
        |error: &ClientBackupError| matches!(error, ClientBackupError::Node(ClientError::Unreachable(_)));
    assert!(refused.as_ref().is_err_and(unreachable), "{refused:?}");
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_that_does_not_read_is_not_read_for_and_one_that_is_gone_is_noticed() {
    let mut node = TestNode::start(1);
    let channel = connect_lazily(&endpoint(&node.address, Duration::from_secs(5)).unwrap());
    let request = proto::BackupRequest { header: Some(wire::header(Some(CLUSTER))), ..Default::default() };
    let call = tokio::spawn(async move { service(channel).backup(request).await.unwrap().into_inner() });
    let (_, parts) = node.backup_call().await;
    let stream = within("the call", call).await.unwrap();
    // More than any window: the rest is not taken from the node before the caller reads.
    let large = BackupPart::Head(BackupHead {
        meta: meta(5),
        digest: SnapshotDigest { data_bytes: 1 << 40, crc32c: 0 },
        begin_at: 0,
    });
    send(&parts, [large]).await;
    let (mut taken, room) = (0, Duration::from_secs(1));
    while let Ok(()) =
        parts.send_timeout(BackupPart::Data { offset: taken, data: vec![7; 1 << 20] }, room).await
    {
        taken += 1 << 20;
        assert!(taken < 64 << 20, "it is buffered without limit");
    }
    drop(stream);
    within("the end of the call", parts.closed()).await;
}
