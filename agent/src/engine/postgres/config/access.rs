//! Who may log in from where: `pg_hba.conf` and `pg_ident.conf`.
//!
//! The agent and the members come first; then applications, by their password from anywhere, or by the rules that an adopted instance
//! had. **Invariant:** the first rule that fits decides, so that nothing of an application's keeps the agent or a member out.

use super::{AGENT, REPLICATOR, SUPERUSER};

/// Map of the agent's user to its roles.
const AGENT_MAP: &str = "regent";
/// The same, and the owner of an adopted instance as itself: its people log in so on its machine.
const OWNER_MAP: &str = "regent_and_owner";
/// Parts the rules from the maps of users in the text of [`AdoptedRules`].
const MAPS_FOLLOW: &str = "# pg_ident.conf";

/// Whether applications may log in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in super::super) enum Applications {
    /// By their rules.
    Admitted,
    /// Not at all, while everything is handed over to a successor.
    Rejected,
}

/// What an adopted instance had in its two files, without comments; empty for a cluster that was created.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in super::super) struct AdoptedRules {
    rules: Vec<String>,
    maps: Vec<String>,
}

// === impl AdoptedRules ===

impl AdoptedRules {
    /// Of the texts of an instance's `pg_hba.conf` and `pg_ident.conf`.
    pub(in super::super) fn of_files(hba: &str, ident: &str) -> Self {
        let lines = |text: &str| {
            let trimmed = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
            trimmed.map(str::to_owned).collect()
        };
        Self { rules: lines(hba), maps: lines(ident) }
    }

    /// From the text in a cluster's spec.
    pub(in super::super) fn parse(text: &str) -> Self {
        let (rules, maps) = text.split_once(MAPS_FOLLOW).unwrap_or((text, ""));
        Self::of_files(rules, maps)
    }

    /// The text for a cluster's spec.
    pub(in super::super) fn text(&self) -> String {
        let mut text = self.rules.join("\n") + "\n";
        if !self.maps.is_empty() {
            text += &format!("{MAPS_FOLLOW}\n{}\n", self.maps.join("\n"));
        }
        text
    }

    pub(in super::super) fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    /// A line that speaks of other files, which would not come along.
    pub(in super::super) fn reaches_out(&self) -> Option<&str> {
        let reaches = |line: &&String| {
            line.starts_with("include")
                || line.split(|c: char| c.is_whitespace() || c == ',').any(|word| word.starts_with('@'))
        };
        self.rules.iter().chain(&self.maps).find(reaches).map(String::as_str)
    }
}

/// Renders `pg_hba.conf`.
pub(in super::super) fn hba_conf(applications: Applications, adopted: &AdoptedRules) -> String {
    let admitted = applications == Applications::Admitted;
    let (map, reserved) = match (adopted.is_empty(), admitted) {
        (true, _) => (AGENT_MAP, format!("{AGENT},{SUPERUSER}")),
        // The owner of an adopted instance goes on logging in as its rules let it.
        (false, true) => (OWNER_MAP, AGENT.to_owned()),
        (false, false) => (AGENT_MAP, AGENT.to_owned()),
    };
    let mut text = format!(
        "# Written by regent-agent. Changes made here are lost.\n\
         # The agent, over the socket, known to the kernel by its user.\n\
         local   all          {AGENT},{SUPERUSER}  peer map={map}\n\
         local   replication  {AGENT}           peer map={map}\n\
         # The agent's roles from nowhere else.\n\
         host    all          {reserved}  all  reject\n\
         # Members: the stream, clones and rewinds.\n\
         host    replication  {REPLICATOR}  all  scram-sha-256\n\
         host    postgres     {REPLICATOR}  all  scram-sha-256\n\
         host    all          {REPLICATOR}  all  reject\n\
         # Applications.\n"
    );
    match (adopted.is_empty(), admitted) {
        (true, true) => text += "host    all          all  all  scram-sha-256\n",
        (true, false) => text += "host    all          all  all  reject\n",
        (false, true) => text += &(adopted.rules.join("\n") + "\n"),
        (false, false) => {
            text += "local   all,replication  all       reject\n\
                     host    all,replication  all  all  reject\n";
        }
    }
    text
}

/// Renders `pg_ident.conf`: which user of the machine may be which role. `owner` is the user that the engine runs as.
pub(in super::super) fn ident_conf(agent_user: &str, owner: &str, adopted: &AdoptedRules) -> String {
    let quoted = |user: &str| user.replace('"', "\"\"");
    let user = quoted(agent_user);
    let mut text = format!(
        "# Written by regent-agent. Changes made here are lost.\n\
         {AGENT_MAP}  \"{user}\"  {AGENT}\n\
         {AGENT_MAP}  \"{user}\"  {SUPERUSER}\n"
    );
    if !adopted.is_empty() {
        text += &format!(
            "{OWNER_MAP}  \"{user}\"  {AGENT}\n\
             {OWNER_MAP}  \"{user}\"  {SUPERUSER}\n\
             {OWNER_MAP}  \"{}\"  {SUPERUSER}\n",
            quoted(owner)
        );
        text += &adopted.maps.iter().map(|line| format!("{line}\n")).collect::<String>();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_instance_had_goes_through_a_spec() {
        let hba = "# comment\n\nlocal all postgres peer\n host  all all 10.0.0.0/8 md5 \n";
        let rules = AdoptedRules::of_files(hba, "# none\nstaff alice app\n");
        assert_eq!(
            rules.text(),
            "local all postgres peer\nhost  all all 10.0.0.0/8 md5\n# pg_ident.conf\nstaff alice app\n"
        );
        assert_eq!(AdoptedRules::parse(&rules.text()), rules);
        assert_eq!(AdoptedRules::parse(""), AdoptedRules::default());
        let without_maps = AdoptedRules::of_files(hba, "");
        assert_eq!(AdoptedRules::parse(&without_maps.text()), without_maps);
    }

    #[test]
    fn a_rule_that_speaks_of_other_files_is_found() {
        let reaches = |hba: &str| AdoptedRules::of_files(hba, "").reaches_out().map(str::to_owned);
        assert_eq!(reaches("local all all peer"), None);
        assert_eq!(reaches("include_dir more").as_deref(), Some("include_dir more"));
        assert_eq!(reaches("host all a,@admins all md5").as_deref(), Some("host all a,@admins all md5"));
    }

    #[test]
    fn the_rules_of_an_adopted_instance_come_after_ours_and_nobody_is_admitted_during_a_hand_over() {
        let rules = AdoptedRules::of_files("local all all peer\nhost all all 10.0.0.0/8 md5\n", "staff alice app\n");
        insta::assert_snapshot!(
            hba_conf(Applications::Admitted, &rules)
                + &hba_conf(Applications::Rejected, &rules)
                + &ident_conf("root", "postgres", &rules)
        );
    }
}
