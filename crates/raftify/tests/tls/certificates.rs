//! Certificates, made for one test.

use std::path::Path;
use std::time::{Duration, SystemTime};

use raftify::tls::{CertificateRole, Tls};
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};

/// A CA that issues certificates.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A certificate with its key.
#[derive(Clone)]
pub(crate) struct Issued {
    pub(crate) certificate: String,
    pub(crate) key: String,
}

/// What to issue.
pub(crate) struct Wanted {
    names: Vec<String>,
    uris: Vec<String>,
    valid_from: SystemTime,
    valid_until: SystemTime,
}

pub(crate) const HOUR: Duration = Duration::from_secs(3600);

impl Wanted {
    /// A certificate of a node at these hosts.
    pub(crate) fn node(hosts: &[&str]) -> Wanted {
        Wanted::with(hosts, &[CertificateRole::Node])
    }

    pub(crate) fn client(roles: &[CertificateRole]) -> Wanted {
        Wanted::with(&[], roles).and_uri(raftify::tls::client_uri("tester"))
    }

    pub(crate) fn with(hosts: &[&str], roles: &[CertificateRole]) -> Wanted {
        let now = SystemTime::now();
        Wanted {
            names: hosts.iter().map(|&host| host.to_owned()).collect(),
            uris: roles.iter().map(|role| role.uri()).collect(),
            valid_from: now - HOUR,
            valid_until: now + HOUR,
        }
    }

    pub(crate) fn and_uri(mut self, uri: String) -> Wanted {
        self.uris.push(uri);
        self
    }

    pub(crate) fn valid(self, valid_from: SystemTime, valid_until: SystemTime) -> Wanted {
        Wanted { valid_from, valid_until, ..self }
    }
}

impl Authority {
    pub(crate) fn new() -> Authority {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(params, key), pem }
    }

    pub(crate) fn issue(&self, wanted: Wanted) -> Issued {
        let mut params = CertificateParams::new(wanted.names).unwrap();
        let uris = wanted.uris.into_iter().map(|uri| SanType::URI(uri.try_into().unwrap()));
        params.subject_alt_names.extend(uris);
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        (params.not_before, params.not_after) = (wanted.valid_from.into(), wanted.valid_until.into());
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        Issued { certificate, key: key.serialize_pem() }
    }

    /// The configuration of the holder of a certificate of this CA.
    pub(crate) fn tls(&self, wanted: Wanted) -> Tls {
        self.issue(wanted).tls(&self.pem)
    }
}

impl Issued {
    pub(crate) fn tls(&self, ca: &str) -> Tls {
        let bytes = |text: &str| text.as_bytes().into();
        Tls { ca: bytes(ca), certificate: bytes(&self.certificate), key: bytes(&self.key) }
    }

    /// Written to files, or over those of another certificate.
    pub(crate) fn write(&self, ca: &str, directory: &Path) -> Tls {
        let [ca_file, certificate, key] =
            ["ca.pem", "node.pem", "node-key.pem"].map(|name| directory.join(name));
        std::fs::write(&ca_file, ca).unwrap();
        std::fs::write(&certificate, &self.certificate).unwrap();
        std::fs::write(&key, &self.key).unwrap();
        Tls { ca: ca_file.into(), certificate: certificate.into(), key: key.into() }
    }
}
