//! The three lines of configuration, and why they cannot be used.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// [`BoxError`](crate::BoxError), which this wing does not import: the errors of the crate import this one.
pub(super) type Error = Box<dyn std::error::Error + Send + Sync>;

/// A larger file is no certificate.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// Mutual TLS: the CA of the cluster, and the certificate and the key of this node or client.
///
/// The certificates are read again when their files change, without a restart: new connections use the new
/// ones, open connections continue. If the new files cannot be used, the old certificates stay, and an error
/// is logged. Only TLS 1.3 is used. A node's certificate has the role [`Node`](crate::tls::CertificateRole::Node), and
/// the host of the node's address as a subject alternative name; `raftify-cli ca` issues such certificates.
///
/// # Examples
/// ```
/// use raftify::start::BootstrapOptions;
/// use raftify::tls::Tls;
/// # use raftify::{BoxError, LogPosition, Snapshot, StateMachine};
/// # struct Sum(u64);
/// # impl StateMachine for Sum {
/// #     type LogEntry = u64;
/// #     type Reply = u64;
/// #     fn apply(&mut self, _: LogPosition, add: u64) -> Result<u64, BoxError> { Ok(add) }
/// #     fn snapshot(&mut self) -> Result<Snapshot, BoxError> { Ok(Snapshot::from_value(self.0)) }
/// #     fn restore(&mut self, _: &mut dyn std::io::Read) -> Result<(), BoxError> { Ok(()) }
/// # }
///
/// let tls = Tls {
///     ca: "/etc/raftify/ca.pem".into(),
///     certificate: "/etc/raftify/node.pem".into(),
///     key: "/etc/raftify/node-key.pem".into(),
/// };
/// let options = BootstrapOptions::<u64, Sum> { tls: Some(tls), ..BootstrapOptions::default() };
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tls {
    /// The certificates of the CA of the cluster; several while one CA replaces another.
    pub ca: Pem,
    /// The certificate of this node or client, followed by intermediate ones, if there are any.
    pub certificate: Pem,
    /// The private key of the certificate.
    pub key: Pem,
}

/// PEM text: a file, or its content. A text converts to the path of a file, bytes to the content.
#[derive(Clone, PartialEq, Eq)]
pub enum Pem {
    /// A file, which is read again when it changes.
    File(PathBuf),
    /// The content itself.
    Bytes(Vec<u8>),
}

/// The content is not printed: it may be a key.
impl fmt::Debug for Pem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pem::File(path) => f.debug_tuple("File").field(path).finish(),
            Pem::Bytes(bytes) => write!(f, "Bytes({} bytes)", bytes.len()),
        }
    }
}

impl Pem {
    /// The content: that of the file as it is now, at most 1 MiB of it.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(&self) -> io::Result<Vec<u8>> {
        match self {
            Pem::Bytes(bytes) => Ok(bytes.clone()),
            Pem::File(path) => {
                let mut bytes = Vec::new();
                File::open(path)?.take(PEM_BYTES_MAX).read_to_end(&mut bytes)?;
                Ok(bytes)
            }
        }
    }

    fn named(&self, name: &str) -> String {
        match self {
            Pem::Bytes(_) => format!("the {name}"),
            Pem::File(path) => format!("the {name} in {}", path.display()),
        }
    }
}

macro_rules! pem_from {
    ($($from:ty => |$value:ident| $pem:expr),* $(,)?) => {
        $(impl From<$from> for Pem {
            fn from($value: $from) -> Pem {
                $pem
            }
        })*
    };
}

pem_from! {
    &str => |path| Pem::File(path.into()),
    String => |path| Pem::File(path.into()),
    PathBuf => |path| Pem::File(path),
    &Path => |path| Pem::File(path.to_owned()),
    Vec<u8> => |bytes| Pem::Bytes(bytes),
    &[u8] => |bytes| Pem::Bytes(bytes.to_vec()),
}

/// Why certificates cannot be used. Nothing was started or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file cannot be read. Check the path and the permissions.
    #[error("{what} cannot be read: {source}: check the path and the permissions")]
    Read {
        /// Which of the three files.
        what: String,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The content is not PEM, or not of the right kind.
    #[error("{what} cannot be used: {reason}: give a PEM file as `raftify-cli ca` writes it")]
    Pem {
        /// Which of the three files.
        what: String,
        /// The problem.
        reason: String,
    },
    /// The certificate is refused by its own CA: expired, not valid yet, or of another CA. Every other node
    /// would refuse it as well.
    #[error("{what} (for {own}) cannot be used: {reason}")]
    Certificate {
        /// Which file.
        what: String,
        /// The names in the certificate.
        own: String,
        /// The problem, and the way out.
        reason: String,
    },
    /// The key is not the key of the certificate.
    #[error("{key} does not belong to {certificate}: give the two files that were issued together")]
    KeyMismatch {
        /// The key.
        key: String,
        /// The certificate.
        certificate: String,
    },
    /// The certificate of a node is not for the address of the node: all other nodes would refuse it.
    #[error("{what} is for {own}, and not for {host}, the host of this node's address: issue one for {host}")]
    Host {
        /// Which file.
        what: String,
        /// The names in the certificate.
        own: String,
        /// The host of the node's address.
        host: String,
    },
    /// The certificate of a node has not the role `node`.
    #[error(
        "{what} (for {own}) has not the role node, but {roles}: issue it with `raftify-cli ca issue --node`"
    )]
    Role {
        /// Which file.
        what: String,
        /// The names in the certificate.
        own: String,
        /// Its roles.
        roles: String,
    },
    /// The certificate is for another node or cluster.
    #[error("the certificate for {own} is not for this node: {reason}")]
    Ids {
        /// The names in the certificate.
        own: String,
        /// The difference.
        reason: String,
    },
    /// The program that was given them by [`Tls::watch`] cannot use them.
    #[error("the certificates cannot be used: {0}")]
    Taken(Error),
    /// The thread that watches the files could not be started.
    #[error("the files of the certificates cannot be watched: {0}")]
    Watch(io::Error),
}

impl Tls {
    pub(super) fn read_all(&self) -> Result<PemTexts, TlsError> {
        let read = |name: &str, pem: &Pem| match pem.read() {
            Ok(bytes) => Ok(Text { what: pem.named(name), bytes }),
            Err(source) => Err(TlsError::Read { what: pem.named(name), source }),
        };
        Ok(PemTexts {
            ca: read("CA", &self.ca)?,
            certificate: read("certificate", &self.certificate)?,
            key: read("key", &self.key)?,
        })
    }

    pub(super) fn has_files(&self) -> bool {
        [&self.ca, &self.certificate, &self.key].into_iter().any(|pem| matches!(pem, Pem::File(_)))
    }
}

/// The content of the three files, each with its name for errors.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct PemTexts {
    pub(super) ca: Text,
    pub(super) certificate: Text,
    pub(super) key: Text,
}

impl PemTexts {
    /// The content without the names of the files.
    pub(super) fn as_bytes(&self) -> Tls {
        let bytes = |text: &Text| Pem::Bytes(text.bytes.clone());
        Tls { ca: bytes(&self.ca), certificate: bytes(&self.certificate), key: bytes(&self.key) }
    }
}

#[derive(Clone, PartialEq, Eq)]
pub(super) struct Text {
    /// "the certificate in /etc/raftify/node.pem"
    pub(super) what: String,
    pub(super) bytes: Vec<u8>,
}
