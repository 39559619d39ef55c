//! `mtls-daemon ca run`

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use clap::Args;
use tokio::net::TcpListener;

use super::owner::must_be_owner;
use super::{DirectoryArgs, RootKeyArgs, TrustDomainArgs, duration, failed};
use crate::ca::allow::AccountName;
use crate::ca::audit::Audit;
use crate::ca::connection::Times;
use crate::ca::{Ca, Settings, server};
use crate::cli::{Exit, Failed};
use crate::drain::Signals;
use crate::telemetry::logs;

/// The flags of `mtls-daemon ca run`.
#[derive(Debug, Args)]
pub(in crate::cli) struct RunArgs {
    #[command(flatten)]
    directory: DirectoryArgs,
    #[command(flatten)]
    trust_domain: TrustDomainArgs,

    /// Address to serve on
    #[arg(long, env = "MTLS_CA_LISTEN", value_name = "ADDR", default_value = "[::]:15012")]
    listen: SocketAddr,

    /// DNS name that clients know this CA by (repeatable; comma-separated in the environment)
    #[arg(
        long,
        env = "MTLS_CA_DNS_NAME",
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "istiod.istio-system.svc"
    )]
    dns_name: Vec<String>,

    /// Sign with the certificate and key in this directory, below somebody else's root: ca-cert.pem,
    /// ca-key.pem, cert-chain.pem, root-cert.pem, as Istio's `cacerts` [default: a root of its own]
    #[arg(long, env = "MTLS_CA_CACERTS", value_name = "DIR")]
    cacerts: Option<PathBuf>,

    #[command(flatten)]
    key: RootKeyArgs,

    /// Lifetime of a certificate whose request names none
    #[arg(
        long,
        env = "MTLS_CA_DEFAULT_LIFETIME",
        value_name = "DURATION",
        default_value = "24h",
        value_parser = duration
    )]
    default_lifetime: Duration,

    /// Longest lifetime that is granted; a request for more is refused
    #[arg(
        long,
        env = "MTLS_CA_MAX_LIFETIME",
        value_name = "DURATION",
        default_value = "90days",
        value_parser = duration
    )]
    max_lifetime: Duration,

    /// Service account <namespace>/<name> that may ask for the pods on its own node (repeatable;
    /// comma-separated in the environment)
    #[arg(
        long,
        env = "MTLS_CA_TRUSTED_NODE_ACCOUNT",
        value_name = "NS/NAME",
        value_delimiter = ',',
        value_parser = account
    )]
    trusted_node_account: Vec<AccountName>,

    /// Where to write one JSON line per certificate and refusal: stdout or a file
    #[arg(long, env = "MTLS_CA_AUDIT_LOG", value_name = "stdout|FILE", default_value = "stdout")]
    audit_log: PathBuf,

    /// Format of the CA's own log, on stderr
    #[arg(
        long,
        env = "MTLS_LOG_FORMAT",
        value_name = "FORMAT",
        value_enum,
        default_value = "text"
    )]
    log_format: logs::Format,

    /// Level of the CA's own log [default: RUST_LOG, else info]
    #[arg(long, env = "MTLS_LOG_LEVEL", value_name = "LEVEL")]
    log_level: Option<logs::Level>,
}

fn account(text: &str) -> Result<AccountName, String> {
    match text.split_once('/') {
        Some((namespace, name))
            if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
        {
            Ok(AccountName { namespace: namespace.to_owned(), name: name.to_owned() })
        }
        _ => Err("expected <namespace>/<name>".to_owned()),
    }
}

pub(super) fn run(args: RunArgs) -> Result<(), Failed> {
    let level = logs::Level::or_environment(args.log_level.clone())
        .map_err(|error| Failed::new(Exit::Config, anyhow!(error)))?;
    logs::init(args.log_format, &level).map_err(anyhow::Error::from)?;
    if args.default_lifetime > args.max_lifetime {
        let error = anyhow!("--default-lifetime is longer than --max-lifetime");
        return Err(Failed::new(Exit::Config, error));
    }
    must_be_owner(&args.directory.dir)?;
    crate::app::raise_descriptor_limit();
    let sealing = args.key.sealing()?;
    let audit = match args.audit_log.to_str() {
        Some("stdout") => Audit::stdout(),
        _ => Audit::file(&args.audit_log)
            .with_context(|| format!("cannot open the audit log {}", args.audit_log.display()))?,
    };
    let settings = Settings {
        directory: args.directory.dir,
        trust_domain: args.trust_domain.trust_domain,
        plugged_in: args.cacerts,
        key_type: args.key.root_key,
        sealing,
        dns_names: args.dns_name,
        default_lifetime: args.default_lifetime,
        max_lifetime: args.max_lifetime,
        trusted_accounts: args.trusted_node_account.into_iter().collect::<BTreeSet<_>>(),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(serve(settings, audit, args.listen))
}

async fn serve(settings: Settings, audit: Audit, listen: SocketAddr) -> Result<(), Failed> {
    let mut signals = Signals::new().context("cannot install signal handlers")?;
    let trust_domain = settings.trust_domain.clone();
    let ca = Ca::open(settings, audit, SystemTime::now()).map_err(failed)?;
    let listener = TcpListener::bind(listen)
        .await
        .with_context(|| format!("cannot listen on {listen}"))
        .map_err(Failed::from)?;
    let address = listener.local_addr().context("cannot tell the address")?;
    tracing::info!(%address, %trust_domain, "the CA serves");
    let stop = async {
        let signal = signals.next().await;
        tracing::info!("{signal}: the CA ends");
    };
    server::serve(Arc::new(ca), listener, Times::default(), stop).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        run: RunArgs,
    }

    #[test]
    fn istios_clients_find_the_name_that_they_verify() {
        let line = Line::try_parse_from(["run"]).unwrap();
        assert_eq!(line.run.dns_name, ["istiod.istio-system.svc"]);
    }
}
