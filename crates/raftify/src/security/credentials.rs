//! The three lines of configuration, and the loaded certificates, which follow the files.

use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use parking_lot::RwLock;
use raftify_core::{ClusterId, NodeId};
use tracing::{error, info};

use crate::security::config::{PemTexts, Tls, TlsError};
use crate::security::identity::{CertificateRole, host_of};
use crate::security::material::Material;

/// How often the files are read. A change takes effect when two reads in a row have found it: certificate and
/// key are two files, and are replaced one after the other.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

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

/// Loaded certificates. A clone is a second handle to the same ones; the files are watched until the last one
/// is gone.
#[derive(Clone)]
pub(crate) struct Credentials(Arc<Watched>);

struct Watched {
    current: Arc<RwLock<Arc<Material>>>,
    /// Dropping it ends the thread that watches the files.
    _watching: mpsc::Sender<()>,
}

impl Credentials {
    pub(crate) fn load(tls: &Tls, holder: &Holder) -> Result<Credentials, TlsError> {
        let texts = tls.read_all()?;
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
        Arc::clone(&self.0.current.read())
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

/// Reads the files at intervals, on a separate thread: a file system that hangs delays nothing else.
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
        match tls.read_all() {
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
                *self.current.write() = Arc::new(material);
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
