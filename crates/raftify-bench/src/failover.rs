//! How long nobody can write when the leader dies.

use std::process::Stdio;
use std::time::{Duration, Instant};

use raftify::{BoxError, NodeId, RaftClient};
use serde_json::json;
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};

use crate::node::{self, Sum};
use crate::print;

const NODES: usize = 3;
const PATIENCE: Duration = Duration::from_secs(30);

type Client = RaftClient<Vec<u8>, Sum>;

/// Kills the leader of three processes `times` times, starting it again each time.
pub(crate) fn run(times: usize) -> Result<(), BoxError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(measure(times))
}

async fn measure(times: usize) -> Result<(), BoxError> {
    let directory = tempfile::tempdir_in(std::env::current_dir()?)?;
    let addresses = node::free_addresses(NODES)?;
    let start = |index: usize| -> Result<Child, BoxError> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["node", "--id", &(index + 1).to_string(), "--directory"]);
        command.arg(directory.path().join(index.to_string()));
        for address in &addresses {
            command.args(["--address", address]);
        }
        Ok(command.stdin(Stdio::null()).kill_on_drop(true).spawn()?)
    };
    let mut children = (0..NODES).map(start).collect::<Result<Vec<_>, _>>()?;
    let mut milliseconds = Vec::new();
    for round in 0..times {
        let leader = wait_until_whole(&addresses).await?;
        let index = usize::try_from(leader.get())? - 1;
        let others =
            addresses.iter().enumerate().filter(|(other, _)| *other != index).map(|(_, address)| address);
        let client = Client::new(others.clone())?.with_deadline(Duration::from_millis(200));
        // Its connections are made before the kill.
        client.inspect().await?;
        children[index].start_kill()?;
        let begin = Instant::now();
        while client.propose(&vec![2; 64]).await.is_err() {
            if begin.elapsed() > PATIENCE {
                return Err("nobody took over".into());
            }
            sleep(Duration::from_millis(2)).await;
        }
        milliseconds.push(u64::try_from(begin.elapsed().as_millis())?);
        eprintln!("failover {}: {} ms", round + 1, begin.elapsed().as_millis());
        children[index].wait().await?;
        children[index] = start(index)?;
    }
    milliseconds.sort_unstable();
    print(&json!({
        "bench": "failover",
        "fsync": true,
        "nodes": NODES,
        "times": times,
        "min_ms": milliseconds.first(),
        "median_ms": milliseconds.get(milliseconds.len() / 2),
        "max_ms": milliseconds.last(),
    }))
}

/// Waits until all nodes follow one leader and have applied what it has.
async fn wait_until_whole(addresses: &[String]) -> Result<NodeId, BoxError> {
    let look = async {
        loop {
            let mut seen = Vec::new();
            for address in addresses {
                let client = Client::new([address])?.with_deadline(Duration::from_secs(1));
                if let Ok(inspection) = client.inspect().await {
                    seen.push((inspection.status.leader_id, inspection.status.applied));
                }
            }
            if let Some((Some(leader), _)) = seen.first()
                && seen.len() == addresses.len()
                && seen.iter().all(|status| *status == seen[0])
            {
                return Ok(*leader);
            }
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, look).await?
}
