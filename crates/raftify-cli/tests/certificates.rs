//! `raftify-cli ca`: its certificates are those that nodes and clients need, and invalid requests change
//! nothing.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::path::Path;
use std::process::{Command, Output};

use raftify::start::{BootstrapOptions, Start};
use raftify::storage::MemoryStorage;
use raftify::tls::Tls;
use raftify::{BoxError, Config, LogPosition, Raft, RaftClient, Snapshot, StateMachine};
use raftify_free_address::free_address;

struct Sum(u64);

impl StateMachine for Sum {
    type LogEntry = u64;
    type Reply = u64;

    fn apply(&mut self, _: LogPosition, add: u64) -> Result<u64, BoxError> {
        self.0 += add;
        Ok(self.0)
    }

    fn snapshot(&mut self) -> Result<Snapshot, BoxError> {
        Ok(Snapshot::from_value(self.0))
    }

    fn restore(&mut self, reader: &mut dyn std::io::Read) -> Result<(), BoxError> {
        self.0 = Snapshot::read_value(reader)?;
        Ok(())
    }
}

fn cli(directory: &Path, arguments: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_raftify-cli"));
    command.current_dir(directory).args(arguments.split_whitespace()).output().unwrap()
}

fn done(directory: &Path, arguments: &str) -> String {
    let output = cli(directory, arguments);
    assert!(output.status.success(), "{arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn refused(directory: &Path, arguments: &str, reason: &str) {
    let output = cli(directory, arguments);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{arguments}");
    assert!(error.contains(reason), "{arguments}: {error}");
}

fn tls(directory: &Path, name: &str) -> Tls {
    let file = |name: String| directory.join("certificates").join(name).into();
    Tls {
        ca: file("ca.pem".to_owned()),
        certificate: file(format!("{name}.pem")),
        key: file(format!("{name}-key.pem")),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_with_tls_is_four_commands() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    done(directory, "ca init");
    let options = done(directory, "ca issue --node 127.0.0.1 --node localhost --id 1");
    assert_eq!(
        options.trim(),
        "--ca certificates/ca.pem --cert certificates/127.0.0.1.pem --key certificates/127.0.0.1-key.pem"
    );
    let options = done(directory, "ca issue --client operator --role client --role admin");

    let address = free_address();
    let with = BootstrapOptions { tls: Some(tls(directory, "127.0.0.1")), ..BootstrapOptions::default() };
    let storage = MemoryStorage::default();
    let node = Raft::start(Start::Begin, &address, storage, Sum(0), Config::default(), with).await.unwrap();
    node.wait_for_leader().await.unwrap();
    let client = RaftClient::<u64, Sum>::new([&address]).unwrap();
    let client = client.with_tls(&tls(directory, "operator")).unwrap();
    assert_eq!(client.propose(&7).await.unwrap(), 7);
    let by_name = address.replace("127.0.0.1", "localhost");
    for command in ["cluster members", "describe node"] {
        let shown = done(directory, &format!("{command} {by_name} {}", options.trim()));
        assert!(shown.contains(&address), "{shown}");
        refused(directory, &format!("{command} {address}"), "over TLS only");
    }
    refused(directory, &format!("cluster members {address} --ca certificates/ca.pem"), "--cert");
    let status = done(directory, &format!("cluster status {by_name} {}", options.trim()));
    assert!(status.starts_with("1 of 1 up, writes accepted\n"), "{status}");
    done(directory, &format!("cluster snapshot 1 {address} {}", options.trim()));

    let reader = done(directory, "ca issue --client reader --role client");
    let reader = reader.trim();
    done(directory, &format!("cluster status {address} {reader}"));
    for command in ["remove 1 --yes", "leave 1 --yes", "snapshot 1", "transfer"] {
        refused(
            directory,
            &format!("cluster {command} {address} {reader}"),
            "use a certificate with the role",
        );
    }
    node.quit().await;
}

#[cfg(unix)]
#[test]
fn keys_are_readable_for_their_owner_alone_and_a_certificate_can_be_renewed() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    done(directory, "ca init");
    done(directory, "ca issue --node ::1");
    let read = |name: &str| std::fs::read(directory.join("certificates").join(name)).unwrap();
    let first = read("__1.pem");
    for key in ["ca-key.pem", "__1-key.pem"] {
        let mode = std::fs::metadata(directory.join("certificates").join(key)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{key}");
    }
    done(directory, "ca issue --node [::1]");
    assert_ne!(read("__1.pem"), first);
}

#[test]
fn invalid_requests_are_refused_and_write_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    refused(directory, "ca issue --node a.example", "`ca init` makes a CA");
    refused(directory, "ca init --days 0", "1 to");
    refused(directory, "ca init --days 4000000000", "1 to");
    done(directory, "ca init");
    let files = || std::fs::read_dir(directory.join("certificates")).unwrap().count();
    assert_eq!(files(), 2);
    refused(directory, "ca init", "exists");
    refused(directory, "ca issue", "--node");
    refused(directory, "ca issue --node a.example:7061", "without a port");
    refused(directory, "ca issue --node ../a", "is no host");
    refused(directory, "ca issue --node ca", "is no host");
    refused(directory, "ca issue --node a --id 0", "invalid value");
    refused(directory, "ca issue --node a --client b --role client", "cannot be used with");
    refused(directory, "ca issue --client b", "--role");
    refused(directory, "ca issue --client ../b --role client", "is no name");
    refused(directory, "ca issue --client b --role king", "is no role");
    refused(directory, "ca issue --client b --role node", "--node HOST");
    refused(directory, "ca issue --client b --role client --id 1", "cannot be used with");
    refused(directory, "ca issue --node a --days 99999999", "1 to");
    assert_eq!(files(), 2);
    std::fs::write(directory.join("certificates/ca.pem"), "garbage").unwrap();
    refused(directory, "ca issue --node a", "cannot be used");
}
