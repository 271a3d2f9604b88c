//! One run from its beginning to its verdict.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use raftify::BoxError;
use raftify_history::register::{Operation, Outcome};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use crate::clients::Load;
use crate::cluster::{Cluster, PATIENCE, Trouble};
use crate::faults::{Fault, Schedule};
use crate::history::{Judgement, LAST_READS, Recorder};
use crate::http::{Connection, Web};
use crate::nemesis::{Nemesis, Until, any_seed};
use crate::network::{self, Kind};
use crate::node::{LOCK, Node, can_delay_syncs, unmount_all};
use crate::recovery::Figures;
use crate::state::State;
use crate::{Arguments, Choice};

/// How long a last read waits after a refusal.
const PAUSE: Duration = Duration::from_millis(20);

/// The number of violations that are shown in full.
const SHOWN_MAX: usize = 3;

/// Returns whether there was no violation.
///
/// # Errors
/// If the run cannot start, in one line.
pub(crate) async fn run(arguments: Arguments) -> Result<bool, BoxError> {
    let mut interruptions = interruptions()?;
    network::check(arguments.network)?;
    let seed = arguments.seed.unwrap_or_else(any_seed);
    let nodes = usize::from(arguments.nodes);
    let programs = match &arguments.programs {
        Some(programs) => programs.clone(),
        None => {
            std::env::current_exe()?.parent().map(Path::to_owned).ok_or("this program has no directory")?
        }
    };
    let _only_one = match arguments.network {
        Kind::Netns => Some(only_one()?),
        Kind::Proxy => None,
    };
    if arguments.network == Kind::Netns {
        unmount_all()?;
    }
    let directory = new_directory(&arguments.directory, seed)?;
    let _in_use = lock(&directory.join(LOCK))?;
    let with_tls = arguments.tls.map_or_else(|| draws_tls(seed), |tls| tls == Choice::Yes);
    let megabytes = arguments.state_megabytes;
    let cluster = Cluster::start(arguments.network, nodes, &programs, &directory, megabytes, with_tls);
    let mut cluster = cluster.inspect_err(|_| drop(fs::remove_dir_all(&directory)))?;
    let faults = possible(&arguments.faults, &cluster)?;
    say!(
        "seed {seed}: {nodes} nodes {} TLS, {megabytes} MB, {} clients, {:?}, {} kinds of faults, logs in {}",
        if with_tls { "with" } else { "without" },
        arguments.clients,
        arguments.network,
        faults.len(),
        directory.display()
    );

    let mut problems = Vec::new();
    let mut figures = Figures::default();
    let state = State::of(arguments.state_megabytes);
    let mut begin = Instant::now();
    let mut load = None;
    let mut is_interrupted = false;
    let work = async {
        cluster.wait_until_healthy().await?;
        state.fill(&cluster.webs(), cluster.patience()).await.map_err(Trouble::Unhealthy)?;
        begin = Instant::now();
        load = Some(Load::start(usize::from(arguments.clients), &cluster.endpoints(), seed));
        let nemesis = Nemesis {
            schedule: Schedule::new(faults.clone()),
            random: ChaCha8Rng::seed_from_u64(seed),
            cluster: &mut cluster,
            figures: &mut figures,
            begin,
        };
        nemesis.run(arguments.rounds.map_or(Until::Time(begin + arguments.minutes), Until::Rounds)).await
    };
    tokio::select! {
        outcome = work => if let Err(trouble) = outcome {
            problems.push(trouble.to_string());
        },
        _ = interruptions.changed() => is_interrupted = true,
    }
    let seconds = begin.elapsed().as_secs_f64();

    let Some(mut load) = load else {
        return finish_without_load(cluster, &directory, &problems, is_interrupted);
    };
    problems.extend(load.stop().await);
    if let Err(error) = cluster.heal() {
        problems.push(Trouble::Failed(error).to_string());
    }
    // The patience is shorter for a cluster that is known to be unhealthy, and after an interruption.
    let patience = if problems.is_empty() && !is_interrupted { PATIENCE } else { PATIENCE / 12 };
    let webs = cluster.webs();
    tokio::select! {
        unread = read_everything(&load.recorder, &webs, patience) => {
            if unread > 0 && problems.is_empty() && !is_interrupted {
                problems.push(format!("{unread} last reads were not answered"));
            }
        }
        _ = interruptions.changed() => is_interrupted = true,
    }
    if problems.is_empty() && !is_interrupted {
        problems.extend(state.missing(&webs, patience).await);
        let missing = figures.missing(&faults);
        problems.extend(missing.iter().map(|fault| {
            format!("{} never happened: the run does not cover it; use more --minutes", fault.name())
        }));
    }
    let judgement = load.recorder.judge();
    summary(&load, &figures, &judgement, seconds, seed);
    let is_good = problems.is_empty() && judgement.violations.is_empty() && judgement.undecided.is_empty();
    report_problems(&problems, &judgement);
    if is_good && !arguments.keep {
        drop(cluster);
        fs::remove_dir_all(&directory)?;
    } else {
        keep(&cluster, &load.recorder, &judgement, &directory)?;
    }
    let happened: usize = figures.faults.values().map(|measured| measured.count).sum();
    let failed = problems.len() + judgement.violations.len() + judgement.undecided.len();
    say!("{} passed, {failed} failed", judgement.linearizable + happened);
    Ok(is_good)
}

/// Changes with every SIGINT, SIGTERM and SIGHUP: the first one ends the faults, the next one the last reads.
/// From now on none of these signals ends the program.
fn interruptions() -> Result<watch::Receiver<()>, BoxError> {
    let kinds = [SignalKind::interrupt(), SignalKind::terminate(), SignalKind::hangup()];
    let interrupted = watch::Sender::new(());
    let interruptions = interrupted.subscribe();
    for kind in kinds {
        let (mut signals, interrupted) = (signal(kind)?, interrupted.clone());
        tokio::spawn(async move {
            while signals.recv().await.is_some() {
                say!("interrupted: the histories so far are checked");
                interrupted.send_replace(());
            }
        });
    }
    Ok(interruptions)
}

/// Namespaces and devices have fixed names, so that the remains of a killed run can be removed.
pub(crate) fn only_one() -> Result<fs::File, BoxError> {
    lock(&std::env::temp_dir().join("raftify-chaos.lock"))
}

fn lock(path: &Path) -> Result<fs::File, BoxError> {
    let cannot = |error: std::io::Error| format!("cannot lock {}: {error}", path.display());
    let file = fs::OpenOptions::new().create(true).append(true).open(path).map_err(cannot)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => {
            Err(format!("another run is active and holds the lock of {}: wait for its end", path.display())
                .into())
        }
        Err(fs::TryLockError::Error(error)) => Err(cannot(error).into()),
    }
}

fn new_directory(base: &Path, seed: u64) -> Result<PathBuf, BoxError> {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    let directory = base.join(format!("{seconds}-seed-{seed}"));
    fs::create_dir_all(&directory)
        .map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
    Ok(directory.canonicalize()?)
}

/// Half of all seeds use TLS. The numbers that decide the faults do not depend on it.
fn draws_tls(seed: u64) -> bool {
    ChaCha8Rng::seed_from_u64(!seed).random_bool(0.5)
}

/// The requested faults, or all that are possible here.
fn possible(wanted: &[Fault], cluster: &Cluster) -> Result<Vec<Fault>, BoxError> {
    let mut impossible = Vec::new();
    if !cluster.nodes.iter().all(Node::can_be_filled) {
        for fault in [Fault::FullDisk, Fault::AlmostFullDisk] {
            impossible.push((fault, "needs root: each node gets a separate small disk"));
        }
    }
    if !can_delay_syncs() {
        impossible.push((Fault::SlowDisk, "needs root and the program strace"));
    }
    if cluster.certificates.is_none() {
        impossible.push((Fault::RenewedCertificates, "needs certificates: use --tls yes"));
    }
    if let Some((fault, why)) = impossible.iter().find(|(fault, _)| wanted.contains(fault)) {
        return Err(format!("{} {why}", fault.name()).into());
    }
    if !wanted.is_empty() {
        return Ok(wanted.to_vec());
    }
    let mut all = Fault::all();
    for (fault, why) in impossible {
        say!("{} is left out: it {why}", fault.name());
        all.retain(|kind| *kind != fault);
    }
    Ok(all)
}

fn finish_without_load(
    cluster: Cluster,
    directory: &Path,
    problems: &[String],
    is_interrupted: bool,
) -> Result<bool, BoxError> {
    report_problems(problems, &Judgement::default());
    if problems.is_empty() {
        drop(cluster);
        fs::remove_dir_all(directory)?;
    } else {
        for node in &cluster.nodes {
            node.keep()?;
        }
        say!("logs and data directories: {}", directory.display());
    }
    say!("0 passed, {} failed", problems.len());
    Ok(is_interrupted && problems.is_empty())
}

/// Reads every key through every node. Returns the number of reads without an answer.
async fn read_everything(recorder: &Arc<Recorder>, webs: &[Web], patience: Duration) -> usize {
    let end = Instant::now() + patience;
    let mut readers = JoinSet::new();
    for (number, web) in (0..).zip(webs) {
        let (recorder, web) = (Arc::clone(recorder), web.clone());
        readers.spawn(async move {
            let mut connection = Connection::new(web);
            let mut unread = 0;
            for key in recorder.keys() {
                let path = format!("/store/{}", key.name);
                loop {
                    let called = recorder.now();
                    let answer = connection.ask("GET", &path, b"", Duration::from_secs(2)).await;
                    let value = answer.ok().and_then(|answer| match answer.status {
                        404 => Some(None),
                        200 => serde_json::from_slice::<Value>(&answer.body).ok()?["value"]
                            .as_str()?
                            .parse()
                            .ok()
                            .map(Some),
                        _ => None,
                    });
                    if let Some(value) = value {
                        let client = LAST_READS + number;
                        recorder.answered(&key, client, Operation::Read, called, Outcome::Value(value));
                        break;
                    }
                    if Instant::now() > end {
                        unread += 1;
                        break;
                    }
                    sleep(PAUSE).await;
                }
            }
            unread
        });
    }
    readers.join_all().await.into_iter().sum()
}

fn summary(load: &Load, figures: &Figures, judgement: &Judgement, seconds: f64, seed: u64) {
    let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (web, grpc) = (count(&load.counts.web), count(&load.counts.grpc));
    let (refused, unknown) = (count(&load.counts.refused), count(&load.counts.unknown));
    say!("");
    say!("{}", figures.table());
    say!("");
    say!("{}", figures.recovery());
    if let Some(flips) = figures.flips() {
        say!("{flips}");
    }
    if let Some(joins) = figures.joins() {
        say!("{joins}");
    }
    say!(
        "{} operations in {seconds:.0} s ({:.0} per second): {web} over the web API, {grpc} over gRPC; \
         {refused} refused, {unknown} of unknown outcome",
        web + grpc,
        (web + grpc) as f64 / seconds,
    );
    let verdict = if judgement.violations.is_empty() && judgement.undecided.is_empty() {
        "every history is linearizable, and no acknowledged write is missing"
    } else {
        "NOT every history is linearizable"
    };
    say!("{} keys of {}: {verdict} (seed {seed})", judgement.linearizable, load.recorder.keys().len());
}

fn report_problems(problems: &[String], judgement: &Judgement) {
    for problem in problems {
        say!("FAILED: {problem}");
    }
    for key in &judgement.undecided {
        say!("FAILED: the history of {key} is too long to be checked");
    }
    for violation in judgement.violations.iter().take(SHOWN_MAX) {
        let what = match violation.at_the_end_only {
            true => "the last reads miss an acknowledged write, or the nodes differ",
            false => "its history is not linearizable",
        };
        say!("FAILED: {}: {what}\n{}", violation.key, violation.counterexample);
    }
    if judgement.violations.len() > SHOWN_MAX {
        say!("and {} keys more", judgement.violations.len() - SHOWN_MAX);
    }
}

fn keep(
    cluster: &Cluster,
    recorder: &Recorder,
    judgement: &Judgement,
    directory: &Path,
) -> Result<(), BoxError> {
    recorder.write(&directory.join("history.jsonl"), None)?;
    for violation in &judgement.violations {
        recorder.write(&directory.join(format!("{}.jsonl", violation.key)), Some(&violation.key))?;
        fs::write(
            directory.join(format!("{}.counterexample", violation.key)),
            violation.counterexample.to_string(),
        )?;
    }
    for node in &cluster.nodes {
        node.keep()?;
    }
    say!("logs, histories and data directories: {}", directory.display());
    Ok(())
}
