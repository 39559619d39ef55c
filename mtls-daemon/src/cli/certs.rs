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
