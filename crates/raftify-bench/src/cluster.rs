//! The measured nodes, mostly three: in this process, each on its own runtime, or as three processes.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use raftify::BoxError;
use raftify_free_address::free_address;

use crate::line::Line;
use crate::machine::Usage;
use crate::measure::Measured;
use crate::node::{Answer, Command, Load, NodeOptions, NodeStatus, Running};

pub(crate) const NODES: u64 = 3;

/// Longer than any operation without a fault.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The polling interval.
pub(crate) const PAUSE: Duration = Duration::from_millis(10);

/// Where the nodes run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Place {
    /// All in one process
    One,
    /// Each in its own process
    Three,
}

impl Place {
    pub(crate) fn processes(self, nodes: u64) -> u64 {
        match self {
            Place::One => 1,
            Place::Three => nodes,
        }
    }
}

/// A cluster of nodes, of which some may be down.
pub(crate) struct Cluster {
    directory: PathBuf,
    addresses: Vec<String>,
    options: NodeOptions,
    place: Place,
    nodes: Vec<Option<ClusterNode>>,
}

enum ClusterNode {
    Here(Running),
    Process(Process),
}

impl Cluster {
    /// Starts all nodes, with their data below `directory`.
    pub(crate) fn start(directory: &Path, place: Place, options: NodeOptions) -> Result<Cluster, BoxError> {
        Cluster::start_some(directory, place, options, NODES)
    }

    /// Starts the first `count` nodes of a cluster of [`NODES`].
    pub(crate) fn start_some(
        directory: &Path,
        place: Place,
        options: NodeOptions,
        count: u64,
    ) -> Result<Cluster, BoxError> {
        Cluster::start_sized(directory, place, options, NODES, count)
    }

    /// Starts the first `count` nodes of a cluster of `size`.
    pub(crate) fn start_sized(
        directory: &Path,
        place: Place,
        options: NodeOptions,
        size: u64,
        count: u64,
    ) -> Result<Cluster, BoxError> {
        let addresses = (0..size).map(|_| free_address()).collect();
        let nodes = (0..size).map(|_| None).collect();
        let mut cluster = Cluster { directory: directory.to_owned(), addresses, options, place, nodes };
        for id in 1..=count {
            cluster.start_node(id)?;
        }
        Ok(cluster)
    }

    /// Starts one more node, as a process, which joins through the member `peer`. Returns its id.
    pub(crate) fn join_node(&mut self, peer: u64) -> Result<u64, BoxError> {
        let id = self.nodes.len() as u64 + 1;
        let peer = self.addresses.get(usize::try_from(peer - 1)?).ok_or("there is no such peer")?.clone();
        self.addresses.push(free_address());
        let data = self.directory.join(id.to_string());
        let options = NodeOptions { join: Some(peer), snapshot_bytes: 0, ..self.options.clone() };
        let process = Process::start(id, &data, &self.addresses, &options)?;
        self.nodes.push(Some(ClusterNode::Process(process)));
        Ok(id)
    }

    /// Starts a node that is down, on its existing data.
    pub(crate) fn start_node(&mut self, id: u64) -> Result<(), BoxError> {
        let data = self.directory.join(id.to_string());
        let node = match self.place {
            Place::One => ClusterNode::Here(Running::start(id, &data, &self.addresses, &self.options)?),
            Place::Three => ClusterNode::Process(Process::start(id, &data, &self.addresses, &self.options)?),
        };
        *self.slot(id)? = Some(node);
        Ok(())
    }

    /// Kills a node that is a process.
    pub(crate) fn kill(&mut self, id: u64) -> Result<(), BoxError> {
        match self.slot(id)?.take() {
            Some(ClusterNode::Process(mut process)) => {
                process.child.kill()?;
                process.child.wait()?;
                Ok(())
            }
            _ => Err(format!("node {id} is not a running process").into()),
        }
    }

    pub(crate) fn addresses(&self) -> &[String] {
        &self.addresses
    }

    /// The directory of its certificates, with TLS.
    pub(crate) fn certificates(&self) -> Option<&Path> {
        self.options.certificates.as_deref()
    }

    /// The fields of a result of this cluster that are known before the measurement.
    pub(crate) fn line(&self, bench: &str) -> Line {
        let line = Line {
            storage: Some(self.options.storage.name().to_owned()),
            nodes: Some(self.nodes.len() as u64),
            fsync: Some(self.options.storage.is_synced()),
            ..Line::of(bench)
        };
        let line = line.with("processes", self.place.processes(self.nodes.len() as u64));
        let switched_on = [("tls", self.options.certificates.is_some()), ("metrics", self.options.metrics)];
        switched_on
            .into_iter()
            .filter(|(_, is_on)| *is_on)
            .fold(line, |line, (name, _)| line.with(name, "on"))
    }

    /// The status of a running node.
    pub(crate) fn status(&mut self, id: u64) -> Result<NodeStatus, BoxError> {
        match self.tell(id, &Command::Status)? {
            Answer::Status(status) => Ok(status),
            other => Err(format!("node {id} answered {other:?} to a status request").into()),
        }
    }

    /// The leader as soon as all running nodes agree on one and have applied the same entries.
    pub(crate) fn wait_until_agreed(&mut self) -> Result<u64, BoxError> {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            let mut seen = Vec::new();
            for id in self.running() {
                let NodeStatus { leader, applied, last, .. } = self.status(id)?;
                seen.push((leader, applied, last));
            }
            if let Some((Some(leader), applied, last)) = seen.first()
                && applied == last
                && seen.iter().all(|status| *status == seen[0])
            {
                return Ok(*leader);
            }
            std::thread::sleep(PAUSE);
        }
        Err(format!("the nodes did not agree on a leader within {} s", PATIENCE.as_secs()).into())
    }

    /// Sends a command to node `id`.
    pub(crate) fn tell(&mut self, id: u64, command: &Command) -> Result<Answer, BoxError> {
        let answer = match self.slot(id)? {
            Some(ClusterNode::Here(node)) => node.carry_out(command)?,
            Some(ClusterNode::Process(process)) => process.tell(command)?,
            None => return Err(format!("node {id} does not run").into()),
        };
        match answer {
            Answer::Failed(error) => Err(format!("node {id}: {error}").into()),
            answer => Ok(answer),
        }
    }

    /// Has node `id` put load on itself.
    pub(crate) fn load(&mut self, id: u64, load: Load) -> Result<Measured, BoxError> {
        self.measured(id, &Command::Load(load))
    }

    /// For commands that return measurements.
    pub(crate) fn measured(&mut self, id: u64, command: &Command) -> Result<Measured, BoxError> {
        match self.tell(id, command)? {
            Answer::Measured(measured) => Ok(measured),
            other => Err(format!("node {id} answered {other:?} to {command:?}").into()),
        }
    }

    /// For commands that return their duration; in seconds.
    pub(crate) fn took(&mut self, id: u64, command: &Command) -> Result<f64, BoxError> {
        match self.tell(id, command)? {
            Answer::Took { seconds } => Ok(seconds),
            other => Err(format!("node {id} answered {other:?} to {command:?}").into()),
        }
    }

    /// Of all processes with nodes.
    pub(crate) fn usage(&self) -> Result<Usage, BoxError> {
        if self.place == Place::One {
            return Usage::of(None);
        }
        let mut sum = Usage::default();
        for id in self.running() {
            let usage = self.usage_of(id)?;
            sum.cpu_seconds += usage.cpu_seconds;
            sum.resident_bytes += usage.resident_bytes;
        }
        Ok(sum)
    }

    /// Of the process of node `id`.
    pub(crate) fn usage_of(&self, id: u64) -> Result<Usage, BoxError> {
        match self.nodes.get(usize::try_from(id - 1)?) {
            Some(Some(ClusterNode::Process(process))) => Usage::of(Some(process.child.id())),
            _ => Usage::of(None),
        }
    }

    pub(crate) fn stop(self) -> Result<(), BoxError> {
        for node in self.nodes.into_iter().flatten() {
            match node {
                ClusterNode::Here(node) => node.stop()?,
                ClusterNode::Process(process) => process.stop()?,
            }
        }
        Ok(())
    }

    fn running(&self) -> Vec<u64> {
        (1..).zip(&self.nodes).filter_map(|(id, node)| node.is_some().then_some(id)).collect()
    }

    fn slot(&mut self, id: u64) -> Result<&mut Option<ClusterNode>, BoxError> {
        let place = usize::try_from(id.checked_sub(1).ok_or("there is no node 0")?)?;
        self.nodes.get_mut(place).ok_or_else(|| format!("there is no node {id}").into())
    }
}

/// A node as a process. It ends when its standard input is closed, hence also when this process is killed.
struct Process {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Process {
    fn start(id: u64, data: &Path, addresses: &[String], options: &NodeOptions) -> Result<Process, BoxError> {
        let mut command = std::process::Command::new(std::env::current_exe()?);
        command
            .args(["node", "--storage", options.storage.name(), "--id", &id.to_string(), "--data"])
            .arg(data);
        command.args(["--snapshot-bytes", &options.snapshot_bytes.to_string()]);
        if let Some(entries) = options.snapshot_entries {
            command.args(["--snapshot-entries", &entries.to_string()]);
        }
        if let Some(certificates) = &options.certificates {
            command.arg("--certificates").arg(certificates);
        }
        if options.metrics {
            command.arg("--metrics");
        }
        if let Some(peer) = &options.join {
            command.args(["--join", peer]);
        }
        command.args(addresses.iter().flat_map(|address| ["--address", address]));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let (Some(input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a process was started without its pipes".into());
        };
        Ok(Process { child, input, output: BufReader::new(output) })
    }

    fn tell(&mut self, command: &Command) -> Result<Answer, BoxError> {
        let mut line = serde_json::to_string(command)?;
        line.push('\n');
        self.input.write_all(line.as_bytes())?;
        line.clear();
        if self.output.read_line(&mut line)? == 0 {
            return Err("the process of a node ended by itself".into());
        }
        Ok(serde_json::from_str(&line)?)
    }

    fn stop(self) -> Result<(), BoxError> {
        let Process { mut child, input, output } = self;
        drop((input, output));
        child.wait()?;
        Ok(())
    }
}
