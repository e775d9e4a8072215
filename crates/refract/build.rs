//! Tells the program of which commit and for which target it is built.
//!
//! Takes, in this order, `REFRACT_COMMIT`; the file `.commit`, which `git archive` and `make dist`
//! fill in; and, for a release build in a clone, git. Makes `REFRACT_BUILD_COMMIT` and
//! `REFRACT_BUILD_TARGET` for the compiler. A debug build does not ask git: each commit would then
//! build every test anew. Where nobody knows the commit, that is what `--version` says.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// Digits of a commit that are shown: enough for git to find it.
const SHOWN: usize = 12;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=REFRACT_COMMIT");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let archived = root.join(".commit");
    if archived.exists() {
        println!("cargo::rerun-if-changed={}", archived.display());
    }
    let commit = env::var("REFRACT_COMMIT")
        .ok()
        .as_deref()
        .and_then(commit_in)
        .or_else(|| commit_in(&fs::read_to_string(archived).ok()?))
        .or_else(|| if is_release() { of_clone(&root) } else { None })
        .unwrap_or_else(|| "commit unknown".to_owned());
    println!("cargo::rustc-env=REFRACT_BUILD_COMMIT={commit}");
    let target = env::var("TARGET").unwrap_or_default();
    println!("cargo::rustc-env=REFRACT_BUILD_TARGET={target}");
}

fn is_release() -> bool {
    env::var("PROFILE").is_ok_and(|profile| profile == "release")
}

/// The commit that `text` begins with, shortened, with what `make dist` adds to it where the tree
/// had changes. What is no commit, such as a `.commit` that nobody has filled in, is none.
fn commit_in(text: &str) -> Option<String> {
    let word = text.split_whitespace().next()?;
    let (digits, changes) = match word.split_once('+') {
        Some((digits, _)) => (digits, "+changes"),
        None => (word, ""),
    };
    let is_commit = digits.len() >= SHOWN && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_commit.then(|| digits.get(..SHOWN).map(|shown| format!("{shown}{changes}"))).flatten()
}

/// The commit that is checked out, if `root` is where a clone begins and not only within one.
fn of_clone(root: &Path) -> Option<String> {
    if !root.join(".git").exists() {
        return None;
    }
    let commit = commit_in(&git(root, &["rev-parse", "HEAD"])?)?;
    // HEAD changes with a checkout; the branch's file, or its line in packed-refs, with a commit.
    let branch = git(root, &["symbolic-ref", "--quiet", "HEAD"]);
    let names = ["HEAD", "packed-refs", "logs/HEAD"];
    for name in names.iter().map(|name| (*name).to_owned()).chain(branch) {
        let path = git(root, &["rev-parse", "--git-path", &name]).map(PathBuf::from);
        if let Some(path) = path.map(|path| root.join(path)).filter(|path| path.exists()) {
            println!("cargo::rerun-if-changed={}", path.display());
        }
    }
    Some(commit)
}

fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let text = text.trim();
    (output.status.success() && !text.is_empty()).then(|| text.to_owned())
}
