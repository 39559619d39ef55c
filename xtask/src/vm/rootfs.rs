//! A guest's file system: busybox as its first program and shell, the payload's programs and the tools
//! that they call, the libraries of all of these, and the kernel's modules. Nothing else.

use std::{
    collections::hash_map::DefaultHasher,
    fs::{self, File},
    hash::{Hash, Hasher},
    io::{self, BufWriter, ErrorKind, Write},
    os::unix::fs::PermissionsExt,
    path::{Component, Path, PathBuf},
    process::Command,
    time::SystemTime,
};

use anyhow::{Context, Result, bail};

use super::{cpio::Archive, installed, kernels::Kernel, payload::Payload};
use crate::{
    shell::{output, which},
    workspace::Workspace,
};

/// Called by the demo, the tests and the daemon; the rest of a system is busybox.
const TOOLS: &[&str] = &[
    "curl",
    "openssl",
    "ip",
    "ss",
    "nsenter",
    "unshare",
    "setpriv",
    "sysctl",
    "mount",
    "umount",
    "redis-server",
    "redis-cli",
    "nginx",
];

/// Configuration that those read.
const SETTINGS: &[&str] = &[
    "/etc/ssl/openssl.cnf",
    "/etc/ssl/certs/ca-certificates.crt",
    "/usr/lib/ssl/openssl.cnf",
    "/etc/iproute2",
    "/etc/protocols",
    "/etc/services",
];

/// Writes the initramfs for one kernel and returns its path.
///
/// # Errors
/// When a program or one of its libraries is missing.
pub fn write(
    workspace: &Workspace,
    kernel: &Kernel,
    payload: &Payload,
    with: &[PathBuf],
) -> Result<PathBuf> {
    let folder = scratch(workspace)?;
    let mut root = Archive::default();
    root.console();
    for path in [
        "/proc",
        "/sys",
        "/dev",
        "/tmp",
        "/run",
        "/root",
        "/var/lib",
        "/var/tmp",
        "/etc",
        "/usr/bin",
        "/usr/sbin",
        "/usr/lib",
    ] {
        root.folder(path);
    }
    for (link, target) in [
        ("/bin", "usr/bin"),
        ("/sbin", "usr/sbin"),
        ("/lib", "usr/lib"),
        ("/lib64", "usr/lib64"),
        ("/var/run", "/run"),
    ] {
        root.link(link, target);
    }
    root.folder("/usr/lib64");
    let busybox =
        which("busybox").context("there is no busybox: the package busybox-static has it")?;
    root.file("/busybox/busybox", 0o755, busybox);
    root.link("/usr/bin/sh", "/busybox/busybox");
    root.text(
        "/etc/passwd",
        0o644,
        "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    );
    root.text("/etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n");
    root.text("/etc/hosts", 0o644, "127.0.0.1 localhost\n::1 localhost\n");
    root.text("/etc/nsswitch.conf", 0o644, "passwd: files\ngroup: files\nhosts: files\n");

    let mut tree = HostTree { root: &mut root, stripped: &folder };
    for tool in TOOLS {
        tree.program(&which(tool).with_context(|| format!("there is no {tool} on this machine"))?)?;
    }
    for program in &payload.programs {
        tree.program(program)?;
    }
    for setting in SETTINGS.iter().map(Path::new).filter(|it| it.exists()) {
        tree.path(setting)?;
    }
    for path in &payload.data {
        tree.path(&std::path::absolute(path)?)?;
    }
    for path in with {
        let path = std::path::absolute(path)?;
        let metadata = fs::metadata(&path).with_context(|| path.display().to_string())?;
        match metadata.is_file() && metadata.permissions().mode() & 0o111 != 0 {
            true => tree.program(&path)?,
            false => tree.path(&path)?,
        }
    }
    for file in installed::files(&payload.packages)? {
        tree.path(&file)?;
    }
    tree.data_of(&payload.folder)?;
    for path in &payload.folders {
        root.folder(path);
    }
    root.folder(&payload.folder);
    root.folder("/modules");
    if let Some(modules) = &kernel.modules {
        for module in fs::read_dir(modules)? {
            let module = module?;
            root.file(Path::new("/modules").join(module.file_name()), 0o644, module.path());
        }
    }
    root.text("/init", 0o755, init(kernel, payload));

    let image = folder.join(format!("{}-{}.cpio", kernel.version, std::process::id()));
    let mut out = BufWriter::new(File::create(&image)?);
    root.write(&mut out)?;
    out.flush()?;
    Ok(image)
}

/// Where guests' files are made.
///
/// # Errors
/// When it cannot be made.
pub fn scratch(workspace: &Workspace) -> Result<PathBuf> {
    let folder = workspace.root().join("target/vm");
    fs::create_dir_all(&folder)?;
    sweep(&folder)?;
    Ok(folder)
}

/// Removes what interrupted runs left, and stripped programs that nobody has used for a day.
fn sweep(folder: &Path) -> Result<()> {
    for entry in fs::read_dir(folder)? {
        match sweep_one(&entry?.path()) {
            // Another run swept at the same moment, or was done with it.
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            swept => swept.with_context(|| folder.display().to_string())?,
        }
    }
    Ok(())
}

fn sweep_one(path: &Path) -> io::Result<()> {
    let owner =
        path.file_stem().and_then(|name| name.to_str()?.rsplit_once('-')).map(|(_, owner)| owner);
    let stale = match owner {
        Some(owner) => !Path::new("/proc").join(owner).exists(),
        None => fs::metadata(path)?.modified()?.elapsed().is_ok_and(|age| age.as_secs() > 86_400),
    };
    match stale {
        true if path.is_dir() => fs::remove_dir_all(path),
        true => fs::remove_file(path),
        false => Ok(()),
    }
}

/// The first program: sets the system up, runs the steps, tells each one's exit code on the second
/// serial port, and switches the machine off.
fn init(kernel: &Kernel, payload: &Payload) -> String {
    let mut script = String::from(
        "#!/busybox/busybox sh\n\
         export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/busybox HOME=/root TERM=dumb\n\
         /busybox/busybox mkdir -p /dev/pts /dev/shm\n\
         /busybox/busybox --install -s /busybox\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sys /sys\n\
         mount -t devtmpfs dev /dev\n\
         mkdir -p /dev/pts /dev/shm\n\
         mount -t devpts pts /dev/pts\n\
         mount -t tmpfs shm /dev/shm\n\
         chmod 1777 /tmp /var/tmp\n\
         mount -t tmpfs run /run\n\
         mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         mount -t tracefs tracefs /sys/kernel/tracing\n\
         hostname guest\n\
         for module in /modules/*.ko; do insmod \"$module\" 2>/dev/null; done\n\
         ip link set lo up\n\
         ulimit -n 65536\n",
    );
    for (name, value) in &payload.environment {
        script += &format!("export {name}={}\n", quoted(value));
    }
    // How a test knows that it runs in a guest, and in which.
    script += &format!("export MTLS_VM_KERNEL={}\n", quoted(&kernel.version));
    script += &format!("cd {}\n", quoted(&payload.folder.display().to_string()));
    for (number, step) in payload.steps.iter().enumerate() {
        let args: String = step.args.iter().map(|arg| format!(" {}", quoted(arg))).collect();
        let program = quoted(&step.program.display().to_string());
        // Through a pipe: programs that see a terminal colour what they write.
        script += &format!(
            "echo '== step {number}'\n\
             start=$(date +%s)\n\
             {{ {program}{args} </dev/null; \
             echo \"{number} $? $(($(date +%s) - start))\" >/dev/ttyS1; }} 2>&1 | cat\n"
        );
    }
    script += "echo end >/dev/ttyS1\nsync\npoweroff -f\n";
    script
}

fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

/// Copies of this machine's files, at the same paths, symbolic links as they are.
struct HostTree<'a> {
    root: &'a mut Archive,
    /// Where programs without their debug information are kept.
    stripped: &'a Path,
}

impl HostTree<'_> {
    /// A program and the libraries that it is linked to.
    fn program(&mut self, program: &Path) -> Result<()> {
        self.path(program)?;
        let real = program.canonicalize().with_context(|| program.display().to_string())?;
        // It fails for what is linked statically or is a script: that needs no libraries.
        let Ok(libraries) = output(Command::new("ldd").arg(&real)) else { return Ok(()) };
        for line in libraries.lines() {
            if line.contains("not found") {
                bail!("{}: {}", program.display(), line.trim());
            }
            if let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) {
                self.path(Path::new(library))?;
            }
        }
        if let Some(stripped) = self.without_debug_information(&real) {
            self.root.file(&real, 0o755, stripped);
        }
        Ok(())
    }

    /// A file or a folder with all that is in it; every symbolic link on the way to it.
    fn path(&mut self, path: &Path) -> Result<()> {
        let mut here = PathBuf::from("/");
        let mut components = path.components();
        while let Some(component) = components.next() {
            match component {
                Component::RootDir | Component::CurDir => continue,
                Component::ParentDir => {
                    here.pop();
                    continue;
                }
                _ => here.push(component),
            }
            let metadata =
                fs::symlink_metadata(&here).with_context(|| here.display().to_string())?;
            if metadata.is_symlink() {
                let target = fs::read_link(&here)?;
                if !self.root.contains(&here) {
                    self.root.link(&here, &target);
                }
                here.pop();
                return self.path(&here.join(target).join(components.as_path()));
            }
            if metadata.is_dir() {
                self.root.folder(&here);
            } else if !self.root.contains(&here) {
                self.root.file(&here, metadata.permissions().mode() & 0o777, &here);
            }
        }
        if here.is_dir() {
            for entry in fs::read_dir(&here)? {
                self.path(&entry?.path())?;
            }
        }
        Ok(())
    }

    /// What tests read beside their program: the tracked files of their package that are no source.
    fn data_of(&mut self, folder: &Path) -> Result<()> {
        let list = output(Command::new("git").arg("-C").arg(folder).args([
            "ls-files",
            "--cached",
            "--others",
            "--exclude-standard",
            ".",
        ]));
        // Not every payload starts in a repository.
        for file in list.unwrap_or_default().lines().filter(|file| !file.ends_with(".rs")) {
            let path = folder.join(file);
            if path.is_file() {
                self.path(&path)?;
            }
        }
        Ok(())
    }

    /// Debug information is most of a program, and a guest's files are in its memory.
    fn without_debug_information(&self, program: &Path) -> Option<PathBuf> {
        let metadata = fs::metadata(program).ok()?;
        if metadata.len() < 4 << 20 {
            return None;
        }
        let mut hasher = DefaultHasher::new();
        (program, metadata.modified().ok()?, metadata.len()).hash(&mut hasher);
        let name = format!("{:016x}", hasher.finish());
        let stripped = self.stripped.join(format!("{name}.stripped"));
        if let Ok(kept) = File::options().append(true).open(&stripped) {
            // In use: not to be swept.
            let _ = kept.set_modified(SystemTime::now());
            return Some(stripped);
        }
        // Whole or not at all: another run may look, or this one be ended.
        let next = self.stripped.join(format!("{name}-{}.tmp", std::process::id()));
        output(Command::new("objcopy").arg("--strip-debug").arg(program).arg(&next)).ok()?;
        fs::rename(&next, &stripped).ok()?;
        Some(stripped)
    }
}

#[cfg(test)]
mod tests {
    use super::quoted;

    #[test]
    fn an_argument_stays_one_argument() {
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
