//! Which requests of the web API a caller may make.
//!
//! Without TLS, requests that change the cluster or load the node (all that use `POST`) are served to this
//! machine alone, unless the flag `--web-admin-from-anywhere` is given: one `POST /leave` removes a node.
//! With TLS, each request needs a certificate of the cluster's CA: with the role `client`, `node` or `admin`,
//! and for `POST` with the role `admin`.

use std::any::Any;

use actix_tls::accept::rustls_0_23::TlsStream;
use actix_web::body::{BoxBody, MessageBody};
use actix_web::dev::{Extensions, ServiceRequest, ServiceResponse};
use actix_web::http::{Method, StatusCode};
use actix_web::middleware::Next;
use actix_web::rt::net::TcpStream;
use actix_web::{Error, ResponseError, web};
use raftify::tls::CertificateRole;

use crate::web::ApiError;

/// Whom the web API serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebAccess {
    /// Without TLS: everyone who reaches the address, but `POST` from this machine alone.
    AdminFromLoopback,
    /// Without TLS: everyone who reaches the address.
    AdminFromAnywhere,
    /// With TLS: the roles of certificates count.
    Certificates,
}

/// The roles of the certificate of a connection.
struct Roles(Vec<CertificateRole>);

/// Takes the roles from the certificate of a new connection.
pub(crate) fn on_connect(connection: &dyn Any, data: &mut Extensions) {
    if let Some(stream) = connection.downcast_ref::<TlsStream<TcpStream>>() {
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        data.insert(Roles(certificate.map_or_else(Vec::new, |own| CertificateRole::in_certificate(own))));
    }
}

/// Refuses the requests that [`WebAccess`] does not permit. Without that in the data of the application, as
/// [`WebAccess::AdminFromLoopback`].
///
/// # Errors
/// Those of the application.
pub async fn guard(
    request: ServiceRequest,
    next: Next<impl MessageBody + 'static>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    match check(&request) {
        Ok(()) => next.call(request).await.map(ServiceResponse::map_into_boxed_body),
        Err(refusal) => Ok(request.into_response(refusal.error_response())),
    }
}

fn check(request: &ServiceRequest) -> Result<(), ApiError> {
    let access = request.app_data::<web::Data<WebAccess>>().map(|access| *access.as_ref());
    let is_admin = request.method() == Method::POST;
    let forbidden = |reason: String| Err(ApiError::new(StatusCode::FORBIDDEN, reason));
    match access.unwrap_or(WebAccess::AdminFromLoopback) {
        WebAccess::AdminFromAnywhere => Ok(()),
        WebAccess::AdminFromLoopback => {
            let peer = request.peer_addr();
            if !is_admin || peer.is_some_and(|peer| peer.ip().to_canonical().is_loopback()) {
                return Ok(());
            }
            let from = peer.map_or_else(|| "an unknown address".to_owned(), |peer| peer.ip().to_string());
            forbidden(format!(
                "{} is served to this machine alone, and this request is from {from}: ask here, use TLS (--ca, --cert, \
                 --key), or start the node with --web-admin-from-anywhere",
                request.path()
            ))
        }
        WebAccess::Certificates => {
            let roles = request.conn_data::<Roles>().map_or(&[][..], |roles| &roles.0);
            let needed: &[CertificateRole] = match is_admin {
                true => &[CertificateRole::Admin],
                false => &[CertificateRole::Client, CertificateRole::Admin, CertificateRole::Node],
            };
            if roles.iter().any(|role| needed.contains(role)) {
                return Ok(());
            }
            forbidden(format!(
                "{} needs a certificate with the role {}, and this one has: {}",
                request.path(),
                list(needed, " or "),
                list(roles, ", ")
            ))
        }
    }
}

fn list(roles: &[CertificateRole], between: &str) -> String {
    if roles.is_empty() {
        return "none".to_owned();
    }
    roles.iter().map(ToString::to_string).collect::<Vec<String>>().join(between)
}

#[cfg(test)]
mod tests {
    use actix_web::test::{TestRequest, call_service, init_service};
    use actix_web::{App, HttpResponse, middleware};

    use super::*;

    /// The status of a request from an address, on a connection without a certificate.
    async fn status(access: Option<WebAccess>, method: Method, from: &str) -> u16 {
        let mut app = App::new().wrap(middleware::from_fn(guard));
        if let Some(access) = access {
            app = app.app_data(web::Data::new(access));
        }
        let app = app.default_service(web::to(HttpResponse::Ok));
        let service = init_service(app).await;
        let request = TestRequest::with_uri("/leave").method(method).peer_addr(from.parse().unwrap());
        call_service(&service, request.to_request()).await.status().as_u16()
    }

    #[actix_web::test]
    async fn without_tls_only_this_machine_may_change_the_cluster_unless_the_flag_says_otherwise() {
        let elsewhere = ["10.0.0.7:1", "[2001:db8::1]:1", "192.168.1.2:1"];
        for access in [None, Some(WebAccess::AdminFromLoopback)] {
            for from in ["127.0.0.1:1", "127.0.0.2:1", "[::1]:1", "[::ffff:127.0.0.1]:1"] {
                assert_eq!(status(access, Method::POST, from).await, 200, "{from}");
            }
            for from in elsewhere {
                assert_eq!(status(access, Method::POST, from).await, 403, "{from}");
                assert_eq!(status(access, Method::GET, from).await, 200, "{from}");
                assert_eq!(status(access, Method::PUT, from).await, 200, "{from}");
            }
        }
        for from in elsewhere {
            assert_eq!(status(Some(WebAccess::AdminFromAnywhere), Method::POST, from).await, 200);
        }
    }

    #[actix_web::test]
    async fn with_tls_a_connection_without_a_certificate_is_served_nothing() {
        for method in [Method::GET, Method::PUT, Method::POST] {
            assert_eq!(status(Some(WebAccess::Certificates), method, "127.0.0.1:1").await, 403);
        }
    }
}
