//! The checked-in code is what `proto/` says.

use std::path::{Path, PathBuf};

/// Set it to write the code anew instead of comparing.
const WRITE: &str = "MTLS_WRITE_GRPC";

const WITH_KEYS: [&str; 2] = [".X509SVID", ".spire.api.agent.delegatedidentity.v1.X509SVIDWithKey"];

const HEADER: &str = "// Generated from proto/ by the test in fresh.rs: \
     MTLS_WRITE_GRPC=1 cargo test -p mtls-daemon grpc::fresh\n";

fn generate(into: &Path) {
    let proto = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
    let files = ["istio_ca.proto", "node.proto", "workload_api.proto", "delegated_identity.proto"];
    let descriptors = protox::compile(files, [proto]).expect("proto/ compiles");
    tonic_prost_build::configure()
        .build_transport(false)
        // What they print would be keys.
        .skip_debug(WITH_KEYS)
        .out_dir(into)
        .compile_fds(descriptors)
        .expect("code for proto/");
}

/// Without the attributes that silence lints: the module that includes the code has no need of them.
fn tidied(code: &str) -> String {
    let mut out = String::from(HEADER);
    let mut silencing = false;
    for line in code.lines() {
        let start = line.trim_start();
        silencing |= start.starts_with("#![allow(") || start.starts_with("#[allow(");
        if !silencing {
            out.push_str(line);
            out.push('\n');
        }
        silencing &= !line.trim_end().ends_with(")]");
    }
    out
}

fn check(generated: &str, checked_in: &str) {
    let folder = tempfile::tempdir().unwrap();
    generate(folder.path());
    let fresh = tidied(&std::fs::read_to_string(folder.path().join(generated)).unwrap());
    let path: PathBuf = [env!("CARGO_MANIFEST_DIR"), "src", "grpc", checked_in].iter().collect();
    if std::env::var_os(WRITE).is_some() {
        std::fs::write(&path, fresh).unwrap();
        return;
    }
    let found = std::fs::read_to_string(&path).unwrap();
    assert!(found == fresh, "{} is not what proto/ says: run with {WRITE}=1", path.display());
}

#[test]
fn istios_service_is_fresh() {
    check("istio.v1.auth.rs", "istio_v1_auth.rs");
}

#[test]
fn our_own_service_is_fresh() {
    check("mtls.ca.v1.rs", "mtls_ca_v1.rs");
}

#[test]
fn the_workload_api_is_fresh() {
    // What has no package has no name.
    check("_.rs", "spiffe_workload.rs");
}

#[test]
fn the_delegated_identity_api_is_fresh() {
    check("spire.api.agent.delegatedidentity.v1.rs", "spire_delegated.rs");
}
