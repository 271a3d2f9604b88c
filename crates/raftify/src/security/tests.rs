//! Identities in certificates, and certificates that change while they are in use.

use std::io;
use std::sync::{Arc, Mutex};

use raftify_core::{ClusterId, NodeId};
use rcgen::{CertificateParams, KeyPair, SanType};

use super::config::Tls;
use super::credentials::{Credentials, Holder};
use super::identity::{CertificateRole, PeerIdentity, client_uri, cluster_uri, host_of, node_uri};

fn id(number: u64) -> NodeId {
    NodeId::new(number).unwrap()
}

fn params(hosts: &[&str], uris: &[String]) -> CertificateParams {
    let hosts: Vec<String> = hosts.iter().map(|&host| host.to_owned()).collect();
    let mut params = CertificateParams::new(hosts).unwrap();
    let uris = uris.iter().map(|uri| SanType::URI(uri.as_str().try_into().unwrap()));
    params.subject_alt_names.extend(uris);
    params
}

pub(crate) fn identity(hosts: &[&str], uris: &[String]) -> PeerIdentity {
    let key = KeyPair::generate().unwrap();
    PeerIdentity::new(params(hosts, uris).self_signed(&key).unwrap().der()).unwrap()
}

#[test]
fn a_certificate_covers_exactly_its_hosts_however_their_addresses_are_spelled() {
    let identity = identity(&["node-1.example", "10.0.0.7", "::1"], &[]);
    for address in
        ["node-1.example:7061", "NODE-1.example:1", "node-1.example.:1", "10.0.0.7:7061", "[::1]:7061"]
    {
        assert!(identity.covers(address), "{address}");
        assert!(identity.covers(address), "{address}, a second time");
    }
    for address in
        ["node-2.example:1", "example:1", "a.node-1.example:1", "10.0.0.8:1", "[::2]:1", ":1", "", "ä:1"]
    {
        assert!(!identity.covers(address), "{address}");
    }
    assert_eq!(identity.to_string(), "node-1.example, 10.0.0.7, ::1");
}

#[test]
fn a_certificate_covers_more_hosts_than_are_remembered() {
    let hosts: Vec<String> = (0..20).map(|number| format!("node-{number}.example")).collect();
    let hosts: Vec<&str> = hosts.iter().map(String::as_str).collect();
    let identity = identity(&hosts, &[]);
    for _ in 0..2 {
        assert!(hosts.iter().all(|host| identity.covers(&format!("{host}:1"))));
        assert!(!identity.covers("node-20.example:1"));
    }
}

#[test]
fn roles_and_ids_are_those_of_the_uris_and_an_unknown_role_is_none() {
    let uris = [
        CertificateRole::Client.uri(),
        "raftify://role/king".to_owned(),
        node_uri(id(3)),
        cluster_uri(ClusterId(0xc1)),
        client_uri("backup"),
    ];
    let identity = identity(&[], &uris);
    assert_eq!(identity.roles(), "client");
    assert_eq!(identity.to_string(), "backup, node 3, cluster 00000000000000c1");
    assert!(identity.has_any(&[CertificateRole::Admin, CertificateRole::Client]));
    assert!(!identity.has_any(&[CertificateRole::Admin, CertificateRole::Node]));
    assert_eq!(identity.check_ids(Some(id(3)), Some(ClusterId(0xc1))), Ok(()));
    assert_eq!(identity.check_ids(None, None), Ok(()));
    let other = identity.check_ids(Some(id(4)), Some(ClusterId(0xc1)));
    assert_eq!(other, Err("it is for node 3, and not for node 4".to_owned()));
    assert!(identity.check_ids(Some(id(3)), Some(ClusterId(0xc2))).is_err());
}

#[test]
fn an_id_that_is_no_number_fits_no_node() {
    let identity = identity(&[], &["raftify://node/".to_owned(), "raftify://cluster/xyz".to_owned()]);
    assert!(identity.check_ids(Some(id(1)), None).is_err());
    assert!(identity.check_ids(None, Some(ClusterId(1))).is_err());
}

#[test]
fn any_bytes_are_a_certificate_or_an_error() {
    let key = KeyPair::generate().unwrap();
    let certificate = params(&["a.example"], &[node_uri(id(1))]).self_signed(&key).unwrap();
    let der = certificate.der().to_vec();
    for length in 0..der.len() {
        assert!(PeerIdentity::new(&der[..length].to_vec().into()).is_err());
        let mut changed = der.clone();
        changed[length] ^= 0x5a;
        if let Ok(identity) = PeerIdentity::new(&changed.into()) {
            identity.covers("a.example:1");
            drop(identity.to_string());
        }
    }
}

#[test]
fn hosts_of_addresses_are_as_certificates_have_them() {
    for (address, host) in [("a:1", "a"), ("[::1]:1", "::1"), ("a.b.:1", "a.b"), ("", ""), ("[:1", "[")] {
        assert_eq!(host_of(address), host);
    }
}

/// The log lines of this thread.
#[derive(Clone, Default)]
struct Logged(Arc<Mutex<Vec<u8>>>);

impl io::Write for Logged {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[test]
fn garbage_in_place_of_a_certificate_is_logged_and_the_old_one_stays() {
    let key = KeyPair::generate().unwrap();
    let mut own = params(&["a.example"], &[CertificateRole::Node.uri()]);
    own.is_ca = rcgen::IsCa::ExplicitNoCa;
    let mut authority = params(&[], &[]);
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let authority_pem = authority.self_signed(&authority_key).unwrap().pem();
    let issuer = rcgen::Issuer::new(authority, authority_key);
    let certificate = own.signed_by(&key, &issuer).unwrap().pem();
    let bytes = |text: String| text.into_bytes().into();
    let tls =
        Tls { ca: bytes(authority_pem), certificate: bytes(certificate), key: bytes(key.serialize_pem()) };
    let holder = Holder::Node { address: "a.example:1".to_owned() };
    let credentials = Credentials::load(&tls, &holder).unwrap();
    let before = credentials.current();

    let logged = Logged::default();
    let writer = logged.clone();
    let log = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
    let text = || String::from_utf8_lossy(&logged.0.lock().unwrap()).into_owned();
    tracing::subscriber::with_default(log, || {
        let mut watch = credentials.watch_of(&tls, &holder);
        watch.judge_now(&Tls { certificate: bytes("garbage".to_owned()), ..tls.clone() });
        assert!(
            text().contains("ERROR") && text().contains("the old ones stay: the certificate"),
            "{}",
            text()
        );
        assert!(Arc::ptr_eq(&credentials.current(), &before));
        watch.judge_now(&Tls { key: "/no/such/file".into(), ..tls.clone() });
        assert!(text().contains("the key in /no/such/file cannot be read"), "{}", text());
        assert!(Arc::ptr_eq(&credentials.current(), &before));
        watch.judge_now(&tls);
        assert!(text().contains("new connections use the new ones"), "{}", text());
        assert!(!Arc::ptr_eq(&credentials.current(), &before));
    });
}
