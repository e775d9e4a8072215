//! The logs of real servers, read whole: `corpus/README.md` says what they are.

#![cfg(test)]

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use refract_core::access;

const CORPUS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/corpus");

/// The logs by name.
fn logs() -> BTreeMap<String, Vec<u8>> {
    let logs: BTreeMap<_, _> = fs::read_dir(CORPUS)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "log"))
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, fs::read(&path).unwrap())
        })
        .collect();
    assert!(!logs.is_empty(), "there is no log in {CORPUS}");
    logs
}

/// The expectations by the name of the log.
fn expectations() -> BTreeMap<String, String> {
    let text = fs::read_to_string(Path::new(CORPUS).join("expected.txt")).unwrap();
    let mut expectations = BTreeMap::new();
    for part in text.split("== ").skip(1) {
        let (name, lines) = part.split_once('\n').unwrap();
        assert!(expectations.insert(name.to_owned(), lines.to_owned()).is_none(), "{name} twice");
    }
    expectations
}

/// What a log says, in the format of `expected.txt`.
fn read(log: &[u8]) -> String {
    let mut said = String::new();
    let mut rejections = BTreeMap::new();
    for line in log.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        match access::parse(line) {
            Ok(sighting) => writeln!(
                said,
                "{} {} {} {}",
                sighting.transport.name(),
                sighting.peer,
                sighting.inbound.map_or("-".into(), String::from_utf8_lossy),
                String::from_utf8_lossy(sighting.user),
            )
            .unwrap(),
            Err(rejection) => *rejections.entry(rejection.name()).or_insert(0) += 1,
        }
    }
    for (name, count) in rejections {
        writeln!(said, "! {name} {count}").unwrap();
    }
    said
}

#[test]
fn every_log_has_an_expectation_and_every_expectation_a_log() {
    let (logs, expectations) = (logs(), expectations());
    assert_eq!(logs.keys().collect::<Vec<_>>(), expectations.keys().collect::<Vec<_>>());
}

#[test]
fn every_log_says_what_is_expected() {
    let expectations = expectations();
    for (name, log) in logs() {
        assert_eq!(read(&log), expectations[&name], "{name}");
    }
}

#[test]
fn the_shape_since_xray_25_1_30_says_the_same() {
    let expectations = expectations();
    for (name, log) in logs() {
        let mut newer = Vec::new();
        for line in log.split_inclusive(|byte| *byte == b'\n') {
            // `YYYY/MM/DD hh:mm:ss` is 19 bytes.
            let (time, rest) = line.split_at(19);
            newer.extend_from_slice(time);
            if !rest.starts_with(b".") {
                newer.extend_from_slice(b".123456");
            }
            newer.extend_from_slice(rest);
        }
        assert!(log.is_empty() || newer.len() > log.len(), "{name}");
        assert_eq!(read(&newer), expectations[&name], "{name}");
    }
}
