//! What verdicts rest on with `--evidence=auto`: the word of the log until somebody listens on a
//! protected port, the evidence of the kernel from then on, and for good.
//!
//! The witnesses are the daemon's words, its counters and its records.

#![cfg(test)]

#[expect(dead_code, reason = "each test uses its part of the lab")]
mod support;

use std::net::{IpAddr, Ipv4Addr};

use support::{
    Result,
    access_log::accepted_line,
    evidence::{BOUND, Device},
    lab::Lab,
    peer::Server,
    sidecar::Sidecar,
    stage::AT,
};

const FIRST: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 11));
const SECOND: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 12));

#[test]
fn the_word_of_the_log_does_until_somebody_listens_and_never_again() -> Result<()> {
    let mut lab = Lab::new()?;
    let clients = lab.add_client(&["198.51.100.11", "198.51.100.12"])?;
    let sidecar = Sidecar::start(&lab, &["--evidence=auto", "--window=1s"])?;
    // Nobody is connected from where the log says that somebody is.
    let claims = |user: &str| -> String {
        (1..=2).map(|last| accepted_line(format!("198.18.0.{last}:40001"), user)).collect()
    };
    let record = sidecar.take_one(claims("alice"))?;
    assert_eq!((record.user.as_str(), record.evidence.as_str()), ("alice", "log"));
    let status = sidecar.status()?;
    assert_eq!(status.lines_with("evidence=log").len(), 1, "{status}");
    let so_far = sidecar.records()?.len();

    let server = Server::echo(lab.server(), 443)?;
    sidecar.wait_for_message("from now on no line of the log is enough for a verdict on TCP")?;
    let assert_does_not = |user, unverified| -> Result<()> {
        sidecar.log().write(claims(user).as_bytes())?;
        let status = sidecar.settled()?;
        assert_eq!(status.lines_with("evidence=kernel").len(), 1, "{status}");
        assert_eq!(status.count("unverified")?, unverified, "{status}");
        assert_eq!(sidecar.records()?.len(), so_far, "{}", sidecar.trouble("something was done"));
        Ok(())
    };
    assert_does_not("bob", 2)?;
    drop(server);
    // Each time that there are lines it could be seen that nobody listens.
    assert_does_not("carol", 4)?;

    let _server = Server::echo(lab.server(), 443)?;
    let mut senior = Device::new(&sidecar, &clients, FIRST, AT, "dave");
    let mut junior = Device::new(&sidecar, &clients, SECOND, AT, "dave");
    let (record, _) = sidecar.until_cut(&mut senior, &mut junior, BOUND)?;
    assert_eq!((record.source, record.evidence), (SECOND.to_string(), "kernel".to_owned()));
    assert_eq!(sidecar.messages().matches("from now on no line of the log").count(), 1);
    Ok(())
}
