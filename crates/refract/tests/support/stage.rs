//! Two hosts that own whole networks, and a server that echoes.
//!
//! Takes nothing; gives a lab in which a test may be any number of devices, and two of them that
//! share an account, by whom it is seen that a daemon is awake. It starts no daemon.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use super::{
    Result,
    evidence::{BOUND, Device},
    lab::{Host, Lab, SERVER_V4},
    peer::Server,
    sidecar::{Record, Sidecar},
};

/// The echo.
pub(crate) const AT: SocketAddr = SocketAddr::new(IpAddr::V4(SERVER_V4), 443);
/// How long two who share may stay, with a window of a second: a verdict takes one window, and a
/// machine that has much else to do some more.
pub(crate) const IN_TIME: Duration = Duration::from_secs(5);
/// Where the first of two who share is.
pub(crate) const SENIOR: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 3, 1));
/// Where the other one is.
pub(crate) const JUNIOR: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 18, 3, 2));

/// A server, its daemon not yet started, and those who come to it.
pub(crate) struct Stage {
    pub(crate) lab: Lab,
    /// Owns 198.18.0.0/16: honest people, and those who share.
    pub(crate) people: Host,
    /// Owns 198.19.0.0/16 and `2001:db8:f000::/48`: attackers, and whoever comes in numbers.
    pub(crate) crowd: Host,
    _echo: Server,
}

impl Stage {
    /// A new one, with an echo on port 443.
    pub(crate) fn new() -> Result<Self> {
        let mut lab = Lab::new()?;
        let people = lab.add_client(&["198.51.100.8"])?;
        lab.own_prefix(&people, "198.18.0.0/16")?;
        let crowd = lab.add_client(&["198.51.100.9", "2001:db8:9::2"])?;
        for prefix in ["198.19.0.0/16", "2001:db8:f000::/48"] {
            lab.own_prefix(&crowd, prefix)?;
        }
        let echo = Server::echo(lab.server(), 443)?;
        Ok(Self { lab, people, crowd, _echo: echo })
    }

    /// A device of `user`'s at one of the people's addresses, with nothing open yet.
    pub(crate) fn device<'a>(
        &'a self,
        sidecar: &'a Sidecar,
        source: IpAddr,
        user: &str,
    ) -> Device<'a> {
        Device::new(sidecar, &self.people, source, AT, user)
    }

    /// Two share an account, and the one who came later is cut in time; gives the record.
    pub(crate) fn sharers_are_cut(&self, sidecar: &Sidecar, user: &str) -> Result<Record> {
        let mut senior = self.device(sidecar, SENIOR, user);
        let mut junior = self.device(sidecar, JUNIOR, user);
        let (record, after) = sidecar.until_cut(&mut senior, &mut junior, BOUND)?;
        assert_eq!(
            record.source,
            JUNIOR.to_string(),
            "{}",
            sidecar.trouble("the wrong one was cut")
        );
        assert!(after < IN_TIME, "it took {after:?}");
        senior.browse()?;
        assert!(senior.resets <= sidecar.asked(&SENIOR.to_string())?, "reset without a question");
        Ok(record)
    }
}
