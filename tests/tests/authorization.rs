//! AuthorizationPolicy where no HTTP is seen, as an operator meets it: who talks and who does not,
//! what the log and the status say of it, and what becomes of connections when policy changes.
#![forbid(unsafe_code)]

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mtls_tests::bed::{PodSpec, Testbed};
use mtls_tests::client::{self, Conversation, End, converse, ping, read_to_end};
use mtls_tests::daemon::Daemon;
use mtls_tests::mesh::{Mesh, Service};
use mtls_tests::process::{output, sibling};
use mtls_tests::recorder::Recorder;
use mtls_tests::wait::eventually;
use mtls_tests::world::World;
use serde_json::{Value, json};

/// Declared TCP.
const PORT: u16 = 9000;
/// Declared TCP, too.
const OTHER: u16 = 9001;
/// DISABLE in the tests that say so: the kernel leaves its connections to the application.
const DISABLED: u16 = 9002;
/// How soon a change must be in force for what is open.
const SOON: Duration = Duration::from_secs(2);

/// Two enrolled clients in namespaces of their own, one that is not, and two servers.
struct Town {
    world: World,
    store: Recorder,
    other: Recorder,
    disabled: Recorder,
    depot: Recorder,
}

const CLIENTS: [&str; 3] = ["front", "batch", "stranger"];

fn identity(client: &str) -> Option<&'static str> {
    match client {
        "front" => Some("spiffe://cluster.local/ns/shop/sa/front"),
        "batch" => Some("spiffe://cluster.local/ns/jobs/sa/batch"),
        _ => None,
    }
}

fn town() -> Result<Town> {
    let pods = [
        PodSpec::new(0, "front", 10),
        PodSpec::new(0, "batch", 11),
        PodSpec::new(0, "stranger", 12),
        PodSpec::new(1, "store", 20),
        PodSpec::new(1, "depot", 21),
    ];
    let configure = |bed: &Testbed| {
        let mut mesh = Mesh::new(bed.config_directory());
        let [a, b] = [&bed.nodes[0], &bed.nodes[1]];
        mesh.enrol(a, bed.pod("front"), "shop", "front", "front");
        mesh.enrol(a, bed.pod("batch"), "jobs", "batch", "batch");
        mesh.enrol(b, bed.pod("store"), "stock", "store", "store");
        mesh.enrol(b, bed.pod("depot"), "stock", "depot", "depot");
        for (name, number) in [("store", 1), ("depot", 2)] {
            mesh.service(&Service {
                namespace: "stock",
                name,
                addresses: vec![[10, 96, 0, number].into()],
                ports: vec![
                    (PORT, "tcp", "TCP", PORT),
                    (OTHER, "tcp-other", "TCP", OTHER),
                    (DISABLED, "tcp-disabled", "TCP", DISABLED),
                ],
                selector: json!({"app": name}),
            });
        }
        mesh
    };
    let mut world = World::of(&pods, configure)?;
    let [store, depot] = [world.pod("store"), world.pod("depot")];
    let (store, other, disabled, depot) = (
        Recorder::start(store, PORT)?,
        Recorder::start(store, OTHER)?,
        Recorder::start(store, DISABLED)?,
        Recorder::start(depot, PORT)?,
    );
    world.start(|spec| spec)?;
    Ok(Town { world, store, other, disabled, depot })
}

/// A denied client's connection ends, or it may be reset before connect() has looked.
fn refused(talk: Conversation) -> bool {
    !talk.worked() && talk != Conversation::Ended(End::Silent)
}

impl Town {
    fn to(&self, server: &str, port: u16) -> SocketAddr {
        self.world.pod(server).v4(port)
    }

    fn talk(&self, client: &str, to: SocketAddr) -> Result<Conversation> {
        // No capital letter comes first: the server takes it for no request.
        self.world.pod(client).inside(|| converse(to, "some stock"))
    }

    fn open(&self, client: &str, to: SocketAddr) -> Result<TcpStream> {
        self.world.pod(client).inside(|| {
            let mut stream = client::connect(to)?;
            ping(&mut stream, "open before the change")?;
            Ok(stream)
        })
    }

    fn policy(&mut self, namespace: &str, spec: &Value) -> Result<()> {
        self.world.change(|mesh| put(mesh, namespace, "list", spec))
    }

    fn without_policy(&mut self, namespace: &str) -> Result<()> {
        self.world.change(|mesh| {
            mesh.remove("AuthorizationPolicy", namespace, "list");
        })
    }

    /// What the store's daemon logs of the connection that `client` makes now.
    fn logged(&self, mark: usize, client: &str) -> Result<Value> {
        let address = self.world.pod(client).v4(0).ip().to_string();
        self.world.b().logged(mark, &format!("{client}'s connection"), |line| {
            let source = line["source"]["address"].as_str().unwrap_or_default();
            line["direction"] == "inbound" && source.starts_with(&format!("{address}:"))
        })
    }

    /// `client` talks to the store, and the log says so.
    fn check_allowed(&self, client: &str, port: u16) -> Result<Value> {
        let mark = self.world.b().mark();
        let talk = self.talk(client, self.to("store", port))?;
        ensure!(talk.worked(), "{client}, allowed: {talk:?}\n{}", self.world.b().words());
        let line = self.logged(mark, client)?;
        ensure!((&line["outcome"], &line["fault"]) == (&json!("ok"), &json!("none")), "{line}");
        ensure!(line["authorization"]["allowed"] != json!(false), "{line}");
        Ok(line)
    }

    /// `client` does not, the application hears nothing of it, and the log names `policy` and `rule`.
    fn check_denied(&self, client: &str, port: u16, policy: &str, rule: &Value) -> Result<Value> {
        let recorder = if port == PORT { &self.store } else { &self.other };
        let heard = (recorder.connections(), recorder.bytes());
        let mark = self.world.b().mark();
        let talk = self.talk(client, self.to("store", port))?;
        ensure!(refused(talk), "{client}, denied: {talk:?}");
        let line = self.logged(mark, client)?;
        ensure!(line["outcome"] == "authorization_denied" && line["fault"] == "policy", "{line}");
        ensure!(line["source"]["identity"] == json!(identity(client)), "{line}");
        let said = &line["authorization"];
        ensure!(said["allowed"] == json!(false), "{line}");
        ensure!(said["policy"] == format!("AuthorizationPolicy {policy}").as_str(), "{line}");
        ensure!(said["rule"] == *rule, "{line}");
        ensure!((recorder.connections(), recorder.bytes()) == heard, "the application heard of it");
        Ok(line)
    }
}

fn put(mesh: &mut Mesh, namespace: &str, name: &str, spec: &Value) {
    mesh.put("security.istio.io/v1", "AuthorizationPolicy", namespace, name, spec.clone());
}

/// Objects beside the mesh's, in a file of their own.
fn write(world: &World, name: &str, text: &str) -> Result<()> {
    changed(world, || world.mesh.write_file(name, text))
}

fn changed(world: &World, change: impl FnOnce() -> Result<()>) -> Result<()> {
    let before: Vec<u64> = world.daemons.iter().map(Daemon::generation).collect::<Result<_>>()?;
    change()?;
    world.daemons.iter().zip(before).try_for_each(|(daemon, before)| daemon.reloaded_after(before))
}

fn status(daemon: &Daemon, format: &str) -> Result<String> {
    let mut command = std::process::Command::new(sibling("mtls-daemon", "MTLS_DAEMON_BIN")?);
    command.args(["status", "-o", format, "--node", &daemon.spec.name, "--run-dir"]);
    let output = output({
        command.arg(&daemon.spec.run);
        command
    })?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[test]
fn a_tcp_port_is_for_those_whom_policy_allows_and_the_log_says_why_not() -> Result<()> {
    let mut town = town()?;
    let stranger = format!("{}/32", town.world.pod("stranger").v4(0).ip());
    let from = |source: Value| json!([{"source": source}]);
    // Of front, batch and stranger those who may talk to the port.
    let sources = [
        (json!({"principals": ["cluster.local/ns/shop/sa/front"]}), [true, false, false]),
        (json!({"namespaces": ["jobs"]}), [false, true, false]),
        (json!({"serviceAccounts": ["shop/front"]}), [true, false, false]),
        (json!({"ipBlocks": [stranger]}), [false, false, true]),
        (json!({"notPrincipals": ["*"]}), [false, false, true]),
    ];
    for (source, expected) in sources {
        let spec = json!({"action": "ALLOW", "rules": [{"from": from(source.clone())}]});
        town.policy("stock", &spec)?;
        for (client, allowed) in CLIENTS.into_iter().zip(expected) {
            let result = if allowed {
                town.check_allowed(client, PORT).and_then(|line| {
                    let said = &line["authorization"];
                    ensure!(said["policy"] == "AuthorizationPolicy stock/list", "{line}");
                    ensure!(said["rule"] == 0, "{line}");
                    Ok(line)
                })
            } else {
                town.check_denied(client, PORT, "stock/list", &Value::Null)
            };
            result.with_context(|| format!("ALLOW {source}"))?;
        }
    }
    // The second rule denies, and is named; whom it does not mean goes on.
    let rules = json!([
        {"from": from(json!({"namespaces": ["nobody"]}))},
        {"from": from(json!({"namespaces": ["shop"]})), "to": [{"operation": {"ports": ["9000"]}}]},
    ]);
    town.policy("stock", &json!({"action": "DENY", "rules": rules}))?;
    let line = town.check_denied("front", PORT, "stock/list", &json!(1))?;
    let detail = line["detail"].as_str().unwrap_or_default();
    ensure!(detail.contains("stock/list") && detail.contains("/sa/front"), "{line}");
    town.check_allowed("front", OTHER)?;
    town.check_allowed("batch", PORT)?;
    town.check_allowed("stranger", PORT)?;

    // By port alone: for everybody.
    let rules = json!([{"to": [{"operation": {"ports": [PORT.to_string()]}}]}]);
    town.policy("stock", &json!({"action": "ALLOW", "rules": rules}))?;
    for client in CLIENTS {
        town.check_allowed(client, PORT)?;
        town.check_denied(client, OTHER, "stock/list", &Value::Null)?;
    }

    // What only HTTP has is left out of a DENY rule here, and the status says that it is.
    let rules = json!([{
        "from": from(json!({"namespaces": ["shop"]})),
        "to": [{"operation": {"methods": ["DELETE"], "paths": ["/admin*"]}}],
    }]);
    town.policy("stock", &json!({"action": "DENY", "rules": rules}))?;
    town.check_denied("front", PORT, "stock/list", &json!(0))?;
    town.check_allowed("batch", PORT)?;
    let said: Value = serde_json::from_str(&status(town.world.b(), "json")?)?;
    let policies = said["policies"].as_array().context("policies")?;
    let found = policies.iter().find(|policy| policy["policy"] == "stock/list");
    let found = found.with_context(|| format!("no stock/list in {policies:?}"))?;
    let differs = found["differs"][0].as_str().unwrap_or_default();
    for word in ["rule 0", "methods", "paths", "denies"] {
        ensure!(differs.contains(word), "{word:?} is not in {differs:?}");
    }
    let workloads = found["workloads"].to_string();
    ensure!(workloads.contains("store") && workloads.contains("depot"), "{found}");
    let text = status(town.world.b(), "text")?;
    let line = text.lines().find(|line| line.starts_with("stock/list"));
    let line = line.with_context(|| format!("no line of stock/list in:\n{text}"))?;
    ensure!(line.contains("DENY") && line.contains(differs), "{line}");

    // And of an ALLOW rule nothing is left.
    let rules = json!([{"to": [{"operation": {"methods": ["GET"]}}]}]);
    town.policy("stock", &json!({"action": "ALLOW", "rules": rules}))?;
    town.check_denied("batch", PORT, "stock/list", &Value::Null)?;
    Ok(())
}

/// It ended, within [`SOON`] of `since`.
fn check_ended(name: &str, mut stream: TcpStream, since: Instant) -> Result<()> {
    let (bytes, end) = read_to_end(&mut stream)?;
    let took = since.elapsed();
    ensure!(bytes.is_empty() && end != End::Silent, "{name}: {end:?} after {bytes:?}");
    ensure!(took < mtls_tests::wait::patience(SOON), "{name}: ended only after {took:?}");
    Ok(())
}

#[test]
fn what_is_open_and_no_longer_allowed_is_ended_at_once() -> Result<()> {
    let mut town = town()?;
    let to = town.to("store", PORT);
    let front = town.open("front", to)?;
    let stranger = town.open("stranger", to)?;
    let mut batch = town.open("batch", to)?;
    let mark = town.world.b().mark();
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\n\
                metadata: {name: file, namespace: stock}\n\
                spec: {rules: [{from: [{source: {namespaces: [jobs]}}]}]}\n";
    let since = Instant::now();
    town.world.mesh.write_file("policy.yaml", text)?;
    check_ended("mTLS", front, since)?;
    check_ended("plaintext", stranger, since)?;
    for client in ["front", "stranger"] {
        let line = town.logged(mark, client)?;
        ensure!(line["outcome"] == "authorization_denied" && line["fault"] == "policy", "{line}");
        ensure!(line["authorization"]["policy"] == "AuthorizationPolicy stock/file", "{line}");
        town.check_denied(client, PORT, "stock/file", &Value::Null)?;
    }
    ping(&mut batch, "allowed, and so it goes on")?;
    let policy = town.world.mesh.clone();
    changed(&town.world, || policy.remove_file("policy.yaml"))?;
    for client in CLIENTS {
        town.check_allowed(client, PORT)?;
    }
    ping(&mut batch, "and on")?;

    // A port that is the kernel's alone, until a policy selects the workload.
    town.world.change(|mesh| {
        mesh.mode_by_port("stock", "store", "PERMISSIVE", &[(DISABLED, "DISABLE")]);
    })?;
    let to = town.to("store", DISABLED);
    let untouched = town.world.b().decided("inbound_untouched")?;
    let stranger = town.open("stranger", to)?;
    let batch_there = town.open("batch", to)?;
    eventually(SOON, "that the kernel left it alone", || {
        town.world.b().decided("inbound_untouched").is_ok_and(|now| now > untouched)
    })?;
    let source = format!("{}/32", town.world.pod("stranger").v4(0).ip());
    let spec = json!({
        "selector": {"matchLabels": {"app": "store"}},
        "action": "DENY",
        "rules": [{"from": [{"source": {"ipBlocks": [source]}}]}],
    });
    let since = Instant::now();
    put(&mut town.world.mesh, "stock", "list", &spec);
    town.world.mesh.write()?;
    check_ended("denied, on a port of the kernel's", stranger, since)?;
    check_ended("nobody could have judged it", batch_there, since)?;
    let heard = (town.disabled.connections(), town.disabled.bytes());
    let mark = town.world.b().mark();
    let talk = town.talk("stranger", to)?;
    ensure!(refused(talk), "it is judged now: {talk:?}");
    let line = town.logged(mark, "stranger")?;
    ensure!(line["outcome"] == "authorization_denied" && line["mode"] == "DISABLE", "{line}");
    ensure!((town.disabled.connections(), town.disabled.bytes()) == heard, "it was heard");
    let mark = town.world.b().mark();
    let talk = town.talk("batch", to)?;
    ensure!(talk.worked(), "allowed: {talk:?}");
    let line = town.logged(mark, "batch")?;
    ensure!(line["security"] == "plaintext" && line["outcome"] == "ok", "{line}");
    ping(&mut batch, "a policy that allows ends nothing that it could judge")?;

    // Without the policy the port is the kernel's again.
    town.without_policy("stock")?;
    let untouched = town.world.b().decided("inbound_untouched")?;
    ensure!(town.talk("stranger", to)?.worked(), "nothing denies it");
    ensure!(town.world.b().decided("inbound_untouched")? > untouched, "the daemon had it");
    Ok(())
}

#[test]
fn a_label_that_changes_reaches_what_is_open() -> Result<()> {
    let mut town = town()?;
    let closed = json!({
        "selector": {"matchLabels": {"tier": "closed"}},
        "action": "DENY",
        "rules": [{"from": [{"source": {"namespaces": ["shop"]}}]}],
    });
    let strict =
        json!({"selector": {"matchLabels": {"tier": "closed"}}, "mtls": {"mode": "STRICT"}});
    let mesh = &mut town.world.mesh;
    mesh.put("security.istio.io/v1", "PeerAuthentication", "stock", "closed", strict);
    town.policy("stock", &closed)?;
    let to = town.to("store", PORT);
    let front = town.open("front", to)?;
    let mut batch = town.open("batch", to)?;
    // Settled for a PERMISSIVE port, and nothing has been asked about it yet but whether to wait.
    let heard = town.store.connections();
    let mut silent = town.world.pod("stranger").inside(|| client::connect(to))?;
    eventually(Duration::from_secs(10), "that the application is reached", || {
        town.store.connections() > heard
    })?;
    let mark = town.world.b().mark();
    let store = town.world.pod("store").clone();
    let addresses = [(store.v4(0).ip(), "v4"), (store.v6(0).ip(), "v6")];
    for (address, family) in addresses {
        let labels =
            json!({"app": "store", "tier": "closed", "security.istio.io/tlsMode": "istio"});
        let spec = json!({"address": address, "labels": labels, "serviceAccount": "store"});
        let name = format!("store-{family}");
        town.world.mesh.put("networking.istio.io/v1", "WorkloadEntry", "stock", &name, spec);
    }
    let since = Instant::now();
    town.world.mesh.write()?;
    check_ended("the policy selects its server now", front, since)?;
    let line = town.logged(mark, "front")?;
    ensure!(line["authorization"]["policy"] == "AuthorizationPolicy stock/list", "{line}");
    ping(&mut batch, "nothing denies it")?;
    town.check_denied("front", PORT, "stock/list", &json!(0))?;
    // It speaks at last, in the clear, to what is STRICT now.
    let spoke = ping(&mut silent, "some stock");
    ensure!(spoke.is_err(), "plaintext under STRICT: the label came while it was silent");
    Ok(())
}

#[test]
fn an_application_never_hears_of_a_silent_client_that_policy_denies() -> Result<()> {
    let mut town = town()?;
    let rules = json!([{"from": [{"source": {"namespaces": ["shop"]}}]}]);
    town.policy("stock", &json!({"action": "ALLOW", "rules": rules}))?;
    let to = town.to("store", PORT);
    let heard = town.store.connections();
    // PERMISSIVE: a server that speaks first would greet it, once it has been silent for a while.
    let silent = town.world.pod("stranger").inside(|| client::connect(to))?;
    // What is tested is that time passes here, ten times what the daemon waits for.
    std::thread::sleep(Duration::from_secs(1));
    ensure!(town.store.connections() == heard, "the application was reached for it");
    drop(silent);
    // The same where policy allows it: the application is reached, and no byte was sent.
    town.without_policy("stock")?;
    let _silent = town.world.pod("stranger").inside(|| client::connect(to))?;
    eventually(Duration::from_secs(10), "that the application is reached", || {
        town.store.connections() > heard
    })
}

#[test]
fn policies_count_where_their_namespace_says_and_some_only_take_notes() -> Result<()> {
    let mut town = town()?;
    // Another namespace's: the clients', even for labels that only the store has.
    let everybody = json!({"action": "DENY", "rules": [{}]});
    town.policy("shop", &everybody)?;
    town.check_allowed("front", PORT)?;
    let mut selected = everybody.clone();
    selected["selector"] = json!({"matchLabels": {"app": "store"}});
    town.policy("shop", &selected)?;
    town.check_allowed("front", PORT)?;
    town.without_policy("shop")?;

    // The root namespace's counts everywhere, with a selector and without.
    for spec in [&everybody, &selected] {
        town.policy("istio-system", spec)?;
        for client in CLIENTS {
            town.check_denied(client, PORT, "istio-system/list", &json!(0))?;
        }
        let depot = town.talk("front", town.to("depot", PORT))?;
        ensure!(depot.worked() == spec.get("selector").is_some(), "the depot: {depot:?}");
    }
    town.without_policy("istio-system")?;

    // A dry run is evaluated and noted.
    let dry = ", annotations: {istio.io/dry-run: 'true'}";
    let deny = "{action: DENY, rules: [{from: [{source: {namespaces: [shop]}}]}]}";
    write(&town.world, "policy.yaml", &object("dry", dry, deny))?;
    let line = town.check_allowed("front", PORT)?;
    let noted = &line["authorization"]["dry_run"];
    ensure!(noted["policy"] == "AuthorizationPolicy stock/dry", "{line}");
    ensure!(noted["allowed"] == json!(false) && noted["rule"] == 0, "{line}");
    let line = town.check_allowed("batch", PORT)?;
    ensure!(line["authorization"].is_null(), "it has nothing to say of batch: {line}");
    ensure!(status(town.world.b(), "text")?.contains("DENY (dry run)"));

    // So is AUDIT.
    let audit = "{action: AUDIT, rules: [{from: [{source: {namespaces: [jobs]}}]}]}";
    write(&town.world, "policy.yaml", &object("audit", "", audit))?;
    let line = town.check_allowed("batch", PORT)?;
    let noted = &line["authorization"]["audit"];
    ensure!(noted["policy"] == "AuthorizationPolicy stock/audit" && noted["rule"] == 0, "{line}");
    let line = town.check_allowed("front", PORT)?;
    ensure!(line["authorization"].is_null(), "{line}");
    Ok(())
}

/// An AuthorizationPolicy of the store's namespace, as it is written in a file.
fn object(name: &str, annotations: &str, spec: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, \
         namespace: stock{annotations}}}\nspec: {spec}\n"
    )
}

#[test]
fn a_policy_that_cannot_be_enforced_denies_what_it_selects_and_nothing_else() -> Result<()> {
    let town = town()?;
    let mut depot = town.open("front", town.to("depot", PORT))?;
    let refused = [
        // Nobody asks an external authorizer.
        ("custom", "action: CUSTOM, provider: {name: ask}, rules: [{}]"),
        ("broken", "rules: [{from: [{source: {ipBlocks: [nonsense]}}]}]"),
        ("misspelt", "action: DENNY, rules: [{}]"),
    ];
    for (name, spec) in refused {
        let store = town.open("front", town.to("store", PORT))?;
        let mark = town.world.b().process.stderr.len();
        let spec = format!("{{selector: {{matchLabels: {{app: store}}}}, {spec}}}");
        write(&town.world, "policy.yaml", &object(name, "", &spec))?;
        check_ended(name, store, Instant::now())?;
        for client in CLIENTS {
            let policy = format!("stock/{name}");
            let line = town.check_denied(client, PORT, &policy, &Value::Null)?;
            let reason = line["authorization"]["reason"].as_str().unwrap_or_default();
            ensure!(reason.contains("what it selects is denied"), "{line}");
        }
        // It is said where an operator looks.
        town.world.b().said(mark, "the refusal", |line| {
            line.contains("policy.yaml:1") && line.contains(&format!("stock/{name}"))
        })?;
        let said: Value = serde_json::from_str(&status(town.world.b(), "json")?)?;
        let listed = said["config"]["refused"].as_array().context("config.refused")?;
        ensure!(!listed.is_empty(), "{said}");
        for one in listed {
            ensure!(one["kind"] == "AuthorizationPolicy" && one["name"] == name, "{one}");
            ensure!(one["namespace"] == "stock", "{one}");
            let file = one["file"].as_str().unwrap_or_default();
            ensure!(file.ends_with("/policy.yaml"), "{one}");
            ensure!(one["line"].as_u64().is_some_and(|line| line > 0), "{one}");
            ensure!(one["code"].as_str().is_some_and(|code| code.starts_with("E_")), "{one}");
            ensure!(one["message"].is_string(), "{one}");
            let instead = one["instead"].as_str().unwrap_or_default();
            let denied = "what it selects is denied";
            ensure!(name == "custom" || instead.contains(denied), "{one}");
            ensure!(name != "custom" || instead.contains("the object itself"), "{one}");
        }
        let text = status(town.world.b(), "text")?;
        ensure!(text.contains("policy.yaml:"), "{text}");
        let line = text.lines().find(|line| line.starts_with(&format!("stock/{name}")));
        let line = line.with_context(|| format!("no line of {name} in:\n{text}"))?;
        ensure!(line.contains("denie"), "{line}");
        // Nobody else has to suffer.
        let heard = town.depot.connections();
        ensure!(town.talk("batch", town.to("depot", PORT))?.worked(), "{name}");
        ensure!(town.depot.connections() == heard + 1);
        ping(&mut depot, name)?;
        changed(&town.world, || town.world.mesh.remove_file("policy.yaml"))?;
        town.check_allowed("stranger", PORT).with_context(|| name.to_owned())?;
    }
    Ok(())
}
