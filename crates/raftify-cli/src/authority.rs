//! A certificate authority for one cluster, in a directory: `ca.pem`, `ca-key.pem`, and the issued
//! certificates.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use raftify::status::ClusterId;
use raftify::tls::{CertificateRole, client_uri, cluster_uri, node_uri};
use raftify::{BoxError, NodeId};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Certificates are valid from this time before they are issued: clocks differ.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(60 * 60);

/// A longer time is a mistake, and exceeds the range of dates in certificates.
const DAYS_MAX: u32 = 100 * 365;

/// The certificate authority of a cluster. Its directory also gets the certificates that it issues.
pub struct Authority {
    directory: PathBuf,
    issuer: Issuer<'static, KeyPair>,
}

/// The holder of a certificate to issue.
pub enum Holder {
    /// A node, with the hosts of its addresses: names or IP addresses, without ports. With an id, or a
    /// cluster, the certificate is valid for that one alone.
    Node {
        /// At least one.
        hosts: Vec<String>,
        /// The id of the node.
        id: Option<NodeId>,
        /// The cluster of the node.
        cluster: Option<ClusterId>,
    },
    /// A client, with its name for logs and its roles.
    Client {
        /// Letters, digits, dots, hyphens and underscores.
        name: String,
        /// What it may do.
        roles: Vec<CertificateRole>,
    },
}

/// The two files of an issued certificate.
pub struct Issued {
    /// The certificate.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Authority {
    /// Makes a new authority in a directory, which is created if it is missing.
    ///
    /// # Errors
    /// If the directory has one already: its certificates would lose their authority. Or the problem with a
    /// file.
    pub fn create(directory: &Path, days: u32) -> Result<Authority, BoxError> {
        fs::create_dir_all(directory)
            .map_err(|error| format!("cannot create {}: {error}", directory.display()))?;
        let (certificate_path, key_path) = (directory.join("ca.pem"), directory.join("ca-key.pem"));
        if let Some(path) = [&certificate_path, &key_path].into_iter().find(|path| path.exists()) {
            let path = path.display();
            return Err(format!(
                "{path} exists: a new CA would make all its certificates invalid. Move it away first"
            )
            .into());
        }
        let mut params = valid_for(days)?;
        // The time tells one authority from another.
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        params.distinguished_name.push(DnType::CommonName, format!("raftify CA {seconds}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        write(&key_path, &key.serialize_pem(), true)?;
        write(&certificate_path, &certificate.pem(), false)?;
        Ok(Authority { directory: directory.to_owned(), issuer: Issuer::new(params, key) })
    }

    /// Opens the authority in a directory.
    ///
    /// # Errors
    /// The problem with a file.
    pub fn open(directory: &Path) -> Result<Authority, BoxError> {
        let read = |name: &str| {
            let path = directory.join(name);
            fs::read_to_string(&path)
                .map_err(|error| format!("cannot read {}: {error}; `ca init` makes a CA", path.display()))
        };
        let (certificate, key) = (read("ca.pem")?, read("ca-key.pem")?);
        let unusable =
            |error: rcgen::Error| format!("the CA in {} cannot be used: {error}", directory.display());
        let key = KeyPair::from_pem(&key).map_err(unusable)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).map_err(unusable)?;
        Ok(Authority { directory: directory.to_owned(), issuer })
    }

    /// The certificate of the authority, which each node and each client needs.
    pub fn certificate(&self) -> PathBuf {
        self.directory.join("ca.pem")
    }

    /// Issues a certificate, in files that have the name of the node's first host or of the client. Files of
    /// that name are replaced: nodes and clients that use them take the new certificate without a
    /// restart.
    ///
    /// # Errors
    /// An invalid host or name, or the problem with a file.
    pub fn issue(&self, holder: &Holder, days: u32) -> Result<Issued, BoxError> {
        let mut params = valid_for(days)?;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let mut uris = Vec::new();
        let name = match holder {
            Holder::Node { hosts, id, cluster } => {
                params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
                for host in hosts {
                    params.subject_alt_names.push(host_name(host)?);
                }
                uris.push(CertificateRole::Node.uri());
                uris.extend(id.map(node_uri));
                uris.extend(cluster.map(cluster_uri));
                hosts.first().ok_or("give at least one host of the node")?
            }
            Holder::Client { name, roles } => {
                uris.push(client_uri(checked_name(name)?));
                uris.extend(roles.iter().map(|role| role.uri()));
                name
            }
        };
        for uri in uris {
            params.subject_alt_names.push(SanType::URI(uri.try_into()?));
        }
        params.distinguished_name.push(DnType::CommonName, name.as_str());
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let file = name.trim_matches(['[', ']']).replace(':', "_");
        let issued = Issued {
            certificate: self.directory.join(format!("{file}.pem")),
            key: self.directory.join(format!("{file}-key.pem")),
        };
        write(&issued.key, &key.serialize_pem(), true)?;
        write(&issued.certificate, &certificate.pem(), false)?;
        Ok(issued)
    }
}

fn valid_for(days: u32) -> Result<CertificateParams, BoxError> {
    if days == 0 || days > DAYS_MAX {
        return Err(format!("a certificate cannot be valid for {days} days: give 1 to {DAYS_MAX}").into());
    }
    let now = SystemTime::now();
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    (params.not_before, params.not_after) = ((now - CLOCK_DIFFERENCE).into(), (now + DAY * days).into());
    Ok(params)
}

fn host_name(host: &str) -> Result<SanType, BoxError> {
    if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
        return Ok(SanType::IpAddress(address));
    }
    checked_name(host)
        .map_err(|_| format!("{host} is no host: give a name or an IP address, without a port"))?;
    Ok(SanType::DnsName(host.try_into()?))
}

/// A name that is valid in a URI and as the name of a file.
fn checked_name(name: &str) -> Result<&str, BoxError> {
    let is_valid = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    if name.is_empty() || name.starts_with('.') || name == "ca" || !name.chars().all(is_valid) {
        return Err(format!("{name:?} is no name: use letters, digits, dots, hyphens and underscores").into());
    }
    Ok(name)
}

/// Replaces a file in one step. A key is readable for its owner alone.
fn write(path: &Path, text: &str, is_key: bool) -> Result<(), String> {
    let failed = |error: io::Error| format!("cannot write {}: {error}", path.display());
    let new = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt;
        options.mode(if is_key { 0o600 } else { 0o644 });
    }
    #[cfg(not(unix))]
    let _ = is_key;
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let written = options.open(&new).and_then(|mut file: File| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.and_then(|()| fs::rename(&new, path)).map_err(failed)
}
