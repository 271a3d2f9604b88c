//! The loaded certificates, which follow their files.

use std::fmt;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use parking_lot::RwLock;
use raftify_core::{ClusterId, NodeId};
use tracing::{error, info};

use crate::security::config::{Error, PemTexts, Tls, TlsError};
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
        let watching = watch_for(tls, holder, Arc::clone(&current)).start(texts)?;
        Ok(Credentials(Arc::new(Watched { current, _watching: watching })))
    }

    /// For one connection.
    pub(crate) fn current(&self) -> Arc<Material> {
        Arc::clone(&self.0.current.read())
    }

    /// As the thread that watches the files has it.
    #[cfg(test)]
    pub(super) fn watch_of(&self, tls: &Tls, holder: &Holder) -> Watch {
        watch_for(tls, holder, Arc::clone(&self.0.current))
    }

    /// Checks the ids in the certificate of this node.
    pub(crate) fn check_ids(&self, node: NodeId, cluster: Option<ClusterId>) -> Result<(), TlsError> {
        let current = self.current();
        let checked = current.own.check_ids(Some(node), cluster);
        checked.map_err(|reason| TlsError::Ids { own: current.own.to_string(), reason })
    }
}

/// Replaces the loaded certificates after each change.
fn watch_for(tls: &Tls, holder: &Holder, current: Arc<RwLock<Arc<Material>>>) -> Watch {
    let taken = move |_: &PemTexts, material| {
        *current.write() = Arc::new(material);
        Ok(())
    };
    Watch { tls: tls.clone(), holder: holder.clone(), taken: Box::new(taken) }
}

impl Tls {
    /// For another server of the program, such as a web API, that is to use the same certificates and follow
    /// their files as well: calls `taken` with the content of the three files, all as
    /// [`Pem::Bytes`](crate::tls::Pem::Bytes), before this returns, and again after each change. The content has been checked: the certificate is valid now, and
    /// belongs to the CA and to the key.
    ///
    /// The files are read every half a second, on a separate thread, which also calls `taken`. A change counts
    /// when two reads in a row have found it, because the files are replaced one after the other. If the new
    /// content cannot be used, or `taken` fails, an error is logged, and `taken` is called again only after the
    /// next change: the program must keep what it had. Without files, `taken` is called once.
    ///
    /// The watching ends when the returned value is dropped.
    ///
    /// # Errors
    /// Why the content cannot be used now, [`TlsError::Taken`] with the error of `taken`, or
    /// [`TlsError::Watch`].
    ///
    /// # Examples
    /// ```
    /// use raftify::tls::Tls;
    ///
    /// let tls = Tls { ca: "no-ca.pem".into(), certificate: "no.pem".into(), key: "no-key.pem".into() };
    /// let watch = tls.watch(|new| {
    ///     let _configuration = (new.ca.read()?, new.certificate.read()?, new.key.read()?);
    ///     Ok(())
    /// });
    /// assert!(watch.unwrap_err().to_string().contains("no-ca.pem cannot be read"));
    /// ```
    pub fn watch(
        &self,
        mut taken: impl FnMut(&Tls) -> Result<(), Box<dyn std::error::Error + Send + Sync>> + Send + 'static,
    ) -> Result<TlsWatch, TlsError> {
        let texts = self.read_all()?;
        Holder::Client.load(&texts)?;
        taken(&texts.as_bytes()).map_err(TlsError::Taken)?;
        let taken = move |texts: &PemTexts, _| taken(&texts.as_bytes());
        let watch = Watch { tls: self.clone(), holder: Holder::Client, taken: Box::new(taken) };
        Ok(TlsWatch { _watching: watch.start(texts)? })
    }
}

/// Watches the files of certificates until it is dropped: see [`Tls::watch`].
#[must_use = "dropping it ends the watching"]
pub struct TlsWatch {
    /// Dropping it ends the thread that watches the files.
    _watching: mpsc::Sender<()>,
}

impl fmt::Debug for TlsWatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TlsWatch")
    }
}

/// Reads the files at intervals, on a separate thread: a file system that hangs delays nothing else.
pub(super) struct Watch {
    tls: Tls,
    holder: Holder,
    taken: Box<Taken>,
}

/// Takes changed certificates.
type Taken = dyn FnMut(&PemTexts, Material) -> Result<(), Error> + Send;

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
    /// Watches until the returned sender is dropped. `texts` are in use already.
    fn start(self, texts: PemTexts) -> Result<mpsc::Sender<()>, TlsError> {
        let (watching, ended) = mpsc::channel();
        if self.tls.has_files() {
            let spawned = thread::Builder::new().name("raftify-tls".to_owned());
            spawned.spawn(move || self.run(&ended, texts)).map_err(TlsError::Watch)?;
        }
        Ok(watching)
    }

    fn run(mut self, ended: &mpsc::Receiver<()>, texts: PemTexts) {
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

    fn judge(&mut self, look: &Look) {
        let taken = match look {
            Look::Read(texts) => self.holder.load(texts).map_err(|error| error.to_string()).and_then(|new| {
                let own = new.own.to_string();
                (self.taken)(texts, new).map(|()| own).map_err(|error| error.to_string())
            }),
            Look::Unreadable(reason) => Err(reason.clone()),
        };
        match taken {
            Ok(certificate) => {
                info!(%certificate, "the certificates have changed: new connections use the new ones");
            }
            Err(reason) => {
                error!("the certificates have changed and cannot be used, the old ones stay: {reason}")
            }
        }
    }

    #[cfg(test)]
    pub(super) fn judge_now(&mut self, tls: &Tls) {
        self.judge(&Look::at(tls));
    }
}
