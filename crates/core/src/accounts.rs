//! What each user may: his places, the pool that they come from, and the rule that says so.
//!
//! Takes the operator's rules ([`AccountTerms`]); answers for one user at a time with an
//! [`Account`]. It counts nobody and knows no sources. The rules are the operator's, the names that
//! are looked up are hostile.
//!
//! **Which rule holds.** The most specific one:
//!
//! 1. the one that names the user: a limit of his own, membership of a group, or to be ignored.
//!    There is at most one, since a user named twice is a mistake;
//! 2. of the patterns that match him, those to ignore included, the one with the most characters
//!    that stand for themselves; of equal ones one to ignore, then the one written first;
//! 3. the default.
//!
//! Names that differ in case alone are one user, here as in the log.

use std::{collections::HashMap, fmt};

use foldhash::fast::RandomState;

use crate::{
    access::USER_LIMIT,
    error::Error,
    glob::{Glob, is_pattern},
    identity::folded,
    policy::{PLACES_LIMIT, within},
};

/// The most users that can be named, members of groups included.
pub const NAMES_LIMIT: usize = 100_000;
/// The most patterns; each is tried on each name that is looked up and not named.
pub const PATTERNS_LIMIT: usize = 1_000;
/// The longest name, pattern or name of a group, bytes: no user's name in the log is longer.
pub const NAME_LENGTH_LIMIT: usize = USER_LIMIT;

/// How many sources one user, or one group together, may be live from at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Places {
    /// So many, 1 to [`PLACES_LIMIT`].
    Limited(usize),
    /// As many as they like: counted and shown, never an offender.
    Unlimited,
    /// Never counted and never acted upon.
    Ignored,
}

impl Default for Places {
    fn default() -> Self {
        Self::Limited(1)
    }
}

impl fmt::Display for Places {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Limited(1) => out.write_str("1 place"),
            Self::Limited(places) => write!(out, "{places} places"),
            Self::Unlimited => out.write_str("any number of places"),
            Self::Ignored => out.write_str("ignored"),
        }
    }
}

/// The rule that an account comes from; the texts are as they were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Rule<'a> {
    /// No other holds.
    Default,
    /// A limit for this user.
    User(&'a str),
    /// A limit for all users whom the pattern matches, each by himself.
    Pattern(&'a str),
    /// One limit for all members of the group together: its name, and the member.
    Group(&'a str, &'a str),
    /// A name or a pattern to ignore.
    Ignore(&'a str),
}

impl fmt::Display for Rule<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => out.write_str("default"),
            Self::User(name) => write!(out, "user {name:?}"),
            Self::Pattern(pattern) => write!(out, "pattern {pattern:?}"),
            Self::Group(name, _) => write!(out, "group {name:?}"),
            Self::Ignore(text) => write!(out, "ignore {text:?}"),
        }
    }
}

/// What one user may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account<'a> {
    /// Who counts: the user himself, or for a member of a group a key that all members share and
    /// that no user's name can be, since it begins with a line feed.
    pub identity: &'a [u8],
    /// How many sources may be live at once under that identity.
    pub places: Places,
    /// Why.
    pub rule: Rule<'a>,
}

/// Users who share one pool of places.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Group {
    /// What it is called.
    pub name: String,
    /// Who is in it, by full name.
    pub members: Vec<String>,
    /// How many sources all of them together may be live from.
    pub places: Places,
}

/// The rules as they are asked for, each list in the order in which it was written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AccountTerms {
    /// For whoever no other rule names.
    pub default: Places,
    /// Limits of single users, by full name.
    pub users: Vec<(String, Places)>,
    /// Limits of all users whom a pattern matches.
    pub patterns: Vec<(String, Places)>,
    /// Users who share their places.
    pub groups: Vec<Group>,
    /// Names and patterns of users who are never counted.
    pub ignore: Vec<String>,
}

/// What each user may; only rules that do not contradict each other can be built.
#[derive(Clone, Debug, Default)]
pub struct Accounts {
    default: Places,
    names: HashMap<Box<[u8]>, Named, RandomState>,
    /// The most specific first.
    patterns: Vec<Pattern>,
    pools: Vec<Pool>,
    /// The place of each pool, by its key.
    pools_by_key: HashMap<Box<[u8]>, usize, RandomState>,
}

/// A rule that names one user.
#[derive(Clone, Debug)]
struct Named {
    written: Box<str>,
    what: What,
}

#[derive(Clone, Copy, Debug)]
enum What {
    Limit(Places),
    /// The place of the pool in [`Accounts::pools`].
    Member(usize),
    Ignore,
}

#[derive(Clone, Debug)]
struct Pattern {
    written: Box<str>,
    glob: Glob,
    /// `None` to ignore.
    places: Option<Places>,
}

#[derive(Clone, Debug)]
struct Pool {
    name: Box<str>,
    key: Box<[u8]>,
    places: Places,
}

impl Accounts {
    /// Checks `terms` and makes them ready to be asked; the error names the first that cannot be.
    pub fn new(terms: AccountTerms) -> Result<Self, Error> {
        let mut accounts = Self { default: checked(terms.default)?, ..Self::default() };
        for (name, places) in terms.users {
            accounts.name(name, What::Limit(checked(places)?))?;
        }
        for group in terms.groups {
            accounts.group(group)?;
        }
        let mut patterns: Vec<(String, Option<Places>)> = Vec::new();
        for text in terms.ignore {
            if is_pattern(&text) {
                patterns.push((text, None));
            } else {
                accounts.name(text, What::Ignore)?;
            }
        }
        for (text, places) in terms.patterns {
            patterns.push((text, Some(checked(places)?)));
        }
        accounts.patterns(patterns)?;
        Ok(accounts)
    }

    /// What `user` may. The name is folded already: as
    /// [`folded_name`](crate::identity::folded_name) makes it.
    #[must_use]
    pub fn of<'a>(&'a self, user: &'a [u8]) -> Account<'a> {
        if let Some(Named { written, what }) = self.names.get(user) {
            match *what {
                What::Limit(places) => {
                    return Account { identity: user, places, rule: Rule::User(written) };
                }
                What::Ignore => {
                    let rule = Rule::Ignore(written);
                    return Account { identity: user, places: Places::Ignored, rule };
                }
                What::Member(pool) => {
                    if let Some(Pool { name, key, places }) = self.pools.get(pool) {
                        let rule = Rule::Group(name, written);
                        return Account { identity: key, places: *places, rule };
                    }
                }
            }
        }
        match self.patterns.iter().find(|pattern| pattern.glob.matches(user)) {
            Some(Pattern { written, places, .. }) => Account {
                identity: user,
                places: places.unwrap_or(Places::Ignored),
                rule: places.map_or(Rule::Ignore(written), |_| Rule::Pattern(written)),
            },
            None => Account { identity: user, places: self.default, rule: Rule::Default },
        }
    }

    /// Who counts for `user`, as [`of`](Self::of) says it, but at the cost of one look into a table.
    #[must_use]
    pub fn identity_of<'a>(&'a self, user: &'a [u8]) -> &'a [u8] {
        let pool = match self.names.get(user).map(|named| named.what) {
            Some(What::Member(pool)) => self.pools.get(pool),
            _ => None,
        };
        pool.map_or(user, |pool| &pool.key)
    }

    /// How many places an [identity](Account::identity) has; any number for a group that there is no
    /// more, since its members count by themselves.
    #[must_use]
    pub fn places_of(&self, identity: &[u8]) -> Places {
        match identity.first() {
            Some(b'\n') => self.pool_of(identity).map_or(Places::Unlimited, |pool| pool.places),
            _ => self.of(identity).places,
        }
    }

    /// Whether nobody differs from the default, so that nobody needs to be looked up.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.names.is_empty() && self.patterns.is_empty()
    }

    /// What whoever no other rule names may.
    #[must_use]
    pub const fn default_places(&self) -> Places {
        self.default
    }

    fn pool_of(&self, key: &[u8]) -> Option<&Pool> {
        self.pools.get(*self.pools_by_key.get(key)?)
    }

    fn group(&mut self, group: Group) -> Result<(), Error> {
        let Group { name, members, places } = group;
        // The name of a group is never matched, so it may hold any character.
        let folded = folded_text(&name)?;
        let key: Box<[u8]> = [b"\n", folded.as_slice()].concat().into();
        if let Some(other) = self.pool_of(&key) {
            let (first, second) = (format!("group {:?}", other.name), format!("group {name:?}"));
            return Err(Error::NamedTwice { name, first, second });
        }
        let pool = self.pools.len();
        self.pools_by_key.insert(key.clone(), pool);
        self.pools.push(Pool { name: name.into(), key, places: checked(places)? });
        for member in members {
            self.name(member, What::Member(pool))?;
        }
        bounded("groups", self.pools.len(), NAMES_LIMIT)
    }

    fn name(&mut self, written: String, what: What) -> Result<(), Error> {
        if is_pattern(&written) {
            return Err(Error::NotAName { name: written });
        }
        let key = folded_text(&written)?.into();
        if let Some(first) = self.names.get(&key) {
            let (first, second) = (self.words(first.what), self.words(what));
            return Err(Error::NamedTwice { name: written, first, second });
        }
        self.names.insert(key, Named { written: written.into(), what });
        bounded("named users", self.names.len(), NAMES_LIMIT)
    }

    fn words(&self, what: What) -> String {
        match what {
            What::Limit(_) => "limits".to_owned(),
            What::Ignore => "ignore".to_owned(),
            What::Member(pool) => {
                let name = self.pools.get(pool).map(|pool| &*pool.name).unwrap_or_default();
                format!("group {name:?}")
            }
        }
    }

    fn patterns(&mut self, written: Vec<(String, Option<Places>)>) -> Result<(), Error> {
        bounded("patterns", written.len(), PATTERNS_LIMIT)?;
        let place = |places: &Option<Places>| match places {
            Some(_) => "limits".to_owned(),
            None => "ignore".to_owned(),
        };
        let mut seen: HashMap<Vec<u8>, String, RandomState> = HashMap::default();
        for (text, places) in written {
            let key = folded_text(&text)?;
            let glob = Glob::new(&key);
            if let Some(first) = seen.insert(key, place(&places)) {
                return Err(Error::NamedTwice { name: text, first, second: place(&places) });
            }
            self.patterns.push(Pattern { written: text.into(), glob, places });
        }
        // Stable: of equal ones, those to ignore came first, then those written first.
        self.patterns.sort_by_key(|pattern| std::cmp::Reverse(pattern.glob.literals()));
        Ok(())
    }
}

fn folded_text(text: &str) -> Result<Vec<u8>, Error> {
    if text.is_empty() || text.len() > NAME_LENGTH_LIMIT {
        return Err(Error::NameLength { name: text.to_owned(), limit: NAME_LENGTH_LIMIT });
    }
    Ok(folded(text.as_bytes(), &mut Vec::new()).to_vec())
}

fn checked(places: Places) -> Result<Places, Error> {
    match places {
        Places::Limited(number) => within("places", number, 1..=PLACES_LIMIT)?,
        Places::Unlimited | Places::Ignored => {}
    }
    Ok(places)
}

fn bounded(what: &'static str, count: usize, limit: usize) -> Result<(), Error> {
    if count <= limit { Ok(()) } else { Err(Error::TooMany { what, limit }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(texts: &[&str]) -> Vec<String> {
        texts.iter().map(ToString::to_string).collect()
    }

    fn limits(limits: &[(&str, Places)]) -> Vec<(String, Places)> {
        limits.iter().map(|(name, places)| ((*name).to_owned(), *places)).collect()
    }

    fn group(name: &str, members: &[&str], places: usize) -> Group {
        Group { name: name.to_owned(), members: texts(members), places: Places::Limited(places) }
    }

    fn terms() -> AccountTerms {
        AccountTerms {
            default: Places::Limited(1),
            users: limits(&[
                ("Alice@Example.com", Places::Limited(2)),
                ("boss@example.com", Places::Unlimited),
            ]),
            patterns: limits(&[
                ("*@example.com", Places::Limited(3)),
                ("?.*@example.com", Places::Limited(4)),
                ("test*", Places::Limited(5)),
                ("*Тест", Places::Limited(6)),
                ("*best", Places::Limited(7)),
            ]),
            groups: vec![group("Family", &["mum", "Dad"], 3), group("office", &["eve"], 9)],
            ignore: texts(&["admin@*", "health@example.com", "*test"]),
        }
    }

    #[track_caller]
    fn check(user: &str, identity: &str, places: Places, rule: &str) {
        let accounts = Accounts::new(terms()).unwrap();
        let account = accounts.of(user.as_bytes());
        assert_eq!(account.places, places, "{user}");
        assert_eq!(account.rule.to_string(), rule, "{user}");
        assert_eq!(account.identity, identity.as_bytes(), "{user}");
    }

    #[test]
    fn the_most_specific_rule_holds() {
        use Places::{Ignored, Limited, Unlimited};
        for (user, places, rule) in [
            // Named: nothing else counts.
            ("alice@example.com", Limited(2), "user \"Alice@Example.com\""),
            ("boss@example.com", Unlimited, "user \"boss@example.com\""),
            ("health@example.com", Ignored, "ignore \"health@example.com\""),
            // Matched: 13 characters beat 12 beat 6.
            ("a.b@example.com", Limited(4), "pattern \"?.*@example.com\""),
            ("ab@example.com", Limited(3), "pattern \"*@example.com\""),
            ("admin@example.com", Limited(3), "pattern \"*@example.com\""),
            ("admin@example.org", Ignored, "ignore \"admin@*\""),
            // Equal: to ignore first, then as written.
            ("testtest", Ignored, "ignore \"*test\""),
            ("testbest", Limited(5), "pattern \"test*\""),
            ("тест", Limited(6), "pattern \"*Тест\""),
            ("nobody", Limited(1), "default"),
            ("", Limited(1), "default"),
        ] {
            check(user, user, places, rule);
        }
    }

    #[test]
    fn members_of_a_group_share_a_key_that_no_name_can_be() {
        check("mum", "\nfamily", Places::Limited(3), "group \"Family\"");
        check("dad", "\nfamily", Places::Limited(3), "group \"Family\"");
        check("eve", "\noffice", Places::Limited(9), "group \"office\"");
    }

    #[test]
    fn without_rules_everybody_has_one_place_and_nobody_needs_to_be_looked_up() {
        let accounts = Accounts::default();
        assert!(accounts.is_plain());
        assert_eq!(accounts.of(b"alice").places, Places::Limited(1));
        let default = AccountTerms { default: Places::Unlimited, ..AccountTerms::default() };
        let accounts = Accounts::new(default).unwrap();
        assert!(accounts.is_plain());
        assert_eq!(accounts.of(b"alice").places, Places::Unlimited);
        assert!(!Accounts::new(terms()).unwrap().is_plain());
    }

    #[track_caller]
    fn refused(change: impl FnOnce(&mut AccountTerms), sentence: &str) {
        let mut terms = terms();
        change(&mut terms);
        assert_eq!(Accounts::new(terms).unwrap_err().to_string(), sentence);
    }

    #[test]
    fn a_user_named_twice_is_refused_with_both_places() {
        refused(
            |terms| terms.users.push(("ALICE@example.com".to_owned(), Places::Unlimited)),
            "\"ALICE@example.com\" is named twice, in limits and in limits: keep one",
        );
        refused(
            |terms| terms.groups.push(group("new", &["mum"], 1)),
            "\"mum\" is named twice, in group \"Family\" and in group \"new\": keep one",
        );
        refused(
            |terms| terms.groups.push(group("new", &["boss@example.com"], 1)),
            "\"boss@example.com\" is named twice, in limits and in group \"new\": keep one",
        );
        refused(
            |terms| terms.ignore.push("Dad".to_owned()),
            "\"Dad\" is named twice, in group \"Family\" and in ignore: keep one",
        );
        refused(
            |terms| terms.ignore.push("TEST*".to_owned()),
            "\"test*\" is named twice, in ignore and in limits: keep one",
        );
        refused(
            |terms| terms.groups.push(group("FAMILY", &[], 1)),
            "\"FAMILY\" is named twice, in group \"Family\" and in group \"FAMILY\": keep one",
        );
    }

    #[test]
    fn what_cannot_be_is_refused() {
        refused(
            |terms| terms.default = Places::Limited(0),
            "places cannot be 0: it takes 1 to 256",
        );
        refused(
            |terms| terms.groups.push(group("new", &["x"], 257)),
            "places cannot be 257: it takes 1 to 256",
        );
        refused(
            |terms| terms.groups.push(group("new", &["x*"], 1)),
            "\"x*\" is a pattern, where a user's full name is needed: write * and ? in limits or \
             ignore",
        );
        refused(
            |terms| terms.ignore.push(String::new()),
            "\"\" is no name: it takes 1 to 512 bytes",
        );
        refused(
            |terms| {
                let number = 0..=PATTERNS_LIMIT;
                terms.ignore.extend(number.map(|number| format!("{number}*")));
            },
            "there are too many patterns: at most 1000",
        );
        refused(
            |terms| {
                let number = 0..NAMES_LIMIT;
                terms.ignore.extend(number.map(|number| format!("user{number}")));
            },
            "there are too many named users: at most 100000",
        );
    }
}
