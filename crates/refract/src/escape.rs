//! Attackers' bytes in, text that is safe on a terminal, in a log line and in JSON out.
//!
//! Emails and tags come from a log into which clients can write. Nothing that could move a cursor,
//! end a line, reorder text or pretend to be a quote leaves Refract as it came. What is printable
//! stays as written, so that an operator recognises his users.

use std::fmt::Write as _;

/// `bytes` with everything unprintable written as `\n`, `\x1b`, `\u{202e}` or, where the bytes are
/// not UTF-8, `\xff`; a backslash is doubled, so the original can be told from an escape.
#[must_use]
pub fn printable(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for character in chunk.valid().chars() {
            push_printable(&mut text, character);
        }
        for byte in chunk.invalid() {
            // Writing to a String cannot fail.
            let _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

/// [`printable`] between double quotes, the quotes inside escaped.
#[must_use]
pub fn quoted(bytes: &[u8]) -> String {
    format!("\"{}\"", printable(bytes).replace('"', "\\\""))
}

fn push_printable(text: &mut String, character: char) {
    match character {
        '\\' => text.push_str("\\\\"),
        ' '..='~' => text.push(character),
        '\n' => text.push_str("\\n"),
        '\r' => text.push_str("\\r"),
        '\t' => text.push_str("\\t"),
        '\0'..='\x7f' => {
            let _ = write!(text, "\\x{:02x}", u32::from(character));
        }
        _ if character.is_alphanumeric() => text.push(character),
        // Spaces other than U+0020, line separators, bidirectional controls, symbols.
        _ => {
            let _ = write!(text, "\\u{{{:x}}}", u32::from(character));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn printable_text_stays_as_it_is_written() {
        for text in ["alice@example.com", "Weird User [x -> y]", "алиса", "用户 1"] {
            assert_eq!(printable(text.as_bytes()), text);
        }
    }

    #[test]
    fn nothing_that_a_terminal_or_a_parser_obeys_gets_through() {
        for (bytes, shown) in [
            (&b"a\nb\r\tc"[..], "a\\nb\\r\\tc"),
            (b"\x1b[2J", "\\x1b[2J"),
            (b"\x00\x7f", "\\x00\\x7f"),
            (b"\xff\xfe", "\\xff\\xfe"),
            (b"a\\nb", "a\\\\nb"),
            ("\u{202e}x\u{2028}y\u{a0}z\u{9b}".as_bytes(), "\\u{202e}x\\u{2028}y\\u{a0}z\\u{9b}"),
        ] {
            assert_eq!(printable(bytes), shown);
        }
        assert_eq!(quoted(b"a\"b"), "\"a\\\"b\"");
    }
}
