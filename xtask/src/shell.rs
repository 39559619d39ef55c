//! Commands: run, shown when they fail, never through a shell.

use std::{
    ffi::OsStr,
    path::PathBuf,
    process::{Command, ExitCode, Stdio},
};

use anyhow::{Context, Result, bail};

/// One line to the person who waits.
pub fn say(message: impl std::fmt::Display) {
    eprintln!("xtask: {message}");
}

/// Runs a command with this process' terminal.
///
/// # Errors
/// When it cannot be started or does not end with 0; the message has the command line.
pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", line(command)))?;
    if !status.success() {
        bail!("`{}` failed: {status}", line(command));
    }
    Ok(())
}

/// Runs a command and returns what it wrote to its standard output.
///
/// # Errors
/// As [`run`]; the message ends with what the command wrote to its standard error.
pub fn output(command: &mut Command) -> Result<String> {
    let done = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start `{}`", line(command)))?;
    if !done.status.success() {
        bail!(
            "`{}` failed: {}: {}",
            line(command),
            done.status,
            String::from_utf8_lossy(&done.stderr).trim()
        );
    }
    Ok(String::from_utf8_lossy(&done.stdout).into_owned())
}

/// Runs a command that is the verb's purpose: its exit code becomes ours.
///
/// # Errors
/// When it cannot be started, or a signal ended it.
pub fn become_command(command: &mut Command) -> Result<ExitCode> {
    let status = command.status().with_context(|| format!("cannot start `{}`", line(command)))?;
    match status.code() {
        Some(code) => Ok(u8::try_from(code).map_or(ExitCode::FAILURE, ExitCode::from)),
        None => bail!("`{}` was ended: {status}", line(command)),
    }
}

/// Whether a program of this name can be found.
pub fn has(program: &str) -> bool {
    which(program).is_some()
}

/// Where a program is: on the PATH, or where an administrator's programs are, which a user's PATH lacks.
pub fn which(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|folder| folder.join(program))
        .find(|path| path.is_file())
}

fn line(command: &Command) -> String {
    std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect::<Vec<_>>()
        .join(" ")
}
