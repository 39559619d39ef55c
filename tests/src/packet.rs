//! Ethernet frames that hold TCP, and the byte streams they make up.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::{Result, ensure};

/// One TCP segment as it crossed the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub sequence: u32,
    pub syn: bool,
    pub fin: bool,
    pub reset: bool,
    pub payload: Vec<u8>,
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

/// The TCP segment in an Ethernet frame, if it holds one.
pub fn segment(frame: &[u8]) -> Option<Segment> {
    let packet = frame.get(14..)?;
    let (source, destination, tcp): (IpAddr, IpAddr, &[u8]) = match word(frame, 12)? {
        0x0800 => {
            let header = usize::from(packet.first()? & 0xf) * 4;
            let total = usize::from(word(packet, 2)?);
            // A segment of 64 KiB and more (offloaded) says 0.
            let end = if total == 0 { packet.len() } else { total.min(packet.len()) };
            let address = |at: usize| -> Option<IpAddr> {
                let octets: [u8; 4] = packet.get(at..at + 4)?.try_into().ok()?;
                Some(Ipv4Addr::from(octets).into())
            };
            (*packet.get(9)? == 6).then_some(())?;
            (address(12)?, address(16)?, packet.get(header..end)?)
        }
        0x86dd => {
            let length = usize::from(word(packet, 4)?);
            let end = if length == 0 { packet.len() } else { (40 + length).min(packet.len()) };
            let address = |at: usize| -> Option<IpAddr> {
                let octets: [u8; 16] = packet.get(at..at + 16)?.try_into().ok()?;
                Some(Ipv6Addr::from(octets).into())
            };
            (*packet.get(6)? == 6).then_some(())?;
            (address(8)?, address(24)?, packet.get(40..end)?)
        }
        _ => return None,
    };
    let offset = usize::from(tcp.get(12)? >> 4) * 4;
    let flags = *tcp.get(13)?;
    Some(Segment {
        source: (source, word(tcp, 0)?).into(),
        destination: (destination, word(tcp, 2)?).into(),
        sequence: u32::from_be_bytes(tcp.get(4..8)?.try_into().ok()?),
        syn: flags & 0x02 != 0,
        fin: flags & 0x01 != 0,
        reset: flags & 0x04 != 0,
        payload: tcp.get(offset..)?.to_vec(),
    })
}

/// One direction of one connection.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stream {
    /// Sequence number of byte 0.
    start: u32,
    segments: BTreeMap<u32, Vec<u8>>,
    pub fin: bool,
    pub reset: bool,
}

impl Stream {
    fn take(&mut self, segment: &Segment) {
        if segment.syn {
            // Data in a SYN (TCP fast open) follows the SYN's own number.
            self.start = segment.sequence.wrapping_add(1);
        }
        self.fin |= segment.fin;
        self.reset |= segment.reset;
        if segment.payload.is_empty() {
            return;
        }
        let syn = u32::from(segment.syn);
        let offset = segment.sequence.wrapping_add(syn).wrapping_sub(self.start);
        // A keepalive's byte lies before what was sent.
        if offset > u32::MAX / 2 {
            return;
        }
        let held = self.segments.entry(offset).or_default();
        if held.len() < segment.payload.len() {
            held.clone_from(&segment.payload);
        }
    }

    /// The bytes in order.
    ///
    /// # Errors
    /// When the capture misses some: nothing can then be said about what was not sent.
    pub fn bytes(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        for (offset, payload) in &self.segments {
            let offset = *offset as usize;
            ensure!(offset <= bytes.len(), "the capture misses bytes {}..{offset}", bytes.len());
            if let Some(fresh) = payload.get(bytes.len() - offset..) {
                bytes.extend_from_slice(fresh);
            }
        }
        Ok(bytes)
    }
}

/// One TCP connection, as it was seen from its first SYN on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    pub client: SocketAddr,
    pub server: SocketAddr,
    pub to_server: Stream,
    pub to_client: Stream,
}

impl Flow {
    /// Both directions hold `needle` nowhere, or one does.
    ///
    /// # Errors
    /// When the capture is incomplete.
    pub fn holds(&self, needle: &[u8]) -> Result<bool> {
        let both = [self.to_server.bytes()?, self.to_client.bytes()?];
        Ok(both.iter().any(|bytes| contains(bytes, needle)))
    }
}

pub(crate) fn contains(bytes: &[u8], needle: &[u8]) -> bool {
    bytes.windows(needle.len()).any(|window| window == needle)
}

/// Flows being put together from segments, in the order of their first SYN.
#[derive(Debug, Default, Clone)]
pub struct Flows {
    flows: Vec<Flow>,
    open: BTreeMap<(SocketAddr, SocketAddr), usize>,
}

impl Flows {
    pub fn take(&mut self, segment: &Segment) {
        let (from, to) = (segment.source, segment.destination);
        let back = self.open.get(&(to, from)).copied();
        let index = match (back, self.open.get(&(from, to)).copied()) {
            (Some(index), _) => index,
            (None, Some(index)) if !segment.syn || !self.reused(index, segment) => index,
            _ => {
                let flow = Flow {
                    client: from,
                    server: to,
                    to_server: Stream::default(),
                    to_client: Stream::default(),
                };
                self.flows.push(flow);
                self.open.insert((from, to), self.flows.len() - 1);
                self.flows.len() - 1
            }
        };
        let flow = &mut self.flows[index];
        let stream = if flow.client == from { &mut flow.to_server } else { &mut flow.to_client };
        stream.take(segment);
    }

    /// A SYN on a known 4-tuple is a new connection unless it repeats the old one's.
    fn reused(&self, index: usize, segment: &Segment) -> bool {
        self.flows[index].to_server.start != segment.sequence.wrapping_add(1)
    }

    pub fn all(&self) -> &[Flow] {
        &self.flows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seg(from: u16, to: u16, sequence: u32, syn: bool, payload: &str) -> Segment {
        let at = |port| (Ipv4Addr::LOCALHOST, port).into();
        Segment {
            source: at(from),
            destination: at(to),
            sequence,
            syn,
            fin: false,
            reset: false,
            payload: payload.as_bytes().to_vec(),
        }
    }

    #[test]
    fn segments_out_of_order_and_repeated_make_one_stream() -> Result<()> {
        let mut flows = Flows::default();
        for (sequence, syn, payload) in
            [(u32::MAX, true, ""), (3, false, "def"), (0, false, "abc"), (1, false, "bcd")]
        {
            flows.take(&seg(1, 2, sequence, syn, payload));
        }
        flows.take(&seg(2, 1, 9, true, ""));
        flows.take(&seg(2, 1, 10, false, "back"));
        let [flow] = flows.all() else { panic!("{flows:?}") };
        assert_eq!(flow.to_server.bytes()?, b"abcdef");
        assert!(flow.holds(b"back")? && !flow.holds(b"bcx")?);
        Ok(())
    }

    #[test]
    fn a_gap_is_an_error_and_a_reused_tuple_is_a_new_flow() -> Result<()> {
        let mut flows = Flows::default();
        flows.take(&seg(1, 2, 0, true, ""));
        flows.take(&seg(1, 2, 5, false, "x"));
        assert!(flows.all()[0].to_server.bytes().is_err());
        flows.take(&seg(1, 2, 700, true, ""));
        flows.take(&seg(1, 2, 701, false, "y"));
        assert_eq!(flows.all()[1].to_server.bytes()?, b"y");
        Ok(())
    }
}
