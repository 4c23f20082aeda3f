//! `events`.

use std::time::Duration;

use regent_proto::coordinator::v1 as wire;

use crate::{
    connection::Context,
    failure::Failure,
    output::{json, table},
    verbs::arguments::cluster_or_empty,
};

/// The stream does not say where the kept events end: without `--follow` it is left when nothing comes for so long.
const QUIET: Duration = Duration::from_secs(1);

/// Pause before a broken stream is taken up again.
const PAUSE: Duration = Duration::from_millis(500);

/// What happened: the events that are kept, or with --follow new ones as they come
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Go on with new events as they come; alone, without those that are kept
    #[arg(long)]
    follow: bool,
    /// Only events of this cluster
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// Begin after this event; 0 for all that are kept
    #[arg(long, value_name = "ID")]
    resume_after: Option<String>,
}

pub(crate) async fn run(context: &Context, arguments: Arguments) -> Result<(), Failure> {
    let call = context.reading("read events");
    let cluster = cluster_or_empty(arguments.cluster.as_deref());
    let start = if arguments.follow { String::new() } else { "0".to_owned() };
    let mut resume_after = arguments.resume_after.unwrap_or(start);
    let connection = context.connect(&call).await?;
    let mut connected_once = false;
    loop {
        let message = wire::WatchEventsRequest { resume_after: resume_after.clone(), cluster: cluster.clone() };
        let problem = match connection.events().watch_events(message).await {
            Ok(answer) => {
                connected_once = true;
                let mut stream = answer.into_inner();
                loop {
                    let next = if arguments.follow {
                        stream.message().await
                    } else {
                        match tokio::time::timeout(QUIET, stream.message()).await {
                            Ok(next) => next,
                            Err(_quiet) => return Ok(()),
                        }
                    };
                    match next {
                        Ok(Some(event)) => {
                            context.output.item(|| table::event_line(&event), || json::object(&event));
                            resume_after = event.id;
                        }
                        Ok(None) if !arguments.follow => return Ok(()),
                        Ok(None) => break None,
                        Err(status) => break Some(call.failed(status)),
                    }
                }
            }
            Err(status) => Some(call.failed(status)),
        };
        if let Some(failure) = problem {
            if !arguments.follow || !connected_once || matches!(failure.exit_code(), 3..=5) {
                return Err(failure);
            }
            context.output.note(format!("{failure}; trying again after event {resume_after:?}"));
        }
        tokio::time::sleep(PAUSE).await;
    }
}
