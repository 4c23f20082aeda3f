//! Netlink as it is needed here: one socket, requests, dumps, nf_tables batches, and the kernel's own words about errors.
//!
//! Not a netlink library: it knows the framing and attributes, not what the messages mean ([`super::message`]).
//!
//! **Invariants:** no call waits for an answer. The kernel works a request off before `send` returns and the answers are in
//! the socket's queue then; the socket is non-blocking, so that a missing answer is an error and never a hang. What `send`
//! may wait for is the kernel's own lock around somebody else's transaction. Answers to anything but the present request
//! are dropped.

use std::{io, mem};

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;

/// The message is a request.
const REQUEST: u16 = 0x1;
/// An acknowledgement is wanted, not only errors.
const ACKNOWLEDGE: u16 = 0x4;
/// Everything of a kind is wanted.
const DUMP: u16 = 0x300;
/// What is new may be created.
pub(crate) const CREATE: u16 = 0x400;
/// What is new comes after what is there.
pub(crate) const APPEND: u16 = 0x800;
/// In an answer: what is dumped has changed meanwhile.
const INTERRUPTED: u16 = 0x10;
/// In an error: the request is not repeated in full.
const CAPPED: u16 = 0x100;
/// In an error: attributes follow, with text.
const HAS_TEXT: u16 = 0x200;

const KIND_ERROR: u16 = 2;
const KIND_DONE: u16 = 3;
const KIND_BATCH_BEGIN: u16 = 0x10;
const KIND_BATCH_END: u16 = 0x11;
/// Number of nf_tables among the netfilter subsystems.
pub(crate) const NF_TABLES: u16 = 10;

const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
const KIND_MASK: u16 = 0x3fff;
/// How often a dump that something interrupted is asked for again. Each attempt takes microseconds; whoever changes the
/// rules all the time makes the last attempt fail, and the next heartbeat asks again.
const DUMP_ATTEMPTS: usize = 16;

/// A socket to one netlink family.
pub(crate) struct Netlink {
    socket: Socket,
    port: u32,
    sequence: u32,
    received: Vec<u8>,
}

/// A message without the header of netlink.
#[derive(Debug, Clone)]
pub(crate) struct Message {
    /// What it does, for people: "add the guard".
    pub(crate) what: &'static str,
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) body: Vec<u8>,
}

/// One message that the kernel did not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Its place in the batch; `None` when the batch as a whole failed.
    pub(crate) place: Option<usize>,
    /// The number of the error.
    pub(crate) code: i32,
    /// What was wanted and the kernel's words.
    pub(crate) text: String,
}

/// Why a request was not done. Of a batch nothing was done then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal(pub(crate) Vec<Failure>);

/// Attributes that are being written.
#[derive(Debug, Default, Clone)]
pub(crate) struct Attributes(Vec<u8>);

/// Attributes that are read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parsed<'a>(&'a [u8]);

/// A message out of the socket's queue.
struct Answer<'a> {
    kind: u16,
    flags: u16,
    sequence: u32,
    payload: &'a [u8],
}

// === impl Netlink ===

impl Netlink {
    /// A socket of the calling thread's network namespace.
    pub(crate) fn open(family: isize) -> io::Result<Self> {
        let mut socket = Socket::new(family)?;
        let port = socket.bind_auto()?.port_number();
        socket.set_non_blocking(true)?;
        // Kernels before 4.12 have no texts; the number of the error is enough then.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        Ok(Self { socket, port, sequence: 0, received: Vec::with_capacity(64 * 1024) })
    }

    /// Makes room for batches of so many bytes, past the system's limit: a batch goes out in one piece.
    pub(crate) fn reserve(&self, bytes: usize) -> io::Result<()> {
        Ok(rustix::net::sockopt::set_socket_send_buffer_size_force(&self.socket, bytes)?)
    }

    /// The kernel's name of this socket, by which it knows the owner of a table.
    pub(crate) fn port(&self) -> u32 {
        self.port
    }

    /// Asks for one thing that is acknowledged.
    pub(crate) fn ask(&mut self, message: &Message) -> Result<Vec<Vec<u8>>, Refusal> {
        let sequence = self.next_sequence();
        let mut bytes = Vec::with_capacity(HEADER + message.body.len());
        put(&mut bytes, message, message.flags | REQUEST | ACKNOWLEDGE, sequence);
        self.send(&bytes, message.what)?;
        let (mut answers, mut failures, mut acknowledged) = (Vec::new(), Vec::new(), false);
        self.receive(message.what, |answer| {
            if answer.sequence != sequence {
                return;
            }
            match answer.kind {
                KIND_ERROR => match error(answer) {
                    (0, _) => acknowledged = true,
                    (code, text) => failures.push(Failure::new(Some(0), code, message.what, text)),
                },
                _ => answers.push(answer.payload.to_vec()),
            }
        })?;
        settle(acknowledged, failures, message.what)?;
        Ok(answers)
    }

    /// Asks for everything of a kind; once more when it changed meanwhile.
    pub(crate) fn dump(&mut self, message: &Message) -> Result<Vec<Vec<u8>>, Refusal> {
        for _ in 0..DUMP_ATTEMPTS {
            let sequence = self.next_sequence();
            let mut bytes = Vec::with_capacity(HEADER + message.body.len());
            put(&mut bytes, message, message.flags | REQUEST | DUMP, sequence);
            self.send(&bytes, message.what)?;
            let (mut answers, mut failures) = (Vec::new(), Vec::new());
            let (mut done, mut interrupted) = (false, false);
            self.receive(message.what, |answer| {
                if answer.sequence != sequence {
                    return;
                }
                interrupted |= answer.flags & INTERRUPTED != 0;
                match answer.kind {
                    KIND_ERROR => {
                        let (code, text) = error(answer);
                        failures.push(Failure::new(Some(0), code, message.what, text));
                    }
                    KIND_DONE => {
                        done = true;
                        let code = -signed(answer.payload);
                        if code > 0 {
                            failures.push(Failure::new(Some(0), code, message.what, String::new()));
                        }
                    }
                    _ => answers.push(answer.payload.to_vec()),
                }
            })?;
            settle(done, failures, message.what)?;
            if !interrupted {
                return Ok(answers);
            }
        }
        Err(Refusal::of(Errno::EBUSY, message.what, "it changes all the time"))
    }

    /// Makes these changes, all or none; done and visible to packets when this returns.
    pub(crate) fn batch(&mut self, messages: &[Message]) -> Result<(), Refusal> {
        const WHAT: &str = "make the changes";
        let begin = self.next_sequence();
        let mut bytes = Vec::with_capacity(4096);
        let frame = |kind| Message { what: WHAT, kind, flags: 0, body: netfilter_header(0, NF_TABLES) };
        put(&mut bytes, &frame(KIND_BATCH_BEGIN), REQUEST, begin);
        let last = messages.len().saturating_sub(1);
        for (place, message) in messages.iter().enumerate() {
            // Errors come in any case; one acknowledgement, of the last one, says that all are done.
            let acknowledge = if place == last { ACKNOWLEDGE } else { 0 };
            let sequence = self.next_sequence();
            put(&mut bytes, message, message.flags | REQUEST | acknowledge, sequence);
        }
        let end = self.next_sequence();
        put(&mut bytes, &frame(KIND_BATCH_END), REQUEST, end);
        self.send(&bytes, WHAT)?;
        let (mut failures, mut acknowledged) = (Vec::new(), false);
        self.receive(WHAT, |answer| {
            let offset = answer.sequence.wrapping_sub(begin) as usize;
            if answer.kind != KIND_ERROR || offset > messages.len() + 1 {
                return;
            }
            let place = offset.checked_sub(1).filter(|place| *place < messages.len());
            match error(answer) {
                (0, _) => acknowledged |= place == Some(last),
                (code, text) => {
                    let what = place.map_or(WHAT, |place| messages[place].what);
                    failures.push(Failure::new(place, code, what, text));
                }
            }
        })?;
        settle(acknowledged, failures, WHAT)
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequence = self.sequence.wrapping_add(1);
        self.sequence
    }

    fn send(&self, bytes: &[u8], what: &'static str) -> Result<(), Refusal> {
        let sent =
            retry(|| self.socket.send_to(bytes, &SocketAddr::new(0, 0), 0)).map_err(|e| Refusal::io(what, &e))?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(Refusal::of(Errno::EIO, what, "the socket took only a part of the message"))
        }
    }

    /// Hands out all that is in the socket's queue.
    fn receive(&mut self, what: &'static str, mut each: impl FnMut(&Answer<'_>)) -> Result<(), Refusal> {
        loop {
            self.received.clear();
            match retry(|| self.socket.recv(&mut self.received, 0)) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(Refusal::io(what, &error)),
            }
            let mut rest = self.received.as_slice();
            while let Some((answer, after)) = next_answer(rest) {
                each(&answer);
                rest = after;
            }
        }
    }
}

fn retry<T>(mut call: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn settle(confirmed: bool, failures: Vec<Failure>, what: &'static str) -> Result<(), Refusal> {
    if !failures.is_empty() {
        return Err(Refusal(failures));
    }
    if confirmed { Ok(()) } else { Err(Refusal::of(Errno::EIO, what, "the kernel did not answer")) }
}

fn put(bytes: &mut Vec<u8>, message: &Message, flags: u16, sequence: u32) {
    let length = u32::try_from(HEADER + message.body.len()).expect("our messages are short");
    bytes.extend_from_slice(&length.to_ne_bytes());
    bytes.extend_from_slice(&message.kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    bytes.extend_from_slice(&0_u32.to_ne_bytes());
    bytes.extend_from_slice(&message.body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

fn next_answer(bytes: &[u8]) -> Option<(Answer<'_>, &[u8])> {
    let length = u32::from_ne_bytes(bytes.get(..4)?.try_into().ok()?) as usize;
    let answer = Answer {
        kind: u16::from_ne_bytes(bytes.get(4..6)?.try_into().ok()?),
        flags: u16::from_ne_bytes(bytes.get(6..8)?.try_into().ok()?),
        sequence: u32::from_ne_bytes(bytes.get(8..12)?.try_into().ok()?),
        payload: bytes.get(HEADER..length)?,
    };
    Some((answer, bytes.get(length.next_multiple_of(4)..).unwrap_or_default()))
}

fn signed(payload: &[u8]) -> i32 {
    payload.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes)
}

/// The positive number of an error, 0 for an acknowledgement, and the kernel's text.
fn error(answer: &Answer<'_>) -> (i32, String) {
    const ATTRIBUTE_TEXT: u16 = 1;
    let code = -signed(answer.payload);
    let mut text = String::new();
    if answer.flags & HAS_TEXT != 0 {
        let repeated = if answer.flags & CAPPED != 0 || code == 0 {
            HEADER
        } else {
            let length = answer.payload.get(4..8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_ne_bytes);
            (length as usize).next_multiple_of(4)
        };
        if let Some(attributes) = answer.payload.get(4 + repeated..) {
            text = Parsed::new(attributes).text(ATTRIBUTE_TEXT).unwrap_or_default();
        }
    }
    (code, text)
}

/// The four bytes between netlink's header and a netfilter message's attributes.
pub(crate) fn netfilter_header(family: u8, resource: u16) -> Vec<u8> {
    let [high, low] = resource.to_be_bytes();
    vec![family, 0, high, low]
}

// === impl Failure, Refusal ===

impl Failure {
    fn new(place: Option<usize>, code: i32, what: &'static str, text: String) -> Self {
        let words = io::Error::from_raw_os_error(code);
        let text = if text.is_empty() { format!("{what}: {words}") } else { format!("{what}: {words}: {text}") };
        Self { place, code, text }
    }
}

impl Refusal {
    /// A refusal in our own words.
    pub(crate) fn of(code: Errno, what: &'static str, text: &str) -> Self {
        Self(vec![Failure { place: None, code: code as i32, text: format!("{what}: {text}") }])
    }

    fn io(what: &'static str, error: &io::Error) -> Self {
        let code = error.raw_os_error().unwrap_or_default();
        Self(vec![Failure { place: None, code, text: format!("{what}: {error}") }])
    }

    /// Whether every failure is this error.
    pub(crate) fn is(&self, code: Errno) -> bool {
        self.0.iter().all(|failure| failure.code == code as i32)
    }

    /// Whether this message was the only one that failed, and with this error.
    pub(crate) fn is_only(&self, place: usize, code: Errno) -> bool {
        matches!(self.0.as_slice(), [one] if one.place == Some(place) && one.code == code as i32)
    }

    /// All of it in one line; the same words once.
    pub(crate) fn text(&self) -> String {
        let mut texts: Vec<&str> = self.0.iter().map(|failure| failure.text.as_str()).collect();
        texts.dedup();
        texts.join("; ")
    }
}

// === impl Attributes ===

impl Attributes {
    pub(crate) fn bytes(mut self, kind: u16, value: &[u8]) -> Self {
        let length = u16::try_from(4 + value.len()).expect("our attributes are short");
        self.0.extend_from_slice(&length.to_ne_bytes());
        self.0.extend_from_slice(&kind.to_ne_bytes());
        self.0.extend_from_slice(value);
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    pub(crate) fn text(self, kind: u16, value: &str) -> Self {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.bytes(kind, &bytes)
    }

    pub(crate) fn number(self, kind: u16, value: u32) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn long(self, kind: u16, value: u64) -> Self {
        self.bytes(kind, &value.to_be_bytes())
    }

    pub(crate) fn nest(self, kind: u16, inner: Self) -> Self {
        self.bytes(kind | NESTED, &inner.0)
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

// === impl Parsed ===

impl<'a> Parsed<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// All of them, in order.
    pub(crate) fn all(self) -> impl Iterator<Item = (u16, &'a [u8])> {
        let mut rest = self.0;
        std::iter::from_fn(move || {
            let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
            let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?) & KIND_MASK;
            let value = rest.get(4..length)?;
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            Some((kind, value))
        })
    }

    pub(crate) fn bytes(self, kind: u16) -> Option<&'a [u8]> {
        self.all().find(|(found, _)| *found == kind).map(|(_, value)| value)
    }

    pub(crate) fn nested(self, kind: u16) -> Option<Self> {
        self.bytes(kind).map(Self)
    }

    pub(crate) fn text(self, kind: u16) -> Option<String> {
        let bytes = self.bytes(kind)?;
        let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
        Some(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }

    pub(crate) fn number(self, kind: u16) -> Option<u32> {
        self.bytes(kind)?.get(..mem::size_of::<u32>())?.try_into().ok().map(u32::from_be_bytes)
    }

    pub(crate) fn long(self, kind: u16) -> Option<u64> {
        self.bytes(kind)?.get(..mem::size_of::<u64>())?.try_into().ok().map(u64::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let inner = Attributes::default().number(1, 7).long(2, 1 << 40);
        let bytes = Attributes::default().text(3, "abc").nest(4, inner).bytes(5, &[9]).finish();
        let parsed = Parsed::new(&bytes);
        assert_eq!(parsed.text(3).as_deref(), Some("abc"));
        let nested = parsed.nested(4).unwrap();
        assert_eq!((nested.number(1), nested.long(2)), (Some(7), Some(1 << 40)));
        assert_eq!(parsed.bytes(5), Some(&[9][..]));
        assert_eq!(parsed.bytes(6), None);
    }

    #[test]
    fn torn_attributes_and_messages_end_the_reading() {
        assert_eq!(Parsed::new(&[200, 0, 1, 0, 5]).all().count(), 0);
        assert_eq!(Parsed::new(&[3, 0, 1, 0]).all().count(), 0);
        assert!(next_answer(&[1, 2, 3]).is_none());
        assert!(next_answer(&[255, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]).is_none());
    }
}
