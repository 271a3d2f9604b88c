//! The example `memstore` over its web API, as three processes: the setup of the README.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use raftify::BoxError;
use raftify_free_address::free_address;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::runtime::Builder;

use super::disk;
use crate::Work;
use crate::cluster::{NODES, PATIENCE, PAUSE};
use crate::line::Line;
use crate::machine::Usage;
use crate::measure::{Outcome, closed_loop};

const PROGRAM: &str = "memstore-static-members";

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Http {
    /// Concurrent clients, each with its own connection
    #[arg(long, value_delimiter = ',', default_values_t = [1, 64, 256])]
    clients: Vec<u64>,
    /// Bytes of one value
    #[arg(long, default_value_t = 64)]
    value_bytes: usize,
    /// How long each run takes
    #[arg(long, default_value_t = 1.5)]
    seconds: f64,
    /// The program of the example [default: that beside this program]
    #[arg(long)]
    program: Option<PathBuf>,
}

impl Http {
    pub(crate) fn run(&self, work: &Work) -> Result<(), BoxError> {
        work.reporter.steps(2 * self.clients.len())?;
        let beside = std::env::current_exe()?.with_file_name(PROGRAM);
        let program = self.program.clone().unwrap_or(beside);
        if !program.exists() {
            return Err(format!(
                "{PROGRAM} is not there: build it with `cargo build --release -p memstore-static-members`, or give \
                 its path with --program"
            )
            .into());
        }
        let directory = tempfile::tempdir_in(&work.directory)?;
        let store = Memstore::start(&program, directory.path())?;
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let leader = runtime.block_on(store.leader())?;
        let value = "v".repeat(self.value_bytes);
        let put = format!(
            "PUT /store/key HTTP/1.1\r\nHost: bench\r\nContent-Length: {}\r\n\r\n{value}",
            value.len()
        );
        let get = "GET /store/key HTTP/1.1\r\nHost: bench\r\n\r\n".to_owned();
        for (verb, request) in [("PUT", put), ("GET", get)] {
            for clients in &self.clients {
                work.reporter.step(format!("{verb}, {clients} clients"))?;
                let connections = Connections::new(leader.clone(), request.clone());
                let duration = Duration::from_secs_f64(self.seconds);
                let operation = move || {
                    let connections = connections.clone();
                    async move { connections.ask().await.map(|_body| Outcome::Done) }
                };
                let probe = disk::probe(&work.directory)?;
                let warm_up = duration / 4;
                runtime.block_on(runtime.spawn(closed_loop(*clients, warm_up, operation.clone())))??;
                let cpu = store.cpu_seconds()?;
                let measured =
                    runtime.block_on(runtime.spawn(closed_loop(*clients, duration, operation)))??;
                let cpu = store.cpu_seconds()? - cpu;
                let line = Line {
                    storage: Some(store.storage().to_owned()),
                    nodes: Some(NODES),
                    clients: Some(*clients),
                    entry_bytes: Some(self.value_bytes as u64),
                    fsync: Some(true),
                    disk_fdatasync_p50_us: Some(probe),
                    ..Line::of("http")
                };
                let line = line.measured(&measured).cpu(cpu, measured.count);
                work.reporter.result(line.with("verb", verb).with("processes", NODES))?;
            }
        }
        Ok(())
    }
}

/// The processes of the example. They are killed when this is dropped.
struct Memstore {
    nodes: Vec<Child>,
    web_addresses: Vec<String>,
    directory: PathBuf,
}

impl Memstore {
    fn start(program: &Path, directory: &Path) -> Result<Memstore, BoxError> {
        let addresses: Vec<String> = (0..NODES).map(|_| free_address()).collect();
        let web_addresses = (0..NODES).map(|_| free_address()).collect();
        let peers = (1..).zip(&addresses);
        let peers: String =
            peers.map(|(id, address)| format!("[[peers]]\nid = {id}\naddress = \"{address}\"\n")).collect();
        let config = directory.join("peers.toml");
        fs::write(&config, peers)?;
        let mut store = Memstore { nodes: Vec::new(), web_addresses, directory: directory.to_owned() };
        for (address, web_address) in addresses.iter().zip(&store.web_addresses) {
            let node = Command::new(program)
                .args(["--raft-addr", address, "--web-server", web_address, "--config"])
                .arg(&config)
                .arg("--data-dir")
                .arg(directory.join(address))
                .env("RUST_LOG", "error")
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn()?;
            store.nodes.push(node);
        }
        Ok(store)
    }

    /// Waits until there is a leader, and returns the address of its web API.
    async fn leader(&self) -> Result<String, BoxError> {
        let first = self.web_addresses.first().ok_or("there are no nodes")?;
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            let request = "GET /leader HTTP/1.1\r\nHost: bench\r\n\r\n".to_owned();
            if let Ok(body) = Connections::new(first.clone(), request).ask().await {
                let answer: serde_json::Value = serde_json::from_slice(&body)?;
                let id = answer["id"].as_u64().and_then(|id| usize::try_from(id.checked_sub(1)?).ok());
                let leader = id.and_then(|place| self.web_addresses.get(place));
                return leader.cloned().ok_or_else(|| format!("{answer} names no leader").into());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Err("the example has no leader".into())
    }

    /// The example does not report its storage; its directory shows it.
    fn storage(&self) -> &'static str {
        let is_wal = |entry: fs::DirEntry| entry.path().join("log").is_dir();
        let is_wal =
            fs::read_dir(&self.directory).is_ok_and(|mut nodes| nodes.any(|node| node.is_ok_and(is_wal)));
        if is_wal { "wal" } else { "heed" }
    }

    /// Of the nodes and of the clients in this process.
    fn cpu_seconds(&self) -> Result<f64, BoxError> {
        let mut sum = Usage::of(None)?.cpu_seconds;
        for node in &self.nodes {
            sum += Usage::of(Some(node.id()))?.cpu_seconds;
        }
        Ok(sum)
    }
}

impl Drop for Memstore {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            // It may have ended by itself.
            let _ = node.kill();
            let _ = node.wait();
        }
    }
}

/// Open connections, one for each pending request; all requests are the same.
#[derive(Clone)]
struct Connections {
    address: String,
    request: String,
    idle: Arc<Mutex<Vec<TcpStream>>>,
}

impl Connections {
    fn new(address: String, request: String) -> Connections {
        Connections { address, request, idle: Arc::default() }
    }

    /// Sends the request and returns the body of the answer.
    async fn ask(&self) -> Result<Vec<u8>, BoxError> {
        let idle = self.idle.lock().pop();
        let mut connection = match idle {
            Some(connection) => connection,
            None => {
                let connection = TcpStream::connect(&self.address).await?;
                connection.set_nodelay(true)?;
                connection
            }
        };
        connection.write_all(self.request.as_bytes()).await?;
        let mut answer = Vec::with_capacity(512);
        let (head, length) = loop {
            if connection.read_buf(&mut answer).await? == 0 {
                return Err("the web server closed the connection".into());
            }
            if let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
                let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
                let length: usize = length.ok_or("an answer has no length")?.trim().parse()?;
                answer.drain(..end + 4);
                break (head, length);
            }
        };
        while answer.len() < length {
            if connection.read_buf(&mut answer).await? == 0 {
                return Err("the web server closed the connection".into());
            }
        }
        if !head.starts_with("http/1.1 200") {
            let text = String::from_utf8_lossy(&answer);
            return Err(format!(
                "the web server answered {} {text}",
                head.lines().next().unwrap_or_default()
            )
            .into());
        }
        self.idle.lock().push(connection);
        Ok(answer)
    }
}
