//! What an enrolled namespace needs so that the application sees its clients' own addresses: the
//! daemon's connections to the application carry a mark, the application's answers inherit it, and
//! marked packets stay on `lo`. No iptables.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::Path;

use mtls_common::names::{MARK, RULE_PRIORITY, TABLE};
use netlink_packet_core::ErrorMessage;
use rtnetlink::packet_route::route::{RouteScope, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use rtnetlink::{Handle, IpVersion, LinkUnspec, RouteMessageBuilder};

use super::Namespace;
use crate::bpf::Features;

const LOOPBACK_INTERFACE: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("{what} in {namespace}: {error}")]
    Io { what: String, namespace: String, error: io::Error },
    #[error("{what} in {namespace}: {error}")]
    Netlink { what: &'static str, namespace: String, error: rtnetlink::Error },
    #[error(
        "net.ipv4.conf.{interface}.route_localnet is on in {namespace}: packets from outside may have loopback addresses there, \
         and on this kernel (before Linux 5.17: no ingress_ifindex in sk_lookup) those are how the daemon knows its own connections \
         to the application. Set it to 0"
    )]
    RouteLocalnet { namespace: String, interface: String },
}

/// Sysctls, relative to /proc/sys/net, that make marked connections answer on `lo`. Without the
/// first the SYN-ACK leaves through the pod's interface; without the others the reset of a closed
/// application port does, and the daemon waits for a timeout instead of a refusal. Their order is
/// the order of bits in [`Prepared::changed`].
const SYSCTLS: [&str; 3] = ["ipv4/tcp_fwmark_accept", "ipv4/fwmark_reflect", "ipv6/fwmark_reflect"];

/// What was found and done in a namespace.
#[derive(Debug, Clone, Copy)]
pub struct Prepared {
    pub ipv6: bool,
    /// Which of the sysctls were off before: one bit each.
    pub changed: u32,
}

/// Prepares `namespace`. Safe to repeat. Where the daemon's connections to the application come from
/// loopback (`node::leg`) they need neither marks nor routes, but the kernel's word that nothing else
/// comes from there.
pub fn prepare(namespace: &Namespace, features: Features) -> Result<Prepared, SetupError> {
    inside(namespace, |name| {
        let ipv6 = has_ipv6();
        if !features.ingress_ifindex {
            refuse_loopback_from_outside(name)?;
            netlink(name, async |handle, failed| {
                set_lo_up(&handle).await.map_err(failed("set lo up"))
            })?;
            return Ok(Prepared { ipv6, changed: 0 });
        }
        let mut changed = 0;
        for (bit, sysctl) in SYSCTLS.iter().enumerate() {
            if (ipv6 || !sysctl.starts_with("ipv6/")) && set(name, sysctl, "1")? {
                changed |= 1 << bit;
            }
        }
        netlink(name, async |handle, failed| {
            set_lo_up(&handle).await.map_err(failed("set lo up"))?;
            for version in versions(ipv6) {
                add_route(&handle, &version).await.map_err(failed("add the local route"))?;
                add_rule(&handle, &version).await.map_err(failed("add the rule"))?;
            }
            Ok(())
        })?;
        Ok(Prepared { ipv6, changed })
    })
}

/// Takes back what [`prepare`] did; `changed` is what it returned when it was first called.
pub fn restore(namespace: &Namespace, changed: u32) -> Result<(), SetupError> {
    inside(namespace, |name| {
        let ipv6 = has_ipv6();
        netlink(name, async |handle, failed| {
            for version in versions(ipv6) {
                delete_rules(&handle, version).await.map_err(failed("delete the rule"))?;
            }
            for version in versions(ipv6) {
                let removed = handle.route().del(local_route(&version)).execute().await;
                tolerate(removed, libc::ESRCH).map_err(failed("delete the local route"))?;
            }
            Ok(())
        })?;
        for (bit, sysctl) in SYSCTLS.iter().enumerate() {
            if changed & (1 << bit) != 0 {
                set(name, sysctl, "0")?;
            }
        }
        Ok(())
    })
}

/// With `route_localnet`, an interface takes in packets from and to loopback addresses (over IPv4; over
/// IPv6 the kernel has no such thing).
fn refuse_loopback_from_outside(namespace: &str) -> Result<(), SetupError> {
    let failed = |error| SetupError::Io {
        what: "read the interfaces' settings".into(),
        namespace: namespace.to_owned(),
        error,
    };
    for interface in std::fs::read_dir("/proc/sys/net/ipv4/conf").map_err(failed)? {
        let interface = interface.map_err(failed)?;
        let on =
            std::fs::read_to_string(interface.path().join("route_localnet")).map_err(failed)?;
        // Packets that arrive on lo itself come from within.
        if interface.file_name() != "lo" && on.trim() != "0" {
            return Err(SetupError::RouteLocalnet {
                namespace: namespace.to_owned(),
                interface: interface.file_name().to_string_lossy().into_owned(),
            });
        }
    }
    Ok(())
}

async fn set_lo_up(handle: &Handle) -> Result<(), rtnetlink::Error> {
    let up = LinkUnspec::new_with_index(LOOPBACK_INTERFACE).up().build();
    handle.link().set(up).execute().await
}

/// Returns whether it had another value.
fn set(namespace: &str, sysctl: &str, value: &str) -> Result<bool, SetupError> {
    let path = Path::new("/proc/sys/net").join(sysctl);
    let failed = |error| SetupError::Io {
        what: format!("set {sysctl}"),
        namespace: namespace.to_owned(),
        error,
    };
    if std::fs::read_to_string(&path).map_err(failed)?.trim() == value {
        return Ok(false);
    }
    std::fs::write(&path, value).map_err(failed)?;
    Ok(true)
}

fn inside<T: Send>(
    namespace: &Namespace,
    work: impl FnOnce(&String) -> Result<T, SetupError> + Send,
) -> Result<T, SetupError> {
    let name = namespace.path().display().to_string();
    namespace.run_apart(|| work(&name)).map_err(|error| SetupError::Io {
        what: "enter the network namespace".into(),
        namespace: name.clone(),
        error,
    })?
}

/// False when IPv6 is compiled out or switched off for `lo`.
fn has_ipv6() -> bool {
    std::fs::read_to_string("/proc/sys/net/ipv6/conf/lo/disable_ipv6")
        .is_ok_and(|value| value.trim() == "0")
}

fn versions(ipv6: bool) -> Vec<IpVersion> {
    if ipv6 { vec![IpVersion::V4, IpVersion::V6] } else { vec![IpVersion::V4] }
}

/// Runs `work` with a netlink handle of the current namespace, to its end.
fn netlink<F>(namespace: &str, work: F) -> Result<(), SetupError>
where
    F: AsyncFnOnce(
        Handle,
        &dyn Fn(&'static str) -> Box<dyn Fn(rtnetlink::Error) -> SetupError>,
    ) -> Result<(), SetupError>,
{
    let io = |error| SetupError::Io {
        what: "open netlink".into(),
        namespace: namespace.to_owned(),
        error,
    };
    let failed = |what: &'static str| -> Box<dyn Fn(rtnetlink::Error) -> SetupError> {
        let namespace = namespace.to_owned();
        Box::new(move |error| SetupError::Netlink { what, namespace: namespace.clone(), error })
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().map_err(io)?;
    runtime.block_on(async {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(io)?;
        let connection = tokio::spawn(connection);
        let result = work(handle, &failed).await;
        connection.abort();
        result
    })
}

fn local_route(version: &IpVersion) -> rtnetlink::packet_route::route::RouteMessage {
    match version {
        IpVersion::V4 => RouteMessageBuilder::<Ipv4Addr>::new()
            .table_id(TABLE)
            .kind(RouteType::Local)
            .scope(RouteScope::Host)
            .output_interface(LOOPBACK_INTERFACE)
            .destination_prefix(Ipv4Addr::UNSPECIFIED, 0)
            .build(),
        IpVersion::V6 => RouteMessageBuilder::<Ipv6Addr>::new()
            .table_id(TABLE)
            .kind(RouteType::Local)
            .output_interface(LOOPBACK_INTERFACE)
            .destination_prefix(Ipv6Addr::UNSPECIFIED, 0)
            .build(),
    }
}

async fn add_route(handle: &Handle, version: &IpVersion) -> Result<(), rtnetlink::Error> {
    handle.route().add(local_route(version)).replace().execute().await
}

async fn add_rule(handle: &Handle, version: &IpVersion) -> Result<(), rtnetlink::Error> {
    let rule = handle
        .rule()
        .add()
        .table_id(TABLE)
        .priority(RULE_PRIORITY)
        .fw_mark(MARK)
        .action(RuleAction::ToTable);
    let added = match version {
        IpVersion::V4 => rule.v4().execute().await,
        IpVersion::V6 => rule.v6().execute().await,
    };
    tolerate(added, libc::EEXIST)
}

async fn delete_rules(handle: &Handle, version: IpVersion) -> Result<(), rtnetlink::Error> {
    use futures_util::TryStreamExt;
    let rules: Vec<RuleMessage> = handle.rule().get(version).execute().try_collect().await?;
    for rule in rules {
        let ours = rule.attributes.contains(&RuleAttribute::FwMark(MARK))
            && rule.attributes.contains(&RuleAttribute::Table(TABLE));
        if ours {
            tolerate(handle.rule().del(rule).execute().await, libc::ENOENT)?;
        }
    }
    Ok(())
}

/// An error that says that the wanted state is there already is none.
fn tolerate(
    result: Result<(), rtnetlink::Error>,
    errno: libc::c_int,
) -> Result<(), rtnetlink::Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(ErrorMessage { code: Some(code), .. }))
            if code.get() == -errno =>
        {
            Ok(())
        }
        other => other,
    }
}
