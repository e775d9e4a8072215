//! The command line: arguments and environment in, [`Cli`] or one sentence of refusal out.
//!
//! It checks each value by itself and touches nothing. The given flags, their names, variables and
//! defaults never change: operators have them in scripts.

use std::{env, ffi::OsString, fmt, path::PathBuf, time::Duration};

use clap::{
    Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum,
    error::{ContextKind, ContextValue, ErrorKind},
};
use refract_core::{Keep, Network};
use refract_kernel::xtables::Protocol;

use crate::{
    audit::BlockFormat,
    escape::quoted,
    ports::Ports,
    rule_keeper::{RuleKeeperConfig, RuleSets},
    telemetry::LogFormat,
};

/// The whole command line.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "refract",
    version,
    about = ABOUT,
    long_about = None,
    args_override_self = true,
    args_conflicts_with_subcommands = true,
    after_help = EXAMPLES,
)]
pub struct Cli {
    /// What to do instead of running the daemon.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// How the daemon runs.
    #[command(flatten)]
    pub flags: Flags,
}

const ABOUT: &str = "\
Cuts shared Xray accounts off.

Follows Xray's access log. When one user (email) is live from more source addresses than allowed,
the surplus address is banned in a kernel set for a while, its connections are reset, and the reason
is written to the block log. Without a command the daemon runs in the foreground until SIGTERM or
Ctrl-C; bans and the firewall rule then stay in the kernel.";

const EXAMPLES: &str = "\
Examples:
  refract --dport=443                      watch /var/log/xray/access.log, one place per user
  refract --dport=443,8443 --limit=2       two ports, two places per user
  refract --dry-run --access.log=- < log   decide and record, touch nothing
  refract list                             bans in force and the time they have left
  refract unban 198.51.100.7               lift one

A flag beats its variable, which beats the default. Durations are written 500ms, 5s, 1m, 1h30m.";

/// The commands; each works without a running daemon.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Show the bans in the kernel with the time they have left
    List,
    /// Lift bans: the named sources, or all of them
    Unban {
        /// Addresses or networks as `refract list` shows them
        #[arg(required_unless_present = "all", value_name = "SOURCE")]
        sources: Vec<String>,
        /// Lift every ban
        #[arg(long, conflicts_with = "sources")]
        all: bool,
    },
    /// Say why an address was banned: its records in the block log
    Why {
        /// The address or network
        #[arg(value_name = "ADDRESS")]
        source: String,
        /// The block log to answer from
        #[arg(
            long = "block.log",
            env = "REFRACT_BLOCK_LOG",
            hide_env_values = true,
            value_name = "FILE",
            default_value = "/var/log/xray/block.log",
            value_parser = path
        )]
        block_log: PathBuf,
    },
    /// Check everything that enforcing takes, and say what is wrong
    Doctor {
        /// The flags the daemon is started with
        #[command(flatten)]
        flags: Box<Flags>,
    },
    /// Remove refract's rules and sets, and nothing else (refused while a daemon runs)
    Uninstall {
        /// The iptables binary the daemon was started with
        #[arg(long, env = "REFRACT_IPTABLES", hide_env_values = true, value_name = "PATH", value_parser = binary)]
        iptables: Option<PathBuf>,
    },
}

/// Flags of the daemon.
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// Transport to enforce on: tcp, udp, or tcp,udp
    #[arg(long, env = "REFRACT_PROTO", hide_env_values = true, default_value = "tcp", value_name = "PROTO", value_parser = protocols,
          allow_hyphen_values = true)]
    pub proto: Protocols,

    /// Local ports of the protected connections, lists and ranges: 443,8443,2000-2010
    #[arg(long, env = "REFRACT_DPORT", hide_env_values = true, default_value = "443", value_name = "PORTS",
          value_parser = ports, allow_hyphen_values = true)]
    pub dport: Ports,

    /// How long an address counts as live after its last line in the log
    #[arg(long, env = "REFRACT_WINDOW", hide_env_values = true, default_value = "5s", value_name = "DURATION",
          value_parser = window, allow_hyphen_values = true)]
    pub window: Duration,

    /// How long a ban lasts in the kernel (whole seconds, rounded up)
    #[arg(long, env = "REFRACT_TIMEOUT", hide_env_values = true, default_value = "1m", value_name = "DURATION",
          value_parser = duration, allow_hyphen_values = true)]
    pub timeout: Duration,

    /// Xray's access log; a FIFO works too, and - is standard input
    #[arg(long = "access.log", env = "REFRACT_ACCESS_LOG", hide_env_values = true, value_name = "FILE",
          default_value = "/var/log/xray/access.log", value_parser = path,
          allow_hyphen_values = true)]
    pub access_log: PathBuf,

    /// Audit trail: one record for every enforcement
    #[arg(long = "block.log", env = "REFRACT_BLOCK_LOG", hide_env_values = true, value_name = "FILE",
          default_value = "/var/log/xray/block.log", value_parser = record_path,
          allow_hyphen_values = true)]
    pub block_log: PathBuf,

    /// How records in the block log are written: text or json
    #[arg(
        long = "block.format",
        env = "REFRACT_BLOCK_FORMAT",
        hide_env_values = true,
        default_value = "text",
        value_enum,
        hide_possible_values = true,
        value_name = "FORMAT",
        allow_hyphen_values = true
    )]
    pub block_format: BlockFormat,

    /// How lines on stderr are written: text or json
    #[arg(
        long = "log.format",
        env = "REFRACT_LOG_FORMAT",
        hide_env_values = true,
        default_value = "text",
        value_enum,
        hide_possible_values = true,
        value_name = "FORMAT",
        allow_hyphen_values = true
    )]
    pub log_format: LogFormat,

    /// Places per user: how many sources one user may be live from at once
    #[arg(long, env = "REFRACT_LIMIT", hide_env_values = true, default_value = "1", value_name = "PLACES",
          value_parser = limit, allow_hyphen_values = true)]
    pub limit: u32,

    /// Who stays when there are too many: the first to come, or the last (first or last)
    #[arg(
        long,
        env = "REFRACT_KEEP",
        hide_env_values = true,
        default_value = "first",
        value_enum,
        hide_possible_values = true,
        value_name = "WHO",
        allow_hyphen_values = true
    )]
    pub keep: KeepFlag,

    /// Networks that are never banned and never counted: 10.0.0.0/8 or an address (repeatable)
    #[arg(long, env = "REFRACT_ALLOW", hide_env_values = true, value_name = "NETWORKS", value_parser = networks,
          allow_hyphen_values = true)]
    pub allow: Vec<Networks>,

    /// Length of the IPv4 prefix that counts as one source
    #[arg(long = "ipv4-prefix", env = "REFRACT_IPV4_PREFIX", hide_env_values = true, default_value = "32",
          value_name = "BITS", value_parser = ipv4_prefix, allow_hyphen_values = true)]
    pub ipv4_prefix: u8,

    /// Length of the IPv6 prefix that counts as one source, and that a ban covers
    #[arg(long = "ipv6-prefix", env = "REFRACT_IPV6_PREFIX", hide_env_values = true, default_value = "64",
          value_name = "BITS", value_parser = ipv6_prefix, allow_hyphen_values = true)]
    pub ipv6_prefix: u8,

    /// What a verdict rests on: log, its word alone, or auto, the best evidence there is
    #[arg(
        long,
        env = "REFRACT_EVIDENCE",
        hide_env_values = true,
        default_value = "auto",
        value_enum,
        hide_possible_values = true,
        value_name = "GRADE",
        allow_hyphen_values = true
    )]
    pub evidence: EvidenceFlag,

    /// Most users banned in a minute, more are only disconnected; 0 is no bound
    #[arg(long = "max-bans", env = "REFRACT_MAX_BANS", hide_env_values = true, default_value = "600",
          value_name = "USERS", value_parser = max_bans, allow_hyphen_values = true)]
    pub max_bans: u32,

    /// Ban the address of an offender that the log names with udp:, not only that flow
    #[arg(long = "udp-ban", env = "REFRACT_UDP_BAN", hide_env_values = true, value_parser = switch,
          num_args = 0..=1, default_value = "false", default_missing_value = "true",
          require_equals = true, value_name = "BOOL")]
    pub udp_ban: bool,

    /// Decide and record, but touch neither the kernel nor the firewall
    #[arg(long = "dry-run", env = "REFRACT_DRY_RUN", hide_env_values = true, value_parser = switch,
          num_args = 0..=1, default_value = "false", default_missing_value = "true",
          require_equals = true, value_name = "BOOL")]
    pub dry_run: bool,

    /// The iptables binary, by absolute path (its ip6tables twin lies beside it)
    #[arg(long, env = "REFRACT_IPTABLES", hide_env_values = true, value_name = "PATH", value_parser = binary,
          allow_hyphen_values = true)]
    pub iptables: Option<PathBuf>,
}

/// The transports that are enforced on; at least one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocols {
    /// `tcp` was named.
    pub tcp: bool,
    /// `udp` was named.
    pub udp: bool,
}

impl fmt::Display for Protocols {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(match (self.tcp, self.udp) {
            (true, true) => "tcp,udp",
            (false, true) => "udp",
            _ => "tcp",
        })
    }
}

/// One value of `--allow`: any number of networks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Networks(pub Vec<Network>);

/// `--keep`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum KeepFlag {
    /// The newcomer goes.
    First,
    /// The newcomer stays; who was there longest goes.
    Last,
}

impl From<KeepFlag> for Keep {
    fn from(flag: KeepFlag) -> Self {
        match flag {
            KeepFlag::First => Self::First,
            KeepFlag::Last => Self::Last,
        }
    }
}

/// `--evidence`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EvidenceFlag {
    /// The best there is; today that is the log.
    Auto,
    /// The log's word alone.
    Log,
}

/// Parses the command line; a refusal is one sentence (or, for `--help` and `--version`, the text
/// asked for) with the exit status it ends in.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, Refusal> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    Cli::command()
        .version(VERSION)
        .try_get_matches_from(&arguments)
        .and_then(|matches| Cli::from_arg_matches(&matches))
        .map_err(|error| match error.kind() {
            ErrorKind::InvalidUtf8 => Refusal::Mistake(not_text(&arguments)),
            _ => Refusal::from(error),
        })
}

/// What `--version` prints after the name.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A command line that does not start the program.
#[derive(Debug)]
pub enum Refusal {
    /// `--help` or `--version`: text for stdout, exit status 0.
    Text(String),
    /// A mistake: a sentence for stderr, exit status 2.
    Mistake(String),
}

impl From<clap::Error> for Refusal {
    fn from(error: clap::Error) -> Self {
        let context = |kind| match error.get(kind) {
            Some(ContextValue::String(text)) => Some(text.clone()),
            Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
            _ => None,
        };
        let flag = context(ContextKind::InvalidArg);
        let value = context(ContextKind::InvalidValue).unwrap_or_default();
        let command = context(ContextKind::InvalidSubcommand);
        let mistake = match (error.kind(), flag, command) {
            (ErrorKind::DisplayHelp | ErrorKind::DisplayVersion, _, _) => {
                return Self::Text(error.render().to_string());
            }
            (ErrorKind::ValueValidation, Some(flag), _) => {
                let takes =
                    std::error::Error::source(&error).map(ToString::to_string).unwrap_or_default();
                format!("{} cannot be {value:?}: {takes}", named(&flag))
            }
            (ErrorKind::InvalidValue, Some(flag), _) => {
                match context(ContextKind::ValidValue).filter(|takes| !takes.is_empty()) {
                    Some(takes) => {
                        let takes = takes.replace(", ", " or ");
                        format!("{} cannot be {value:?}: it takes {takes}", named(&flag))
                    }
                    None => {
                        format!("{} has no value; refract --help says what it takes", named(&flag))
                    }
                }
            }
            (ErrorKind::UnknownArgument, Some(flag), _) => {
                format!("there is no {}; refract --help lists what there is", flag.escape_debug())
            }
            (ErrorKind::MissingRequiredArgument, Some(missing), _) => {
                format!("{missing} is missing; add --help to see what the command takes")
            }
            (ErrorKind::ArgumentConflict, _, Some(command))
                if Cli::command().find_subcommand(&command).is_some() =>
            {
                format!(
                    "{command} is a command and comes first; refract {command} --help lists the \
                     flags it takes after it"
                )
            }
            (_, _, Some(command)) => format!(
                "there is no command {command:?}; refract --help lists what there is (the value of \
                 a switch is joined to it, as in --dry-run=false)"
            ),
            _ => {
                let text = error.render().to_string();
                let first = text.lines().next().unwrap_or_default();
                first.trim_start_matches("error: ").to_owned()
            }
        };
        Self::Mistake(mistake)
    }
}

/// Names the argument, or else the variable, that is not UTF-8.
fn not_text(arguments: &[OsString]) -> String {
    let command = Cli::command();
    let variables = command.get_arguments().filter_map(|argument| {
        let name = argument.get_env()?;
        Some((name.to_string_lossy().into_owned(), env::var_os(name)?))
    });
    let arguments = arguments.iter().map(|argument| ("an argument".to_owned(), argument.clone()));
    let culprit = arguments.chain(variables).find(|(_, value)| value.to_str().is_none());
    let (name, value) = culprit.unwrap_or_else(|| ("an argument".to_owned(), OsString::new()));
    format!("{name} cannot be {}: it takes text in UTF-8", quoted(value.as_encoded_bytes()))
}

/// A flag with its variable, which a bad value may have come from.
fn named(flag: &str) -> String {
    let flag = flag.split_whitespace().next().unwrap_or(flag);
    let flag = flag.split(['=', '[']).next().unwrap_or(flag);
    let variable = Cli::command()
        .get_arguments()
        .find(|argument| argument.get_long() == flag.strip_prefix("--"))
        .and_then(|argument| argument.get_env())
        .map(|variable| variable.to_string_lossy().into_owned());
    match variable {
        Some(variable) => format!("{flag} ({variable})"),
        None => flag.to_owned(),
    }
}

fn protocols(text: &str) -> Result<Protocols, String> {
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

fn ports(text: &str) -> Result<Ports, String> {
    let ports: Ports = text.parse().map_err(|reason| {
        format!("{reason}; it takes ports and ranges from 1 to 65535, such as 443,8443,2000-2010")
    })?;
    // Every packet to the host passes every rule, so a plan has an end.
    let config = RuleKeeperConfig {
        sets: RuleSets::Lasting,
        protocols: vec![Protocol::Tcp],
        ports: ports.ranges().to_vec(),
        iptables: None,
    };
    config.plan().map_err(|_| {
        "it takes as many as fit into 16 rules: 240 ports, or 112 ranges; join them into ranges"
            .to_owned()
    })?;
    Ok(ports)
}

fn duration(text: &str) -> Result<Duration, String> {
    let takes = "it takes a duration greater than zero, such as 500ms, 5s, 1m or 1h30m";
    let parsed: jiff::SignedDuration = text.parse().map_err(|_| takes.to_owned())?;
    match Duration::try_from(parsed) {
        Ok(duration) if !duration.is_zero() => Ok(duration),
        _ => Err(takes.to_owned()),
    }
}

fn window(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        window if window <= LONGEST_WINDOW => Ok(window),
        _ => Err("it takes a duration of at most 24h".to_owned()),
    }
}

/// A user silent for this long is forgotten, so no window can be longer.
const LONGEST_WINDOW: Duration = Duration::from_hours(24);

fn path(text: &str) -> Result<PathBuf, String> {
    if text.trim().is_empty() {
        Err("it takes the path of a file".to_owned())
    } else {
        Ok(text.into())
    }
}

fn record_path(text: &str) -> Result<PathBuf, String> {
    match text {
        "-" => Err("it takes the path of a file; the same facts are on stderr anyway".to_owned()),
        _ => path(text),
    }
}

fn binary(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_absolute() {
        Ok(path)
    } else {
        Err("it takes an absolute path, such as /usr/sbin/iptables-legacy".to_owned())
    }
}

fn whole_number(text: &str, least: u32, most: u32) -> Result<u32, String> {
    let plain = text.bytes().all(|byte| byte.is_ascii_digit());
    match text.parse() {
        Ok(number) if plain && (least..=most).contains(&number) => Ok(number),
        _ => Err(format!("it takes a whole number from {least} to {most}")),
    }
}

fn limit(text: &str) -> Result<u32, String> {
    whole_number(text, 1, MOST_PLACES)
}

/// As many as the roster takes ([`refract_core::policy::PLACES_LIMIT`]).
const MOST_PLACES: u32 = 256;

fn max_bans(text: &str) -> Result<u32, String> {
    whole_number(text, 0, 1_000_000)
}

fn ipv4_prefix(text: &str) -> Result<u8, String> {
    prefix(text, 8, 32)
}

fn ipv6_prefix(text: &str) -> Result<u8, String> {
    prefix(text, 16, 128)
}

fn prefix(text: &str, least: u8, most: u8) -> Result<u8, String> {
    let bits = whole_number(text, least.into(), most.into())?;
    u8::try_from(bits).map_err(|error| error.to_string())
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" | "" => Ok(false),
        _ => Err("it takes true or false".to_owned()),
    }
}

fn networks(text: &str) -> Result<Networks, String> {
    text.split(',')
        .map(str::trim)
        .filter(|part| !part.is_empty())
        .map(str::parse)
        .collect::<Result<Vec<Network>, _>>()
        .map(Networks)
        .map_err(|error| format!("{error}; it takes networks such as 10.0.0.0/8,2001:db8::/32"))
}
