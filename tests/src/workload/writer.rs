//! The loop of a writer: find a member that takes writes, write numbered rows, record every answer, begin again.
//!
//! It hides nothing: each row is tried once, an unclear end is recorded as unclear, and the next row gets the next number.

use std::{future::Future, io, time::Duration};

use futures::{StreamExt, stream::FuturesUnordered};
use tokio_util::sync::CancellationToken;

use super::history::Recorder;

/// Why a row was not acknowledged.
#[derive(Debug)]
pub struct Refusal {
    /// Whether the engine itself said that nothing was written.
    pub certain: bool,
    /// What it said.
    pub reason: String,
}

/// A connection to one member.
pub trait Session: Sized {
    /// How to log in.
    type Login: Clone;

    /// Connects.
    fn connect(login: &Self::Login, member: &str) -> impl Future<Output = Result<Self, String>> + Send;

    /// Whether the member says that it takes writes.
    fn writable(&self) -> impl Future<Output = Result<bool, String>>;

    /// Writes one row; the engine's word for the reign in which it did.
    fn insert(&self, writer: &str, row: u64, member: &str) -> impl Future<Output = Result<String, Refusal>>;

    /// Counts the rows that the member has.
    fn count(&self) -> impl Future<Output = Result<u64, String>> + Send;

    /// Writes something that changes nothing.
    fn touch(&self) -> impl Future<Output = Result<(), Refusal>> + Send;
}

/// Whom to write to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// Whichever of these takes writes, as a client with several hosts does.
    Primary(Vec<String>),
    /// This one and no other, whatever it says.
    Member(String),
}

/// What a writer is to do.
#[derive(Debug, Clone)]
pub struct Plan<L> {
    /// Its name; rows are numbered for each name.
    pub writer: String,
    /// Whom to write to.
    pub target: Target,
    /// How to log in.
    pub login: L,
    /// Pause after each row.
    pub pause: Duration,
    /// Pause after a row was refused, or nobody was found.
    pub retry: Duration,
    /// How long to wait for the answer to a row.
    pub patience: Duration,
}

/// How long to wait for a connection, and for a member's word on whether it takes writes.
const LOOK: Duration = Duration::from_secs(1);
/// How long a row that is under way is waited for when the writer has been told to stop.
const LAST_ANSWER: Duration = Duration::from_secs(1);

/// Writes until it is told to stop; the row that is under way then is waited for, a little.
pub async fn run<S: Session>(
    plan: &Plan<S::Login>,
    recorder: &mut Recorder,
    stop: &CancellationToken,
) -> io::Result<()> {
    let members = match &plan.target {
        Target::Primary(members) => members.clone(),
        Target::Member(member) => vec![member.clone()],
    };
    let mut sessions: Vec<Option<S>> = members.iter().map(|_| None).collect();
    let mut row = 0;
    while !stop.is_cancelled() {
        let Some(Some(at)) = stop.run_until_cancelled(find(plan, &members, &mut sessions)).await else { break };
        recorder.note(&format!("writing to {}", members[at]))?;
        while !stop.is_cancelled() {
            let session = sessions[at].as_ref().expect("find says so only of a connected member");
            row += 1;
            recorder.attempt(row, &members[at])?;
            let answer = tokio::select! {
                answer = session.insert(&plan.writer, row, &members[at]) => answer,
                () = tokio::time::sleep(plan.patience) => {
                    Err(Refusal { certain: false, reason: format!("no answer within {:?}", plan.patience) })
                }
                () = told_long_ago(stop) => Err(Refusal { certain: false, reason: "the writer was stopped".to_owned() }),
            };
            let refusal = match answer {
                Ok(reign) => {
                    recorder.acknowledged(row, &reign)?;
                    tokio::time::sleep(plan.pause).await;
                    continue;
                }
                Err(refusal) => refusal,
            };
            if refusal.certain {
                recorder.refused(row, &refusal.reason)?;
                // A session that was refused is sound; a follower looks around, a member's writer asks again.
                if plan.target == Target::Member(members[at].clone()) {
                    tokio::time::sleep(plan.retry).await;
                    continue;
                }
            } else {
                recorder.unknown(row, &refusal.reason)?;
                sessions[at] = None;
            }
            break;
        }
    }
    Ok(())
}

/// Ends a while after the writer was told to stop.
async fn told_long_ago(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(LAST_ANSWER).await;
}

/// Asks all members at once and again and again, each for itself so that a silent one keeps nobody waiting; the first that
/// takes writes. Sessions that are open stay open. `None` without members.
async fn find<S: Session>(plan: &Plan<S::Login>, members: &[String], sessions: &mut [Option<S>]) -> Option<usize> {
    let ask_first = matches!(plan.target, Target::Primary(_));
    let mut asked: FuturesUnordered<_> = members
        .iter()
        .zip(sessions.iter_mut())
        .enumerate()
        .map(|(at, (member, slot))| async move {
            loop {
                let look = async {
                    if slot.is_none() {
                        *slot = Some(S::connect(&plan.login, member).await?);
                    }
                    match slot.as_ref() {
                        Some(session) if ask_first => session.writable().await,
                        Some(_) | None => Ok(true),
                    }
                };
                match tokio::time::timeout(LOOK, look).await {
                    Ok(Ok(true)) => return at,
                    Ok(Ok(false)) => {}
                    Ok(Err(_)) | Err(_) => *slot = None,
                }
                tokio::time::sleep(plan.retry).await;
            }
        })
        .collect();
    asked.next().await
}
