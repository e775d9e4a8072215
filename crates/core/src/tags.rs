//! Names of inbounds, each kept once.
//!
//! Takes a tag; gives a number that a session can hold without holding the bytes. An installation
//! has a handful of inbounds; only forged lines have many, so once the table is full further tags
//! are not kept, and a record that would have shown one shows none.

use std::num::NonZeroU16;

/// How many tags are kept.
const TAGS_LIMIT: usize = 256;

/// The place of a tag that was kept, counted from one; or none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tag(Option<NonZeroU16>);

/// The tags seen so far.
#[derive(Debug, Default)]
pub(crate) struct Tags(Vec<Box<[u8]>>);

impl Tags {
    /// The number of a tag, which is kept if there is room.
    pub(crate) fn keep(&mut self, name: Option<&[u8]>) -> Tag {
        let Some(name) = name else { return Tag(None) };
        let known = self.0.iter().position(|tag| **tag == *name);
        let count = known.map(|index| index + 1).or_else(|| {
            (self.0.len() < TAGS_LIMIT).then(|| {
                self.0.push(name.into());
                self.0.len()
            })
        });
        Tag(count.and_then(|count| u16::try_from(count).ok()).and_then(NonZeroU16::new))
    }

    /// The tag of a number.
    pub(crate) fn name(&self, tag: Tag) -> Option<&[u8]> {
        self.0.get(usize::from(tag.0?.get()) - 1).map(|name| &**name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_kept_once_and_a_flood_of_tags_is_not_kept() {
        let mut tags = Tags::default();
        let first = tags.keep(Some(b"vless"));
        assert_eq!(tags.keep(Some(b"vless")), first);
        for number in 0..10_000 {
            tags.keep(Some(format!("tag {number}").as_bytes()));
        }
        assert_eq!(tags.0.len(), TAGS_LIMIT);
        assert_eq!(tags.name(first), Some(b"vless".as_slice()));
        let late = tags.keep(Some(b"late"));
        assert_eq!(tags.name(late), None);
        let absent = tags.keep(None);
        assert_eq!(tags.name(absent), None);
    }
}
