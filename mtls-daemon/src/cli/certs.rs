//! `mtls-daemon certs`

use std::time::SystemTime;

use serde_json::Value;

use super::Failed;
use super::status::StatusArgs;
use super::status::text::{left, wait};
use super::table::table;
use crate::admin::Status;

/// What `status` says of certificates, whole.
pub(super) fn certs(args: StatusArgs) -> Result<(), Failed> {
    args.show(|mut status| status.get_mut("svids").map_or(Value::Null, Value::take), render)
}

fn render(status: &Status, now: SystemTime) -> String {
    let rows: Vec<_> = status
        .svids
        .iter()
        .map(|svid| {
            let or_none = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
            let expires = svid.not_after.as_deref();
            [
                svid.identity.clone(),
                or_none(&svid.serial),
                or_none(&svid.issuer),
                or_none(&svid.not_before),
                or_none(&svid.not_after),
                expires.map_or_else(|| "NONE YET".to_owned(), |it| left(it, now)),
                svid.next_renewal.as_deref().map_or_else(|| "now".to_owned(), |it| wait(it, now)),
                svid.source.clone(),
                svid.last_error.clone().unwrap_or_default(),
            ]
        })
        .collect();
    let header = [
        "IDENTITY",
        "SERIAL",
        "ISSUER",
        "NOT BEFORE",
        "NOT AFTER",
        "EXPIRES IN",
        "RENEWS IN",
        "SOURCE",
        "LAST ERROR",
    ];
    match rows.is_empty() {
        true => "no identities: no workload of this node is configured\n".to_owned(),
        false => table(header, &rows),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::admin::status::{SvidStatus, timestamp};

    fn status(svids: Vec<SvidStatus>) -> Status {
        let status = serde_json::json!({
            "node": "vm-1", "pid": 1, "version": "0", "started": "", "ready": true, "awaited": [],
            "config": {"dir": "/c", "generation": 1, "loaded_at": "", "last_error": null, "warnings": []},
            "workloads": [], "svids": svids,
            "kernel": {"programs": {}, "decisions": {}},
            "connections": {"open_inbound": 0, "open_outbound": 0},
        });
        serde_json::from_value(status).expect("a status")
    }

    #[test]
    fn every_certificate_has_a_line_with_what_is_known_of_it() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let after = |seconds| Some(timestamp(now + Duration::from_secs(seconds)));
        let good = SvidStatus {
            identity: "spiffe://td/good".into(),
            source: "istio-ca".into(),
            serial: Some("01ab".into()),
            issuer: Some("O=td".into()),
            not_before: Some(timestamp(now - Duration::from_secs(60))),
            not_after: after(12 * 3600),
            next_renewal: after(6 * 3600),
            last_error: None,
        };
        // Being asked for: when next is not known.
        let asked =
            SvidStatus { identity: "spiffe://td/asked".into(), next_renewal: None, ..good.clone() };
        let late = SvidStatus {
            identity: "spiffe://td/late".into(),
            not_after: Some(timestamp(now)),
            next_renewal: Some(timestamp(now - Duration::from_secs(5))),
            last_error: Some("CA not reachable".into()),
            ..good.clone()
        };
        let none = SvidStatus {
            identity: "spiffe://td/none".into(),
            serial: None,
            issuer: None,
            not_before: None,
            not_after: None,
            next_renewal: after(30),
            last_error: Some("the CA refuses it".into()),
            ..good.clone()
        };
        assert_eq!(
            render(&status(vec![good, asked, late, none]), now),
            "\
IDENTITY           SERIAL  ISSUER  NOT BEFORE            NOT AFTER             EXPIRES IN  RENEWS IN  SOURCE    LAST ERROR
spiffe://td/good   01ab    O=td    2023-11-14T22:12:20Z  2023-11-15T10:13:20Z  12h         6h         istio-ca
spiffe://td/asked  01ab    O=td    2023-11-14T22:12:20Z  2023-11-15T10:13:20Z  12h         now        istio-ca
spiffe://td/late   01ab    O=td    2023-11-14T22:12:20Z  2023-11-14T22:13:20Z  EXPIRED     now        istio-ca  CA not reachable
spiffe://td/none   -       -       -                     -                     NONE YET    30s        istio-ca  the CA refuses it
"
        );
        let nobody = "no identities: no workload of this node is configured\n";
        assert_eq!(render(&status(Vec::new()), now), nobody);
    }
}
