//! Links in the place of files that refract writes.
//!
//! Takes a path; says whose link stands there, if it is a stranger's. Xray's log directory belongs to
//! Xray, as a rule, and whoever may write there could have refract, which is root, append to any file
//! by putting a link in the block log's place. It follows and opens nothing.

use std::{fs, io, os::unix::fs::MetadataExt as _, path::Path};

use rustix::{
    fs::OFlags,
    process::{Uid, geteuid},
};

/// The user ID of the owner of the symbolic link at `path`, if there is one and it belongs neither to
/// root nor to the user that refract runs as. `/dev/stdout` and an operator's own links are theirs.
#[must_use]
pub fn stranger(path: &Path) -> Option<u32> {
    owner_of_link(path).filter(|owner| is_stranger(*owner))
}

fn owner_of_link(path: &Path) -> Option<u32> {
    let found = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_symlink)?;
    Some(found.uid())
}

fn is_stranger(owner: u32) -> bool {
    let owner = Uid::from_raw(owner);
    !owner.is_root() && owner != geteuid()
}

/// The flags of `open` for a file to be written: a FIFO that nobody reads is refused instead of waited
/// for, and only a link that somebody trusted has made is followed.
///
/// # Errors
///
/// There is a stranger's link.
pub fn flags_to_write(path: &Path) -> io::Result<i32> {
    let following = match owner_of_link(path) {
        Some(owner) if is_stranger(owner) => {
            return Err(io::Error::other(format!(
                "it is a link that user ID {owner} has made, and what that leads to is not theirs to \
                 have written; remove it, or name a place that only refract may write to with \
                 --block.log"
            )));
        }
        Some(_) => OFlags::empty(),
        // Between this look and the opening somebody may put a link there.
        None => OFlags::NOFOLLOW,
    };
    Ok((OFlags::NONBLOCK | following).bits().cast_signed())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{lchown, symlink};

    use super::*;

    #[test]
    fn a_strangers_link_is_told_from_our_own_and_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, ours] =
            ["block.log", "link.log", "ours.log"].map(|name| folder.path().join(name));
        fs::write(&file, "").unwrap();
        symlink("/nonexistent/target", &link).unwrap();
        symlink(&file, &ours).unwrap();
        lchown(&file, Some(65_534), None).unwrap();
        lchown(&link, Some(65_534), None).unwrap();
        assert_eq!(stranger(&link), Some(65_534));
        let sentence = flags_to_write(&link).unwrap_err().to_string();
        assert!(sentence.contains("user ID 65534") && sentence.contains("--block.log"));
        for trusted in [&file, &ours, &folder.path().join("not-there"), &"/dev/stdout".into()] {
            assert_eq!(stranger(trusted), None, "{}", trusted.display());
        }
        let nofollow = OFlags::NOFOLLOW.bits().cast_signed();
        assert_eq!(flags_to_write(&ours).unwrap() & nofollow, 0);
        assert_eq!(flags_to_write(&file).unwrap() & nofollow, nofollow);
    }
}
