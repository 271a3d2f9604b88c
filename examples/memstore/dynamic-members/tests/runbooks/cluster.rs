//! Nodes as processes in one directory, and the programs that the commands of a page name.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use memstore::{HashStore, LogEntry, Reply};
use raftify::RaftClient;
use raftify::tls::Tls;
use raftify_free_address::free_address;
use serde_json::Value;
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::eventually;

/// The number of hosts that the pages name.
const HOSTS: u64 = 5;

/// The options of a program that uses the certificate of a name.
pub(crate) fn tls_options(name: &str) -> String {
    format!("--ca certificates/ca.pem --cert certificates/{name}.pem --key certificates/{name}-key.pem")
}

/// What a program printed, and its exit code.
pub(crate) struct Said {
    pub(crate) exit: Option<i32>,
    pub(crate) text: String,
}

pub(crate) struct Cluster {
    pub(crate) directory: TempDir,
    /// By the name of their directory.
    nodes: BTreeMap<String, Child>,
    /// What stands for a name in the commands of a page.
    pub(crate) names: BTreeMap<String, String>,
    with_tls: bool,
    written: u64,
    runtime: Runtime,
}

impl Cluster {
    /// Three voters.
    pub(crate) fn start() -> Cluster {
        let mut cluster = Cluster::empty(false);
        cluster.start_three();
        cluster
    }

    /// The same with TLS, and a certificate for all nodes and one for the operator.
    pub(crate) fn start_with_tls() -> Cluster {
        let mut cluster = Cluster::empty(true);
        cluster.issue("certificates");
        cluster.start_three();
        cluster
    }

    fn empty(with_tls: bool) -> Cluster {
        let mut names = BTreeMap::new();
        for number in 1..=HOSTS {
            names.insert(format!("HOST-{number}:PORT"), free_address());
            names.insert(format!("HOST-{number}"), "127.0.0.1".to_owned());
        }
        let directory = tempfile::tempdir().unwrap();
        let runtime = Runtime::new().unwrap();
        Cluster { directory, nodes: BTreeMap::new(), names, with_tls, written: 0, runtime }
    }

    /// Makes a CA and issues the certificates.
    fn issue(&self, into: &str) {
        for command in [
            format!("raftify-cli ca init --dir {into}"),
            format!("raftify-cli ca issue --node HOST-1 --dir {into}"),
            format!("raftify-cli ca issue --client operator --role client --role admin --dir {into}"),
        ] {
            let said = self.cli(&command);
            assert_eq!(said.exit, Some(0), "{}", said.text);
        }
    }

    /// One after the other, so that their ids are 1, 2 and 3.
    fn start_three(&mut self) {
        let options = if self.with_tls { tls_options("127.0.0.1") } else { String::new() };
        for number in 1..=3 {
            let peer = if number > 1 { "--peer-addr HOST-1:PORT " } else { "" };
            let command = format!(
                "memstore-dynamic-members --raft-addr HOST-{number}:PORT {peer}--data-dir node-{number} {options}"
            );
            self.start_with(&command);
            eventually("it is a voter", || (self.members("voter").len() as u64 == number).then_some(()));
        }
        for number in 1..=3 {
            let id = self.id_of(&format!("HOST-{number}:PORT"));
            self.names.insert(number.to_string(), id);
        }
    }

    /// The path of a file in the directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn words(&self, command: &str) -> Vec<String> {
        let words = command.split_whitespace();
        words.map(|word| self.names.get(word).map_or(word, String::as_str).to_owned()).collect()
    }

    /// Executes a command of `raftify-cli`.
    pub(crate) fn cli(&self, command: &str) -> Said {
        let words = self.words(command);
        let output = Command::new(cli_program())
            .args(&words[1..])
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        Said { exit: output.status.code(), text }
    }

    /// Executes a command of a shell.
    pub(crate) fn shell(&self, command: &str) {
        let line = self.words(command).join(" ");
        assert!(Command::new("sh").args(["-c", &line]).status().unwrap().success(), "{line}");
    }

    /// Starts the node of a command, beside a log in a file.
    pub(crate) fn start_with(&mut self, command: &str) {
        let words = self.words(command);
        let at = words.iter().position(|word| word == "--data-dir").expect("a node has a directory");
        let name = words[at + 1].clone();
        let log = File::options().create(true).append(true).open(self.path(&format!("{name}.log"))).unwrap();
        let process = Command::new(env!("CARGO_BIN_EXE_memstore-dynamic-members"))
            .args(&words[1..])
            .env("RUST_LOG", "info")
            .current_dir(self.directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.names.insert(name.replace("node-", "PID-"), process.id().to_string());
        assert!(self.nodes.insert(name, process).is_none(), "the node runs already");
    }

    /// Kills a node without notice to its peers.
    pub(crate) fn kill(&mut self, name: &str) {
        let mut process = self.nodes.remove(name).expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// Waits for the end of a node that ends by itself.
    pub(crate) fn until_ended(&mut self, name: &str) {
        let mut process = self.nodes.remove(name).expect("it runs");
        eventually("the process ends", || process.try_wait().unwrap());
    }

    /// How often a text is in the log of a node.
    pub(crate) fn logged(&self, name: &str, text: &str) -> usize {
        let log = fs::read_to_string(self.path(&format!("{name}.log"))).unwrap_or_default();
        log.matches(text).count()
    }

    /// The ids of the members of a role by their addresses.
    pub(crate) fn members(&self, role: &str) -> BTreeMap<String, String> {
        let options = if self.with_tls { tls_options("operator") } else { String::new() };
        let said = self.cli(&format!("raftify-cli cluster members HOST-1:PORT --json {options}"));
        let shown: Value = serde_json::from_str(&said.text).unwrap_or_default();
        let members = shown["members"].as_array().cloned().unwrap_or_default();
        let wanted = members.iter().filter(|member| member["role"] == role);
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        wanted.map(|member| (text(&member["address"]), text(&member["id"]))).collect()
    }

    /// The id of the voter or learner at an address of the pages.
    pub(crate) fn id_of(&self, host: &str) -> String {
        let address = &self.names[host];
        eventually("it is a member", || {
            self.members("voter").get(address).or(self.members("learner").get(address)).cloned()
        })
    }

    fn client(&self) -> RaftClient<LogEntry, HashStore> {
        let addresses = (1..=HOSTS).map(|number| self.names[&format!("HOST-{number}:PORT")].as_str());
        let client = RaftClient::new(addresses).unwrap();
        if !self.with_tls {
            return client;
        }
        let file = |name: &str| self.path("certificates").join(name).into();
        let tls =
            Tls { ca: file("ca.pem"), certificate: file("operator.pem"), key: file("operator-key.pem") };
        let entered = self.runtime.enter();
        let client = client.with_tls(&tls).unwrap();
        drop(entered);
        client
    }

    /// Writes one more key, until the write is acknowledged.
    pub(crate) fn write(&mut self) {
        self.written += 1;
        let (key, value) = (format!("key-{}", self.written), self.written.to_string());
        let client = self.client();
        let entry = LogEntry::Insert { key, value };
        eventually("a write", || self.runtime.block_on(client.propose(&entry)).ok());
    }

    /// All acknowledged writes are there.
    pub(crate) fn check(&self) {
        let client = self.client();
        for number in 1..=self.written {
            let entry = LogEntry::Read { key: format!("key-{number}") };
            let read = eventually("a read", || self.runtime.block_on(client.propose(&entry)).ok());
            assert_eq!(read, Reply::Value(Some(number.to_string().into())), "of key {number}");
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.nodes.values_mut() {
            // It may have ended meanwhile.
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

/// `cargo test --workspace` has built the program; without it, it may be missing.
fn cli_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        let beside = Path::new(env!("CARGO_BIN_EXE_memstore-dynamic-members")).parent().unwrap();
        let program = beside.join("raftify-cli");
        if !program.exists() {
            let built = Command::new(env!("CARGO"))
                .args(["build", "--quiet", "-p", "raftify-cli", "--target-dir"])
                .arg(beside.parent().unwrap())
                .status()
                .unwrap();
            assert!(built.success(), "raftify-cli cannot be built");
        }
        program
    })
}
