//! The unavailability after the death of the leader: from SIGKILL to the next accepted proposal, with default
//! settings.

use std::time::{Duration, Instant};

use bytes::Bytes;
use raftify::{BoxError, Config, RaftClient};
use tokio::runtime::Builder;
use tokio::time::sleep;

use super::disk;
use crate::Work;
use crate::cluster::{Cluster, PATIENCE, Place};
use crate::line::Line;
use crate::measure::{Recorder, rounded};
use crate::node::{Meter, NodeOptions, Payload, Storage};

type Client = RaftClient<Payload, Meter>;

/// The deadline of one attempt. Much shorter than an election, so that an attempt that was sent too early
/// costs little.
const ATTEMPT: Duration = Duration::from_millis(100);

#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Failover {
    /// How often the leader is killed
    #[arg(long, default_value_t = 20)]
    times: u32,
    /// The storage of the log
    #[arg(long, default_value = "wal")]
    storage: Storage,
}

impl Failover {
    pub(crate) fn run(&self, work: &Work) -> Result<(), BoxError> {
        work.reporter.steps(self.times as usize)?;
        let probe = disk::probe(&work.directory)?;
        let directory = tempfile::tempdir_in(&work.directory)?;
        let mut cluster = Cluster::start(directory.path(), Place::Three, NodeOptions::of(self.storage))?;
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (mut recorder, mut shortest, mut longest) = (Recorder::new(), Duration::MAX, Duration::ZERO);
        for round in 1..=self.times {
            work.reporter.step(format!("the leader dies, {round} of {}", self.times))?;
            let leader = cluster.wait_until_agreed()?;
            let addresses = (1..).zip(cluster.addresses()).filter(|(id, _)| *id != leader);
            let client = Client::new(addresses.map(|(_, address)| address))?.with_deadline(ATTEMPT);
            // Opens the connections before the measurement.
            runtime.block_on(client.inspect())?;
            cluster.kill(leader)?;
            let took = runtime.block_on(first_accepted(&client))?;
            recorder.record(took);
            (shortest, longest) = (shortest.min(took), longest.max(took));
            cluster.start_node(leader)?;
        }
        let milliseconds = |duration: Duration| rounded(duration.as_secs_f64() * 1e3, 1);
        let measured = recorder.measured(Duration::ZERO);
        let line = Line {
            p50_us: Some(measured.p50_us),
            p99_us: Some(measured.p99_us),
            p999_us: Some(measured.p999_us),
            clients: Some(1),
            disk_fdatasync_p50_us: Some(probe),
            ..cluster.line("failover")
        };
        let line = line
            .with("times", self.times)
            .with("min_ms", milliseconds(shortest))
            .with("median_ms", rounded(measured.p50_us / 1e3, 1))
            .with("max_ms", milliseconds(longest))
            .with("election_timeout_ms", milliseconds(Config::default().election_timeout));
        work.reporter.result(line)?;
        cluster.stop()
    }
}

async fn first_accepted(client: &Client) -> Result<Duration, BoxError> {
    let begin = Instant::now();
    while client.propose(&Payload(Bytes::from_static(&[2; 64]))).await.is_err() {
        if begin.elapsed() > PATIENCE {
            return Err(format!("no node became leader within {} s", PATIENCE.as_secs()).into());
        }
        sleep(Duration::from_millis(2)).await;
    }
    Ok(begin.elapsed())
}
