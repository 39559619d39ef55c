//! What the kernel programs decided, counted per CPU in `DECISIONS`.

/// Index in `DECISIONS`.
#[repr(u32)]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Decision {
    /// connect(): the daemon takes it.
    OutboundRedirected = 0,
    /// connect(): in the clear by policy, the application's own connection.
    OutboundUntouchedPolicy = 1,
    /// connect(): outside the mesh and its ranges.
    OutboundUntouchedOutside = 2,
    /// connect(): loopback, or an address of the workload itself.
    OutboundUntouchedLocal = 3,
    /// connect(): the destination is one of the daemon's own listeners.
    OutboundRefused = 4,
    /// connect(): a socket of the daemon's own.
    OutboundOwn = 5,
    /// SYN: given to the daemon's listener.
    InboundTaken = 6,
    /// SYN: left to the application by policy.
    InboundUntouched = 7,
    /// SYN: over `lo`: the daemon's connection to the application, or the workload itself.
    InboundLocal = 8,
    /// SYN: no listener stands (the daemon is down): dropped.
    InboundNoListener = 9,
    /// SYN: to an address that is not declared as the workload's: dropped.
    InboundUnknownAddress = 10,
    /// SYN: to a listener's own port, not redirected there: dropped.
    InboundRefused = 11,
    /// Handshake: `FLOWS` was full, so the connection will be reset.
    FlowLost = 12,
}

impl Decision {
    pub const COUNT: u32 = 13;

    pub const ALL: [Self; Self::COUNT as usize] = [
        Self::OutboundRedirected,
        Self::OutboundUntouchedPolicy,
        Self::OutboundUntouchedOutside,
        Self::OutboundUntouchedLocal,
        Self::OutboundRefused,
        Self::OutboundOwn,
        Self::InboundTaken,
        Self::InboundUntouched,
        Self::InboundLocal,
        Self::InboundNoListener,
        Self::InboundUnknownAddress,
        Self::InboundRefused,
        Self::FlowLost,
    ];

    /// Label value in metrics and `status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OutboundRedirected => "outbound_redirected",
            Self::OutboundUntouchedPolicy => "outbound_untouched_policy",
            Self::OutboundUntouchedOutside => "outbound_untouched_outside",
            Self::OutboundUntouchedLocal => "outbound_untouched_local",
            Self::OutboundRefused => "outbound_refused",
            Self::OutboundOwn => "outbound_own",
            Self::InboundTaken => "inbound_taken",
            Self::InboundUntouched => "inbound_untouched",
            Self::InboundLocal => "inbound_local",
            Self::InboundNoListener => "inbound_no_listener",
            Self::InboundUnknownAddress => "inbound_unknown_address",
            Self::InboundRefused => "inbound_refused",
            Self::FlowLost => "flow_lost",
        }
    }
}
