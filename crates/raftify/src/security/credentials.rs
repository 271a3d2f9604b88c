//! The three lines of configuration, and the loaded certificates, which follow the files.

use std::fmt;
use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread;
use std::time::Duration;

use raftify_core::{ClusterId, NodeId};
use tracing::{error, info};

use crate::security::identity::{CertificateRole, host_of};
use crate::security::material::{Material, PemTexts, Text};

/// How often the files are read. A change takes effect when two reads in a row have found it: certificate and key are
/// two files, and are replaced one after the other.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// A larger file is no certificate.
const PEM_BYTES_MAX: u64 = 1 << 20;

/// Mutual TLS: the CA of the cluster, and the certificate and the key of this node or client.
///
/// The certificates are read again when their files change, without a restart: new connections use the new ones, open
/// connections continue. If the new files cannot be used, the old certificates stay, and an error is logged. Only
/// TLS 1.3 is used. A node's certificate has the role [`Node`](CertificateRole::Node), and the host of the node's
/// address as a subject alternative name; `raftify-cli ca` issues such certificates.
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
    /// The certificate is refused by its own CA: expired, not valid yet, or of another CA. Every other node would
    /// refuse it as well.
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
    /// The thread that watches the files could not be started.
    #[error("the files of the certificates cannot be watched: {0}")]
    Watch(io::Error),
}

impl Tls {
    fn read(&self) -> Result<PemTexts, TlsError> {
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

    fn has_files(&self) -> bool {
        [&self.ca, &self.certificate, &self.key].into_iter().any(|pem| matches!(pem, Pem::File(_)))
    }
}

/// The holder of the certificate.
#[derive(Clone, Debug)]
pub(crate) enum Holder {
    /// A node that the others reach at this address.
    Node {
        address: String,
    },
    Client,
}

impl Holder {
    fn load(&self, texts: &PemTexts) -> Result<Material, TlsError> {
        let material = Material::new(texts)?;
        let Holder::Node { address } = self else { return Ok(material) };
        let own = &material.own;
        let what = || texts.certificate.what.clone();
        if !own.has_any(&[CertificateRole::Node]) {
            return Err(TlsError::Role { what: what(), own: own.to_string(), roles: own.roles() });
        }
        if !own.covers(address) {
            let host = host_of(address).to_owned();
            return Err(TlsError::Host { what: what(), own: own.to_string(), host });
        }
        Ok(material)
    }
}

/// Loaded certificates. A clone is a second handle to the same ones; the files are watched until the last one is gone.
#[derive(Clone)]
pub(crate) struct Credentials(Arc<Watched>);

struct Watched {
    current: Arc<RwLock<Arc<Material>>>,
    /// Dropping it ends the thread that watches the files.
    _watching: mpsc::Sender<()>,
}

impl Credentials {
    pub(crate) fn load(tls: &Tls, holder: &Holder) -> Result<Credentials, TlsError> {
        let texts = tls.read()?;
        let current = Arc::new(RwLock::new(Arc::new(holder.load(&texts)?)));
        let (watching, ended) = mpsc::channel();
        if tls.has_files() {
            let watch = Watch { tls: tls.clone(), holder: holder.clone(), current: Arc::clone(&current) };
            let spawned = thread::Builder::new().name("raftify-tls".to_owned());
            spawned.spawn(move || watch.run(&ended, texts)).map_err(TlsError::Watch)?;
        }
        Ok(Credentials(Arc::new(Watched { current, _watching: watching })))
    }

    /// For one connection.
    pub(crate) fn current(&self) -> Arc<Material> {
        Arc::clone(&self.0.current.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// As the thread that watches the files has it.
    #[cfg(test)]
    pub(super) fn watch_of(&self, tls: &Tls, holder: &Holder) -> Watch {
        Watch { tls: tls.clone(), holder: holder.clone(), current: Arc::clone(&self.0.current) }
    }

    /// Checks the ids in the certificate of this node.
    pub(crate) fn check_ids(&self, node: NodeId, cluster: Option<ClusterId>) -> Result<(), TlsError> {
        let current = self.current();
        let checked = current.own.check_ids(Some(node), cluster);
        checked.map_err(|reason| TlsError::Ids { own: current.own.to_string(), reason })
    }
}

/// Reads the files at intervals, on a thread of its own: a file system that hangs delays nothing else.
pub(super) struct Watch {
    tls: Tls,
    holder: Holder,
    current: Arc<RwLock<Arc<Material>>>,
}

/// What one look at the files has found.
#[derive(PartialEq)]
enum Look {
    Read(Box<PemTexts>),
    Unreadable(String),
}

impl Look {
    fn at(tls: &Tls) -> Look {
        match tls.read() {
            Ok(texts) => Look::Read(Box::new(texts)),
            Err(error) => Look::Unreadable(error.to_string()),
        }
    }
}

impl Watch {
    fn run(self, ended: &mpsc::Receiver<()>, texts: PemTexts) {
        let mut judged = Look::Read(Box::new(texts));
        let mut last: Option<Look> = None;
        while ended.recv_timeout(LOOK_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            let look = Look::at(&self.tls);
            if look == judged {
                last = None;
                continue;
            }
            if last.as_ref() != Some(&look) {
                last = Some(look);
                continue;
            }
            self.judge(&look);
            judged = look;
            last = None;
        }
    }

    fn judge(&self, look: &Look) {
        let loaded = match look {
            Look::Read(texts) => self.holder.load(texts).map_err(|error| error.to_string()),
            Look::Unreadable(reason) => Err(reason.clone()),
        };
        match loaded {
            Ok(material) => {
                info!(certificate = %material.own, "the certificates have changed: new connections use the new ones");
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(material);
            }
            Err(reason) => {
                error!("the certificates have changed and cannot be used, the old ones stay: {reason}")
            }
        }
    }

    #[cfg(test)]
    pub(super) fn judge_now(&self, tls: &Tls) {
        self.judge(&Look::at(tls));
    }
}
