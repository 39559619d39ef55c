//! `mtls-daemon policy reach`: a client and a server, each in the mesh or not, with whatever policies;
//! or one connection straight to a workload's port.

use anyhow::{Context, Result};
use serde_json::{Map, Value, json};

use super::rows;
use super::simulate::{Call, Outcome, Tls};
use crate::cli::Failed;
use crate::cli::cases::{self, Answer, CaseFile, CasesArgs, Table};
use crate::mesh::{ClientTls, Objects, OutboundPlan, Snapshot};
use crate::policy::authz::Connection;
use crate::policy::host::resolve_short_name;

/// Where a row names no server: the usual names of the scenario.
const NAMESPACE: &str = "ns1";
const PORT: u16 = 18080;
const SERVICE_PORT: u16 = 80;

pub(super) fn run(args: &CasesArgs) -> Result<(), Failed> {
    cases::run(args, &Table::default(), |_, file, row| {
        if row["connection"].is_null() { matrix(file, row) } else { direct(file, row) }
    })
}

/// One connection to a workload's own address.
fn direct(file: &CaseFile, row: &Value) -> Result<Answer> {
    let connection = &row["connection"];
    let destination = &connection["dst"];
    let port = rows::port(&destination["port"])?;
    let application = destination["application"].as_str().unwrap_or("tcp");
    let server = Server {
        namespace: rows::text(destination, "namespace")?.to_owned(),
        labels: destination["labels"].clone(),
        port,
        service_port: port,
        host: None,
        protocol: (destination["port_in_service"] == true).then(|| application.to_owned()),
        meshed: true,
    };
    let world = World::new(file, row, &server, None, false)?;
    let mut call = connection.clone();
    call["application"] = application.into();
    let call = Call::read(&call)?;
    let principal = connection["src"]["principal"].as_str().unwrap_or_default();
    let (outcome, because) = world.arrive(&call, port, principal)?;
    let success = if outcome.succeeds() { "success" } else { "failure" };
    let mut answer = Answer::from(json!(success));
    answer.more.insert("because".into(), json!(because));
    Ok(answer)
}

/// Client and server, in the mesh or not.
fn matrix(file: &CaseFile, row: &Value) -> Result<Answer> {
    let flag = |name: &str| row[name].as_bool().with_context(|| format!("{name} is not there"));
    let (client_meshed, server_meshed) = (flag("client_meshed")?, flag("server_meshed")?);
    let yaml = rows::yaml(file, row)?;
    let server = Server::of(row, &rows::objects(&yaml), server_meshed)?;
    let world = World::new(file, row, &server, row["subset"].as_str(), client_meshed)?;
    let to_address = row["address"].as_str().is_some_and(|what| what.contains("IP"));
    let mut because = Map::new();
    let tls = if client_meshed {
        let (tls, reason) = world.leave(&server, to_address)?;
        because.insert("client".into(), json!(reason));
        tls
    } else {
        None
    };
    let call = Call { tls, http: server.protocol.as_deref() == Some("http") };
    let outcome = if server_meshed {
        let (outcome, reason) = world.arrive(&call, server.port, &world.client)?;
        because.insert("server".into(), json!(reason));
        outcome
    } else if call.tls.is_some() {
        Outcome::PassedThrough
    } else {
        Outcome::Plaintext(crate::policy::inbound::ReadAs::Opaque)
    };
    let mtls = outcome.succeeds().then_some(matches!(outcome, Outcome::Terminated(_)));
    let mut answer = Answer::from(json!({"success": outcome.succeeds(), "mtls": mtls}));
    answer.more.insert("because".into(), Value::Object(because));
    Ok(answer)
}

struct Server {
    namespace: String,
    labels: Value,
    port: u16,
    service_port: u16,
    /// None: no service is in front of it.
    host: Option<String>,
    /// What the service declares.
    protocol: Option<String>,
    meshed: bool,
}

impl Server {
    /// As the row says; else what its only DestinationRule for one host says; else `b` of `ns1`.
    fn of(row: &Value, objects: &Objects, meshed: bool) -> Result<Self> {
        let given = &row["server"];
        let rules = objects.destination_rules();
        let mut hosts = rules.iter().map(|rule| &rule.host).filter(|h| !h.contains('*'));
        let host = match (given["host"].as_str(), hosts.next(), hosts.next()) {
            (Some(host), ..) => host.to_owned(),
            (None, Some(only), None) if given.is_null() => only.to_string(),
            _ => {
                let namespace = given["namespace"].as_str().unwrap_or(NAMESPACE);
                let app = given["labels"]["app"].as_str().unwrap_or("b");
                resolve_short_name(app, namespace).to_string()
            }
        };
        let mut parts = host.split('.');
        let app = parts.next().unwrap_or("b");
        let namespace =
            given["namespace"].as_str().or(parts.next()).unwrap_or(NAMESPACE).to_owned();
        let mut labels = match &given["labels"] {
            Value::Null => json!({"app": app}),
            labels => labels.clone(),
        };
        // A subset is its labels.
        let subset = rules.iter().flat_map(|rule| &rule.subsets);
        for subset in subset.filter(|s| row["subset"].as_str() == Some(&*s.name)) {
            for (key, value) in &subset.labels {
                labels[key] = value.as_str().into();
            }
        }
        let (port, service_port) = match &given["port"] {
            Value::Null => (PORT, SERVICE_PORT),
            port => (rows::port(port)?, rows::port(port)?),
        };
        let protocol = given["application"].as_str().unwrap_or("tcp").to_owned();
        let protocol = Some(protocol);
        Ok(Self { namespace, labels, port, service_port, host: Some(host), protocol, meshed })
    }

    fn yaml(&self) -> String {
        let mut labels = self.labels.clone();
        if labels.is_null() {
            labels = json!({});
        }
        labels["the-server-of-the-row"] = "yes".into();
        let selector = json!({"labels": {"the-server-of-the-row": "yes"}});
        if self.meshed {
            labels["security.istio.io/tlsMode"] = "istio".into();
        }
        let spec = json!({"address": rows::SERVER, "serviceAccount": "server", "labels": labels});
        let mut yaml =
            rows::object("WorkloadEntry", "the-server-of-the-row", &self.namespace, &spec);
        if let Some(protocol) = &self.protocol {
            let port = json!({
                "number": self.service_port,
                "name": protocol,
                "targetPort": self.port,
            });
            let host = self.host.clone().unwrap_or_else(|| "the-server.row".to_owned());
            let spec = json!({
                "hosts": [host],
                "addresses": [rows::SERVICE],
                "location": "MESH_INTERNAL",
                "resolution": "STATIC",
                "ports": [port],
                "workloadSelector": selector,
            });
            yaml += &rows::object("ServiceEntry", "the-server-of-the-row", &self.namespace, &spec);
        }
        yaml
    }
}

struct World {
    snapshot: Snapshot,
    /// The client's identity, as policies write it.
    client: String,
}

impl World {
    fn new(
        file: &CaseFile,
        row: &Value,
        server: &Server,
        subset: Option<&str>,
        client_meshed: bool,
    ) -> Result<Self> {
        let client = &row["client"];
        let mut labels = match &client["labels"] {
            Value::Null => json!({"app": "a"}),
            labels => labels.clone(),
        };
        if client_meshed {
            labels["security.istio.io/tlsMode"] = "istio".into();
        }
        let account = client["service_account"].as_str().unwrap_or("a");
        let spec = json!({"address": rows::CLIENT, "serviceAccount": account, "labels": labels});
        let namespace = client["namespace"].as_str().unwrap_or(NAMESPACE);
        let yaml = rows::yaml(file, row)?
            + &server.yaml()
            + &rows::object("WorkloadEntry", "the-client-of-the-row", namespace, &spec);
        let mut objects = rows::objects(&yaml);
        objects.subset = subset.map(Into::into);
        let settings = rows::settings(file, row)?;
        let client = format!("{}/ns/{namespace}/sa/{account}", settings.trust_domain);
        Ok(Self { snapshot: rows::snapshot(objects, settings)?, client })
    }

    /// What the client's daemon sends, and why. None: plaintext.
    fn leave(&self, server: &Server, to_address: bool) -> Result<(Option<Tls>, String)> {
        let client = self.snapshot.workload_at(rows::CLIENT.parse()?).context("the client")?;
        let destination = if to_address {
            format!("{}:{}", rows::SERVER, server.port)
        } else {
            format!("{}:{}", rows::SERVICE, server.service_port)
        };
        match self.snapshot.outbound(client, destination.parse()?, &mut |_| 0) {
            OutboundPlan::Connect { tls: ClientTls::Plaintext { because }, .. } => {
                Ok((None, because.to_string()))
            }
            OutboundPlan::Connect { tls: ClientTls::IstioMutual { because, .. }, .. } => {
                let tls = Tls { alpn: Some("istio".to_owned()), certificate: true };
                Ok((Some(tls), because.to_string()))
            }
            // The server of a row never has certificates of its own.
            OutboundPlan::Connect { tls: ClientTls::Originate { because, .. }, .. } => {
                Ok((Some(Tls { alpn: None, certificate: false }), because.to_string()))
            }
            OutboundPlan::Connect { tls: ClientTls::Refused { because }, .. } => {
                anyhow::bail!("{because}")
            }
            other => anyhow::bail!("the service has no endpoint: {other:?}"),
        }
    }

    /// What the server's daemon does with it, and why. `principal`: whose certificate it is.
    fn arrive(&self, call: &Call, port: u16, principal: &str) -> Result<(Outcome, String)> {
        let address = rows::SERVER.parse()?;
        let server = self.snapshot.workload_at(address).context("the server")?;
        let plan = self.snapshot.inbound(server, port);
        let outcome = call.outcome(plan.mode.mode, plan.protocol);
        if outcome.succeeds() {
            let source = rows::CLIENT.parse()?;
            let verdict = plan.authorization.connection(&Connection {
                principal: matches!(outcome, Outcome::Terminated(_)).then_some(principal),
                source,
                remote: source,
                destination: (address, port).into(),
                sni: None,
            });
            if !verdict.allowed {
                return Ok((Outcome::Rejected("denied"), verdict.to_string()));
            }
        }
        Ok((outcome, plan.mode.because.to_string()))
    }
}
