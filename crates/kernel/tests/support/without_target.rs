//! Programs that are those of iptables with something missing.

use std::{fs, os::unix::fs::PermissionsExt as _, path::Path};

use tempfile::TempDir;

use crate::support::shell;

/// Programs that are the real ones, except that the kernel seems to lack the target `TCPOPTSTRIP`:
/// the target `LED` stands in, which iptables knows and a kernel without `CONFIG_LEDS_TRIGGERS` does
/// not.
pub(crate) struct WithoutTarget {
    directory: TempDir,
    name: String,
}

impl WithoutTarget {
    #[track_caller]
    pub(crate) fn new(program: &str) -> Self {
        let supported = shell("cat /proc/net/ip_tables_targets /proc/net/ip6_tables_targets");
        assert!(!supported.lines().any(|target| target == "LED"), "LED cannot stand in here");
        let directory = tempfile::tempdir().unwrap();
        let attempts = directory.path().join("attempts");
        let restore = format!(
            "batch=$(sed 's/TCPOPTSTRIP --strip-options 30/LED --led-trigger-id refract/')
            case $batch in *LED*) ;; *) echo \"$batch\" | $REAL \"$@\"; exit ;; esac
            [ \"$2\" = --test ] || echo attempt >> {}
            echo \"$batch\" | $REAL \"$@\" 2>&1 | sed 's/LED/TCPOPTSTRIP/' >&2
            [ \"$2\" = --test ]",
            attempts.display()
        );
        let name = wrap(directory.path(), program, "exec $REAL \"$@\"", &restore);
        Self { directory, name }
    }

    /// The path of its `iptables`.
    pub(crate) fn path(&self) -> String {
        self.directory.path().join(&self.name).to_str().unwrap().to_owned()
    }

    /// How often the kernel was asked for the target, rehearsals aside.
    pub(crate) fn attempts(&self) -> usize {
        let attempts = fs::read_to_string(self.directory.path().join("attempts"));
        attempts.unwrap_or_default().lines().count()
    }
}

/// Makes programs of both families in `directory` that are scripts about the `$REAL` ones, and gives
/// the name of the first.
pub(crate) fn wrap(directory: &Path, program: &str, lists: &str, restores: &str) -> String {
    let [first, second] = families(program);
    for real in [&first, &second] {
        for (suffix, script) in [("", lists), ("-restore", restores)] {
            let name = Path::new(real).file_name().unwrap().to_str().unwrap();
            let path = directory.join(format!("{name}{suffix}"));
            fs::write(&path, format!("#!/bin/sh\nREAL={real}{suffix}\n{script}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
    }
    Path::new(&first).file_name().unwrap().to_str().unwrap().to_owned()
}

/// The programs of both families.
pub(crate) fn families(program: &str) -> [String; 2] {
    [program.to_owned(), program.replace("iptables", "ip6tables")]
}
