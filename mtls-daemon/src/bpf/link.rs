//! Links that outlive the daemon. aya pins and reopens them but cannot give one a new program:
//! those few calls are here.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

// bpf(2) commands and attach types, from linux/bpf.h.
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_SK_LOOKUP: u32 = 36;

#[repr(C)]
#[derive(Default)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

#[repr(C)]
#[derive(Default)]
struct ObjInfo {
    bpf_fd: u32,
    info_len: u32,
    info: u64,
}

/// The head of struct bpf_link_info with its `netns` part.
#[repr(C)]
#[derive(Default)]
struct NamespaceLinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    _padding: u32,
    netns_inode: u32,
    attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct ProgQuery {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    _padding: u32,
}

fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: every `T` above is the command's own part of union bpf_attr, and the kernel is told
    // its size; pointers inside it live in the caller's frame until the call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Opens what is pinned at `path`.
pub fn open_pinned(path: &Path) -> io::Result<OwnedFd> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    let mut attr = ObjGet { pathname: name.as_ptr() as u64, ..ObjGet::default() };
    let fd = bpf(BPF_OBJ_GET, &mut attr)?;
    // SAFETY: BPF_OBJ_GET returned a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Replaces the program of an attached link. ENOLINK: what it was attached to is gone.
pub fn update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdate {
        link_fd: link.as_raw_fd() as u32,
        new_prog_fd: program.as_raw_fd() as u32,
        ..LinkUpdate::default()
    };
    bpf(BPF_LINK_UPDATE, &mut attr).map(drop)
}

/// Ids of the sk_lookup programs attached to a network namespace, by whomever.
pub fn lookup_programs(namespace: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut ids = [0_u32; 64]; // the kernel allows no more on one namespace
    let mut attr = ProgQuery {
        target_fd: namespace.as_raw_fd() as u32,
        attach_type: BPF_SK_LOOKUP,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        ..ProgQuery::default()
    };
    bpf(BPF_PROG_QUERY, &mut attr)?;
    Ok(ids[..attr.prog_cnt as usize].to_vec())
}

/// Whether the network namespace of an sk_lookup link still exists.
pub fn namespace_lives(link: BorrowedFd<'_>) -> io::Result<bool> {
    let mut info = NamespaceLinkInfo::default();
    let mut attr = ObjInfo {
        bpf_fd: link.as_raw_fd() as u32,
        info_len: size_of::<NamespaceLinkInfo>() as u32,
        info: &raw mut info as u64,
    };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(info.netns_inode != 0)
}
