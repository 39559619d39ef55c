//! What is to be run inside a guest: the programs as cargo built them for this machine, each at its own
//! path, so that paths compiled into the tests hold.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};

use crate::{
    binaries::{self, Artifact, Binaries, Kind},
    build, ebpf, packages,
    shell::which,
    workspace::Workspace,
};

/// The tests that run applications of the distribution, which are put inside for them.
const WITH_APPLICATIONS: &str = "protocols";

const CONFORMANCE: &str = "MTLS_CONFORMANCE";

#[derive(Clone, Default)]
pub struct Payload {
    pub steps: Vec<Step>,
    /// Put inside with the libraries they need.
    pub programs: Vec<PathBuf>,
    /// Files and folders that they read.
    pub data: Vec<PathBuf>,
    /// Packages of this machine whose files they need.
    pub packages: Vec<&'static str>,
    /// Folders that are to exist.
    pub folders: Vec<PathBuf>,
    pub environment: Vec<(String, String)>,
    /// Where the steps start.
    pub folder: PathBuf,
    /// The daemon alone, for kernels on which it is to refuse. None: the steps run on every kernel.
    pub refusal: Option<Step>,
}

/// One command; all are run, also after a failure.
#[derive(Clone)]
pub struct Step {
    pub name: String,
    pub program: PathBuf,
    pub args: Vec<String>,
    pub expected: Expected,
}

/// What makes a step one that passed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    Success,
    /// And at least one test that ran, unless what ran was chosen by its name.
    Tests {
        all: bool,
    },
    /// The daemon does not start here, and names the feature that the kernel lacks.
    Refusal,
}

/// The daemon's exit code on a kernel that lacks a feature.
pub const REFUSED: i32 = 69;
/// With what its message names the feature.
pub const LACKS: &str = "this kernel lacks ";
/// Long enough for a refusal under emulation. A daemon that starts after all is ended, and has failed.
const REFUSAL_SECONDS: &str = "60";

impl Payload {
    pub fn demo(workspace: &Workspace, release: bool, args: &[String]) -> Result<Self> {
        let built = build::everything(workspace, release)?;
        let demo = built.tests_program("mtls-demo")?.to_owned();
        let mut payload = Self::around(workspace, &built)?;
        payload.step("demo", demo, args, Expected::Success);
        payload.refuses_below_floor(&built);
        Ok(payload)
    }

    pub fn daemon(workspace: &Workspace, release: bool, args: &[String]) -> Result<Self> {
        let built = build::everything(workspace, release)?;
        let mut args = args.to_vec();
        if args.first().is_none_or(|first| first.starts_with('-')) {
            args.insert(0, "run".to_owned());
        }
        let mut payload = Self::around(workspace, &built)?;
        payload.step("mtls-daemon", built.daemon.clone(), &args, Expected::Success);
        Ok(payload)
    }

    /// The integration tests of the package mtls-tests: one program for each file in tests/.
    ///
    /// # Errors
    /// When the build fails, or a name in `only` is none of theirs.
    pub fn tests(
        workspace: &Workspace,
        release: bool,
        only: &[String],
        args: &[String],
    ) -> Result<Self> {
        packages::ensure(packages::BUILD)?;
        ebpf::build(workspace)?;
        let built = Binaries::build(workspace, release)?;
        let mut cargo = workspace.cargo();
        cargo.args(["test", "--no-run", "--package", "mtls-tests", "--tests"]);
        if release {
            cargo.arg("--release");
        }
        let mut tests: Vec<Artifact> = binaries::executables(&mut cargo)?
            .into_iter()
            .filter(|it| it.kind == Kind::IntegrationTest)
            .collect();
        // Cargo tells them in the order in which it got done with them.
        tests.sort_by(|a, b| a.target.cmp(&b.target));
        if let Some(name) = only.iter().find(|name| !tests.iter().any(|test| test.target == **name))
        {
            bail!("there is no tests/tests/{name}.rs");
        }
        tests.retain(|test| only.is_empty() || only.contains(&test.target));
        if tests.is_empty() {
            bail!("the package mtls-tests has no integration tests");
        }
        let mut payload = Self::around(workspace, &built)?;
        // A client that needs as long for its first bytes is none that waits for the server's.
        payload.environment.push(("MTLS_DETECT_TIMEOUT".to_owned(), "1s".to_owned()));
        if tests.iter().any(|test| test.target == WITH_APPLICATIONS) {
            packages::ensure(packages::APPLICATIONS)?;
            payload.packages =
                packages::APPLICATIONS.iter().map(packages::Package::installed).collect();
        }
        for test in tests {
            let all = args.is_empty();
            payload.step(&test.target, test.executable, args, Expected::Tests { all });
        }
        // The policy model's conformance vectors, which tests judge by where they are.
        if let Some(folder) = std::env::var_os(CONFORMANCE) {
            let folder = PathBuf::from(folder);
            payload.environment.push((CONFORMANCE.to_owned(), folder.display().to_string()));
            payload.data.push(folder);
        }
        payload.refuses_below_floor(&built);
        Ok(payload)
    }

    pub fn command(args: &[String]) -> Result<Self> {
        let [program, rest @ ..] = args else { bail!("name a command after `--`") };
        let path = which(program).with_context(|| format!("there is no program {program}"))?;
        let mut payload = Self { folder: "/".into(), ..Self::default() };
        payload.step(program, path, rest, Expected::Success);
        Ok(payload)
    }

    fn around(workspace: &Workspace, built: &Binaries) -> Result<Self> {
        let folder = workspace.root().join("tests");
        let mut payload = Self { folder: folder.clone(), ..Self::default() };
        payload.programs = built.all().map(PathBuf::from).collect();
        payload.environment = built.environment();
        payload.environment.push(("CARGO_MANIFEST_DIR".to_owned(), folder.display().to_string()));
        payload.data.push(workspace.root().join("deploy/examples"));
        // CARGO_TARGET_TMPDIR, which tests have compiled in.
        let target =
            built.daemon.ancestors().nth(2).context("the daemon is in no target folder")?;
        payload.folders.push(target.join("tmp"));
        Ok(payload)
    }

    fn step(&mut self, name: &str, program: PathBuf, args: &[String], expected: Expected) {
        self.programs.push(program.clone());
        let (name, args) = (name.to_owned(), args.to_vec());
        self.steps.push(Step { name, program, args, expected });
    }

    fn refuses_below_floor(&mut self, built: &Binaries) {
        // The daemon's own default. Empty, it is a good configuration.
        self.folders.push("/etc/mtls-daemon/config.d".into());
        let daemon = built.daemon.display().to_string();
        self.refusal = Some(Step {
            name: "mtls-daemon run".to_owned(),
            program: "/busybox/timeout".into(),
            args: vec![REFUSAL_SECONDS.to_owned(), daemon, "run".to_owned()],
            expected: Expected::Refusal,
        });
    }

    /// The same guest for a kernel below the daemon's floor: whether it refuses there is the only step.
    /// None when the steps make sense on every kernel.
    pub fn below_floor(&self) -> Option<Self> {
        let refusal = self.refusal.clone()?;
        Some(Self { steps: vec![refusal], ..self.clone() })
    }
}
