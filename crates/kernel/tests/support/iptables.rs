//! What a test of the firewall rule needs: both implementations, the sets, the rules in place.

use crate::support::shell;

/// The two implementations, by path.
pub(crate) const VARIANTS: [&str; 2] = ["/usr/sbin/iptables-nft", "/usr/sbin/iptables-legacy"];

/// Makes Refract's four sets with the `ipset` tool.
pub(crate) fn make_sets() {
    shell(
        "ipset create refract_banned_users hash:ip timeout 60 && \
         ipset create refract_banned_flows hash:ip,port timeout 60 && \
         ipset create refract_banned_users6 hash:net family inet6 timeout 60 && \
         ipset create refract_banned_flows6 hash:ip,port family inet6 timeout 60",
    );
}

/// The rules of chain INPUT as `program` lists them, without the `-A INPUT` in front.
pub(crate) fn input_rules(program: &str) -> Vec<String> {
    let listing = shell(&format!("{program} -w 5 -S INPUT"));
    listing.lines().filter_map(|line| Some(line.strip_prefix("-A INPUT ")?.to_owned())).collect()
}

/// The rules of chain INPUT of table mangle, without the `-A INPUT` in front.
pub(crate) fn mangle_rules(program: &str) -> Vec<String> {
    let listing = shell(&format!("{program} -w 5 -t mangle -S INPUT"));
    let rules = listing.lines().filter_map(|line| line.strip_prefix("-A INPUT "));
    rules.map(str::to_owned).collect()
}
