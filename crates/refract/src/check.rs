//! `refract check`: what is in force, and who says so.
//!
//! Takes loaded [`Settings`]; prints every flag with its value and where that comes from, and every
//! rule about users; or what one user may. What is wrong with a file was refused before this.

use std::{fmt::Write as _, io::Write};

use refract_core::{Places, Rule, identity::folded_name};

use crate::{
    commands::print,
    config::{Origin, Place, Settings, file::PolicyFile, shown},
    error::Error,
    escape::{printable, quoted},
};

/// Prints everything.
pub fn everything(settings: &Settings, out: &mut impl Write) -> Result<(), Error> {
    let path = shown(&settings.flags.config);
    let mut text = match &settings.file {
        Some(_) => format!("{path} is in order\n\n"),
        None => format!("there is no policy file: {path} does not exist\n\n"),
    };
    for effective in &settings.effective {
        let origin = match &effective.origin {
            Origin::Flag => "flag".to_owned(),
            Origin::Variable(variable) => format!("variable {variable}"),
            Origin::File(line) => format!("file, line {line}"),
            Origin::Default => "default".to_owned(),
        };
        let value = match (effective.name.as_str(), &effective.value) {
            ("state.file", None) => shown(&settings.flags.state_path()),
            (_, Some(value)) if !value.is_empty() => printable(value.as_bytes()),
            _ => "none".to_owned(),
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{:<20} {value:<30} {origin}", effective.name);
    }
    if let Some(file) = &settings.file {
        rules(file, &mut text);
    }
    print(out, &text)
}

fn rules(file: &PolicyFile, text: &mut String) {
    let mut section = |title: &str, lines: Vec<(String, String, Place)>| {
        if lines.is_empty() {
            return;
        }
        let _ = writeln!(text, "\n{title}");
        for (name, what, Place { line, .. }) in lines {
            let _ = writeln!(text, "  {name:<36} {what:<24} line {line}");
        }
    };
    let limits = file.limits.iter().map(|limit| {
        let (name, places) = &limit.what;
        (quoted(name.as_bytes()), places.to_string(), limit.place)
    });
    section("limits", limits.collect());
    let groups = file.groups.iter().flat_map(|group| {
        let places = format!("{} together", group.places);
        let head = (quoted(group.name.what.as_bytes()), places, group.name.place);
        let member = |member: &crate::config::file::Written<String>| {
            (format!("  {}", quoted(member.what.as_bytes())), "member".to_owned(), member.place)
        };
        std::iter::once(head).chain(group.members.iter().map(member)).collect::<Vec<_>>()
    });
    section("groups", groups.collect());
    let ignore = file
        .ignore
        .iter()
        .map(|name| (quoted(name.what.as_bytes()), Places::Ignored.to_string(), name.place));
    section("ignore", ignore.collect());
}

/// Prints what `user` may and which rule says so.
pub fn one_user(settings: &Settings, user: &str, out: &mut impl Write) -> Result<(), Error> {
    let folded = folded_name(user.as_bytes());
    let account = settings.accounts.of(&folded);
    let together = match (account.rule, account.places) {
        (Rule::Group(..), Places::Limited(_) | Places::Unlimited) => " together with the group",
        _ => "",
    };
    let user = printable(user.as_bytes());
    let why = why(settings, account.rule);
    print(out, &format!("{user}: {}{together} ({why})\n", account.places))
}

/// The rule in words, with its line.
fn why(settings: &Settings, rule: Rule<'_>) -> String {
    let (words, line) = match (rule, &settings.file) {
        (Rule::Default, _) | (_, None) => return format!("limit, {}", origin_of_limit(settings)),
        (Rule::User(text), Some(file)) => {
            (format!("user {}", quoted(text.as_bytes())), line_of_limit(file, text))
        }
        (Rule::Pattern(text), Some(file)) => {
            (format!("pattern {}", quoted(text.as_bytes())), line_of_limit(file, text))
        }
        (Rule::Group(name, _), Some(file)) => {
            let group = file.groups.iter().find(|group| group.name.what == name);
            let line = group.map(|group| group.name.place.line);
            (format!("group {}", quoted(name.as_bytes())), line)
        }
        (Rule::Ignore(text), Some(file)) => {
            let ignore = file.ignore.iter().find(|ignore| ignore.what == text);
            let line = ignore.map(|ignore| ignore.place.line);
            (format!("ignore {}", quoted(text.as_bytes())), line)
        }
    };
    let path = shown(&settings.flags.config);
    match line {
        Some(line) => format!("{words} in {path}:{line}"),
        None => words,
    }
}

fn line_of_limit(file: &PolicyFile, text: &str) -> Option<usize> {
    file.limits.iter().find(|limit| limit.what.0 == text).map(|limit| limit.place.line)
}

fn origin_of_limit(settings: &Settings) -> String {
    let limit = settings.effective.iter().find(|effective| effective.name == "limit");
    match limit.map(|limit| &limit.origin) {
        Some(Origin::Flag) => "flag".to_owned(),
        Some(Origin::Variable(variable)) => format!("variable {variable}"),
        Some(Origin::File(line)) => format!("{}:{line}", shown(&settings.flags.config)),
        Some(Origin::Default) | None => "default".to_owned(),
    }
}
