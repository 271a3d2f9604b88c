//! One place of a node: its addresses, its directory with a small disk of its own where that can be had, its log, and the
//! process that runs there now. Starts, stops and damages; decides nothing.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use raftify::BoxError;
use rand::Rng;
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::{Instant, sleep};

use crate::bits::{Aim, flip};
use crate::clients::{self, Client, Doors};
use crate::links::Party;
use crate::network::{Addresses, Network};

/// Small files and frequent snapshots: more of what happens rarely happens in a run.
const SEGMENT_BYTES: u64 = 1 << 20;
const SNAPSHOT_ENTRIES: u64 = 20_000;

/// And so many more for each megabyte of state, for a large snapshot is work.
const SNAPSHOT_ENTRIES_PER_MEGABYTE: u64 = 500;

/// How mounted disks are known when they are to be taken away.
const DISK: &str = "raftify-chaos";
/// What a disk holds besides the state, and how many times it holds the state: the snapshot that there is, the next one,
/// and what was received of another.
const DISK_MEGABYTES: u64 = 256;
const STATES_ON_DISK: u64 = 5;

/// No process takes longer to end in order, also on a slow disk; how often it is looked at.
const TERMINATION_MAX: Duration = Duration::from_secs(30);
const TERMINATION_PAUSE: Duration = Duration::from_millis(20);

/// The file in the directory of a run that is locked while it goes on.
pub(crate) const LOCK: &str = "lock";

/// What can delay the system calls of a process that runs.
const STRACE: &str = "strace";

/// The file that makes a disk full.
const FILLER: &str = "filler";

/// How a node comes into its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// As one of the first members, under the number of its place.
    Static,
    /// By joining, under an id that nobody had.
    Dynamic,
}

/// What all places have in common.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// Where the programs are.
    pub programs: PathBuf,
    /// The file with the first members.
    pub members: PathBuf,
    /// How much is put into the cluster before the clients come.
    pub state_megabytes: u64,
}

impl Setting {
    /// # Errors
    /// What is not there, and how to get it.
    pub(crate) fn check(&self) -> Result<(), BoxError> {
        for program in [Program::Static, Program::Dynamic] {
            let path = self.program(program);
            if !path.exists() {
                return Err(format!(
                    "{} is not there: build it with `cargo build -p {}`, with --release if this was, or say with \
                     --programs where it is",
                    path.display(),
                    Setting::name(program),
                )
                .into());
            }
        }
        Ok(())
    }

    fn program(&self, program: Program) -> PathBuf {
        self.programs.join(Setting::name(program))
    }

    fn name(program: Program) -> &'static str {
        match program {
            Program::Static => "memstore-static-members",
            Program::Dynamic => "memstore-dynamic-members",
        }
    }
}

/// How a process ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct End {
    /// As the system says.
    pub status: String,
    /// The last line of its log that begins with `error:`.
    pub error: Option<String>,
}

impl End {
    /// Whether the program says that it did not end as it was asked to.
    pub(crate) fn is_failure(&self) -> bool {
        self.error.is_some()
    }

    pub(crate) fn says(&self, words: &str) -> bool {
        self.error.as_ref().is_some_and(|error| error.contains(words))
    }

    /// Whether damage is given as the reason: by raftify, or by LMDB for a file that is no database any more.
    pub(crate) fn is_about_damage(&self) -> bool {
        ["is damaged", "has format version", "cannot open the database in"]
            .iter()
            .any(|words| self.says(words))
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.status, self.error.as_deref().unwrap_or("it said nothing"))
    }
}

/// A place for a node.
pub(crate) struct Node {
    pub place: Party,
    pub addresses: Addresses,
    pub doors: Doors,
    /// Only looks: what proposes is led to the leader, and stays there.
    pub inspector: Client,
    /// Whether one is to be here, as a voter.
    pub is_member: bool,
    /// How the one that is there came into the cluster.
    pub program: Program,
    /// A bit of its directory was changed, and nobody has noticed yet.
    pub is_damaged: bool,
    /// How many descriptors the process may have open, from its next start on. `None`: as many as this program.
    pub descriptors: Option<u32>,
    disk: PathBuf,
    is_mounted: bool,
    log: PathBuf,
    /// Where in the log the present process begins.
    log_begin: u64,
    process: Option<Child>,
    /// What makes its syncs take long.
    slowing: Option<Child>,
}

impl Node {
    /// With a disk of its own, if that can be had.
    pub(crate) fn new(
        place: Party,
        addresses: Addresses,
        doors: Doors,
        directory: &Path,
        state_megabytes: u64,
    ) -> Result<Node, BoxError> {
        let disk = directory.join(format!("node-{place}"));
        fs::create_dir_all(&disk)?;
        let is_mounted = rustix::process::geteuid().is_root() && mount(&disk, state_megabytes).is_ok();
        let log = directory.join(format!("node-{place}.log"));
        Ok(Node {
            place,
            inspector: clients::grpc(&addresses.raft)?,
            addresses,
            doors,
            is_member: true,
            program: Program::Static,
            is_damaged: false,
            descriptors: None,
            disk,
            is_mounted,
            log,
            log_begin: 0,
            process: None,
            slowing: None,
        })
    }

    pub(crate) fn can_be_filled(&self) -> bool {
        self.is_mounted
    }

    fn data(&self) -> PathBuf {
        self.disk.join("data")
    }

    /// Whoever comes from now on, and the one that is there when it is started again, is reached at the other address.
    pub(crate) fn move_away(&mut self) -> Result<(), BoxError> {
        let Addresses { raft, second_raft, .. } = &mut self.addresses;
        std::mem::swap(raft, second_raft);
        self.doors.grpc = clients::grpc(raft)?;
        self.inspector = clients::grpc(raft)?;
        self.program = Program::Dynamic;
        Ok(())
    }

    /// Starts the process; one of `peers` lets it in, if it joins.
    pub(crate) fn start(
        &mut self,
        setting: &Setting,
        network: &Network,
        peers: &[String],
    ) -> Result<(), BoxError> {
        let mut log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        writeln!(log, "---- {:?} ----", self.program)?;
        self.log_begin = log.seek(SeekFrom::End(0))?;
        let snapshot_entries = SNAPSHOT_ENTRIES + SNAPSHOT_ENTRIES_PER_MEGABYTE * setting.state_megabytes;
        let program = setting.program(self.program);
        let mut command = match self.descriptors {
            Some(limit) => {
                let mut command = network.command(self.place, Path::new("sh"));
                command.args(["-c", "ulimit -n \"$0\" && exec \"$@\"", &limit.to_string()]).arg(program);
                command
            }
            None => network.command(self.place, &program),
        };
        command
            .args([
                "--raft-addr",
                &self.addresses.raft,
                "--web-server",
                &self.addresses.web,
                "--stop-with-stdin",
            ])
            .args(["--log-segment-bytes", &SEGMENT_BYTES.to_string()])
            .args(["--snapshot-entries", &snapshot_entries.to_string(), "--data-dir"])
            .arg(self.data());
        if let Some(listen) = &self.addresses.listen {
            command.args(["--listen-addr", listen]);
        }
        match self.program {
            Program::Static => command.arg("--config").arg(&setting.members),
            Program::Dynamic => command.args(peers.iter().flat_map(|peer| ["--peer-addr", peer])),
        };
        // It must not get the Ctrl+C that is meant for this program.
        command.process_group(0);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(log);
        let process = command.spawn()?;
        network.set_process(self.place, Some(process.id()));
        self.process = Some(process);
        Ok(())
    }

    /// Whether there is a process, which may be stopped.
    pub(crate) fn is_up(&self) -> bool {
        self.process.is_some()
    }

    /// As `kill -9` does: no word to anybody.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        match self.process.take() {
            Some(mut process) => {
                process.kill()?;
                process.wait().map(drop)
            }
            None => Ok(()),
        }
    }

    /// As an operator does (SIGTERM): the process ends in order, unless it hangs, which is an error.
    pub(crate) async fn terminate(&mut self) -> io::Result<Option<End>> {
        self.signal(Signal::TERM)?;
        let until = Instant::now() + TERMINATION_MAX;
        while self.is_up() {
            if let Some(end) = self.ended()? {
                return Ok(Some(end));
            }
            if Instant::now() > until {
                let text = format!("the process has not ended within {TERMINATION_MAX:?} of SIGTERM");
                return Err(io::Error::new(io::ErrorKind::TimedOut, text));
            }
            sleep(TERMINATION_PAUSE).await;
        }
        Ok(None)
    }

    /// Stops the process without ending it (SIGSTOP), or lets it go on (SIGCONT).
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match self.process.as_ref().map(Pid::from_child) {
            Some(pid) => Ok(kill_process(pid, signal)?),
            None => Ok(()),
        }
    }

    /// How the process ended, if it did by itself; it is then no longer up.
    pub(crate) fn ended(&mut self) -> io::Result<Option<End>> {
        let Some(process) = &mut self.process else { return Ok(None) };
        let Some(status) = process.try_wait()? else { return Ok(None) };
        self.process = None;
        Ok(Some(End { status: status.to_string(), error: self.error()? }))
    }

    fn error(&self) -> io::Result<Option<String>> {
        let mut log = File::open(&self.log)?;
        log.seek(SeekFrom::Start(self.log_begin))?;
        let mut text = Vec::new();
        log.read_to_end(&mut text)?;
        let text = String::from_utf8_lossy(&text);
        Ok(text.lines().rfind(|line| line.starts_with("error:")).map(str::to_owned))
    }

    /// Each sync takes so much longer from now on, until [`hasten`](Self::hasten).
    pub(crate) fn delay_syncs(&mut self, delay: Duration) -> io::Result<()> {
        let Some(process) = &self.process else { return Ok(()) };
        let slowing = Command::new(STRACE)
            .args(["-f", "-qq", "-o", "/dev/null", "-e", "trace=fsync,fdatasync", "-e"])
            .arg(format!("inject=fsync,fdatasync:delay_enter={}", delay.as_micros()))
            .args(["-p", &process.id().to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()?;
        self.slowing = Some(slowing);
        Ok(())
    }

    /// Whether its syncs still take longer.
    pub(crate) fn is_slowed(&mut self) -> io::Result<bool> {
        match &mut self.slowing {
            Some(slowing) => Ok(slowing.try_wait()?.is_none()),
            None => Ok(false),
        }
    }

    /// Its syncs take as long as the disk does.
    pub(crate) fn hasten(&mut self) -> io::Result<()> {
        let Some(mut slowing) = self.slowing.take() else { return Ok(()) };
        // It lets go of the node by itself, or has ended with it.
        if slowing.try_wait()?.is_none() {
            kill_process(Pid::from_child(&slowing), Signal::TERM)?;
        }
        slowing.wait().map(drop)
    }

    /// Empties the directory of a node that is down.
    pub(crate) fn wipe(&mut self) -> io::Result<()> {
        self.is_damaged = false;
        match fs::remove_dir_all(self.data()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Keeps a copy of the directory of a node that is down.
    pub(crate) fn copy_aside(&self) -> Result<(), BoxError> {
        let copy = self.copy();
        if copy.exists() {
            fs::remove_dir_all(&copy)?;
        }
        run(Command::new("cp").args(["-a", "--sparse=always"]).arg(self.data()).arg(copy))
    }

    /// Puts the copy in the place of the directory of a node that is down.
    pub(crate) fn put_back(&mut self) -> Result<(), BoxError> {
        self.wipe()?;
        run(Command::new("cp").args(["-a", "--sparse=always"]).arg(self.copy()).arg(self.data()))?;
        Ok(fs::remove_dir_all(self.copy())?)
    }

    /// Not on the disk of the node, which may be small.
    fn copy(&self) -> PathBuf {
        self.disk.with_extension("copy")
    }

    /// Leaves no room on the disk.
    pub(crate) fn fill(&self) -> io::Result<()> {
        let mut filler = OpenOptions::new().create(true).append(true).open(self.disk.join(FILLER))?;
        // Ever smaller pieces, to the last byte.
        for piece in [vec![0; 1 << 20], vec![0; 4096], vec![0; 64]] {
            loop {
                match filler.write_all(&piece) {
                    Ok(()) => {}
                    Err(error) if error.kind() == io::ErrorKind::StorageFull => break,
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    /// Makes room again.
    pub(crate) fn empty(&self) -> io::Result<()> {
        match fs::remove_file(self.disk.join(FILLER)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Turns one bit of one file of a node that is down, and says where.
    pub(crate) fn flip(&mut self, aim: Aim, random: &mut impl Rng) -> io::Result<String> {
        let place = flip(&self.data(), aim, random)?;
        self.is_damaged = true;
        Ok(place)
    }

    /// Copies the directory to where it stays when the disk is taken away.
    pub(crate) fn keep(&self) -> Result<(), BoxError> {
        if self.is_mounted && self.data().exists() {
            let kept = self.disk.with_extension("data");
            run(Command::new("cp").args(["-a", "--sparse=always"]).arg(self.data()).arg(kept))?;
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // What cannot be taken away now is before the next run.
        let _ = self.hasten();
        let _ = self.kill();
        if self.is_mounted {
            let _ = run(Command::new("umount").arg("--lazy").arg(&self.disk));
        }
    }
}

fn mount(directory: &Path, state_megabytes: u64) -> Result<(), BoxError> {
    let size = format!("size={}m", DISK_MEGABYTES + STATES_ON_DISK * state_megabytes);
    run(Command::new("mount").args(["-t", "tmpfs", "-o", &size, DISK]).arg(directory))
}

/// Whether syncs can be delayed here.
pub(crate) fn can_delay_syncs() -> bool {
    let shows_version =
        |mut strace: Command| strace.arg("--version").output().is_ok_and(|it| it.status.success());
    rustix::process::geteuid().is_root() && shows_version(Command::new(STRACE))
}

/// Takes away the disks that runs have left which are over.
pub(crate) fn unmount_all() -> Result<usize, BoxError> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let ours = mounts.lines().filter_map(|line| line.strip_prefix(DISK)?.split(' ').nth(1));
    let left: Vec<&str> = ours.filter(|disk| !is_in_use(Path::new(disk))).collect();
    for disk in &left {
        run(Command::new("umount").arg("--lazy").arg(disk))?;
    }
    Ok(left.len())
}

/// Whether the run goes on that this disk belongs to.
fn is_in_use(disk: &Path) -> bool {
    let lock = disk.parent().and_then(|run| File::open(run.join(LOCK)).ok());
    lock.is_some_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
}

fn run(command: &mut Command) -> Result<(), BoxError> {
    let shown = format!("{command:?}");
    let output = command.output().map_err(|error| format!("{shown} cannot be started: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{shown} failed: {}", String::from_utf8_lossy(&output.stderr).trim()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_of_a_run_that_goes_on_is_not_taken_away() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("node-1");
        assert!(!is_in_use(&disk));
        let lock = File::create(directory.path().join(LOCK)).unwrap();
        assert!(!is_in_use(&disk));
        lock.lock().unwrap();
        assert!(is_in_use(&disk));
    }

    #[test]
    fn damage_is_told_from_other_reasons() {
        let end = |error: &str| End { status: String::new(), error: Some(error.to_owned()) };
        assert!(
            end("error: log/3.segment at offset 5: record 7 is damaged: its checksum is 1").is_about_damage()
        );
        assert!(end("error: cannot open the database in data: MDB_INVALID").is_about_damage());
        assert!(!end("error: address 127.0.0.1:1 is taken: another program listens there").is_about_damage());
        assert!(!End { status: String::new(), error: None }.is_about_damage());
    }
}
