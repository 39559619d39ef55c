use std::fs;
use std::time::{Duration, Instant};

use super::*;
use crate::identity::TrustDomain;

fn settings() -> MeshSettings {
    MeshSettings {
        trust_domain: TrustDomain::parse("cluster.local").unwrap(),
        trust_domain_aliases: vec![],
        root_namespace: "istio-system".into(),
        enable_auto_mtls: true,
        mesh_ranges: vec![],
    }
}

fn entry(name: &str, last: u8) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: WorkloadEntry\n\
         metadata: {{name: {name}}}\nspec: {{address: 10.0.0.{last}}}\n"
    )
}

fn names(loaded: &Loaded) -> Vec<String> {
    loaded.snapshot.workloads().iter().map(|w| w.key()).collect()
}

#[test]
fn yaml_files_of_the_directory_are_read_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    fs::write(path.join("a.yaml"), entry("a", 1) + "---\n" + &entry("b", 2)).unwrap();
    fs::write(path.join("c.yml"), entry("c", 3)).unwrap();
    fs::write(path.join(".hidden.yaml"), "nonsense").unwrap();
    fs::write(path.join("notes.txt"), "nonsense").unwrap();
    fs::create_dir(path.join("sub.yaml")).unwrap();
    let elsewhere = tempfile::tempdir().unwrap();
    fs::write(elsewhere.path().join("x"), entry("d", 4)).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("x"), path.join("d.yaml")).unwrap();
    let loaded = load(path, "n", &settings(), 7).unwrap();
    assert_eq!(names(&loaded), ["default/a", "default/b", "default/c", "default/d"]);
    assert_eq!(loaded.snapshot.generation, 7);
}

#[test]
fn every_bad_file_is_named_and_nothing_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), entry("a", 1)).unwrap();
    fs::write(dir.path().join("b.yaml"), entry("b", 2).replace("10.0.0.2", "x")).unwrap();
    fs::write(dir.path().join("c.yaml"), "a: [1\n").unwrap();
    let error = load(dir.path(), "n", &settings(), 1).unwrap_err();
    let text = error.to_string();
    assert!(text.contains("b.yaml:4: WorkloadEntry default/b: spec.address"), "{text}");
    assert!(text.contains("c.yaml:") && text.contains("[E_YAML_SYNTAX]"), "{text}");
    assert_eq!(error.0.len(), 2);
}

#[test]
fn oversized_files_fifos_and_missing_directories_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), "#".repeat(2000)).unwrap();
    let limits = Limits { max_bytes: 1000, ..Limits::default() };
    let error = load_within(dir.path(), "n", &settings(), 1, &limits).unwrap_err();
    assert_eq!(error.0[0].code, Code::FileSize);
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    nix::unistd::mkfifo(&dir.path().join("b.yaml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let error = load(dir.path(), "n", &settings(), 1).unwrap_err();
    assert_eq!(error.0[0].code, Code::FileRead);
    let error = load(&dir.path().join("none"), "n", &settings(), 1).unwrap_err();
    assert_eq!(error.0[0].code, Code::FileRead);
}

/// Runs `change` on a watched directory and gives back what the watch told, with the time it took.
async fn after(
    dir: &std::path::Path,
    change: impl FnOnce(),
) -> (Result<Loaded, LoadError>, Duration) {
    let loaded = load(dir, "n", &settings(), 1).unwrap();
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let watching = tokio::spawn(watch(
        dir.to_owned(),
        "n".to_owned(),
        settings(),
        1,
        loaded.fingerprint,
        move |result| drop(tell.send(result)),
    ));
    // The watch stands once its first look found nothing new.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(told.try_recv().is_err(), "nothing has changed yet");
    let start = Instant::now();
    change();
    let result = tokio::time::timeout(Duration::from_secs(10), told.recv()).await;
    let result = result.expect("the change is told").expect("the watch goes on");
    watching.abort();
    (result, start.elapsed())
}

#[tokio::test]
async fn a_change_is_told_within_a_second() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, entry("a", 1)).unwrap();
    let (result, took) = after(dir.path(), || fs::write(&file, entry("b", 2)).unwrap()).await;
    let loaded = result.unwrap();
    assert_eq!(names(&loaded), ["default/b"]);
    assert_eq!(loaded.snapshot.generation, 2);
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn a_bad_change_is_told_as_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, entry("a", 1)).unwrap();
    let (result, took) = after(dir.path(), || fs::write(&file, "kind: x\n").unwrap()).await;
    assert_eq!(result.unwrap_err().0[0].field, "apiVersion");
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn a_swapped_link_is_a_change_as_in_a_mounted_config_map() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path();
    for (version, last) in [("..v1", 1), ("..v2", 2)] {
        fs::create_dir(path.join(version)).unwrap();
        fs::write(path.join(version).join("a.yaml"), entry("a", last)).unwrap();
    }
    let link = std::os::unix::fs::symlink::<&str, std::path::PathBuf>;
    link("..v1", path.join("..data")).unwrap();
    link("..data/a.yaml", path.join("a.yaml")).unwrap();
    let swap = || {
        link("..v2", path.join("..data_tmp")).unwrap();
        fs::rename(path.join("..data_tmp"), path.join("..data")).unwrap();
    };
    let (result, took) = after(path, swap).await;
    let loaded = result.unwrap();
    assert!(loaded.snapshot.workload_at("10.0.0.2".parse().unwrap()).is_some());
    assert!(took < Duration::from_secs(1), "{took:?}");
}
