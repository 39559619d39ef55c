//! MariaDB, whose server speaks first: the distribution's own server and its command-line client.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bed::{Pod, Testbed};
use crate::leftovers;
use crate::openssl::Pair;
use crate::process::{Process, output};

/// The port that everybody knows.
pub const PORT: u16 = 3306;
/// What the server's greeting holds, in the clear unless somebody encrypts the connection.
pub const GREETING: &str = "-MariaDB-";

/// Makes a database in memory and starts a server for it in `pod`, which also speaks TLS of its own
/// as `pair`.
///
/// # Errors
/// When it is not installed, or does not come up; the text holds its own words.
pub fn serve(bed: &Testbed, pod: &Pod, pair: &Pair) -> Result<Process> {
    let data = leftovers::in_memory(&bed.prefix, &format!("mariadb-{}", pod.name))?;
    // A starting server removes temporary tables, also those of others in the same place.
    let temporary =
        flag("tmpdir", &leftovers::in_memory(&bed.prefix, &format!("mariadb-{}-tmp", pod.name))?);
    let mut install = Command::new("mariadb-install-db");
    install.args(["--no-defaults", "--user=root", "--auth-root-authentication-method=normal"]);
    install.args(["--skip-test-db", "--cross-bootstrap"]).arg(flag("datadir", &data));
    install.arg(&temporary);
    let installed = output(install).context("is mariadb-server-core installed?")?;
    ensure!(
        installed.status.success(),
        "mariadb-install-db: {}{}",
        String::from_utf8_lossy(&installed.stdout),
        String::from_utf8_lossy(&installed.stderr)
    );
    let first = data.join("first.sql");
    fs::write(
        &first,
        "CREATE DATABASE shop;\nCREATE USER app@'%' IDENTIFIED BY 'secret';\n\
         GRANT ALL ON shop.* TO app@'%';\n",
    )?;
    let mut command = pod.place.command("mariadbd")?;
    command.args(["--no-defaults", "--user=root", "--bind-address=*", "--skip-name-resolve"]);
    command.args(["--skip-log-bin", "--innodb-buffer-pool-size=8M", "--innodb-log-file-size=4M"]);
    command
        .arg(format!("--port={PORT}"))
        .arg(flag("datadir", &data))
        .arg(flag("init-file", &first));
    command.arg(flag("socket", &data.join("socket"))).arg(flag("pid-file", &data.join("pid")));
    command.arg(flag("ssl-cert", &pair.certificate)).arg(flag("ssl-key", &pair.key));
    command.arg(&temporary);
    let server = Process::start(format!("mariadbd in {}", pod.name), command)?;
    server
        .stderr
        .find_after(0, Duration::from_secs(30), "that it is ready", |line| {
            line.contains("ready for connections").then_some(())
        })
        .with_context(|| server.stderr.all().join("\n"))?;
    Ok(server)
}

fn flag(name: &str, path: &Path) -> String {
    format!("--{name}={}", path.display())
}

/// What the client made of one statement.
#[derive(Debug)]
pub struct Answer {
    pub worked: bool,
    /// The rows, tab separated.
    pub rows: String,
    pub said: String,
}

/// `mariadb --execute <statement>` from `pod`, with more arguments.
///
/// # Errors
/// When it is not installed. Its failures are results.
pub fn query(pod: &Pod, to: SocketAddr, statement: &str, more: &[&str]) -> Result<Answer> {
    let mut command = pod.place.command("mariadb")?;
    command.args(["--no-defaults", "--protocol=tcp", "--user=app", "--password=secret"]);
    // Some builds of the client use TLS whenever the server offers it.
    command.args(["--skip-ssl", "--connect-timeout=15", "--batch", "--skip-column-names"]);
    command.arg(format!("--host={}", to.ip())).arg(format!("--port={}", to.port())).args(more);
    command.arg(format!("--execute={statement}")).arg("shop");
    let output = output(command)?;
    ensure!(output.status.code() != Some(127), "is mariadb-client-core installed?");
    Ok(Answer {
        worked: output.status.success(),
        rows: String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        said: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
    })
}
