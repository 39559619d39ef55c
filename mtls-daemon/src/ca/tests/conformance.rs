//! Rows of expected answers that lie elsewhere, when `MTLS_CONFORMANCE` names their folder: there, a
//! row that cannot be run or disagrees fails the test.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use super::*;
use crate::ca::allow::{self, NotAllowed};
use crate::ca::authenticate::token_review::{Account, PodReference};

fn cases(file: &str) -> Option<Vec<Value>> {
    let folder = PathBuf::from(std::env::var_os("MTLS_CONFORMANCE")?);
    let text = std::fs::read(folder.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let top: Value = serde_json::from_slice(&text).unwrap();
    let cases = top["cases"].as_array().unwrap_or_else(|| panic!("{file} has no cases")).clone();
    assert!(!cases.is_empty(), "{file} has no rows");
    Some(cases)
}

fn row<T: for<'de> Deserialize<'de>>(case: &Value) -> T {
    T::deserialize(case).unwrap_or_else(|error| panic!("{}: {error}", case["name"]))
}

#[test]
fn bearer_tokens() {
    #[derive(Deserialize)]
    struct Row {
        name: String,
        metadata: Option<BTreeMap<String, Vec<String>>>,
        expected_token: Option<String>,
    }
    let Some(cases) = cases("ca-bearer.json") else { return };
    for Row { name, metadata, expected_token } in cases.iter().map(row) {
        let values = metadata
            .as_ref()
            .map(|it| it.get("authorization").into_iter().flatten().map(String::as_str));
        assert_eq!(bearer::token(values).ok(), expected_token.as_deref(), "{name}");
    }
    eprintln!("ca-bearer: {} rows", cases.len());
}

#[test]
fn token_reviews() {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Expected {
        pod_namespace: String,
        pod_service_account: String,
        #[serde(rename = "podUID")]
        pod_uid: Option<String>,
        pod_name: Option<String>,
    }
    let Some(cases) = cases("ca-tokenreview.json") else { return };
    for case in &cases {
        let name = &case["name"];
        let found = token_review::account(&case["token_review"], token_review::AUDIENCE);
        let expected: Option<Expected> = row(&case["expected"]);
        let Some(expected) = expected else {
            assert!(case["error"].is_string(), "{name}: neither an answer nor an error");
            assert!(found.is_err(), "{name}: {found:?}");
            continue;
        };
        let pod = expected.pod_name.zip(expected.pod_uid);
        let pod = pod.map(|(name, uid)| PodReference { name, uid });
        let (namespace, account) = (expected.pod_namespace, expected.pod_service_account);
        assert_eq!(found, Ok(Account { namespace, name: account, pod }), "{name}");
    }
    eprintln!("ca-tokenreview: {} rows", cases.len());
}

#[derive(Deserialize)]
struct KnownPod {
    name: String,
    namespace: String,
    account: String,
    uid: String,
    node: String,
}

struct Known(Vec<KnownPod>);

impl Pods for Known {
    fn pod(&self, namespace: &str, name: &str) -> Option<Pod> {
        let pod = self.0.iter().find(|it| it.namespace == namespace && it.name == name)?;
        Some(Pod {
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            service_account: pod.account.clone(),
            node: pod.node.clone(),
        })
    }

    fn runs_on(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        self.0
            .iter()
            .any(|it| it.node == node && it.namespace == namespace && it.account == service_account)
    }
}

#[test]
fn impersonation() {
    #[derive(Deserialize)]
    struct Caller {
        pod_name: String,
        pod_namespace: String,
        pod_uid: String,
        service_account: String,
    }
    #[derive(Deserialize)]
    struct Row {
        name: String,
        trusted_accounts: Vec<String>,
        caller: Option<Caller>,
        requested_identity: Option<String>,
        pods: Vec<KnownPod>,
        allowed: bool,
        error_contains: Option<String>,
    }
    let Some(cases) = cases("ca-impersonation.json") else { return };
    for row in cases.iter().map(row::<Row>) {
        let trusted = row.trusted_accounts.iter().map(|account| {
            let (namespace, name) = account.split_once('/').expect("namespace/name");
            AccountName { namespace: namespace.to_owned(), name: name.to_owned() }
        });
        // A caller without a pod is what a token without one makes.
        let caller = row.caller.map_or_else(
            || Account { namespace: String::new(), name: String::new(), pod: None },
            |it| Account {
                namespace: it.pod_namespace,
                name: it.service_account,
                pod: Some(PodReference { name: it.pod_name, uid: it.pod_uid }),
            },
        );
        let requested = row.requested_identity.unwrap_or_default();
        let (trusted, pods) = (trusted.collect(), Known(row.pods));
        let answer = allow::account(&trusted, &caller, &requested, &domain(), Some(&pods));
        assert_eq!(answer.is_ok(), row.allowed, "{}: {answer:?}", row.name);
        let (Err(error), Some(why)) = (answer, row.error_contains) else { continue };
        let same = match error {
            NotAllowed::NotTrusted { .. } => why.contains("not allowed to impersonate"),
            NotAllowed::NotOnNode { .. } => why.contains("no instances"),
            NotAllowed::Identity { .. } => why.contains("failed to validate"),
            NotAllowed::PodUnknown { .. } => why.contains("not found"),
            NotAllowed::PodUid { .. } => why.contains("UID"),
            NotAllowed::PodAccount { .. } => why.contains("ServiceAccount"),
            _ => false,
        };
        assert!(same, "{}: {error:?}, where {why:?} is expected", row.name);
    }
    eprintln!("ca-impersonation: {} rows", cases.len());
}
