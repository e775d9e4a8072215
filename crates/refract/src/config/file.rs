//! The policy file: a path in, what is written there out, with the place of every word.
//!
//! Each value of a flag is checked by the command line's own parser, each rule about users by
//! [`Accounts`], so that nothing is decided twice. It knows nothing of flags and variables that
//! were given, nor of which of them wins.

use std::{
    fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use refract_core::{
    AccountTerms, Accounts, Error as RuleError, Group, Places, identity::folded_name, is_pattern,
};
use toml::{
    Spanned,
    de::{DeString, DeTable, DeValue},
};

use super::{ConfigError, Place};
use crate::{audit::open_to_read, cli, escape::quoted};

/// The longest policy file, bytes.
pub const FILE_LIMIT: u64 = 1 << 20;
/// What a policy file holds besides flags.
const SECTIONS: [&str; 3] = ["limits", "groups", "ignore"];
/// How many letters may be wrong in a key for another to be suggested.
const SLIPS: usize = 2;

type Key<'a> = Spanned<DeString<'a>>;
type Value<'a> = Spanned<DeValue<'a>>;

/// A text where it was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written<T> {
    /// What.
    pub what: T,
    /// Where.
    pub place: Place,
}

/// A flag's value as the command line would take it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FlagValue {
    /// The flag's name, without its dashes.
    pub name: String,
    /// The value.
    pub text: String,
}

/// Users who share their places.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenGroup {
    /// The group's name.
    pub name: Written<String>,
    /// Who is in it.
    pub members: Vec<Written<String>>,
    /// What all of them together have.
    pub places: Places,
}

/// A policy file that was read; lists are in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFile {
    /// Where it is.
    pub path: PathBuf,
    /// Values of flags.
    pub flags: Vec<Written<FlagValue>>,
    /// Names and patterns, and what they have.
    pub limits: Vec<Written<(String, Places)>>,
    /// Groups.
    pub groups: Vec<WrittenGroup>,
    /// Names and patterns of users who are never counted.
    pub ignore: Vec<Written<String>>,
}

impl PolicyFile {
    /// Reads the file; `None` when there is none.
    pub fn read(path: &Path) -> Result<Option<Self>, ConfigError> {
        let trouble = |sentence: String| ConfigError::whole(path, sentence);
        let file = match open_to_read(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                // A link that leads nowhere is a slip, not the wish to have no policy.
                return match fs::symlink_metadata(path) {
                    Ok(_) => Err(trouble("it is a link to a file that does not exist".to_owned())),
                    Err(_) => Ok(None),
                };
            }
            Err(error) => return Err(trouble(format!("it cannot be read: {error}"))),
        };
        let mut bytes = Vec::new();
        file.take(FILE_LIMIT + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| trouble(format!("it cannot be read: {error}")))?;
        if bytes.len() as u64 > FILE_LIMIT {
            return Err(trouble(format!("it is longer than {FILE_LIMIT} bytes")));
        }
        Self::parse(path, &bytes).map(Some)
    }

    /// Takes the bytes of the file at `path`.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, ConfigError> {
        let text = match std::str::from_utf8(bytes) {
            Ok(text) => text,
            Err(error) => {
                let valid = bytes.get(..error.valid_up_to()).unwrap_or_default();
                let before = String::from_utf8_lossy(valid);
                let sentence = "it is no text in UTF-8".to_owned();
                return Err(Reader::new(path, &before).error(before.len(), sentence));
            }
        };
        let mut reader = Reader::new(path, text);
        let table = DeTable::parse(text).map_err(|error| {
            let place = error.span().map_or(text.len(), |span| span.start);
            // The parser's words, which hold nothing of the file.
            reader.error(place, format!("this is no TOML: {}", error.message()))
        })?;
        reader.table("", table.get_ref())?;
        Ok(reader.file)
    }

    /// What each user may, where whoever is not named has `default`.
    pub fn accounts(&self, default: Places) -> Result<Accounts, ConfigError> {
        let of_limits = |pattern: bool| {
            self.limits
                .iter()
                .map(|limit| limit.what.clone())
                .filter(|(text, _)| is_pattern(text) == pattern)
                .collect()
        };
        let groups = self.groups.iter().map(|group| Group {
            name: group.name.what.clone(),
            members: group.members.iter().map(|member| member.what.clone()).collect(),
            places: group.places,
        });
        Accounts::new(AccountTerms {
            default,
            users: of_limits(false),
            patterns: of_limits(true),
            groups: groups.collect(),
            ignore: self.ignore.iter().map(|text| text.what.clone()).collect(),
        })
        .map_err(|error| self.contradiction(&error))
    }

    /// The places where users and patterns are named, in the order of the file.
    fn names(&self) -> Vec<(&str, Place)> {
        let limits = self.limits.iter().map(|limit| (limit.what.0.as_str(), limit.place));
        let members = self.groups.iter().flat_map(|group| &group.members);
        let others = members.chain(&self.ignore).map(|name| (name.what.as_str(), name.place));
        let mut names: Vec<_> = limits.chain(others).collect();
        names.sort_by_key(|(_, place)| *place);
        names
    }

    /// Says where the rules are that cannot be together.
    fn contradiction(&self, error: &RuleError) -> ConfigError {
        let at = |place: Option<Place>, sentence: String| ConfigError {
            file: self.path.clone(),
            place,
            sentence,
        };
        match error {
            RuleError::NamedTwice { name, .. } => {
                let same =
                    |text: &str| folded_name(text.as_bytes()) == folded_name(name.as_bytes());
                let everyone = self.names();
                let mut places: Vec<_> = everyone
                    .iter()
                    .filter(|(text, _)| same(text))
                    .map(|(_, place)| *place)
                    .collect();
                let mut what = "";
                // Two users are in two places; else two groups have one name.
                if places.len() < 2 {
                    what = "the group ";
                    let groups = self.groups.iter().filter(|group| same(&group.name.what));
                    places = groups.map(|group| group.name.place).collect();
                    places.sort_unstable();
                }
                let name = quoted(name.as_bytes());
                match places.as_slice() {
                    [first, second, ..] => {
                        let line = first.line;
                        at(Some(*second), format!("{what}{name} is named in line {line} already"))
                    }
                    _ => at(None, error.to_string()),
                }
            }
            RuleError::NotAName { name } => {
                let members = self.groups.iter().flat_map(|group| &group.members);
                let place = members.into_iter().find(|member| member.what == *name);
                let sentence = format!(
                    "{} is a pattern, and members of a group are named in full",
                    quoted(name.as_bytes())
                );
                at(place.map(|member| member.place), sentence)
            }
            RuleError::NameLength { name, limit } => {
                let names = self.names();
                let groups =
                    self.groups.iter().map(|group| (group.name.what.as_str(), group.name.place));
                let place = names.into_iter().chain(groups).find(|(text, _)| text == name);
                at(place.map(|(_, place)| place), format!("a name takes 1 to {limit} bytes"))
            }
            _ => at(None, error.to_string()),
        }
    }
}

/// What is being made of a file.
struct Reader {
    /// Bytes in front of each line.
    lines: Vec<usize>,
    text: String,
    flags: Vec<String>,
    file: PolicyFile,
}

impl Reader {
    fn new(path: &Path, text: &str) -> Self {
        let ends = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n');
        Self {
            lines: std::iter::once(0).chain(ends.map(|(place, _)| place + 1)).collect(),
            text: text.to_owned(),
            flags: cli::flag_names(),
            file: PolicyFile {
                path: path.to_owned(),
                flags: Vec::new(),
                limits: Vec::new(),
                groups: Vec::new(),
                ignore: Vec::new(),
            },
        }
    }

    fn place(&self, offset: usize) -> Place {
        let line = self.lines.partition_point(|start| *start <= offset);
        let start = line.checked_sub(1).and_then(|before| self.lines.get(before));
        let before = self.text.get(start.copied().unwrap_or(0)..offset).unwrap_or_default();
        Place { line, column: before.chars().count() + 1 }
    }

    fn error(&self, offset: usize, sentence: String) -> ConfigError {
        ConfigError { file: self.file.path.clone(), place: Some(self.place(offset)), sentence }
    }

    fn at<T>(&self, spanned: &Spanned<T>, sentence: String) -> ConfigError {
        self.error(spanned.span().start, sentence)
    }

    fn written<T, S>(&self, what: T, spanned: &Spanned<S>) -> Written<T> {
        Written { what, place: self.place(spanned.span().start) }
    }

    /// The settings of a table; `within` is its name with a dot, or nothing.
    fn table(&mut self, within: &str, table: &DeTable<'_>) -> Result<(), ConfigError> {
        for (key, value) in in_order(table) {
            let name = format!("{within}{}", key.get_ref());
            match (name.as_str(), value.get_ref()) {
                ("config", _) => {
                    let sentence = "config says where this file is, and cannot be in it";
                    return Err(self.at(key, sentence.to_owned()));
                }
                ("limits", DeValue::Table(limits)) => self.limits(limits)?,
                ("groups", DeValue::Table(groups)) => self.groups(groups)?,
                ("ignore", DeValue::Array(_)) => {
                    let takes = "ignore takes a list of names and patterns, such as [\"admin@*\"]";
                    self.file.ignore = self.texts(value, takes)?;
                }
                ("limits", _) => {
                    let sentence = "limits takes names and places: [limits], then \
                                    \"alice@example.com\" = 2";
                    return Err(self.at(value, sentence.to_owned()));
                }
                ("groups", _) => {
                    let sentence = "groups are tables: [groups.family], then members and limit";
                    return Err(self.at(value, sentence.to_owned()));
                }
                ("ignore", _) => {
                    let sentence = "ignore takes a list, such as [\"admin@*\"]";
                    return Err(self.at(value, sentence.to_owned()));
                }
                (_, DeValue::Table(inner)) if self.begins_a_flag(&name) => {
                    self.table(&format!("{name}."), inner)?;
                }
                _ if self.flags.contains(&name) => self.flag(name, key, value)?,
                _ => return Err(self.at(key, self.unknown(&name))),
            }
        }
        Ok(())
    }

    fn begins_a_flag(&self, name: &str) -> bool {
        self.flags
            .iter()
            .any(|flag| flag.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
    }

    fn unknown(&self, name: &str) -> String {
        let known = self.flags.iter().map(String::as_str).chain(SECTIONS);
        let nearest = known
            .map(|known| (strsim::osa_distance(&name.replace('_', "-"), known), known))
            .filter(|(slips, known)| *slips <= SLIPS && *slips < known.len())
            .min();
        let suggestion = match nearest {
            Some((_, known)) => format!("did you mean {known}?"),
            None => {
                "refract --help lists what there is, limits, groups and ignore aside".to_owned()
            }
        };
        format!("there is no {}; {suggestion}", quoted(name.as_bytes()))
    }

    fn flag(&mut self, name: String, key: &Key<'_>, value: &Value<'_>) -> Result<(), ConfigError> {
        if self.file.flags.iter().any(|flag| flag.what.name == name) {
            return Err(self.at(key, format!("{name} is set twice")));
        }
        let text = match value.get_ref() {
            DeValue::Array(parts) if cli::takes_a_list(&name) => self.list(&name, value, parts)?,
            _ => {
                let text = self.scalar(&name, value)?;
                self.check(&name, &text, value)?;
                text
            }
        };
        let flag = self.written(FlagValue { name, text }, key);
        self.file.flags.push(flag);
        Ok(())
    }

    /// The text of a list. Each check makes the whole command line anew, so it is checked as a
    /// whole, and its parts only where that is to say which of them is wrong.
    fn list(
        &self,
        name: &str,
        list: &Value<'_>,
        parts: &[Value<'_>],
    ) -> Result<String, ConfigError> {
        let texts: Result<Vec<_>, _> = parts.iter().map(|part| self.scalar(name, part)).collect();
        let checked = texts.and_then(|texts| {
            let text = texts.join(",");
            self.check(name, &text, list).map(|()| text)
        });
        checked.or_else(|mistake| {
            for part in parts {
                self.check(name, &self.scalar(name, part)?, part)?;
            }
            Err(mistake)
        })
    }

    fn check(&self, name: &str, text: &str, value: &Value<'_>) -> Result<(), ConfigError> {
        cli::check_value(name, text).map_err(|takes| {
            self.at(value, format!("{name} cannot be {}: {takes}", quoted(text.as_bytes())))
        })
    }

    /// The text of one value.
    fn scalar(&self, name: &str, value: &Value<'_>) -> Result<String, ConfigError> {
        let what = match value.get_ref() {
            DeValue::String(text) => return Ok(text.to_string()),
            DeValue::Boolean(switch) => return Ok(switch.to_string()),
            DeValue::Float(number) => return Ok(number.as_str().to_owned()),
            DeValue::Integer(number) => {
                let plain = i128::from_str_radix(number.as_str(), number.radix());
                return Ok(plain.map_or_else(|_| number.to_string(), |plain| plain.to_string()));
            }
            DeValue::Datetime(_) => "a date",
            DeValue::Array(_) => "a list",
            DeValue::Table(_) if name == "limit" => "a table; limits of users are in [limits]",
            DeValue::Table(_) => "a table",
        };
        Err(self.at(value, format!("{name} takes one value and not {what}")))
    }

    fn places(&self, of: &str, value: &Value<'_>) -> Result<Places, ConfigError> {
        let text = self.scalar(of, value)?;
        cli::limit(&text).map_err(|takes| {
            self.at(value, format!("{of} cannot be {}: {takes}", quoted(text.as_bytes())))
        })
    }

    fn limits(&mut self, limits: &DeTable<'_>) -> Result<(), ConfigError> {
        for (key, value) in in_order(limits) {
            let name = key.get_ref().to_string();
            // Else a setting that slipped behind a table would be a user nobody has heard of.
            if self.flags.contains(&name) || SECTIONS.contains(&name.as_str()) {
                return Err(self.at(
                    key,
                    format!("{name} is a setting, and settings come before the first [table]"),
                ));
            }
            if let DeValue::Table(_) = value.get_ref() {
                let name = quoted(name.as_bytes());
                return Err(self.at(
                    key,
                    format!("{name} is no name here: a name with a dot is put in quotes"),
                ));
            }
            let places =
                self.places(&format!("the limit of {}", quoted(name.as_bytes())), value)?;
            let limit = self.written((name, places), key);
            self.file.limits.push(limit);
        }
        Ok(())
    }

    fn groups(&mut self, groups: &DeTable<'_>) -> Result<(), ConfigError> {
        for (key, value) in in_order(groups) {
            let name = quoted(key.get_ref().as_bytes());
            let DeValue::Table(group) = value.get_ref() else {
                let sentence = format!("the group {name} is a table with members and limit");
                return Err(self.at(value, sentence));
            };
            let (mut members, mut places) = (None, None);
            for (setting, value) in in_order(group) {
                match setting.get_ref().as_ref() {
                    "members" => {
                        let takes =
                            "members takes a list of names, such as [\"alice@example.com\"]";
                        members = Some(self.texts(value, takes)?);
                    }
                    "limit" => places = Some(self.places("limit", value)?),
                    other => {
                        let other = quoted(other.as_bytes());
                        return Err(self.at(
                            setting,
                            format!("there is no {other} in a group; it has members and limit"),
                        ));
                    }
                }
            }
            let lacks = |what: &str| self.at(key, format!("the group {name} has no {what}"));
            let group = WrittenGroup {
                members: members.ok_or_else(|| lacks("members"))?,
                places: places.ok_or_else(|| lacks("limit"))?,
                name: self.written(key.get_ref().to_string(), key),
            };
            self.file.groups.push(group);
        }
        Ok(())
    }

    fn texts(&self, value: &Value<'_>, takes: &str) -> Result<Vec<Written<String>>, ConfigError> {
        let DeValue::Array(parts) = value.get_ref() else {
            return Err(self.at(value, takes.to_owned()));
        };
        let text = |part: &Value<'_>| match part.get_ref() {
            DeValue::String(text) => Ok(self.written(text.to_string(), part)),
            _ => Err(self.at(part, takes.to_owned())),
        };
        parts.iter().map(text).collect()
    }
}

/// A table's entries as they were written.
fn in_order<'t, 'a>(table: &'t DeTable<'a>) -> Vec<(&'t Key<'a>, &'t Value<'a>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    entries
}

#[cfg(test)]
mod tests;
