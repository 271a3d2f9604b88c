//! Load that correct clients and operators put on a node: few descriptors beside many connections, and calls
//! that are cancelled. No node may end because of it, and a caller that waits must be served.

use std::time::Duration;

use memstore::LogEntry;
use raftify::status::Term;
use rand::RngExt;
use rand::seq::IndexedRandom;
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::cluster::Trouble;
use crate::faults::Fault;
use crate::links::Party;
use crate::nemesis::{FAULT_LASTS, Nemesis, SERVICE_PATIENCE};

/// The limit of open descriptors of a node.
const DESCRIPTORS: [u32; 3] = [64, 128, 256];

/// The number of idle connections at each of its two endpoints.
const IDLE_CONNECTIONS: usize = 300;
const CONNECT_TIMEOUT: Duration = Duration::from_millis(200);

/// The number of callers that cancel their calls all the time, and their longest wait in microseconds.
const IMPATIENT_CALLERS: usize = 32;
const GIVEN_UP_AFTER: std::ops::Range<u64> = 0..3_000;

/// Between two calls of the caller that waits.
const PAUSE: Duration = Duration::from_millis(20);

impl Nemesis<'_> {
    /// Starts a node with few descriptors, and opens more connections than the node has descriptors.
    pub(crate) async fn starve(&mut self, place: Party, what: &str) -> Result<(), Trouble> {
        let fault = Fault::FewDescriptors;
        let descriptors = DESCRIPTORS.choose(&mut self.random).copied();
        let node = self.cluster.node(place);
        node.kill()?;
        node.descriptors = descriptors;
        self.cluster.start_node(place)?;
        self.wait_until_healthy().await?;
        let end = Instant::now() + Duration::from_millis(self.random.random_range(FAULT_LASTS));
        let node = self.cluster.node(place);
        let endpoints = [node.addresses.raft.clone(), node.endpoints.web.address.clone()];
        let mut idle = Vec::new();
        for number in 0..2 * IDLE_CONNECTIONS {
            // Connections that the node does not accept wait as well.
            if let Ok(Ok(stream)) = timeout(CONNECT_TIMEOUT, TcpStream::connect(&endpoints[number % 2])).await
            {
                idle.push(stream);
            }
        }
        let told = self.measure_service(fault).await;
        sleep_until(end).await;
        let node = self.cluster.node(place);
        if let Some(end) = node.ended()? {
            return Err(Trouble::Ended(place, end));
        }
        drop(idle);
        node.descriptors = None;
        node.kill()?;
        let allowed = descriptors.unwrap_or_default();
        self.heal_and_measure(fault, &format!("{what}, {allowed} descriptors"), &told).await
    }

    /// Callers that share a connection cancel one call after the other. Another caller on the same connection
    /// waits for its answers.
    pub(crate) async fn cancel_calls(&mut self, place: Party, what: &str) -> Result<(), Trouble> {
        let fault = Fault::CancelledCalls;
        let client = self.cluster.node(place).endpoints.grpc.clone();
        let term = self.term_at(place).await;
        let end = Instant::now() + Duration::from_millis(self.random.random_range(FAULT_LASTS));
        let mut impatient = JoinSet::new();
        for caller in 0..IMPATIENT_CALLERS {
            let client = client.clone();
            impatient.spawn(async move {
                let mut cancelled = 0;
                while Instant::now() < end {
                    let after = Duration::from_micros(rand::rng().random_range(GIVEN_UP_AFTER));
                    let entry = written("given-up", caller);
                    cancelled += u64::from(timeout(after, client.propose(&entry)).await.is_err());
                }
                cancelled
            });
        }
        let patient = client.with_deadline(SERVICE_PATIENCE);
        let (mut served, mut failed) = (0, None);
        while Instant::now() < end {
            match patient.propose(&written("patient", served)).await {
                Ok(_) => served += 1,
                Err(error) => failed = Some(error),
            }
            sleep(PAUSE).await;
        }
        let cancelled: u64 = impatient.join_all().await.into_iter().sum();
        // After a change of the leader, a call may have no answer.
        if let Some(error) = failed
            && term.is_some()
            && self.term_at(place).await == term
        {
            return Err(Trouble::Unhealthy(format!(
                "a call that waited beside cancelled calls failed: {error}"
            )));
        }
        let told = self.measure_service(fault).await;
        let what = format!("{what}, {cancelled} calls through one connection, {served} others answered");
        self.heal_and_measure(fault, &what, &told).await
    }

    async fn term_at(&self, place: Party) -> Option<Term> {
        self.cluster.inspect(place).await.map(|inspection| inspection.status.term)
    }
}

/// For a key that is in no history.
fn written(key: &str, number: usize) -> LogEntry {
    LogEntry::Insert { key: key.to_owned(), value: number.to_string() }
}
