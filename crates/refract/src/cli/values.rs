//! Values of flags: one text in, the value or "it takes …" out. Pure.
//!
//! Takes the text as it was given; says what a flag takes where it makes no sense. It knows neither
//! the flag's name nor where the text came from.

use std::{path::PathBuf, time::Duration};

use refract_core::{Network, Places, policy::PLACES_LIMIT};
use refract_kernel::xtables::{ChainName, Protocol};

use super::{Networks, Protocols};
use crate::{
    ports::Ports,
    rule_keeper::{RuleKeeperConfig, RuleSets},
};

pub(super) fn protocols(text: &str) -> Result<Protocols, String> {
    let mut protocols = Protocols { tcp: false, udp: false };
    for part in text.split(',') {
        match part.trim() {
            "tcp" => protocols.tcp = true,
            "udp" => protocols.udp = true,
            _ => return Err("it takes tcp, udp or tcp,udp".to_owned()),
        }
    }
    Ok(protocols)
}

pub(super) fn ports(text: &str) -> Result<Ports, String> {
    let ports: Ports = text.parse().map_err(|reason| {
        format!("{reason}; it takes ports and ranges from 1 to 65535, such as 443,8443,2000-2010")
    })?;
    // Every packet to the host passes every rule, so a plan has an end.
    let config = RuleKeeperConfig {
        sets: RuleSets::Lasting,
        protocols: vec![Protocol::Tcp],
        ports: ports.ranges().to_vec(),
        strip_mptcp: false,
        chain: ChainName::default(),
        iptables: None,
    };
    config.plan().map_err(|_| {
        "it takes as many as fit into 16 rules: 240 ports, or 112 ranges; join them into ranges"
            .to_owned()
    })?;
    Ok(ports)
}

pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let takes = "it takes a duration greater than zero, such as 500ms, 5s, 1m or 1h30m";
    let parsed: jiff::SignedDuration = text.parse().map_err(|_| takes.to_owned())?;
    match Duration::try_from(parsed) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(takes.to_owned()),
    }
}

pub(super) fn window(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        window if window <= LONGEST_WINDOW => Ok(window),
        _ => Err("it takes a duration of at most 24h".to_owned()),
    }
}

/// A user silent for this long is forgotten, so no window can be longer.
const LONGEST_WINDOW: Duration = Duration::from_hours(24);

pub(super) fn path(text: &str) -> Result<PathBuf, String> {
    if text.trim().is_empty() {
        Err("it takes the path of a file".to_owned())
    } else {
        Ok(text.into())
    }
}

pub(super) fn record_path(text: &str) -> Result<PathBuf, String> {
    match text {
        "-" => Err("it takes the path of a file; the same facts are on stderr anyway".to_owned()),
        _ => path(text),
    }
}

pub(super) fn state_path(text: &str) -> Result<PathBuf, String> {
    match text {
        "-" => Err("it takes the path of a file".to_owned()),
        _ => path(text),
    }
}

pub(super) fn chain(text: &str) -> Result<ChainName, String> {
    text.parse()
}

pub(super) fn binary(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    // The names of its siblings (ip6tables…, …-restore) follow from its own.
    let is_named_so =
        path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"iptables"));
    if path.is_absolute() && is_named_so {
        Ok(path)
    } else {
        Err("it takes the absolute path of a program whose name begins with iptables, such as \
             /usr/sbin/iptables-legacy"
            .to_owned())
    }
}

fn whole_number(text: &str, least: u32, most: u32) -> Result<u32, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if plain && (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("it takes a whole number from {least} to {most}")),
    }
}

/// Places as `--limit` and the policy file take them.
pub(crate) fn limit(text: &str) -> Result<Places, String> {
    if text == "unlimited" {
        return Ok(Places::Unlimited);
    }
    let takes = || {
        format!("it takes a whole number from 1 to {PLACES_LIMIT}, or unlimited (0 means the same)")
    };
    let most = u32::try_from(PLACES_LIMIT).unwrap_or(u32::MAX);
    match whole_number(text, 0, most).map_err(|_| takes())? {
        0 => Ok(Places::Unlimited),
        places => usize::try_from(places).map(Places::Limited).map_err(|_| takes()),
    }
}

pub(super) fn max_bans(text: &str) -> Result<u32, String> {
    whole_number(text, 0, 1_000_000)
}

pub(super) fn user_bans(text: &str) -> Result<u32, String> {
    whole_number(text, 0, 1_000)
}

pub(super) fn shared_source_users(text: &str) -> Result<u32, String> {
    whole_number(text, 2, 10_000)
}

pub(super) fn cdn_sources(text: &str) -> Result<u32, String> {
    whole_number(text, 2, 1_000)
}

pub(super) fn ipv4_prefix(text: &str) -> Result<u8, String> {
    prefix(text, 8, 32)
}

pub(super) fn ipv6_prefix(text: &str) -> Result<u8, String> {
    prefix(text, 16, 128)
}

fn prefix(text: &str, least: u8, most: u8) -> Result<u8, String> {
    let bits = whole_number(text, least.into(), most.into())?;
    u8::try_from(bits).map_err(|error| error.to_string())
}

pub(super) fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" | "" => Ok(false),
        _ => Err("it takes true or false".to_owned()),
    }
}

pub(super) fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "" => Err("it takes on or off".to_owned()),
        _ => switch(text).map_err(|_| "it takes on or off".to_owned()),
    }
}

pub(super) fn networks(text: &str) -> Result<Networks, String> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(str::parse)
        .collect::<Result<Vec<Network>, _>>()
        .map(Networks)
        .map_err(|error| format!("{error}; it takes networks such as 10.0.0.0/8,2001:db8::/32"))
}
