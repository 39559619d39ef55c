use std::fs;
use std::sync::Arc;
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
    let wrong = error.0.iter().filter(|error| error.code != Code::Refused);
    assert_eq!(wrong.count(), 2, "{text}");
}

#[test]
fn oversized_files_fifos_and_missing_directories_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), "#".repeat(2000)).unwrap();
    let limits = Limits { max_bytes: 1000, ..Limits::default() };
    let error =
        load_within(dir.path(), "n", &settings(), 1, &Names::default(), &limits).unwrap_err();
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
    let mut watched = Watched::start(dir).await;
    assert!(watched.told.try_recv().is_err(), "nothing has changed yet");
    let start = Instant::now();
    change();
    (watched.next().await, start.elapsed())
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
async fn a_bad_change_is_told_and_what_was_there_stays() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, entry("a", 1)).unwrap();
    let (result, took) = after(dir.path(), || fs::write(&file, "kind: x\n").unwrap()).await;
    let loaded = result.unwrap();
    assert_eq!(names(&loaded), ["default/a"]);
    assert!(loaded.errors.iter().any(|error| error.field == "apiVersion"), "{:?}", loaded.errors);
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[tokio::test]
async fn beside_a_bad_file_the_others_change_and_go() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("a.yaml"), entry("a", 1)).unwrap();
    fs::write(dir.path().join("b.yaml"), entry("b", 2)).unwrap();
    let mut watched = Watched::start(dir.path()).await;
    fs::write(dir.path().join("a.yaml"), "{").unwrap();
    assert_eq!(names(&watched.next().await.unwrap()), ["default/a", "default/b"]);
    fs::write(dir.path().join("b.yaml"), entry("c", 3)).unwrap();
    assert_eq!(names(&watched.next().await.unwrap()), ["default/a", "default/c"]);
    fs::remove_file(dir.path().join("a.yaml")).unwrap();
    let loaded = watched.next().await.unwrap();
    assert_eq!(names(&loaded), ["default/c"]);
    assert_eq!(loaded.errors, []);
}

#[tokio::test]
async fn a_file_beyond_all_bounds_costs_no_memory_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, entry("a", 1)).unwrap();
    let mut watched = Watched::start(dir.path()).await;
    // Sparse: 100 MB that nobody has to write.
    fs::File::options().write(true).open(&file).unwrap().set_len(100 << 20).unwrap();
    let loaded = watched.next().await.unwrap();
    assert_eq!(names(&loaded), ["default/a"]);
    assert_eq!(loaded.errors[0].code, Code::FileSize, "{:?}", loaded.errors);
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
    assert_eq!(names(&loaded), ["default/a"]);
    assert!(loaded.snapshot.workload_at("10.0.0.2".parse().unwrap()).is_some());
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn an_empty_file_is_refused_and_an_empty_directory_is_not() {
    let dir = tempfile::tempdir().unwrap();
    let loaded = load(dir.path(), "n", &settings(), 1).unwrap();
    assert_eq!(loaded.warnings[0].code, Code::WarnEmpty);
    let file = dir.path().join("a.yaml");
    for text in ["", "\n  \n", "# only a comment\n", "---\n---\n"] {
        fs::write(&file, text).unwrap();
        let error = load(dir.path(), "n", &settings(), 1).unwrap_err();
        assert_eq!(error.0[0].code, Code::FileEmpty, "{text:?}");
        assert!(error.to_string().contains("a.yaml: empty: still being written?"), "{error}");
    }
}

/// What a watch tells, from its first quiet look on.
struct Watched {
    told: tokio::sync::mpsc::UnboundedReceiver<Result<Loaded, LoadError>>,
    watching: tokio::task::JoinHandle<()>,
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.watching.abort();
    }
}

impl Watched {
    async fn start(dir: &std::path::Path) -> Self {
        let loaded = load(dir, "n", &settings(), 1).unwrap();
        let (tell, told) = tokio::sync::mpsc::unbounded_channel();
        let watching = tokio::spawn(watch(
            dir.to_owned(),
            "n".to_owned(),
            settings(),
            Arc::default(),
            1,
            loaded.fingerprint,
            loaded.accepted,
            move |result| drop(tell.send(result)),
        ));
        tokio::time::sleep(Duration::from_millis(400)).await;
        Self { told, watching }
    }

    async fn next(&mut self) -> Result<Loaded, LoadError> {
        let next = tokio::time::timeout(Duration::from_secs(10), self.told.recv()).await;
        next.expect("the change is told").expect("the watch goes on")
    }
}

async fn pause(milliseconds: u64) {
    tokio::time::sleep(Duration::from_millis(milliseconds)).await;
}

#[tokio::test]
async fn a_file_that_is_truncated_and_written_later_is_never_taken_half() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a.yaml");
    fs::write(&file, entry("a", 1) + "---\n" + &entry("b", 2)).unwrap();
    let mut watched = Watched::start(dir.path()).await;
    fs::write(&file, "").unwrap();
    pause(300).await;
    fs::write(&file, entry("c", 3) + "---\n" + &entry("d", 4)).unwrap();
    // The empty file may be told as refused before; nothing else may.
    let mut told = watched.next().await.unwrap();
    if let Some(error) = told.errors.first() {
        assert_eq!(error.code, Code::FileEmpty);
        assert_eq!(names(&told), ["default/a", "default/b"], "what was there stays");
        told = watched.next().await.unwrap();
    }
    assert_eq!(names(&told), ["default/c", "default/d"]);
}

#[tokio::test]
async fn nothing_is_read_while_a_writer_has_the_file_open() {
    use std::io::Write;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    fs::write(&path, entry("a", 1) + "---\n" + &entry("b", 2)).unwrap();
    let mut watched = Watched::start(dir.path()).await;
    let mut file = fs::File::create(&path).unwrap();
    pause(300).await;
    // A valid configuration, and only half of what is meant.
    file.write_all(entry("c", 3).as_bytes()).unwrap();
    pause(300).await;
    assert!(watched.told.try_recv().is_err(), "neither refused nor accepted meanwhile");
    file.write_all(format!("---\n{}", entry("d", 4)).as_bytes()).unwrap();
    drop(file);
    let start = Instant::now();
    assert_eq!(names(&watched.next().await.unwrap()), ["default/c", "default/d"]);
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test]
async fn a_burst_of_changes_is_taken_once_it_is_over() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("0.yaml"), entry("w0", 1)).unwrap();
    let mut watched = Watched::start(dir.path()).await;
    for number in 1..=20 {
        let text = entry(&format!("w{number}"), number + 1);
        fs::write(dir.path().join(format!("{number}.yaml")), text).unwrap();
        pause(30).await;
    }
    let loaded = watched.next().await.unwrap();
    assert_eq!((names(&loaded).len(), loaded.snapshot.generation), (21, 2));
    pause(400).await;
    assert!(watched.told.try_recv().is_err(), "one change");
}

#[tokio::test]
async fn the_nodes_last_workload_goes_only_when_it_stays_away() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("place.yaml");
    let text = "apiVersion: mtls-ebpf.dev/v1alpha1\nkind: NodeWorkload\nmetadata: {name: a}\n\
                spec: {networkNamespace: a, workloadEntries: [a]}\n";
    let member = entry("a", 1).replace("10.0.0.1", "10.0.0.1, serviceAccount: a");
    fs::write(dir.path().join("a.yaml"), &member).unwrap();
    fs::write(&place, text).unwrap();
    let mut watched = Watched::start(dir.path()).await;
    fs::remove_file(&place).unwrap();
    pause(600).await;
    fs::write(&place, text).unwrap();
    pause(600).await;
    assert!(watched.told.try_recv().is_err(), "away and back is no change");
    fs::remove_file(&place).unwrap();
    let start = Instant::now();
    assert!(watched.next().await.unwrap().snapshot.node_workloads().is_empty());
    assert!(start.elapsed() >= Duration::from_secs(1), "{:?}", start.elapsed());
}
