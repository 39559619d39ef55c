//! Servers of the distribution that demand TLS of their own: Redis and nginx, with the certificates
//! that they need, made by `openssl` as an operator would.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bed::Pod;
use crate::openssl::Pair;
use crate::process::{Process, output};
use crate::{client, wait};

const NGINX: &str = "/usr/sbin/nginx";
/// How long a server may take until it listens.
const START: Duration = Duration::from_secs(20);

/// An authority that signs servers' and clients' certificates.
#[derive(Debug, Clone)]
pub struct Authority {
    pair: Pair,
    directory: PathBuf,
}

impl Authority {
    /// # Errors
    /// When openssl refuses.
    pub fn new(directory: &Path, name: &str) -> Result<Self> {
        let pair = Pair {
            certificate: directory.join(format!("{name}.pem")),
            key: directory.join(format!("{name}.key")),
        };
        let mut command = key_request(&pair.key);
        command.args(["-x509", "-days", "2", "-subj", &format!("/CN={name}")]);
        command.arg("-out").arg(&pair.certificate);
        run(command)?;
        Ok(Self { pair, directory: directory.to_owned() })
    }

    /// Its own certificate, for those who trust it.
    pub fn certificate(&self) -> &Path {
        &self.pair.certificate
    }

    /// A certificate with `extensions`, a line each; X.509 v1 without any.
    ///
    /// # Errors
    /// When openssl refuses.
    pub fn sign(&self, name: &str, extensions: &str, days: &str) -> Result<Pair> {
        let file = |end: &str| self.directory.join(format!("{name}.{end}"));
        let (asked, signed, key) = (file("csr"), file("pem"), file("key"));
        let mut command = key_request(&key);
        command.args(["-subj", &format!("/CN={name}")]).arg("-out").arg(&asked);
        run(command)?;
        let mut command = Command::new("openssl");
        command.args(["x509", "-req", "-days", days, "-in"]).arg(&asked).arg("-out").arg(&signed);
        command.arg("-CA").arg(&self.pair.certificate).arg("-CAkey").arg(&self.pair.key);
        command.arg("-CAcreateserial");
        if !extensions.is_empty() {
            fs::write(file("cnf"), extensions)?;
            command.arg("-extfile").arg(file("cnf"));
        }
        run(command)?;
        Ok(Pair { certificate: signed, key })
    }
}

impl Authority {
    /// A list of what it has revoked: `revoked`, and nothing else that it signed.
    ///
    /// # Errors
    /// When openssl refuses.
    pub fn revocations(&self, revoked: &Pair) -> Result<PathBuf> {
        let file = |name: &str| self.directory.join(name);
        let (database, number) = (file("index.txt"), file("crlnumber"));
        let (settings, list) = (file("ca.cnf"), file("revoked.crl"));
        fs::write(&database, "")?;
        fs::write(&number, "01\n")?;
        let text = format!(
            "[ca]\ndefault_ca = own\n[own]\ndatabase = {}\ncrlnumber = {}\ndefault_md = sha256\n\
             default_crl_days = 2\ncrl_extensions = list\n[list]\n\
             authorityKeyIdentifier = keyid:always\n",
            database.display(),
            number.display()
        );
        fs::write(&settings, text)?;
        let ca = |arguments: &[&std::ffi::OsStr]| {
            let mut command = Command::new("openssl");
            command.args(["ca", "-config"]).arg(&settings);
            command.arg("-keyfile").arg(&self.pair.key).arg("-cert").arg(&self.pair.certificate);
            command.args(arguments);
            run(command)
        };
        ca(&["-revoke".as_ref(), revoked.certificate.as_os_str()])?;
        ca(&["-gencrl".as_ref(), "-out".as_ref(), list.as_os_str()])?;
        Ok(list)
    }
}

fn key_request(key: &Path) -> Command {
    let mut command = Command::new("openssl");
    command.args(["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    command.arg("-keyout").arg(key);
    command
}

fn run(command: Command) -> Result<()> {
    let output = output(command).context("is openssl installed?")?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// Redis on `port`, TLS alone, for clients whose certificate `clients` signed.
///
/// # Errors
/// When it does not listen.
pub fn redis(pod: &Pod, port: u16, server: &Pair, clients: &Authority) -> Result<Process> {
    let mut command = pod.place.command("redis-server")?;
    command.args(["--port", "0", "--tls-port", &port.to_string(), "--tls-auth-clients", "yes"]);
    command.arg("--tls-cert-file").arg(&server.certificate);
    command.arg("--tls-key-file").arg(&server.key);
    command.arg("--tls-ca-cert-file").arg(clients.certificate());
    command.args([
        "--save",
        "",
        "--appendonly",
        "no",
        "--bind",
        "0.0.0.0",
        "--protected-mode",
        "no",
    ]);
    command.arg("--dir").arg(&clients.directory);
    listening(Process::start(format!("redis-server in {}", pod.name), command)?, pod, port)
}

/// `redis-cli` from `pod` with more `arguments`. What it printed, both ways.
///
/// # Errors
/// When it is not installed. Its failures are results.
pub fn redis_cli(pod: &Pod, to: SocketAddr, arguments: &[&str]) -> Result<String> {
    let mut command = pod.place.command("timeout")?;
    let (host, port) = (to.ip().to_string(), to.port().to_string());
    command.args(["15", "redis-cli", "-h", &host, "-p", &port]).args(arguments);
    let output = output(command)?;
    ensure!(output.status.code() != Some(127), "is redis-cli installed?");
    Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

/// nginx on several ports, each with a certificate of its own; a client must show one that `clients`
/// signed. HTTP/2 is for those who offer it in the handshake. Its page says whose certificate it saw, and
/// which server was asked for.
///
/// # Errors
/// When it does not listen.
pub fn nginx(pod: &Pod, ports: &[(u16, &Pair)], clients: &Authority) -> Result<Process> {
    let asks = format!(
        "ssl_client_certificate {}; ssl_verify_client on;",
        clients.certificate().display()
    );
    let directory = clients.directory.join("nginx");
    nginx_tls(pod, &directory, ports, &asks, "client $ssl_client_s_dn for $ssl_server_name")
}

/// The same that asks clients for no certificate. Its page says which server was asked for.
///
/// # Errors
/// When it does not listen.
pub fn nginx_open(pod: &Pod, directory: &Path, ports: &[(u16, &Pair)]) -> Result<Process> {
    nginx_tls(pod, &directory.join("nginx-open"), ports, "", "anybody for $ssl_server_name")
}

fn nginx_tls(
    pod: &Pod,
    directory: &Path,
    ports: &[(u16, &Pair)],
    settings: &str,
    page: &str,
) -> Result<Process> {
    fs::create_dir_all(directory)?;
    let servers: String = ports
        .iter()
        .map(|(port, pair)| {
            format!(
                "server {{ listen {port} ssl http2; ssl_certificate {}; ssl_certificate_key {};\n\
                 {settings}\nlocation / {{ return 200 \"{page}\"; }} }}\n",
                pair.certificate.display(),
                pair.key.display(),
            )
        })
        .collect();
    let http = format!("{}{servers}", temporary(&directory.display().to_string()));
    start_nginx(pod, directory, &http, ports.first().context("a port")?.0)
}

/// nginx that speaks HTTP/2 in the clear, to clients who know it beforehand. Its page says what it
/// was asked for, and what it was told of the client.
///
/// # Errors
/// When it does not listen.
pub fn nginx_http2(pod: &Pod, directory: &Path, port: u16) -> Result<Process> {
    let directory = directory.join("nginx-http2");
    fs::create_dir_all(&directory)?;
    let place = directory.display();
    let page = "$server_protocol $request_uri $http_x_forwarded_client_cert";
    let server = format!(
        "server {{ listen [::]:{port} ipv6only=off http2; location / {{ return 200 '{page}'; }} }}\n"
    );
    start_nginx(pod, &directory, &format!("{}{server}", temporary(&place.to_string())), port)
}

/// nginx at one address, whose accept waits for a client's first bytes (tcp(7), TCP_DEFER_ACCEPT).
///
/// # Errors
/// When it does not listen.
pub fn nginx_deferred(pod: &Pod, directory: &Path, place: SocketAddr) -> Result<Process> {
    let directory = directory.join("nginx-deferred");
    fs::create_dir_all(&directory)?;
    let server =
        format!("server {{ listen {place} deferred; location / {{ return 200 'deferred'; }} }}\n");
    let temporary = temporary(&directory.display().to_string());
    start_nginx(pod, &directory, &format!("{temporary}{server}"), place.port())
}

fn temporary(place: &str) -> String {
    let kinds = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"];
    kinds.iter().map(|kind| format!("{kind}_temp_path {place}/{kind};\n")).collect()
}

/// `http` is what the section of that name holds.
fn start_nginx(pod: &Pod, directory: &Path, http: &str, port: u16) -> Result<Process> {
    let text = format!(
        "daemon off; master_process off; user root; pid {}/pid; error_log stderr;\n\
         events {{}}\nhttp {{ access_log off; default_type text/plain;\n{http}}}\n",
        directory.display()
    );
    let file = directory.join("nginx.conf");
    fs::write(&file, text)?;
    let mut command = pod.place.command(NGINX)?;
    // Without it the host's own log is opened before the configuration is read. nginx before 1.19.5 cannot be told.
    let early = ["-e", "stderr"];
    let mut asked = Command::new(NGINX);
    asked.args(early).arg("-v");
    if output(asked).context("is nginx installed?")?.status.success() {
        command.args(early);
    }
    command.arg("-c").arg(&file);
    let server = Process::start(format!("nginx in {}", pod.name), command)?;
    listening(server, pod, port)
}

fn listening(mut server: Process, pod: &Pod, port: u16) -> Result<Process> {
    let what = format!("a server on port {port} of {}", pod.name);
    wait::until(START, &what, || {
        if let Ok(Some(status)) = server.exited() {
            let (out, err) = (server.stdout.all(), server.stderr.all());
            return Err(format!("it ended: {status}: {out:?} {err:?}"));
        }
        match pod.inside(client::listening_ports) {
            Ok(ports) if ports.contains(&port) => Ok(()),
            Ok(ports) => Err(format!("listening on {ports:?}")),
            Err(error) => Err(format!("{error:#}")),
        }
    })?;
    Ok(server)
}
