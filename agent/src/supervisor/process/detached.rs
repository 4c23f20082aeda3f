//! A start as a child of ours that outlives us, where no systemd runs.

use std::{
    ffi::OsString,
    io,
    process::{Command, Stdio},
};

/// Starts `command`, a program and its arguments; returns its process id.
pub(super) fn start(command: &[OsString]) -> io::Result<u32> {
    let (program, arguments) = command.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    // Not tokio's command: the process is reaped through its pidfd, and dropping the handle must not matter.
    let child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    Ok(child.id())
}
