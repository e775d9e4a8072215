//! Who a name belongs to: names that differ in case alone are one user.
//!
//! Takes a name as the log wrote it; makes the bytes that stand for the user. Xray folds case where
//! it checks that accounts are unique (proxy/vless/validator.go), so the log may show one account
//! in two ways.

/// The bytes that stand for the user of this name: `name` itself when there is nothing to fold
/// (nearly always), else what is put into `scratch`.
///
/// A name in UTF-8 is folded character by character, as Go does it; `str::to_lowercase` would look
/// at a final sigma's neighbours, and a name that is not UTF-8 is left alone.
pub(crate) fn folded<'a>(name: &'a [u8], scratch: &'a mut Vec<u8>) -> &'a [u8] {
    if !name.iter().any(|byte| byte.is_ascii_uppercase() || !byte.is_ascii()) {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &[u8], expected: &[u8]) {
        assert_eq!(folded(name, &mut b"left from the last name".to_vec()), expected);
    }

    #[test]
    fn case_does_not_make_another_user() {
        check(b"alice@example.com", b"alice@example.com");
        check(b"Alice@Example.COM", b"alice@example.com");
        check(
            "ÉMILE ΑΣ Привет".as_bytes(),
            "émile ας"
                .replace('ς', "σ")
                .as_bytes()
                .iter()
                .copied()
                .chain(" привет".bytes())
                .collect::<Vec<_>>()
                .as_slice(),
        );
        check("علی".as_bytes(), "علی".as_bytes());
    }

    #[test]
    fn a_name_that_is_not_utf8_is_taken_as_it_is() {
        check(b"Alice\xff", b"Alice\xff");
        check(b"", b"");
    }
}
