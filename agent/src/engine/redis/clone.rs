//! Copying another member into the side directory, as the engine itself would: by asking it for a full synchronization.
//!
//! The source forks and sends a snapshot of its data, which is written to the disk while our own engine goes on serving. What the
//! source writes meanwhile it keeps in its backlog, from which the new copy goes on when it has loaded the snapshot; if that was
//! not enough the engine synchronizes once more by itself. **Invariant:** `incoming-complete` stands only while `incoming` is a
//! whole, flushed snapshot with its line.

use std::{convert::Infallible, os::unix::fs::OpenOptionsExt, sync::Arc, time::Duration};

use regent_common::{
    topology::{Peer, Progress},
    transport::ByteStream,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    sync::watch,
    task::{JoinHandle, spawn_blocking},
    time,
};

use super::{
    Redis,
    access::REPLICATOR,
    position::{Line, end_of},
    session::{BRIEF, Session},
    wire::{SILENCE, ask_for_copy, filled_line},
};
use crate::engine::{
    CloneOptions, Cloned, DriverError, Work,
    layout::{Layout, io_error},
};

/// The phase in which the snapshot comes in.
const COPYING: &str = "copying";
/// Free space that a clone leaves.
const HEADROOM: u64 = 64 << 20;
/// Least rate, in bytes per second: a source gives up who takes nothing for ten seconds.
const LEAST_RATE: u64 = 64 << 10;
/// Length of the word that ends a snapshot whose length was not known.
const MARK: usize = 40;
/// How much is read before it is written: each write is another thread's, and costs a change to it and back.
const PART: usize = 1 << 20;
/// The same where there is a limit, for the pauses to be short.
const LIMITED_PART: usize = 1 << 18;

/// So many bytes are flushed together, while more comes in: what is left to the end would be waited for there.
const FLUSHED: u64 = 16 << 20;

/// How often the source is asked how many keys it has sent: its child tells it once a second.
const COUNT: Duration = Duration::from_secs(1);

/// How the source says where its snapshot ends.
#[derive(Debug, Clone, PartialEq, Eq)]
enum End {
    /// After so many bytes.
    After(u64),
    /// By this word.
    Marked(Vec<u8>),
}

/// Flushes a file beside its being written.
struct Flushing {
    file: Arc<std::fs::File>,
    /// How much had been written when the last flush began.
    from: u64,
    under_way: Option<JoinHandle<std::io::Result<()>>>,
}

// === impl Redis ===

impl Redis {
    pub(super) async fn copy_from(
        &self,
        source: &Peer,
        options: CloneOptions,
        work: &Work,
    ) -> Result<Cloned, DriverError> {
        self.on_disk(|layout| {
            layout.claim()?;
            layout.make_folders()?;
            crate::engine::swap::conclude(layout)?;
            layout.unmark(&layout.incoming_complete())?;
            layout.remove_tree(&layout.incoming())
        })
        .await?;
        self.wanted()?;
        report(&work.progress, |progress| "preparing".clone_into(&mut progress.phase));
        let cancelled = DriverError::Cancelled { doing: "copying" };
        if work.cancel.is_cancelled() {
            return Err(cancelled);
        }
        let doing = || format!("look at {}", source.member);
        let session =
            self.session_with(&source.engine.host, source.engine.port).await.map_err(|error| error.refused(doing()))?;
        let memory = session.info("memory", BRIEF).await.map_err(|error| error.refused(doing()))?;
        let room_for_old = self.make_room(memory.data_bytes(), options).await?;
        let old_data_kept = self.on_disk(|layout| Ok(layout.holds_data())).await?;
        self.on_disk(|layout| layout.make_folder(&layout.incoming(), 0o700, true)).await?;
        let received = async {
            let bytes = Box::pin(self.receive(source, options, &work.progress)).await?;
            report(&work.progress, |progress| "writing the old copy".clone_into(&mut progress.phase));
            Ok(bytes)
        };
        let written = async {
            if room_for_old {
                self.write_old_copy().await;
            }
            Ok(())
        };
        let copied = tokio::select! {
            () = work.cancel.cancelled() => Err(cancelled),
            both = async { tokio::try_join!(received, written) } => both.map(|(bytes, ())| bytes),
            never = count_entries(&session, &work.progress) => match never {},
        };
        match copied {
            Ok(bytes) => {
                self.on_disk(|layout| layout.write_ours(&layout.incoming_complete(), b"")).await?;
                Ok(Cloned { bytes, old_data_kept })
            }
            Err(error) => {
                if let Err(failure) = self.on_disk(|layout| layout.remove_tree(&layout.incoming())).await {
                    tracing::warn!(error = %failure, "after a failed clone something stayed behind; the next clone removes it");
                }
                Err(error)
            }
        }
    }

    /// Sees to it that there is space, removing the old data if that is allowed and needed. Whether there is some for a snapshot of
    /// the old data, too, which may be as large as the new.
    async fn make_room(&self, data_bytes: u64, options: CloneOptions) -> Result<bool, DriverError> {
        let needed = data_bytes + HEADROOM;
        let missing = |free: u64| {
            (free < needed).then(|| DriverError::DiskFull {
                path: self.layout.root.clone(),
                detail: format!("the clone needs up to {needed} bytes, {free} are free"),
            })
        };
        let free = self.on_disk(|layout| layout.free_bytes()).await?;
        let Some(error) = missing(free) else { return Ok(free >= needed + data_bytes) };
        if !options.wipe_first_if_needed {
            return Err(error);
        }
        let own = self.on_disk(|layout| Ok(crate::engine::layout::tree_bytes(&layout.data()))).await?;
        if let Some(error) = missing(free + own) {
            return Err(error);
        }
        tracing::warn!(free, needed, own, "there is no space for two copies: the old data is removed first");
        let _control = self.begin().await;
        self.on_disk(|layout| layout.mark_dirty("the old data was removed to make room for a clone")).await?;
        self.kill().await?;
        self.on_disk(|layout| layout.remove_tree(&layout.data())).await?;
        Ok(false)
    }

    /// Receives a snapshot with its line; its size.
    async fn receive(
        &self,
        source: &Peer,
        options: CloneOptions,
        progress: &watch::Sender<Progress>,
    ) -> Result<u64, DriverError> {
        let refused =
            |detail: String| DriverError::Refused { doing: format!("be copied from {}", source.member), detail };
        let broken = |error: std::io::Error| refused(format!("the connection broke: {error}"));
        let stream = self.dial(&source.engine.host, source.engine.port).await;
        let stream = stream.map_err(|error| refused(error.to_string()))?;
        let mut stream = BufReader::with_capacity(1 << 18, stream);
        let secret = self.wanted()?.secrets.replication.clone();
        ask_for_copy(&mut stream, REPLICATOR, &secret).await.map_err(broken)?.map_err(refused)?;
        report(progress, |progress| "waiting for a snapshot".clone_into(&mut progress.phase));
        let answer = filled_line(&mut stream).await.map_err(broken)?;
        let Some((id, offset)) = full_resync(&answer) else { return Err(refused(answer)) };
        let end = filled_line(&mut stream).await.map_err(broken)?;
        let end = End::parse(&end).ok_or_else(|| refused(end))?;
        report(progress, |progress| {
            let total = if let End::After(bytes) = end { bytes } else { 0 };
            *progress = Progress { phase: COPYING.to_owned(), bytes_total: total, ..Progress::default() };
        });
        let bytes = self.write_snapshot(&mut stream, &end, options, progress).await?;
        drop(stream);
        let line = self.line_of(source, &id, offset).await?;
        self.on_disk(move |layout| line.store(layout, &layout.incoming())).await?;
        Ok(bytes)
    }

    /// The line of a snapshot that the source made at this id and offset.
    async fn line_of(&self, source: &Peer, id: &str, offset: u64) -> Result<Line, DriverError> {
        let theirs = self.identify(source).await?.line;
        if theirs.id == id {
            return Ok(theirs);
        }
        // It was promoted or restarted since; what it had before is in its line.
        let index = theirs.left.iter().position(|left| left.id == id && left.end >= end_of(offset));
        let index = index.ok_or_else(|| DriverError::Refused {
            doing: format!("be copied from {}", source.member),
            detail: "its data became another meanwhile".to_owned(),
        })?;
        Ok(Line { left: theirs.left[..index].to_vec(), id: id.to_owned() })
    }

    async fn write_snapshot(
        &self,
        stream: &mut BufReader<Box<dyn ByteStream>>,
        end: &End,
        options: CloneOptions,
        progress: &watch::Sender<Progress>,
    ) -> Result<u64, DriverError> {
        let target = Layout::clone(&self.layout).with_data_in_incoming().snapshot();
        let (owner, path) = (self.layout.user.clone(), target.clone());
        let file = self
            .on_disk(move |_| {
                let file = std::fs::File::options().create_new(true).write(true).mode(0o600).open(&path);
                let file = file.map_err(io_error("create", &path))?;
                if owner.name.is_some() {
                    std::os::unix::fs::fchown(&file, Some(owner.uid), Some(owner.gid))
                        .map_err(io_error("set the owner of", &path))?;
                }
                Ok(file)
            })
            .await?;
        let mut flushing = Flushing::of(&file).map_err(io_error("open", &target))?;
        let mut file = tokio::fs::File::from_std(file);
        let refused = |detail: String| DriverError::Refused { doing: "send its snapshot".to_owned(), detail };
        let started = time::Instant::now();
        let mut written = 0_u64;
        // What may be the end's word is held back until it is known not to be.
        let part = if options.max_bytes_per_second > 0 { LIMITED_PART } else { PART };
        let mut held: Vec<u8> = Vec::with_capacity(2 * part);
        loop {
            let wanted = match end {
                End::After(bytes) => bytes - written - held.len() as u64,
                End::Marked(_) => u64::MAX,
            };
            let mut ended = wanted == 0;
            if !ended {
                let read = time::timeout(SILENCE, (&mut *stream).take(wanted).read_buf(&mut held)).await;
                let read = read.map_err(|_| refused(format!("nothing came for {} s", SILENCE.as_secs())))?;
                let read = read.map_err(|error| refused(format!("the connection broke: {error}")))?;
                if read == 0 {
                    let received = written + held.len() as u64;
                    return Err(refused(format!("the connection ended after {received} bytes")));
                }
                ended = matches!(end, End::Marked(mark) if held.ends_with(mark));
                if !ended && held.len() < part {
                    continue;
                }
            }
            let ready = if let End::Marked(_) = end { held.len().saturating_sub(MARK) } else { held.len() };
            file.write_all(&held[..ready]).await.map_err(io_error("write", &target))?;
            held.drain(..ready);
            written += ready as u64;
            flushing.go_on(written).await.map_err(io_error("flush", &target))?;
            tell_progress(progress, written, started.elapsed());
            if ended {
                break;
            }
            if options.max_bytes_per_second > 0 {
                let rate = options.max_bytes_per_second.max(LEAST_RATE);
                let due = Duration::from_secs(written / rate) + Duration::from_millis(written % rate * 1000 / rate);
                time::sleep_until(started + due).await;
            }
        }
        file.flush().await.map_err(io_error("write", &target))?;
        flushing.end().await.map_err(io_error("flush", &target))?;
        file.sync_all().await.map_err(io_error("flush", &target))?;
        Ok(written)
    }
}

// === impl Flushing ===

impl Flushing {
    fn of(file: &std::fs::File) -> std::io::Result<Self> {
        Ok(Self { file: Arc::new(file.try_clone()?), from: 0, under_way: None })
    }

    /// Begins to flush what has been written since the last time, when that is enough and the last time is over.
    async fn go_on(&mut self, written: u64) -> std::io::Result<()> {
        if written - self.from < FLUSHED || self.under_way.as_ref().is_some_and(|flush| !flush.is_finished()) {
            return Ok(());
        }
        self.end().await?;
        self.from = written;
        let file = Arc::clone(&self.file);
        self.under_way = Some(spawn_blocking(move || file.sync_data()));
        Ok(())
    }

    /// Waits for what is under way. The kernel tells a failure once: to who asks next.
    async fn end(&mut self) -> std::io::Result<()> {
        match self.under_way.take() {
            Some(flush) => flush.await.map_err(std::io::Error::other)?,
            None => Ok(()),
        }
    }
}

// === impl End ===

impl End {
    /// Reads `$123` or `$EOF:word`.
    fn parse(text: &str) -> Option<Self> {
        let text = text.strip_prefix('$')?;
        match text.strip_prefix("EOF:") {
            Some(mark) => (mark.len() == MARK).then(|| Self::Marked(mark.as_bytes().to_vec())),
            None => text.parse().ok().map(Self::After),
        }
    }
}

/// Reads `+FULLRESYNC id offset`.
fn full_resync(answer: &str) -> Option<(String, u64)> {
    let (id, offset) = answer.strip_prefix("+FULLRESYNC ")?.split_once(' ')?;
    Some((id.to_owned(), offset.parse().ok()?))
}

fn report(progress: &watch::Sender<Progress>, change: impl FnOnce(&mut Progress)) {
    progress.send_modify(change);
}

fn tell_progress(progress: &watch::Sender<Progress>, done: u64, since: Duration) {
    let milliseconds = u64::try_from(since.as_millis()).unwrap_or(u64::MAX).max(1);
    report(progress, |progress| {
        progress.bytes_done = done;
        progress.bytes_per_second = done.saturating_mul(1000) / milliseconds;
        progress.eta_seconds = match (progress.bytes_total, progress.entries_total) {
            (0, 0) => None,
            // A snapshot that is made while it is sent has a size when it is over.
            (0, total) => left(progress.entries_done, total, milliseconds),
            (total, _) => left(done, total, milliseconds),
        };
    });
}

/// Seconds that the rest takes if it goes on as in these milliseconds; `None` before anything is done.
fn left(done: u64, total: u64, milliseconds: u64) -> Option<u64> {
    let rest = u128::from(total.saturating_sub(done)) * u128::from(milliseconds);
    u64::try_from(rest.checked_div(u128::from(done))? / 1000).ok()
}

/// Tells how many keys the source has sent, by its own count, as long as it says so.
async fn count_entries(source: &Session, progress: &watch::Sender<Progress>) -> Infallible {
    loop {
        time::sleep(COUNT).await;
        let Ok(info) = source.info("persistence", BRIEF).await else { continue };
        let count = |name| info.number(name).unwrap_or(0);
        let (done, total) = (count("current_save_keys_processed"), count("current_save_keys_total"));
        report(progress, |progress| {
            // Before, it may be at work on another snapshot; afterwards it has forgotten.
            if progress.phase == COPYING && total > 0 {
                (progress.entries_done, progress.entries_total) = (done, total);
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_is_foreseen() {
        assert_eq!(left(25, 100, 10_000), Some(30));
        assert_eq!(left(0, 100, 10_000), None);
        assert_eq!((left(100, 100, 10_000), left(120, 100, 10_000)), (Some(0), Some(0)), "more came than was foreseen");
        let progress = watch::Sender::new(Progress { entries_done: 10, entries_total: 30, ..Progress::default() });
        tell_progress(&progress, 1000, Duration::from_secs(2));
        let told = progress.borrow().clone();
        assert_eq!((told.bytes_done, told.bytes_per_second, told.eta_seconds), (1000, 500, Some(4)));
    }

    #[test]
    fn answers_are_read() {
        assert_eq!(full_resync("+FULLRESYNC 8c4f 154"), Some(("8c4f".to_owned(), 154)));
        assert_eq!(full_resync("-NOMASTERLINK Can't SYNC while not connected with my master"), None);
        assert_eq!(End::parse("$1024"), Some(End::After(1024)));
        let mark = "a".repeat(MARK);
        assert_eq!(End::parse(&format!("$EOF:{mark}")), Some(End::Marked(mark.into_bytes())));
        assert_eq!(End::parse("$EOF:short"), None);
    }
}
