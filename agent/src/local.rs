//! The agent's socket for people on this machine: its state, and the one order that a person can give it.
//!
//! A unix socket in the agent's run directory that only the agent's user can open. That is enough for the state; for the order
//! the kernel is asked who called (SO_PEERCRED): root, or the agent's own user, who could change ledger and engine without
//! asking. HTTP on it, because the agent speaks that anyway.
//!
//! **Invariant:** nothing here decides; the order is [`Force`]'s.

use std::{
    io::{self, Read, Write},
    os::unix::{fs::PermissionsExt, net::UnixStream},
    path::Path,
    sync::Arc,
    time::Duration,
};

use axum::{
    Json, Router,
    extract::{ConnectInfo, State, connect_info::Connected},
    http::StatusCode,
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::IncomingStream,
};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use crate::{
    force::{Force, Words},
    node::Node,
    status::Status,
};

/// How long the running agent may take to say something at all.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// Who called, by the kernel's word.
#[derive(Debug, Clone, Copy)]
struct CallerUid(Option<u32>);

impl Connected<IncomingStream<'_, UnixListener>> for CallerUid {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        Self(stream.io().peer_cred().ok().map(|credentials| credentials.uid()))
    }
}

/// What answers.
#[derive(Debug, Clone)]
struct Local {
    node: Arc<Node>,
    force: Arc<Force>,
}

/// An answer of the running agent.
#[derive(Debug)]
pub struct Reply {
    /// Its status, as HTTP has it.
    pub code: u16,
    /// What it says.
    pub body: String,
}

/// Whether a caller may give orders. An agent that is not root's has nothing that its own user has not.
fn may_order(caller: Option<u32>, own: u32) -> bool {
    caller.is_some_and(|caller| caller == 0 || caller == own)
}

/// Answers people on this machine until told to stop.
pub async fn serve(socket: &Path, node: Arc<Node>, force: Arc<Force>, stop: CancellationToken) -> io::Result<()> {
    // An agent that was killed leaves its socket behind; that no other one lives is sure by the lock.
    match std::fs::remove_file(socket) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(socket)?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))?;
    let router = Router::new()
        .route("/status", get(show))
        .route("/force-primary", post(force_primary))
        .with_state(Local { node, force })
        .into_make_service_with_connect_info::<CallerUid>();
    axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await
}

async fn show(State(local): State<Local>) -> Json<Status> {
    Json(Status::of_node(&local.node).await)
}

async fn force_primary(
    State(local): State<Local>,
    ConnectInfo(CallerUid(caller)): ConnectInfo<CallerUid>,
    Json(words): Json<Words>,
) -> Response {
    if !may_order(caller, nix::unistd::geteuid().as_raw()) {
        tracing::warn!(?caller, "somebody who is not root wanted to force this member to be the primary");
        return (StatusCode::FORBIDDEN, "only root of this machine may say this").into_response();
    }
    Json(local.force.run(words).await).into_response()
}

/// Asks the running agent for its state.
pub fn get_status(socket: &Path) -> io::Result<Reply> {
    ask(socket, "GET /status HTTP/1.1\r\nHost: agent\r\nConnection: close\r\n\r\n", ANSWER_WITHIN)
}

/// Gives the running agent the order, and waits for what comes of it.
pub fn order_force_primary(socket: &Path, words: &Words, within: Duration) -> io::Result<Reply> {
    let body = serde_json::to_string(words).expect("words have only text keys");
    let head = "POST /force-primary HTTP/1.1\r\nHost: agent\r\nConnection: close\r\nContent-Type: application/json";
    ask(socket, &format!("{head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()), within)
}

fn ask(socket: &Path, request: &str, within: Duration) -> io::Result<Reply> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(within))?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    read(&answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the answer is no HTTP"))
}

fn read(answer: &str) -> Option<Reply> {
    let (head, body) = answer.split_once("\r\n\r\n")?;
    let code = head.split_whitespace().nth(1)?.parse().ok()?;
    Some(Reply { code, body: body.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_the_agents_own_user_may_give_orders_and_nobody_else() {
        for (caller, own, may) in [
            (Some(0), 0, true),
            (Some(0), 1000, true),
            (Some(1000), 1000, true),
            (Some(1000), 0, false),
            (Some(1001), 1000, false),
            (None, 0, false),
        ] {
            assert_eq!(may_order(caller, own), may, "{caller:?} asks an agent of {own}");
        }
    }

    #[test]
    fn an_answer_is_read_by_its_head_and_body() {
        let reply = read("HTTP/1.1 403 Forbidden\r\ncontent-length: 2\r\n\r\nno").unwrap();
        assert_eq!((reply.code, reply.body.as_str()), (403, "no"));
        assert!(read("").is_none() && read("HTTP/1.1\r\n\r\n").is_none());
    }
}
