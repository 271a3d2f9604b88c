//! Why a command failed, in one line, and the exit code that says it to a program.

use std::error::Error;
use std::fmt::{self, Debug, Display};
use std::io::ErrorKind;

use raftify::client::{ClientBackupError, ClientError, RequestRejected};
use raftify::error::{
    BackupRefused, MembershipError, MembershipRefusal, ReadError, SnapshotError, StorageError, TransferError,
};

/// The exit codes other than 0 (done) and 2 (an invalid command line).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// The command failed; nothing was changed.
    Failed = 1,
    /// The change may have been made: look before it is tried again.
    Unknown = 3,
    /// The command was not confirmed; nothing was changed.
    NotConfirmed = 4,
    /// Of `status`: writes are accepted, and a member is down.
    MemberDown = 5,
    /// Of `status`: no writes are accepted.
    NoWrites = 6,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    /// `None`: the output has said all.
    pub(crate) text: Option<String>,
}

impl Failure {
    pub(crate) fn new(exit: Exit, text: impl Into<String>) -> Failure {
        Failure { exit, text: Some(text.into()) }
    }

    pub(crate) fn failed(text: impl Into<String>) -> Failure {
        Failure::new(Exit::Failed, text)
    }

    /// A backup that was not made. Nothing was changed but the unfinished file.
    pub(crate) fn of_backup(what: &str, error: ClientBackupError) -> Failure {
        let resume = match &error {
            ClientBackupError::Interrupted { .. } | ClientBackupError::Unsound { .. } => true,
            ClientBackupError::File(StorageError::Io { source, .. }) => {
                source.kind() != ErrorKind::AlreadyExists
            }
            ClientBackupError::Node(error) => return Failure::of(what, error.clone()),
            _ => false,
        };
        let advice = if resume { ": what has arrived is kept, continue it with --resume" } else { "" };
        Failure::failed(format!("{what}: {error}{advice}"))
    }

    /// `what` could not be done.
    pub(crate) fn of<E: Explained>(what: &str, error: ClientError<E>) -> Failure {
        let exit = match &error {
            ClientError::Answer(answer) if answer.is_unknown() => Exit::Unknown,
            _ => Exit::Failed,
        };
        let advice = match &error {
            ClientError::Unreachable(_) => Some("check the addresses, and whether the nodes run"),
            ClientError::Rejected(RequestRejected::RoleMissing { .. }) => {
                Some("use a certificate with the role that is needed (`raftify-cli ca issue`)")
            }
            ClientError::Rejected(RequestRejected::TlsRequired { .. }) => Some("give --ca, --cert and --key"),
            ClientError::Answer(answer) => answer.advice(),
            _ => None,
        };
        let advice = advice.map_or_else(String::new, |advice| format!(": {advice}"));
        Failure::new(exit, format!("{what}: {error}{advice}"))
    }
}

impl Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.text.as_deref().unwrap_or_default())
    }
}

impl Error for Failure {}

/// The answer of a node, as this command line explains it.
pub(crate) trait Explained: Display + Debug {
    /// Whether the change may have been made.
    fn is_unknown(&self) -> bool;

    /// What to do, if the error does not say it.
    fn advice(&self) -> Option<&'static str>;
}

const NO_LEADER: &str =
    "start nodes until a majority of the voters is up, and see `raftify-cli cluster status`";
const LOOK: &str = "look at `raftify-cli cluster status` before you try again";

impl Explained for MembershipError {
    fn is_unknown(&self) -> bool {
        match self {
            MembershipError::Unknown(_) => true,
            MembershipError::Stopped(reason) => !reason.nothing_happened(),
            _ => false,
        }
    }

    fn advice(&self) -> Option<&'static str> {
        match self {
            MembershipError::NoLeader => Some(NO_LEADER),
            MembershipError::WouldLoseMajority { .. } => Some("with --force it is made nevertheless"),
            MembershipError::MembershipMoved { .. } => Some("look at `raftify-cli cluster members`"),
            MembershipError::Refused(MembershipRefusal::UnknownMember { .. }) => {
                Some("`raftify-cli cluster members` shows the ids")
            }
            error if error.is_unknown() => Some(LOOK),
            _ => None,
        }
    }
}

impl Explained for TransferError {
    fn is_unknown(&self) -> bool {
        matches!(self, TransferError::ConnectionLost(_))
    }

    fn advice(&self) -> Option<&'static str> {
        match self {
            TransferError::NoLeader => Some(NO_LEADER),
            TransferError::NotAVoter { .. } => Some("promote it first, or choose a voter"),
            TransferError::Unreachable { .. } | TransferError::NoSuccessor => {
                Some("start another voter, and see `raftify-cli cluster status`")
            }
            TransferError::ConnectionLost(_) => Some(LOOK),
            _ => None,
        }
    }
}

impl Explained for SnapshotError {
    fn is_unknown(&self) -> bool {
        false // The previous snapshot stays in use, and another one does no harm.
    }

    fn advice(&self) -> Option<&'static str> {
        match self {
            SnapshotError::Failed(_) => Some("the log of the node has the details"),
            _ => None,
        }
    }
}

impl Explained for BackupRefused {
    fn is_unknown(&self) -> bool {
        false
    }

    fn advice(&self) -> Option<&'static str> {
        matches!(self, BackupRefused::NoSnapshot).then_some("without --newest, it takes one")
    }
}

impl Explained for ReadError {
    fn is_unknown(&self) -> bool {
        false
    }

    fn advice(&self) -> Option<&'static str> {
        matches!(self, ReadError::NoLeader).then_some(NO_LEADER)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use raftify::NodeId;
    use raftify::error::UnknownOutcome;

    use super::*;

    #[test]
    fn the_exit_code_says_whether_a_change_may_have_been_made() {
        let late = MembershipError::Unknown(UnknownOutcome::TimedOut(Duration::from_secs(1)));
        let lost = TransferError::ConnectionLost("reset".to_owned());
        let unknown =
            [Failure::of("x", ClientError::Answer(late)), Failure::of("x", ClientError::Answer(lost))];
        for failure in unknown {
            assert_eq!(failure.exit, Exit::Unknown, "{failure}");
            assert!(failure.to_string().ends_with("before you try again"), "{failure}");
        }
        let id = NodeId::FIRST;
        let refused = MembershipRefusal::UnknownMember { id };
        let nothing_happened = [
            Failure::of("x", ClientError::Answer(MembershipError::NoLeader)),
            Failure::of("x", ClientError::Answer(MembershipError::Refused(refused))),
            Failure::of("x", ClientError::Answer(TransferError::NotAVoter { id })),
            Failure::of("x", ClientError::<ReadError>::Unreachable(Vec::new())),
            Failure::of("x", ClientError::<ReadError>::NotAMember { id, members: vec![id] }),
        ];
        for failure in nothing_happened {
            assert_eq!(failure.exit, Exit::Failed, "{failure}");
            assert!(failure.to_string().starts_with("x: "), "{failure}");
        }
    }
}
