//! The engine's own protocol, where the client library knows too much of it: as a replica that asks for a copy, and as somebody who
//! knocks and only wants to know what is said first.

use std::{io, path::Path, time::Duration};

use secrecy::{ExposeSecret, SecretString};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncWrite, AsyncWriteExt, BufReader},
    net::UnixStream,
    time,
};

use super::{access::AGENT, session::SessionError};

/// How long the other side may send nothing. While it prepares a snapshot it sends an empty line every second.
pub(super) const SILENCE: Duration = Duration::from_secs(60);

/// A command as the wire has it.
fn command(words: &[&str]) -> Vec<u8> {
    let mut text = format!("*{}\r\n", words.len());
    for word in words {
        text.push_str(&format!("${}\r\n{word}\r\n", word.len()));
    }
    text.into_bytes()
}

/// Makes a new connection to our own engine, logs in, and asks whether it serves. Whatever it refuses, for want of connections or of a
/// disk that takes its snapshots, is an answer of a living engine: its words. An error is silence, or [`SessionError::Loading`].
pub(super) async fn knock(socket: &Path, secret: &SecretString, limit: Duration) -> Result<String, SessionError> {
    let answered = async {
        let stream = UnixStream::connect(socket).await.map_err(|error| SessionError::of_io(&error))?;
        let mut stream = BufReader::new(stream);
        for words in [&["AUTH", AGENT, secret.expose_secret()][..], &["PING"]] {
            // An engine that is full says so before it is asked, and hangs up.
            let sent = stream.write_all(&command(words)).await;
            let answer = line(&mut stream).await;
            let answer = answer.map_err(|error| SessionError::Broken(sent.err().unwrap_or(error).to_string()))?;
            match answer.strip_prefix('-') {
                None => {}
                Some(text) if text.starts_with("LOADING") => return Err(SessionError::Loading),
                Some(text) => return Ok(text.to_owned()),
            }
        }
        Ok(String::new())
    };
    time::timeout(limit, answered).await.unwrap_or(Err(SessionError::Silent(limit)))
}

/// Logs in and asks for a full synchronization; the engine's refusal when it gives one.
pub(super) async fn ask_for_copy<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut BufReader<S>,
    user: &str,
    secret: &SecretString,
) -> io::Result<Result<(), String>> {
    let greeting = [&["AUTH", user, secret.expose_secret()][..], &["REPLCONF", "capa", "eof", "capa", "psync2"]];
    for words in greeting {
        // One after the other: the engine takes no such request while an answer is still to be sent.
        stream.write_all(&command(words)).await?;
        stream.flush().await?;
        let answer = line(stream).await?;
        if !answer.starts_with('+') {
            return Ok(Err(answer));
        }
    }
    stream.write_all(&command(&["PSYNC", "?", "-1"])).await?;
    stream.flush().await.map(Ok)
}

async fn line<S: AsyncRead + Unpin>(stream: &mut BufReader<S>) -> io::Result<String> {
    let mut text = Vec::new();
    let read = time::timeout(SILENCE, stream.read_until(b'\n', &mut text)).await;
    let read = read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if read == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(String::from_utf8_lossy(&text).trim_end().to_owned())
}

/// A line with something in it: the source sends empty ones while it is at work.
pub(super) async fn filled_line(stream: &mut BufReader<impl AsyncRead + Unpin>) -> io::Result<String> {
    loop {
        let text = line(stream).await?;
        if !text.is_empty() {
            return Ok(text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_is_written() {
        assert_eq!(command(&["PSYNC", "?", "-1"]), b"*3\r\n$5\r\nPSYNC\r\n$1\r\n?\r\n$2\r\n-1\r\n");
    }
}
