//! The command line: arguments and environment in, [`Cli`] or one sentence of refusal out.
//!
//! It checks each value by itself (`values` does) and touches nothing. The given flags, their names, variables and
//! defaults never change: operators have them in scripts.

mod values;

use std::{env, ffi::OsString, fmt, path::PathBuf, time::Duration};

use clap::{
    Arg, ArgAction, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand,
    ValueEnum,
    error::{ContextKind, ContextValue, ErrorKind},
};
use refract_core::{Action, Keep, Network, Places};
use refract_kernel::xtables::ChainName;

pub(crate) use self::values::limit;
use self::values::{
    binary, cdn_sources, chain, duration, ipv4_prefix, ipv6_prefix, max_bans, networks, on_or_off,
    path, ports, protocols, record_path, shared_source_users, state_path, switch, user_bans,
    window,
};
use crate::{
    audit::BlockFormat, config::ConfigError, escape::quoted, netns, ports::Ports,
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
  refract check --user=alice@example.com   what the policy file gives one user
  refract list                             bans in force and the time they have left
  refract unban 198.51.100.7               lift one

A flag beats its variable, which beats the policy file, which beats the default. Durations are written 500ms, 5s, 1m, 1h30m.";

/// The commands; each works without a running daemon.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Show the bans in the kernel with the time they have left
    List {
        /// In which network namespace
        #[command(flatten)]
        at: Where,
    },
    /// Lift bans: the named sources, or all of them
    Unban {
        /// Addresses or networks as `refract list` shows them
        #[arg(required_unless_present = "all", value_name = "SOURCE")]
        sources: Vec<String>,
        /// Lift every ban
        #[arg(long, conflicts_with = "sources")]
        all: bool,
        /// In which network namespace
        #[command(flatten)]
        at: Where,
    },
    /// Say why an address was banned: its records in the block log
    Why {
        /// The address or network
        #[arg(value_name = "ADDRESS")]
        source: String,
        /// The block log to answer from [default: /var/log/refract/block.log of the systemd unit, or
        /// else /var/log/xray/block.log]
        #[arg(
            long = "block.log",
            env = "REFRACT_BLOCK_LOG",
            hide_env_values = true,
            value_name = "FILE",
            value_parser = path
        )]
        block_log: Option<PathBuf>,
    },
    /// Read the policy file, say what is wrong with it, or what is in force with it
    Check {
        /// The policy file, as --config names it
        #[arg(value_name = "FILE", value_parser = path)]
        file: Option<PathBuf>,
        /// Say only what this user may, and which rule says so
        #[arg(long, value_name = "NAME", allow_hyphen_values = true)]
        user: Option<String>,
        /// The flags the daemon is started with
        #[command(flatten)]
        flags: Box<Flags>,
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
        /// In which network namespace
        #[command(flatten)]
        at: Where,
    },
}

/// Where a command that takes no flags of the daemon looks.
#[derive(Args, Clone, Debug)]
pub struct Where {
    /// The network namespace that the daemon was given
    #[arg(long, env = "REFRACT_NETNS", hide_env_values = true, value_name = "NAME|PATH",
          value_parser = netns::path_of, allow_hyphen_values = true)]
    pub netns: Option<PathBuf>,
}

/// Flags of the daemon.
#[expect(
    clippy::struct_excessive_bools,
    reason = "each is a switch of its own on the command line"
)]
#[derive(Args, Clone, Debug)]
pub struct Flags {
    /// The policy file: these flags without their dashes, limits, groups and who to ignore
    #[arg(long, env = "REFRACT_CONFIG", hide_env_values = true, default_value = DEFAULT_CONFIG,
          value_name = "FILE", value_parser = path, allow_hyphen_values = true)]
    pub config: PathBuf,

    /// Transport to enforce on: tcp, udp, or tcp,udp
    #[arg(long, env = "REFRACT_PROTO", hide_env_values = true, default_value = "tcp", value_name = "PROTO", value_parser = protocols,
          allow_hyphen_values = true)]
    pub proto: Protocols,

    /// Local ports of the protected connections, lists and ranges: 443,8443,2000-2010
    #[arg(long, env = "REFRACT_DPORT", hide_env_values = true, default_value = "443", value_name = "PORTS",
          value_parser = ports, allow_hyphen_values = true)]
    pub dport: Ports,

    /// How long addresses may overlap while a user changes networks: how long one counts as live
    /// after its last sign of life
    #[arg(long, env = "REFRACT_WINDOW", hide_env_values = true, default_value = "5s", value_name = "DURATION",
          value_parser = window, allow_hyphen_values = true)]
    pub window: Duration,

    /// How long a ban lasts in the kernel (whole seconds, rounded up; a change holds from the next
    /// ban on)
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

    /// Places per user: how many sources one user may be live from at once, 1 to 256, or unlimited
    #[arg(long, env = "REFRACT_LIMIT", hide_env_values = true, default_value = "1", value_name = "PLACES",
          value_parser = limit, allow_hyphen_values = true)]
    pub limit: Places,

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

    /// Bits of an IPv4 address that make one source (a ban still covers only the addresses that were
    /// seen)
    #[arg(long = "ipv4-prefix", env = "REFRACT_IPV4_PREFIX", hide_env_values = true, default_value = "32",
          value_name = "BITS", value_parser = ipv4_prefix, allow_hyphen_values = true)]
    pub ipv4_prefix: u8,

    /// Bits of an IPv6 address that make one source, and that a ban covers
    #[arg(long = "ipv6-prefix", env = "REFRACT_IPV6_PREFIX", hide_env_values = true, default_value = "64",
          value_name = "BITS", value_parser = ipv6_prefix, allow_hyphen_values = true)]
    pub ipv6_prefix: u8,

    /// What a verdict rests on: kernel, the log checked against it, log, its word alone, or auto,
    /// the kernel from the moment that somebody listens on a protected port
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

    /// What is done to an offender: ban his source, kill only his connections, or auto, ban only
    /// where nobody else is
    #[arg(
        long,
        env = "REFRACT_ACTION",
        hide_env_values = true,
        default_value = "auto",
        value_enum,
        hide_possible_values = true,
        value_name = "ACTION",
        allow_hyphen_values = true
    )]
    pub action: ActionFlag,

    /// Reset one connection of a source that may only be finishing, to see whether a device is
    /// there (on or off)
    #[arg(long, env = "REFRACT_ASK", hide_env_values = true, default_value = "on", value_name = "ON|OFF",
          value_parser = on_or_off, action = ArgAction::Set, allow_hyphen_values = true)]
    pub ask: bool,

    /// Most users banned in a minute, more are only disconnected; 0 is no bound
    #[arg(long = "max-bans", env = "REFRACT_MAX_BANS", hide_env_values = true, default_value = "600",
          value_name = "USERS", value_parser = max_bans, allow_hyphen_values = true)]
    pub max_bans: u32,

    /// Most bans a minute for the sources of one user, more are only disconnected; 0 is no bound
    #[arg(long = "user-bans", env = "REFRACT_USER_BANS", hide_env_values = true, default_value = "10",
          value_name = "BANS", value_parser = user_bans, allow_hyphen_values = true)]
    pub user_bans: u32,

    /// A source with so many users is a proxy: never banned
    #[arg(long = "shared-source-users", env = "REFRACT_SHARED_SOURCE_USERS", hide_env_values = true,
          default_value = "8", value_name = "USERS", value_parser = shared_source_users,
          allow_hyphen_values = true)]
    pub shared_source_users: u32,

    /// A user on so many sources in one window, half of which carry others too, is behind a CDN:
    /// nobody is banned there
    #[arg(long = "cdn-sources", env = "REFRACT_CDN_SOURCES", hide_env_values = true, default_value = "32",
          value_name = "SOURCES", value_parser = cdn_sources, allow_hyphen_values = true)]
    pub cdn_sources: u32,

    /// Ban the address of an offender that the log names with udp:, not only that flow
    #[arg(long = "udp-ban", env = "REFRACT_UDP_BAN", hide_env_values = true, value_parser = switch,
          num_args = 0..=1, default_value = "false", default_missing_value = "true",
          require_equals = true, value_name = "BOOL")]
    pub udp_ban: bool,

    /// Decide and record, but touch neither the kernel nor the firewall; it takes no rights beyond
    /// reading the log
    #[arg(long = "dry-run", env = "REFRACT_DRY_RUN", hide_env_values = true, value_parser = switch,
          num_args = 0..=1, default_value = "false", default_missing_value = "true",
          require_equals = true, value_name = "BOOL")]
    pub dry_run: bool,

    /// What must outlast a restart [default: refract.state in the directory of the block log]
    #[arg(long = "state.file", env = "REFRACT_STATE_FILE", hide_env_values = true, value_name = "FILE",
          value_parser = state_path, allow_hyphen_values = true)]
    pub state_file: Option<PathBuf>,
    /// Strip MPTCP from handshakes with the protected TCP ports, so that a client cannot live on
    /// through another subflow
    #[arg(long = "strip-mptcp", env = "REFRACT_STRIP_MPTCP", hide_env_values = true, value_parser = switch,
          num_args = 0..=1, default_value = "true", default_missing_value = "true",
          require_equals = true, value_name = "BOOL")]
    pub strip_mptcp: bool,

    /// Give up what is not needed: capabilities, files, system calls (on or off)
    #[arg(long, env = "REFRACT_SANDBOX", hide_env_values = true, default_value = "on", value_name = "ON|OFF",
          value_parser = on_or_off, action = ArgAction::Set, allow_hyphen_values = true)]
    pub sandbox: bool,

    /// The network namespace that is meant: a name as in ip netns, or a path such as
    /// /proc/PID/ns/net
    #[arg(long, env = "REFRACT_NETNS", hide_env_values = true, value_name = "NAME|PATH",
          value_parser = netns::path_of, allow_hyphen_values = true)]
    pub netns: Option<PathBuf>,

    /// Where bans are kept and enforced: iptables (with ipset), nftables (a table of its own), or
    /// auto, iptables where it works and else nftables
    #[arg(
        long,
        env = "REFRACT_FIREWALL",
        hide_env_values = true,
        default_value = "auto",
        value_enum,
        hide_possible_values = true,
        value_name = "FIREWALL",
        allow_hyphen_values = true
    )]
    pub firewall: FirewallFlag,

    /// The chain that the rule is in: INPUT, or for a proxy in a bridged container FORWARD or
    /// DOCKER-USER
    #[arg(long, env = "REFRACT_CHAIN", hide_env_values = true, default_value = "INPUT", value_name = "CHAIN",
          value_parser = chain, allow_hyphen_values = true)]
    pub chain: ChainName,

    /// The iptables binary, by absolute path (its ip6tables twin lies beside it)
    #[arg(long, env = "REFRACT_IPTABLES", hide_env_values = true, value_name = "PATH", value_parser = binary,
          allow_hyphen_values = true)]
    pub iptables: Option<PathBuf>,
}

/// Where the policy file is when nothing else is said; it need not be there.
pub const DEFAULT_CONFIG: &str = "/etc/refract/refract.toml";

impl Flags {
    /// Where the state file is: as given, or beside the block log.
    #[must_use]
    pub fn state_path(&self) -> PathBuf {
        let beside = || self.block_log.with_file_name("refract.state");
        self.state_file.clone().unwrap_or_else(beside)
    }
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

impl From<ActionFlag> for Action {
    fn from(flag: ActionFlag) -> Self {
        match flag {
            ActionFlag::Auto => Self::Auto,
            ActionFlag::Ban => Self::Ban,
            ActionFlag::Kill => Self::Kill,
        }
    }
}

/// `--evidence`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum EvidenceFlag {
    /// The best there is.
    Auto,
    /// The log's word, checked against what the kernel knows of the connection.
    Kernel,
    /// The log's word alone.
    Log,
}

/// `--firewall`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FirewallFlag {
    /// The first of the others that works here.
    Auto,
    /// Sets of ipset, and a rule that iptables makes.
    Iptables,
    /// A table of nftables.
    Nftables,
}

/// `--action`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ActionFlag {
    /// Ban where the offender is alone at his source, else kill.
    Auto,
    /// Ban the source.
    Ban,
    /// Reset the offender's own connections, and no more.
    Kill,
}

/// Parses the command line; a refusal is one sentence (or, for `--help` and `--version`, the text
/// asked for) with the exit status it ends in.
pub fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, Refusal> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    parse_over(&arguments, &[]).map(|(cli, _)| cli)
}

/// As [`parse`], where `defaults` (flags without dashes, values that [`check_value`] took) stand in
/// for the defaults; and where each value came from.
pub(crate) fn parse_over(
    arguments: &[OsString],
    defaults: &[(&str, &str)],
) -> Result<(Cli, ArgMatches), Refusal> {
    let with_defaults = |command: clap::Command| {
        command.mut_args(|argument| {
            let default = |(name, _): &&(&str, &str)| argument.get_long() == Some(*name);
            match defaults.iter().find(default) {
                Some((_, value)) => argument.default_value((*value).to_owned()),
                None => argument,
            }
        })
    };
    let mut command = with_defaults(Cli::command().version(VERSION));
    for name in ["check", "doctor"] {
        command = command.mut_subcommand(name, with_defaults);
    }
    command
        .try_get_matches_from(arguments)
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)))
        .map_err(|error| match error.kind() {
            ErrorKind::InvalidUtf8 => Refusal::Mistake(not_text(arguments)),
            _ => Refusal::from(error),
        })
}

/// The daemon's flags alone.
#[derive(Debug, Parser)]
#[command(no_binary_name = true)]
struct FlagsAlone {
    #[command(flatten)]
    _flags: Flags,
}

/// The daemon's flags as clap knows them, in the order of the help text.
pub(crate) fn flag_arguments() -> Vec<Arg> {
    FlagsAlone::command().get_arguments().cloned().collect()
}

/// The names of the daemon's flags, without their dashes.
pub(crate) fn flag_names() -> Vec<String> {
    flag_arguments().iter().filter_map(Arg::get_long).map(str::to_owned).collect()
}

/// Whether the value of the flag `name` may be several, with commas between them.
pub(crate) fn takes_a_list(name: &str) -> bool {
    matches!(name, "proto" | "dport" | "allow")
}

/// Whether the flag `name` takes `text`; if not, the error says what it takes.
pub(crate) fn check_value(name: &str, text: &str) -> Result<(), String> {
    FlagsAlone::command()
        .mut_args(|argument| argument.env(None::<&'static str>))
        .try_get_matches_from([format!("--{name}={text}")])
        .map(drop)
        .map_err(|error| takes(&error).unwrap_or_else(|| "it takes something else".to_owned()))
}

/// What a flag takes whose value was refused.
fn takes(error: &clap::Error) -> Option<String> {
    match (error.kind(), error.get(ContextKind::ValidValue)) {
        (ErrorKind::ValueValidation, _) => {
            std::error::Error::source(error).map(ToString::to_string)
        }
        (ErrorKind::InvalidValue, Some(ContextValue::Strings(takes))) if !takes.is_empty() => {
            Some(format!("it takes {}", takes.join(" or ")))
        }
        _ => None,
    }
}

/// What `--version` prints after the name.
const VERSION: &str = concat!(
    env!("CARGO_PKG_VERSION"),
    " (",
    env!("REFRACT_BUILD_COMMIT"),
    ", ",
    env!("REFRACT_BUILD_TARGET"),
    ")"
);

/// A command line that does not start the program.
#[derive(Debug)]
pub enum Refusal {
    /// `--help` or `--version`: text for stdout, exit status 0.
    Text(String),
    /// A mistake: a sentence for stderr, exit status 2.
    Mistake(String),
    /// A mistake in the policy file: a sentence for stderr, exit status 1.
    File(ConfigError),
    /// A value in the policy file that is in order and does not go together with another: a sentence
    /// for stderr, exit status 2, as where both are on the command line.
    Contradiction(ConfigError),
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
            (ErrorKind::ValueValidation | ErrorKind::InvalidValue, Some(flag), _) => {
                match takes(&error) {
                    Some(takes) => format!("{} cannot be {value:?}: {takes}", named(&flag)),
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
