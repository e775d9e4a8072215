//! What the daemon runs by: arguments, environment and the policy file in, [`Settings`] out.
//!
//! A flag beats its variable, which beats the file, which beats the default. It reads one file and
//! remembers where each value came from; it watches nothing ([`watch`] does) and puts nothing into
//! force.

pub mod file;
pub mod watch;

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use clap::{ArgMatches, parser::ValueSource};
use refract_core::{AccountTerms, Accounts};

use self::file::PolicyFile;
use crate::{
    cli::{self, Cli, Command, Flags, Refusal},
    escape::printable,
    firewall,
};

/// A place in the policy file, both counted from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The character in that line.
    pub column: usize,
}

/// What is wrong with the policy file: where, and one sentence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The file.
    pub file: PathBuf,
    /// Where in it; `None` for the file as a whole.
    pub place: Option<Place>,
    /// What is wrong.
    pub sentence: String,
}

impl ConfigError {
    fn whole(file: &Path, sentence: impl Into<String>) -> Self {
        Self { file: file.to_owned(), place: None, sentence: sentence.into() }
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&shown(&self.file))?;
        if let Some(Place { line, column }) = self.place {
            write!(out, ":{line}:{column}")?;
        }
        write!(out, ": {}", self.sentence)
    }
}

impl std::error::Error for ConfigError {}

/// A path, safe to show.
pub(crate) fn shown(path: &Path) -> String {
    printable(path.as_os_str().as_encoded_bytes())
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The command line: a flag, or the file that `check` was given.
    Flag,
    /// A variable of this name.
    Variable(String),
    /// This line of the policy file.
    File(usize),
    /// Nobody said anything.
    Default,
}

/// A flag's value and where it comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// The flag, without its dashes.
    pub name: String,
    /// As it was written; `None` where nothing was and there is no default.
    pub value: Option<String>,
    /// Who said so.
    pub origin: Origin,
}

/// Everything that the daemon runs by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The flags, those that the policy file holds included.
    pub flags: Flags,
    /// What each user may.
    pub accounts: Arc<Accounts>,
    /// Every flag with its value, in the order of the help text.
    pub effective: Vec<Effective>,
    /// The policy file as it was read; `None` when there is none.
    pub file: Option<PolicyFile>,
    /// What this was loaded with.
    arguments: Vec<OsString>,
}

/// Reads arguments, environment and the policy file. Only a file that nobody named may be absent.
///
/// A mistake on the command line and one in the file are different refusals.
pub fn load(arguments: impl IntoIterator<Item = OsString>) -> Result<Settings, Refusal> {
    let arguments: Vec<OsString> = arguments.into_iter().collect();
    let (cli, matches) = cli::parse_over(&arguments, &[])?;
    let source = of_flags(&matches).value_source("config");
    let argument = match &cli.command {
        Some(Command::Check { file, .. }) => file.clone(),
        _ => None,
    };
    if argument.is_some() && source == Some(ValueSource::CommandLine) {
        let sentence = "check takes a file or --config and not both";
        return Err(Refusal::Mistake(sentence.to_owned()));
    }
    let as_argument = argument.is_some();
    let named = as_argument || source != Some(ValueSource::DefaultValue);
    let path = argument.unwrap_or_else(|| flags_of(cli).config);
    let file = PolicyFile::read(&path).map_err(Refusal::File)?;
    if file.is_none() && named {
        return Err(Refusal::File(ConfigError::whole(&path, "there is no such file")));
    }

    let written = file.as_ref().map(|file| file.flags.as_slice()).unwrap_or_default();
    let defaults: Vec<_> =
        written.iter().map(|flag| (flag.what.name.as_str(), flag.what.text.as_str())).collect();
    let (cli, matches) = cli::parse_over(&arguments, &defaults)?;
    let mut effective = effective(of_flags(&matches), file.as_ref());
    if as_argument && let Some(config) = effective.iter_mut().find(|flag| flag.name == "config") {
        config.value = Some(path.to_string_lossy().into_owned());
        config.origin = Origin::Flag;
    }
    let flags = Flags { config: path, ..flags_of(cli) };
    firewall::require_hook(&flags).map_err(|error| {
        let sentence = error.to_string();
        match place_of(&["chain", "firewall"], &effective, file.as_ref()) {
            Some(place) => Refusal::Contradiction(ConfigError {
                file: flags.config.clone(),
                place: Some(place),
                sentence,
            }),
            None => Refusal::Mistake(sentence),
        }
    })?;
    let accounts = if let Some(file) = &file {
        file.accounts(flags.limit).map_err(Refusal::File)?
    } else {
        let terms = AccountTerms { default: flags.limit, ..AccountTerms::default() };
        Accounts::new(terms).map_err(|error| Refusal::Mistake(error.to_string()))?
    };
    Ok(Settings { flags, accounts: Arc::new(accounts), effective, file, arguments })
}

impl Settings {
    /// Reads the policy file again, with the same arguments and environment. A file that is gone
    /// is a mistake: whoever wants to do without starts the daemon again.
    pub fn reload(&self) -> Result<Self, ConfigError> {
        let settings = load(self.arguments.iter().cloned()).map_err(|refusal| match refusal {
            Refusal::File(error) | Refusal::Contradiction(error) => error,
            Refusal::Mistake(sentence) | Refusal::Text(sentence) => {
                ConfigError::whole(&self.flags.config, sentence)
            }
        })?;
        if settings.file.is_none() && self.file.is_some() {
            return Err(ConfigError::whole(
                &self.flags.config,
                "it is gone; what it said stays in force until refract is started again",
            ));
        }
        Ok(settings)
    }

    /// The flags that differ from `old` and hold only from the next start on.
    #[must_use]
    pub fn needs_restart(&self, old: &Self) -> Vec<&'static str> {
        let (new, old) = (&self.flags, &old.flags);
        [
            ("proto", new.proto != old.proto),
            ("dport", new.dport != old.dport),
            ("access.log", new.access_log != old.access_log),
            ("block.log", new.block_log != old.block_log),
            ("block.format", new.block_format != old.block_format),
            ("log.format", new.log_format != old.log_format),
            ("state.file", new.state_path() != old.state_path()),
            ("firewall", new.firewall != old.firewall),
            ("chain", new.chain != old.chain),
            ("iptables", new.iptables != old.iptables),
            ("dry-run", new.dry_run != old.dry_run),
            ("config", new.config != old.config),
            ("evidence", new.evidence != old.evidence),
            ("strip-mptcp", new.strip_mptcp != old.strip_mptcp),
            ("sandbox", new.sandbox != old.sandbox),
            ("netns", new.netns != old.netns),
            ("ipv4-prefix", new.ipv4_prefix != old.ipv4_prefix),
            ("ipv6-prefix", new.ipv6_prefix != old.ipv6_prefix),
            ("shared-source-users", new.shared_source_users != old.shared_source_users),
        ]
        .into_iter()
        .filter_map(|(name, differs)| differs.then_some(name))
        .collect()
    }
}

/// The matches of the command that was given the daemon's flags.
fn of_flags(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, of_command)| of_command)
}

fn flags_of(cli: Cli) -> Flags {
    match cli.command {
        Some(Command::Check { flags, .. } | Command::Doctor { flags }) => *flags,
        _ => cli.flags,
    }
}

/// Where the first of the flags `names` that holds as the policy file has it is written there.
fn place_of(names: &[&str], effective: &[Effective], file: Option<&PolicyFile>) -> Option<Place> {
    let is_of_file = |name: &&&str| {
        let of_file = |flag: &&Effective| matches!(flag.origin, Origin::File(_));
        effective.iter().filter(of_file).any(|flag| flag.name == **name)
    };
    let name = names.iter().find(is_of_file)?;
    file?.flags.iter().find(|flag| flag.what.name == *name).map(|flag| flag.place)
}

fn effective(matches: &ArgMatches, file: Option<&PolicyFile>) -> Vec<Effective> {
    let line = |name: &str| {
        let written = file?.flags.iter().find(|flag| flag.what.name == name)?;
        Some(written.place.line)
    };
    cli::flag_arguments()
        .into_iter()
        .filter_map(|argument| {
            let name = argument.get_long()?.to_owned();
            let id = argument.get_id().as_str();
            let value = matches.get_raw(id).map(|values| {
                values.map(|value| value.to_string_lossy()).collect::<Vec<_>>().join(",")
            });
            let origin = match (matches.value_source(id), argument.get_env()) {
                (Some(ValueSource::CommandLine), _) => Origin::Flag,
                (Some(ValueSource::EnvVariable), Some(variable)) => {
                    Origin::Variable(variable.to_string_lossy().into_owned())
                }
                _ => line(&name).map_or(Origin::Default, Origin::File),
            };
            Some(Effective { name, value, origin })
        })
        .collect()
}
