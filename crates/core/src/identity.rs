//! Who a name belongs to: names that differ in case alone are one user.
//!
//! Takes a name as the log wrote it; makes the bytes that stand for the user. Xray folds case where
//! it checks that accounts are unique (proxy/vless/validator.go), so the log may show one account
//! in two ways.

use std::{
    borrow::Borrow,
    hash::{Hash, Hasher},
};

/// The longest identity that is kept in place; most emails are shorter.
const SHORT_LIMIT: usize = 30;

/// The bytes that stand for a user, kept. Short ones are in place, so that finding a user does not
/// wait for one more read from memory.
#[derive(Clone, Debug)]
pub(crate) enum Identity {
    Short { length: u8, bytes: [u8; SHORT_LIMIT] },
    Long(Box<[u8]>),
}

impl Identity {
    fn as_bytes(&self) -> &[u8] {
        match self {
            Self::Short { length, bytes } => bytes.get(..usize::from(*length)).unwrap_or(bytes),
            Self::Long(bytes) => bytes,
        }
    }
}

impl From<&[u8]> for Identity {
    fn from(folded: &[u8]) -> Self {
        let mut bytes = [0; SHORT_LIMIT];
        match (bytes.get_mut(..folded.len()), u8::try_from(folded.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(folded);
                Self::Short { length, bytes }
            }
            _ => Self::Long(folded.into()),
        }
    }
}

// A map is asked with bytes, so everything must be as it is for bytes.
impl Borrow<[u8]> for Identity {
    fn borrow(&self) -> &[u8] {
        self.as_bytes()
    }
}

impl Hash for Identity {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl PartialEq for Identity {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for Identity {}

/// The bytes that stand for the user of this name: `name` itself when there is nothing to fold
/// (nearly always), else what is put into `scratch`.
///
/// A name in UTF-8 is folded character by character, as Go does it; `str::to_lowercase` would look
/// at a final sigma's neighbours. A name that is not UTF-8 is left alone.
pub(crate) fn folded<'a>(name: &'a [u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
    // Every byte is looked at, without an early end, so that many are looked at in one go.
    let to_fold = name
        .iter()
        .fold(false, |to_fold, byte| to_fold | byte.is_ascii_uppercase() | !byte.is_ascii());
    if !to_fold {
        return name;
    }
    let Ok(text) = std::str::from_utf8(name) else { return name };
    scratch.clear();
    let mut utf8 = [0; 4];
    for character in text.chars().flat_map(char::to_lowercase) {
        scratch.extend_from_slice(character.encode_utf8(&mut utf8).as_bytes());
    }
    scratch
}

/// The bytes that stand for the user of this name; how [`Accounts`](crate::Accounts) are asked.
#[must_use]
pub fn folded_name(name: &[u8]) -> Vec<u8> {
    folded(name, &mut Vec::new()).to_vec()
}

#[cfg(test)]
mod tests {
    use std::hash::BuildHasher;

    use super::*;

    #[track_caller]
    fn check(name: &[u8], expected: &[u8]) {
        assert_eq!(folded(name, &mut b"left from the last name".to_vec()), expected);
    }

    #[test]
    fn case_does_not_make_another_user() {
        check(b"alice@example.com", b"alice@example.com");
        check(b"Alice@Example.COM", b"alice@example.com");
        check("ÉMILE Привет".as_bytes(), "émile привет".as_bytes());
        check("ΟΔΟΣ".as_bytes(), "οδοσ".as_bytes());
        check("علی".as_bytes(), "علی".as_bytes());
    }

    #[test]
    fn a_name_that_is_not_utf8_is_taken_as_it_is() {
        check(b"Alice\xff", b"Alice\xff");
        check(b"", b"");
    }

    #[test]
    fn an_identity_is_found_by_its_bytes_at_every_length() {
        let hasher = foldhash::fast::RandomState::default();
        let name: Vec<u8> = (b'a'..=b'z').cycle().take(600).collect();
        for length in 0..name.len() {
            let identity = Identity::from(&name[..length]);
            assert_eq!(identity.as_bytes(), &name[..length]);
            assert_eq!(hasher.hash_one(&identity), hasher.hash_one(&name[..length]));
            assert_ne!(identity, Identity::from(&name[..=length]));
        }
    }
}
