//! Waits for an operation: shows its progress on stderr, takes the stream up again when it breaks, and says on Ctrl-C that
//! the operation goes on.
//!
//! **Invariant:** ending this wait never ends the operation.

use std::{collections::BTreeMap, time::Duration};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use regent_common::clock::wall_now;
use regent_proto::coordinator::v1 as wire;
use tonic::Streaming;

use crate::{
    connection::{Connection, Context},
    failure::{Call, Failure},
    output::{Output, json, operation, progress, units},
};

/// How long the coordinator may be away before nobody waits any longer.
const PATIENCE: Duration = Duration::from_secs(60);

/// Pause before the stream is taken up again.
const PAUSE: Duration = Duration::from_millis(250);

/// How a changing verb ends: a check, a name, or a wait.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(crate) struct Waiting {
    /// Wait until the operation has ended (the default)
    #[arg(long, overrides_with = "no_wait")]
    wait: bool,
    /// Print the operation's name and leave
    #[arg(long, overrides_with = "wait")]
    no_wait: bool,
}

/// Lines on stderr while an operation goes on.
enum Reporter {
    /// One line per change.
    Lines { output: Output, before: Option<Box<wire::Operation>> },
    /// One line per running step, redrawn.
    Live { output: Output, screen: MultiProgress, bars: BTreeMap<usize, ProgressBar> },
}

/// Ends a changing verb: shows what a check found, or waits for the operation as asked.
pub(crate) async fn finish(
    context: &Context,
    connection: &Connection,
    call: &Call,
    operation: wire::Operation,
    waiting: Waiting,
) -> Result<(), Failure> {
    let output = context.output;
    if operation.validate_only {
        output.note("Dry run: nothing has been changed.");
        output.data(|| operation::page(&operation, wall_now()), || json::object(&operation));
        return Ok(());
    }
    if waiting.no_wait {
        output.data(|| operation.name.clone(), || json::object(&operation));
        return Ok(());
    }
    let ended = follow(context, connection, call, operation).await?;
    output.data(|| operation::summary(&ended, wall_now()), || json::object(&ended));
    if ended.state() == wire::OperationState::Succeeded {
        Ok(())
    } else {
        Err(Failure::Operation { operation: Box::new(ended) })
    }
}

/// Waits until the operation has ended, or Ctrl-C.
pub(crate) async fn follow(
    context: &Context,
    connection: &Connection,
    call: &Call,
    operation: wire::Operation,
) -> Result<wire::Operation, Failure> {
    let name = operation.name.clone();
    tokio::select! {
        // The handler stands before the first line is said: who reads that line may interrupt.
        biased;
        // Without a handler Ctrl-C ends this process by itself, which is as well.
        Ok(()) = tokio::signal::ctrl_c() => Err(Failure::Interrupted { operation: name }),
        ended = until_done(context, connection, call, operation) => ended,
    }
}

async fn until_done(
    context: &Context,
    connection: &Connection,
    call: &Call,
    operation: wire::Operation,
) -> Result<wire::Operation, Failure> {
    let mut reporter = Reporter::new(context.output);
    let name = operation.name.clone();
    reporter.show(&operation);
    if operation.done {
        return Ok(operation);
    }
    loop {
        let attached = tokio::time::timeout(PATIENCE, attach(context, connection, call, &name, &reporter)).await;
        let lost = || Failure::Lost { operation: name.clone(), coordinator: context.coordinator().to_owned() };
        let (mut stream, first) = attached.map_err(|_elapsed| lost())??;
        let mut current = Some(first);
        while let Some(operation) = current {
            reporter.show(&operation);
            if operation.done {
                reporter.end();
                return Ok(operation);
            }
            // A stream that breaks is taken up again: the first message says everything that was missed.
            current = stream.message().await.ok().flatten();
        }
    }
}

/// Opens the stream and reads its first message, again and again while the coordinator is away.
async fn attach(
    context: &Context,
    connection: &Connection,
    call: &Call,
    name: &str,
    reporter: &Reporter,
) -> Result<(Streaming<wire::Operation>, wire::Operation), Failure> {
    let mut told = false;
    loop {
        let opened =
            connection.operations().watch_operation(wire::WatchOperationRequest { name: name.to_owned() }).await;
        let problem = match opened {
            Ok(answer) => {
                let mut stream = answer.into_inner();
                match stream.message().await {
                    Ok(Some(first)) => return Ok((stream, first)),
                    Ok(None) => None,
                    Err(status) => Some(status),
                }
            }
            Err(status) => Some(status),
        };
        match problem {
            // Refused, not found, denied: asking again does not help. All else may be a connection that broke.
            Some(status) if matches!(call.failed(status.clone()).exit_code(), 3..=5) => return Err(call.failed(status)),
            Some(status) if !told => {
                told = true;
                reporter.note(format!(
                    "The coordinator at {} does not answer ({}). The operation goes on; trying again for {}.",
                    context.coordinator(),
                    status.message(),
                    units::span(PATIENCE)
                ));
            }
            Some(_) | None => {}
        }
        tokio::time::sleep(PAUSE).await;
    }
}

// === impl Reporter ===

impl Reporter {
    fn new(output: Output) -> Self {
        if output.live() {
            let screen = MultiProgress::with_draw_target(ProgressDrawTarget::stderr());
            Self::Live { output, screen, bars: BTreeMap::new() }
        } else {
            Self::Lines { output, before: None }
        }
    }

    fn show(&mut self, operation: &wire::Operation) {
        let now = wall_now();
        match self {
            Self::Lines { output, before } => {
                for line in progress::changes(before.as_deref(), operation, now) {
                    output.note(line);
                }
                *before = Some(Box::new(operation.clone()));
            }
            Self::Live { screen, bars, .. } => {
                for (index, step) in operation.steps.iter().enumerate() {
                    match step.state() {
                        wire::StepState::Pending | wire::StepState::Unspecified => continue,
                        wire::StepState::Running
                        | wire::StepState::Succeeded
                        | wire::StepState::Failed
                        | wire::StepState::Undone => {}
                    }
                    let bar = bars.entry(index).or_insert_with(|| screen.add(spinner()));
                    let message = format!("{}/{} {}", index + 1, operation.steps.len(), progress::step_line(step, now));
                    if step.state() == wire::StepState::Running {
                        bar.set_message(message);
                    } else {
                        bar.abandon_with_message(message);
                    }
                }
            }
        }
    }

    /// A line of its own, above lines that are redrawn.
    fn note(&self, text: String) {
        match self {
            Self::Lines { output, .. } => output.note(text),
            Self::Live { output, screen, .. } => screen.suspend(|| output.note(text)),
        }
    }

    fn end(&mut self) {
        match self {
            Self::Lines { .. } => {}
            Self::Live { bars, .. } => {
                for bar in bars.values() {
                    bar.abandon();
                }
            }
        }
    }
}

fn spinner() -> ProgressBar {
    let bar = ProgressBar::new_spinner();
    let style = ProgressStyle::with_template("{spinner} {wide_msg} {elapsed}").expect("the template is valid");
    bar.set_style(style);
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
