//! `raftify-cli backup ADDRESS FILE` with real nodes: connections that break, data that is altered on the way,
//! full disks, files that exist, and nodes that stop.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod common;

use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::nodes::until_served;
use common::{cli, text};
use raftify::storage::verify_snapshot_file;
use raftify::{BoxError, Config, LogPosition, Raft, Snapshot, StateMachine, WalStorage};
use raftify_free_address::free_address;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep};

const MIB: usize = 1 << 20;

/// No condition takes this long on any working machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// An entry makes the state longer by so many MiB, all of the same byte.
struct Large(Vec<u8>);

const BYTE: u8 = 0x5a;

impl StateMachine for Large {
    type LogEntry = u64;
    type Reply = u64;

    fn apply(&mut self, _: LogPosition, mib: u64) -> Result<u64, BoxError> {
        self.0.resize(self.0.len() + mib as usize * MIB, BYTE);
        Ok(self.0.len() as u64)
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        let state = self.0.clone();
        Ok(Snapshot::new(move |writer| Ok(writer.write_all(&state)?)))
    }

    fn restore(&mut self, reader: &mut dyn Read) -> Result<(), BoxError> {
        self.0.clear();
        reader.read_to_end(&mut self.0)?;
        Ok(())
    }
}

type Node = Raft<u64, Large>;

fn config() -> Config {
    Config {
        snapshot_bytes_per_second_max: None,
        log_entries_kept: 0,
        log_bytes_kept_for_followers: 0,
        ..Config::default()
    }
}

fn open(directory: &Path) -> WalStorage {
    WalStorage::open(directory).unwrap()
}

/// A node with a state of so many MiB, its address, and a place for files.
async fn node(mib: u64) -> (Node, String, TempDir) {
    let (address, place) = (free_address(), tempfile::tempdir().unwrap());
    let node = Node::begin(&*address, open(&place.path().join("node")), Large(Vec::new()), config());
    let node = node.await.unwrap();
    until_served(async || node.propose(mib).await).await;
    (node, address, place)
}

async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !condition() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        sleep(Duration::from_millis(20)).await;
    }
}

/// The command, while the nodes of this process run.
async fn run(arguments: &[&str]) -> Output {
    let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
    tokio::task::spawn_blocking(move || cli(&arguments)).await.unwrap()
}

#[track_caller]
fn done(output: &Output) -> String {
    assert!(output.status.success(), "{}", text(output));
    text(output)
}

/// Fails with exit code 1 and one line that has all of these parts, after any notes.
#[track_caller]
fn refused(output: &Output, parts: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    let last = error.lines().last().unwrap();
    assert!(last.starts_with("error: "), "{error}");
    for part in parts {
        assert!(last.contains(part), "{part:?} is not in: {last}");
    }
}

struct Files {
    file: String,
    partial: PathBuf,
}

fn files(place: &TempDir, name: &str) -> Files {
    let file = place.path().join(name);
    let partial = place.path().join(format!("{name}.partial"));
    Files { file: file.to_str().unwrap().to_owned(), partial }
}

/// What a proxy does with a piece of what the node sends.
enum Piece {
    Pass,
    Cut,
    /// Holds the connection until it breaks.
    Stall,
    Alter,
}

/// Forwards connections to a node.
struct Proxy {
    address: String,
    passed: Arc<AtomicU64>,
}

impl Proxy {
    /// `decide` gets the number of bytes that were passed before a piece.
    async fn start(to: String, decide: impl Fn(u64) -> Piece + Send + Sync + 'static) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let passed = Arc::new(AtomicU64::new(0));
        let (decide, counted) = (Arc::new(decide), Arc::clone(&passed));
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let Ok(server) = TcpStream::connect(&to).await else { continue };
                tokio::spawn(forward(client, server, Arc::clone(&decide), Arc::clone(&counted)));
            }
        });
        Proxy { address, passed }
    }

    fn passed(&self) -> u64 {
        self.passed.load(Ordering::SeqCst)
    }
}

async fn forward(
    client: TcpStream,
    server: TcpStream,
    decide: Arc<impl Fn(u64) -> Piece + Send + Sync + 'static>,
    passed: Arc<AtomicU64>,
) {
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let requests = tokio::spawn(async move {
        let _ = tokio::io::copy(&mut from_client, &mut to_server).await;
    });
    let mut piece = vec![0; 64 << 10];
    while let Ok(length @ 1..) = from_server.read(&mut piece).await {
        match decide(passed.load(Ordering::SeqCst)) {
            Piece::Pass => {}
            Piece::Cut => break,
            Piece::Stall => {
                while let Ok(1..) = from_server.read(&mut piece).await {}
                break;
            }
            Piece::Alter => {
                // In the middle of the data, so that the frames of the connection stay valid.
                let data = piece[..length].windows(1000).position(|run| run.iter().all(|byte| *byte == BYTE));
                if let Some(at) = data {
                    piece[at + 500] ^= 1;
                }
            }
        }
        if to_client.write_all(&piece[..length]).await.is_err() {
            break;
        }
        passed.fetch_add(length as u64, Ordering::SeqCst);
    }
    requests.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_whose_connection_breaks_continues_where_it_was_interrupted() {
    const STATE: u64 = 24;
    let (node, address, place) = node(STATE).await;
    let cuts = AtomicU64::new(0);
    let proxy = Proxy::start(address, move |passed| {
        let done = cuts.load(Ordering::SeqCst);
        match done < 2 && passed >= (done + 1) * 8 * MIB as u64 {
            true => {
                cuts.store(done + 1, Ordering::SeqCst);
                Piece::Cut
            }
            false => Piece::Pass,
        }
    })
    .await;
    let Files { file, partial } = files(&place, "a.backup");
    let said = done(&run(&["backup", &proxy.address, &file]).await);
    assert_eq!(said.matches("tries again: ").count(), 2, "{said}");
    assert_eq!(said.matches("continues the snapshot at ").count(), 2, "{said}");
    assert!(said.contains("is a backup of cluster"), "{said}");
    let (meta, bytes) = verify_snapshot_file(&file).unwrap();
    assert_eq!((Some(meta.position), bytes), (node.status().borrow().snapshot, STATE * MIB as u64));
    // What was on its way when the connection broke was sent twice.
    assert!(proxy.passed() < (STATE + 12) * MIB as u64, "{} bytes were sent", proxy.passed());
    assert!(!partial.exists());
    node.quit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_that_is_altered_on_the_way_is_refused_and_the_sound_part_can_be_resumed() {
    let (node, address, place) = node(4).await;
    let proxy = Proxy::start(address.clone(), move |passed| match passed > 2 * MIB as u64 {
        true => Piece::Alter,
        false => Piece::Pass,
    })
    .await;
    let Files { file, partial } = files(&place, "a.backup");
    let output = run(&["backup", &proxy.address, &file]).await;
    refused(&output, &["cannot back up the member at", "is not sound", "altered on its way", "--resume"]);
    assert!(!Path::new(&file).exists() && partial.exists());
    let said = done(&run(&["backup", &address, &file, "--newest", "--resume"]).await);
    assert!(said.contains("continues the snapshot at"), "{said}");
    assert_eq!(verify_snapshot_file(&file).unwrap().1, 4 * MIB as u64);
    node.quit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_existing_file_is_not_replaced_and_a_full_disk_is_reported() {
    let (node, address, place) = node(4).await;
    let Files { file, partial } = files(&place, "a.backup");
    fs::write(&file, "of another program").unwrap();
    refused(&run(&["backup", &address, &file]).await, &["cannot create", "a.backup"]);
    assert_eq!(fs::read(&file).unwrap(), b"of another program");
    assert!(!partial.exists());
    fs::remove_file(&file).unwrap();
    // No file may be larger than 1 MiB: the error differs from that of a full disk, and nothing else does.
    let limited = tokio::task::spawn_blocking({
        let (address, file) = (address.clone(), file.clone());
        move || {
            Command::new("sh")
                .args(["-c", "ulimit -f 2048; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_raftify-cli")])
                .args(["backup", &address, &file])
                .stdin(Stdio::null())
                .output()
                .unwrap()
        }
    });
    refused(&limited.await.unwrap(), &["cannot write to", "a.backup.partial", "--resume"]);
    assert!(!Path::new(&file).exists() && partial.exists());
    let output = run(&["backup", &address, &file, "--newest", "--resume", "--json"]).await;
    done(&output);
    let shown: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(shown["data_bytes"], 4 * MIB);
    assert_eq!(shown["members"][0]["address"], *address);
    assert_eq!(shown["position"]["index"], node.status().borrow().snapshot.unwrap().index.get());
    node.quit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_a_snapshot_says_so_and_takes_one_without_newest() {
    let (node, address, place) = node(1).await;
    let Files { file, partial } = files(&place, "a.backup");
    let output = run(&["backup", &address, &file, "--newest"]).await;
    refused(&output, &["has not taken a snapshot yet", "without --newest"]);
    assert!(!Path::new(&file).exists() && !partial.exists());
    done(&run(&["backup", &address, &file]).await);
    let unused = free_address();
    refused(&run(&["backup", &unused, "never"]).await, &["cannot be connected to", "check the addresses"]);
    for invalid in [&["backup"][..], &["backup", &address], &["backup", &address, "never", "--rate", "1"]] {
        assert_eq!(run(invalid).await.status.code(), Some(2), "{invalid:?}");
    }
    assert!(!Path::new("never").exists() && !Path::new("never.partial").exists());
    node.quit().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_node_that_stops_continues_when_the_node_runs_again() {
    let (node, address, place) = node(12).await;
    let again = Arc::new(AtomicBool::new(false));
    let proxy = {
        let again = Arc::clone(&again);
        let decide = move |passed| match passed < 4 * MIB as u64 || again.load(Ordering::SeqCst) {
            true => Piece::Pass,
            false => Piece::Stall,
        };
        Proxy::start(address.clone(), decide).await
    };
    let Files { file, .. } = files(&place, "a.backup");
    let command = tokio::spawn({
        let (proxy, file) = (proxy.address.clone(), file.clone());
        async move { run(&["backup", &proxy, &file]).await }
    });
    until("a part has arrived", || proxy.passed() >= 4 * MIB as u64).await;
    node.quit().await;
    again.store(true, Ordering::SeqCst);
    let position = node.status().borrow().snapshot.unwrap();
    let node = Node::restart(&*address, open(&place.path().join("node")), Large(Vec::new()), config());
    let node = node.await.unwrap();
    let said = done(&command.await.unwrap());
    assert!(said.contains("tries again: ") && said.contains("continues the snapshot at "), "{said}");
    let (meta, bytes) = verify_snapshot_file(&file).unwrap();
    assert_eq!((meta.position, bytes), (position, 12 * MIB as u64));
    node.quit().await;
}
