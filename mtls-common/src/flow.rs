//! Addresses, and the record that carries an original destination from the application's socket
//! to the daemon's.

/// An IP address in network byte order, IPv4 in its IPv4-mapped form: one key for both families.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Address {
    pub words: [u32; 4],
}

const MAPPED: u32 = 0xffff_u32.to_be();

impl Address {
    /// `ip` in network byte order, as the kernel hands it out.
    #[inline(always)]
    pub const fn from_v4(ip: u32) -> Self {
        Self { words: [0, 0, MAPPED, ip] }
    }

    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        self.words[0] == 0 && self.words[1] == 0 && self.words[2] == MAPPED
    }

    pub const LOOPBACK4: Self = Self::from_v4(u32::from_ne_bytes([127, 0, 0, 1]));
    pub const LOOPBACK6: Self = Self { words: [0, 0, 0, 1_u32.to_be()] };

    /// 127.0.0.0/8, ::1, and the unspecified addresses, which connect() takes for loopback.
    #[inline(always)]
    pub const fn is_loopback(&self) -> bool {
        if self.words[0] != 0 || self.words[1] != 0 {
            return false;
        }
        match self.words[2] {
            MAPPED => self.words[3] == 0 || self.words[3].to_ne_bytes()[0] == 127,
            0 => self.words[3] == 0 || self.words[3] == 1_u32.to_be(),
            _ => false,
        }
    }
}

impl From<core::net::IpAddr> for Address {
    fn from(address: core::net::IpAddr) -> Self {
        let octets = match address {
            core::net::IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            core::net::IpAddr::V6(v6) => v6.octets(),
        };
        let mut words = [0; 4];
        for (word, bytes) in words.iter_mut().zip(octets.chunks_exact(4)) {
            *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Self { words }
    }
}

impl From<Address> for core::net::IpAddr {
    fn from(address: Address) -> Self {
        let mut octets = [0; 16];
        for (bytes, word) in octets.chunks_exact_mut(4).zip(address.words) {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        core::net::Ipv6Addr::from(octets).to_canonical()
    }
}

/// The address and port that an application asked for.
///
/// Lives in `CLIENT_DESTINATION` (the application's socket), crosses in `FLOWS`, ends in
/// `ACCEPTED_DESTINATION` (the daemon's accepted socket), where the daemon reads it by descriptor.
/// On a socket of the daemon's own, towards an application, it is the client that the application is to
/// see: it crosses in `APPLICATION_LEGS`.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Destination {
    pub address: Address,
    /// Host byte order.
    pub port: u16,
    /// Zero once the socket was connected to something that is not redirected.
    pub valid: u16,
}

/// A redirected connection, or one of the daemon's from loopback to an application, during its handshake,
/// seen alike from both of its ends.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct FlowKey {
    pub netns_cookie: u64,
    pub client: Address,
    pub server: Address,
    /// Host byte order, like `server_port`.
    pub client_port: u16,
    pub server_port: u16,
    pub _padding: u32,
}

/// What a [`FlowKey`] leads to.
#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Flow {
    /// CLOCK_MONOTONIC, nanoseconds: the daemon removes what never became a connection.
    pub created: u64,
    pub destination: Destination,
    pub _padding: u32,
}

const _: () = {
    assert!(size_of::<Address>() == 16 && align_of::<Address>() == 4);
    assert!(size_of::<Destination>() == 20);
    assert!(size_of::<FlowKey>() == 48 && align_of::<FlowKey>() == 8);
    assert!(size_of::<Flow>() == 32);
};
