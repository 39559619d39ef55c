//! The requests of one connection whose answers, or tunnels, have not ended: a policy that comes
//! meanwhile is asked about them again.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;

use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, Uri};

use super::sanitise::Fields;
use crate::policy::authz::{Connection, Request, Verdict};

/// What a policy was asked about a request.
struct Asked {
    method: Method,
    uri: Uri,
    host: Box<str>,
    headers: HeaderMap,
    remote: IpAddr,
}

#[derive(Default)]
pub struct InFlight {
    next: Cell<u64>,
    open: RefCell<BTreeMap<u64, Asked>>,
}

/// One request's place. It leaves with this.
pub struct Ticket {
    of: Rc<InFlight>,
    number: u64,
}

impl InFlight {
    pub(super) fn enter(self: &Rc<Self>, parts: &Parts, host: &str, remote: IpAddr) -> Ticket {
        let number = self.next.replace(self.next.get() + 1);
        let asked = Asked {
            method: parts.method.clone(),
            uri: parts.uri.clone(),
            host: host.into(),
            headers: parts.headers.clone(),
            remote,
        };
        self.open.borrow_mut().insert(number, asked);
        Ticket { of: self.clone(), number }
    }

    /// The verdict on the first open request that `ask` denies.
    pub fn denied(
        &self,
        connection: Connection<'_>,
        mut ask: impl FnMut(&Connection<'_>, &Request<'_>) -> Verdict,
    ) -> Option<Verdict> {
        self.open
            .borrow()
            .values()
            .map(|asked| {
                let connection = Connection { remote: asked.remote, ..connection };
                ask(
                    &connection,
                    &request(&asked.method, &asked.uri, &asked.host, &Fields(&asked.headers)),
                )
            })
            .find(|verdict| !verdict.allowed)
    }
}

impl Ticket {
    /// The request's method, path without query, and host.
    pub(super) fn show(&self, to: impl FnOnce(&str, &str, &str)) {
        if let Some(asked) = self.of.open.borrow().get(&self.number) {
            to(asked.method.as_str(), asked.uri.path(), &asked.host);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.of.open.borrow_mut().remove(&self.number);
    }
}

/// A request as policy is asked about it, the first time and every other.
pub(super) fn request<'a>(
    method: &'a Method,
    uri: &'a Uri,
    host: &'a str,
    headers: &'a Fields<'a>,
) -> Request<'a> {
    let path = uri.path_and_query().map_or("", |path| path.as_str());
    Request { method: method.as_str(), path, host, headers }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::authz::WorkloadAuthorization;

    #[test]
    fn a_request_is_asked_about_again_until_its_ticket_is_gone() {
        let open = Rc::new(InFlight::default());
        let made = hyper::Request::get("/watch?x=1").header("x-team", "red").body(());
        let (parts, ()) = made.expect("a request").into_parts();
        let remote: IpAddr = "192.0.2.7".parse().expect("an address");
        let ticket = open.enter(&parts, "web.test", remote);
        let address = std::net::SocketAddr::from(([10, 0, 0, 2], 80));
        let connection = Connection {
            principal: Some("cluster.local/ns/full/sa/client"),
            source: [10, 0, 0, 1].into(),
            remote: [10, 0, 0, 1].into(),
            destination: address,
            sni: None,
        };
        let verdict = |allowed| {
            let mut verdict = WorkloadAuthorization::default().connection(&connection);
            verdict.allowed = allowed;
            verdict
        };
        let mut asked = 0;
        let denied = open.denied(connection, |connection, request| {
            asked += 1;
            assert_eq!(connection.remote, remote);
            assert_eq!((request.method, request.path), ("GET", "/watch?x=1"));
            assert_eq!(request.host, "web.test");
            verdict(!request.headers.any("X-Team", &mut |value| value == b"red"))
        });
        assert_eq!((denied.map(|verdict| verdict.allowed), asked), (Some(false), 1));
        assert!(open.denied(connection, |_, _| verdict(true)).is_none());
        let mut shown = String::new();
        ticket.show(|method, path, host| shown = format!("{method} {path} {host}"));
        assert_eq!(shown, "GET /watch web.test");
        drop(ticket);
        assert!(open.denied(connection, |_, _| verdict(false)).is_none());
    }
}
