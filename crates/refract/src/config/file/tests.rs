//! What a policy file may hold, and what is said of one that holds something else.

use std::time::Duration;

use refract_core::Rule;

use super::*;

#[track_caller]
fn read(text: &str) -> Result<(PolicyFile, Accounts), ConfigError> {
    let file = PolicyFile::parse(Path::new("refract.toml"), text.as_bytes())?;
    let accounts = file.accounts(Places::default())?;
    Ok((file, accounts))
}

#[test]
fn every_way_of_writing_a_value_is_the_command_lines_text() {
    let text = r#"
        window = "10s"
        timeout = '1h30m'
        dport = [443, "8443", "2000-2010"]
        proto = ["tcp", "udp"]
        allow = ["10.0.0.0/8", "2001:db8::/32"]
        limit = 0x02
        max-bans = 1_000
        dry-run = true
        ask = "off"
        "access.log" = "/a"
        block.log = "/b"
        [block]
    "#;
    assert!(read(text).unwrap_err().sentence.starts_with("this is no TOML: "));
    let (file, _) =
        read(text.trim_end_matches(&[' ', '\n'][..]).trim_end_matches("[block]")).unwrap();
    let flags: Vec<_> = file
        .flags
        .iter()
        .map(|flag| format!("{}={} {}", flag.what.name, flag.what.text, flag.place.line))
        .collect();
    assert_eq!(
        flags,
        [
            "window=10s 2",
            "timeout=1h30m 3",
            "dport=443,8443,2000-2010 4",
            "proto=tcp,udp 5",
            "allow=10.0.0.0/8,2001:db8::/32 6",
            "limit=2 7",
            "max-bans=1000 8",
            "dry-run=true 9",
            "ask=off 10",
            "access.log=/a 11",
            "block.log=/b 12",
        ]
    );
    let (file, _) = read("[log]\nformat = 'json'\n[state]\nfile = '/s'").unwrap();
    assert_eq!(file.flags.len(), 2);
}

#[test]
fn rules_keep_the_order_of_the_file() {
    let (file, accounts) = read(
        "ignore = ['z*', 'Admin']\n[limits]\n'b??' = 2\n'b*x' = 'unlimited'\n'*y' = 3\n\
         [groups.Family]\nlimit = 4\nmembers = ['Mum']\n[groups.empty]\nlimit = 0\n\
         members = []",
    )
    .unwrap();
    let limits: Vec<_> = file.limits.iter().map(|limit| limit.what.0.as_str()).collect();
    assert_eq!(limits, ["b??", "b*x", "*y"]);
    assert_eq!(accounts.of(b"bay").rule, Rule::Pattern("b??"));
    assert_eq!(accounts.of(b"bx").places, Places::Unlimited);
    assert_eq!(accounts.of(b"zy").rule, Rule::Ignore("z*"));
    assert_eq!(accounts.of(b"admin").places, Places::Ignored);
    assert_eq!(accounts.of(b"mum").identity, b"\nfamily");
}

/// Files, and what is said of each behind its name.
const MISTAKES: &[(&str, &str)] = &[
    ("windw = '5s'", "1:1: there is no \"windw\"; did you mean window?"),
    ("dry_run = true", "1:1: there is no \"dry_run\"; did you mean dry-run?"),
    ("\n\n  access_log = 'x'", "3:3: there is no \"access_log\"; did you mean access.log?"),
    ("log.formt = 'x'", "1:5: there is no \"log.formt\"; did you mean log.format?"),
    (
        "[limit]\n'a' = 1",
        "1:1: limit takes one value and not a table; limits of users are \
          in [limits]",
    ),
    ("[group.x]\nlimit = 1", "1:2: there is no \"group\"; did you mean groups?"),
    (
        "nonsense = 1",
        "1:1: there is no \"nonsense\"; refract --help lists what there is, limits, groups \
             and ignore aside",
    ),
    (
        "'\u{202e}\u{7}' = 1",
        "1:3: this is no TOML: invalid literal string, expected non-single-quote visible \
             characters",
    ),
    (
        "\"\\u0007\" = 1",
        "1:1: there is no \"\\x07\"; refract --help lists what there is, limits, groups and \
             ignore aside",
    ),
    ("config = '/x'", "1:1: config says where this file is, and cannot be in it"),
    (
        "window = 5",
        "1:10: window cannot be \"5\": it takes a duration greater than zero, such as \
             500ms, 5s, 1m or 1h30m",
    ),
    ("keep = 'none'", "1:8: keep cannot be \"none\": it takes first or last"),
    ("window = ['5s']", "1:10: window takes one value and not a list"),
    ("window = 2026-01-01", "1:10: window takes one value and not a date"),
    ("dport = [443, [1]]", "1:15: dport takes one value and not a list"),
    (
        "allow = ['10.0.0.0/8',\n  '10.0.0.1/8']",
        "2:3: allow cannot be \"10.0.0.1/8\": 10.0.0.1/8 has bits set behind its prefix: \
             write 10.0.0.0/8, or 10.0.0.1 alone; it takes networks such as \
             10.0.0.0/8,2001:db8::/32",
    ),
    ("'log.format' = 'text'\nlog.format = 'json'", "2:5: log.format is set twice"),
    (
        "limits = 2",
        "1:10: limits takes names and places: [limits], then \
          \"alice@example.com\" = 2",
    ),
    ("groups = 2", "1:10: groups are tables: [groups.family], then members and limit"),
    ("ignore = 'x'", "1:10: ignore takes a list, such as [\"admin@*\"]"),
    (
        "ignore = ['a', 1]",
        "1:16: ignore takes a list of names and patterns, such as \
          [\"admin@*\"]",
    ),
    (
        "[limits]\n'жук' = 257",
        "2:9: the limit of \"жук\" cannot be \"257\": it takes a whole number from 1 to \
             256, or unlimited (0 means the same)",
    ),
    (
        "[limits]\nalice.smith = 2",
        "2:1: \"alice\" is no name here: a name with a dot is put in quotes",
    ),
    (
        "[limits]\nmax-bans = 2",
        "2:1: max-bans is a setting, and settings come before the first [table]",
    ),
    ("[groups.x]\nmembers = []", "1:9: the group \"x\" has no limit"),
    ("[groups.x]\nlimit = 1", "1:9: the group \"x\" has no members"),
    ("[groups]\nx = 1", "2:5: the group \"x\" is a table with members and limit"),
    (
        "[groups.x]\nlimit = 1\nmember = []",
        "3:1: there is no \"member\" in a group; it has members and limit",
    ),
    (
        "[groups.x]\nlimit = 1\nmembers = 'a'",
        "3:11: members takes a list of names, such as [\"alice@example.com\"]",
    ),
    (
        "[groups.x]\nlimit = 1\nmembers = ['a', 'b*']",
        "3:17: \"b*\" is a pattern, and members of a group are named in full",
    ),
    ("[limits]\n'Ab' = 1\n'aB' = 2", "3:1: \"aB\" is named in line 2 already"),
    ("ignore = ['ab']\n[limits]\n'aB' = 2", "3:1: \"ab\" is named in line 1 already"),
    ("ignore = ['a*']\n[limits]\n'A*' = 2", "3:1: \"A*\" is named in line 1 already"),
    (
        "[groups.x]\nlimit = 1\nmembers = ['a']\n[groups.y]\nlimit = 1\nmembers = ['A']",
        "6:12: \"A\" is named in line 3 already",
    ),
    (
        "[groups.x]\nlimit = 1\nmembers = []\n[groups.X]\nlimit = 1\nmembers = []",
        "4:9: the group \"X\" is named in line 1 already",
    ),
    ("[limits]\n'' = 1", "2:1: a name takes 1 to 512 bytes"),
    ("window = '5s'\nwindow = '6s'", "2:1: this is no TOML: duplicate key"),
    ("a = 1 b = 2", "1:9: this is no TOML: unexpected key or value, expected newline, `#`"),
    (
        "window = ",
        "1:10: this is no TOML: string values must be quoted, expected literal \
          string",
    ),
];

#[test]
fn a_mistake_is_named_with_its_line_and_column() {
    let mut wrong = Vec::new();
    for (text, expected) in MISTAKES {
        let error = read(text).map(drop).unwrap_err().to_string();
        if error != format!("refract.toml:{expected}") {
            wrong.push((error, expected));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");

    let error = PolicyFile::parse(Path::new("refract.toml"), b"a = 1\n\xc3\xa9\xff").unwrap_err();
    assert_eq!(error.to_string(), "refract.toml:2:2: it is no text in UTF-8");
}

#[test]
fn a_file_as_long_as_it_may_be_is_read_at_once() {
    use std::fmt::Write as _;

    let mut text = "[limits]\n".to_owned();
    let mut number = 0;
    while (text.len() as u64) < FILE_LIMIT - 32 {
        writeln!(text, "user{number}@x = 2").unwrap();
        number += 1;
    }
    let text = text.replace("user", "'user").replace("@x", "'");
    let started = std::time::Instant::now();
    let (file, _) = read(&text).unwrap();
    assert_eq!(file.limits.len(), number);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn what_is_no_readable_file_is_refused_and_one_that_is_not_there_is_none() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("refract.toml");
    assert_eq!(PolicyFile::read(&path), Ok(None));
    let sentence = |path: &Path| PolicyFile::read(path).unwrap_err().sentence;
    assert_eq!(sentence(directory.path()), "it cannot be read: it is not a file");
    let link = directory.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    assert_eq!(sentence(&link), "it is a link to a file that does not exist");
    fs::write(&path, "#".repeat(usize::try_from(FILE_LIMIT).unwrap() + 1)).unwrap();
    assert_eq!(sentence(&link), "it is longer than 1048576 bytes");
    fs::write(&path, "#".repeat(usize::try_from(FILE_LIMIT).unwrap())).unwrap();
    assert!(PolicyFile::read(&link).unwrap().is_some());
}
