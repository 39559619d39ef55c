//! (to be written)

pub fn cleanup(_node: &str, _run_dir: &std::path::Path) -> anyhow::Result<&'static str> {
    anyhow::bail!("not written yet")
}
