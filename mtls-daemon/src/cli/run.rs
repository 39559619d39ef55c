//! `mtls-daemon run`

use anyhow::Context;

use super::Failed;
use crate::config::{Config, RunArgs};
use crate::telemetry::logs;

pub(super) fn run(args: RunArgs) -> Result<(), Failed> {
    let config = Config::try_from(args)?;
    logs::init(config.log_format, &config.log_level).map_err(anyhow::Error::from)?;
    keep_keys_out_of_core_files()?;
    if !config.mesh.enable_auto_mtls {
        tracing::warn!(
            "auto mTLS is off: connections without a DestinationRule leave in the clear, whatever \
             their endpoint can do"
        );
    }
    // The main thread: configuration, identities, admin. Connections have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("cannot start the main thread's runtime")?;
    let result = runtime.block_on(crate::app::run(config));
    // What has to be written is. A name that is being looked up cannot be interrupted, and dropping
    // the runtime would wait for it.
    runtime.shutdown_background();
    result.map_err(|error| Failed::new(error.exit(), error))
}

/// The kernel then writes no core file of this process, and lets no other user trace it.
pub(super) fn keep_keys_out_of_core_files() -> Result<(), Failed> {
    nix::sys::prctl::set_dumpable(false).map_err(|error| {
        anyhow::anyhow!("a crash would leave private keys in a core file: prctl: {error}").into()
    })
}

#[cfg(test)]
mod tests {
    use crate::cli::Exit;

    #[test]
    fn an_impossible_setting_is_a_bad_configuration() {
        use clap::Parser;
        let deep = format!("/{}", "d".repeat(100));
        let arguments = ["mtls-daemon", "run", "--node", "n", "--run-dir", &deep];
        let cli = crate::cli::Cli::try_parse_from(arguments).expect("well formed");
        let failed = crate::cli::execute(cli).expect_err("the socket's path is too long");
        assert_eq!(failed.exit, Exit::Config);
        assert!(failed.to_string().contains("--run-dir"), "{failed}");
    }
}
