//! What the daemon and the rule keeper say to each other, as text and back. Pure.
//!
//! The plan goes over once, as arguments; then one command a line (`install`, `check`, `remove`) and
//! one answer a line (`check v4=in-place v6=no-program variant=legacy strip=off`, or
//! `check error …`, or `check broken …` where iptables itself does not work; about MPTCP also
//! `strip=v4:in-place,v6:no-target` or `strip=error …`).
//! Either side takes nothing but what is written here.

use std::{ffi::OsString, fmt, ops::RangeInclusive, path::PathBuf};

use refract_kernel::xtables::{
    ChainName, NoIpv6, NoStrip, Protocol, Report, RulePlan, SetNames, State, StripReport, Variant,
    ports_from_text, ports_to_text,
};

use super::RuleKeeperError;

/// Which sets the rules match. The names are constants: none ever comes from outside.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RuleSets {
    /// Those that operators see.
    #[default]
    Lasting,
    /// Those that hold the bans while a set of another type is replaced at the start.
    Temporary,
}

impl RuleSets {
    const ALL: [Self; 2] = [Self::Lasting, Self::Temporary];

    fn word(self) -> &'static str {
        match self {
            Self::Lasting => "lasting",
            Self::Temporary => "temporary",
        }
    }

    fn names(self) -> (SetNames, SetNames) {
        match self {
            Self::Lasting => (
                SetNames { sources: "refract_banned_users", flows: "refract_banned_flows" },
                SetNames { sources: "refract_banned_users6", flows: "refract_banned_flows6" },
            ),
            Self::Temporary => (
                SetNames { sources: "refract_banned_users.tmp", flows: "refract_banned_flows.tmp" },
                SetNames {
                    sources: "refract_banned_users6.tmp",
                    flows: "refract_banned_flows6.tmp",
                },
            ),
        }
    }
}

/// An answer's length at most, bytes; a longer sentence is cut.
pub(super) const ANSWER_LIMIT: usize = 2048;

const SETS: &str = "--sets=";
const PROTOCOLS: &str = "--protocols=";
const PORTS: &str = "--ports=";
const STRIP_MPTCP: &str = "--strip-mptcp=";
const CHAIN: &str = "--chain=";
const IPTABLES: &str = "--iptables=";

/// What the rule keeper is to keep, fixed for its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleKeeperConfig {
    /// The sets that the rules match.
    pub sets: RuleSets,
    /// The transports that are enforced.
    pub protocols: Vec<Protocol>,
    /// The protected local ports, merged and ascending.
    pub ports: Vec<RangeInclusive<u16>>,
    /// Whether to keep the rule against MPTCP; if not, one of ours is removed at each install. With
    /// the temporary sets it means nothing: they stand in for the drop rule alone.
    pub strip_mptcp: bool,
    /// The chain that the rules are in.
    pub chain: ChainName,
    /// The absolute path of `iptables`, where it is not to be searched for.
    pub iptables: Option<PathBuf>,
}

impl RuleKeeperConfig {
    /// The rules to keep.
    pub fn plan(&self) -> Result<RulePlan, RuleKeeperError> {
        let (v4, v6) = self.sets.names();
        RulePlan::new(&self.protocols, &self.ports, v4, v6)
            .map(|plan| plan.in_chain(self.chain.clone()))
            .map_err(|source| RuleKeeperError::Plan { source })
    }

    pub(super) fn to_arguments(&self) -> Vec<OsString> {
        let protocols: Vec<_> = self.protocols.iter().map(|protocol| protocol.name()).collect();
        let mut arguments = vec![
            format!("{SETS}{}", self.sets.word()).into(),
            format!("{PROTOCOLS}{}", protocols.join(",")).into(),
            format!("{PORTS}{}", ports_to_text(&self.ports)).into(),
            format!("{STRIP_MPTCP}{}", self.strip_mptcp).into(),
            format!("{CHAIN}{}", self.chain).into(),
        ];
        arguments.extend(self.iptables.as_ref().map(|path| {
            let mut argument = OsString::from(IPTABLES);
            argument.push(path);
            argument
        }));
        arguments
    }

    /// Reads [`Self::to_arguments`], in that order and nothing besides.
    pub(super) fn from_arguments(
        mut arguments: impl Iterator<Item = OsString>,
    ) -> Result<Self, RuleKeeperError> {
        let sets = arguments.next().unwrap_or_default();
        let protocols = arguments.next().unwrap_or_default();
        let ports = arguments.next().unwrap_or_default();
        let strip_mptcp = arguments.next().unwrap_or_default();
        let chain = arguments.next().unwrap_or_default();
        let config = Self {
            sets: after(&sets, SETS)
                .and_then(|word| RuleSets::ALL.into_iter().find(|sets| sets.word() == word))
                .ok_or(RuleKeeperError::Argument { argument: sets })?,
            protocols: after(&protocols, PROTOCOLS)
                .and_then(|names| names.split(',').map(Protocol::from_name).collect())
                .ok_or(RuleKeeperError::Argument { argument: protocols })?,
            ports: after(&ports, PORTS)
                .and_then(ports_from_text)
                .ok_or(RuleKeeperError::Argument { argument: ports })?,
            strip_mptcp: after(&strip_mptcp, STRIP_MPTCP)
                .and_then(|word| word.parse().ok())
                .ok_or(RuleKeeperError::Argument { argument: strip_mptcp })?,
            chain: after(&chain, CHAIN)
                .and_then(|name| name.parse().ok())
                .ok_or(RuleKeeperError::Argument { argument: chain })?,
            iptables: arguments
                .next()
                .map(|path| {
                    after(&path, IPTABLES)
                        .map(PathBuf::from)
                        .filter(|path| path.is_absolute())
                        .ok_or(RuleKeeperError::Argument { argument: path })
                })
                .transpose()?,
        };
        match arguments.next() {
            Some(argument) => Err(RuleKeeperError::Argument { argument }),
            None => Ok(config),
        }
    }
}

fn after<'a>(argument: &'a OsString, name: &str) -> Option<&'a str> {
    argument.to_str()?.strip_prefix(name)
}

/// What the rule keeper can be told to do. All three may be repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// Make it exactly the planned rules, at the top.
    Install,
    /// Look.
    Check,
    /// Remove every rule of ours.
    Remove,
}

impl Command {
    const ALL: [Self; 3] = [Self::Install, Self::Check, Self::Remove];

    pub(super) fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|command| command.word() == word)
    }

    fn word(self) -> &'static str {
        match self {
            Self::Install => "install",
            Self::Check => "check",
            Self::Remove => "remove",
        }
    }
}

impl fmt::Display for Command {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.word())
    }
}

/// What a command found before it changed anything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// How the rules stood.
    pub report: Report,
    /// Which `iptables` it is; `None` where there is none, so that there was nothing to remove.
    pub variant: Option<Variant>,
    /// How the rule against MPTCP stood.
    pub strip: Strip,
}

/// What became of the rule against MPTCP. Whatever it is, the drop rule is not held up by it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Strip {
    /// It is not wanted, or was removed, and nothing of it is there.
    Off,
    /// It is wanted, and this is how it stood.
    Wanted(StripReport),
    /// It could not be looked for, installed or removed: why, as a sentence.
    Failed(String),
}

/// Why a command failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Failure {
    pub(super) sentence: String,
    /// iptables itself does not work, and the sentence names no remedy.
    pub(super) is_breakage: bool,
}

/// What a command came to: what it found, or why it failed.
pub(super) type Outcome = Result<Found, Failure>;

/// Writes an answer, without the line feed.
pub(super) fn answer_to_text(command: Command, outcome: &Outcome) -> String {
    match outcome {
        Ok(Found { report, variant, strip }) => {
            let v6 = match report.v6 {
                Ok(state) => state.to_string(),
                Err(absence) => absence_word(absence).to_owned(),
            };
            let variant = variant.map_or(NO_VARIANT.to_owned(), |variant| variant.to_string());
            let strip = match strip {
                Strip::Off => NO_STRIP.to_owned(),
                Strip::Wanted(StripReport { v4, v6 }) => {
                    format!("v4:{},v6:{}", strip_word(*v4), strip_word(*v6))
                }
                Strip::Failed(sentence) => format!("{STRIP_ERROR}{sentence}"),
            };
            one_line(&format!("{command} v4={} v6={v6} variant={variant} strip={strip}", report.v4))
        }
        Err(Failure { sentence, is_breakage }) => {
            let word = if *is_breakage { BROKEN } else { ERROR };
            one_line(&format!("{command} {word}{sentence}"))
        }
    }
}

fn one_line(text: &str) -> String {
    let mut line = text.replace(char::is_control, " ");
    line.truncate(line.floor_char_boundary(ANSWER_LIMIT));
    line
}

/// Reads [`answer_to_text`].
pub(super) fn answer_from_text(text: &str) -> Option<(Command, Outcome)> {
    let (command, rest) = text.split_once(' ')?;
    let command = Command::from_word(command)?;
    for (word, is_breakage) in [(ERROR, false), (BROKEN, true)] {
        if let Some(sentence) = rest.strip_prefix(word) {
            return Some((command, Err(Failure { sentence: sentence.to_owned(), is_breakage })));
        }
    }
    let (v4, rest) = rest.strip_prefix("v4=")?.split_once(" v6=")?;
    let (v6, rest) = rest.split_once(" variant=")?;
    let (variant, strip) = rest.split_once(" strip=")?;
    let report = Report {
        v4: state(v4)?,
        v6: match NoIpv6::ALL.into_iter().find(|&absence| absence_word(absence) == v6) {
            Some(absence) => Err(absence),
            None => Ok(state(v6)?),
        },
    };
    let known = Variant::ALL.into_iter().find(|known| known.to_string() == variant);
    if known.is_none() && variant != NO_VARIANT {
        return None;
    }
    let strip = match strip.strip_prefix(STRIP_ERROR) {
        Some(sentence) => Strip::Failed(sentence.to_owned()),
        None if strip == NO_STRIP => Strip::Off,
        None => {
            let (v4, v6) = strip.strip_prefix("v4:")?.split_once(",v6:")?;
            Strip::Wanted(StripReport { v4: strip_state(v4)?, v6: strip_state(v6)? })
        }
    };
    Some((command, Ok(Found { report, variant: known, strip })))
}

const NO_VARIANT: &str = "none";
const NO_STRIP: &str = "off";
const STRIP_ERROR: &str = "error ";
const ERROR: &str = "error ";
const BROKEN: &str = "broken ";

fn absence_word(absence: NoIpv6) -> &'static str {
    match absence {
        NoIpv6::NoProgram => "no-program",
        NoIpv6::NoKernel => "no-kernel",
        NoIpv6::NoChain => "no-chain",
    }
}

fn strip_word(found: Result<State, NoStrip>) -> String {
    match found {
        Ok(state) => state.to_string(),
        Err(NoStrip::NoTarget) => "no-target".to_owned(),
        Err(NoStrip::NoComment) => "no-comment".to_owned(),
        Err(NoStrip::NoTable) => "no-table".to_owned(),
        Err(NoStrip::NoIpv6(absence)) => absence_word(absence).to_owned(),
    }
}

fn strip_state(word: &str) -> Option<Result<State, NoStrip>> {
    let states = State::ALL.map(Ok).into_iter().chain(NoStrip::ALL.map(Err));
    states.into_iter().find(|&found| strip_word(found) == word)
}

fn state(word: &str) -> Option<State> {
    State::ALL.into_iter().find(|state| state.to_string() == word)
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn config(protocols: &[Protocol], ports: &str, iptables: Option<&str>) -> RuleKeeperConfig {
        RuleKeeperConfig {
            sets: RuleSets::Lasting,
            protocols: protocols.to_vec(),
            ports: ports_from_text(ports).unwrap(),
            strip_mptcp: protocols == [Protocol::Tcp],
            chain: ChainName::default(),
            iptables: iptables.map(PathBuf::from),
        }
    }

    #[track_caller]
    fn check_refused(arguments: &[&str], culprit: &str) {
        let error = RuleKeeperConfig::from_arguments(arguments.iter().map(OsString::from));
        match error {
            Err(RuleKeeperError::Argument { argument }) => assert_eq!(argument, culprit),
            other => panic!("{arguments:?} became {other:?}"),
        }
    }

    #[test]
    fn a_configuration_survives_being_written_as_arguments_and_read() {
        for (config, expected) in [
            (
                config(&[Protocol::Tcp], "443", None),
                &[
                    "--sets=lasting",
                    "--protocols=tcp",
                    "--ports=443",
                    "--strip-mptcp=true",
                    "--chain=INPUT",
                ][..],
            ),
            (
                config(
                    &[Protocol::Tcp, Protocol::Udp],
                    "443,2000:2010,8443",
                    Some("/usr/sbin/iptables-legacy"),
                ),
                &[
                    "--sets=lasting",
                    "--protocols=tcp,udp",
                    "--ports=443,2000:2010,8443",
                    "--strip-mptcp=false",
                    "--chain=INPUT",
                    "--iptables=/usr/sbin/iptables-legacy",
                ],
            ),
        ] {
            let arguments = config.to_arguments();
            assert_eq!(arguments, expected);
            let read = RuleKeeperConfig::from_arguments(arguments.into_iter()).unwrap();
            assert_eq!(read, config);
        }
    }

    #[test]
    fn arguments_that_the_daemon_does_not_write_are_refused() {
        let good = [
            "--sets=lasting",
            "--protocols=tcp",
            "--ports=443",
            "--strip-mptcp=true",
            "--chain=DOCKER-USER",
        ];
        check_refused(&[], "");
        check_refused(&good[..2], "");
        check_refused(&good[..3], "");
        check_refused(&[good[0], good[2], good[1]], good[2]);
        for sets in ["--sets=", "--sets=mine", "lasting", "--flush"] {
            check_refused(&[sets, good[1], good[2]], sets);
        }
        for protocols in ["--protocols=", "--protocols=icmp", "--protocols=tcp,", "tcp", "--flush"]
        {
            check_refused(&[good[0], protocols, good[2]], protocols);
        }
        for ports in [
            "--ports=",
            "--ports=443 -j ACCEPT",
            "--ports=443\n-I INPUT -j ACCEPT",
            "--ports=443;reboot",
            "--ports=$(reboot)",
            "--ports=443,,80",
            "--ports=-1",
            "--ports=65536",
            "--ports=443-444",
        ] {
            check_refused(&[good[0], good[1], ports], ports);
        }
        for strip in ["--strip-mptcp=", "--strip-mptcp=yes", "--strip-mptcp=true -F", "true"] {
            check_refused(&[good[0], good[1], good[2], strip], strip);
        }
        for iptables in ["--iptables=", "--iptables=iptables", "--iptables=../sbin/iptables", "x"] {
            check_refused(&[good.as_slice(), &[iptables]].concat(), iptables);
        }
        for chain in ["--chain=", "--chain=-F", "--chain=INPUT -j ACCEPT", "--chain=a\nb", "INPUT"]
        {
            check_refused(&[good[0], good[1], good[2], good[3], chain], chain);
        }
        let path = "--iptables=/usr/sbin/iptables";
        check_refused(&[good.as_slice(), &[path, "--more"]].concat(), "--more");
    }

    #[test]
    fn an_argument_that_is_not_text_is_refused() {
        let bytes = OsString::from_vec(b"--protocols=tcp\xff".to_vec());
        let refused =
            RuleKeeperConfig::from_arguments(["--sets=lasting".into(), bytes].into_iter());
        assert!(matches!(refused, Err(RuleKeeperError::Argument { .. })));
    }

    #[test]
    fn ports_that_make_no_plan_are_refused_on_both_sides() {
        for ports in ["0", "9:8", "443,80", "1:10,10:20"] {
            let error = config(&[Protocol::Tcp], ports, None).plan().unwrap_err().to_string();
            assert!(error.starts_with("cannot plan the firewall rule"), "{error}");
        }
    }

    #[test]
    fn every_answer_survives_being_written_and_read() {
        let v6 = State::ALL.map(Ok).into_iter().chain(NoIpv6::ALL.map(Err));
        let variants = Variant::ALL.map(Some).into_iter().chain([None]);
        for (command, v4) in Command::ALL.into_iter().zip(State::ALL) {
            for ((v6, variant), strip) in v6.clone().zip(variants.clone().cycle()).zip(strips()) {
                let found = Ok(Found { report: Report { v4, v6 }, variant, strip });
                let text = answer_to_text(command, &found);
                assert_eq!(answer_from_text(&text), Some((command, found)), "{text}");
            }
        }
        for is_breakage in [false, true] {
            let sentence = "cannot check the rule with iptables: no".to_owned();
            let failure = Err(Failure { sentence, is_breakage });
            let text = answer_to_text(Command::Check, &failure);
            assert_eq!(answer_from_text(&text), Some((Command::Check, failure)));
        }
    }

    /// Every state of the rule against MPTCP, in one family or the other.
    fn strips() -> impl Iterator<Item = Strip> {
        let found = State::ALL.map(Ok).into_iter().chain(NoStrip::ALL.map(Err));
        let in_either = found.flat_map(|found| {
            [
                StripReport { v4: found, v6: Ok(State::InPlace) },
                StripReport { v4: Ok(State::Missing), v6: found },
            ]
        });
        let failed = Strip::Failed("cannot install it: v4=in-place strip=off".to_owned());
        in_either.map(Strip::Wanted).chain([Strip::Off, failed])
    }

    #[test]
    fn every_word_about_mptcp_survives_being_written_and_read() {
        let report = Report { v4: State::InPlace, v6: Ok(State::InPlace) };
        for strip in strips() {
            let found = Ok(Found { report, variant: Some(Variant::NfTables), strip });
            let text = answer_to_text(Command::Install, &found);
            assert_eq!(answer_from_text(&text), Some((Command::Install, found)), "{text}");
        }
    }

    #[test]
    fn answers_read_as_they_are_documented() {
        let report = Report { v4: State::InPlace, v6: Err(NoIpv6::NoProgram) };
        let stripped = StripReport { v4: Ok(State::InPlace), v6: Err(NoStrip::NoTarget) };
        for (strip, text) in [
            (Strip::Off, "off"),
            (Strip::Wanted(stripped), "v4:in-place,v6:no-target"),
            (Strip::Failed("no\nway".to_owned()), "error no way"),
        ] {
            let found = Ok(Found { report, variant: Some(Variant::Legacy), strip });
            let text = format!("check v4=in-place v6=no-program variant=legacy strip={text}");
            assert_eq!(answer_to_text(Command::Check, &found), text);
        }
    }

    #[test]
    fn a_sentence_stays_on_one_line_of_bounded_length() {
        let failed = |sentence: &str, is_breakage| {
            let failure = Failure { sentence: sentence.to_owned(), is_breakage };
            answer_to_text(Command::Install, &Err(failure))
        };
        assert_eq!(failed("a\nb\u{1b}[1m", false), "install error a b [1m");
        assert_eq!(failed("a\nb", true), "install broken a b");
        let text = failed(&"ü".repeat(ANSWER_LIMIT), false);
        assert!(text.len() <= ANSWER_LIMIT && text.ends_with('ü'));
    }

    #[test]
    fn what_is_no_answer_is_not_read_as_one() {
        for text in [
            "",
            "check",
            "check ",
            "flush v4=in-place v6=in-place variant=legacy strip=off",
            "check v4=in-place",
            "check v4=in-place v6=in-place",
            "check v4=in-place v6=in-place variant= strip=off",
            "check v4=in-place v6=in-place variant=legacy",
            "check v4=in-place v6=in-place variant=legacy more strip=off",
            "check v4=in-place v6=in-place variant=legacy strip=off more",
            "check v4=in-place v6=in-place variant=legacy strip=on",
            "check v4=in-place v6=in-place variant=legacy strip=v4:in-place",
            "check v4=in-place v6=in-place variant=legacy strip=v4:in-place,v6:no",
            "check v4=no-program v6=in-place variant=legacy strip=off",
            "check v4=InPlace v6=in-place variant=legacy strip=off",
            "Check v4=in-place v6=in-place variant=legacy strip=off",
        ] {
            assert_eq!(answer_from_text(text), None, "{text:?}");
        }
    }
}
