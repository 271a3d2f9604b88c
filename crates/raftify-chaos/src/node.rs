//! One slot for a node: its addresses, its directory, on a small disk where possible, its log, and its
//! current process. Starts, stops and damages; decides nothing.

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
use crate::clients::{self, Client, Endpoints};
use crate::links::Party;
use crate::network::{Addresses, Network};

/// Small segments and frequent snapshots make rare events frequent in a run.
const SEGMENT_BYTES: u64 = 1 << 20;
const SNAPSHOT_ENTRIES: u64 = 20_000;

/// Additional entries between snapshots for each megabyte of state, because a large snapshot is expensive.
const SNAPSHOT_ENTRIES_PER_MEGABYTE: u64 = 500;

/// The source name of mounted disks, by which they are found again.
const DISK: &str = "raftify-chaos";
/// The size of a disk besides the state, and how many copies of the state fit: the current snapshot, the next
/// one, and a received one in part.
const DISK_MEGABYTES: u64 = 256;
const STATES_ON_DISK: u64 = 5;

/// No clean shutdown takes longer, also on a slow disk; and the polling interval.
const TERMINATION_MAX: Duration = Duration::from_secs(30);
const TERMINATION_PAUSE: Duration = Duration::from_millis(20);

/// The lock file in the directory of a run.
pub(crate) const LOCK: &str = "lock";

/// The program that delays the system calls of a running process.
const STRACE: &str = "strace";

/// The file that fills a disk.
const FILLER: &str = "filler";

/// The space on a disk that is almost full. The reserve of a node is 64 MiB by default.
const LEFT_BYTES: u64 = 56 << 20;

/// How a node enters its cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Program {
    /// As one of the first members, with the number of its slot as its id.
    Static,
    /// By joining, under a new id.
    Dynamic,
}

/// The settings of all slots.
#[derive(Clone, Debug)]
pub(crate) struct Setting {
    /// The directory of the programs.
    pub programs: PathBuf,
    /// The file with the first members.
    pub members: PathBuf,
    /// The size of the state before the clients begin.
    pub state_megabytes: u64,
}

impl Setting {
    /// # Errors
    /// The missing program, and how to build it.
    pub(crate) fn check(&self) -> Result<(), BoxError> {
        for program in [Program::Static, Program::Dynamic] {
            let path = self.program(program);
            if !path.exists() {
                return Err(format!(
                    "{} is not there: build it with `cargo build -p {}`, with --release if this program was, or give its \
                     directory with --programs",
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
    /// The exit status.
    pub status: String,
    /// The last line of its log that begins with `error:`.
    pub error: Option<String>,
}

impl End {
    /// Whether the program reports an unclean shutdown.
    pub(crate) fn is_failure(&self) -> bool {
        self.error.is_some()
    }

    pub(crate) fn says(&self, words: &str) -> bool {
        self.error.as_ref().is_some_and(|error| error.contains(words))
    }

    /// Whether the error reports damage: by raftify, or by LMDB for a file that is no longer a database.
    pub(crate) fn is_about_damage(&self) -> bool {
        ["is damaged", "has format version", "cannot open the database in"]
            .iter()
            .any(|words| self.says(words))
    }
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.status, self.error.as_deref().unwrap_or("no error reported"))
    }
}

/// A slot for a node.
pub(crate) struct Node {
    pub place: Party,
    pub addresses: Addresses,
    pub endpoints: Endpoints,
    /// For status only: the leader serves its proposals.
    pub inspector: Client,
    /// Whether this slot is to have a voter.
    pub is_member: bool,
    /// How the node in this slot entered the cluster.
    pub program: Program,
    /// A bit of its directory was flipped and not detected yet.
    pub is_damaged: bool,
    /// The limit of descriptors of the process, from its next start on. `None`: that of this program.
    pub descriptors: Option<u32>,
    disk: PathBuf,
    is_mounted: bool,
    log: PathBuf,
    /// Where the log of the current process begins.
    log_begin: u64,
    process: Option<Child>,
    /// The process that delays its fsyncs.
    slowing: Option<Child>,
}

impl Node {
    /// On a separate disk, if that is possible.
    pub(crate) fn new(
        place: Party,
        addresses: Addresses,
        endpoints: Endpoints,
        directory: &Path,
        state_megabytes: u64,
    ) -> Result<Node, BoxError> {
        let disk = directory.join(format!("node-{place}"));
        fs::create_dir_all(&disk)?;
        let is_mounted = rustix::process::geteuid().is_root() && mount(&disk, state_megabytes).is_ok();
        let log = directory.join(format!("node-{place}.log"));
        Ok(Node {
            place,
            inspector: clients::grpc(&addresses.raft, endpoints.web.certificates.as_ref())?,
            addresses,
            endpoints,
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

    /// From now on, the current node after its restart, and every later one, has the other address.
    pub(crate) fn move_away(&mut self) -> Result<(), BoxError> {
        let Addresses { raft, second_raft, .. } = &mut self.addresses;
        std::mem::swap(raft, second_raft);
        let certificates = self.endpoints.web.certificates.as_ref();
        self.endpoints.grpc = clients::grpc(raft, certificates)?;
        self.inspector = clients::grpc(raft, certificates)?;
        self.program = Program::Dynamic;
        Ok(())
    }

    /// Starts the process; if the node joins, it does so through one of `peers`.
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
                "--web-admin-from-anywhere",
            ])
            .args(["--log-segment-bytes", &SEGMENT_BYTES.to_string()])
            .args(["--snapshot-entries", &snapshot_entries.to_string(), "--data-dir"])
            .arg(self.data());
        if let Some(listen) = &self.addresses.listen {
            command.args(["--listen-addr", listen]);
        }
        if let Some(certificates) = &self.endpoints.web.certificates {
            command.args(certificates.options(self.place));
        }
        match self.program {
            Program::Static => command.arg("--config").arg(&setting.members),
            Program::Dynamic => command.args(peers.iter().flat_map(|peer| ["--peer-addr", peer])),
        };
        // Ctrl+C for this program must not reach it.
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

    /// Kills the process as `kill -9` does, without notice to its peers.
    pub(crate) fn kill(&mut self) -> io::Result<()> {
        match self.process.take() {
            Some(mut process) => {
                process.kill()?;
                process.wait().map(drop)
            }
            None => Ok(()),
        }
    }

    /// Stops the process as an operator does (SIGTERM): it shuts down cleanly; if it hangs, that is an error.
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

    /// Suspends the process (SIGSTOP), or resumes it (SIGCONT).
    pub(crate) fn signal(&self, signal: Signal) -> io::Result<()> {
        match self.process.as_ref().map(Pid::from_child) {
            Some(pid) => Ok(kill_process(pid, signal)?),
            None => Ok(()),
        }
    }

    /// How the process ended, if it ended by itself; it is then no longer up.
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

    /// Delays each fsync by this time, until [`end_delay`](Self::end_delay).
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

    /// Whether its fsyncs are still delayed.
    pub(crate) fn is_slowed(&mut self) -> io::Result<bool> {
        match &mut self.slowing {
            Some(slowing) => Ok(slowing.try_wait()?.is_none()),
            None => Ok(false),
        }
    }

    /// Ends the delay of its fsyncs.
    pub(crate) fn end_delay(&mut self) -> io::Result<()> {
        let Some(mut slowing) = self.slowing.take() else { return Ok(()) };
        // It detaches from the node, or has ended with it.
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

    /// Copies the directory of a node that is down.
    pub(crate) fn copy_aside(&self) -> Result<(), BoxError> {
        let copy = self.copy();
        if copy.exists() {
            fs::remove_dir_all(&copy)?;
        }
        run(Command::new("cp").args(["-a", "--sparse=always"]).arg(self.data()).arg(copy))
    }

    /// Replaces the directory of a node that is down by the copy.
    pub(crate) fn put_back(&mut self) -> Result<(), BoxError> {
        self.wipe()?;
        run(Command::new("cp").args(["-a", "--sparse=always"]).arg(self.copy()).arg(self.data()))?;
        Ok(fs::remove_dir_all(self.copy())?)
    }

    /// Outside of the node's disk, which may be small.
    fn copy(&self) -> PathBuf {
        self.disk.with_extension("copy")
    }

    /// Fills the disk.
    pub(crate) fn fill(&self) -> io::Result<()> {
        let mut filler = OpenOptions::new().create(true).append(true).open(self.disk.join(FILLER))?;
        // Smaller and smaller pieces, to the last byte.
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

    /// Leaves less space on the disk than the reserve: enough for what is replicated meanwhile.
    pub(crate) fn fill_almost(&self) -> io::Result<()> {
        self.fill()?;
        let filler = OpenOptions::new().write(true).open(self.disk.join(FILLER))?;
        filler.set_len(filler.metadata()?.len().saturating_sub(LEFT_BYTES))
    }

    /// Frees the space again.
    pub(crate) fn empty(&self) -> io::Result<()> {
        match fs::remove_file(self.disk.join(FILLER)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Flips one bit of one file of a node that is down, and returns its location.
    pub(crate) fn flip(&mut self, aim: Aim, random: &mut impl Rng) -> io::Result<String> {
        let place = flip(&self.data(), aim, random)?;
        self.is_damaged = true;
        Ok(place)
    }

    /// Copies the directory to a place that remains when the disk is unmounted.
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
        // The next run removes what cannot be removed now.
        let _ = self.end_delay();
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

/// Whether fsyncs can be delayed here.
pub(crate) fn can_delay_syncs() -> bool {
    let shows_version =
        |mut strace: Command| strace.arg("--version").output().is_ok_and(|it| it.status.success());
    rustix::process::geteuid().is_root() && shows_version(Command::new(STRACE))
}

/// Unmounts the disks of runs that are over.
pub(crate) fn unmount_all() -> Result<usize, BoxError> {
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let ours = mounts.lines().filter_map(|line| line.strip_prefix(DISK)?.split(' ').nth(1));
    let left: Vec<&str> = ours.filter(|disk| !is_in_use(Path::new(disk))).collect();
    for disk in &left {
        run(Command::new("umount").arg("--lazy").arg(disk))?;
    }
    Ok(left.len())
}

/// Whether the run of this disk is still active.
fn is_in_use(disk: &Path) -> bool {
    let lock = disk.parent().and_then(|run| File::open(run.join(LOCK)).ok());
    lock.is_some_and(|lock| matches!(lock.try_lock(), Err(TryLockError::WouldBlock)))
}

fn run(command: &mut Command) -> Result<(), BoxError> {
    let shown = format!("{command:?}");
    let output = command.output().map_err(|error| format!("cannot start {shown}: {error}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{shown} failed: {}", String::from_utf8_lossy(&output.stderr).trim()).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_disk_of_an_active_run_is_not_unmounted() {
        let directory = tempfile::tempdir().unwrap();
        let disk = directory.path().join("node-1");
        assert!(!is_in_use(&disk));
        let lock = File::create(directory.path().join(LOCK)).unwrap();
        assert!(!is_in_use(&disk));
        lock.lock().unwrap();
        assert!(is_in_use(&disk));
    }

    #[test]
    fn damage_is_distinguished_from_other_errors() {
        let end = |error: &str| End { status: String::new(), error: Some(error.to_owned()) };
        assert!(
            end("error: log/3.segment at offset 5: record 7 is damaged: its checksum is 1").is_about_damage()
        );
        assert!(end("error: cannot open the database in data: MDB_INVALID").is_about_damage());
        assert!(!end("error: address 127.0.0.1:1 is taken: another program listens there").is_about_damage());
        assert!(!End { status: String::new(), error: None }.is_about_damage());
    }
}
