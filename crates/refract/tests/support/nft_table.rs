//! Second eyes on the other firewall: what `nft list table inet refract` shows.
//!
//! Takes a host and the name that a set has with ipset; gives what corresponds to it in the table, in
//! the words of `ipset list`, so that one test can be asked of either firewall. It judges nothing.

use serde_json::Value;

use super::{LabError, Result, lab::Host};

/// The name of the table.
pub(crate) const TABLE: &str = "inet refract";

/// The tests' own variable that chooses the firewall which daemons are started with.
const VARIABLE: &str = "REFRACT_TEST_FIREWALL";

/// Whether the tests are about nftables this time; else they are about iptables.
pub(crate) fn is_under_test() -> bool {
    match std::env::var(VARIABLE).as_deref() {
        Ok("nftables") => true,
        Err(_) | Ok("" | "iptables") => false,
        Ok(other) => panic!("{VARIABLE} is {other:?}: it takes iptables or nftables"),
    }
}

/// Whether `set` is one of Refract's that is in the table this time.
pub(crate) fn has(set: &str) -> bool {
    is_under_test() && set.starts_with("refract_")
}

/// What `--firewall` is to be.
pub(crate) fn firewall_under_test() -> &'static str {
    if is_under_test() { "nftables" } else { "iptables" }
}

/// Whether there is such a table.
pub(crate) fn exists(host: &Host) -> Result<bool> {
    let tables = host.output("nft", &["list", "tables"])?;
    Ok(tables.lines().any(|line| line == format!("table {TABLE}")))
}

/// The names of the sets of bans in the table.
pub(crate) fn set_names(host: &Host) -> Result<Vec<String>> {
    let sets = objects(host, "set")?;
    let names = sets.iter().filter_map(|set| set.get("name")?.as_str().map(str::to_owned));
    Ok(names.filter(|name| name.starts_with("banned_")).collect())
}

/// The members of what corresponds to `set`, as ipset would print them.
pub(crate) fn members(host: &Host, set: &str) -> Result<Vec<String>> {
    Ok(elements(host, set)?.into_iter().map(|(member, _)| member).collect())
}

/// The seconds that `member` has left.
pub(crate) fn seconds_left(host: &Host, set: &str, member: &str) -> Result<Option<u64>> {
    let found = elements(host, set)?.into_iter().find(|(found, _)| found == member);
    Ok(found.map(|(_, seconds)| seconds))
}

/// Adds a member as an operator would, for so many seconds.
pub(crate) fn add(host: &Host, set: &str, member: &str, seconds: u64) -> Result<()> {
    let name = set.trim_start_matches("refract_");
    let (name, key) = match member.split_once('/') {
        Some((address, prefix)) => {
            (format!("{}_{prefix}", name.replace("users", "networks")), address)
        }
        None => (name.to_owned(), member),
    };
    let script = format!("add element {TABLE} {name} {{ {key} timeout {seconds}s }}");
    host.output("nft", &[&script]).map(drop)
}

/// How many packets the rules have dropped that look up what corresponds to `set`.
pub(crate) fn packets_dropped(host: &Host, set: &str) -> Result<u64> {
    let names: Vec<String> =
        set_names(host)?.into_iter().filter(|name| suffix(set, name).is_some()).collect();
    let looked_up = |rule: &Value| {
        let text = rule.to_string();
        names.iter().any(|name| text.contains(&format!("\"@{name}\"")))
    };
    let packets = |rule: &Value| {
        let steps = rule.get("expr")?.as_array()?;
        steps.iter().find_map(|step| step.get("counter")?.get("packets")?.as_u64())
    };
    Ok(objects(host, "rule")?.iter().filter(|rule| looked_up(rule)).filter_map(packets).sum())
}

/// The first rule of the table's chain for what comes in, as `nft` prints it, where that leads to a
/// look into what corresponds to `set`.
pub(crate) fn rule_for(host: &Host, set: &str) -> Result<Option<String>> {
    if !exists(host)? {
        return Ok(None);
    }
    let listing = host.output("nft", &["list", "table", "inet", "refract"])?;
    let looked_up = format!("@{} ", set.trim_start_matches("refract_"));
    let mut lines = listing.lines().map(str::trim);
    let hooked = lines.any(|line| line.starts_with("type filter hook input "));
    let first = lines.next().filter(|line| hooked && line.contains(" jump banned "));
    Ok(first.filter(|_| listing.contains(&looked_up)).map(str::to_owned))
}

/// Each member with the seconds that it has left.
fn elements(host: &Host, set: &str) -> Result<Vec<(String, u64)>> {
    let mut elements = Vec::new();
    for object in objects(host, "set")? {
        let name = object.get("name").and_then(Value::as_str).unwrap_or_default();
        let Some(suffix) = suffix(set, name) else { continue };
        let Some(listed) = object.get("elem").and_then(Value::as_array) else { continue };
        for element in listed {
            let read = || {
                let element = element.get("elem")?;
                let value = element.get("val")?;
                let member = match value.get("concat").and_then(Value::as_array) {
                    Some(parts) => {
                        let [address, port] = parts.as_slice() else { return None };
                        format!("{},udp:{port}", address.as_str()?)
                    }
                    None => format!("{}{suffix}", value.as_str()?),
                };
                Some((member, element.get("expires")?.as_u64()?))
            };
            let unread = || LabError::new(format!("cannot read the element {element} of {name}"));
            elements.push(read().ok_or_else(unread)?);
        }
    }
    Ok(elements)
}

/// What ends a member of the table's set `name`, if that is a part of what ipset has in `set`.
fn suffix(set: &str, name: &str) -> Option<String> {
    let of_networks = match set {
        "refract_banned_users" => name.strip_prefix("banned_networks_"),
        "refract_banned_users6" => name.strip_prefix("banned_networks6_"),
        _ => None,
    };
    match of_networks {
        Some(prefix) => Some(format!("/{prefix}")),
        None => (set.strip_prefix("refract_") == Some(name)).then(String::new),
    }
}

/// The objects of one kind in the table, as `nft -j` prints them; none where there is no table.
fn objects(host: &Host, kind: &str) -> Result<Vec<Value>> {
    if !exists(host)? {
        return Ok(Vec::new());
    }
    let listing = host.output("nft", &["-j", "list", "table", "inet", "refract"])?;
    let listing: Value =
        serde_json::from_str(&listing).map_err(LabError::while_trying("read what nft lists"))?;
    let objects = listing.get("nftables").and_then(Value::as_array).cloned().unwrap_or_default();
    Ok(objects.iter().filter_map(|object| object.get(kind).cloned()).collect())
}
