//! `openssl`: a TLS client, a TLS server and a CA that share no code with the daemon.

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::bed::Pod;
use crate::process::{Process, output};

/// A certificate and its key, in PEM.
#[derive(Debug, Clone)]
pub struct Pair {
    pub certificate: PathBuf,
    pub key: PathBuf,
}

/// The mesh's own CA, which the first daemon made below `directory`.
pub fn mesh_ca(directory: &Path) -> Pair {
    let place = directory.join("ca");
    Pair { certificate: place.join("ca-cert.pem"), key: place.join("ca-key.pem") }
}

/// A self-signed certificate for `name`, which may sign others.
///
/// # Errors
/// When openssl is not installed, or refuses.
pub fn self_signed(directory: &Path, name: &str) -> Result<Pair> {
    let pair = pair(directory, name);
    let subject = format!("/CN={name}");
    let names = format!("subjectAltName=DNS:{name}");
    let mut command = request(&pair);
    command.args(["-x509", "-days", "2", "-subj", &subject, "-addext", &names]);
    run(command)?;
    Ok(pair)
}

/// A certificate as the mesh's are, signed by `ca`: no subject, one critical URI name.
///
/// # Errors
/// When openssl refuses.
pub fn svid(directory: &Path, name: &str, ca: &Pair, uri: &str) -> Result<Pair> {
    let pair = pair(directory, name);
    let (asked, extensions) =
        (directory.join(format!("{name}.csr")), directory.join(format!("{name}.cnf")));
    let mut command = request(&pair);
    // The subject is replaced by what the extensions say: openssl refuses an empty one here.
    command.args(["-subj", "/"]).arg("-out").arg(&asked);
    run(command)?;
    fs::write(
        &extensions,
        format!(
            "subjectAltName=critical,URI:{uri}\nbasicConstraints=critical,CA:FALSE\n\
             keyUsage=critical,digitalSignature\nextendedKeyUsage=serverAuth,clientAuth\n"
        ),
    )?;
    let mut command = Command::new("openssl");
    command.args(["x509", "-req", "-days", "1", "-in"]).arg(&asked);
    command.arg("-CA").arg(&ca.certificate).arg("-CAkey").arg(&ca.key).arg("-CAcreateserial");
    command.arg("-extfile").arg(&extensions).arg("-out").arg(&pair.certificate);
    run(command)?;
    Ok(pair)
}

/// A private key in DER, PKCS#8.
///
/// # Errors
/// When openssl refuses.
pub fn pkcs8_der(key: &Path) -> Result<Vec<u8>> {
    der(&["pkcs8", "-topk8", "-nocrypt", "-outform", "DER"], key)
}

/// The P-256 key that is this number, in a file `<name>.key` as openssl writes them.
///
/// # Errors
/// When openssl refuses.
pub fn p256_key(directory: &Path, name: &str, scalar: &[u8; 32]) -> Result<PathBuf> {
    // ECPrivateKey: version 1, the number, the curve. What follows from them is asked of openssl: without
    // the public key in it, it would write another form than everybody else's.
    let curve = [0xa0, 10, 0x06, 8, 0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
    let bare = [&[0x02, 1, 1, 0x04, 32][..], scalar, &curve].concat();
    let (from, to) = (directory.join(format!("{name}.der")), directory.join(format!("{name}.key")));
    fs::write(&from, [&[0x30, 49][..], &bare].concat())?;
    let public = der(&["pkey", "-inform", "DER", "-pubout", "-outform", "DER"], &from)?;
    let point = public.len().checked_sub(65).context("a point")?;
    let whole = [&[0x30, 119][..], &bare, &[0xa1, 68, 0x03, 66, 0], &public[point..]].concat();
    fs::write(&from, whole)?;
    let mut command = Command::new("openssl");
    command.args(["pkey", "-inform", "DER", "-in"]).arg(&from).arg("-out").arg(&to);
    run(command)?;
    Ok(to)
}

/// The public half of a key, in PEM.
///
/// # Errors
/// When openssl refuses.
pub fn public_key(key: &Path) -> Result<String> {
    let mut command = Command::new("openssl");
    command.args(["pkey", "-pubout", "-in"]).arg(key);
    run(command)
}

/// The first certificate of a file in DER.
///
/// # Errors
/// When openssl refuses.
pub fn certificate_der(certificate: &Path) -> Result<Vec<u8>> {
    der(&["x509", "-outform", "DER"], certificate)
}

fn der(arguments: &[&str], file: &Path) -> Result<Vec<u8>> {
    let mut command = Command::new("openssl");
    command.args(arguments).arg("-in").arg(file);
    let output = output(command).context("is openssl installed?")?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    Ok(output.stdout)
}

/// A certificate's serial number, in hex.
///
/// # Errors
/// When openssl refuses.
pub fn serial(pair: &Pair) -> Result<String> {
    let mut command = Command::new("openssl");
    command.args(["x509", "-noout", "-serial", "-in"]).arg(&pair.certificate);
    let text = run(command)?;
    let (_, serial) = text.trim().split_once('=').context("openssl's serial")?;
    Ok(serial.to_owned())
}

/// A revocation list of `ca` in PEM, good for `seconds`, that names `serials`.
///
/// # Errors
/// When openssl refuses.
pub fn crl(directory: &Path, ca: &Pair, serials: &[&str], seconds: u32) -> Result<String> {
    let (index, config) = (directory.join("crl-index.txt"), directory.join("crl.cnf"));
    let entry = |it: &&str| format!("R\t491231000000Z\t240101000000Z\t{it}\tunknown\t/CN=x\n");
    fs::write(&index, serials.iter().map(entry).collect::<String>())?;
    let number = directory.join("crl-number");
    if !number.exists() {
        fs::write(&number, "01\n")?;
    }
    fs::write(
        &config,
        format!(
            "[ca]\ndefault_ca=it\n[it]\ndatabase={}\ncrlnumber={}\ndefault_md=sha256\n",
            index.display(),
            number.display()
        ),
    )?;
    let mut command = Command::new("openssl");
    command.args(["ca", "-gencrl", "-crlsec", &seconds.to_string(), "-config"]).arg(&config);
    command.arg("-cert").arg(&ca.certificate).arg("-keyfile").arg(&ca.key);
    run(command)
}

fn pair(directory: &Path, name: &str) -> Pair {
    Pair {
        certificate: directory.join(format!("{name}.pem")),
        key: directory.join(format!("{name}.key")),
    }
}

fn request(pair: &Pair) -> Command {
    let mut command = Command::new("openssl");
    command.args(["req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]);
    command.arg("-keyout").arg(&pair.key).arg("-out").arg(&pair.certificate);
    command
}

fn run(command: Command) -> Result<String> {
    let output = output(command).context("is openssl installed?")?;
    ensure!(output.status.success(), "openssl: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).context("openssl's answer")
}

/// An application that speaks TLS of its own: `s_server`, with a page for HTTP clients.
///
/// # Errors
/// When it does not listen.
pub fn serve(pod: &Pod, port: u16, pair: &Pair) -> Result<Process> {
    let mut command = pod.place.command("openssl")?;
    command.args(["s_server", "-accept", &port.to_string(), "-www"]);
    command.arg("-cert").arg(&pair.certificate).arg("-key").arg(&pair.key);
    let server = Process::start(format!("openssl s_server in {}", pod.name), command)?;
    server.stdout.find_after(0, Duration::from_secs(10), "that it accepts", |line| {
        line.contains("ACCEPT").then_some(())
    })?;
    Ok(server)
}

/// `curl https://<name>` from `pod`, connected to `to`, which trusts the application's certificate
/// alone: curl's exit code, and all that it printed.
///
/// # Errors
/// When curl is not installed. Its failures are results.
pub fn https(pod: &Pod, to: SocketAddr, name: &str, trust: &Pair) -> Result<(i32, String)> {
    let mut command = pod.place.command("curl")?;
    let port = to.port();
    let address = match to {
        SocketAddr::V4(v4) => v4.ip().to_string(),
        SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
    };
    command.args(["--silent", "--show-error", "--noproxy", "*", "--max-time", "15"]);
    command.args(["--resolve", &format!("{name}:{port}:{address}")]);
    command.arg("--cacert").arg(&trust.certificate).arg(format!("https://{name}:{port}/"));
    let output = output(command)?;
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok((output.status.code().context("curl was killed")?, text))
}

/// What `openssl s_client` saw.
#[derive(Debug)]
pub struct Seen {
    /// Everything that it printed, the server's certificate among it.
    pub text: String,
}

impl Seen {
    /// The server's certificate, as `openssl x509` prints subject, issuer and names.
    ///
    /// # Errors
    /// When there is none.
    pub fn certificate(&self) -> Result<String> {
        self.x509(&["-subject", "-issuer", "-ext", "subjectAltName"])
    }

    /// The server's certificate, as `openssl x509 -text` prints it.
    ///
    /// # Errors
    /// When there is none.
    pub fn text_of_certificate(&self) -> Result<String> {
        self.x509(&["-text"])
    }

    /// The key in the server's certificate, in PEM.
    ///
    /// # Errors
    /// When there is none.
    pub fn public_key(&self) -> Result<String> {
        self.x509(&["-pubkey"])
    }

    /// The SHA-256 of the server's certificate, in small hexadecimal digits.
    ///
    /// # Errors
    /// When there is none.
    pub fn fingerprint(&self) -> Result<String> {
        let text = self.x509(&["-fingerprint", "-sha256"])?;
        let (_, digits) = text.trim().split_once('=').context("openssl's fingerprint")?;
        Ok(digits.replace(':', "").to_ascii_lowercase())
    }

    fn x509(&self, arguments: &[&str]) -> Result<String> {
        let begin = self.text.find("-----BEGIN CERTIFICATE-----");
        let begin = begin.with_context(|| format!("no certificate in: {}", self.text))?;
        let mut command = Command::new("openssl");
        command.args(["x509", "-noout"]).args(arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let mut stdin = child.stdin.take().context("stdin is piped")?;
        std::io::Write::write_all(&mut stdin, &self.text.as_bytes()[begin..])?;
        drop(stdin);
        let output = child.wait_with_output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8(output.stdout)?)
    }
}

/// `openssl s_client` from `pod`, which says nothing and waits until the server ends.
///
/// # Errors
/// When openssl is not installed. Its failures are results.
pub fn look(pod: &Pod, to: SocketAddr, arguments: &[&str]) -> Result<Seen> {
    let mut command = pod.place.command("timeout")?;
    command.args(["10", "openssl", "s_client", "-connect", &to.to_string(), "-ign_eof"]);
    command.args(arguments);
    let output = output(command)?;
    ensure!(output.status.code() != Some(127), "is openssl installed?");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    Ok(Seen { text })
}
