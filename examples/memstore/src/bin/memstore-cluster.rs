//! `make run`: three nodes of the store on this machine, each a separate process, until Ctrl+C.
//!
//! It owns the processes and prints a line when the leadership changes, and when a node goes down or comes
//! back. The logs of the nodes go into files beside their data. It does not restart a killed node, but prints
//! the command for that.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitCode, ExitStatus, Stdio};
use std::time::Duration;

use clap::Parser;
use memstore::{HashStore, LogEntry, report, say};
use raftify::status::Status;
use raftify::storage::ReadOnlyStorage;
use raftify::tls::{CertificateRole, Tls};
use raftify::{BoxError, NodeId, RaftClient};
use raftify_cli::authority::{Authority, Holder};
use tokio::process::{Child, Command};
use tokio::time::{Instant, interval, sleep_until, timeout};

const LOOK_INTERVAL: Duration = Duration::from_millis(250);
/// Long enough for a busy machine. A dead node is detected at once.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);
const START_TIMEOUT: Duration = Duration::from_secs(30);
const STOP_TIMEOUT: Duration = Duration::from_secs(15);

const CA_DAYS: u32 = 3650;
const CERTIFICATE_DAYS: u32 = 365;

#[derive(Parser)]
#[command(version, about = "Three nodes of the replicated key-value store on this machine, until Ctrl+C")]
struct Arguments {
    /// The port of the first node for its peers; the second and third node use the next ones
    #[arg(long, default_value_t = 7061, value_parser = clap::value_parser!(u16).range(1..=65533))]
    raft_port: u16,
    /// The port of the first node's web server; the second and third node use the next ones
    #[arg(long, default_value_t = 8001, value_parser = clap::value_parser!(u16).range(1..=65533))]
    web_port: u16,
    /// The directory of the nodes' data; nodes that restart on it continue
    #[arg(long, default_value = "target/memstore")]
    data_dir: PathBuf,
    /// Mutual TLS, with certificates that are made in the data directory at the first start
    #[arg(long)]
    tls: bool,
}

/// The certificates of this machine's nodes, and of a client.
#[derive(Clone)]
struct Certificates {
    ca: PathBuf,
    node: (PathBuf, PathBuf),
    client: (PathBuf, PathBuf),
}

impl Certificates {
    /// Those in a directory; they are issued again at each start, by the CA of the first one.
    fn in_directory(directory: &Path) -> Result<Certificates, BoxError> {
        let is_new = !directory.join("ca.pem").exists();
        let authority =
            if is_new { Authority::create(directory, CA_DAYS) } else { Authority::open(directory) }?;
        let node = Holder::Node { hosts: vec!["127.0.0.1".to_owned()], id: None, cluster: None };
        let roles = vec![CertificateRole::Client, CertificateRole::Admin];
        let client = Holder::Client { name: "operator".to_owned(), roles };
        let (node, client) =
            (authority.issue(&node, CERTIFICATE_DAYS)?, authority.issue(&client, CERTIFICATE_DAYS)?);
        Ok(Certificates {
            ca: authority.certificate(),
            node: (node.certificate, node.key),
            client: (client.certificate, client.key),
        })
    }

    fn options(&self, (certificate, key): &(PathBuf, PathBuf)) -> Vec<String> {
        let with = |name: &str, path: &Path| [name.to_owned(), path.display().to_string()];
        [with("--ca", &self.ca), with("--cert", certificate), with("--key", key)].concat()
    }

    fn of_client(&self) -> Tls {
        let (certificate, key) = &self.client;
        Tls { ca: self.ca.clone().into(), certificate: certificate.clone().into(), key: key.clone().into() }
    }
}

#[tokio::main]
async fn main() -> ExitCode {
    report(run(Arguments::parse()).await)
}

async fn run(arguments: Arguments) -> Result<(), BoxError> {
    let certificates = match arguments.tls {
        true => Some(Certificates::in_directory(&arguments.data_dir.join("certificates"))?),
        false => None,
    };
    let new = |offset| Node::new(&arguments, certificates.clone(), offset);
    let mut nodes = (0..3).map(new).collect::<Result<Vec<Node>, BoxError>>()?;
    let outcome = tokio::select! {
        outcome = start_and_watch(&mut nodes, &arguments.data_dir) => outcome,
        outcome = stop_signal() => outcome.map_err(BoxError::from),
    };
    say("stopping");
    for node in &mut nodes {
        node.request_stop();
    }
    for node in &mut nodes {
        node.stopped().await;
    }
    outcome
}

/// Starts the nodes one after the other: first those with data, which the others join. If none has data, the
/// first one begins the cluster.
async fn start(nodes: &mut [Node]) -> Result<(), BoxError> {
    let mut order: Vec<usize> = (0..nodes.len()).collect();
    order.sort_by_key(|at| !nodes[*at].has_data);
    let first = order[0];
    for at in order {
        if at != first {
            nodes[at].peer_address = Some(nodes[first].raft_address.clone());
        }
        let node = &mut nodes[at];
        match node.start().await {
            Err(error) if at == first && !node.has_data => return Err(error),
            // The node may have left the cluster, and the others can continue without it.
            Err(error) => say(&error.to_string()),
            Ok(()) => {}
        }
    }
    if nodes.iter().all(|node| node.child.is_none()) { Err("no node is up".into()) } else { Ok(()) }
}

async fn start_and_watch(nodes: &mut [Node], data_dir: &Path) -> Result<(), BoxError> {
    start(nodes).await?;
    say(&hints(nodes, data_dir));
    let mut looks = interval(LOOK_INTERVAL);
    let mut leader = None;
    loop {
        looks.tick().await;
        let mut newest: Option<Status> = None;
        for node in &mut *nodes {
            node.look().await;
            let known = node.seen.as_ref().filter(|seen| seen.leader_id.is_some());
            newest = newest.into_iter().chain(known.cloned()).max_by_key(|status| status.term);
        }
        let now = newest.and_then(|status| Some((status.term, status.leader_id?)));
        if now == leader {
            continue;
        }
        leader = now;
        match leader {
            Some((term, id)) => say(&format!("{} leads, in term {term}", name(nodes, id))),
            None => say("no leader"),
        }
    }
}

/// A node by its id, with the address of its page.
fn name(nodes: &[Node], id: NodeId) -> String {
    let node = nodes.iter().find(|node| node.seen.as_ref().is_some_and(|seen| seen.node_id == id));
    match node {
        Some(node) => format!("node {id} ({})", node.url()),
        None => format!("node {id}"),
    }
}

fn hints(nodes: &[Node], data_dir: &Path) -> String {
    let up: Vec<&Node> = nodes.iter().filter(|node| node.child.is_some()).collect();
    let (Some(first), Some(last)) = (up.first(), up.last()) else {
        return String::new();
    };
    let pages: Vec<String> = up.iter().map(|node| node.url()).collect();
    let (curl, options) = match &first.certificates {
        None => ("curl".to_owned(), String::new()),
        Some(certificates) => {
            let options = certificates.options(&certificates.client).join(" ");
            (format!("curl {}", options.replace("--ca ", "--cacert ")), format!(" {options}"))
        }
    };
    let programs = first.program.parent().unwrap_or(Path::new("")).display();
    format!(
        "
{} of {} nodes are up. Try:

  in the browser   {}

  {curl} -X PUT {}/store/greeting/hello
  {curl} {}/store/greeting
  {curl} {}/leader
  {programs}/raftify-client-example --raft-addr {}{options}
  {programs}/memstore-cli describe logs {}
  kill -9 {}        (that is node {}; the others continue)

The data is in {}; the next start continues with it. Ctrl+C stops all.
",
        up.len(),
        nodes.len(),
        pages.join("   "),
        first.url(),
        last.url(),
        last.url(),
        first.raft_address,
        first.data_dir.display(),
        first.child.as_ref().and_then(Child::id).unwrap_or_default(),
        first.number,
        data_dir.display(),
    )
}

/// One of the three nodes.
struct Node {
    number: u16,
    program: PathBuf,
    raft_address: String,
    web_address: String,
    /// The node that it joins at its first start; none if it begins the cluster.
    peer_address: Option<String>,
    data_dir: PathBuf,
    /// Whether it ran before.
    has_data: bool,
    client: RaftClient<LogEntry, HashStore>,
    certificates: Option<Certificates>,
    child: Option<Child>,
    /// Its last reported status; `None` if it did not answer.
    seen: Option<Status>,
}

impl Node {
    fn new(arguments: &Arguments, certificates: Option<Certificates>, offset: u16) -> Result<Node, BoxError> {
        let number = offset + 1;
        let local = |port: u16| format!("127.0.0.1:{port}");
        let raft_address = local(arguments.raft_port + offset);
        let data_dir = arguments.data_dir.join(format!("node-{number}"));
        let program = std::env::current_exe()?.with_file_name("memstore-dynamic-members");
        let client = RaftClient::new([&raft_address])?;
        let client = match &certificates {
            Some(certificates) => client.with_tls(&certificates.of_client())?,
            None => client,
        };
        Ok(Node {
            number,
            // A relative path, as typed by hand, if that is possible.
            program: relative(&program.with_extension(std::env::consts::EXE_EXTENSION)),
            client,
            certificates,
            raft_address,
            web_address: local(arguments.web_port + offset),
            peer_address: None,
            has_data: has_data(&data_dir),
            data_dir,
            child: None,
            seen: None,
        })
    }

    fn url(&self) -> String {
        let scheme = if self.certificates.is_some() { "https" } else { "http" };
        format!("{scheme}://{}", self.web_address)
    }

    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["--raft-addr".to_owned(), self.raft_address.clone()];
        if let Some(peer) = &self.peer_address {
            arguments.extend(["--peer-addr".to_owned(), peer.clone()]);
        }
        arguments.extend(["--web-server".to_owned(), self.web_address.clone()]);
        arguments.extend(["--data-dir".to_owned(), self.data_dir.display().to_string()]);
        if let Some(certificates) = &self.certificates {
            arguments.extend(certificates.options(&certificates.node));
        }
        arguments
    }

    /// Starts the process, and waits until it is part of the cluster: the second node must not request to
    /// join before the first one leads, while nodes that continue with their data need each other.
    async fn start(&mut self) -> Result<(), BoxError> {
        std::fs::create_dir_all(&self.data_dir)
            .map_err(|error| format!("cannot create {}: {error}", self.data_dir.display()))?;
        let log_path = self.log_path();
        let log = File::options().create(true).append(true).open(&log_path);
        let log = log.map_err(|error| format!("cannot write {}: {error}", log_path.display()))?;
        let child = Command::new(&self.program)
            .args(self.arguments())
            .arg("--stop-with-stdin")
            .stdin(Stdio::piped())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .map_err(|error| {
                format!("cannot start {}: {error}; `make build` builds it", self.program.display())
            })?;
        self.child = Some(child);

        let deadline = Instant::now() + START_TIMEOUT;
        let mut looks = interval(LOOK_INTERVAL);
        loop {
            looks.tick().await;
            if let Some(status) = self.ended()? {
                return Err(
                    format!("node {} did not start ({status}): {}", self.number, self.last_words()).into()
                );
            }
            self.seen = self.ask().await;
            let is_part =
                |seen: &Status| seen.is_member() && (seen.leader_id.is_some() || seen.members.len() > 1);
            if self.seen.as_ref().is_some_and(is_part) {
                return Ok(());
            }
            if Instant::now() > deadline {
                let seconds = START_TIMEOUT.as_secs();
                let log = self.log_path();
                return Err(format!(
                    "node {} is not up after {seconds} s, see {}",
                    self.number,
                    log.display()
                )
                .into());
            }
        }
    }

    /// Detects whether the node went down or came back, and prints it.
    async fn look(&mut self) {
        let answered = self.seen.take().is_some();
        let ended = self.ended().ok().flatten();
        self.seen = self.ask().await;
        let number = self.number;
        match (ended, answered, self.seen.is_some()) {
            (Some(status), _, _) => say(&format!("node {number} ended ({status}); {}", self.how_to_start())),
            // Restarted by hand in another terminal, and gone again; or it hangs.
            (None, true, false) if self.child.is_none() => {
                say(&format!("node {number} is gone; {}", self.how_to_start()));
            }
            (None, true, false) => say(&format!("node {number} does not answer")),
            (None, false, true) => say(&format!("node {number} is back")),
            (None, ..) => {}
        }
    }

    fn how_to_start(&self) -> String {
        let command = [self.program.display().to_string()].into_iter().chain(self.arguments());
        format!("to restart it, run in another terminal:\n  {}", command.collect::<Vec<String>>().join(" "))
    }

    async fn ask(&self) -> Option<Status> {
        let inspection = timeout(ANSWER_TIMEOUT, self.client.inspect()).await.ok()?;
        Some(inspection.ok()?.status)
    }

    /// How the process ended; returned once.
    fn ended(&mut self) -> io::Result<Option<ExitStatus>> {
        let Some(child) = &mut self.child else {
            return Ok(None);
        };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    fn log_path(&self) -> PathBuf {
        self.data_dir.with_extension("log")
    }

    /// The line in which the program reported why it ended.
    fn last_words(&self) -> String {
        let log = std::fs::read_to_string(self.log_path()).unwrap_or_default();
        let last = log.lines().rfind(|line| line.starts_with("error: "));
        last.map_or_else(|| format!("see {}", self.log_path().display()), str::to_owned)
    }

    /// Closes the process' standard input, which stops the node. If this program dies, the system does the
    /// same.
    fn request_stop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.stdin.take());
        }
    }

    /// Waits for the end of the process; kills it if that takes too long.
    async fn stopped(&mut self) {
        let Some(mut child) = self.child.take() else {
            return;
        };
        let outcome = tokio::select! {
            outcome = child.wait() => outcome.map(drop),
            () = sleep_until(Instant::now() + STOP_TIMEOUT) => {
                say(&format!("node {} did not stop in time and is killed; no acknowledged write is lost", self.number));
                child.kill().await
            }
        };
        if let Err(error) = outcome {
            say(&format!("node {} could not be stopped: {error}", self.number));
        }
    }
}

/// Whether a member has this directory. A node that was not admitted has left a directory without members.
fn has_data(directory: &Path) -> bool {
    let stored = ReadOnlyStorage::open(directory).and_then(|storage| storage.load());
    stored.is_ok_and(|stored| stored.members.is_some_and(|members| !members.is_empty()))
}

fn relative(path: &Path) -> PathBuf {
    let here = std::env::current_dir().ok();
    let inside = here.and_then(|here| path.strip_prefix(here).ok());
    inside.map_or_else(|| path.to_owned(), |inside| Path::new(".").join(inside))
}

/// Ctrl+C or SIGTERM.
async fn stop_signal() -> io::Result<()> {
    #[cfg(unix)]
    {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        tokio::select! {
            outcome = tokio::signal::ctrl_c() => outcome,
            _ = terminate.recv() => Ok(()),
        }
    }
    #[cfg(not(unix))]
    tokio::signal::ctrl_c().await
}
