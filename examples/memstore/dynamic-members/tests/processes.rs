//! Three nodes as three processes: acknowledged writes survive the death of any node, and of all.

#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use raftify_free_address::free_address;
use tempfile::TempDir;

const DEADLINE: Duration = Duration::from_secs(60);

struct Node {
    raft: String,
    web: String,
    peer: Option<String>,
    directory: PathBuf,
    process: Option<Child>,
}

impl Node {
    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_memstore-dynamic-members"));
        command.args(["--raft-addr", &self.raft, "--web-server", &self.web, "--data-dir"]);
        command.arg(&self.directory).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Some(peer) = &self.peer {
            command.args(["--peer-addr", peer]);
        }
        command
    }

    fn start(&mut self) {
        self.process = Some(self.command().spawn().unwrap());
    }

    /// Kills the process without notice to its peers, as SIGKILL does.
    fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// The status code and the body of the answer; `None` if the node does not answer.
    fn ask(&self, method: &str, path: &str) -> Option<(u16, String)> {
        let mut stream = TcpStream::connect(&self.web).ok()?;
        stream.set_read_timeout(Some(DEADLINE)).unwrap();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        )
        .ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        let (head, body) = answer.split_once("\r\n\r\n")?;
        Some((head.split(' ').nth(1)?.parse().ok()?, body.to_owned()))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.kill();
        }
    }
}

/// A cluster, and its acknowledged writes.
struct Cluster {
    nodes: [Node; 3],
    acknowledged: BTreeMap<String, String>,
    _directory: TempDir,
}

impl Cluster {
    /// The second and the third node join at once.
    fn start() -> Cluster {
        let directory = tempfile::tempdir().unwrap();
        let [a, b, c, web_a, web_b, web_c] = [(); 6].map(|()| free_address());
        let node = |raft: &String, web: String, name: &str| Node {
            raft: raft.clone(),
            web,
            peer: (*raft != a).then(|| a.clone()),
            directory: Path::join(directory.path(), name),
            process: None,
        };
        let nodes = [node(&a, web_a, "a"), node(&b, web_b, "b"), node(&c, web_c, "c")];
        let mut cluster = Cluster { nodes, acknowledged: BTreeMap::new(), _directory: directory };
        cluster.nodes[0].start();
        eventually("the first node leads", || cluster.leader().map(drop));
        cluster.nodes[1].start();
        cluster.nodes[2].start();
        for node in &cluster.nodes {
            eventually("all are members", || {
                let (_, peers) = node.ask("GET", "/peers")?;
                (peers.matches("\"voter\"").count() == 3).then_some(())
            });
        }
        cluster
    }

    /// The index of the leader in the array, as the nodes that answer report it.
    fn leader(&self) -> Option<usize> {
        let answers = self.nodes.iter().filter_map(|node| node.ask("GET", "/leader"));
        let (_, newest) = answers.filter(|(status, _)| *status == 200).max_by_key(|(_, body)| term(body))?;
        self.nodes.iter().position(|node| newest.contains(&format!("{:?}", node.raft)))
    }

    /// Writes through any node that accepts the write.
    fn put(&mut self, key: &str, value: &str) {
        let path = format!("/store/{key}/{value}");
        eventually("a node takes a write", || {
            let mut answers = self.nodes.iter().filter_map(|node| node.ask("PUT", &path));
            answers.any(|(status, _)| status == 200).then_some(())
        });
        self.acknowledged.insert(key.to_owned(), value.to_owned());
    }

    /// Every running node must return all acknowledged writes.
    fn check(&self) {
        for node in self.nodes.iter().filter(|node| node.process.is_some()) {
            for (key, value) in &self.acknowledged {
                let path = format!("/store/{key}");
                let (status, body) = eventually("a node answers a read", || {
                    node.ask("GET", &path).filter(|(status, _)| *status != 503)
                });
                assert_eq!((status, body), (200, format!(r#"{{"key":"{key}","value":"{value}"}}"#)));
            }
        }
    }
}

fn term(leader: &str) -> u64 {
    let digits = leader.rsplit("\"term\":").next().unwrap_or_default();
    digits.trim_end_matches('}').parse().unwrap()
}

/// Repeats `attempt` until it returns a value.
fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + DEADLINE;
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(Instant::now() < deadline, "not within {DEADLINE:?}: {what}");
        std::thread::sleep(Duration::from_millis(20)); // The polling interval, not the condition.
    }
}

#[test]
fn killing_any_node_or_all_loses_no_acknowledged_write() {
    let mut cluster = Cluster::start();
    cluster.put("first", "1");
    cluster.check();

    for round in 0..3 {
        let leader = eventually("there is a leader", || cluster.leader());
        cluster.nodes[leader].kill();
        cluster.put(&format!("without-{round}"), "the-leader");
        cluster.check();
        cluster.nodes[leader].start();
        cluster.put(&format!("with-{round}"), "all-again");
        cluster.check();
    }

    for node in &mut cluster.nodes {
        node.kill();
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.check();
    cluster.put("last", "1");
    cluster.check();
}

#[test]
fn a_failed_start_is_explained_in_one_line() {
    let directory = tempfile::tempdir().unwrap();
    let [raft, web, dead] = [(); 3].map(|()| free_address());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap().to_string();
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    let fresh = |name: &str| directory.path().join(name).display().to_string();
    for (arguments, reason) in [
        (vec!["--raft-addr", "nonsense", "--data-dir", &fresh("a")], "nonsense"),
        (vec!["--raft-addr", "no-such-host.invalid:1", "--data-dir", &fresh("b")], "no-such-host.invalid:1"),
        (vec!["--raft-addr", &taken, "--data-dir", &fresh("c")], taken.as_str()),
        (vec!["--raft-addr", &raft, "--web-server", &taken, "--data-dir", &fresh("d")], "--web-server"),
        (vec!["--raft-addr", &raft, "--web-server", &web, "--data-dir", file.to_str().unwrap()], "file"),
        (
            vec![
                "--raft-addr",
                &raft,
                "--peer-addr",
                &dead,
                "--wait-for-peers",
                "0",
                "--data-dir",
                &fresh("e"),
            ],
            dead.as_str(),
        ),
        (vec!["--raft-addr", "0.0.0.0:7061", "--data-dir", &fresh("f")], "--listen-addr"),
    ] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_memstore-dynamic-members"));
        let output = command.args(&arguments).env("RUST_LOG", "off").stdin(Stdio::null()).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{arguments:?}: {said}");
        assert!(said.starts_with("error: ") && said.contains(reason), "{said}");
    }
}

#[test]
fn an_invalid_address_is_reported_and_leaves_no_directory() {
    let parent = TempDir::new().unwrap();
    let directory = parent.path().join("data");
    for addresses in
        [["--raft-addr", "no-port"].as_slice(), &["--raft-addr", "[::1]:1", "--peer-addr", "here"]]
    {
        let mut command = Command::new(env!("CARGO_BIN_EXE_memstore-dynamic-members"));
        let output = command.args(addresses).arg("--data-dir").arg(&directory).output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("is not of the form host:port"), "{said}");
        assert!(!directory.exists());
    }
}

/// Also while it waits for its peers.
#[cfg(unix)]
#[test]
fn a_stop_request_ends_a_node_that_waits_for_its_peers_at_once() {
    let directory = TempDir::new().unwrap();
    let [raft, peer] = [(); 2].map(|()| free_address());
    let mut command = Command::new(env!("CARGO_BIN_EXE_memstore-dynamic-members"));
    command.args(["--raft-addr", &raft, "--peer-addr", &peer, "--data-dir"]).arg(directory.path());
    let mut process = command.stdin(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut log = BufReader::new(process.stderr.take().unwrap()).lines();
    let waits = log.by_ref().find(|line| line.as_ref().is_ok_and(|line| line.contains("waiting for")));
    assert!(waits.unwrap().unwrap().contains(&peer));
    let kill = ["-c", "kill -TERM $0", &process.id().to_string()];
    assert!(Command::new("sh").args(kill).status().unwrap().success());
    let rest: Vec<String> = log.map(Result::unwrap).collect();
    assert!(process.wait().unwrap().success(), "{rest:?}");
}

#[test]
fn a_node_whose_web_address_is_taken_does_not_join_the_cluster() {
    let cluster = Cluster::start();
    let [first, ..] = &cluster.nodes;
    let web = TcpListener::bind("127.0.0.1:0").unwrap();
    let stranger = Node {
        raft: free_address(),
        web: web.local_addr().unwrap().to_string(),
        peer: Some(first.raft.clone()),
        directory: first.directory.with_file_name("stranger"),
        process: None,
    };
    let output = stranger.command().stderr(Stdio::piped()).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success());
    assert!(said.starts_with("error: cannot serve the web API at "), "{said}");
    assert!(!stranger.directory.exists());
    let (_, peers) = first.ask("GET", "/peers").unwrap();
    assert_eq!(peers.matches("\"voter\"").count(), 3, "{peers}");
}
