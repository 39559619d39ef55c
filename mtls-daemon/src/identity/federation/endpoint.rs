//! SPIFFE's `https_web` profile: a document at a URL, whose server is known by its DNS name.

use std::time::Duration;

use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::http::{Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::origin::LARGEST;
use super::{Endpoint, Federation};
use crate::identity::TrustDomain;
use crate::tls::web;

/// For a whole answer.
const ANSWER: Duration = Duration::from_secs(15);
const FIRST_RETRY: Duration = Duration::from_secs(1);

impl Federation {
    /// Never ends.
    pub(super) async fn follow_endpoint(&self, domain: &TrustDomain, endpoint: &Endpoint) {
        let mut retry = FIRST_RETRY;
        loop {
            let fetched = tokio::time::timeout(ANSWER, self.fetch(endpoint)).await;
            let fetched = fetched
                .unwrap_or_else(|_| Err(format!("no answer within {} s", ANSWER.as_secs())))
                .map(Some)
                .map_err(|error| format!("{endpoint}: {error}"));
            self.took(domain, fetched);
            let failed = self.last_failed(domain);
            let refresh = self.refresh_after(domain);
            let wait = if failed { retry.min(refresh) } else { refresh };
            retry = if failed { retry.saturating_mul(2) } else { FIRST_RETRY };
            // Nodes that were started together do not ask together.
            tokio::time::sleep(wait.mul_f64(0.9 + 0.1 * fastrand::f64())).await;
        }
    }

    fn last_failed(&self, domain: &TrustDomain) -> bool {
        let state = self.state();
        state.configured.get(domain).is_some_and(|known| known.last_error.is_some())
    }

    async fn fetch(&self, endpoint: &Endpoint) -> Result<Vec<u8>, String> {
        let (host, port) = (endpoint.host(), endpoint.port());
        let stream = TcpStream::connect((host.trim_matches(['[', ']']), port))
            .await
            .map_err(|error| format!("cannot connect: {error}"))?;
        let roots = self.settings.endpoint_ca.as_deref();
        let stream = web::connect(stream, host, roots).await.map_err(|error| error.to_string())?;
        let (mut requests, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| format!("no HTTP: {error}"))?;
        // Ends with the only request.
        let connection = tokio::spawn(connection);
        let answered = async {
            let request = Request::get(endpoint.target())
                .header(header::HOST, endpoint.authority())
                .header(header::ACCEPT, "application/json")
                .header(header::CONNECTION, "close")
                .body(Empty::<Bytes>::new())
                .map_err(|error| error.to_string())?;
            let response =
                requests.send_request(request).await.map_err(|error| error.to_string())?;
            // A redirect would have somebody else speak for the domain.
            if response.status() != StatusCode::OK {
                return Err(format!("it answered {}", response.status()));
            }
            let body = Limited::new(response.into_body(), LARGEST);
            let body = body.collect().await.map_err(|error| format!("its answer: {error}"))?;
            Ok(body.to_bytes().to_vec())
        }
        .await;
        connection.abort();
        answered
    }
}
