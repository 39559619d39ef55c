//! The capabilities that the daemon cannot do without. Found missing at the start, they are one clear
//! error; found missing later, they would leave workloads in the clear one by one.

use std::io;

/// Numbers from linux/capability.h.
const CAP_NET_ADMIN: u32 = 12;
const CAP_SYS_ADMIN: u32 = 21;

/// Why the daemon may not do its work.
#[derive(Debug, thiserror::Error)]
pub enum PrivilegeError {
    #[error(
        "missing {0}: run as root, or give the daemon CAP_SYS_ADMIN (namespaces), CAP_NET_ADMIN (sockets, rules, \
         eBPF) and CAP_BPF"
    )]
    Missing(String),
    #[error("cannot read the process' capabilities: {0}")]
    Unreadable(io::Error),
}

/// Checks the effective capabilities of this process. Kernels that have CAP_BPF (39, Linux 5.8) take
/// CAP_SYS_ADMIN in its place, so that one is never missed on its own.
pub fn check() -> Result<(), PrivilegeError> {
    let status =
        std::fs::read_to_string("/proc/self/status").map_err(PrivilegeError::Unreadable)?;
    match missing(effective(&status).ok_or_else(|| {
        PrivilegeError::Unreadable(io::Error::other("no CapEff line in /proc/self/status"))
    })?) {
        None => Ok(()),
        Some(names) => Err(PrivilegeError::Missing(names)),
    }
}

/// proc(5): a hexadecimal mask.
fn effective(status: &str) -> Option<u64> {
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(mask.trim(), 16).ok()
}

fn missing(effective: u64) -> Option<String> {
    let has = |capability: u32| effective & (1 << capability) != 0;
    let mut names = Vec::new();
    if !has(CAP_NET_ADMIN) {
        names.push("CAP_NET_ADMIN");
    }
    if !has(CAP_SYS_ADMIN) {
        names.push("CAP_SYS_ADMIN");
        const CAP_BPF: u32 = 39;
        if !has(CAP_BPF) {
            names.push("CAP_BPF");
        }
    }
    (!names.is_empty()).then(|| names.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(missing(u64::MAX), None);
        assert_eq!(missing(0).as_deref(), Some("CAP_NET_ADMIN, CAP_SYS_ADMIN, CAP_BPF"));
        assert_eq!(missing(!(1 << 12)).as_deref(), Some("CAP_NET_ADMIN"));
        assert_eq!(missing(!(1 << 21)).as_deref(), Some("CAP_SYS_ADMIN"));
        assert_eq!(missing(!(1 << 39)), None);
    }

    #[test]
    fn the_mask_is_read_from_its_line() {
        let status = "Name:\tx\nCapPrm:\t0000000000000001\nCapEff:\t00000000a80425fb\n";
        assert_eq!(effective(status), Some(0xa804_25fb));
        assert_eq!(effective("Name:\tx\n"), None);
    }
}
