//! An operation as a page for people: what it does, how far it is, why it failed and what to do then.

use std::time::Duration;

use jiff::Timestamp;
use regent_common::error::Reason;
use regent_proto::{coordinator::v1 as wire, types::v1 as types};

use super::{
    table::layout,
    units::{self, bytes, span, when},
    words::{self, or_dash, short},
};

/// The step that runs, such as "clone of pg-main2 (step 3 of 7)"; nothing when none does.
pub fn current_step(operation: &wire::Operation) -> Option<String> {
    let (index, step) =
        operation.steps.iter().enumerate().find(|(_, step)| step.state() == wire::StepState::Running)?;
    Some(format!("{} (step {} of {})", step_name(step), index + 1, operation.steps.len()))
}

/// A step with the member that it works on.
pub fn step_name(step: &wire::Step) -> String {
    if step.member.is_empty() { step.name.clone() } else { format!("{} of {}", step.name, step.member) }
}

/// How long it took, or has been taking.
pub fn lasted(operation: &wire::Operation, now: Timestamp) -> Option<Duration> {
    let start = units::time(operation.start_time.as_ref().or(operation.create_time.as_ref()))?;
    Some(units::between(start, units::time(operation.end_time.as_ref()).unwrap_or(now)))
}

/// How long a step took, or has been taking.
pub fn step_lasted(step: &wire::Step, now: Timestamp) -> Option<Duration> {
    let start = units::time(step.start_time.as_ref())?;
    Some(units::between(start, units::time(step.end_time.as_ref()).unwrap_or(now)))
}

/// How far long work is: phase, bytes, entries, rate, time left.
pub fn progress(progress: &types::Progress) -> String {
    let mut parts = Vec::new();
    if !progress.phase.is_empty() {
        parts.push(progress.phase.clone());
    }
    if progress.bytes_total > 0 {
        let percent = units::percent(progress.bytes_done, progress.bytes_total);
        parts.push(format!("{} ({percent} %)", units::bytes_of(progress.bytes_done, progress.bytes_total)));
    } else if progress.bytes_done > 0 {
        parts.push(bytes(progress.bytes_done));
    }
    if progress.entries_total > 0 {
        let (done, total) = (progress.entries_done, progress.entries_total);
        parts.push(format!("{done} of {total} entries ({} %)", units::percent(done, total)));
    }
    if progress.bytes_per_second > 0 {
        parts.push(format!("{}/s", bytes(progress.bytes_per_second)));
    }
    if let Some(left) = progress.eta_seconds {
        parts.push(format!("{} left", units::coarse(Duration::from_secs(left))));
    }
    parts.join(", ")
}

/// `operation show`.
pub fn page(operation: &wire::Operation, now: Timestamp) -> String {
    let mut lines = vec![format!("Operation {}  {}", short(&operation.name), state_sentence(operation, now))];
    let mut fact = |name: &str, value: String| lines.push(format!("  {name:<12}{value}"));
    fact("kind", operation.kind.clone());
    fact("cluster", or_dash(short(&operation.cluster)));
    fact("asked for", format!("{} by {}", when(operation.create_time.as_ref(), now), or_dash(&operation.created_by)));
    if !operation.reason.is_empty() {
        fact("why", operation.reason.clone());
    }
    for (name, value) in &operation.parameters {
        fact("parameter", format!("{name} = {value}"));
    }
    if !operation.steps.is_empty() {
        lines.push(String::new());
        lines.push(layout(&["STEP", "NAME", "MEMBER", "STATE", "TOOK", "NOTE"], &[0], steps(operation, now)));
        if operation.steps.iter().any(|step| step.point_of_no_return) {
            lines.push("  * after this step the operation only goes forward and cannot be cancelled".to_owned());
        }
    }
    if !operation.report.is_empty() {
        lines.push(String::new());
        lines.push(if operation.validate_only { "It would" } else { "Report" }.to_owned());
        lines.extend(operation.report.iter().map(|sentence| format!("  - {sentence}")));
    }
    if !operation.error.is_empty() {
        lines.push(String::new());
        lines.push(format!("Error: {}", operation.error));
        lines.extend(aftermath(operation).into_iter().map(|(name, text)| format!("  {name:<12}{text}")));
    }
    tidy(lines)
}

/// Joins lines, some of which end in a newline already.
pub fn tidy(lines: Vec<String>) -> String {
    let mut text = String::new();
    for line in lines {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn steps(operation: &wire::Operation, now: Timestamp) -> Vec<Vec<String>> {
    operation
        .steps
        .iter()
        .enumerate()
        .map(|(index, step)| {
            let mut notes = Vec::new();
            if let Some(running) = step.progress.as_ref().filter(|_| step.state() == wire::StepState::Running) {
                notes.push(progress(running));
            }
            if step.attempts > 1 {
                notes.push(format!("begun {} times", step.attempts));
            }
            if !step.error.is_empty() {
                notes.push(step.error.clone());
            }
            vec![
                (index + 1).to_string(),
                format!("{}{}", step.name, if step.point_of_no_return { " *" } else { "" }),
                or_dash(&step.member),
                words::step_state(step.state),
                step_lasted(step, now).map_or_else(|| "-".to_owned(), span),
                notes.join("; "),
            ]
        })
        .collect()
}

fn state_sentence(operation: &wire::Operation, now: Timestamp) -> String {
    if operation.validate_only {
        return "checked only: nothing has been changed".to_owned();
    }
    let time = lasted(operation, now).map_or_else(|| "-".to_owned(), span);
    match operation.state() {
        wire::OperationState::Pending => "waits for another operation of the cluster".to_owned(),
        wire::OperationState::Running => match current_step(operation) {
            Some(step) => format!("runs for {time}: {step}"),
            None => format!("runs for {time}"),
        },
        wire::OperationState::Unwinding => format!("failed and is being undone, {time} so far"),
        wire::OperationState::Succeeded => format!("succeeded in {time}"),
        wire::OperationState::Failed => format!("FAILED after {time}"),
        wire::OperationState::Cancelled => format!("cancelled after {time}"),
        wire::OperationState::Unspecified => format!("is in state {}", words::operation_state(operation.state)),
    }
}

/// What a failure left behind and what to do next: names and sentences.
pub fn aftermath(operation: &wire::Operation) -> Vec<(&'static str, String)> {
    let mut facts = Vec::new();
    if !operation.error_reason.is_empty() {
        facts.push(("reason:", operation.error_reason.clone()));
    }
    let undone = operation.steps.iter().filter(|step| step.state() == wire::StepState::Undone).count();
    let kept = operation.steps.iter().filter(|step| step.state() == wire::StepState::Succeeded).count();
    match (undone, kept) {
        (0, 0) => {}
        (undone, 0) => facts.push(("unchanged:", format!("all that was done is undone ({undone} of its steps)"))),
        (0, kept) => facts.push(("changed:", format!("{kept} of its steps stay done"))),
        (undone, kept) => facts.push(("changed:", format!("{kept} of its steps stay done, {undone} are undone"))),
    }
    if let Ok(reason) = operation.error_reason.parse::<Reason>() {
        facts.push(("what to do:", reason.what_to_do().to_owned()));
    }
    facts
}

/// How an operation ended, with its report.
pub fn summary(operation: &wire::Operation, now: Timestamp) -> String {
    let mut lines = vec![format!("Operation {}  {}", short(&operation.name), state_sentence(operation, now))];
    lines.extend(operation.report.iter().map(|sentence| format!("  - {sentence}")));
    tidy(lines)
}
