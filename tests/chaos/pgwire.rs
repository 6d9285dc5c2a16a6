//! As much of PostgreSQL's protocol as it takes to know a COMMIT and its reply.
//! <https://www.postgresql.org/docs/current/protocol-message-formats.html>

/// Cuts one direction of a plain-text connection into messages.
#[derive(Default)]
pub struct Messages {
    buffered: Vec<u8>,
    /// The first message of a client has no type byte.
    typed: bool,
}

/// Whole messages, ready to be passed on.
#[derive(Debug, PartialEq, Eq)]
pub enum Piece {
    /// Nothing that matters here.
    Other(Vec<u8>),
    /// A client's `COMMIT` or the server's reply that it has committed.
    Commit(Vec<u8>),
}

impl Messages {
    pub fn of_client() -> Self {
        Self::default()
    }

    pub fn of_server() -> Self {
        Self { typed: true, ..Self::default() }
    }

    pub fn push(&mut self, bytes: &[u8]) {
        self.buffered.extend_from_slice(bytes);
    }

    /// The next complete messages: one that is a COMMIT by itself, all others together.
    pub fn next(&mut self) -> Option<Piece> {
        let mut end = 0;
        while let Some(length) = self.message_at(end) {
            if is_commit(&self.buffered[end..end + length]) {
                if end == 0 {
                    return Some(Piece::Commit(self.take(length)));
                }
                break;
            }
            end += length;
            self.typed = true;
        }
        (end > 0).then(|| Piece::Other(self.take(end)))
    }

    /// Length of the message that begins at `start`, if all of it is there.
    fn message_at(&self, start: usize) -> Option<usize> {
        let head = usize::from(self.typed);
        let rest = self.buffered.get(start..)?;
        let length = rest.get(head..head + 4)?;
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]);
        let whole = head + usize::try_from(length).ok()?;
        (rest.len() >= whole).then_some(whole)
    }

    fn take(&mut self, length: usize) -> Vec<u8> {
        let rest = self.buffered.split_off(length);
        std::mem::replace(&mut self.buffered, rest)
    }
}

/// A simple query or a command tag.
fn is_commit(message: &[u8]) -> bool {
    matches!(message.first(), Some(b'Q' | b'C')) && message.get(5..) == Some(b"COMMIT\0")
}

/// Fails the run before it begins when this part of it is broken: without it, the most telling
/// faults would strike at nothing.
pub fn self_check() -> Result<(), String> {
    let startup = [&8_u32.to_be_bytes()[..], &196_608_u32.to_be_bytes()].concat();
    let query = |text: &[u8]| {
        let length = u32::try_from(text.len() + 4).unwrap_or_default();
        [&[b'Q'][..], &length.to_be_bytes(), text].concat()
    };
    let (begin, commit) = (query(b"BEGIN\0"), query(b"COMMIT\0"));
    let all = [&startup[..], &begin, &commit, &begin].concat();
    let expected = [
        Piece::Other([startup, begin.clone()].concat()),
        Piece::Commit(commit),
        Piece::Other(begin),
    ];
    // In one piece, and byte by byte.
    let mut messages = Messages::of_client();
    messages.push(&all);
    let whole: Vec<_> = std::iter::from_fn(|| messages.next()).collect();
    let mut messages = Messages::of_client();
    let mut commits = 0;
    for byte in &all {
        messages.push(&[*byte]);
        commits += usize::from(matches!(messages.next(), Some(Piece::Commit(_))));
    }
    if whole == expected && commits == 1 {
        Ok(())
    } else {
        Err(format!("PostgreSQL's messages are not cut as they should be: {whole:?}, {commits}"))
    }
}
