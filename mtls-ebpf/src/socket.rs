//! Socket storage for every program type, and reads of context fields that the verifier accepts.

use core::ffi::c_void;
use core::marker::PhantomData;
use core::ptr;

use aya_ebpf::bindings::{BPF_SK_STORAGE_GET_F_CREATE, bpf_map_type, bpf_sock};
use aya_ebpf::helpers::generated::bpf_sk_storage_get;

/// BPF_F_CLONE: accepted sockets inherit their listener's entry.
pub const CLONE: usize = 1 << 9;

/// A socket-storage map. aya-ebpf's own takes a `SockAddrContext` only and has no flags; its fields
/// are the map definition that the loader reads from BTF, never dereferenced.
#[repr(C)]
pub struct SocketStorage<T, const FLAGS: usize> {
    r#type: *const [i32; bpf_map_type::BPF_MAP_TYPE_SK_STORAGE as usize],
    key: *const i32,
    value: *const T,
    max_entries: *const [i32; 0],
    map_flags: *const [i32; FLAGS],
    _value: PhantomData<T>,
}

// SAFETY: the pointers are placeholders for the loader; the kernel serialises access.
unsafe impl<T, const FLAGS: usize> Sync for SocketStorage<T, FLAGS> {}

impl<T, const FLAGS: usize> SocketStorage<T, FLAGS> {
    pub const fn new() -> Self {
        Self {
            r#type: ptr::null(),
            key: ptr::null(),
            value: ptr::null(),
            max_entries: ptr::null(),
            map_flags: ptr::null(),
            _value: PhantomData,
        }
    }

    /// The entry of `sk`, if it has one.
    #[inline(always)]
    pub fn get(&self, sk: *mut bpf_sock) -> Option<&mut T> {
        self.call(sk, ptr::null_mut(), 0)
    }

    /// Sets the entry of `sk`. False when the kernel has no memory for it.
    #[inline(always)]
    pub fn set(&self, sk: *mut bpf_sock, mut value: T) -> bool {
        match self.call(sk, &raw mut value, BPF_SK_STORAGE_GET_F_CREATE as u64) {
            Some(entry) => {
                *entry = value;
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    #[expect(clippy::mut_from_ref, reason = "the entry is the socket's, not the map definition's")]
    fn call(&self, sk: *mut bpf_sock, value: *mut T, flags: u64) -> Option<&mut T> {
        let map = ptr::from_ref(self).cast_mut().cast::<c_void>();
        // SAFETY: the verifier checks `sk` (a context's socket, tested for null) and the map; the
        // entry lives as long as the socket, which the running hook holds.
        unsafe { bpf_sk_storage_get(map, sk.cast(), value.cast(), flags).cast::<T>().as_mut() }
    }
}

/// Reads a context field. Volatile, for the compiler must not merge neighbouring loads: the
/// verifier allows each field at its own width only.
#[macro_export]
macro_rules! field {
    ($ctx:expr, $($path:tt)+) => {{
        let ctx = $ctx;
        // SAFETY: the verifier rewrites this into an access to the kernel's own structure.
        unsafe { core::ptr::read_volatile(&raw const (*ctx).$($path)+) }
    }};
}
