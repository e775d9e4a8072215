//! One name against one pattern with `*` and `?`.
//!
//! Takes a pattern and a whole name, both folded already; says whether they match. `*` stands for
//! any text, none included, `?` for one character; everything else for itself, and nothing can be
//! escaped. It knows neither classes nor alternatives, and it never looks at more than one star
//! again: a name as hostile as it likes costs at most its length times the pattern's.

/// Whether `text` holds a character that makes it a pattern rather than a name.
#[must_use]
pub fn is_pattern(text: &str) -> bool {
    text.contains(['*', '?'])
}

/// A pattern, ready to be matched.
#[derive(Clone, Debug)]
pub(crate) struct Glob {
    pattern: Box<[u8]>,
    /// Bytes in front of the first wildcard, and behind the last: most names fail there.
    head: usize,
    tail: usize,
    literals: usize,
}

impl Glob {
    pub(crate) fn new(pattern: &[u8]) -> Self {
        let is_wildcard = |byte: &u8| matches!(byte, b'*' | b'?');
        let length = pattern.len();
        Self {
            head: pattern.iter().position(is_wildcard).unwrap_or(length),
            tail: pattern.iter().rev().position(is_wildcard).unwrap_or(length),
            // A byte that goes on with a character is not one more character.
            literals: pattern
                .iter()
                .filter(|byte| !is_wildcard(byte) && !continues(**byte))
                .count(),
            pattern: pattern.into(),
        }
    }

    /// How many characters stand for themselves.
    pub(crate) const fn literals(&self) -> usize {
        self.literals
    }

    pub(crate) fn matches(&self, name: &[u8]) -> bool {
        let head = self.pattern.get(..self.head).unwrap_or_default();
        let tail = self.pattern.get(self.pattern.len() - self.tail..).unwrap_or_default();
        name.starts_with(head) && name.ends_with(tail) && matches(&self.pattern, name)
    }
}

/// Where to go on when what was tried after the latest star fails.
struct Star<'a> {
    pattern: &'a [u8],
    name: &'a [u8],
}

fn matches<'a>(mut pattern: &'a [u8], mut name: &'a [u8]) -> bool {
    let mut star: Option<Star<'a>> = None;
    loop {
        match (pattern, name) {
            ([b'*', rest @ ..], _) => {
                pattern = rest;
                star = Some(Star { pattern, name });
            }
            ([], []) => return true,
            ([b'?', rest @ ..], [_, behind @ ..]) => {
                pattern = rest;
                name = next_character(behind);
            }
            ([wanted, rest @ ..], [byte, behind @ ..]) if wanted == byte => {
                (pattern, name) = (rest, behind);
            }
            // The shortest text for each star but the latest is the best: what follows it can only
            // be found again further on.
            _ => match &mut star {
                Some(Star { pattern: after, name: from }) => {
                    let [_, behind @ ..] = *from else { return false };
                    *from = next_character(behind);
                    (pattern, name) = (*after, *from);
                }
                None => return false,
            },
        }
    }
}

/// Whether `byte` is not the first of its character in UTF-8.
const fn continues(byte: u8) -> bool {
    byte & 0b1100_0000 == 0b1000_0000
}

/// What is left behind a character of which the first byte was taken.
fn next_character(behind: &[u8]) -> &[u8] {
    let rest = behind.iter().take_while(|byte| continues(**byte)).count();
    behind.get(rest..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[track_caller]
    fn check(pattern: &str, name: &str, expected: bool) {
        let matched = Glob::new(pattern.as_bytes()).matches(name.as_bytes());
        assert_eq!(matched, expected, "{pattern:?} against {name:?}");
    }

    #[test]
    fn a_pattern_matches_the_whole_name() {
        for (pattern, name, expected) in [
            ("*", "", true),
            ("*", "anything at all", true),
            ("", "", true),
            ("", "a", false),
            ("a", "a", true),
            ("a", "ab", false),
            ("admin@*", "admin@", true),
            ("admin@*", "admin@example.com", true),
            ("admin@*", "sysadmin@example.com", false),
            ("*@family.example", "mum@family.example", true),
            ("*@family.example", "mum@family.example.org", false),
            ("*@family.example", "@family.exampl", false),
            ("a*b*c", "a1b2b3c", true),
            ("a*b*c", "a1b2c3", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("*ab*ab*", "abab", true),
            ("*ab*ab*", "aab", false),
            ("user?", "user1", true),
            ("user?", "user", false),
            ("user?", "user12", false),
            ("user?*", "user12", true),
            ("?*?", "a", false),
            ("**", "", true),
            ("[a-z]", "b", false),
            ("[a-z]", "[a-z]", true),
            ("a\\*", "a*", false),
            ("a\\*", "a\\b", true),
        ] {
            check(pattern, name, expected);
        }
    }

    #[test]
    fn a_question_mark_is_one_character_and_not_one_byte() {
        check("?", "ж", true);
        check("??", "ж", false);
        check("*??", "€", false);
        check("и?ан", "иван", true);
        check("*?ан", "иван", true);
        assert!(Glob::new(b"?").matches(b"\xff"), "what is no UTF-8 counts byte by byte");
        assert_eq!(Glob::new("*и?ан@x".as_bytes()).literals(), 5);
    }

    #[test]
    fn a_name_made_to_be_slow_is_not() {
        let pattern = Glob::new(&[b"*".as_slice(), &b"a*".repeat(250), b"b*c"].concat());
        assert!(!pattern.matches(&[&b"a".repeat(10_000)[..], b"c"].concat()));
    }

    /// What it should be, told in the plainest way.
    fn plainly(pattern: &[char], name: &[char]) -> bool {
        match (pattern, name) {
            ([], []) => true,
            (['*', rest @ ..], _) => {
                plainly(rest, name) || matches!(name, [_, behind @ ..] if plainly(pattern, behind))
            }
            (['?', rest @ ..], [_, behind @ ..]) => plainly(rest, behind),
            ([wanted, rest @ ..], [one, behind @ ..]) => wanted == one && plainly(rest, behind),
            _ => false,
        }
    }

    proptest! {
        #[test]
        fn it_matches_what_the_plain_rule_matches(pattern in "[ab€*?]{0,8}", name in "[ab€]{0,10}") {
            let characters = |text: &str| text.chars().collect::<Vec<_>>();
            prop_assert_eq!(
                Glob::new(pattern.as_bytes()).matches(name.as_bytes()),
                plainly(&characters(&pattern), &characters(&name))
            );
        }
    }
}
