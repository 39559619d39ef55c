use clap::Parser;

use super::*;

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    run: RunArgs,
}

fn parse(args: &[&str]) -> Result<RunArgs, String> {
    let args = std::iter::once("run").chain(args.iter().copied());
    Command::try_parse_from(args).map(|it| it.run).map_err(|error| error.to_string())
}

fn config(args: &[&str]) -> Result<Config, String> {
    parse(args)?.try_into().map_err(|error: ConfigError| error.to_string())
}

/// Asserts that `args` are refused with a message that has all of `parts`.
fn refused(args: &[&str], parts: &[&str]) {
    let error = config(args).err().unwrap_or_else(|| panic!("{args:?} was accepted"));
    for part in parts {
        assert!(error.contains(part), "no {part:?} in\n{error}");
    }
}

#[test]
fn the_defaults_are_those_of_the_help_text() {
    let config = config(&["--node", "node-1"]).expect("defaults");
    assert_eq!(config.config_dir, Path::new("/etc/mtls-daemon/config.d"));
    assert_eq!(config.state_dir, Path::new("/var/lib/mtls-daemon"));
    assert_eq!(config.run_dir, Path::new("/run/mtls-daemon/node-1"));
    assert_eq!(config.admin_socket, Path::new("/run/mtls-daemon/node-1/admin.sock"));
    assert_eq!(config.ca_dir, Path::new("/var/lib/mtls-daemon/ca"));
    assert_eq!(config.mesh.trust_domain.as_str(), "cluster.local");
    assert_eq!(&*config.mesh.root_namespace, "istio-system");
    assert!(config.mesh.enable_auto_mtls);
    let ranges: Vec<_> = config.mesh.mesh_ranges.iter().map(ToString::to_string).collect();
    assert_eq!(
        ranges,
        ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "fc00::/7"]
    );
    assert_eq!(config.detect_timeout, Duration::from_millis(100));
    assert_eq!(config.mtls_wait, Duration::from_secs(5));
    assert_eq!(config.svid_lifetime, Duration::from_secs(24 * 3600));
    assert_eq!(config.http_address, Some("127.0.0.1:15020".parse().expect("an address")));
    assert_eq!(config.access_log, access::Sink::Stdout);
    assert_eq!(config.log_format, logs::Format::Text);
    assert_eq!(config.drain, Duration::from_secs(5));
}

#[test]
fn every_flag_is_heard() {
    let args = "--node n --config-dir /c --state-dir /s --run-dir /r --ca-dir /ca \
        --trust-domain td.test --trust-domain-alias old.test --trust-domain-alias older.test \
        --root-namespace root --enable-auto-mtls false --mesh-range 10.1.0.0/16 \
        --mesh-range fd00::/8 --workers 3 --detect-timeout 50ms --mtls-wait 2s \
        --svid-lifetime 1h --http-address off --access-log /var/log/access.log \
        --log-format json --log-level debug --drain 0s";
    let config = config(&args.split_whitespace().collect::<Vec<_>>()).expect("good flags");
    assert_eq!(config.state_dir, Path::new("/s"));
    assert_eq!(config.run_dir, Path::new("/r/n"));
    assert_eq!(config.ca_dir, Path::new("/ca"));
    let aliases: Vec<_> = config.mesh.trust_domain_aliases.iter().map(|it| it.as_str()).collect();
    assert_eq!(aliases, ["old.test", "older.test"]);
    assert_eq!(config.mesh.mesh_ranges.len(), 2, "the defaults are replaced");
    assert!(!config.mesh.enable_auto_mtls);
    assert_eq!(config.workers.get(), 3);
    assert_eq!(config.detect_timeout, Duration::from_millis(50));
    assert_eq!(config.svid_lifetime, Duration::from_secs(3600));
    assert_eq!(config.http_address, None);
    assert_eq!(config.access_log, access::Sink::File("/var/log/access.log".into()));
    assert_eq!(config.log_format, logs::Format::Json);
    assert_eq!(config.drain, Duration::ZERO);
}

#[test]
fn a_bad_value_is_refused_with_its_flag_and_a_way_out() {
    let cases: &[(&[&str], &[&str])] = &[
        (&["--mesh-range", "10.0.0.0/33"], &["--mesh-range", "such as 10.0.0.0/8"]),
        (&["--mesh-range", "10.1.2.3/8"], &["--mesh-range", "did you mean 10.0.0.0/8?"]),
        (&["--detect-timeout", "100"], &["--detect-timeout", "such as 100ms"]),
        (&["--detect-timeout", "0s"], &["--detect-timeout", "between 1ms and 1m"]),
        (&["--svid-lifetime", "1s"], &["--svid-lifetime", "between 5s"]),
        (&["--node", "a/b"], &["--node", "not allowed", "for example node-1"]),
        (&["--trust-domain", "UPPER"], &["--trust-domain", "UPPER"]),
        (&["--http-address", "15020"], &["--http-address", "[::1]:15020", "off"]),
        (&["--workers", "0"], &["--workers", "0 is no number from 1 to 16"]),
        (&["--workers", "17"], &["--workers", "17 is no number from 1 to 16"]),
        (&["--access-log", ""], &["--access-log"]),
        (&["--log-level", "x=y=z"], &["--log-level", "expected error, warn, info"]),
        (&["--root-namespace", ""], &["--root-namespace"]),
        (
            &["--node", "n", "--trust-domain-alias", "cluster.local"],
            &["--trust-domain-alias cluster.local is the trust domain itself"],
        ),
    ];
    for (args, parts) in cases {
        refused(args, parts);
    }
}

#[test]
fn a_machine_of_many_cpus_has_as_many_workers_as_the_kernel_programs_serve() {
    for (cpus, workers) in [(1, 1), (2, 2), (16, 16), (17, 16), (192, 16)] {
        let cpus = std::num::NonZeroUsize::new(cpus).expect("not zero");
        assert_eq!(at_most(cpus).get(), workers, "{cpus} CPUs");
    }
    assert_eq!(config(&["--node", "n", "--workers", "16"]).expect("good flags").workers.get(), 16);
}

#[test]
fn a_socket_path_that_the_kernel_would_refuse_is_refused_by_name() {
    let deep = format!("/{}", "d".repeat(100));
    refused(&["--node", "node-1", "--run-dir", &deep], &["admin.sock", "107", "--run-dir"]);
}

#[test]
fn the_hosts_name_is_lowered_or_refused_with_the_flag_to_use() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("hostname");
    std::fs::write(&file, "Web-1.Example\n").expect("written");
    assert_eq!(hostname(&file).expect("a name").as_str(), "web-1.example");
    std::fs::write(&file, "my_laptop\n").expect("written");
    let error = hostname(&file).expect_err("an underscore").to_string();
    assert!(error.contains("my_laptop") && error.contains("--node"), "{error}");
}

#[test]
fn where_svids_come_from_is_one_thing_or_another() {
    use crate::identity::source::istio_ca::Credential;
    let source = |args: &[&str]| {
        let args: Vec<_> = ["--node", "vm-1"].iter().chain(args).copied().collect();
        config(&args).map(|config| config.identity)
    };
    assert!(matches!(source(&[]), Ok(IdentitySource::Embedded)));
    let server = ["--identity-source", "istio-ca", "--ca-address", "ca:15012", "--ca-root", "/r"];
    let Ok(IdentitySource::IstioCa { address, server_name, root_file, credential, cluster, poll }) =
        source(&server)
    else {
        panic!("a server");
    };
    assert_eq!(poll, Duration::from_secs(5));
    assert_eq!((address.as_str(), server_name.as_str()), ("ca:15012", "istiod.istio-system.svc"));
    assert_eq!((root_file.as_path(), cluster.as_str()), (Path::new("/r"), "Kubernetes"));
    let name = "vm-1".parse().expect("a node's name");
    assert_eq!(credential, Credential::Node { name, join_token: None });

    let token = |flag| [&server[..], &[flag, "/token"]].concat();
    let Ok(IdentitySource::IstioCa { credential, .. }) = source(&token("--ca-token-file")) else {
        panic!("a server");
    };
    assert_eq!(credential, Credential::TokenFile("/token".into()));
    let both = [token("--ca-token-file"), token("--ca-join-token-file")[6..].to_vec()].concat();
    refused(&both, &["--ca-token-file", "--ca-join-token-file"]);
}

#[test]
fn revocation_can_be_required_where_somebody_says_what_is_revoked() {
    let settings = |args: &[&str]| config(args).map(|config| config.revocation);
    let Ok(RevocationSettings { rules, crl_file }) = settings(&[]) else { panic!("the default") };
    assert!(!rules.required && rules.max_age.is_none() && crl_file.is_none());
    let required = ["--revocation", "required"];
    let max_age = ["--revocation-max-age", "10m"];
    refused(&required, &["--revocation required", "--crl-file", "istio-ca"]);
    refused(&max_age, &["--revocation-max-age", "istio-ca"]);
    let files = settings(&[&required[..], &["--crl-file", "/crl"]].concat());
    assert!(files.is_ok_and(|it| it.rules.required && it.crl_file == Some("/crl".into())));
    let server = ["--node", "vm-1", "--identity-source", "istio-ca"];
    let aliases = ["--trust-domain-alias", "old.example"];
    let Ok(RevocationSettings { rules, .. }) =
        settings(&[&server[..], &required, &max_age, &aliases].concat())
    else {
        panic!("a CA server has lists");
    };
    assert_eq!((rules.required, rules.max_age), (true, Some(Duration::from_secs(600))));
    assert_eq!(rules.aliases.len(), 1, "the list speaks of them as well");
    let slow = ["--ca-poll", "10m"];
    let parts = ["--ca-poll 10m", "--revocation-max-age 10m"];
    refused(&[&server[..], &max_age, &slow].concat(), &parts);
    assert!(settings(&[&server[..], &slow].concat()).is_ok(), "without a limit it may be slow");
}
