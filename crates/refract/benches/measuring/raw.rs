//! The few netlink messages that the benchmarks need, written by hand over the plain socket.
//!
//! Apart from Refract's own rooms on purpose: the floor must not move when they do, and membership
//! is judged by code that is not under measurement.

use std::net::{Ipv4Addr, SocketAddrV4};

use refract_kernel::{
    Errno,
    ban::BanTarget,
    netlink::{Family, Socket},
    nftables::NftTable,
    wire::{NLM_F_ACK, Writer},
};

use crate::support::{LabError, Result, nft_table};

/// `NFNL_SUBSYS_IPSET << 8`, `linux/netfilter/nfnetlink.h`.
const IPSET: u16 = 0x0600;
/// `IPSET_CMD_ADD`, `linux/netfilter/ipset/ip_set.h`.
const IPSET_ADD: u16 = IPSET | 0x09;
/// `IPSET_CMD_TEST`.
const IPSET_TEST: u16 = IPSET | 0x0b;
/// `IPSET_PROTOCOL`.
const IPSET_PROTOCOL: u8 = 7;
/// `IPSET_ATTR_PROTOCOL`.
const ATTR_PROTOCOL: u16 = 1;
/// `IPSET_ATTR_SETNAME`.
const ATTR_SETNAME: u16 = 2;
/// `IPSET_ATTR_DATA`.
const ATTR_DATA: u16 = 7;
/// `IPSET_ATTR_IP`.
const ATTR_IP: u16 = 1;
/// `IPSET_ATTR_IPADDR_IPV4`.
const ATTR_IPV4: u16 = 1;
/// `NLA_F_NET_BYTEORDER`, `linux/netlink.h`.
const NET_BYTEORDER: u16 = 1 << 14;
/// `AF_INET`.
const AF_INET: u8 = 2;
/// `SOCK_DIAG_BY_FAMILY`, `linux/sock_diag.h`.
const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// `SOCK_DESTROY`.
const SOCK_DESTROY: u16 = 21;
/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// Where `inet_diag_msg.idiag_state` is, `linux/inet_diag.h`.
const STATE: usize = 1;
/// `1 << (INET_DIAG_INFO - 1)`, `linux/inet_diag.h`: with the connection's counters.
const WITH_COUNTERS: u8 = 1 << 1;
/// `TCP_LISTEN`, `net/tcp_states.h`.
const LISTEN: u8 = 10;
/// Where `inet_diag_msg.id.idiag_cookie` is, `linux/inet_diag.h`: four bytes of state, then ports,
/// addresses and the interface.
const COOKIE: std::ops::Range<usize> = 44..52;
/// `INET_DIAG_NOCOOKIE`.
const NO_COOKIE: [u8; 8] = [0xff; 8];

/// Asks whether addresses are in sets; those of a daemon that has nftables, by way of Refract's own
/// room, which is not what is measured then.
pub(crate) struct Membership {
    socket: Socket,
    request: Writer,
    table: Option<NftTable>,
}

impl Membership {
    /// Opens a socket in the namespace of the calling thread.
    pub(crate) fn open() -> Result<Self> {
        let socket =
            Socket::open(Family::Netfilter).map_err(LabError::while_trying("ask about sets"))?;
        let table = nft_table::is_under_test().then(NftTable::open_as_found).transpose();
        let table = table.map_err(LabError::while_trying("look into the table"))?;
        Ok(Self { socket, request: Writer::new(), table })
    }

    /// Whether `address` is in `set` (`ipset test SET ADDRESS`); no when there is no such set.
    pub(crate) fn has(&mut self, set: &str, address: Ipv4Addr) -> Result<bool> {
        if let Some(table) = self.table.as_mut().filter(|_| nft_table::has(set)) {
            let banned = table.banned(&[BanTarget::host(address.into())]);
            let banned = banned.map_err(LabError::while_trying("look into the table"))?;
            return Ok(banned.contains(&true));
        }
        let sequence = self.socket.next_sequence();
        write_member(&mut self.request, IPSET_TEST, sequence, set, address);
        match self.socket.acknowledged(&self.request) {
            Ok(Ok(())) => Ok(true),
            Ok(Err(Errno::IPSET_EXIST | Errno::NOENT)) => Ok(false),
            Ok(Err(error)) => Err(LabError::while_trying(format!("ask {set}"))(error)),
            Err(error) => Err(LabError::while_trying(format!("ask {set}"))(error)),
        }
    }
}

/// Adds to sets (`ipset add SET ADDRESS -exist`).
pub(crate) struct Bans {
    socket: Socket,
    request: Writer,
}

impl Bans {
    /// Opens a socket in the namespace of the calling thread.
    pub(crate) fn open() -> Result<Self> {
        let socket =
            Socket::open(Family::Netfilter).map_err(LabError::while_trying("add to sets"))?;
        Ok(Self { socket, request: Writer::new() })
    }

    /// Adds `address` to `set` with the set's own timeout.
    pub(crate) fn add(&mut self, set: &str, address: Ipv4Addr) -> Result<()> {
        let sequence = self.socket.next_sequence();
        write_member(&mut self.request, IPSET_ADD, sequence, set, address);
        let what = "add to the floor's set";
        self.socket
            .acknowledged(&self.request)
            .map_err(LabError::while_trying(what))?
            .map_err(LabError::while_trying(what))
    }
}

/// Destroys connections (`ss -K`).
pub(crate) struct Kills {
    socket: Socket,
    request: Writer,
}

impl Kills {
    /// Opens a socket in the namespace of the calling thread.
    pub(crate) fn open() -> Result<Self> {
        let socket = Socket::open(Family::SockDiag)
            .map_err(LabError::while_trying("look for connections"))?;
        Ok(Self { socket, request: Writer::new() })
    }

    /// Looks up exactly one connection with its counters (`ss -i`); no when there is none.
    pub(crate) fn look(&mut self, local: SocketAddrV4, peer: SocketAddrV4) -> Result<bool> {
        Ok(self.cookie(WITH_COUNTERS, local, peer)?.is_some())
    }

    /// Looks up exactly one connection and destroys what was found; no when there is none.
    pub(crate) fn kill(&mut self, local: SocketAddrV4, peer: SocketAddrV4) -> Result<bool> {
        let Some(cookie) = self.cookie(0, local, peer)? else { return Ok(false) };
        let what = format!("destroy the connection of {peer}");
        let sequence = self.socket.next_sequence();
        let destroy = (SOCK_DESTROY, NLM_F_ACK, 0);
        write_connection(&mut self.request, destroy, sequence, (local, peer), cookie);
        self.socket
            .acknowledged(&self.request)
            .map_err(LabError::while_trying(&what))?
            .map_err(LabError::while_trying(&what))?;
        Ok(true)
    }

    fn cookie(
        &mut self,
        extensions: u8,
        local: SocketAddrV4,
        peer: SocketAddrV4,
    ) -> Result<Option<[u8; 8]>> {
        let what = format!("look for the connection of {peer}");
        let sequence = self.socket.next_sequence();
        let look = (SOCK_DIAG_BY_FAMILY, 0, extensions);
        write_connection(&mut self.request, look, sequence, (local, peer), NO_COOKIE);
        let found = self
            .socket
            .answered(&self.request, |answer| {
                // Without a connection the lookup falls through to the listener, and so would the
                // destruction.
                let is_connection = answer.payload.get(STATE).is_some_and(|state| *state != LISTEN);
                let cookie = answer.payload.get(COOKIE)?.first_chunk::<8>().copied();
                cookie.filter(|_| is_connection)
            })
            .map_err(LabError::while_trying(what))?;
        // What the kernel refuses to find is not there.
        Ok(found.ok().flatten())
    }
}

fn write_member(writer: &mut Writer, kind: u16, sequence: u32, set: &str, address: Ipv4Addr) {
    writer.clear();
    writer.begin(kind, NLM_F_ACK, sequence);
    // struct nfgenmsg: family, version, resource.
    writer.put(&[AF_INET, 0, 0, 0]);
    writer.attribute(ATTR_PROTOCOL, &[IPSET_PROTOCOL]);
    writer.attribute_str(ATTR_SETNAME, set);
    let data = writer.begin_nest(ATTR_DATA);
    let ip = writer.begin_nest(ATTR_IP);
    writer.attribute(ATTR_IPV4 | NET_BYTEORDER, &address.octets());
    writer.end_nest(ip);
    writer.end_nest(data);
    writer.end();
}

/// struct `inet_diag_req_v2`, `linux/inet_diag.h`.
fn write_connection(
    writer: &mut Writer,
    (kind, flags, extensions): (u16, u16, u8),
    sequence: u32,
    (local, peer): (SocketAddrV4, SocketAddrV4),
    cookie: [u8; 8],
) {
    writer.clear();
    writer.begin(kind, flags, sequence);
    writer.put(&[AF_INET, TCP, extensions, 0]);
    // All states.
    writer.put(&u32::MAX.to_ne_bytes());
    writer.put(&local.port().to_be_bytes());
    writer.put(&peer.port().to_be_bytes());
    for address in [local.ip(), peer.ip()] {
        writer.put(&address.octets());
        writer.put(&[0; 12]);
    }
    // Any interface.
    writer.put(&[0; 4]);
    writer.put(&cookie);
    writer.end();
}
