//! Peers of other trust domains under a root that is trusted: only aliases are let in. With real
//! certificates where `MTLS_CONFORMANCE` names a directory that has some.

use std::path::Path;

use serde_json::Value;

use super::*;
use crate::identity::encoding;
use crate::mesh::snapshot::MeshSettings;
use crate::mesh::{Objects, Snapshot};
use crate::policy::Mode;
use crate::policy::parse::Limits;

const PORT: u16 = 9000;

/// Bundles of a mesh and its aliases, which have the same roots.
fn bundles(names: &[&str], roots: &[&CertificateDer<'static>]) -> Vec<Bundle> {
    let roots: Vec<_> = roots.iter().copied().cloned().collect();
    let own = Bundle::new(domain(names[0]), roots);
    names.iter().map(|name| own.under_alias(&domain(name))).collect()
}

/// What a server in a mesh of these names makes of a client that shows `leaf`, and what the client
/// hears if it is refused.
async fn meets(server: &TlsIdentity, leaf: Leaf) -> Result<SpiffeId, String> {
    let (client, stream) = pair().await;
    let name = ServerName::try_from(SNI).unwrap();
    // No mesh ALPN: STRICT does not ask for it.
    let shake = stranger::connector(Some(leaf), &[]).connect(name, client);
    let heard = async {
        match shake.await {
            Ok(mut stream) => stream.read_u8().await.err(),
            Err(error) => Some(error),
        }
    };
    let told = async {
        let (mut stream, peer, _) =
            accept(Replay::new(stream), server, None).await.map_err(|_| ())?;
        stream.write_all(b"!").await.map_err(|_| ())?;
        stream.flush().await.map_err(|_| ())?;
        Ok::<_, ()>(peer.id().clone())
    };
    let both = async { tokio::join!(told, heard) };
    match tokio::time::timeout(LIMIT, both).await.expect("in time") {
        (Ok(id), None) => Ok(id),
        (told, heard) => {
            let heard = heard.as_ref().and_then(HandshakeError::from_established);
            Err(heard.unwrap_or_else(|| panic!("no alert, and {told:?}")).to_string())
        }
    }
}

#[tokio::test]
async fn only_aliases_of_the_trust_domain_are_let_in() {
    let (ours, theirs) = (TestCa::new(), TestCa::new());
    let names = ["cluster.local", "alias.test"];
    let roots = [&ours.certificate, &theirs.certificate];
    let svid = ours.sign(SERVER, |_| {}).svid(SERVER);
    let server = TlsIdentity::new(&svid, &bundles(&names, &roots)).unwrap();
    for ca in [&ours, &theirs] {
        for uri in ["spiffe://alias.test/ns/a/sa/b", CLIENT] {
            assert_eq!(meets(&server, ca.sign(uri, |_| {})).await, Ok(id(uri)));
        }
        let uri = "spiffe://other.test/ns/a/sa/b";
        let heard = meets(&server, ca.sign(uri, |_| {})).await.expect_err("no alias");
        assert!(heard.contains("certificate_unknown"), "{heard}");
    }
}

/// The mode that a workload's port has under a policy with this mode for it.
fn settled(mode: &str, trust_domain: &str) -> Mode {
    let text = format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
         metadata: {{name: server, namespace: full}}\n\
         spec: {{address: 10.0.0.2, serviceAccount: server, labels: {{app: server}}}}\n---\n\
         apiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: ports, namespace: full}}\n\
         spec: {{selector: {{matchLabels: {{app: server}}}}, \
         portLevelMtls: {{{PORT}: {{mode: {mode}}}}}}}\n"
    );
    let mut objects = Objects::default();
    objects.add_file("mesh.yaml", text.as_bytes(), &Limits::default());
    let settings = MeshSettings {
        trust_domain: domain(trust_domain),
        trust_domain_aliases: Vec::new(),
        root_namespace: "istio-system".into(),
        enable_auto_mtls: true,
        mesh_ranges: Vec::new(),
    };
    let snapshot = Snapshot::build(objects, None, settings, "a", 1).expect("good").snapshot;
    let server = snapshot.workload_at("10.0.0.2".parse().unwrap()).expect("the workload");
    snapshot.inbound(server, PORT).mode.mode
}

/// The certificates and the key of a row's client; the last certificate is its CA's.
fn shown(folder: &Path, client: &Value) -> Leaf {
    let read = |field: &str| {
        let path =
            folder.join(client[field].as_str().unwrap_or_else(|| panic!("{field}: {client}")));
        std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
    };
    let mut chain = encoding::certificates_from_pem(&read("cert")).expect("certificates");
    let certificate = chain.remove(0);
    Leaf { certificate, above: chain, key: encoding::key_from_pem(&read("key")).expect("a key") }
}

#[tokio::test]
async fn other_implementations_peers_are_let_in_or_not() {
    let Some(folder) = std::env::var_os("MTLS_CONFORMANCE") else {
        eprintln!("MTLS_CONFORMANCE is not set: 0 rows");
        return;
    };
    let folder = Path::new(&folder);
    let table = std::fs::read(folder.join("trustdomain-peer.json")).expect("the file of rows");
    let table: Value = serde_json::from_slice(&table).expect("JSON");
    let rows = table["cases"].as_array().expect("rows");
    assert!(!rows.is_empty());
    for row in rows {
        let name = &row["name"];
        let text =
            |value: &Value| value.as_str().map(str::to_owned).unwrap_or_else(|| panic!("{row}"));
        let (mesh, client) = (&row["mesh"], &row["client"]);
        let own = text(&mesh["trust_domain"]);
        let aliases = mesh["trust_domain_aliases"].as_array().expect("aliases");
        let names: Vec<String> =
            std::iter::once(own.clone()).chain(aliases.iter().map(text)).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let allowed =
            match (settled(&text(&row["server"]["mode"]), &own), text(&client["transport"])) {
                (Mode::Disable | Mode::Permissive, transport) if transport == "plaintext" => true,
                (Mode::Strict, transport) if transport == "plaintext" => false,
                (Mode::Strict, _) => {
                    let ca = TestCa::new();
                    let uri = format!("spiffe://{own}/ns/full/sa/client");
                    let leaf = match client.get("cert") {
                        Some(_) => shown(folder, client),
                        None => ca.sign(&uri, |_| {}),
                    };
                    let mut roots = vec![&ca.certificate];
                    let foreign = leaf.above.last().cloned();
                    roots.extend(&foreign);
                    let uri = client["uri_san"].as_str().map_or(uri, str::to_owned);
                    let svid = ca.sign(SERVER, |_| {}).svid(SERVER);
                    let server = TlsIdentity::new(&svid, &bundles(&names, &roots)).unwrap();
                    match meets(&server, leaf).await {
                        Ok(peer) => {
                            assert_eq!(peer, id(&uri), "{name}");
                            true
                        }
                        Err(alert) => {
                            assert!(alert.contains("certificate_unknown"), "{name}: {alert}");
                            false
                        }
                    }
                }
                (mode, transport) => panic!("{name}: {transport} to {mode:?} cannot be run"),
            };
        assert_eq!(allowed, row["expected"] == "allow", "{name}");
    }
    eprintln!("trustdomain-peer: {} rows", rows.len());
}
