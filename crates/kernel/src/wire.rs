//! The netlink wire format, both ways and pure: typed pieces in, bytes out, and back.
//!
//! Takes message types, fixed headers and attributes; makes the bytes of one datagram, and from
//! the bytes of a datagram the messages and attributes in it. It opens no socket and knows no
//! family: what a payload means is the business of the room that sent it. Every read is checked,
//! so a short or lying length ends the iteration instead of reading past the end.

/// `sizeof(struct nlmsghdr)`, linux/netlink.h.
pub const HEADER_LEN: usize = 16;
/// `NLMSG_ERROR`: an acknowledgement (errno 0) or a refusal.
pub const NLMSG_ERROR: u16 = 2;
/// `NLMSG_DONE`: the end of a dump.
pub const NLMSG_DONE: u16 = 3;
/// `NLM_F_REQUEST`.
pub const NLM_F_REQUEST: u16 = 0x01;
/// `NLM_F_MULTI`: one part of a dump.
pub const NLM_F_MULTI: u16 = 0x02;
/// `NLM_F_ACK`: answer even when there is nothing to say.
pub const NLM_F_ACK: u16 = 0x04;
/// `NLM_F_DUMP_INTR`: the table changed under the dump.
pub const NLM_F_DUMP_INTR: u16 = 0x10;
/// `NLM_F_ROOT | NLM_F_MATCH`.
pub const NLM_F_DUMP: u16 = 0x300;
/// `NLM_F_EXCL`: refuse when the object exists.
pub const NLM_F_EXCL: u16 = 0x200;
/// `NLM_F_CREATE`: make the object when it does not exist.
pub const NLM_F_CREATE: u16 = 0x400;
/// `NLA_F_NESTED`: the payload is itself attributes.
pub const NLA_F_NESTED: u16 = 0x8000;
/// `NLA_TYPE_MASK`: the attribute type without its flags.
const NLA_TYPE_MASK: u16 = 0x3fff;
/// Netlink aligns messages and attributes to four bytes (`NLMSG_ALIGNTO`, `NLA_ALIGNTO`).
const ALIGN: usize = 4;

/// A datagram of one or more messages being written.
///
/// The buffer is kept between uses, so a request on the hot path allocates nothing. An attribute
/// or message that outgrows its length field marks the whole datagram as [oversized]
/// (`Writer::is_oversized`) instead of being cut or wrapped; the socket refuses to send it.
///
/// [oversized]: Writer::is_oversized
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
    message_start: usize,
    oversized: bool,
}

/// An attribute whose payload is still being written; give it back to [`Writer::end_nest`].
#[derive(Debug)]
#[must_use]
pub struct Nest {
    start: usize,
}

impl Writer {
    /// An empty datagram.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Forgets what was written and keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.message_start = 0;
        self.oversized = false;
    }

    /// Begins a message of type `kind`; `NLM_F_REQUEST` is added to `flags`.
    pub fn begin(&mut self, kind: u16, flags: u16, sequence: u32) {
        self.message_start = self.bytes.len();
        self.put(&0u32.to_ne_bytes());
        self.put(&kind.to_ne_bytes());
        self.put(&(flags | NLM_F_REQUEST).to_ne_bytes());
        self.put(&sequence.to_ne_bytes());
        self.put(&0u32.to_ne_bytes());
    }

    /// Writes the length of the message begun last. Call it once per message, before sending.
    pub fn end(&mut self) {
        self.pad();
        match u32::try_from(self.bytes.len() - self.message_start) {
            Ok(length) => self.patch(self.message_start, &length.to_ne_bytes()),
            Err(_) => self.oversized = true,
        }
    }

    /// Appends raw bytes: the fixed header of a family.
    pub fn put(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Appends one attribute and its padding.
    pub fn attribute(&mut self, kind: u16, payload: &[u8]) {
        let nest = self.open(kind);
        self.put(payload);
        self.end_nest(nest);
    }

    /// Appends an attribute whose payload is a NUL-terminated string.
    pub fn attribute_str(&mut self, kind: u16, text: &str) {
        let nest = self.open(kind);
        self.put(text.as_bytes());
        self.put(&[0]);
        self.end_nest(nest);
    }

    /// Opens an attribute that holds further attributes (`NLA_F_NESTED`).
    pub fn begin_nest(&mut self, kind: u16) -> Nest {
        self.open(kind | NLA_F_NESTED)
    }

    /// Closes an attribute: its length is written and it is padded.
    pub fn end_nest(&mut self, Nest { start }: Nest) {
        match u16::try_from(self.bytes.len() - start) {
            Ok(length) => self.patch(start, &length.to_ne_bytes()),
            Err(_) => self.oversized = true,
        }
        self.pad();
    }

    /// The datagram so far.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes written so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Nothing was written yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// A length did not fit its field; the bytes must not be sent.
    #[must_use]
    pub fn is_oversized(&self) -> bool {
        self.oversized
    }

    fn open(&mut self, kind: u16) -> Nest {
        let start = self.bytes.len();
        self.put(&0u16.to_ne_bytes());
        self.put(&kind.to_ne_bytes());
        Nest { start }
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGN), 0);
    }

    fn patch(&mut self, at: usize, value: &[u8]) {
        if let Some(field) = self.bytes.get_mut(at..at + value.len()) {
            field.copy_from_slice(value);
        }
    }
}

/// One received message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Message<'a> {
    /// `nlmsg_type`.
    pub kind: u16,
    /// `nlmsg_flags`.
    pub flags: u16,
    /// `nlmsg_seq`: the sequence number of the request that this answers; 0 for an event.
    pub sequence: u32,
    /// Everything after the header.
    pub payload: &'a [u8],
}

impl Message<'_> {
    /// The errno of an `NLMSG_ERROR` (0 is an acknowledgement), or of an `NLMSG_DONE` that carries
    /// one; `None` for any other message.
    #[must_use]
    pub fn errno(&self) -> Option<i32> {
        match self.kind {
            NLMSG_ERROR => read_i32(self.payload, 0).map(i32::wrapping_neg),
            NLMSG_DONE => Some(read_i32(self.payload, 0).map_or(0, i32::wrapping_neg)),
            _ => None,
        }
    }
}

/// The messages of one received datagram; stops at the first length that cannot be true.
#[derive(Clone, Debug)]
pub struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    /// Reads `datagram` from its beginning.
    #[must_use]
    pub fn new(datagram: &'a [u8]) -> Self {
        Self { rest: datagram }
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Message<'a>;

    fn next(&mut self) -> Option<Message<'a>> {
        let length = usize::try_from(read_u32(self.rest, 0)?).ok()?;
        let message = Message {
            kind: read_u16(self.rest, 4)?,
            flags: read_u16(self.rest, 6)?,
            sequence: read_u32(self.rest, 8)?,
            payload: self.rest.get(HEADER_LEN..length)?,
        };
        self.rest = self.rest.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(message)
    }
}

/// One attribute, its type without the nested and byte-order flags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attribute<'a> {
    /// `nla_type & NLA_TYPE_MASK`.
    pub kind: u16,
    /// The payload, without padding.
    pub payload: &'a [u8],
}

impl<'a> Attribute<'a> {
    /// The attributes inside this one.
    #[must_use]
    pub fn nested(&self) -> Attributes<'a> {
        Attributes::new(self.payload)
    }

    /// The payload as text, up to its NUL; `None` when it is not UTF-8.
    #[must_use]
    pub fn text(&self) -> Option<&'a str> {
        let end = self.payload.iter().position(|byte| *byte == 0).unwrap_or(self.payload.len());
        self.payload.get(..end).and_then(|bytes| std::str::from_utf8(bytes).ok())
    }

    /// The payload as a big-endian `u32`, as netfilter writes its numbers.
    #[must_use]
    pub fn u32_be(&self) -> Option<u32> {
        Some(u32::from_be_bytes(*self.payload.first_chunk()?))
    }
}

/// The attributes of a payload; stops at the first length that cannot be true.
#[derive(Clone, Debug)]
pub struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    /// Reads attributes from the beginning of `bytes`.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let length = usize::from(read_u16(self.rest, 0)?);
        let attribute = Attribute {
            kind: read_u16(self.rest, 2)? & NLA_TYPE_MASK,
            payload: self.rest.get(ALIGN..length)?,
        };
        self.rest = self.rest.get(length.next_multiple_of(ALIGN)..).unwrap_or_default();
        Some(attribute)
    }
}

/// The `u16` at `offset`, host byte order; `None` past the end.
#[must_use]
pub fn read_u16(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The `u32` at `offset`, host byte order; `None` past the end.
#[must_use]
pub fn read_u32(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The `u64` at `offset`, host byte order; `None` past the end.
#[must_use]
pub fn read_u64(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

/// The `i32` at `offset`, host byte order; `None` past the end.
#[must_use]
pub fn read_i32(bytes: &[u8], offset: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nested_attribute_reads_back_as_it_was_written() {
        let mut writer = Writer::new();
        writer.begin(0x0605, NLM_F_ACK, 7);
        writer.put(&[2, 0, 0, 0]);
        writer.attribute_str(2, "set");
        let nest = writer.begin_nest(7);
        writer.attribute(1, &[10, 0, 0, 1]);
        writer.end_nest(nest);
        writer.end();

        let messages: Vec<_> = Messages::new(writer.bytes()).collect();
        assert_eq!(messages.len(), 1);
        assert_eq!((messages[0].kind, messages[0].sequence), (0x0605, 7));
        assert_eq!(messages[0].flags, NLM_F_ACK | NLM_F_REQUEST);
        let attributes: Vec<_> = Attributes::new(&messages[0].payload[4..]).collect();
        assert_eq!(attributes[0].text(), Some("set"));
        assert_eq!(attributes[1].kind, 7);
        assert_eq!(attributes[1].nested().next().unwrap().payload, [10, 0, 0, 1]);
    }

    #[test]
    fn a_length_that_lies_ends_the_reading() {
        let mut short = vec![0u8; 16];
        for length in [0u32, 1, 15, 17, u32::MAX] {
            short[..4].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(Messages::new(&short).next(), None, "length {length}");
        }
        for length in [0u16, 3, 9, u16::MAX] {
            let mut bytes = vec![0u8; 8];
            bytes[..2].copy_from_slice(&length.to_ne_bytes());
            assert_eq!(Attributes::new(&bytes).next(), None, "length {length}");
        }
    }

    #[test]
    fn every_truncation_of_a_datagram_is_read_without_a_panic() {
        let mut writer = Writer::new();
        for sequence in 0..3 {
            writer.begin(NLMSG_ERROR, 0, sequence);
            writer.put(&(-17i32).to_ne_bytes());
            writer.attribute(1, &[1, 2, 3]);
            writer.end();
        }
        for end in 0..writer.len() {
            for message in Messages::new(&writer.bytes()[..end]) {
                assert_eq!(message.errno(), Some(17));
                assert!(Attributes::new(message.payload).count() <= 2);
            }
        }
    }

    #[test]
    fn a_payload_longer_than_its_length_field_marks_the_datagram() {
        let mut writer = Writer::new();
        writer.begin(1, 0, 1);
        writer.attribute(1, &vec![0; 65_532]);
        writer.end();
        assert!(writer.is_oversized());
        writer.clear();
        assert!(!writer.is_oversized());
    }
}
