//! What a person reads after `init`.

use super::InitReport;

/// Prints the report to stdout.
#[expect(clippy::print_stdout, reason = "this is the output module")]
pub(super) fn print(report: &InitReport) {
    print!("{}", text(report));
}

/// The report as text.
pub(super) fn text(report: &InitReport) -> String {
    let config = if report.config_written { "written" } else { "kept as it was" };
    let mut text = format!(
        "Coordinator {} is initialized.\n\
         \x20 state:          {}\n\
         \x20 hosts:          {}\n\
         \x20 CA fingerprint: {}\n\
         \x20 configuration:  {} ({config})\n\
         \x20 administrator:  {}, with its identity in {}\n",
        report.coordinator_id,
        report.state_dir.display(),
        report.hosts.join(", "),
        report.ca_fingerprint,
        report.config_path.display(),
        report.admin,
        report.admin_dir.display(),
    );
    for note in &report.notes {
        text.push_str(&format!("Note: {note}\n"));
    }
    text.push_str(&format!(
        "Next: start it with `systemctl start regent-coordinator` where its package is installed, else with\n\
         `regent-coordinator serve`; then make a join token with\n\
         \x20 regentctl --identity {} token create\n",
        report.admin_dir.display()
    ));
    text
}
