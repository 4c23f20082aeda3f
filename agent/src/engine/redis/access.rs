//! Who may log in: the engine's file of access control lists.
//!
//! The user `default`, as which everybody is who does not say who he is, is off, unless an instance that was adopted had a password
//! for him. The agent's own user has a password that it made
//! for itself and that never leaves the node. The members' user may ask how far the engine has come, and copy the data of a primary. One user
//! more nobody can be: the patterns of its keys tell the other members the line of ids that the data has had (see
//! `position.rs`); it is the one place that every flavor has for such a word, that applications cannot change, and that is
//! not among their keys.

use std::fmt::Write as _;

use secrecy::{ExposeSecret, SecretString};

use super::{flavor::Server, position::Line};

/// The agent, over the socket.
pub(super) const AGENT: &str = "regent-agent";
/// The other members: streams, clones, questions.
pub(super) const REPLICATOR: &str = "regent-replicator";
/// The application.
pub(super) const APPLICATION: &str = "app";
/// As whom everybody comes who says no name.
pub(super) const DEFAULT: &str = "default";
/// The other of two sides that both take writes: its stream.
pub(super) const SIDE: &str = "regent-side";
/// Nobody; tells the line.
pub(super) const TELLER: &str = "regent-line";

/// Passwords by user.
#[derive(Debug, Clone)]
pub(super) struct Secrets {
    pub(super) agent: SecretString,
    pub(super) replication: SecretString,
    /// Whether there is a user for the application; where an instance was adopted there is none.
    pub(super) application: Option<SecretString>,
    /// The users of an adopted instance, as lines of the file; empty elsewhere.
    pub(super) adopted: String,
}

/// What the other members may do.
const MEMBERS_MAY: &str = "+replconf +ping +info +acl|list";
/// What they may do with a primary besides. A replica is copied by nobody: the engine of a member that nobody has pointed elsewhere
/// yet goes on asking the former primary, and would take whatever that has, once it follows the new one, for its own history.
pub(super) const COPY: &str = "psync";

/// What the other of two sides may ask besides: whether it has a key too, of which kind and size, and a digest of its
/// value.
const SIDES_MAY: &str = "~* +select +exists +type +memory|usage +debug|digest-value";
/// What its stream may.
const STREAMS_MAY: &str = "+psync +replconf +ping";

/// Renders the file of one of two sides that both take writes, as it is when it is open or closed, as which every engine starts. A
/// stream that is turned away at its login goes on from where it was when it is let in again; one that is only refused the copy
/// forgets where that was.
pub(super) fn side_acl(server: &Server, secrets: &Secrets, is_open: bool) -> String {
    let mut text = String::from("user default off\n");
    let state = |on: bool| if on { "on" } else { "off" };
    let mut user = |name: &str, on: bool, secret: &SecretString, rights: &str| {
        let line = format!("user {name} {} #{} {rights}\n", state(on), digest(secret));
        text.push_str(&line);
    };
    user(AGENT, true, &secrets.agent, "~* &* +@all");
    user(REPLICATOR, true, &secrets.replication, &format!("{SIDES_MAY} {MEMBERS_MAY}"));
    user(SIDE, is_open, &secrets.replication, STREAMS_MAY);
    if let Some(secret) = &secrets.application {
        user(APPLICATION, is_open, secret, &format!("~* &* +@all {}", no_administration(server)));
    }
    text
}

/// Whether one of two sides is open, by its answer to `ACL LIST`. One that is being filled lets the other's stream in for a moment, and
/// no applications.
pub(super) fn is_open_side(list: &[String]) -> bool {
    let is_on = |name: &str| list.iter().any(|user| name_of(user) == name && user.split(' ').nth(2) == Some("on"));
    is_on(SIDE) && is_on(APPLICATION)
}

/// Renders the file, as it is for a primary or for a replica, as which every engine starts.
pub(super) fn users_acl(server: &Server, secrets: &Secrets, line: Option<&Line>, is_primary: bool) -> String {
    let mut text = String::new();
    if !secrets.lets_default_in() {
        text.push_str("user default off\n");
    }
    let mut user = |name: &str, secret: &SecretString, rights: &str| {
        writeln!(text, "user {name} on #{} {rights}", digest(secret)).expect("writing to a string does not fail");
    };
    user(AGENT, &secrets.agent, "~* &* +@all");
    let copy = if is_primary { format!("{MEMBERS_MAY} +{COPY}") } else { MEMBERS_MAY.to_owned() };
    user(REPLICATOR, &secrets.replication, &copy);
    let rights = format!("~* &* +@all {}", no_administration(server));
    if let Some(secret) = &secrets.application {
        user(APPLICATION, secret, &rights);
    }
    for adopted in secrets.adopted.lines() {
        writeln!(text, "{adopted}").expect("writing to a string does not fail");
    }
    if let Some(line) = line {
        writeln!(text, "{}", teller(line)).expect("writing to a string does not fail");
    }
    text
}

/// What is for administrators is the agent's; before release 7 that takes harmless words of a connection with it.
fn no_administration(server: &Server) -> String {
    const HARMLESS: &[&str] =
        &["id", "getname", "setname", "reply", "tracking", "trackinginfo", "caching", "getredir", "unblock"];
    let mut rights = "-@admin".to_owned();
    if server.release < (7, 0) {
        rights.extend(HARMLESS.iter().map(|word| format!(" +client|{word}")));
    }
    rights
}

/// A user of an instance that is adopted, of its answer to `ACL LIST`, as a member has him: he administers nothing any more. Who might
/// copy the data still may, so that a replica that is no member goes on. As whom everybody comes in, nobody does any more.
pub(super) fn adopted_user(server: &Server, listed: &str) -> String {
    let words: Vec<&str> = listed.split(' ').collect();
    let copies = words.iter().any(|word| ["+@all", "+@admin", "+@dangerous", "+psync"].contains(word));
    if is_open(listed) {
        return format!("user {} off", name_of(listed));
    }
    let denied = no_administration(server);
    let mut told = Vec::with_capacity(words.len() + 1);
    for word in words {
        // More rights of the same user, each in parentheses.
        match word.strip_suffix(')') {
            Some(last) => told.push(format!("{last} {denied})")),
            None => told.push(word.to_owned()),
        }
    }
    told.push(denied);
    if copies {
        told.push("+psync +replconf".to_owned());
    }
    told.join(" ")
}

/// Whether a user of an answer to `ACL LIST` is one as whom everybody comes in, without a password.
pub(super) fn is_open(listed: &str) -> bool {
    let has = |wanted: &str| listed.split(' ').skip(2).any(|word| word == wanted);
    has("on") && has("nopass")
}

/// The name of a user of an answer to `ACL LIST`.
pub(super) fn name_of(listed: &str) -> &str {
    listed.split(' ').nth(1).unwrap_or_default()
}

/// The commands that bring a running engine to the file. It could load the file itself, and would cut everybody's connection.
pub(super) fn commands(users_acl: &str) -> impl Iterator<Item = Vec<&str>> {
    users_acl.lines().filter_map(|line| {
        let mut words = line.strip_prefix("user ")?.split(' ');
        let name = words.next()?;
        Some(["ACL", "SETUSER", name, "reset"].into_iter().chain(words).collect())
    })
}

/// The user that tells the line, as a line of the file.
pub(super) fn teller(line: &Line) -> String {
    let rights = line.words().map(|word| format!("~{word}"));
    ["user", TELLER, "off"].map(str::to_owned).into_iter().chain(rights).collect::<Vec<_>>().join(" ")
}

/// The line that an engine tells, in its answer to `ACL LIST`.
pub(super) fn line_told(list: &[String]) -> Option<Line> {
    let begin = format!("user {TELLER} ");
    let words = list.iter().find_map(|user| user.strip_prefix(&begin))?;
    Line::parse(words.split_whitespace().filter_map(|word| word.strip_prefix('~')))
}

/// Users of the agent's and of the members.
pub(super) fn is_ours(user: &str) -> bool {
    [AGENT, REPLICATOR, SIDE, TELLER].contains(&user)
}

// === impl Secrets ===

impl Secrets {
    /// Whether a user is an application.
    pub(super) fn is_application(&self, user: &str) -> bool {
        !is_ours(user) && (user != DEFAULT || self.lets_default_in())
    }

    /// Whether the user `default` is one of an adopted instance's.
    fn lets_default_in(&self) -> bool {
        self.adopted.lines().any(|user| name_of(user) == DEFAULT)
    }
}

/// A password as the engine stores it.
fn digest(secret: &SecretString) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, secret.expose_secret().as_bytes());
    digest.as_ref().iter().fold(String::with_capacity(64), |mut text, byte| {
        write!(text, "{byte:02x}").expect("writing to a string does not fail");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line() -> Line {
        Line::parse(["a1:5", "b2"].into_iter()).unwrap()
    }

    fn server(release: (u32, u32)) -> Server {
        Server { program: "/usr/bin/redis-server".into(), version: "7.0.15".into(), release }
    }

    #[test]
    fn the_users_of_an_adopted_instance_administer_nothing() {
        let (seven, six) = (server((7, 0)), server((6, 0)));
        assert_eq!(adopted_user(&seven, "user default on nopass ~* &* +@all"), "user default off");
        let user = adopted_user(&seven, "user default on #ab ~* &* +@all");
        assert_eq!(user, "user default on #ab ~* &* +@all -@admin +psync +replconf");
        let user = adopted_user(&seven, "user shop on #ab ~a resetchannels -@all +get (~b resetchannels -@all +set)");
        assert_eq!(user, "user shop on #ab ~a resetchannels -@all +get (~b resetchannels -@all +set -@admin) -@admin");
        // Nobody comes in as who is off.
        assert_eq!(adopted_user(&seven, "user old off nopass -@all"), "user old off nopass -@all -@admin");
        let user = adopted_user(&six, "user shop on #ab ~* +@read");
        assert!(user.starts_with("user shop on #ab ~* +@read -@admin +client|id "), "{user}");
    }

    #[test]
    fn the_user_default_is_off_unless_an_adopted_instance_had_a_password_for_him() {
        let of = |adopted: &str| Secrets {
            agent: "a".into(),
            replication: "r".into(),
            application: None,
            adopted: adopted.to_owned(),
        };
        let (none, one) = (of(""), of("user shop on #ab +@all\nuser default on #ab +@all"));
        assert!(users_acl(&server((7, 0)), &none, None, false).starts_with("user default off\n"));
        assert_eq!(users_acl(&server((7, 0)), &one, None, false).matches("user default").count(), 1);
        let are = |secrets: &Secrets| [DEFAULT, "shop", AGENT, TELLER].map(|user| secrets.is_application(user));
        assert_eq!((are(&none), are(&one)), ([false, true, false, false], [true, true, false, false]));
    }

    #[test]
    fn a_closed_side_lets_nobody_in_but_the_agents() {
        let secrets = Secrets {
            agent: "a".into(),
            replication: "r".into(),
            application: Some("p".into()),
            adopted: String::new(),
        };
        let users = |is_open| -> Vec<String> {
            side_acl(&server((6, 3)), &secrets, is_open).lines().map(str::to_owned).collect()
        };
        let state = |list: &[String], name: &str| {
            list.iter().find(|user| name_of(user) == name).unwrap().split(' ').nth(2).unwrap().to_owned()
        };
        for (is_open, wanted) in [(false, "off"), (true, "on")] {
            let list = users(is_open);
            assert_eq!((state(&list, SIDE), state(&list, APPLICATION)), (wanted.to_owned(), wanted.to_owned()));
            assert_eq!((state(&list, AGENT), state(&list, REPLICATOR)), ("on".to_owned(), "on".to_owned()));
            assert_eq!(is_open_side(&list), is_open);
        }
        assert!(!users(true).iter().any(|user| name_of(user) == REPLICATOR && user.contains("psync")));
        assert!(!is_open_side(&["user regent-side on".to_owned(), "user app off".to_owned()]), "it is being filled");
    }

    #[test]
    fn the_line_is_told_by_the_users() {
        let secrets = Secrets {
            agent: "a".into(),
            replication: "r".into(),
            application: Some("p".into()),
            adopted: String::new(),
        };
        let server = server((7, 0));
        let text = users_acl(&server, &secrets, Some(&line()), false);
        insta::assert_snapshot!(text, @r"
        user default off
        user regent-agent on #ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb ~* &* +@all
        user regent-replicator on #454349e422f05297191ead13e21d3db520e5abef52055e4964b82fb213f593a1 +replconf +ping +info +acl|list
        user app on #148de9c5a7a44d19e56cd9ae1a554bf67847afb0c58f6e12fa29ac7ddfca9940 ~* &* +@all -@admin
        user regent-line off ~a1:5 ~b2
        ");
        assert!(users_acl(&server, &secrets, None, true).contains("+acl|list +psync\n"));
        let list: Vec<String> = text.lines().map(str::to_owned).collect();
        assert_eq!(line_told(&list), Some(line()));
        assert_eq!(line_told(&list[..3]), None);
        // As releases 6 and 7 list it.
        for listed in [
            "user regent-line off ~a1:5 ~b2 -@all",
            "user regent-line off sanitize-payload ~a1:5 ~b2 resetchannels -@all",
        ] {
            assert_eq!(line_told(&[listed.to_owned()]), Some(line()));
        }
        let commands: Vec<_> = commands(&text).collect();
        assert_eq!(commands[0], ["ACL", "SETUSER", "default", "reset", "off"]);
        assert_eq!(commands[4], ["ACL", "SETUSER", "regent-line", "reset", "off", "~a1:5", "~b2"]);
    }
}
