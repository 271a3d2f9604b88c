//! Failed TLS handshakes as text: what is wrong with which side, and what to do.

use std::error::Error;
use std::io;

use rustls::{AlertDescription, CertificateError, Error as TlsError};

use crate::security::identity::host_in;

/// Why a handshake failed, from the error of the connection.
pub(super) fn of_handshake(error: &io::Error) -> String {
    let source = error.get_ref().map(|source| source as &(dyn Error + 'static));
    match source.and_then(|source| source.downcast_ref::<TlsError>()) {
        Some(error) => of_tls(error),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            "the other side closed the connection during the TLS handshake".to_owned()
        }
        None => error.to_string(),
    }
}

fn of_tls(error: &TlsError) -> String {
    match error {
        TlsError::InvalidCertificate(problem) => {
            format!("the certificate of the other side is refused: {}", of_certificate(problem))
        }
        TlsError::NoCertificatesPresented => {
            "the other side presents no certificate: give it one of this cluster's CA".to_owned()
        }
        TlsError::AlertReceived(alert) => of_alert(*alert),
        TlsError::InvalidMessage(_) => {
            "the other side does not use TLS: configure TLS on both sides, or on neither".to_owned()
        }
        TlsError::PeerIncompatible(reason) => {
            format!("the other side does not use TLS 1.3 as raftify does: {reason:?}")
        }
        error => error.to_string(),
    }
}

/// The problem of a certificate.
pub(super) fn of_certificate(problem: &CertificateError) -> String {
    match problem {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            format!("{problem}: issue a new one, or correct the clock")
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            format!("{problem}: correct the clock, or issue one that is valid now")
        }
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            "it is not of this cluster's CA: issue one with the CA that all nodes are configured with"
                .to_owned()
        }
        CertificateError::NotValidForNameContext { expected, presented } => {
            let presented: Vec<String> = presented.iter().filter_map(|name| host_in(name)).collect();
            let presented = if presented.is_empty() { "no host".to_owned() } else { presented.join(", ") };
            format!("it is for {presented}, and not for {}: issue one for that host", expected.to_str())
        }
        problem => problem.to_string(),
    }
}

fn of_alert(alert: AlertDescription) -> String {
    let meaning = match alert {
        AlertDescription::UnknownCA | AlertDescription::DecryptError => {
            "it is not of the CA that the other side is configured with"
        }
        AlertDescription::CertificateExpired => "it has expired, or is not valid yet",
        AlertDescription::CertificateRequired => "none was presented",
        AlertDescription::CertificateRevoked => "it is revoked",
        AlertDescription::BadCertificate | AlertDescription::UnsupportedCertificate => {
            "it is not for this host, or not for this use"
        }
        AlertDescription::ProtocolVersion | AlertDescription::HandshakeFailure => {
            return "the other side does not use TLS 1.3 as raftify does".to_owned();
        }
        alert => return format!("the other side ended the TLS handshake: {alert:?}"),
    };
    format!("the other side refuses the certificate of this side: {meaning} ({alert:?})")
}
