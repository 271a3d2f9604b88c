//! Simulates seed after seed with a mutation until a violation: in child processes, one for each core,
//! because a process has one mutation from its start to its end.

use std::io::{BufRead, BufReader};
use std::panic;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use raftify_core::mutants::{Mutant, VARIABLE};

/// A seed that takes longer hangs.
const SEED_AT_MOST: Duration = Duration::from_secs(120);

/// The limits of a hunt.
pub(crate) struct Hunt<'a> {
    /// From 1 on; none if it is 0.
    pub(crate) seeds: u64,
    pub(crate) at_most: Duration,
    pub(crate) interrupted: &'a AtomicBool,
}

/// The result of a hunt.
pub(crate) struct Hunted {
    /// The number of seeds, from 1 on, that were simulated to their end without a violation.
    pub(crate) seeds: u64,
    pub(crate) catch: Option<Catch>,
}

/// The lowest seed with a violation.
#[derive(Clone)]
pub(crate) struct Catch {
    pub(crate) seed: u64,
    pub(crate) violation: String,
}

/// An output line of a process.
enum News {
    Fine(u64),
    Violation(Catch),
    Ended,
}

/// The work of one process: reports the result of each seed, and ends at the first violation.
pub(crate) fn simulate(seeds: impl Iterator<Item = u64>) -> ExitCode {
    // A violation may be a panic: its text is reported with the seed.
    panic::set_hook(Box::new(|_| {}));
    for seed in seeds {
        match raftify_sim::run(seed) {
            Ok(_) => println!("fine {seed}"),
            Err(violation) => {
                let violation = violation.to_string();
                println!("violation {seed} {}", violation.lines().next().unwrap_or_default());
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}

/// Whether the simulator runs any of the code with `mutant`. It does not run the shell and the snapshot
/// files.
fn is_simulated(mutant: Mutant) -> bool {
    !matches!(
        mutant,
        Mutant::SnapshotInOneMessage
            | Mutant::SnapshotWithoutMembers
            | Mutant::MessagesLeaveBeforeTheWrite
            | Mutant::OnlyThreadWaitsForTheDisk
            | Mutant::FailedRestoreIsIgnored
            | Mutant::UnfinishedSnapshotIsInstalled
            | Mutant::DirectoryIsNotSynced
            | Mutant::SnapshotIsNotSynced
            | Mutant::SnapshotChecksumIsNotChecked
            | Mutant::BatchHasNoLimit
            | Mutant::RepeatsEntriesOnTheirWay
            | Mutant::ForwardsWithoutLimit
            | Mutant::BrokenStreamMeansUnsent
            | Mutant::RepliesMatchedByOrder
            | Mutant::StreamHasNoLimit
            | Mutant::FailedApplyIsSkipped
            | Mutant::RecoverPicksByLength
            | Mutant::RecoverKeepsClusterId
            | Mutant::RecoverKeepsOtherMembers
            | Mutant::RestoreKeepsClusterId
            | Mutant::CheckTrustsSnapshotData
            | Mutant::SlowReaderHoldsUpTheNode
            | Mutant::MissedEventsAreNotReported
            | Mutant::RefusedQueryIsSilent
            | Mutant::AnsweredBytesStayCounted
    )
}

/// A process that is killed with this value.
struct Simulator(Child);

impl Drop for Simulator {
    fn drop(&mut self) {
        // The process may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Hunt<'_> {
    /// Simulates one seed without any mutation.
    pub(crate) fn only(&self, seed: u64) -> Result<Hunted, String> {
        follow(&[seed], seed, 1, None, SEED_AT_MOST, self.interrupted)
    }

    /// Simulates from the seed `first` on, up to the first violation.
    pub(crate) fn find(&self, first: u64, mutant: Option<Mutant>) -> Result<Hunted, String> {
        if first > self.seeds {
            return Ok(Hunted { seeds: self.seeds, catch: None });
        }
        if mutant.is_some_and(|mutant| !is_simulated(mutant)) {
            return Ok(Hunted { seeds: 0, catch: None });
        }
        let cores = thread::available_parallelism().map_or(1, |cores| cores.get() as u64);
        let firsts: Vec<u64> = (first..=self.seeds).take(cores as usize).collect();
        follow(&firsts, self.seeds, firsts.len() as u64, mutant, self.at_most, self.interrupted)
    }
}

/// Starts a process at each of `firsts`, and waits until the lowest seed with a violation is known.
fn follow(
    firsts: &[u64],
    last: u64,
    step: u64,
    mutant: Option<Mutant>,
    at_most: Duration,
    interrupted: &AtomicBool,
) -> Result<Hunted, String> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let deadline = Instant::now() + at_most;
    let (news, heard) = mpsc::channel();
    let mut running = Vec::new();
    // For each process, its current seed and the time of its start.
    let mut at: Vec<(Option<u64>, Instant)> = Vec::new();
    for (place, first) in firsts.iter().enumerate() {
        let mut child = Command::new(&program)
            .arg("simulate")
            .args([*first, last, step].map(|number| number.to_string()))
            .env(VARIABLE, mutant.map_or("", Mutant::name))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        let output = child.stdout.take().expect("standard output is a pipe");
        running.push(Simulator(child));
        at.push((Some(*first), Instant::now()));
        let news = news.clone();
        thread::spawn(move || {
            let lines = BufReader::new(output).lines().map_while(Result::ok);
            for line in lines.filter_map(|line| read(&line)) {
                drop(news.send((place, line)));
            }
            drop(news.send((place, News::Ended)));
        });
    }
    let mut catch: Option<Catch> = None;
    loop {
        // All lower seeds were simulated to their end.
        let below = at.iter().filter_map(|(seed, _)| *seed).min().unwrap_or(last + 1);
        if let Some(catch) = catch.as_ref().filter(|catch| catch.seed < below) {
            return Ok(Hunted { seeds: catch.seed - 1, catch: Some(catch.clone()) });
        }
        if below > last || Instant::now() > deadline || interrupted.load(Ordering::SeqCst) {
            // A violation counts even if a lower seed is unfinished.
            return Ok(Hunted { seeds: below - 1, catch });
        }
        match heard.recv_timeout(Duration::from_millis(100)) {
            Ok((place, News::Fine(seed))) => {
                let next = Some(seed + step).filter(|next| *next <= last);
                at[place] = (next, Instant::now());
            }
            Ok((place, News::Violation(found))) => {
                at[place].0 = None;
                catch = lower(catch, found);
            }
            Ok((place, News::Ended)) => {
                if let Some(seed) = at[place].0.take() {
                    let violation = "the process of the simulator died".to_owned();
                    catch = lower(catch, Catch { seed, violation });
                }
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err("all simulator processes have ended".to_owned());
            }
        }
        for (seed, since) in &mut at {
            if since.elapsed() > SEED_AT_MOST
                && let Some(seed) = seed.take()
            {
                let violation = format!("not finished within {SEED_AT_MOST:?}");
                catch = lower(catch, Catch { seed, violation });
            }
        }
    }
}

fn lower(known: Option<Catch>, found: Catch) -> Option<Catch> {
    Some(match known {
        Some(known) if known.seed < found.seed => known,
        _ => found,
    })
}

fn read(line: &str) -> Option<News> {
    let (what, rest) = line.split_once(' ')?;
    let (seed, text) = rest.split_once(' ').unwrap_or((rest, ""));
    let seed = seed.parse().ok()?;
    match what {
        "fine" => Some(News::Fine(seed)),
        "violation" => Some(News::Violation(Catch { seed, violation: text.to_owned() })),
        _ => None,
    }
}
