//! Configuration, as an operator writes it: a directory of YAML that daemons watch.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::bed::{Node, Pod};
use crate::yaml;

/// The objects of one configuration directory. Written as one file and renamed into place, so that
/// a change is one generation.
#[derive(Debug, Clone)]
pub struct Mesh {
    directory: PathBuf,
    /// By kind and `namespace/name`, so that writing an object again replaces it.
    objects: BTreeMap<(String, String), Value>,
}

/// How a service chooses what is behind it.
#[derive(Debug, Clone)]
pub struct Service<'a> {
    pub namespace: &'a str,
    pub name: &'a str,
    pub addresses: Vec<IpAddr>,
    /// Service port, its name, its protocol, the target port.
    pub ports: Vec<(u16, &'a str, &'a str, u16)>,
    /// Endpoints are the namespace's WorkloadEntries with these labels.
    pub selector: Value,
}

impl Mesh {
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), objects: BTreeMap::new() }
    }

    /// A copy of the objects for another directory: what one daemon alone is to believe.
    ///
    /// # Errors
    /// When the directory cannot be made.
    pub fn copy_for(&self, directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
        Ok(Self { directory: directory.to_owned(), objects: self.objects.clone() })
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Puts an object in place, replacing the one of that kind and name.
    pub fn put(
        &mut self,
        api: &str,
        kind: &str,
        namespace: &str,
        name: &str,
        spec: Value,
    ) -> &mut Self {
        let object = json!({
            "apiVersion": api,
            "kind": kind,
            "metadata": {"name": name, "namespace": namespace},
            "spec": spec,
        });
        self.objects.insert((kind.into(), format!("{namespace}/{name}")), object);
        self
    }

    /// Takes an object away.
    ///
    /// # Panics
    /// When it is not there: the test means another one.
    pub fn remove(&mut self, kind: &str, namespace: &str, name: &str) -> &mut Self {
        let gone = self.objects.remove(&(kind.into(), format!("{namespace}/{name}")));
        assert!(gone.is_some(), "there is no {kind} {namespace}/{name}");
        self
    }

    /// The objects that differ from those of `before`, as lines of YAML; those that are gone by name.
    pub fn changes_since(&self, before: &Self) -> Vec<String> {
        let gone = before.objects.keys().filter(|key| !self.objects.contains_key(key));
        let mut lines: Vec<String> =
            gone.map(|(kind, name)| format!("# deleted: {kind} {name}")).collect();
        for (key, object) in &self.objects {
            if before.objects.get(key) != Some(object) {
                lines.push("---".into());
                lines.extend(yaml::document(object).lines().map(str::to_owned));
            }
        }
        lines
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: &str) -> usize {
        self.objects.keys().filter(|(of, _)| of == kind).count()
    }

    /// A member of the mesh (`mtls`), or a known non-member: one WorkloadEntry an address.
    /// `labels` gets `app` and, for members, the label that says it speaks mTLS.
    pub fn workload(
        &mut self,
        pod: &Pod,
        namespace: &str,
        app: &str,
        service_account: &str,
        mtls: bool,
    ) -> Vec<String> {
        let mut labels = json!({"app": app});
        if mtls {
            labels["security.istio.io/tlsMode"] = json!("istio");
        }
        let v4 = pod.v4.map(|v4| (IpAddr::from(v4), "v4"));
        let v6 = pod.v6.map(|v6| (IpAddr::from(v6), "v6"));
        let mut names = Vec::new();
        for (address, family) in v4.into_iter().chain(v6) {
            let name = format!("{}-{family}", pod.name);
            let spec =
                json!({"address": address, "labels": labels, "serviceAccount": service_account});
            self.put("networking.istio.io/v1", "WorkloadEntry", namespace, &name, spec);
            names.push(name);
        }
        names
    }

    /// A member of the mesh that `node`'s daemon enrols.
    pub fn enrol(
        &mut self,
        node: &Node,
        pod: &Pod,
        namespace: &str,
        app: &str,
        service_account: &str,
    ) -> &mut Self {
        let entries = self.workload(pod, namespace, app, service_account, true);
        let spec = json!({
            "node": node.name,
            "networkNamespace": pod.netns,
            "workloadEntries": entries,
        });
        self.put("mtls-ebpf.dev/v1alpha1", "NodeWorkload", namespace, &pod.name, spec)
    }

    /// A service of the mesh, `<name>.<namespace>.svc.cluster.local`.
    pub fn service(&mut self, service: &Service<'_>) -> &mut Self {
        let Service { namespace, name, .. } = service;
        let ports: Vec<Value> = service
            .ports
            .iter()
            .map(|(number, name, protocol, target)| {
                json!({"number": number, "name": name, "protocol": protocol, "targetPort": target})
            })
            .collect();
        let spec = json!({
            "hosts": [format!("{name}.{namespace}.svc.cluster.local")],
            "addresses": service.addresses,
            "ports": ports,
            "location": "MESH_INTERNAL",
            "resolution": "STATIC",
            "workloadSelector": {"labels": service.selector},
        });
        self.put("networking.istio.io/v1", "ServiceEntry", namespace, name, spec)
    }

    /// A PeerAuthentication for the workloads of `namespace` with label `app`.
    pub fn mode(&mut self, namespace: &str, app: &str, mode: &str) -> &mut Self {
        let spec = json!({"selector": {"matchLabels": {"app": app}}, "mtls": {"mode": mode}});
        self.put("security.istio.io/v1", "PeerAuthentication", namespace, app, spec)
    }

    /// The same, with a mode of its own for some target ports.
    pub fn mode_by_port(
        &mut self,
        namespace: &str,
        app: &str,
        mode: &str,
        ports: &[(u16, &str)],
    ) -> &mut Self {
        let ports: BTreeMap<String, Value> =
            ports.iter().map(|(port, mode)| (port.to_string(), json!({"mode": mode}))).collect();
        let spec = json!({
            "selector": {"matchLabels": {"app": app}},
            "mtls": {"mode": mode},
            "portLevelMtls": ports,
        });
        self.put("security.istio.io/v1", "PeerAuthentication", namespace, app, spec)
    }

    /// The PeerAuthentication of a whole namespace; `istio-system` is the mesh.
    pub fn namespace_mode(&mut self, namespace: &str, mode: &str) -> &mut Self {
        let spec = json!({"mtls": {"mode": mode}});
        self.put("security.istio.io/v1", "PeerAuthentication", namespace, "default", spec)
    }

    /// A DestinationRule that fixes the client side's TLS mode.
    pub fn destination_rule(
        &mut self,
        namespace: &str,
        name: &str,
        host: &str,
        mode: &str,
    ) -> &mut Self {
        let spec = json!({"host": host, "trafficPolicy": {"tls": {"mode": mode}}});
        self.put("networking.istio.io/v1", "DestinationRule", namespace, name, spec)
    }

    /// Puts the objects in force: one file, replaced in one step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write(&self) -> Result<()> {
        let documents: Vec<String> = self.objects.values().map(yaml::document).collect();
        self.write_file("mesh.yaml", &documents.join("---\n"))
    }

    /// Puts a file of any content beside the objects, in one step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_file(&self, name: &str, text: &str) -> Result<()> {
        // The name does not end in .yaml until it is whole.
        let partial = self.directory.join(format!(".{name}.partial"));
        fs::write(&partial, text).with_context(|| format!("writing {}", partial.display()))?;
        fs::rename(&partial, self.directory.join(name)).context("renaming into place")
    }

    /// Takes a file away.
    ///
    /// # Errors
    /// When it is not there.
    pub fn remove_file(&self, name: &str) -> Result<()> {
        fs::remove_file(self.directory.join(name)).with_context(|| format!("removing {name}"))
    }
}
