//! What the daemon and the rule keeper say to each other, as text and back. Pure.
//!
//! The plan goes over once, as arguments; then one command a line (`install`, `check`, `remove`) and
//! one answer a line (`check v4=in-place v6=no-program variant=legacy`, or `check error …`).
//! Either side takes nothing but what is written here.

use std::{ffi::OsString, fmt, ops::RangeInclusive, path::PathBuf};

use refract_kernel::xtables::{
    NoIpv6, Protocol, Report, RulePlan, SetNames, State, Variant, ports_from_text, ports_to_text,
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
    /// The absolute path of `iptables`, where it is not to be searched for.
    pub iptables: Option<PathBuf>,
}

impl RuleKeeperConfig {
    /// The rules to keep.
    pub fn plan(&self) -> Result<RulePlan, RuleKeeperError> {
        let (v4, v6) = self.sets.names();
        RulePlan::new(&self.protocols, &self.ports, v4, v6)
            .map_err(|source| RuleKeeperError::Plan { source })
    }

    pub(super) fn to_arguments(&self) -> Vec<OsString> {
        let protocols: Vec<_> = self.protocols.iter().map(|protocol| protocol.name()).collect();
        let mut arguments = vec![
            format!("{SETS}{}", self.sets.word()).into(),
            format!("{PROTOCOLS}{}", protocols.join(",")).into(),
            format!("{PORTS}{}", ports_to_text(&self.ports)).into(),
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// How the rules stood.
    pub report: Report,
    /// Which `iptables` it is; `None` where there is none, so that there was nothing to remove.
    pub variant: Option<Variant>,
}

/// What a command came to: what it found, or why it failed, as a sentence.
pub(super) type Outcome = Result<Found, String>;

/// Writes an answer, without the line feed.
pub(super) fn answer_to_text(command: Command, outcome: &Outcome) -> String {
    match outcome {
        Ok(Found { report, variant }) => {
            let v6 = match report.v6 {
                Ok(state) => state.to_string(),
                Err(absence) => absence_word(absence).to_owned(),
            };
            let variant = variant.map_or(NO_VARIANT.to_owned(), |variant| variant.to_string());
            format!("{command} v4={} v6={v6} variant={variant}", report.v4)
        }
        Err(sentence) => {
            let mut text = format!("{command} error {sentence}").replace(char::is_control, " ");
            text.truncate(text.floor_char_boundary(ANSWER_LIMIT));
            text
        }
    }
}

/// Reads [`answer_to_text`].
pub(super) fn answer_from_text(text: &str) -> Option<(Command, Outcome)> {
    let (command, rest) = text.split_once(' ')?;
    let command = Command::from_word(command)?;
    if let Some(sentence) = rest.strip_prefix("error ") {
        return Some((command, Err(sentence.to_owned())));
    }
    let (v4, rest) = rest.strip_prefix("v4=")?.split_once(" v6=")?;
    let (v6, variant) = rest.split_once(" variant=")?;
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
    Some((command, Ok(Found { report, variant: known })))
}

const NO_VARIANT: &str = "none";

fn absence_word(absence: NoIpv6) -> &'static str {
    match absence {
        NoIpv6::NoProgram => "no-program",
        NoIpv6::NoKernel => "no-kernel",
    }
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
                &["--sets=lasting", "--protocols=tcp", "--ports=443"][..],
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
        let good = ["--sets=lasting", "--protocols=tcp", "--ports=443"];
        check_refused(&[], "");
        check_refused(&good[..2], "");
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
        for iptables in ["--iptables=", "--iptables=iptables", "--iptables=../sbin/iptables", "x"] {
            check_refused(&[good[0], good[1], good[2], iptables], iptables);
        }
        let path = "--iptables=/usr/sbin/iptables";
        check_refused(&[good[0], good[1], good[2], path, "--more"], "--more");
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
            for (v6, variant) in v6.clone().zip(variants.clone().cycle()) {
                let found = Ok(Found { report: Report { v4, v6 }, variant });
                let text = answer_to_text(command, &found);
                assert_eq!(answer_from_text(&text), Some((command, found)), "{text}");
            }
        }
        let sentence = Err("cannot check the rule with iptables: no".to_owned());
        let text = answer_to_text(Command::Check, &sentence);
        assert_eq!(answer_from_text(&text), Some((Command::Check, sentence)));
    }

    #[test]
    fn answers_read_as_they_are_documented() {
        let report = Report { v4: State::InPlace, v6: Err(NoIpv6::NoProgram) };
        let found = Ok(Found { report, variant: Some(Variant::Legacy) });
        let text = "check v4=in-place v6=no-program variant=legacy";
        assert_eq!(answer_to_text(Command::Check, &found), text);
    }

    #[test]
    fn a_sentence_stays_on_one_line_of_bounded_length() {
        let text = answer_to_text(Command::Install, &Err("a\nb\u{1b}[1m".to_owned()));
        assert_eq!(text, "install error a b [1m");
        let text = answer_to_text(Command::Install, &Err("ü".repeat(ANSWER_LIMIT)));
        assert!(text.len() <= ANSWER_LIMIT && text.ends_with('ü'));
    }

    #[test]
    fn what_is_no_answer_is_not_read_as_one() {
        for text in [
            "",
            "check",
            "check ",
            "flush v4=in-place v6=in-place variant=legacy",
            "check v4=in-place",
            "check v4=in-place v6=in-place",
            "check v4=in-place v6=in-place variant=",
            "check v4=in-place v6=in-place variant=legacy more",
            "check v4=no-program v6=in-place variant=legacy",
            "check v4=InPlace v6=in-place variant=legacy",
            "Check v4=in-place v6=in-place variant=legacy",
        ] {
            assert_eq!(answer_from_text(text), None, "{text:?}");
        }
    }
}
