//! `mtls-daemon policy mode`: a workload's modes (`workload`), or what its server side does with one
//! connection (`call`), whose mode comes from the row's objects or from the row itself.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

use super::rows;
use super::simulate::Call;
use crate::cli::Failed;
use crate::cli::cases::{self, Answer, CaseFile, CasesArgs, Table};
use crate::mesh::{Snapshot, Workload};
use crate::policy::PortProtocol;

pub(super) fn run(args: &CasesArgs) -> Result<(), Failed> {
    cases::run(args, &Table { agrees, ..Table::default() }, |_, file, row| answer(file, row))
}

/// The fields that the row names: a row need not say how the bytes are read.
pub(super) fn agrees(expected: &Value, answer: &Answer) -> bool {
    match (expected.as_object(), answer.result.as_object()) {
        (Some(expected), Some(answer)) => {
            expected.iter().all(|(field, value)| answer.get(field) == Some(value))
        }
        _ => *expected == answer.result,
    }
}

fn answer(file: &CaseFile, row: &Value) -> Result<Answer> {
    let world = || -> Result<(Snapshot, Workload)> {
        let server = &row["workload"];
        let namespace = rows::text(server, "namespace")?;
        let address = server["ip"].as_str().unwrap_or(rows::SERVER);
        let yaml = rows::yaml(file, row)?
            + &rows::object(
                "WorkloadEntry",
                "the-workload-of-the-row",
                namespace,
                &json!({
                    "address": address,
                    "serviceAccount": "server",
                    "labels": server["labels"].as_object().cloned().unwrap_or_default(),
                }),
            );
        let snapshot = rows::snapshot(rows::objects(&yaml), rows::settings(file, row)?)?;
        let found = snapshot.workload_at(address.parse()?).context("the row's workload")?;
        let workload = Workload::clone(found);
        Ok((snapshot, workload))
    };
    let call = &row["call"];
    if call.is_null() {
        let (snapshot, workload) = world()?;
        let modes = snapshot.modes(&workload);
        let ports: Map<String, Value> = modes
            .ports
            .iter()
            .map(|(port, mode)| (port.to_string(), json!(mode.mode.to_string())))
            .collect();
        let mut answer =
            Answer::from(json!({"mode": modes.default.mode.to_string(), "ports": ports}));
        answer.more.insert("because".into(), json!(modes.default.because));
        return Ok(answer);
    }
    let (mode, because, protocol, declared) = match row["mode"].as_str() {
        Some(mode) => {
            let declared = declared(row["port_protocol"].as_str())?;
            (rows::mode(mode)?, "the row".into(), declared.unwrap_or_default(), declared.is_some())
        }
        None => {
            let (snapshot, workload) = world()?;
            let port = rows::port(&call["port"])?;
            let plan = snapshot.inbound(&workload, port);
            let declared = snapshot.in_service(&workload, port);
            (plan.mode.mode, plan.mode.because, plan.protocol, declared)
        }
    };
    let outcome = Call::read(call)?.outcome(mode, protocol);
    let mut answer = Answer::from(outcome.json(declared));
    answer.more.insert("mode".into(), json!(mode.to_string()));
    answer.more.insert("because".into(), json!(because));
    Ok(answer)
}

fn declared(protocol: Option<&str>) -> Result<Option<PortProtocol>> {
    Ok(match protocol {
        Some("http") => Some(PortProtocol::Http),
        Some("tcp") => Some(PortProtocol::Tcp),
        Some("auto") => Some(PortProtocol::Auto),
        Some("not in any service") | None => None,
        Some(other) => bail!("port_protocol {other:?} is not known"),
    })
}
