//! Second eyes: what the kernel and the disk say, asked without any of Refract's own code.
//!
//! Takes a host or a file; gives set members, rules, counters and records as text, by way of the
//! tools that an operator would use. Sets and rules are those of the firewall that the tests are about
//! this time ([`nft_table`]). It judges nothing.

use std::{
    fs,
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use super::{LabError, Result, eventually, lab::Host, nft_table};

/// The names of the sets there are.
pub(crate) fn sets(host: &Host) -> Result<Vec<String>> {
    if nft_table::is_under_test() {
        return nft_table::set_names(host);
    }
    Ok(host.output("ipset", &["list", "-name"])?.lines().map(str::to_owned).collect())
}

/// The members of a set, without their timeouts, as `ipset list` prints them; none when there is
/// no such set.
pub(crate) fn set_members(host: &Host, set: &str) -> Result<Vec<String>> {
    if nft_table::has(set) {
        return nft_table::members(host, set);
    }
    let words = |line: &str| line.split_whitespace().next().map(str::to_owned);
    Ok(member_lines(host, set)?.iter().filter_map(|line| words(line)).collect())
}

/// The seconds that `member` has left in `set`; `None` when it is not there.
pub(crate) fn seconds_left(host: &Host, set: &str, member: &str) -> Result<Option<u64>> {
    if nft_table::has(set) {
        return nft_table::seconds_left(host, set, member);
    }
    // "198.51.100.12 timeout 59"
    let of_member = format!("{member} timeout ");
    member_lines(host, set)?
        .iter()
        .find_map(|line| line.strip_prefix(&of_member))
        .map(|seconds| {
            let what = format!("read the timeout of {member}");
            seconds.trim().parse().map_err(LabError::while_trying(what))
        })
        .transpose()
}

/// Bans as an operator would, for so many seconds.
pub(crate) fn add_member(host: &Host, set: &str, member: &str, seconds: u64) -> Result<()> {
    if nft_table::has(set) {
        return nft_table::add(host, set, member, seconds);
    }
    host.output("ipset", &["add", set, member, "timeout", &seconds.to_string()]).map(drop)
}

fn member_lines(host: &Host, set: &str) -> Result<Vec<String>> {
    if !host.output("ipset", &["list", "-name"])?.lines().any(|name| name == set) {
        return Ok(Vec::new());
    }
    let listing = host.output("ipset", &["list", set])?;
    let members = listing.lines().skip_while(|line| !line.starts_with("Members:")).skip(1);
    Ok(members.map(str::to_owned).collect())
}

/// Waits until `member` is in `set`, or is not.
pub(crate) fn wait_for_member(
    host: &Host,
    set: &str,
    member: &str,
    is_in: bool,
    bound: Duration,
) -> Result<()> {
    let what = format!("{member} to be {} {set}", if is_in { "in" } else { "out of" });
    eventually(&what, bound, || {
        let found = set_members(host, set)?.iter().any(|found| found == member);
        Ok((found == is_in).then_some(()))
    })
}

/// The rules of INPUT as `iptables -S INPUT` or `ip6tables -S INPUT` prints them.
pub(crate) fn input_rules(host: &Host, family: &IpAddr) -> Result<String> {
    let tool = if family.is_ipv4() { "iptables" } else { "ip6tables" };
    host.output(tool, &["-S", "INPUT"])
}

/// The rule that shuts the members of `set` out, if it is the first that their packets meet: in INPUT,
/// or in the table.
pub(crate) fn rule_for(host: &Host, set: &str) -> Result<Option<String>> {
    if nft_table::has(set) {
        return nft_table::rule_for(host, set);
    }
    let tool = if set.ends_with('6') { "ip6tables" } else { "iptables" };
    let first = rules_of(host, tool)?.into_iter().next();
    Ok(first.filter(|rule| rule.contains(&format!("--match-set {set} src -j DROP"))))
}

/// How many packets the rules that name `set` have dropped.
pub(crate) fn packets_dropped(host: &Host, set: &str) -> Result<u64> {
    if nft_table::has(set) {
        return nft_table::packets_dropped(host, set);
    }
    let tool = if set.ends_with('6') { "ip6tables-save" } else { "iptables-save" };
    let names_set = format!("--match-set {set} ");
    packets_of_rules(host, tool, &names_set)
}

/// Switches connection tracking on for what `host` receives; the kernel tracks nothing in a
/// namespace until a rule asks for it.
pub(crate) fn track_connections(host: &Host) -> Result<()> {
    for tool in ["iptables", "ip6tables"] {
        host.output(tool, &["-A", "INPUT", "-m", "conntrack", "--ctstate", "NEW"])?;
    }
    Ok(())
}

/// The tracked UDP flows from `source`, by the client's port, as `conntrack -L` shows them.
pub(crate) fn tracked_flows(host: &Host, source: IpAddr) -> Result<Vec<u16>> {
    let family = if source.is_ipv4() { "ipv4" } else { "ipv6" };
    let listing =
        host.output("conntrack", &["-L", "-f", family, "-p", "udp", "-s", &source.to_string()])?;
    // "udp 17 29 src=198.51.100.12 dst=203.0.113.1 sport=40000 dport=443 src=…"
    let ports = listing.lines().map(|line| {
        let port = line.split_whitespace().find_map(|word| word.strip_prefix("sport="));
        let port = port.unwrap_or_default();
        port.parse().map_err(LabError::while_trying(format!("read `{line}` of conntrack")))
    });
    let mut ports = ports.collect::<Result<Vec<u16>>>()?;
    ports.sort_unstable();
    Ok(ports)
}

/// The rules of INPUT without the policy, as `tool -S INPUT` prints them.
pub(crate) fn rules_of(host: &Host, tool: &str) -> Result<Vec<String>> {
    let listing = host.output(tool, &["-S", "INPUT"])?;
    Ok(listing.lines().filter(|line| line.starts_with("-A ")).map(str::to_owned).collect())
}

/// The rules of INPUT in table mangle without the policy, as `tool` prints them.
pub(crate) fn mangle_rules_of(host: &Host, tool: &str) -> Result<Vec<String>> {
    let listing = host.output(tool, &["-t", "mangle", "-S", "INPUT"])?;
    Ok(listing.lines().filter(|line| line.starts_with("-A ")).map(str::to_owned).collect())
}

/// The names of the sets of `host`, in alphabetical order.
pub(crate) fn set_names(host: &Host) -> Result<Vec<String>> {
    let mut names = sets(host)?;
    names.sort();
    Ok(names)
}

/// The peers of `host`'s established TCP connections with the address `peer`, as `ss` sees them.
pub(crate) fn established_with(host: &Host, peer: IpAddr) -> Result<Vec<SocketAddr>> {
    let wanted = if peer.is_ipv6() { format!("[{peer}]") } else { peer.to_string() };
    // "0 0 [::ffff:203.0.113.1]:8443 [::ffff:198.51.100.11]:40000"
    let listing = host.output("ss", &["-Htn", "state", "established", "dst", &wanted])?;
    listing
        .lines()
        .map(|line| {
            let peer = line.split_whitespace().nth(3).unwrap_or_default();
            let peer: SocketAddr =
                peer.parse().map_err(LabError::while_trying(format!("read `{line}` of ss")))?;
            Ok(SocketAddr::new(peer.ip().to_canonical(), peer.port()))
        })
        .collect()
}

/// How many established connections of `host` were reset so far (`EstabResets`, RFC 1213).
pub(crate) fn established_resets(host: &Host) -> Result<u64> {
    let table = host.run(|| {
        fs::read_to_string("/proc/thread-self/net/snmp")
            .map_err(LabError::while_trying("read the TCP counters"))
    })?;
    let mut rows = table.lines().filter_map(|line| line.strip_prefix("Tcp:"));
    rows.next()
        .zip(rows.next())
        .and_then(|(names, values)| {
            let place = names.split_whitespace().position(|name| name == "EstabResets")?;
            values.split_whitespace().nth(place)?.parse().ok()
        })
        .ok_or_else(|| LabError::new("the TCP counters have no EstabResets"))
}

/// Counts, from now on, the reset packets that `host` gets from TCP port `port`.
pub(crate) fn watch_resets(host: &Host, port: u16) -> Result<()> {
    let port = port.to_string();
    let resets = ["-p", "tcp", "--sport", &port, "--tcp-flags", "RST", "RST", "-j", "ACCEPT"];
    for tool in ["iptables", "ip6tables"] {
        host.output(tool, &[&["-I", "INPUT"], &resets[..]].concat())?;
    }
    Ok(())
}

/// The reset packets that came since [`watch_resets`], both families.
pub(crate) fn resets_seen(host: &Host) -> Result<u64> {
    let count = |tool| packets_of_rules(host, tool, "--tcp-flags RST RST");
    Ok(count("iptables-save")? + count("ip6tables-save")?)
}

fn packets_of_rules(host: &Host, tool: &str, text: &str) -> Result<u64> {
    // "[3:120] -A INPUT -p tcp -m tcp --sport 443 --tcp-flags RST RST -j ACCEPT"
    let rules = host.output(tool, &["-c", "-t", "filter"])?;
    let packets = rules
        .lines()
        .filter(|line| line.contains(text))
        .filter_map(|line| line.strip_prefix('[')?.split(':').next()?.parse::<u64>().ok());
    Ok(packets.sum())
}

/// The finished lines of a log that contain `text`; none when there is no such file yet. Who reads
/// beside a `write(2)` that crosses a page may see the half of it: that is no line yet.
pub(crate) fn lines_with(log: &Path, text: &str) -> Result<Vec<String>> {
    match fs::read_to_string(log) {
        Ok(content) => {
            let finished = content.rfind('\n').and_then(|end| content.get(..end)).unwrap_or("");
            Ok(finished.lines().filter(|line| line.contains(text)).map(str::to_owned).collect())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(LabError::new(format!("cannot read {}: {error}", log.display()))),
    }
}

/// Waits for a line of a log that contains `text`, and gives the first one.
pub(crate) fn wait_for_line(log: &Path, text: &str, bound: Duration) -> Result<String> {
    let what = format!("a line with {text} in {}", log.display());
    eventually(&what, bound, || Ok(lines_with(log, text)?.into_iter().next()))
}
